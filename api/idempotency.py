"""The headers Idempotency-Key and Idempotency-Replayed."""

import re
from typing import Annotated, Any

from fastapi import Header
from pydantic import BeforeValidator
from starlette.responses import Response

from fields import IdempotencyKey, wrong

STRUCTURED_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')


def unquote_key(key: Any) -> Any:
    """The key in an Idempotency-Key header, without the quotes of a structured field (RFC 9651)."""
    if not isinstance(key, str) or not key.startswith('"'):
        return key
    quoted = STRUCTURED_STRING.fullmatch(key)
    if quoted is None:
        raise wrong("The quotes around the key do not match: send the key in one pair of quotes, or in none")
    return re.sub(r"\\(.)", r"\1", quoted[1])


Unquoted = BeforeValidator(unquote_key)
Key = Annotated[IdempotencyKey, Header(alias="Idempotency-Key"), Unquoted]
REPLAYED: dict[int | str, dict[str, Any]] = {
    201: {
        "headers": {
            "Idempotency-Replayed": {"description": "Only on a replay", "schema": {"type": "string", "const": "true"}}
        }
    }
}


def mark_replay(response: Response, replayed: bool) -> None:
    """Mark the answer as a replay if it is one."""
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
