"""Transfers: single, in batches, and reversals."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, TypeAdapter
from sqlmodel import SQLModel
from starlette.responses import Response

import crud
import refusals
from api import problems
from api.ambiguity import METADATA, read_metadata
from api.batches import RefusedItem, batch_body, read_batch, run_batch
from api.callers import MoneyCaller, ReadCaller, actor_of, operations_of, or_operator
from api.errors import TRANSFER, USER_OR_OPERATOR, documented
from api.fast_route import fast
from api.idempotency import REPLAYED, Key, mark_replay
from api.pages import Limit, NewestFirst, Page, RowFilter, RowId, page_of
from api.strict_route import StrictRoute
from fields import Instant, Reference
from ledger import OPERATOR, Actor, HoldOrder, Order, Posted, Posting
from models import (
    USER_BATCH_LIMIT,
    Answer,
    DebitedTransfer,
    HoldRequest,
    KeyedTransfer,
    SettledTransfer,
    TransferPublic,
    TransferRequest,
    TransfersBatch,
)

router = APIRouter(route_class=StrictRoute, tags=["transfers"])


@router.post(
    "/transfers",
    status_code=201,
    summary="Transfer money",
    responses=REPLAYED
    | documented(
        *USER_OR_OPERATOR,
        *TRANSFER,
        refusals.VersionMismatch,
        refusals.SameAccount,
        refusals.CurrencyMismatch,
        body=True,
    ),
    openapi_extra=or_operator("money"),
)
@fast
async def transfer(
    transfer: TransferRequest, caller: MoneyCaller, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer | DebitedTransfer:
    """From one of the caller's own accounts (the operator: from any) to any account of the same currency.

    Sent again with the same Idempotency-Key, it returns the first answer again, and moves nothing.
    """
    posted: Posted[Posting] = await operations_of(request).write(
        crud.make_transfers, order_of(transfer, caller, idempotency_key, actor_of(request))
    )
    mark_replay(response, posted.replayed)
    return show_transfer(posted, caller)


def order_of(transfer: TransferRequest, caller: int, idempotency_key: str | None, actor: Actor | None) -> Order:
    """What the caller asks for: a transfer, or a hold."""
    kind: Callable[..., Order] = Order
    if isinstance(transfer, HoldRequest):
        kind = partial(HoldOrder, lifetime=timedelta(seconds=transfer.expires_in))
    return kind(
        caller,
        transfer.debit_account_id,
        transfer.credit_account_id,
        transfer.amount,
        transfer.memo,
        idempotency_key,
        reference=transfer.reference,
        metadata=transfer.details,
        asked_amount=transfer.amount if transfer.on_short == "cap" else None,
        if_version=transfer.if_version,
        actor=actor,
    )


def show_transfer(posted: Posted[Posting], caller: int) -> SettledTransfer | DebitedTransfer:
    """The transfer; the credit account's balance is for the operator only."""
    if caller == OPERATOR:
        return show_settled(posted)
    return DebitedTransfer.model_construct(**_fields_of(posted.posting, caller))


def show_capture(posted: Posted[Posting], caller: int) -> SettledTransfer | TransferPublic:
    """The transfer that a capture made; its balances are for the operator only: the debit account is another's."""
    if caller == OPERATOR:
        return show_settled(posted)
    shown = _fields_of(posted.posting, caller)
    del shown["debit_balance_after"]
    return TransferPublic.model_construct(**shown)


def show_settled(posted: Posted[Posting]) -> SettledTransfer:
    """The transfer as the operator sees it."""
    return SettledTransfer.model_construct(**_fields_of(posted.posting, OPERATOR))


def _fields_of(posting: Posting, caller: int) -> dict[str, Any]:
    order = posting.order
    fields = {
        "id": posting.id,
        "debit_account_id": order.debit_account_id,
        "credit_account_id": order.credit_account_id,
        "currency": posting.currency,
        "amount": order.amount,
        "memo": order.memo,
        "reference": order.reference,
        "metadata": order.metadata,
        "asked_amount": order.asked_amount,
        "reverses_id": order.reverses_id,
        "transaction_id": posting.transaction_id,
        "hold_id": order.hold_id,
        "created_at": posting.created_at,
        "debit_balance_after": posting.debit_balance_after,
    }
    return fields | {"credit_balance_after": posting.credit_balance_after} if caller == OPERATOR else fields


