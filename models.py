"""Every table and its schemas, each field defined once."""

import warnings
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, WithJsonSchema
from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKeyConstraint, Index, String, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from fields import (
    INT64,
    AccountId,
    AccountLabel,
    ActionName,
    Amount,
    AskedAmount,
    Balance,
    CreditLimit,
    Currency,
    DeliveryStatus,
    Email,
    EventType,
    EventTypes,
    Held,
    HoldId,
    HoldStatus,
    Id,
    IdempotencyKey,
    KeyName,
    KeyScopes,
    KeySecret,
    Memo,
    Metadata,
    PersonalData,
    PhoneNumber,
    Reference,
    RegistrationKey,
    ReversesId,
    RowId,
    Secret,
    Status,
    TokenName,
    TransactionId,
    UserMetadata,
    Username,
    UserReference,
    WebhookSecret,
    WebhookStatus,
    WebhookUrl,
)

# Where a column has an unexpected type, these would write its values to the log; /readyz reports the column.
warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)

# A migration can drop a constraint on every engine only by its name.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Return an index of the rows that fulfil a condition; the others cost nothing."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class Strict(SQLModel):
    """A request body: unknown fields are refused, and numbers and strings are not converted into each other."""

    model_config = ConfigDict(strict=True, extra="forbid")  # type: ignore[assignment]


class Answer(SQLModel):
    """A response body: every field is always there."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)  # type: ignore[assignment]


class Identified(Answer):
    """A response body with an id."""

    id: RowId


# --- users ------------------------------------------------------------------------------------------------------------


class UserFields(SQLModel):
    """The fields that a user sends."""

    username: Username
    email: Email
    phone_number: PhoneNumber = None


class User(UserFields, table=True):
    """A registered user; registration_content_hash is null without a key, and in rows of older versions."""

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("username"),
        Index("ix_users_email", "email"),
        partial_index("uq_users_reference", "reference", where="reference IS NOT NULL", unique=True),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    reference: UserReference = None
    details: UserMetadata = None
    registration_key_hash: str | None = Field(default=None, max_length=64, unique=True)
    registration_content_hash: str | None = Field(default=None, max_length=32)
    created_at: datetime


class Profile(SQLModel, table=True):
    """The status of a user; there is exactly one profile for each user."""

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


class UserRecord(UserPublic):
    """A user as the API shows it to the operator."""

    reference: UserReference
    details: UserMetadata


class UserUpdate(Strict):
    """The fields that a user may change; those left out stay, and null removes a value."""

    email: Email = None  # type: ignore[assignment] # left out, not null
    phone_number: PhoneNumber = None


class UserRecordUpdate(UserUpdate):
    """The fields of a user that the operator may change; those left out stay, and null removes a value."""

    status: Status = None  # type: ignore[assignment] # left out, not null
    reference: UserReference = None
    details: UserMetadata = None


OnError = Literal["rollback", "continue"]
BatchOnError = Annotated[
    OnError,
    pydantic.Field(description="rollback stores all or nothing; continue stores the items that are not refused"),
]
BATCH_LIMIT = 10_000
USER_BATCH_LIMIT = 1_000


def items_of(item: type[SQLModel], description: str) -> Any:
    """Return the type of a batch's items; each is validated by itself, so that one need not stop the others."""
    return Annotated[
        list[Annotated[Any, WithJsonSchema({"$ref": f"#/components/schemas/{item.__name__}"})]],
        pydantic.Field(min_length=1, max_length=BATCH_LIMIT, description=description),
    ]


class UsersBatch(Strict):
    """Users to register together."""

    users: items_of(KeyedRegistration, "1 to 10,000 users")  # type: ignore[valid-type]
    on_error: BatchOnError = "rollback"


# --- access tokens ----------------------------------------------------------------------------------------------------


class TokenFields(SQLModel):
    """The fields of a token that can be shown again."""

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
    """A token just issued, with its secret, which is shown only once."""

    access_token: Secret
    token_type: Literal["bearer"] = "bearer"


class RegistrationAnswer(Answer):
    """A registered user with its first token."""

    message: Literal["Registration successful"] = "Registration successful"
    user: UserPublic
    access_token: Secret
    token_type: Literal["bearer"] = "bearer"


# --- the operator's keys, and what was done with them -----------------------------------------------------------------


class KeyFields(SQLModel):
    """The fields of an operator's key that can be shown again."""

    name: KeyName
    scopes: KeyScopes
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class OperatorKey(KeyFields, table=True):
    """A key of the operator, kept as its SHA-256 only. It is never deleted, so that what it did stays known."""

    __tablename__ = "operator_keys"
    __table_args__ = (partial_index("uq_operator_keys_name", "name", where="revoked_at IS NULL", unique=True),)

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    key_hash: str = Field(max_length=64, unique=True)


