"""Transactions: several transfers, all or nothing."""

from fastapi import APIRouter, Request, Response

import crud
from api.callers import MoneyCaller, actor_of, operations_of, or_operator
from api.errors import USER_OR_OPERATOR, documented
from api.fast_route import fast
from api.idempotency import REPLAYED, Key, mark_replay
from api.strict_route import StrictRoute
from api.transfers import order_of, show_transfer
from ledger import LinkedOrders, LinkedPostings, Posted
from models import TransactionPublic, TransactionRequest
from refusals import IdempotencyKeyReused, InsufficientFunds, OutcomeUnknown, TransactionRefused

router = APIRouter(route_class=StrictRoute, tags=["transfers"])


@router.post(
    "/transactions",
    status_code=201,
    summary="Make several transfers, all or nothing",
    responses=REPLAYED
    | documented(
        *USER_OR_OPERATOR,
        TransactionRefused([(1, InsufficientFunds())]),
        IdempotencyKeyReused,
        OutcomeUnknown,
        body=True,
    ),
    openapi_extra=or_operator("money"),
)
@fast
async def make_transaction(
    transaction: TransactionRequest,
    caller: MoneyCaller,
    request: Request,
    response: Response,
    idempotency_key: Key = None,
) -> TransactionPublic:
    """In this order, under one Idempotency-Key: a price and its fee, a split, an exchange of two currencies.

    The debit accounts are the caller's own (the operator: any). Where one transfer is refused, nothing is moved.
    """
    legs = [order_of(each, caller, None, actor_of(request)) for each in transaction.transfers]
    order = LinkedOrders(caller, legs, idempotency_key, transaction.reference, transaction.details)
    posted: Posted[LinkedPostings] = await operations_of(request).write(crud.make_transfers, order)
    mark_replay(response, posted.replayed)
    made = posted.posting
    return TransactionPublic.model_construct(
        id=made.id,
        reference=order.reference,
        metadata=order.metadata,
        created_at=made.created_at,
        transfers=[show_transfer(Posted(each), caller) for each in made.postings],
    )
