"""Every kind of field: its limits, its normal form, its description. models.py makes tables of them."""

import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal
from uuid import UUID

import pydantic
from email_validator import EmailNotValidError, validate_email
from precis_i18n import get_profile
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError
from sqlalchemy import BigInteger, Integer
from sqlmodel import Field

USERNAME_PROFILE = get_profile("UsernameCaseMapped")
VISIBLE_ASCII = re.compile(r"[!-~]+")
# What needs no more than its domain checked.
PLAIN_EMAIL = re.compile(r"(?=[^@]{1,64}@)([a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*)@([A-Za-z0-9.-]+)")
# A bare plus in a query arrives as a space; before the offset it can be nothing else.
RFC_3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)"
    r"([Zz]|[+ -][0-9]{2}:[0-9]{2})"
)
# Control characters, line and paragraph separators, what reverses the text around it, halves of surrogate pairs and
# noncharacters: none of them can be seen, and each can make a text look like another one.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)
PHONE_NUMBER = r"^\+[1-9][0-9]{6,14}$"
KEY = r"^[ -~]+$"
CURRENCY = r"^[A-Z0-9]+$"
PATTERNS = {
    PHONE_NUMBER: "Write the number with its country code: a plus sign, then 7 to 15 digits, as in +4915112345678",
    KEY: "Use visible ASCII characters and spaces only",
    CURRENCY: "Write a currency as its code, in capital letters and digits: EUR",
}
"""The text of the error where a field does not match a pattern."""


def wrong(detail: str) -> PydanticCustomError:
    """Return the error for a check to raise; unlike a ValueError, it keeps no frames, and so no request, in memory."""
    return PydanticCustomError("value", "{detail}", {"detail": detail})


def normalise_username(username: Any) -> Any:
    """The one spelling of a username (PRECIS UsernameCaseMapped, RFC 8265 section 3.3)."""
    # What is no text, or far too long, is for the checks that follow.
    if not isinstance(username, str) or not 0 < len(username) <= 255:
        return username
    # The profile lets every visible ASCII character pass, and only folds its case: most names need no more.
    if VISIBLE_ASCII.fullmatch(username):
        return username.lower()
    # The profile takes 20 µs for each character, and makes none of these fewer.
    if len(unicodedata.normalize("NFKC", username.lower())) > 50:
        raise wrong("A username has at most 50 characters")
    try:
        return USERNAME_PROFILE.enforce(username)
    except UnicodeEncodeError:
        raise wrong("A username is made of letters, digits and visible ASCII characters, without spaces") from None


def normalise_email(email: Any) -> Any:
    """The address with its domain in lower case (RFC 5321, 6531); whether it exists is not looked up."""
    if not isinstance(email, str):
        return email
    # Before anything that takes longer, the longer the text is (RFC 5321, section 4.5.3.1).
    if len(email) > 254:
        raise wrong("An email address has at most 100 characters")
    try:
        # Many share a domain, and to check one costs more than all the rest of a registration.
        if len(email) <= 100 and (plain := PLAIN_EMAIL.fullmatch(email)):
            return f"{plain[1]}@{normalise_domain(plain[2])}"
        return validate_email(email, check_deliverability=False, strict=True).normalized
    except EmailNotValidError as error:
        raise wrong(str(error)) from None


@lru_cache(10_000)
def normalise_domain(domain: str) -> str:
    """The domain of an address in lower case. Raises EmailNotValidError."""
    return validate_email(f"a@{domain}", check_deliverability=False).domain


def check_random_uuid(key: UUID) -> UUID:
    """Refuse UUIDs that somebody else could guess, since a registration's replay hands out a token."""
    if key.version not in (4, 7):
        raise wrong("Use a random UUID, version 4 or 7")
    return key


def check_text(text: str | None) -> str | None:
    """Refuse characters that cannot be seen; letters, marks, emoji and spaces of every script may be used."""
    if text is not None and UNPRINTABLE.search(text) is not None:
        raise wrong("Write it in one line, without control characters and marks that turn the text around")
    return text


