"""The type of each field: its limits, normal form and description. models.py makes tables and schemas of them."""

import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

import pydantic
from email_validator import EmailNotValidError, validate_email
from precis_i18n import get_profile
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError
from sqlalchemy import JSON, BigInteger, Integer, String, text
from sqlmodel import Field

USERNAME_PROFILE = get_profile("UsernameCaseMapped")
VISIBLE_ASCII = re.compile(r"[!-~]+")
# Of such an address, only the domain needs a check.
PLAIN_EMAIL = re.compile(r"(?=[^@]{1,64}@)([a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*)@([A-Za-z0-9.-]+)")
# A bare plus in a query arrives as a space; before the offset it can be nothing else.
RFC_3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)"
    r"([Zz]|[+ -][0-9]{2}:[0-9]{2})"
)
# Control characters, line and paragraph separators, marks that change the direction of text, surrogates and
# noncharacters: they are invisible, and can make a text look like another one.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)
METADATA_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")
PHONE_NUMBER = r"^\+[1-9][0-9]{6,14}$"
KEY = r"^[ -~]+$"
CURRENCY = r"^[A-Z0-9]+$"
PATTERNS = {
    PHONE_NUMBER: "Write the number with its country code: a plus sign, then 7 to 15 digits, as in +4915112345678",
    KEY: "Use visible ASCII characters and spaces only",
    CURRENCY: "Write a currency as its code, in capital letters and digits: EUR",
}
"""The error messages for fields that do not match their pattern."""


def wrong(detail: str) -> PydanticCustomError:
    """Return an error for a check to raise; unlike a ValueError, it keeps no frames, and so no request, in memory."""
    return PydanticCustomError("value", "{detail}", {"detail": detail})


def normalise_username(username: Any) -> Any:
    """Return the normal form of a username (PRECIS UsernameCaseMapped, RFC 8265 section 3.3)."""
    # Other types and far too long strings are refused by the checks that follow.
    if not isinstance(username, str) or not 0 < len(username) <= 255:
        return username
    # The profile accepts every visible ASCII character and only folds its case: most names need no more.
    if VISIBLE_ASCII.fullmatch(username):
        return username.lower()
    # The profile takes 20 µs for each character, and its result is never shorter than this.
    if len(unicodedata.normalize("NFKC", username.lower())) > 50:
        raise wrong("A username has at most 50 characters")
    try:
        return USERNAME_PROFILE.enforce(username)
    except UnicodeEncodeError:
        raise wrong("A username is made of letters, digits and visible ASCII characters, without spaces") from None


def normalise_email(email: Any) -> Any:
    """Return the address with its domain in lower case (RFC 5321, 6531); its existence is not checked."""
    if not isinstance(email, str):
        return email
    # First, since the time of what follows depends on the length (RFC 5321, section 4.5.3.1).
    if len(email) > 254:
        raise wrong("An email address has at most 100 characters")
    try:
        # Cached, since many share a domain, and a check costs more than all the rest of a registration.
        if len(email) <= 100 and (plain := PLAIN_EMAIL.fullmatch(email)):
            return f"{plain[1]}@{normalise_domain(plain[2])}"
        return validate_email(email, check_deliverability=False, strict=True).normalized
    except EmailNotValidError as error:
        raise wrong(str(error)) from None


@lru_cache(10_000)
def normalise_domain(domain: str) -> str:
    """Return the domain of an address in lower case. Raises EmailNotValidError."""
    return validate_email(f"a@{domain}", check_deliverability=False).domain


def check_random_uuid(key: UUID) -> UUID:
    """Refuse UUIDs that can be guessed, since the replay of a registration returns a token."""
    if key.version not in (4, 7):
        raise wrong("Use a random UUID, version 4 or 7")
    return key


def check_text(text: str | None) -> str | None:
    """Refuse invisible characters; letters, marks, emoji and spaces of every script are allowed."""
    if text is not None and UNPRINTABLE.search(text) is not None:
        raise wrong("Write one line of text, without control characters and marks that change the text's direction")
    return text


