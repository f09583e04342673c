"""Holds: money that is promised, and moved or given free later."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

import crud
from api.callers import MoneyCaller, ReadCaller, actor_of, operations_of, or_operator
from api.errors import TRANSFER, USER_OR_OPERATOR, documented
from api.fast_route import fast
from api.idempotency import REPLAYED, Key, mark_replay
from api.pages import Limit, NewestFirst, Page, RowFilter, RowId, page_of
from api.strict_route import StrictRoute
from api.transfers import order_of, show_capture
from fields import HoldStatus
from ledger import HoldPosting, Posted, Posting
from models import CaptureRequest, HoldPublic, HoldRequest, SettledTransfer, TransferPublic
from refusals import (
    AccountNotActive,
    AccountNotFound,
    BalanceLimit,
    CurrencyMismatch,
    HoldExceeded,
    HoldNotFound,
    HoldResolved,
    IdempotencyKeyReused,
    OutcomeUnknown,
    ReceiverOnly,
    SameAccount,
    VersionMismatch,
)

router = APIRouter(route_class=StrictRoute, tags=["holds"])


@router.post(
    "/holds",
    status_code=201,
    summary="Hold money for a transfer",
    responses=REPLAYED
    | documented(*USER_OR_OPERATOR, *TRANSFER, VersionMismatch, SameAccount, CurrencyMismatch, body=True),
    openapi_extra=or_operator("money"),
)
@fast
async def hold(
    hold: HoldRequest, caller: MoneyCaller, request: Request, response: Response, idempotency_key: Key = None
) -> HoldPublic:
    """As POST /transfers, but nothing moves: the amount cannot be spent, until the hold is captured, voided or expires.

    It expires by itself `expires_in` seconds after it was made, and counts no more from then on.
    """
    order = order_of(hold, caller, idempotency_key, actor_of(request))
    posted: Posted[HoldPosting] = await operations_of(request).write(crud.make_transfers, order)
    mark_replay(response, posted.replayed)
    return show_hold(posted.posting)


def show_hold(hold: HoldPosting) -> HoldPublic:
    """The hold, as both parties see it."""
    order = hold.order
    return HoldPublic.model_construct(
        id=hold.id,
        debit_account_id=order.debit_account_id,
        credit_account_id=order.credit_account_id,
        currency=hold.currency,
        amount=order.amount,
        asked_amount=order.asked_amount,
        memo=order.memo,
        reference=order.reference,
        metadata=order.metadata,
        status=hold.status,
        expires_at=hold.expires_at,
        resolved_at=hold.resolved_at,
        created_at=hold.created_at,
    )


@router.get(
    "/holds",
    summary="List holds",
    response_model=Page[HoldPublic],
    responses=documented(*USER_OR_OPERATOR, AccountNotFound),
    openapi_extra=or_operator("read"),
)
async def list_holds(
    caller: ReadCaller,
    request: Request,
    *,
    after: NewestFirst = None,
    limit: Limit = 50,
    account_id: Annotated[RowFilter | None, Query(description="Only on, or for, this account")] = None,
    status: Annotated[HoldStatus | None, Query(description="Only those that are so now")] = None,
) -> Response:
    """Newest first: why money is held, and what may be captured. A user's own; the operator's list has all.

    With a status, a page looks at up to 10,000 holds: where that is not enough, it is short, and `next` goes on.
    """
    newer = 2**63 - 1 if after is None else after
    part = await operations_of(request).read(crud.list_holds, caller, account_id, status, after=newer, limit=limit)
    return page_of(part)


@router.get(
    "/holds/{id}",
    summary="Show a hold",
    responses=documented(*USER_OR_OPERATOR, HoldNotFound),
    openapi_extra=or_operator("read"),
)
@fast
async def get_hold(id: RowId, caller: ReadCaller, request: Request) -> HoldPublic:
    """For both parties and the operator. One that has expired says so at once."""
    return await operations_of(request).read(crud.get_hold, id, caller)


@router.post(
    "/holds/{id}/capture",
    status_code=201,
    summary="Capture a hold",
    responses=REPLAYED
    | documented(
        *USER_OR_OPERATOR,
        HoldNotFound,
        ReceiverOnly,
        AccountNotActive,
        BalanceLimit,
        HoldResolved,
        HoldExceeded,
        IdempotencyKeyReused,
        OutcomeUnknown,
        body=True,
    ),
    openapi_extra=or_operator("money"),
)
@fast
async def capture_hold(
    id: RowId,
    caller: MoneyCaller,
    request: Request,
    response: Response,
    *,
    capture: Annotated[CaptureRequest, Body()] = CaptureRequest(),  # noqa: B008 it is never changed
    idempotency_key: Key = None,
) -> SettledTransfer | TransferPublic:
    """By the recipient or the operator, once: the amount, or all of it, is transferred, and the rest is free at once.

    The transfer has memo, reference and metadata of the hold.
    """
    end = crud.HoldEnd(id, caller, amount=capture.amount, idempotency_key=idempotency_key, actor=actor_of(request))
    posted: Posted[Posting] = await operations_of(request).write(crud.end_holds, end)
    mark_replay(response, posted.replayed)
    return show_capture(posted, caller)


@router.post(
    "/holds/{id}/void",
    summary="Void a hold",
    responses=documented(*USER_OR_OPERATOR, HoldNotFound, ReceiverOnly, HoldResolved, OutcomeUnknown),
    openapi_extra=or_operator("money"),
)
@fast
async def void_hold(id: RowId, caller: MoneyCaller, request: Request) -> HoldPublic:
    """By the recipient or the operator: all of it is free at once, and nothing is transferred.

    One that was captured cannot be voided: reverse its transfer instead.
    """
    posted: Posted[HoldPosting] = await operations_of(request).write(
        crud.end_holds, crud.HoldEnd(id, caller, is_void=True, actor=actor_of(request))
    )
    return show_hold(posted.posting)
