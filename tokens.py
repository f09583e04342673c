"""Bearer tokens: making and hashing them, those of the operator too."""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from settings import Settings, SettingsError

DEVELOPMENT_OPERATOR_TOKEN = Path(".operator-token")


def make_token() -> str:
    """Return a new token: `svp_` and 256 random bits."""
    return "svp_" + secrets.token_urlsafe(32)


KEY_PREFIX = "svo_"
"""What the keys of the operator begin with."""


def make_operator_key() -> str:
    """Return a new key of the operator: `svo_` and 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a token or key in hexadecimal; they are random enough to need no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


def operator_token_hash(settings: Settings) -> str | None:
    """Return the hash of the operator's token; None if the operator's calls are refused. Raises SettingsError."""
    if settings.operator_token is not None:
        return hash_secret(settings.operator_token.get_secret_value())
    if settings.environment == "production":
        return None
    try:
        token = development_operator_token(DEVELOPMENT_OPERATOR_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        where, why = DEVELOPMENT_OPERATOR_TOKEN.absolute(), getattr(error, "strerror", "it is not text")
        raise SettingsError(f"OPERATOR_TOKEN: not set, and {where} cannot be used: {why}. Set it") from None
    try:
        print(f"Development operator token: {token}", flush=True)
    except OSError as error:
        raise SettingsError(
            f"OPERATOR_TOKEN: not set, and a new one cannot be printed: {error.strerror}. Set it"
        ) from None
    return hash_secret(token)


def metrics_token_hash(settings: Settings) -> str | None:
    """Return the hash of METRICS_TOKEN, or None."""
    return hash_secret(settings.metrics_token.get_secret_value()) if settings.metrics_token is not None else None


def development_operator_token(kept_in: Path) -> str:
    """Return the token in this file, made at the first start; all workers and restarts share it."""
    draft = kept_in.with_name(f"{kept_in.name}.{secrets.token_hex(4)}")
    if not kept_in.exists():
        draft.touch(mode=0o600)
        draft.write_text(make_token())
        try:
            # A link appears with its whole content, and only the first of several workers makes it.
            os.link(draft, kept_in)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    with suppress(PermissionError):  # The file of another user, who lets this one read it.
        kept_in.chmod(0o600)
    return kept_in.read_text().strip()
