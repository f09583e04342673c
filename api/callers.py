"""The caller of a route: a user, the operator with OPERATOR_TOKEN or a key, or anyone who may register.

Each route that is for the operator names the scope that a key needs for it: `operator("money")`, or `MoneyCaller`.
"""

from collections.abc import Awaitable, Callable
from secrets import compare_digest
from time import monotonic
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import Scope

from api.address_limits import AddressLimit
from api.request_ids import request_id_of
from fields import KeyScope
from ledger import OPERATOR, Actor
from models import UserPublic
from operations import Operations
from refusals import OperatorDisabled, OperatorOnly, ScopeMissing, Unauthenticated, UserOnly
from tokens import KEY_PREFIX, hash_secret

user_token = HTTPBearer(
    scheme_name="UserToken", description="The `access_token` of POST /register or POST /tokens", auto_error=False
)
operator_token = HTTPBearer(
    scheme_name="OperatorToken",
    description="The server's setting OPERATOR_TOKEN, which may do everything (in development it is printed at "
    "start-up), or a key of POST /operator/keys that has the scope of the call",
    auto_error=False,
)

CHECKED = "savepoint.checked"
"""The key in a request's scope of the user, or operator's key, that was found to call."""
ACTOR = "savepoint.actor"
"""The key in a request's scope of the operator, if it calls."""
MONITORING = "savepoint.monitoring"
"""The key in a request's scope that is there if the monitoring calls."""
FRESH = 1.0
"""Seconds after which a caller is checked again, where the request took so long to arrive."""


FoundT = TypeVar("FoundT")


class _Checked(NamedTuple, Generic[FoundT]):
    token_hash: str
    authenticate: Callable[[str], Awaitable[FoundT]]
    found: FoundT
    at: float


def operations_of(request: Request) -> Operations:
    """The operations of this process; not a dependency, which would cost each call 12 µs more."""
    operations: Operations = request.app.state.operations
    return operations


def actor_of(request: Request) -> Actor | None:
    """The operator as it makes this call, for the record of what it did; None for a user."""
    actor: Actor | None = request.scope.get(ACTOR)
    return actor


def kind_of_caller(scope: Scope) -> str:
    """Return user, operator, monitoring or anonymous: who was found to send a request."""
    if MONITORING in scope:
        return "monitoring"
    checked: _Checked[Any] | None = scope.get(CHECKED)
    if ACTOR in scope or (checked is not None and not isinstance(checked.found, UserPublic)):
        return "operator"
    return "anonymous" if checked is None else "user"


async def _authenticate(request: Request, token_hash: str, authenticate: Callable[[str], Awaitable[FoundT]]) -> FoundT:
    """The active user, or valid key, with this token; an invalid one is counted for the address that sent it."""
    # StrictRoute checks the caller before it reads a body, and FastAPI calls the dependencies again after that.
    checked: _Checked[FoundT] | None = request.scope.get(CHECKED)
    if checked is not None and checked.token_hash == token_hash and monotonic() - checked.at < FRESH:
        return checked.found
    try:
        found = await authenticate(token_hash)
    except Unauthenticated:
        # Valid tokens are never limited: their users may share the address that sends invalid ones.
        count_failed_token(request)
        raise
    request.scope[CHECKED] = _Checked(token_hash, authenticate, found, monotonic())
    return found


def count_failed_token(request: Request) -> None:
    """Count an invalid token for the address that sent it. Raises TooManyRequests."""
    limit: AddressLimit | None = request.app.state.failed_token_limit
    if limit is not None:
        limit.count(request)


def token_hash_of(request: Request) -> str | None:
    """The hash of the token with which a user was found to call."""
    checked: _Checked[Any] | None = request.scope.get(CHECKED)
    return None if checked is None else checked.token_hash


