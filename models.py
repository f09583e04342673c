"""Every table and its schemas, each field defined once."""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pydantic
from email_validator import EmailNotValidError, validate_email
from precis_i18n import get_profile
from pydantic import AfterValidator, BeforeValidator, ConfigDict, WithJsonSchema
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel

# A migration can drop a constraint on every engine only by its name.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

USERNAME_PROFILE = get_profile("UsernameCaseMapped")
VISIBLE_ASCII = re.compile(r"[!-~]+")
# What needs no more than its domain checked.
PLAIN_EMAIL = re.compile(r"(?=[^@]{1,64}@)([a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*)@([A-Za-z0-9.-]+)")
# A bare plus in a query arrives as a space; before the offset it can be nothing else.
RFC_3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)"
    r"([Zz]|[+ -][0-9]{2}:[0-9]{2})"
)
PLAIN_DIGITS = re.compile(r"0|[1-9][0-9]{0,18}")
# Control characters, line and paragraph separators, what reverses the text around it, halves of surrogate pairs and
# noncharacters: none of them can be seen, and each can make a text look like another one.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)
STRUCTURED_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
PHONE_NUMBER = r"^\+[1-9][0-9]{6,14}$"
KEY = r"^[ -~]+$"
CURRENCY = r"^[A-Z0-9]+$"
PATTERNS = {
    PHONE_NUMBER: "Write the number with its country code: a plus sign, then 7 to 15 digits, as in +4915112345678",
    KEY: "Use visible ASCII characters and spaces only",
    CURRENCY: "Write a currency as its code, in capital letters and digits: EUR",
}
"""What a field that has to match one of these patterns expects, in words."""


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
        raise ValueError("A username has at most 50 characters")
    try:
        return USERNAME_PROFILE.enforce(username)
    except UnicodeEncodeError:
        raise ValueError("A username is made of letters, digits and visible ASCII characters, without spaces") from None


def normalise_email(email: Any) -> Any:
    """The address with its domain in lower case (RFC 5321, 6531); whether it exists is not looked up."""
    if not isinstance(email, str):
        return email
    # Before anything that takes longer, the longer the text is (RFC 5321, section 4.5.3.1).
    if len(email) > 254:
        raise ValueError("An email address has at most 100 characters")
    try:
        # Many share a domain, and to check one costs more than all the rest of a registration.
        if len(email) <= 100 and (plain := PLAIN_EMAIL.fullmatch(email)):
            return f"{plain[1]}@{normalise_domain(plain[2])}"
        return validate_email(email, check_deliverability=False, strict=True).normalized
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None


@lru_cache(10_000)
def normalise_domain(domain: str) -> str:
    """The domain of an address in lower case. Raises EmailNotValidError."""
    return validate_email(f"a@{domain}", check_deliverability=False).domain


def check_random_uuid(key: UUID) -> UUID:
    """Refuse UUIDs that somebody else could guess, since a registration's replay hands out a token."""
    if key.version not in (4, 7):
        raise ValueError("Use a random UUID, version 4 or 7")
    return key


def check_text(text: str | None) -> str | None:
    """Refuse characters that cannot be seen; letters, marks, emoji and spaces of every script may be used."""
    if text is not None and UNPRINTABLE.search(text) is not None:
        raise ValueError("Write it in one line, without control characters and marks that turn the text around")
    return text


def read_digits(number: Any) -> Any:
    """A number in a path or query, as JSON would write it: without sign, leading zeros, underscores or spaces."""
    if isinstance(number, str):
        if PLAIN_DIGITS.fullmatch(number) is None:
            raise ValueError("Write a whole number in digits only, without sign, spaces or leading zeros")
        return int(number)
    return number


def unquote_key(key: Any) -> Any:
    """The key in an Idempotency-Key header; in quotes, as a structured field has it, it is the same key (RFC 9651)."""
    if not isinstance(key, str) or not key.startswith('"'):
        return key
    quoted = STRUCTURED_STRING.fullmatch(key)
    if quoted is None:
        raise ValueError("The quotes around the key do not match: send the key in one pair of quotes, or in none")
    return re.sub(r"\\(.)", r"\1", quoted[1])


def check_instant(instant: Any) -> Any:
    """An instant in UTC, from RFC 3339 (section 5.6) only."""
    parts = RFC_3339.fullmatch(instant) if isinstance(instant, str) else None
    if parts is None:
        raise ValueError("Write an instant as in RFC 3339, with its offset: 2026-11-23T09:00:00Z")
    try:
        return datetime.fromisoformat(parts[1].upper() + parts[2].upper().replace(" ", "+")).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("There is no such instant") from None


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