class KeyRequest(Strict):
    """A key to issue."""

    name: KeyName
    scopes: KeyScopes
    expires_in_days: Annotated[
        int | None, pydantic.Field(ge=1, le=3650, description="Left out, the key does not expire", examples=[90])
    ] = None


class KeyPublic(KeyFields, Identified):
    """An operator's key as the API lists it, without its secret."""


class IssuedKey(KeyPublic):
    """An operator's key just issued, with its secret, which is shown only once."""

    secret: KeySecret


class ActionFields(SQLModel):
    """What the operator did, by its own call; stored with what it changed, and never changed itself."""

    action: Annotated[ActionName, Field(sa_type=String(20))]
    key_id: Annotated[
        int | None,
        Field(foreign_key="operator_keys.id", sa_type=Id),
        pydantic.Field(
            description="The key that was used; null for OPERATOR_TOKEN", examples=[None], json_schema_extra=INT64
        ),
    ] = None
    request_id: Annotated[
        str, Field(max_length=64), pydantic.Field(description="The call's X-Request-ID", examples=["5f0c9a524a551e9f"])
    ]
    user_id: Annotated[
        int | None,
        Field(sa_type=Id),
        pydantic.Field(
            description="The user whose data, tokens or money it was", examples=[1], json_schema_extra=INT64
        ),
    ] = None
    account_id: Annotated[
        int | None,
        Field(sa_type=Id),
        pydantic.Field(
            description="That user's account; of a transfer the debit account, of a deposit the credit account",
            examples=[2],
            json_schema_extra=INT64,
        ),
    ] = None
    transfer_id: Annotated[
        int | None,
        Field(sa_type=Id),
        pydantic.Field(description="The transfer that was made", examples=[1], json_schema_extra=INT64),
    ] = None
    details: Annotated[
        dict[str, Any] | None,
        Field(sa_type=JSON(none_as_null=True)),
        pydantic.Field(
            description="Old and new value, changed fields, ids; never personal data",
            examples=[{"old": 0, "new": 500}],
        ),
    ] = None
    created_at: datetime