async def check_again(request: Request) -> None:
    """Refuse the caller whose token was revoked, or who was suspended, while the request arrived, unless it was quick.

    Or else whoever keeps the bodies of calls back could make them after that.
    """
    checked: _Checked[Any] | None = request.scope.get(CHECKED)
    if checked is not None:
        await _authenticate(request, checked.token_hash, checked.authenticate)


async def _is_operator(request: Request, token: str, token_hash: str, scope: KeyScope | None) -> bool:
    """Return True for OPERATOR_TOKEN, or a key that has the scope. Raises Unauthenticated, ScopeMissing.

    Without OPERATOR_TOKEN there is no operator, and no key is one.
    """
    expected: str | None = request.app.state.operator_token_hash
    if expected is None:
        return False
    key_id = None
    if not compare_digest(expected, token_hash):
        # So a user's token never causes a look-up of keys.
        if not token.startswith(KEY_PREFIX):
            return False
        key = await _authenticate(request, token_hash, operations_of(request).authenticate_key)
        if scope is not None and scope not in key.scopes:
            raise ScopeMissing(scope)
        key_id = key.id
    request.scope[ACTOR] = Actor(key_id, request_id_of(request.scope))
    return True


async def current_user(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(user_token)],
) -> UserPublic:
    """The active user with the token that was sent."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if await _is_operator(request, credentials.credentials, token_hash, None):
        raise UserOnly
    return await _authenticate(request, token_hash, operations_of(request).authenticate)


async def require_operator(request: Request, credentials: HTTPAuthorizationCredentials | None, scope: KeyScope) -> None:
    """Refuse all but the operator, with a key that has this scope or with OPERATOR_TOKEN."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if await _is_operator(request, credentials.credentials, token_hash, scope):
        return
    if request.app.state.operator_token_hash is None:
        raise OperatorDisabled
    await _authenticate(request, token_hash, operations_of(request).authenticate)
    raise OperatorOnly


def operator(scope: KeyScope) -> Any:
    """The dependency of a route for the operator only; a key needs this scope."""

    async def require(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(operator_token, scopes=[scope])],
    ) -> None:
        await require_operator(request, credentials, scope)

    return Depends(require)


async def require_monitoring(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(operator_token, scopes=["read"])],
) -> None:
    """Refuse all but the operator and the monitoring (METRICS_TOKEN)."""
    expected: str | None = request.app.state.metrics_token_hash
    if credentials is None or expected is None or not compare_digest(expected, hash_secret(credentials.credentials)):
        await require_operator(request, credentials, "read")
    else:
        request.scope[MONITORING] = True


def _caller(scope: KeyScope) -> Any:
    """The dependency of a route for users and the operator; a key needs this scope."""

    async def find(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(user_token)],
    ) -> int:
        if credentials is None:
            raise Unauthenticated
        token_hash = hash_secret(credentials.credentials)
        if await _is_operator(request, credentials.credentials, token_hash, scope):
            return OPERATOR
        return (await _authenticate(request, token_hash, operations_of(request).authenticate)).id

    return Depends(find)


async def allow_registration(request: Request) -> None:
    """Refuse registration to all but the operator, or to addresses over their limit, as the settings say."""
    state = request.app.state
    if state.registration_is_free:
        return
    credentials = await operator_token(request)
    if state.only_operator_registers:
        await require_operator(request, credentials, "users")
        return
    token = "" if credentials is None else credentials.credentials
    if not await _is_operator(request, token, hash_secret(token), "users"):
        state.registration_limit.count(request)


CurrentUser = Annotated[UserPublic, Depends(current_user)]
# The id of the active user with the token that was sent, or OPERATOR; a key of the operator needs this scope.
ReadCaller = Annotated[int, _caller("read")]
UsersCaller = Annotated[int, _caller("users")]
MoneyCaller = Annotated[int, _caller("money")]


def or_operator(scope: KeyScope) -> dict[str, Any]:
    """The OpenAPI description of the operator as a caller, beside the user's token, which the dependency names."""
    return {"security": [{"OperatorToken": [scope]}]}