def check_metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    """Refuse more than 20 texts, more than 4 KiB in all, and keys that nobody could write in a query."""
    if metadata is None:
        return None
    if len(metadata) > 20:
        raise wrong("Send at most 20 texts")
    if sum(len(text.encode("utf-8", "surrogatepass")) for text in (*metadata, *metadata.values())) > 4096:
        raise wrong("Keys and texts have at most 4,096 bytes (UTF-8) in all")
    for key, value in metadata.items():
        if not METADATA_KEY.fullmatch(key):
            raise wrong("A key has 1 to 40 letters, digits, hyphens and underscores (ASCII)")
        check_text(value)
    return metadata


def check_instant(instant: Any) -> Any:
    """Return an instant in UTC from RFC 3339, section 5.6; nothing else is accepted."""
    parts = RFC_3339.fullmatch(instant) if isinstance(instant, str) else None
    if parts is None:
        raise wrong("Write an instant as in RFC 3339, with its offset: 2026-11-23T09:00:00Z")
    try:
        return datetime.fromisoformat(parts[1].upper() + parts[2].upper().replace(" ", "+")).astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong("There is no such instant") from None


# SQLite generates ids only for a column of type INTEGER, which has 64 bits there.
Id = BigInteger().with_variant(Integer(), "sqlite")

