"""What browsers send: forms, which are small, in UTF-8, each field once, and from a page of ours; and numbers."""

from urllib.parse import parse_qsl, urlsplit

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.pages import RowFilter

FORM = "application/x-www-form-urlencoded"
ROW_ID: TypeAdapter[int] = TypeAdapter(RowFilter)
MOST_BYTES = 2**15
MOST_FIELDS = 30


def is_from_elsewhere(request: Request) -> bool:
    """Return True if the browser says that a page of another site sends this."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    # Browsers leave Sec-Fetch-Site out where the connection is not encrypted.
    return origin is not None and urlsplit(origin).netloc != request.headers.get("Host")


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form. Raises HTTPException: 415, 413, or 400 for what is no form."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != FORM:
        raise HTTPException(415)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise HTTPException(413)
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except (ClientDisconnect, ValueError):
        raise HTTPException(400) from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise HTTPException(400)
    return fields


def read_row_id(text: str) -> int:
    """Return the number of a row, in digits. Raises HTTPException 404."""
    try:
        return ROW_ID.validate_python(text)
    except ValidationError:
        raise HTTPException(404) from None
