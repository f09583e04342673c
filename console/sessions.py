"""Sessions of the console: a signed cookie that expires, so that all workers share it and none keeps it."""

import hmac
import secrets
import time
from dataclasses import dataclass

LIFETIME = 8 * 3600
"""Seconds that a session lasts."""

COOKIE = "savepoint_console"
ROOT = "root"
"""Who signed in with OPERATOR_TOKEN."""


@dataclass(frozen=True, slots=True)
class Session:
    """Someone who signed in, until when (seconds since 1970), and the token that the session's forms carry.

    `who` is ROOT or the hash of an operator's key, which is looked up for each page: it may have been revoked.
    """

    who: str
    expires_at: int
    form_token: str


def start_session(operator_token_hash: str, who: str = ROOT) -> str:
    """Return the cookie of a new session."""
    content = f"{who}.{int(time.time()) + LIFETIME}.{secrets.token_urlsafe(16)}"
    return f"{content}.{_sign(operator_token_hash, 'session', content)}"


def read_session(operator_token_hash: str, cookie: str) -> Session | None:
    """Return the session of a cookie; None if it is not ours, has expired, or the operator's token is another one."""
    content, _, signature = cookie.rpartition(".")
    expected = _sign(operator_token_hash, "session", content)
    if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
        return None
    who, expires_at, _ = content.split(".")
    if int(expires_at) <= time.time():
        return None
    return Session(who, int(expires_at), _sign(operator_token_hash, "form", cookie))


def _sign(operator_token_hash: str, purpose: str, content: str) -> str:
    """Return a signature. Its key is made from the operator's token, so that another token ends all sessions."""
    key = hmac.digest(operator_token_hash.encode(), f"savepoint console {purpose}".encode(), "sha256")
    return hmac.digest(key, content.encode(errors="replace"), "sha256").hex()