def now() -> datetime:
    """This instant, aware, in UTC."""
    return datetime.now(UTC)


class Strict(SQLModel):
    """What comes in as JSON: no unknown fields, and no number taken for a string or the other way round."""

    model_config = ConfigDict(strict=True, extra="forbid")  # type: ignore[assignment]


class Answer(SQLModel):
    """What goes out as JSON: every field is always there."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)  # type: ignore[assignment]


class Identified(Answer):
    """What has a number of its own."""

    id: RowId


# --- users ------------------------------------------------------------------------------------------------------------


class UserFields(SQLModel):
    """What a user tells of itself."""

    username: Username
    email: Email
    phone_number: PhoneNumber = None


class User(UserFields, table=True):
    """A registered user."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("username"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    registration_key_hash: str | None = Field(default=None, max_length=64, unique=True)
    created_at: datetime


class Profile(SQLModel, table=True):
    """Whether a user may act; there is exactly one for each user."""

    __tablename__ = "profiles"
    __table_args__ = (CheckConstraint("status IN ('active', 'suspended', 'closed')", name="status"),)

    user_id: int = Field(
        primary_key=True, foreign_key="users.id", sa_type=Id, sa_column_kwargs={"autoincrement": False}
    )
    status: Status = Field(sa_type=String(9))


class Registration(Strict, UserFields):
    """A user who registers."""


class KeyedRegistration(Registration):
    """A registration with the key that makes its retry safe."""

    idempotency_key: RegistrationKey | None = None


class UserPublic(UserFields, Identified):
    """A user as the API shows it."""

    status: Status
    created_at: datetime


class UserUpdate(Strict):
    """What a user may change about itself: what is left out stays, and a phone_number of null is removed."""

    email: Email = None  # type: ignore[assignment] # left out, not null
    phone_number: PhoneNumber = None


class StatusUpdate(Strict):
    """What the operator may change about a user."""

    status: Status


OnError = Annotated[
    Literal["rollback", "continue"],
    pydantic.Field(description="rollback stores all or nothing; continue stores what is not refused"),
]


BATCH_LIMIT = 10_000
USER_BATCH_LIMIT = 1_000


def items_of(item: type[SQLModel], description: str) -> Any:
    """The items of a batch; each is checked by itself, so that one bad item need not stop the others."""
    return Annotated[
        list[Annotated[Any, WithJsonSchema({"$ref": f"#/components/schemas/{item.__name__}"})]],
        pydantic.Field(min_length=1, max_length=BATCH_LIMIT, description=description),
    ]


class UsersBatch(Strict):
    """Users to register together."""

    users: items_of(KeyedRegistration, "1 to 10,000 users")  # type: ignore[valid-type]
    on_error: OnError = "rollback"


# --- access tokens ----------------------------------------------------------------------------------------------------


class TokenFields(SQLModel):
    """What is told of a token after it was issued."""

    name: TokenName = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class AccessToken(TokenFields, table=True):
    """A user's bearer token, kept as its SHA-256 only."""

    __tablename__ = "access_tokens"

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    user_id: int = Field(foreign_key="users.id", index=True, sa_type=Id)
    token_hash: str = Field(max_length=64, unique=True)


class TokenRequest(Strict):
    """A token to issue."""

    name: TokenName = None
    expires_in_days: Annotated[
        int | None, pydantic.Field(ge=1, le=3650, description="Left out, the token does not expire", examples=[90])
    ] = None


class TokenPublic(TokenFields, Identified):
    """A token as the API lists it, without its secret."""


class IssuedToken(TokenPublic):
    """A token just issued, with its secret, which is shown this once."""

    access_token: Secret
    token_type: Literal["bearer"] = "bearer"


class RegistrationAnswer(Answer):
    """What a registration answers."""

    message: Literal["Registration successful"] = "Registration successful"
    user: UserPublic
    access_token: Secret
    token_type: Literal["bearer"] = "bearer"


# --- money ------------------------------------------------------------------------------------------------------------


class CurrencyPublic(Answer):
    """A currency, and in how many decimals its amounts are written: 1250 EUR in minor units is 12.50 EUR."""

    code: Currency
    decimals: Annotated[int, pydantic.Field(description="Minor units are 10 to the minus this", examples=[2])]


