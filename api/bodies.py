"""Request bodies: one JSON text in UTF-8, in which an object has each name once (RFC 8259, RFC 7493)."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

from api import problems
from api.callers import check_again
from api.problems import BadBody, FieldError, InvalidFields

P = ParamSpec("P")
T = TypeVar("T")

MIB = 2**20
SMALL = 2**14
"""Bytes of a body that is read in the event loop; a larger one is read in a thread."""
BYTES_PER_VALUE = 45
"""The values of a body are limited to its limit in bytes divided by this: many tiny ones take long to read.

So the largest batches have room for items with every field and the most metadata.
"""
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
MAX_NAMES = 100
"""Names that one object may have."""
MAX_DIGITS = 100
"""Digits that an integer may have: no value here has more than 19, and thousands take long to convert."""


def exceeds(content_length: bytes, limit: int) -> bool:
    """Return True if this Content-Length announces more bytes than `limit`."""
    digits = content_length.lstrip(b"0")
    # Python refuses to convert thousands of digits.
    return digits.isdigit() and (len(digits) > 10 or int(digits) > limit)


async def read_body(request: Request, headers: Mapping[bytes, bytes], limit: int = MIB) -> bytes:
    """The bytes of the body, which may be none.

    Raises BadBody for another media type than JSON or a Content-Encoding, and HTTPException 413 for more than `limit`
    bytes, 400 if the client disconnects. The caller is checked again where this took long.
    """
    if exceeds(headers.get(b"content-length", b""), limit):
        raise HTTPException(413)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400)
        body += message.get("body", b"")
        if len(body) > limit:
            raise HTTPException(413)
        if not message.get("more_body"):
            break
    await check_again(request)
    if body:
        _check_media_type(headers)
    return bytes(body)


def _check_media_type(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a body that is not declared as JSON, or is compressed (RFC 9110, sections 8.3, 8.4 and 15.5.16)."""
    media_type = headers.get(b"content-type", b"")
    # Parameters such as charset have no meaning for JSON.
    if media_type != b"application/json" and media_type.partition(b";")[0].strip().lower() != b"application/json":
        raise BadBody(problems.UNSUPPORTED_MEDIA_TYPE)
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise BadBody(problems.UNSUPPORTED_CODING, {"Accept-Encoding": "identity"})


def parse_json(body: bytes, limit: int = MIB) -> Any:
    """The value of a JSON text with a limit of `limit` bytes.

    Raises BadBody if it is not valid, and InvalidFields if an object has a name twice or too many names.
    """
    most = limit // BYTES_PER_VALUE
    # Each value in an array or object follows one of these; so do words in a text.
    if _count_values(body) > most and _count_values(TEXT.sub(b"", body)) > most:
        raise BadBody(problems.invalid_body(f"The body has more than {most:,} values. Send fewer."))
    try:
        return DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise BadBody(problems.INVALID_BODY) from None
    except json.JSONDecodeError:
        raise BadBody(problems.INVALID_JSON) from None
    except RecursionError:
        raise BadBody(problems.invalid_body("The body is nested too deeply. Send a flatter one.")) from None
    except ValueError:
        raise BadBody(problems.invalid_body("A number in the body has too many digits. Send a smaller one.")) from None


def _count_values(body: bytes) -> int:
    return sum(map(body.count, (b",", b"[", b"{")))


async def parse_body(body: bytes, limit: int = MIB) -> Any:
    """The value of a JSON text, as from parse_json; a large one is read in a thread."""
    return parse_json(body, limit) if len(body) <= SMALL else await in_thread(parse_json, body, limit)


# One: Python runs one thread at a time, and each further one would slow all other calls down.
THREAD = ThreadPoolExecutor(1, "bodies")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that would block the event loop for too long."""
    return await asyncio.get_running_loop().run_in_executor(THREAD, partial(function, *args, **kwargs))


def _make_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(members) > MAX_NAMES:
        raise InvalidFields([FieldError(field="body", detail=f"An object has at most {MAX_NAMES} fields")])
    if len(found) < len(members):
        names = set()
        for name, _ in members:
            if name in names:
                detail = f'The field "{problems.shorten(name)}" is there twice in one object; send it once'
                raise InvalidFields([FieldError(field="body", detail=detail)])
            names.add(name)
    return found


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and the infinities, which Python's json accepts."""
    raise BadBody(problems.INVALID_JSON)


def _make_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(digits[:MAX_DIGITS])
    return int(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_make_object, parse_int=_make_integer, parse_constant=_refuse_constant)
