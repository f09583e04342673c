"""Lists: cursor pages, and the numbers in paths and queries."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

import pydantic
from fastapi import Path, Query
from pydantic import BeforeValidator, WithJsonSchema
from starlette.convertors import Convertor, register_url_convertor

from fields import wrong
from models import Identified

PLAIN_DIGITS = re.compile(r"0|[1-9][0-9]{0,18}")


def read_digits(number: Any) -> Any:
    """A number in a path or query, as JSON would write it: without sign, leading zeros, underscores or spaces."""
    if isinstance(number, str):
        if PLAIN_DIGITS.fullmatch(number) is None:
            raise wrong("Write a whole number in digits only, without sign, spaces or leading zeros")
        return int(number)
    return number


ItemT = TypeVar("ItemT")


# SQLModel does not fill in type parameters: its Page[UserPublic] would be a list of anything.
class Page(pydantic.BaseModel, Generic[ItemT]):
    """Part of a list, and the cursor that fetches the next part."""

    items: list[ItemT]
    next: str | None = pydantic.Field(
        description="Send it as ?after= for the next page; null on the last", examples=["NTA"]
    )

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """The name in OpenAPI of a page of these."""
        return f"{params[0].__name__}Page"


def encode_cursor(position: int) -> str:
    """The opaque cursor for what comes after `position`."""
    return base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def decode_cursor(cursor: Any) -> Any:
    """The position in a cursor that `encode_cursor` made."""
    try:
        position = int(base64.urlsafe_b64decode(cursor[:30] + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        position = -1
    if not 0 <= position < 2**63 or encode_cursor(position) != cursor:
        raise wrong('Send the "next" of the page before, unchanged')
    return position


Cursor = Annotated[int, BeforeValidator(decode_cursor), WithJsonSchema({"type": "string"})]


def page_of(rows: Sequence[ItemT], limit: int, position: Callable[[ItemT], int]) -> Page[ItemT]:
    """A page of the first `limit` of `rows`, which hold one more where there is a next page.

    `position` tells where a row stands in the list.
    """
    more = len(rows) > limit
    return Page.model_construct(
        items=list(rows[:limit]), next=encode_cursor(position(rows[limit - 1])) if more else None
    )


def by_id(row: Identified) -> int:
    """The position of a row in a list that is in order of id."""
    return row.id


Digits = BeforeValidator(read_digits)
After = Annotated[
    Cursor, Query(default_factory=int, description="The `next` of the page before; left out, the first page")
]
Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most"), Digits]
RowId = Annotated[
    int, Path(ge=1, lt=2**63, description="As `id` in the answers", json_schema_extra={"format": "int64"}), Digits
]


class RowConvertor(Convertor[str]):
    """The text of `{id:row}` in a path: any but the name of another path, whose methods would seem to be more."""

    regex = "(?!batch$)[^/]+"

    def convert(self, value: str) -> str:
        """The text as it is; RowId reads it."""
        return value

    def to_string(self, value: str) -> str:
        """The text as it is."""
        return value


register_url_convertor("row", RowConvertor())