class AccountFields(SQLModel):
    """What is told of an account."""

    user_id: Annotated[
        int | None,
        Field(foreign_key="users.id", sa_type=Id),
        pydantic.Field(description="Null for the system account of a currency", examples=[1]),
    ] = None
    currency: Currency
    balance: Balance = 0
    version: Annotated[
        int,
        Field(sa_type=BigInteger),
        pydantic.Field(description="How many entries the account has", examples=[1]),
    ] = 0


class Account(AccountFields, table=True):
    """What a user holds in one currency; a system account is where deposits come from and withdrawals go to.

    version is the seq of the newest entry, updated_at its created_at.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("user_id IS NULL OR balance >= 0", name="balance"),
        UniqueConstraint("user_id", "currency"),
        # What the transfers' foreign keys refer to, so that both accounts have the transfer's currency.
        UniqueConstraint("id", "currency"),
        # One system account a currency: where user_id is null, the constraint above does not hold.
        Index(
            "uq_accounts_system_currency",
            "currency",
            unique=True,
            sqlite_where=text("user_id IS NULL"),
            postgresql_where=text("user_id IS NULL"),
        ),
        # Room on each page, so that a new balance stands beside the old one, and no index changes (HOT).
        {"postgresql_with": {"fillfactor": 90}},
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    updated_at: datetime | None = None


class AccountRequest(Strict):
    """An account to open."""

    currency: Currency


class AccountPublic(AccountFields, Identified):
    """An account as the API shows it."""


class TransferFields(SQLModel):
    """From where, to where, how much and what for."""

    debit_account_id: AccountId
    credit_account_id: Annotated[AccountId, pydantic.Field(examples=[3])]
    amount: Amount
    memo: Memo = None


class Transfer(TransferFields, table=True):
    """Money that went from the debit account to the credit account; initiator is a user's id, or 0, the operator."""

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("debit_account_id <> credit_account_id", name="accounts"),
        UniqueConstraint("initiator", "idempotency_key"),
        ForeignKeyConstraint(["debit_account_id", "currency"], ["accounts.id", "accounts.currency"]),
        ForeignKeyConstraint(["credit_account_id", "currency"], ["accounts.id", "accounts.currency"]),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    currency: Currency
    reverses_id: ReversesId = None
    initiator: int = Field(sa_type=BigInteger)
    idempotency_key: IdempotencyKey = None
    created_at: datetime


class Entry(SQLModel, table=True):
    """What one transfer did to one account: less on the debit account, more on the credit account.

    In order of seq, created_at never falls.
    """

    __tablename__ = "entries"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount"),
        UniqueConstraint("transfer_id", "account_id"),
    )

    account_id: int = Field(
        primary_key=True, foreign_key="accounts.id", sa_type=Id, sa_column_kwargs={"autoincrement": False}
    )
    seq: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    transfer_id: int = Field(foreign_key="transfers.id", sa_type=Id)
    amount: int = Field(sa_type=BigInteger)
    balance_after: int = Field(sa_type=BigInteger)
    created_at: datetime


class EntryPublic(Answer):
    """A line of an account's statement."""

    seq: Annotated[int, pydantic.Field(description="1 is the account's oldest entry", examples=[1])]
    amount: Annotated[int, pydantic.Field(description="In minor units; negative where money left", examples=[-1250])]
    balance_after: Balance
    transfer_id: RowId
    reverses_id: ReversesId
    counterparty_account_id: RowId
    memo: Memo
    created_at: datetime


class TransferRequest(Strict, TransferFields):
    """A transfer to make."""


class KeyedTransfer(TransferRequest):
    """A transfer with the key that makes its retry safe."""

    idempotency_key: IdempotencyKey = None


class CashRequest(Strict):
    """Money that comes from outside, or leaves."""

    account_id: AccountId
    amount: Amount
    memo: Memo = None


class TransferPublic(TransferFields, Identified):
    """A transfer as both parties see it."""

    currency: Currency
    reverses_id: ReversesId
    created_at: datetime


class DebitedTransfer(TransferPublic):
    """A transfer as the owner of the debit account sees it."""

    debit_balance_after: Balance


class SettledTransfer(DebitedTransfer):
    """A transfer as the operator sees it."""

    credit_balance_after: Balance


class TransfersBatch(Strict):
    """Transfers to make in this order: one may spend what another before it brought."""

    transfers: items_of(KeyedTransfer, "1 to 1,000 transfers, for the operator to 10,000")  # type: ignore[valid-type]
    on_error: OnError = "rollback"


# --- pages ------------------------------------------------------------------------------------------------------------

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
        """What OpenAPI calls a page of these."""
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
        raise ValueError('Send the "next" of the page before, unchanged')
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
