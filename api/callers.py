"""The caller of a route: a user, the operator, or anyone who may register."""

from secrets import compare_digest
from time import monotonic
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.address_limits import AddressLimit
from ledger import OPERATOR
from models import UserPublic
from operations import Operations
from refusals import OperatorDisabled, OperatorOnly, Unauthenticated, UserOnly
from tokens import hash_secret

user_token = HTTPBearer(
    scheme_name="UserToken", description="The `access_token` of POST /register or POST /tokens", auto_error=False
)
operator_token = HTTPBearer(
    scheme_name="OperatorToken",
    description="The server's setting OPERATOR_TOKEN; in development it is printed at start-up",
    auto_error=False,
)

CHECKED = "savepoint.checked"
"""The key in a request's scope of the user who was found to call."""
FRESH = 1.0
"""Seconds after which a user is checked again, where the request took so long to arrive."""


class _Checked(NamedTuple):
    token_hash: str
    user: UserPublic
    at: float


def operations_of(request: Request) -> Operations:
    """The operations of this process; not a dependency, which would cost each call 12 µs more."""
    operations: Operations = request.app.state.operations
    return operations


def _is_operator(request: Request, token_hash: str) -> bool:
    """Return True for the operator's token, compared in constant time."""
    expected: str | None = request.app.state.operator_token_hash
    return expected is not None and compare_digest(expected, token_hash)


async def _authenticate(request: Request, token_hash: str) -> UserPublic:
    """The active user with this token; an invalid one is counted for the address that sent it."""
    # StrictRoute checks the caller before it reads a body, and FastAPI calls the dependencies again after that.
    checked: _Checked | None = request.scope.get(CHECKED)
    if checked is not None and checked.token_hash == token_hash and monotonic() - checked.at < FRESH:
        return checked.user
    try:
        user = await operations_of(request).authenticate(token_hash)
    except Unauthenticated:
        # Valid tokens are never limited: their users may share the address that sends invalid ones.
        limit: AddressLimit | None = request.app.state.failed_token_limit
        if limit is not None:
            limit.count(request)
        raise
    request.scope[CHECKED] = _Checked(token_hash, user, monotonic())
    return user


def token_hash_of(request: Request) -> str | None:
    """The hash of the token with which a user was found to call."""
    checked: _Checked | None = request.scope.get(CHECKED)
    return None if checked is None else checked.token_hash


async def check_again(request: Request) -> None:
    """Refuse the user whose token was revoked, or who was suspended, while the request arrived, unless it was quick.

    Or else whoever keeps the bodies of calls back could make them after that.
    """
    checked: _Checked | None = request.scope.get(CHECKED)
    if checked is not None:
        await _authenticate(request, checked.token_hash)


async def current_user(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(user_token)],
) -> UserPublic:
    """The active user with the token that was sent."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if _is_operator(request, token_hash):
        raise UserOnly
    return await _authenticate(request, token_hash)


async def require_operator(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(operator_token)],
) -> None:
    """Refuse all but the operator."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if _is_operator(request, token_hash):
        return
    if request.app.state.operator_token_hash is None:
        raise OperatorDisabled
    await _authenticate(request, token_hash)
    raise OperatorOnly


async def require_monitoring(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(operator_token)],
) -> None:
    """Refuse all but the operator and the monitoring (METRICS_TOKEN)."""
    expected: str | None = request.app.state.metrics_token_hash
    if credentials is None or expected is None or not compare_digest(expected, hash_secret(credentials.credentials)):
        await require_operator(request, credentials)


async def current_caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(user_token)],
) -> int:
    """The id of the active user with the token that was sent, or OPERATOR."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if _is_operator(request, token_hash):
        return OPERATOR
    return (await _authenticate(request, token_hash)).id


async def allow_registration(request: Request) -> None:
    """Refuse registration to all but the operator, or to addresses over their limit, as the settings say."""
    state = request.app.state
    if state.registration_is_free:
        return
    credentials = await operator_token(request)
    if state.only_operator_registers:
        await require_operator(request, credentials)
    elif credentials is None or not _is_operator(request, hash_secret(credentials.credentials)):
        state.registration_limit.count(request)


CurrentUser = Annotated[UserPublic, Depends(current_user)]
Operator = Depends(require_operator)
Caller = Annotated[int, Depends(current_caller)]
# Beside the user's token, which the dependency names.
OR_OPERATOR: dict[str, Any] = {"security": [{"OperatorToken": []}]}
