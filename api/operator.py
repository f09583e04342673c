"""The operator's keys, and the record of what the operator did."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

import crud
from api.callers import actor_of, operations_of, operator
from api.errors import OPERATOR_ONLY, documented
from api.pages import After, Limit, NewestFirst, Page, RowFilter, RowId, page_of
from api.strict_route import StrictRoute
from fields import ActionName
from models import ActionPublic, IssuedKey, KeyPublic, KeyRequest
from refusals import KeyExceeded, KeyNameTaken, KeyNotFound, OutcomeUnknown

router = APIRouter(route_class=StrictRoute, tags=["operator"])


@router.get(
    "/operator/keys",
    summary="List the operator's keys",
    response_model=Page[KeyPublic],
    responses=documented(*OPERATOR_ONLY),
    dependencies=[operator("keys")],
)
async def list_keys(request: Request, after: After, limit: Limit = 50) -> Response:
    """Oldest first, with revoked and expired ones, without their secrets."""
    return page_of(await operations_of(request).read(crud.list_keys, after=after, limit=limit))


@router.post(
    "/operator/keys",
    status_code=201,
    summary="Issue a key of the operator",
    responses=documented(*OPERATOR_ONLY, KeyExceeded, KeyNameTaken, OutcomeUnknown, body=True),
    dependencies=[operator("keys")],
)
async def issue_key(key: KeyRequest, request: Request) -> IssuedKey:
    """The secret is in this answer and nowhere else. A key can do what its scopes say, OPERATOR_TOKEN everything.

    A key with the scope keys can issue only keys with scopes that it has, and that expire no later than it does.
    """
    issue = crud.KeyIssue(key.name, key.scopes, key.expires_in_days, actor_of(request))
    return await operations_of(request).write(crud.issue_keys, issue)


@router.delete(
    "/operator/keys/{id}",
    status_code=204,
    summary="Revoke a key of the operator",
    responses=documented(*OPERATOR_ONLY, KeyNotFound, OutcomeUnknown),
    dependencies=[operator("keys")],
)
async def revoke_key(id: RowId, request: Request) -> None:
    """The key stops working at once, and those that it issued do not. Revoking it again changes nothing."""
    await operations_of(request).write(crud.revoke_keys, crud.KeyRevocation(id, actor_of(request)))


@router.get(
    "/operator/actions",
    summary="List what the operator did",
    response_model=Page[ActionPublic],
    responses=documented(*OPERATOR_ONLY),
    dependencies=[operator("read")],
)
async def list_actions(
    request: Request,
    *,
    after: NewestFirst = None,
    limit: Limit = 50,
    key_id: Annotated[RowFilter | None, Query(description="Only by this key")] = None,
    user_id: Annotated[RowFilter | None, Query(description="Only on this user")] = None,
    account_id: Annotated[RowFilter | None, Query(description="Only on this account")] = None,
    transfer_id: Annotated[RowFilter | None, Query(description="Only the one that made this transfer")] = None,
    action: Annotated[ActionName | None, Query(description="Only of this kind")] = None,
    request_id: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Only in the call with this X-Request-ID")
    ] = None,
) -> Response:
    """Newest first. Each was stored in one transaction with what it changed; a refused call leaves none.

    A page looks at up to 10,000 actions: where that is not enough, it is short, even empty, and `next` goes on.
    """
    filters = {
        "key_id": key_id,
        "user_id": user_id,
        "account_id": account_id,
        "transfer_id": transfer_id,
        "action": action,
        "request_id": request_id,
    }
    newer = 2**63 - 1 if after is None else after
    return page_of(await operations_of(request).read(crud.list_actions, filters, after=newer, limit=limit))
