"""All refusals, each with the text that the caller reads."""

from collections.abc import Sequence


class Refusal(Exception):
    """The call was refused."""

    field: str | None = None
    """The invalid field, if there is one."""

    @property
    def detail(self) -> str:
        """The docstring of the class: what happened, and what the caller can do."""
        return " ".join((type(self).__doc__ or "").split())


class UsernameTaken(Refusal):
    """This username is taken. Choose another one."""


class ReferenceTaken(Refusal):
    """Another user has this reference. GET /users?reference= shows which; remove it there first, or choose another."""


class IdempotencyKeyReused(Refusal):
    """This Idempotency-Key was already used for a different request. Use a new key for a new request."""

    field = "idempotency_key"


class UserNotFound(Refusal):
    """There is no user with this id. GET /users lists all users."""


class UserNotActive(Refusal):
    """This user is suspended or closed. The operator can make it active again: PATCH /users/{id}."""


class BalanceNotZero(Refusal):
    """An account of this user has money, debts or holds. Transfer it, pay them back, end these, then try again."""


class UserNotClosed(Refusal):
    """Only of a closed user can the personal data be erased. PATCH /users/{id} with the status "closed" closes it."""


class UserErased(Refusal):
    """The personal data of this user was erased, so it stays closed and cannot be changed. Register a new user."""


class AccountExists(Refusal):
    """The user already has an account with this currency and label. GET /accounts lists it; choose another label."""


class AccountLimit(Refusal):
    """The user has 100 accounts, the most that one can have. GET /accounts lists them; use one of these."""


class AccountNotFound(Refusal):
    """There is no such account, or you may not use it. GET /accounts lists your accounts."""


class AccountNotActive(Refusal):
    """The owner of one of these accounts is suspended or closed. Ask the operator to make that user active again."""


class InsufficientFunds(Refusal):
    """The debit account has less than this amount available. Nothing was moved or held."""


class CreditInUse(Refusal):
    """The account owes, or holds on credit, more than this limit. Nothing was changed; lower it once money came in."""


class SystemAccount(Refusal):
    """A system account has no credit limit: its balance may go below 0 as far as needed. Name a user's account."""


class VersionMismatch(Refusal):
    """The debit account no longer has the version in if_version. Nothing was moved: read the account, decide anew."""


class BalanceLimit(Refusal):
    """This would take a balance past 9007199254740991, the most that an account can hold. Nothing was moved."""


class SameAccount(Refusal):
    """The debit account and the credit account are the same. Name two different accounts."""

    def __init__(self, field: str = "credit_account_id") -> None:
        super().__init__()
        self.field = field


class CurrencyMismatch(Refusal):
    """The accounts have different currencies. Name two accounts with the same currency."""

    field = "credit_account_id"


class CurrencyUnknown(Refusal):
    """This currency is not known here. GET /currencies lists all currencies."""

    field = "currency"


class TransferNotFound(Refusal):
    """None of your accounts has a transfer with this id. GET /transfers lists your transfers."""


class ReceiverOnly(Refusal):
    """Only the recipient or the operator can reverse a transfer, or end a hold. Ask one of them to do it."""


class OperatorTransfer(Refusal):
    """The operator made this transfer, so only the operator can reverse it."""


class AlreadyReversed(Refusal):
    """This transfer was already reversed. A transfer can be reversed only once."""


class ReversalNotReversible(Refusal):
    """This transfer is itself a reversal and cannot be reversed. Make a new transfer instead."""


class HoldNotFound(Refusal):
    """None of your accounts has a hold with this id. GET /holds lists them."""


class HoldResolved(Refusal):
    """This hold is no longer open: it was captured, or voided, or has expired."""

    def __init__(self, status: str = "") -> None:
        super().__init__()
        self.status = status

    @property
    def detail(self) -> str:
        """Say which, if it is known."""
        return DETAILS.get(self.status) or super().detail


DETAILS = {
    "captured": "This hold was captured already. GET /transfers?hold_id= shows the transfer; nothing more was moved.",
    "voided": "This hold was voided already: its amount is free. Nothing was moved.",
    "expired": "This hold has expired: its amount is free. Nothing was moved; make a new hold, or a transfer.",
}


class HoldExceeded(Refusal):
    """This is more than the hold keeps. Capture at most its amount, and make a transfer of the rest."""

    field = "amount"


class TokenNotFound(Refusal):
    """The user has no token with this id. GET /tokens lists them, for the operator GET /users/{id}/tokens."""


