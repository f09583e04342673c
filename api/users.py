"""The operator's view of users and their tokens."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, TypeAdapter
from sqlmodel import SQLModel

import crud
from api.batches import RefusedItem, batch_body, read_batch, run_batch
from api.callers import actor_of, operations_of, operator
from api.errors import OPERATOR_ONLY, documented
from api.pages import After, Limit, Page, RowId, page_of
from api.strict_route import StrictRoute
from fields import Email, Secret, Status, Username, UserReference
from ledger import OPERATOR
from models import (
    Answer,
    IssuedToken,
    KeyedRegistration,
    TokenPublic,
    TokenRequest,
    UserPublic,
    UserRecord,
    UserRecordUpdate,
    UsersBatch,
)
from refusals import (
    BalanceNotZero,
    BatchRefused,
    OutcomeUnknown,
    ReferenceTaken,
    TokenNotFound,
    UserErased,
    UsernameTaken,
    UserNotClosed,
    UserNotFound,
)

router = APIRouter(route_class=StrictRoute, tags=["users"])


@router.get(
    "/users",
    summary="List users",
    response_model=Page[UserRecord],
    responses=documented(*OPERATOR_ONLY),
    dependencies=[operator("read")],
)
async def list_users(
    request: Request,
    *,
    after: After,
    limit: Limit = 50,
    status: Annotated[Status | None, Query(description="Only users in this status")] = None,
    username_prefix: Annotated[Username | None, Query(description="Only names that begin so")] = None,
    email: Annotated[Email | None, Query(description="Only users with this address")] = None,
    reference: Annotated[UserReference, Query(description="Only the user with this reference")] = None,
) -> Response:
    """In order of registration."""
    part = await operations_of(request).read(
        crud.list_users,
        status=status,
        username_prefix=username_prefix,
        email=email,
        reference=reference,
        after=after,
        limit=limit,
    )
    return page_of(part)


@router.get(
    "/users/{id:row}",
    summary="Show a user",
    responses=documented(*OPERATOR_ONLY, UserNotFound),
    dependencies=[operator("read")],
)
async def get_user(id: RowId, request: Request) -> UserRecord:
    """Any user, whatever its status."""
    return await operations_of(request).read(crud.get_user, id)


@router.patch(
    "/users/{id:row}",
    summary="Change a user, suspend, close or open it",
    response_model=UserRecord,
    responses=documented(*OPERATOR_ONLY, UserNotFound, UserErased, ReferenceTaken, OutcomeUnknown, body=True),
    dependencies=[operator("users")],
)
async def update_user(id: RowId, update: UserRecordUpdate, request: Request) -> UserPublic:
    """Fields that are left out stay as they are; null removes a value. A user who is not active can do nothing.

    Suspending a user revokes no token: they work again once the user is active. Closing revokes all of them for good.
    """
    return await operations_of(request).write(
        crud.update_users,
        crud.UserChange(id, update.model_dump(exclude_unset=True), by_operator=True, actor=actor_of(request)),
    )


@router.post(
    "/users/{id}/erasure",
    summary="Erase a closed user's personal data",
    response_model=UserRecord,
    responses=documented(*OPERATOR_ONLY, UserNotFound, UserNotClosed, BalanceNotZero, OutcomeUnknown),
    dependencies=[operator("users")],
)
async def erase_user(id: RowId, request: Request) -> UserRecord:
    """For good: the name, which is free again, email address, phone number, reference, metadata and names of tokens.

    Accounts, transfers and entries stay, with their memos, references and metadata: put no personal data there. Saves
    and backups keep what they have. Only a closed user without money, debts or holds is erased, and it stays closed.
    """
    return await operations_of(request).write(crud.erase_users, crud.Erasure(id, actor_of(request)))


# Quicker than SQLModel's own model_validate, and what FastAPI calls for a body.
KEYED_REGISTRATION = TypeAdapter(KeyedRegistration)


class CreatedUser(Answer):
    """An item of a batch that was stored."""

    index: int
    status: Literal["created"] = "created"
    user: UserPublic
    access_token: Secret


class UsersBatchAnswer(SQLModel):
    """The outcome of each item, in order."""

    results: list[Annotated[CreatedUser | RefusedItem, Field(discriminator="status")]]


@router.post(
    "/users/batch",
    response_model=UsersBatchAnswer,
    summary="Register up to 10,000 users at once",
    responses=documented(*OPERATOR_ONLY, BatchRefused([(1, UsernameTaken())]), OutcomeUnknown, body=True),
    # The answer has no keys, since a registration's key gives access to a token of its user.
    openapi_extra=batch_body(UsersBatch),
    dependencies=[operator("users")],
)
async def register_users(request: Request) -> Response:
    """`rollback` stores all or, if one is refused, none (409). `continue` stores those that are not refused.

    Each item may have its own `idempotency_key`, a random UUID, which makes sending the batch again safe.
    """
    actor = actor_of(request)

    def check(item: Any) -> KeyedRegistration:
        return crud.with_actor(KEYED_REGISTRATION.validate_python(item), actor)

    def show(registered: crud.Registered) -> dict[str, Any]:
        return {"user": registered.user, "access_token": registered.access_token}

    async with operations_of(request).turns.take(OPERATOR):
        batch = await read_batch(request, UsersBatch, OPERATOR)
        return await run_batch(
            partial(operations_of(request).write_many, crud.register_users),
            "users",
            batch.users,
            batch.on_error,
            check=check,
            show=show,
        )


@router.get(
    "/users/{id}/tokens",
    summary="List a user's tokens",
    response_model=Page[TokenPublic],
    responses=documented(*OPERATOR_ONLY, UserNotFound),
    dependencies=[operator("read")],
)
async def list_users_tokens(id: RowId, request: Request, after: After, limit: Limit = 50) -> Response:
    """Oldest first, as in the user's GET /tokens: with revoked and expired ones, without their secrets."""
    return page_of(await operations_of(request).read(crud.list_users_tokens, user_id=id, after=after, limit=limit))


@router.post(
    "/users/{id}/tokens",
    status_code=201,
    summary="Issue a token to a user",
    responses=documented(*OPERATOR_ONLY, UserNotFound, OutcomeUnknown, body=True),
    dependencies=[operator("users")],
)
async def issue_users_token(id: RowId, token: TokenRequest, request: Request) -> IssuedToken:
    """For a user who signs in with you, or has lost a token. The user must be active.

    The secret is in this answer and nowhere else.
    """
    return await operations_of(request).write(
        crud.issue_tokens, crud.TokenIssue(id, token.name, token.expires_in_days, actor=actor_of(request))
    )


@router.delete(
    "/users/{id}/tokens",
    status_code=204,
    summary="Revoke all tokens of a user",
    responses=documented(*OPERATOR_ONLY, UserNotFound, OutcomeUnknown),
    dependencies=[operator("users")],
)
async def revoke_users_tokens(id: RowId, request: Request) -> None:
    """They stop working at once and for good. The user stays as it is, and can be issued a new one."""
    await operations_of(request).write(crud.revoke_users_tokens, crud.RevocationOfAll(id, actor_of(request)))


@router.delete(
    "/users/{id}/tokens/{token_id}",
    status_code=204,
    summary="Revoke a token of a user",
    responses=documented(*OPERATOR_ONLY, UserNotFound, TokenNotFound, OutcomeUnknown),
    dependencies=[operator("users")],
)
async def revoke_users_token(id: RowId, token_id: RowId, request: Request) -> None:
    """The token stops working at once. Revoking it again changes nothing."""
    await operations_of(request).write(crud.revoke_tokens, crud.Revocation(id, token_id, actor_of(request)))