def check_instant(instant: Any) -> Any:
    """An instant in UTC, from RFC 3339 (section 5.6) only."""
    parts = RFC_3339.fullmatch(instant) if isinstance(instant, str) else None
    if parts is None:
        raise wrong("Write an instant as in RFC 3339, with its offset: 2026-11-23T09:00:00Z")
    try:
        return datetime.fromisoformat(parts[1].upper() + parts[2].upper().replace(" ", "+")).astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong("There is no such instant") from None


# 64 bits on PostgreSQL; SQLite numbers rows by itself only in a column of type INTEGER, which holds 64 bits there.
Id = BigInteger().with_variant(Integer(), "sqlite")

# The length stands before the validator and is checked after it: what counts is the normalised text.
Username = Annotated[
    str,
    pydantic.Field(
        min_length=1,
        max_length=50,
        description="1 to 50 characters once normalised by PRECIS UsernameCaseMapped (RFC 8265); case does not count",
        examples=["alice"],
    ),
    BeforeValidator(normalise_username),
]
Email = Annotated[
    str,
    pydantic.Field(
        max_length=100,
        description="At most 100 characters; checked for its form, not for its existence",
        examples=["alice@example.com"],
    ),
    BeforeValidator(normalise_email),
]
PhoneNumber = Annotated[
    str | None,
    pydantic.Field(
        max_length=20,
        pattern=PHONE_NUMBER,
        description="E.164: a plus sign, then 7 to 15 digits",
        examples=["+4915112345678"],
    ),
]
TokenName = Annotated[
    str | None,
    pydantic.Field(
        min_length=1,
        max_length=50,
        description="What you call the token: one line of text",
        examples=["laptop"],
    ),
    AfterValidator(check_text),
]
Secret = Annotated[
    str, pydantic.Field(description="The bearer token, `svp_` and 43 characters; shown this once", examples=["svp_…"])
]
Status = Literal["active", "suspended", "closed"]
RegistrationKey = Annotated[
    UUID,
    AfterValidator(check_random_uuid),
    pydantic.Field(strict=False, description="A random UUID (version 4 or 7, RFC 9562)"),
]

IdempotencyKey = Annotated[
    str | None,
    pydantic.Field(
        min_length=1,
        max_length=255,
        pattern=KEY,
        description="1 to 255 visible ASCII characters, new for each new transfer; makes a retry safe",
        examples=["order-4711"],
    ),
]
Currency = Annotated[
    str,
    pydantic.Field(
        min_length=3,
        max_length=12,
        pattern=CURRENCY,
        description="A code that GET /currencies lists",
        examples=["EUR"],
    ),
]
Instant = Annotated[datetime, BeforeValidator(check_instant)]
INT64 = {"format": "int64"}
RowId = Annotated[int, pydantic.Field(examples=[1], json_schema_extra=INT64)]
AccountId = Annotated[int, Field(sa_type=Id), pydantic.Field(ge=1, lt=2**63, examples=[2], json_schema_extra=INT64)]
# As far as JSON numbers are exact everywhere (RFC 8259, section 6).
Amount = Annotated[
    int,
    Field(sa_type=BigInteger),
    pydantic.Field(
        ge=1,
        le=2**53 - 1,
        description="In minor units of the currency: 1250 is 12.50 EUR",
        examples=[1250],
        json_schema_extra=INT64,
    ),
]
Balance = Annotated[
    int,
    Field(sa_type=BigInteger),
    pydantic.Field(description="In minor units of the currency", examples=[1250], json_schema_extra=INT64),
]
Memo = Annotated[
    str | None,
    pydantic.Field(
        max_length=200,
        description="What it is for, in one line of text; both parties read it",
        examples=["Invoice 4711"],
    ),
    AfterValidator(check_text),
]
ReversesId = Annotated[
    int | None,
    Field(foreign_key="transfers.id", unique=True, sa_type=Id),
    pydantic.Field(description="The transfer that this one reversed", examples=[None], json_schema_extra=INT64),
]