class Unauthenticated(Refusal):
    """The token is missing, unknown, expired or revoked. Send a valid one: "Authorization: Bearer svp_…"."""


class OperatorOnly(Refusal):
    """Only the operator can make this call. Send the operator's token."""


class ScopeMissing(Refusal):
    """This key lacks the scope that this call needs. Use a key that has it."""

    def __init__(self, scope: str = "") -> None:
        super().__init__()
        self.scope = scope

    @property
    def detail(self) -> str:
        """Name the scope, if it is known."""
        if not self.scope:
            return super().detail
        return f'This key lacks the scope "{self.scope}", which this call needs. Use a key that has it.'


class KeyExceeded(Refusal):
    """A key can issue only keys with scopes that it has itself, and that expire no later than it does."""


class KeyNameTaken(Refusal):
    """Another key has this name. GET /operator/keys shows which; revoke it first, or choose another name."""

    field = "name"


class KeyNotFound(Refusal):
    """There is no key with this id. GET /operator/keys lists them."""


class EventsOff(Refusal):
    """This server stores no events. Set EVENTS=true and restart it; what happened before is not told."""


class EventsPruned(Refusal):
    """Events after this one were pruned. Read what you need anew, then go on from where GET /events begins."""


class EventUnknown(Refusal):
    """No event has this id yet: a saved database was loaded, perhaps. Read what you need anew, and go on from there."""


class WebhookNotFound(Refusal):
    """There is no webhook with this id. GET /webhooks lists them."""


class WebhookEnded(Refusal):
    """This webhook has ended. Create a new one: POST /webhooks."""


class SecretJustMade(Refusal):
    """A new secret was made less than a minute ago, and another would end the one that is in use. Wait a minute."""


class WebhookLimit(Refusal):
    """There are 50 webhooks that have not ended, the most that can be. End one of them first."""


class EventNotFound(Refusal):
    """There is no event with this id. It was pruned, or never was."""


class UserOnly(Refusal):
    """Only a user can make this call. Send a user's token, not the operator's."""


class OperatorDisabled(Refusal):
    """This server has no operator token, so it refuses the operator's calls. Set OPERATOR_TOKEN and restart it."""


class TooManyRequests(Refusal):
    """Your address sent too many registrations or invalid tokens. Try again after the time in Retry-After."""

    def __init__(self, retry_after: int = 60) -> None:
        super().__init__()
        self.retry_after = retry_after
        """In seconds."""


class BatchRefused(Refusal):
    """Nothing was stored, because items were refused. Fix the items listed in errors, or send on_error "continue"."""

    def __init__(self, refused: Sequence[tuple[int, Refusal]] = ()) -> None:
        super().__init__()
        self.refused = refused


class TransactionRefused(BatchRefused):
    """Nothing was moved, because a transfer was refused: errors says which, and why. Fix it, and send all again."""


class Interruption(Refusal):
    """A refusal of a whole transaction, independent of its items."""


class Overloaded(Interruption):
    """Too many calls are waiting. Nothing was done; try again after the time in Retry-After."""


class BatchUnderWay(Interruption):
    """A batch of yours is still being processed. Nothing was done; send this one once that one has been answered."""


class ShuttingDown(Interruption):
    """This server is shutting down. Nothing was done; try again after the time in Retry-After."""


class Conflict(Interruption):
    """The change kept conflicting with other changes. Nothing was done; try again after the time in Retry-After."""


class DatabaseUnavailable(Interruption):
    """The database cannot be reached or is too busy. Nothing was done; try again after the time in Retry-After."""


class Locked(DatabaseUnavailable):
    """Another transaction holds what this call needs. Nothing was done; try again after the time in Retry-After."""


class SchemaBehind(Interruption):
    """The database schema is older than this server needs. The operator must run: alembic upgrade head."""


class SchemaDiffers(Interruption):
    """A table or column is missing, though the database is migrated. The operator runs: python manage.py doctor."""


class OutcomeUnknown(Interruption):
    """It is unknown whether this was stored. Send it again with the same Idempotency-Key; without one, check first."""


class RowsDropped(Exception):
    """The database wrote fewer rows than it was asked to, without an error."""

    def __init__(self, table: str, count: int) -> None:
        super().__init__(
            f"Of {count} rows to write to the table {table}, the database wrote fewer, without an error: a trigger, a "
            "rule or a row security policy on it drops rows. Remove that; Savepoint cannot work with it."
        )
