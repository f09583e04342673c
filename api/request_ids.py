"""The id of each request, by which its answer and its lines of log are found."""

import random
import re

from starlette.types import Scope

HEADER = b"x-request-id"
KEY = "savepoint.request_id"
"""The key in a request's scope of its id."""

_VALID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def request_id_of(scope: Scope) -> str:
    """Return the id of a request: the X-Request-ID that was sent, if it is valid, or a new one; always the same."""
    known: str | None = scope.get(KEY)
    if known is None:
        scope[KEY] = known = _id_in(scope["headers"]) or new_id()
    return known


def new_id() -> str:
    """Return a random id. It is no secret, and os.urandom takes twice as long."""
    return f"{random.getrandbits(64):016x}"


def _id_in(headers: list[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == HEADER:
            return value.decode() if _VALID.fullmatch(value) else None
    return None
