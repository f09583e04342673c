"""The operator pays money in and out."""

from fastapi import APIRouter, Request
from starlette.responses import Response

import crud
from api.callers import actor_of, operations_of, operator
from api.errors import OPERATOR_ONLY, TRANSFER, documented
from api.fast_route import fast
from api.idempotency import REPLAYED, Key, mark_replay
from api.strict_route import StrictRoute
from api.transfers import show_settled
from models import CashRequest, SettledTransfer
from refusals import SameAccount

router = APIRouter(route_class=StrictRoute, tags=["payments"], dependencies=[operator("money")])


PAYMENT_RESPONSES = {**REPLAYED, **documented(*OPERATOR_ONLY, *TRANSFER, SameAccount("account_id"), body=True)}


@router.post("/deposits", status_code=201, summary="Pay money in", responses=PAYMENT_RESPONSES)
@fast
async def deposit(
    cash: CashRequest, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer:
    """A transfer from the system account of the currency, whose balance falls by the amount."""
    return await pay(cash, idempotency_key, request, response, is_payout=False)


@router.post("/withdrawals", status_code=201, summary="Pay money out", responses=PAYMENT_RESPONSES)
@fast
async def withdraw(
    cash: CashRequest, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer:
    """A transfer to the system account of the currency; also from the account of a user who is not active."""
    return await pay(cash, idempotency_key, request, response, is_payout=True)


async def pay(
    cash: CashRequest, idempotency_key: str | None, request: Request, response: Response, *, is_payout: bool
) -> SettledTransfer:
    """Make the payment."""
    payment = crud.Payment(
        cash.account_id,
        cash.amount,
        cash.memo,
        idempotency_key,
        is_payout,
        cash.reference,
        cash.details,
        actor_of(request),
    )
    posted = await operations_of(request).write(crud.make_payments, payment)
    mark_replay(response, posted.replayed)
    return show_settled(posted)
