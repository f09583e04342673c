"""Every parser of ours: whatever it is given, it is read or refused as documented, and means what was written."""

import base64
import io
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy import make_url

import importing
from alembic_savepoint.backup.save_files import SaveRefused, check_name
from alembic_savepoint.history.revisions import RevisionUnreadable, read_revision
from api.address_limits import parse_rate
from api.bodies import parse_json
from api.idempotency import unquote_key
from api.pages import Cursor, encode_cursor
from api.problems import BadBody, InvalidFields
from currencies import parse_custom_currencies
from db.engines import driver_url
from fields import Amount, Email, IdempotencyKey, Instant, PhoneNumber, Reference, Username, check_metadata
from settings import Settings

CURSOR, INSTANT = TypeAdapter(Cursor), TypeAdapter(Instant)
KINDS: tuple[Any, ...] = (Amount, Email, IdempotencyKey, Instant, PhoneNumber, Reference, Username)
FIELDS: list[TypeAdapter[Any]] = [TypeAdapter(each) for each in KINDS]
METADATA = TypeAdapter(Annotated[dict[str, str] | None, AfterValidator(check_metadata)])

texts = st.text() | st.text(alphabet="0123456789abTZtz-:.+/_=\"'\\ \n\0é١\ud800@,;%?&#[]{}()", max_size=40)
values = st.none() | st.booleans() | st.integers() | st.floats() | texts
anything = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))

cheaply = settings(max_examples=100, deadline=None)


def is_read(parse: Callable[[Any], Any], value: Any, *refusals: type[Exception]) -> bool:
    """Whether it is read; it may be refused by these exceptions only."""
    try:
        parse(value)
    except refusals:
        return False
    return True


@cheaply
@given(st.binary(max_size=60) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"[" * 100_000)
@example(b"1" * 10_000)
@example(b"\xef\xbb\xbf{}")
def test_a_body_of_any_bytes(body: bytes) -> None:
    is_read(parse_json, body, BadBody, InvalidFields)


@cheaply
@given(st.dictionaries(st.text(max_size=9), st.none() | st.integers(-(2**60), 2**60) | st.text(max_size=9), max_size=4))
def test_a_body_that_is_json_is_its_value(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("field", FIELDS, ids=range(len(FIELDS)))
@cheaply
@given(value=anything)
def test_a_field_of_any_value(field: TypeAdapter[Any], value: Any) -> None:
    if is_read(field.validate_python, value, ValidationError):
        # What was normalised once stays as it is; an instant and a cursor are no text any more.
        read = field.validate_python(value)
        assert not isinstance(read, str) or field.validate_python(read) == read


@cheaply
@given(st.dictionaries(texts, texts, max_size=25) | anything)
def test_metadata_of_any_value(value: Any) -> None:
    if is_read(METADATA.validate_python, value, ValidationError):
        assert METADATA.validate_python(value) == value


@cheaply
@given(
    texts | st.text("0123456789+- _٢", max_size=6).map(lambda text: base64.urlsafe_b64encode(text.encode()).decode())
)
@example("Mh")
def test_a_cursor_of_any_text(text: str) -> None:
    if is_read(CURSOR.validate_python, text, ValidationError):
        assert encode_cursor(CURSOR.validate_python(text)) == text


@cheaply
@given(st.integers(0, 2**63 - 1))
def test_a_cursor_leads_to_where_it_was_made(position: int) -> None:
    assert CURSOR.validate_python(encode_cursor(position)) == position


@cheaply
@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_an_instant_is_the_same_at_any_offset(moment: datetime, minutes: int) -> None:
    written = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))

    assert INSTANT.validate_python(written.isoformat()) == written


@cheaply
@given(texts)
@example('"a\\"b"')
def test_an_idempotency_key_of_any_text(text: str) -> None:
    is_read(unquote_key, text, PydanticCustomError)
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if text.isascii() and text.isprintable():
        assert unquote_key(quoted) == text


@cheaply
@given(texts | st.from_regex(r"[0-9]{0,12}/(second|minute|hour|day|year)s?"))
def test_a_rate_of_any_text(text: str) -> None:
    if is_read(parse_rate, text, ValueError):
        number, _, unit = text.partition("/")
        assert parse_rate(text)[0] == int(number) > 0
        assert unit in ("second", "minute", "hour", "day")


@cheaply
@given(texts | st.text(alphabet="ABCEUR12:, ", max_size=30))
def test_custom_currencies_of_any_text(text: str) -> None:
    if is_read(parse_custom_currencies, text, ValueError):
        found = parse_custom_currencies(text)
        assert parse_custom_currencies(",".join(f"{code}:{decimals}" for code, decimals in found.items())) == found


@cheaply
@given(
    texts
    | st.builds("{}://{}".format, st.sampled_from(["sqlite", "postgres", "postgresql", "postgresql+psycopg"]), texts)
    | st.builds("postgresql://user:{}@host:{}/name?{}".format, texts, texts, texts)
)
@example("postgresql://[::1/name")
@example("postgresql://host:99999999999999999999/name")
@example("sqlite:///%00")
def test_the_url_of_a_database_of_any_text(text: str) -> None:
    if is_read(lambda url: Settings(database_url=url), text, ValidationError):
        accepted = Settings(database_url=text).database_url
        for is_async in (True, False):
            assert driver_url(accepted, is_async=is_async).database == make_url(accepted).database


@cheaply
@given(
    st.sampled_from([name for name in Settings.model_fields if name != "saves_dir"]),
    texts,
)
def test_a_setting_of_any_text(name: str, text: str) -> None:
    is_read(Settings.model_validate, {name: text}, ValidationError)


@cheaply
@given(texts | st.builds("revision = {!r}\ndown_revision = {!r}\n".format, anything, anything))
@example("revision = 'a'\ndown_revision = " + "(" * 10_000)
@example("revision = 'a'\ndown_revision = -'a'")
@example("revision = 'a'\ndown_revision = {[]: 1}")
def test_a_revision_file_of_any_text(source: str) -> None:
    is_read(read_revision, source, RevisionUnreadable)


@cheaply
@given(texts)
def test_the_name_of_a_save_of_any_text(text: str) -> None:
    if is_read(check_name, text, SaveRefused):
        assert not {*text} & {*"/\\\0\n:"}
        assert not text.startswith((".", "-"))


lines = st.lists(st.binary(max_size=30) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")), max_size=6)


@cheaply
@given(st.sampled_from([b"", b"username,email\n", b"\xef\xbb\xbfusername,email,phone_number\r\n", b"{}\n"]), lines)
def test_a_file_of_users_of_any_bytes(header: bytes, following: list[bytes]) -> None:
    def read(content: bytes) -> None:
        for chunk in importing.Source(io.BytesIO(content)).chunks():
            assert len(chunk.registrations) + len(chunk.refused) == len(chunk.records)

    is_read(read, header + b"\n".join(following), importing.ImportRefused)
