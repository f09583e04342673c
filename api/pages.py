"""Lists: pages and cursors; the numbers in paths and queries."""

import base64
import binascii
import re
from typing import Annotated, Any, Generic, TypeVar

import pydantic
from fastapi import Path, Query, Response
from pydantic import BeforeValidator, WithJsonSchema
from starlette.convertors import StringConvertor, register_url_convertor

from crud import Part
from fields import INT64, wrong


def _read_digits(number: Any) -> Any:
    """Return a number in a path or query, in the form of JSON: no sign, leading zeros, underscores or spaces."""
    if isinstance(number, str):
        if re.fullmatch(r"0|[1-9][0-9]{0,18}", number) is None:
            raise wrong("Write a whole number in digits only, without sign, spaces or leading zeros")
        return int(number)
    return number


ItemT = TypeVar("ItemT")


# SQLModel does not fill in type parameters: its Page[UserPublic] would be a list of anything.
class Page(pydantic.BaseModel, Generic[ItemT]):
    """A part of a list, and the cursor of the next part."""

    items: list[ItemT]
    next: str | None = pydantic.Field(
        description="Send it as ?after= for the next page; null on the last", examples=["NTA"]
    )

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """The name in OpenAPI."""
        return f"{params[0].__name__}Page"


def encode_cursor(position: int) -> str:
    """The opaque cursor of the items after `position`."""
    return base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def _decode_cursor(cursor: Any) -> Any:
    try:
        position = int(base64.urlsafe_b64decode(cursor[:30] + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        position = -1
    if not 0 <= position < 2**63 or encode_cursor(position) != cursor:
        raise wrong('Send the "next" of the page before, unchanged')
    return position


Cursor = Annotated[int, BeforeValidator(_decode_cursor), WithJsonSchema({"type": "string"})]
read_cursor = pydantic.TypeAdapter[int](Cursor).validate_python


def page_of(part: Part) -> Response:
    """The Page that shows a part of a list, written without an object for each item."""
    following = "null" if part.last is None else f'"{encode_cursor(part.last)}"'
    return Response(f'{{"items":{part.items},"next":{following}}}', media_type="application/json")


Digits = BeforeValidator(_read_digits)
After = Annotated[
    Cursor, Query(default_factory=int, description="The `next` of the page before; left out, the first page")
]
NewestFirst = Annotated[Cursor | None, Query(description="The `next` of the page before; left out, the newest")]
Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most"), Digits]
RowId = Annotated[
    int, Path(ge=1, lt=2**63, description="As `id` in the answers", json_schema_extra={"format": "int64"}), Digits
]

RowFilter = Annotated[int, pydantic.Field(ge=1, lt=2**63, json_schema_extra=INT64), Digits]


class RowConvertor(StringConvertor):
    """The text of `{id:row}` in a path: any but "batch", a path of its own with other methods."""

    regex = "(?!batch$)[^/]+"


register_url_convertor("row", RowConvertor())