@router.get(
    "/transfers",
    summary="List transfers, or look them up",
    response_model=Page[TransferPublic],
    responses=documented(*USER_OR_OPERATOR, refusals.OperatorOnly, refusals.AccountNotFound),
    openapi_extra=or_operator("read"),
)
@fast
async def list_transfers(
    caller: ReadCaller,
    request: Request,
    *,
    after: NewestFirst = None,
    limit: Limit = 50,
    account_id: Annotated[RowFilter | None, Query(description="Only from or to this account")] = None,
    user_id: Annotated[RowFilter | None, Query(description="Only of this user; for the operator")] = None,
    reference: Annotated[Reference, Query(description="Only with this reference")] = None,
    transaction_id: Annotated[RowFilter | None, Query(description="Only of this transaction")] = None,
    hold_id: Annotated[RowFilter | None, Query(description="Only the one that captured this hold")] = None,
    since: Annotated[Instant | None, Query(alias="from", description="Only from this instant (RFC 3339) on")] = None,
    before: Annotated[Instant | None, Query(alias="to", description="Only before this instant (RFC 3339)")] = None,
    metadata: Annotated[
        str | None, Query(alias=METADATA, description="Only with this text; KEY stands for a key of metadata")
    ] = None,
) -> Response:
    """Newest first: a user's own; the operator's list has all. Only those to which all filters apply.

    A page looks at up to 10,000 transfers: where that is not enough, it is short, even empty, and `next` goes on.
    """
    if caller != OPERATOR and user_id not in (None, caller):
        raise refusals.OperatorOnly
    filters = {
        "account_id": account_id,
        "user_id": user_id,
        "reference": reference,
        "transaction_id": transaction_id,
        "hold_id": hold_id,
        "since": since,
        "before": before,
        "metadata": read_metadata(request),
    }
    newer = 2**63 - 1 if after is None else after
    return page_of(await operations_of(request).read(crud.list_transfers, caller, filters, after=newer, limit=limit))


@router.get(
    "/transfers/{id:row}",
    summary="Show a transfer",
    responses=documented(*USER_OR_OPERATOR, refusals.TransferNotFound),
    openapi_extra=or_operator("read"),
)
@fast
async def get_transfer(id: RowId, caller: ReadCaller, request: Request) -> TransferPublic:
    """For both parties and the operator."""
    return await operations_of(request).read(crud.get_transfer, id, caller)


@router.post(
    "/transfers/{id}/reversal",
    status_code=201,
    summary="Reverse a transfer",
    responses={
        **REPLAYED,
        **documented(
            *USER_OR_OPERATOR,
            *TRANSFER,
            refusals.TransferNotFound,
            refusals.ReceiverOnly,
            refusals.OperatorTransfer,
            refusals.AlreadyReversed,
            refusals.ReversalNotReversible,
        ),
    },
    openapi_extra=or_operator("money"),
)
async def reverse_transfer(
    id: RowId, caller: MoneyCaller, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer | DebitedTransfer:
    """By the recipient or the operator: the full amount goes back, once.

    Only the operator can reverse the operator's transfers, deposits and withdrawals included.
    """
    posted: Posted[Posting] = await operations_of(request).write(
        crud.reverse_transfers, crud.Reversal(id, caller, idempotency_key, actor_of(request))
    )
    mark_replay(response, posted.replayed)
    return show_transfer(posted, caller)


# Quicker than SQLModel's own model_validate, and what FastAPI calls for a body.
KEYED_TRANSFER = TypeAdapter(KeyedTransfer)


class CreatedTransfer(Answer):
    """An item of a batch that was stored."""

    index: int
    status: Literal["created"] = "created"
    transfer: SettledTransfer | DebitedTransfer


class TransfersBatchAnswer(SQLModel):
    """The outcome of each item, in order."""

    results: list[Annotated[CreatedTransfer | RefusedItem, Field(discriminator="status")]]


@router.post(
    "/transfers/batch",
    response_model=TransfersBatchAnswer,
    summary="Make many transfers at once",
    responses=documented(
        *USER_OR_OPERATOR,
        refusals.BatchRefused([(1, refusals.InsufficientFunds())]),
        refusals.BatchUnderWay,
        refusals.OutcomeUnknown,
        body=True,
    ),
    openapi_extra={**or_operator("money"), **batch_body(TransfersBatch)},
)
async def make_transfers(caller: MoneyCaller, request: Request) -> Response:
    """In this order: a transfer may spend what an earlier one brought. Up to 1,000, for the operator up to 10,000.

    `rollback` makes all or, if one is refused, none (409). `continue` makes those that are not refused. Each item
    may have its own `idempotency_key`, which makes sending the batch again safe. A user sends one batch at a time:
    a second one gets 503.
    """

    def check(item: Any) -> Order:
        transfer = KEYED_TRANSFER.validate_python(item)
        return order_of(transfer, caller, transfer.idempotency_key, actor_of(request))

    def show(posted: Posted[Posting]) -> dict[str, Any]:
        return {"transfer": _fields_of(posted.posting, caller)}

    async with operations_of(request).turns.take(caller):
        batch = await read_batch(request, TransfersBatch, caller)
        if caller != OPERATOR and len(batch.transfers) > USER_BATCH_LIMIT:
            detail = f"Send at most {USER_BATCH_LIMIT:,} transfers at once"
            raise problems.InvalidFields([problems.FieldError(field="body.transfers", detail=detail)])
        return await run_batch(
            partial(operations_of(request).write_many, crud.make_transfers),
            "transfers",
            batch.transfers,
            batch.on_error,
            check=check,
            show=show,
        )