# A length that stands before a BeforeValidator is checked after it: the limits apply to the normal form.
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
        description="At most 100 characters; only the form is checked, not the existence",
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
        description="A name for the token: one line of text",
        examples=["laptop"],
    ),
    AfterValidator(check_text),
]
Secret = Annotated[
    str, pydantic.Field(description="The bearer token, `svp_` and 43 characters; shown only once", examples=["svp_…"])
]
KeyName = Annotated[
    str,
    pydantic.Field(
        min_length=1,
        max_length=50,
        description="A name for the key: one line of text; free again once the key is revoked",
        examples=["support"],
    ),
    AfterValidator(check_text),
]
KeySecret = Annotated[
    str, pydantic.Field(description="The bearer token, `svo_` and 43 characters; shown only once", examples=["svo_…"])
]
KeyScope = Literal["read", "users", "money", "keys", "webhooks"]
KeyScopes = Annotated[
    list[KeyScope],
    Field(sa_type=JSON),
    pydantic.Field(
        min_length=1,
        max_length=5,
        description="read: every GET but that of keys; users: users, their tokens and accounts; money: whatever moves, "
        "holds or lends it; keys: the operator's keys; webhooks: who is told of events",
        examples=[["read", "users"]],
    ),
    AfterValidator(lambda scopes: sorted({*scopes})),
]
ActionName = Literal[
    "account.credit",
    "account.open",
    "hold.capture",
    "hold.create",
    "hold.void",
    "key.issue",
    "key.revoke",
    "token.issue",
    "token.revoke",
    "transfer.create",
    "transfer.deposit",
    "transfer.reverse",
    "transfer.withdraw",
    "user.close",
    "user.erase",
    "user.register",
    "user.reopen",
    "user.suspend",
    "user.update",
    "webhook.create",
    "webhook.end",
    "webhook.resend",
    "webhook.rotate",
    "webhook.test",
    "webhook.update",
]
EventType = Literal[
    "account.opened",
    "account.updated",
    "hold.captured",
    "hold.created",
    "hold.expired",
    "hold.voided",
    "key.issued",
    "key.revoked",
    "token.issued",
    "token.revoked",
    "transaction.created",
    "transfer.created",
    "user.closed",
    "user.erased",
    "user.registered",
    "user.reopened",
    "user.suspended",
    "user.updated",
    "webhook.created",
    "webhook.ended",
    "webhook.test",
    "webhook.updated",
]
WebhookStatus = Literal["active", "paused", "ended"]
DeliveryStatus = Literal["waiting", "delivered", "failed"]
Status = Literal["active", "suspended", "closed"]
HoldStatus = Literal["open", "captured", "voided", "expired"]
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
# Up to here, JSON numbers are exact everywhere (RFC 8259, section 6).
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
AskedAmount = Annotated[
    int | None,
    Field(sa_type=BigInteger),
    pydantic.Field(
        description='What was asked for with on_short "cap"; the amount is what was available, or this',
        examples=[None],
        json_schema_extra=INT64,
    ),
]
Balance = Annotated[
    int,
    Field(sa_type=BigInteger),
    pydantic.Field(description="In minor units of the currency", examples=[1250], json_schema_extra=INT64),
]
AccountLabel = Annotated[
    str,
    Field(sa_type=String(50), sa_column_kwargs={"server_default": "main"}),
    pydantic.Field(
        min_length=1,
        max_length=50,
        description="Tells a user's accounts in one currency apart: 1 to 50 characters in one line",
        examples=["main"],
    ),
    AfterValidator(check_text),
]
Held = Annotated[
    int,
    Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")}),
    pydantic.Field(
        description="What open holds keep from being spent, in minor units", examples=[0], json_schema_extra=INT64
    ),
]
CreditLimit = Annotated[
    int,
    Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")}),
    pydantic.Field(
        ge=0,
        le=2**53 - 1,
        description="How far below 0 the balance may go, in minor units",
        examples=[0],
        json_schema_extra=INT64,
    ),
]
Memo = Annotated[
    str | None,
    pydantic.Field(
        max_length=200,
        description="The purpose, in one line of text; both parties can read it",
        examples=["Invoice 4711"],
    ),
    AfterValidator(check_text),
]
Reference = Annotated[
    str | None,
    pydantic.Field(
        min_length=1,
        max_length=100,
        description="The caller's own id of it, such as an order's: 1 to 100 characters; both parties can read it",
        examples=["order-4711"],
    ),
    AfterValidator(check_text),
]
# The column and the JSON field are called metadata, a name that SQLModel's classes have for something else.
Metadata = Annotated[
    dict[str, str] | None,
    Field(sa_type=JSON(none_as_null=True), sa_column_kwargs={"name": "metadata"}),
    pydantic.Field(
        alias="metadata",
        description="Up to 20 texts by name, 4 KiB in all; both parties can read them",
        examples=[{"cart": "c-17"}],
    ),
    AfterValidator(check_metadata),
]
UserReference = Annotated[
    Reference,
    pydantic.Field(
        description="The operator's own id of the user, unique: 1 to 100 characters; shown to the operator only",
        examples=["customer-17"],
    ),
]
UserMetadata = Annotated[
    Metadata,
    pydantic.Field(
        description="Up to 20 texts by name, 4 KiB in all; shown to the operator only", examples=[{"plan": "pro"}]
    ),
]
ReversesId = Annotated[
    int | None,
    Field(foreign_key="transfers.id", unique=True, sa_type=Id),
    pydantic.Field(description="The transfer that this one reversed", examples=[None], json_schema_extra=INT64),
]
TransactionId = Annotated[
    int | None,
    Field(foreign_key="transactions.id", sa_type=Id),
    pydantic.Field(description="The transaction that it is part of", examples=[None], json_schema_extra=INT64),
]
HoldId = Annotated[
    int | None,
    Field(foreign_key="holds.id", sa_type=Id),
    pydantic.Field(description="The hold that it captured", examples=[None], json_schema_extra=INT64),
]
EventTypes = Annotated[
    list[EventType] | None,
    Field(sa_type=JSON(none_as_null=True)),
    pydantic.Field(
        min_length=1,
        max_length=len(get_args(EventType)),
        description="Which events are sent; null for all",
        examples=[["transfer.created", "hold.expired"]],
    ),
    AfterValidator(lambda types: types and sorted({*types})),
]
WebhookUrl = Annotated[
    str,
    pydantic.Field(
        min_length=1,
        max_length=500,
        description="Where events are sent: https, or in development http; no private address but in WEBHOOK_NETWORKS",
        examples=["https://example.com/hooks/savepoint"],
    ),
]
PersonalData = Annotated[
    bool,
    pydantic.Field(
        description="Whether the data has more than ids: names, addresses, memos, metadata, as they are when it is sent"
    ),
]
WebhookSecret = Annotated[
    str,
    pydantic.Field(
        description="What signatures are made with (Standard Webhooks): `whsec_` and base64; shown only once",
        examples=["whsec_…"],
    ),
]
