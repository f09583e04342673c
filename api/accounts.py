"""Accounts: balances and statements."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

import crud
from api.callers import ReadCaller, UsersCaller, actor_of, operations_of, operator, or_operator
from api.errors import OPERATOR_ONLY, USER_OR_OPERATOR, documented
from api.fast_route import fast
from api.pages import After, Digits, Limit, NewestFirst, Page, RowId, page_of
from api.problems import FieldError, InvalidFields
from api.strict_route import StrictRoute
from fields import Instant
from ledger import OPERATOR
from models import AccountPublic, AccountRequest, AccountUpdate, CurrencyPublic, EntryPublic
from refusals import (
    AccountExists,
    AccountLimit,
    AccountNotFound,
    CreditInUse,
    CurrencyUnknown,
    OperatorOnly,
    OutcomeUnknown,
    SystemAccount,
    UserNotFound,
)

router = APIRouter(route_class=StrictRoute, tags=["accounts"])


@router.get("/currencies", summary="List currencies", response_model=Page[CurrencyPublic], responses=documented())
async def get_currencies(request: Request, after: After, limit: Limit = 50) -> Response:
    """ISO 4217's and the operator's own, in order of code."""
    currencies: list[CurrencyPublic] = request.app.state.currencies
    end = after + limit
    shown = to_json(currencies[after:end]).decode()
    return page_of(crud.Part(shown, end if end < len(currencies) else None))


@router.get(
    "/accounts",
    summary="List accounts",
    response_model=Page[AccountPublic],
    responses=documented(*USER_OR_OPERATOR),
    openapi_extra=or_operator("read"),
)
@fast
async def list_accounts(
    caller: ReadCaller,
    request: Request,
    after: After,
    limit: Limit = 50,
    user_id: Annotated[
        int | None, Query(ge=1, lt=2**63, description="Only accounts of this user; for the operator"), Digits
    ] = None,
) -> Response:
    """A user's own; the operator's list has all, system accounts included."""
    owner = user_id if caller == OPERATOR else caller
    return page_of(await operations_of(request).read(crud.list_accounts, user_id=owner, after=after, limit=limit))


@router.post(
    "/accounts",
    status_code=201,
    summary="Open an account",
    responses=documented(
        *USER_OR_OPERATOR,
        OperatorOnly,
        UserNotFound,
        AccountExists,
        AccountLimit,
        CurrencyUnknown,
        OutcomeUnknown,
        body=True,
    ),
    openapi_extra=or_operator("users"),
)
async def open_account(account: AccountRequest, caller: UsersCaller, request: Request) -> AccountPublic:
    """A label tells a user's accounts in one currency apart; registration opened the first, "main".

    The operator names the user, who must be active.
    """
    owner = account.user_id or caller
    if caller not in (OPERATOR, owner):
        raise OperatorOnly
    if owner == OPERATOR:
        raise InvalidFields([FieldError(field="body.user_id", detail="The operator names the user of the account")])
    if all(currency.code != account.currency for currency in request.app.state.currencies):
        raise CurrencyUnknown
    return await operations_of(request).write(
        crud.open_accounts, crud.AccountOpening(owner, account.currency, account.label, actor_of(request))
    )


@router.get(
    "/accounts/{id}",
    summary="Show an account, now or at an instant",
    responses=documented(*USER_OR_OPERATOR, AccountNotFound),
    openapi_extra=or_operator("read"),
)
@fast
async def get_account(
    id: RowId,
    caller: ReadCaller,
    request: Request,
    at: Annotated[
        Instant | None, Query(description="An instant (RFC 3339); entries until then, inclusive, count")
    ] = None,
) -> AccountPublic:
    """Balance and version: as they are, or as they were at `at`."""
    operations = operations_of(request)
    if at is None:
        return await operations.read(crud.get_account, id, caller)
    return await operations.read(crud.get_account_at, id, caller, at)


@router.patch(
    "/accounts/{id}",
    summary="Change an account's credit limit",
    responses=documented(*OPERATOR_ONLY, AccountNotFound, SystemAccount, CreditInUse, OutcomeUnknown, body=True),
    dependencies=[operator("money")],
)
async def change_credit(id: RowId, update: AccountUpdate, request: Request) -> AccountPublic:
    """The balance may go as far below 0. A limit below what the account owes is refused."""
    return await operations_of(request).write(
        crud.change_credit, crud.CreditChange(id, update.credit_limit, actor_of(request))
    )


@router.get(
    "/accounts/{id}/entries",
    summary="Show an account's statement",
    response_model=Page[EntryPublic],
    responses=documented(*USER_OR_OPERATOR, AccountNotFound),
    openapi_extra=or_operator("read"),
)
@fast
async def list_entries(
    id: RowId,
    caller: ReadCaller,
    request: Request,
    after: NewestFirst = None,
    limit: Limit = 50,
) -> Response:
    """Newest first, each with the balance after it."""
    newer = 2**63 - 1 if after is None else after
    return page_of(await operations_of(request).read(crud.list_entries, id, caller, after=newer, limit=limit))
