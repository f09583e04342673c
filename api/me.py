"""A user's own data and tokens."""

from fastapi import APIRouter, Request, Response

import crud
from api.callers import CurrentUser, operations_of, token_hash_of
from api.errors import USER_ONLY, documented
from api.fast_route import fast
from api.pages import After, Limit, Page, RowId, page_of
from api.strict_route import StrictRoute
from models import IssuedToken, TokenPublic, TokenRequest, UserPublic, UserUpdate
from refusals import BalanceNotZero, OutcomeUnknown, TokenNotFound

router = APIRouter(route_class=StrictRoute, tags=["me"])


@router.get("/me", summary="Show my user", responses=documented(*USER_ONLY, parameters=False))
@fast
async def get_me(user: CurrentUser) -> UserPublic:
    """The user whose token this is."""
    return user


@router.patch("/me", summary="Change my user", responses=documented(*USER_ONLY, OutcomeUnknown, body=True))
async def update_me(update: UserUpdate, user: CurrentUser, request: Request) -> UserPublic:
    """Fields that are left out stay as they are; null removes a value."""
    return await operations_of(request).write(
        crud.update_users, crud.UserChange(user.id, update.model_dump(exclude_unset=True))
    )


@router.delete(
    "/me",
    status_code=204,
    summary="Close my user",
    responses=documented(*USER_ONLY, BalanceNotZero, OutcomeUnknown, parameters=False),
)
async def close_me(user: CurrentUser, request: Request) -> None:
    """All balances must be 0. All tokens are revoked, the name stays taken; only the operator can reopen the user."""
    await operations_of(request).write(crud.update_users, crud.UserChange(user.id, {"status": "closed"}))


@router.get("/tokens", summary="List my tokens", response_model=Page[TokenPublic], responses=documented(*USER_ONLY))
async def list_tokens(user: CurrentUser, request: Request, after: After, limit: Limit = 50) -> Response:
    """Oldest first, revoked and expired ones included, without their secrets."""
    return page_of(await operations_of(request).read(crud.list_tokens, user_id=user.id, after=after, limit=limit))


@router.post(
    "/tokens",
    status_code=201,
    summary="Issue a token",
    responses=documented(*USER_ONLY, OutcomeUnknown, body=True),
)
async def issue_token(token: TokenRequest, user: CurrentUser, request: Request) -> IssuedToken:
    """The secret is in this answer and nowhere else."""
    issue = crud.TokenIssue(user.id, token.name, token.expires_in_days, token_hash_of(request))
    return await operations_of(request).write(crud.issue_tokens, issue)


@router.delete(
    "/tokens/{id}",
    status_code=204,
    summary="Revoke a token",
    responses=documented(*USER_ONLY, TokenNotFound, OutcomeUnknown),
)
async def revoke_token(id: RowId, user: CurrentUser, request: Request) -> None:
    """The token stops working at once. Revoking it again changes nothing."""
    await operations_of(request).write(crud.revoke_tokens, crud.Revocation(user.id, id))
