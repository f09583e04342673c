"""Who uses the console: the operator with OPERATOR_TOKEN, or with a key that has scopes."""

from collections.abc import Collection
from dataclasses import dataclass
from secrets import compare_digest
from typing import get_args

from fastapi import Request

from api.callers import operations_of
from api.request_ids import request_id_of
from console.sessions import COOKIE, ROOT, Session, read_session
from fields import KeyScope
from ledger import Actor
from refusals import ScopeMissing, Unauthenticated
from tokens import KEY_PREFIX, hash_secret

SIGNED_IN = "savepoint.console_operator"
"""The key in a request's scope of who sends it."""

ALL_SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Someone who has signed in, as pages show it, with the scopes, and as the record of actions has it."""

    session: Session
    name: str
    scopes: Collection[KeyScope]
    actor: Actor


def read_cookie(request: Request) -> Session | None:
    """Return the session of a request, if it has one; its key may have been revoked."""
    return read_session(request.app.state.operator_token_hash, request.cookies.get(COOKIE, ""))


async def find_signed_in(request: Request) -> SignedIn | None:
    """Return who has the session of this request; None without one, or if its key is no longer valid."""
    session = read_cookie(request)
    if session is None:
        return None
    request_id = request_id_of(request.scope)
    if session.who == ROOT:
        return SignedIn(session, ROOT, ALL_SCOPES, Actor(None, request_id))
    try:
        key = await operations_of(request).authenticate_key(session.who)
    except Unauthenticated:
        return None
    return SignedIn(session, f"{key.name} (key {key.id})", key.scopes, Actor(key.id, request_id))


async def identify(request: Request, token: str) -> str:
    """Return who has this token, for a session. Raises Unauthenticated, and ScopeMissing for a key that cannot read."""
    token_hash = hash_secret(token)
    if compare_digest(request.app.state.operator_token_hash, token_hash):
        return ROOT
    if not token.startswith(KEY_PREFIX):
        raise Unauthenticated
    key = await operations_of(request).authenticate_key(token_hash)
    if "read" not in key.scopes:
        raise ScopeMissing("read")
    return token_hash


def signed_in_of(request: Request) -> SignedIn | None:
    """Return who sends this request; None for a page for anyone."""
    signed_in: SignedIn | None = request.scope.get(SIGNED_IN)
    return signed_in


def require_scope(request: Request, scope: KeyScope) -> Actor:
    """Return who sends this request, for the record. Raises ScopeMissing."""
    signed_in: SignedIn = request.scope[SIGNED_IN]
    if scope not in signed_in.scopes:
        raise ScopeMissing(scope)
    return signed_in.actor