class OperatorAction(ActionFields, table=True):
    """A record of what the operator did. Only inserted: nothing in the service updates or deletes it.

    Its user, account and transfer are no foreign keys, whose checks would lock their rows.
    """

    __tablename__ = "operator_actions"
    __table_args__ = (
        Index("ix_operator_actions_request_id", "request_id"),
        partial_index("ix_operator_actions_key_id", "key_id", "id", where="key_id IS NOT NULL"),
        partial_index("ix_operator_actions_user_id", "user_id", "id", where="user_id IS NOT NULL"),
        partial_index("ix_operator_actions_transfer_id", "transfer_id", where="transfer_id IS NOT NULL"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)


class ActionPublic(ActionFields, Identified):
    """An action of the operator as the API lists it."""


# --- money ------------------------------------------------------------------------------------------------------------


class CurrencyPublic(Answer):
    """A currency and its number of decimals: 1250 in minor units of EUR is 12.50 EUR."""

    code: Currency
    decimals: Annotated[int, pydantic.Field(description="Decimal places: with 2, a minor unit is 0.01", examples=[2])]


class AccountFields(SQLModel):
    """The fields of an account that the API shows."""

    user_id: Annotated[
        int | None,
        Field(foreign_key="users.id", sa_type=Id),
        pydantic.Field(description="Null for the system account of a currency", examples=[1]),
    ] = None
    currency: Currency
    label: AccountLabel = "main"
    balance: Balance = 0
    credit_limit: CreditLimit = 0
    version: Annotated[
        int, Field(sa_type=BigInteger), pydantic.Field(description="The number of the account's entries", examples=[1])
    ] = 0


class Account(AccountFields, table=True):
    """Money of a user in one currency; a system account is the other side of deposits and withdrawals.

    version is the seq of the newest entry; none is newer than updated_at. held counts all holds that are open in their
    rows, also those that have expired since the account last changed.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("user_id IS NULL OR balance - held >= -credit_limit", name="balance"),
        CheckConstraint("credit_limit >= 0", name="credit_limit"),
        CheckConstraint("held >= 0", name="held"),
        UniqueConstraint("user_id", "currency", "label"),
        # The transfers' foreign keys refer to it, so that both accounts have the transfer's currency.
        UniqueConstraint("id", "currency"),
        # One system account per currency: where user_id is null, the constraint above does not hold.
        partial_index("uq_accounts_system_currency", "currency", where="user_id IS NULL", unique=True),
        # Leaves room on each page, so that an update changes no index (HOT).
        {"postgresql_with": {"fillfactor": 90}},
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    held: Held = 0
    updated_at: datetime | None = None


class AccountRequest(Strict):
    """An account to open."""

    currency: Currency
    label: AccountLabel = "main"
    user_id: Annotated[
        int | None,
        pydantic.Field(
            ge=1, lt=2**63, description="The owner; a user may leave it out", examples=[1], json_schema_extra=INT64
        ),
    ] = None


class AccountPublic(AccountFields, Identified):
    """An account as the API shows it."""

    held: Annotated[
        int | None,
        pydantic.Field(
            description="What open holds keep from being spent; null at an instant",
            examples=[0],
            json_schema_extra=INT64,
        ),
    ] = 0
    available: Annotated[
        int | None,
        pydantic.Field(
            description="balance - held + credit_limit, at most 2^53 - 1; null for a system account, and at an instant",
            examples=[1250],
            json_schema_extra=INT64,
        ),
    ]


class AccountUpdate(Strict):
    """The field of an account that the operator may change."""

    credit_limit: CreditLimit


class TransferFields(SQLModel):
    """The fields of a transfer that its caller sends."""

    debit_account_id: AccountId
    credit_account_id: Annotated[AccountId, pydantic.Field(examples=[3])]
    amount: Amount
    memo: Memo = None
    reference: Reference = None
    details: Metadata = None


class Transfer(TransferFields, table=True):
    """Money that went from the debit account to the credit account; initiator is a user's id, or 0 for the operator.

    operator_key_id is the key that the operator used; null for OPERATOR_TOKEN, and for users.
    asked_amount is what its caller asked for with on_short "cap"; the amount is that, or what was available.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("debit_account_id <> credit_account_id", name="accounts"),
        UniqueConstraint("initiator", "idempotency_key"),
        ForeignKeyConstraint(["debit_account_id", "currency"], ["accounts.id", "accounts.currency"]),
        ForeignKeyConstraint(["credit_account_id", "currency"], ["accounts.id", "accounts.currency"]),
        # A hold is captured once.
        partial_index("uq_transfers_hold_id", "hold_id", where="hold_id IS NOT NULL", unique=True),
        partial_index("ix_transfers_transaction_id", "transaction_id", where="transaction_id IS NOT NULL"),
        partial_index("ix_transfers_reference", "reference", "id", where="reference IS NOT NULL"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    currency: Currency
    asked_amount: AskedAmount = None
    reverses_id: ReversesId = None
    transaction_id: TransactionId = None
    hold_id: HoldId = None
    initiator: int = Field(sa_type=BigInteger)
    idempotency_key: IdempotencyKey = None
    # Without a foreign key, which would be checked for each transfer. Keys are never deleted.
    operator_key_id: int | None = Field(default=None, sa_type=Id)
    created_at: datetime


class Transaction(SQLModel, table=True):
    """Transfers that were made together; initiator as in Transfer."""

    __tablename__ = "transactions"
    __table_args__ = (UniqueConstraint("initiator", "idempotency_key"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    reference: Reference = None
    details: Metadata = None
    initiator: int = Field(sa_type=BigInteger)
    idempotency_key: IdempotencyKey = None
    created_at: datetime


class Hold(TransferFields, table=True):
    """Money that its account cannot spend, until the recipient captures it or gives it free, or it expires.

    The row of one that expired says so once its account changes. initiator and asked_amount as in Transfer.
    """

    __tablename__ = "holds"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("debit_account_id <> credit_account_id", name="accounts"),
        CheckConstraint("status IN ('open', 'captured', 'voided', 'expired')", name="status"),
        UniqueConstraint("initiator", "idempotency_key"),
        ForeignKeyConstraint(["debit_account_id", "currency"], ["accounts.id", "accounts.currency"]),
        ForeignKeyConstraint(["credit_account_id", "currency"], ["accounts.id", "accounts.currency"]),
        partial_index("ix_holds_open", "debit_account_id", "expires_at", where="status = 'open'"),
        partial_index("ix_holds_expires_at", "expires_at", where="status = 'open'"),
        Index("ix_holds_debit_account_id", "debit_account_id", "id"),
        Index("ix_holds_credit_account_id", "credit_account_id", "id"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    currency: Currency
    asked_amount: AskedAmount = None
    status: HoldStatus = Field(default="open", sa_type=String(8))
    expires_at: datetime
    resolved_at: datetime | None = None
    initiator: int = Field(sa_type=BigInteger)
    idempotency_key: IdempotencyKey = None
    created_at: datetime


class Entry(SQLModel, table=True):
    """The change that one transfer made to one account; created_at never falls in order of seq."""

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
    """An entry as an account's statement shows it."""

    seq: Annotated[int, pydantic.Field(description="1 is the account's oldest entry", examples=[1])]
    amount: Annotated[int, pydantic.Field(description="In minor units; negative where money left", examples=[-1250])]
    balance_after: Balance
    transfer_id: RowId
    reverses_id: ReversesId
    counterparty_account_id: RowId
    memo: Memo
    created_at: datetime


OnShort = Literal["refuse", "cap"]


class TransferRequest(Strict, TransferFields):
    """A transfer to make."""

    if_version: Annotated[
        int | None,
        pydantic.Field(ge=0, lt=2**63, description="Only if the debit account still has this version", examples=[None]),
    ] = None
    on_short: Annotated[
        OnShort,
        pydantic.Field(description="Where less is available: refuse, or cap: transfer what is, at least 1"),
    ] = "refuse"


class HoldRequest(TransferRequest):
    """A transfer to hold the money for."""

    expires_in: Annotated[
        int, pydantic.Field(ge=1, le=90 * 86400, description="Seconds until it expires: 7 days, at most 90")
    ] = 7 * 86400


class CaptureRequest(Strict):
    """What to capture of a hold."""

    amount: Annotated[
        int | None,
        pydantic.Field(
            ge=1,
            le=2**53 - 1,
            description="Left out, all; the rest is free at once",
            examples=[1250],
            json_schema_extra=INT64,
        ),
    ] = None


class HoldPublic(TransferFields, Identified):
    """A hold as the API shows it to both parties."""

    currency: Currency
    asked_amount: AskedAmount
    status: HoldStatus
    expires_at: datetime
    resolved_at: Annotated[
        datetime | None, pydantic.Field(description="When it was captured or voided, or expired; null while it is open")
    ]
    created_at: datetime


class KeyedTransfer(TransferRequest):
    """A transfer with the key that makes its retry safe."""

    idempotency_key: IdempotencyKey = None


class CashRequest(Strict):
    """A deposit or withdrawal."""

    account_id: AccountId
    amount: Amount
    memo: Memo = None
    reference: Reference = None
    details: Metadata = None


class TransferPublic(TransferFields, Identified):
    """A transfer as the API shows it to both parties."""

    currency: Currency
    asked_amount: AskedAmount
    reverses_id: ReversesId
    transaction_id: TransactionId
    hold_id: HoldId
    created_at: datetime


class DebitedTransfer(TransferPublic):
    """A transfer as the API shows it to the owner of the debit account."""

    debit_balance_after: Balance


class SettledTransfer(DebitedTransfer):
    """A transfer as the API shows it to the operator."""

    credit_balance_after: Balance


class TransactionRequest(Strict):
    """Transfers to make together or not at all, in this order: one may spend what an earlier one brought."""

    transfers: Annotated[list[TransferRequest], pydantic.Field(min_length=1, max_length=100)]
    reference: Reference = None
    details: Metadata = None


class TransactionPublic(Identified):
    """Transfers that were made together."""

    reference: Reference
    details: Metadata
    created_at: datetime
    transfers: list[SettledTransfer | DebitedTransfer]


class TransfersBatch(Strict):
    """Transfers to make in this order: one may spend what an earlier one brought."""

    transfers: items_of(KeyedTransfer, "1 to 1,000 transfers, for the operator to 10,000")  # type: ignore[valid-type]
    on_error: BatchOnError = "rollback"


# --- events and webhooks ----------------------------------------------------------------------------------------------


class Event(SQLModel, table=True):
    """Events of one type, stored by the transaction that did what they tell, where EVENTS is on.

    So a batch of transfers costs one row. Each of its subjects has an event of its own: the first one has the number,
    which is given after COMMIT, so that numbers ascend in the order in which readers can see them. The first part of
    the type says which table has the subjects. data is what their rows cannot tell later, and no personal data.
    """

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("number"),
        partial_index("ix_events_unnumbered", "id", where="number IS NULL"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    number: int | None = Field(default=None, sa_type=BigInteger)
    type: EventType = Field(sa_type=String(20))
    subject_ids: list[int] = Field(sa_type=JSON)
    size: int = 1
    data: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    created_at: datetime


class EventNumbers(SQLModel, table=True):
    """The last number that an event got, in a single row; who locks it gives the next ones."""

    __tablename__ = "event_numbers"

    id: int = Field(primary_key=True, sa_type=Id, sa_column_kwargs={"autoincrement": False})
    last: int = Field(sa_type=BigInteger)


class EventPublic(Answer):
    """An event, as the API and webhooks tell it."""

    id: Annotated[
        int, pydantic.Field(description="Ascends in the order of commits", examples=[1], json_schema_extra=INT64)
    ]
    type: EventType
    version: Annotated[Literal[1], pydantic.Field(description="Of the form of data; fields may be added to it")] = 1
    created_at: datetime
    data: Annotated[
        dict[str, Any],
        pydantic.Field(
            description="What it happened to, as the API shows it, without personal data", examples=[{"id": 1}]
        ),
    ]


class EventsPage(Answer):
    """Events in order, and where the next ones begin."""

    items: list[EventPublic]
    next: Annotated[
        int,
        pydantic.Field(description="Send it as ?after= for what follows", examples=[1], json_schema_extra=INT64),
    ]


class WebhookFields(SQLModel):
    """The fields of a webhook that its caller sends."""

    url: WebhookUrl
    types: EventTypes = None
    personal_data: PersonalData = False


class Webhook(WebhookFields, table=True):
    """An address that is told of events. One that ended stays, without its secrets.

    Its secrets are kept as they are, since each signature is made with them.
    """

    __tablename__ = "webhooks"
    __table_args__ = (CheckConstraint("status IN ('active', 'paused', 'ended')", name="status"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    status: WebhookStatus = Field(default="active", sa_type=String(6))
    secret: str | None = Field(default=None, max_length=100)
    previous_secret: str | None = Field(default=None, max_length=100)
    previous_secret_expires_at: datetime | None = None
    failing_since: datetime | None = None
    created_at: datetime


class WebhookRequest(Strict, WebhookFields):
    """A webhook to create."""


WebhookSwitch = Literal["active", "paused"]


class WebhookUpdate(Strict):
    """The fields of a webhook to change; those left out stay."""

    url: WebhookUrl = None  # type: ignore[assignment] # left out, not null
    types: EventTypes = None
    personal_data: PersonalData = None  # type: ignore[assignment] # left out, not null
    status: Annotated[
        WebhookSwitch,
        pydantic.Field(description="paused: what it would be told waits; active: it is told"),
    ] = None  # type: ignore[assignment] # left out, not null


class WebhookPublic(WebhookFields, Identified):
    """A webhook as the API lists it, without its secrets."""

    status: WebhookStatus
    failing_since: Annotated[
        datetime | None,
        pydantic.Field(description="Since when nothing has arrived; after 3 days it is paused", examples=[None]),
    ]
    previous_secret_expires_at: Annotated[
        datetime | None,
        pydantic.Field(description="Until when the secret before this one signs as well", examples=[None]),
    ]
    created_at: datetime


class WebhookWithSecret(WebhookPublic):
    """A webhook with a secret just made, which is shown only once."""

    secret: WebhookSecret


class DeliveryFields(SQLModel):
    """The fields of a delivery that the API shows."""

    status: DeliveryStatus = Field(default="waiting", sa_type=String(9))
    attempts: Annotated[int, pydantic.Field(description="How often it was tried", examples=[1])] = 0
    due_at: Annotated[datetime, pydantic.Field(description="When it is tried next, if it waits")]
    attempted_at: datetime | None = None
    status_code: Annotated[
        int | None, pydantic.Field(description="The HTTP status of the last attempt", examples=[200])
    ] = None
    error: Annotated[
        str | None,
        Field(max_length=200),
        pydantic.Field(description="Why the last attempt failed", examples=[None]),
    ] = None


class WebhookDelivery(DeliveryFields, table=True):
    """An event that a webhook is told of, until it was, or was not for 3 days."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('waiting', 'delivered', 'failed')", name="status"),
        partial_index("ix_webhook_deliveries_due", "webhook_id", "due_at", where="status = 'waiting'"),
    )

    webhook_id: int = Field(
        primary_key=True, foreign_key="webhooks.id", sa_type=Id, sa_column_kwargs={"autoincrement": False}
    )
    event_id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    type: EventType = Field(sa_type=String(20))
    created_at: datetime


class DeliveryPublic(DeliveryFields, Answer):
    """A delivery as the API shows it."""

    event_id: Annotated[int, pydantic.Field(examples=[1], json_schema_extra=INT64)]
    type: EventType
    created_at: datetime
