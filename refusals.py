"""Everything Savepoint refuses, each in the words that its caller reads."""

from collections.abc import Sequence


class Refusal(Exception):
    """The call was refused."""

    field: str | None = None
    """The field at fault, where there is one."""

    @property
    def detail(self) -> str:
        """What happened and what to do, for the caller: the docstring of the refusal's class."""
        return " ".join((type(self).__doc__ or "").split())


class UsernameTaken(Refusal):
    """This username is taken. Choose another one."""


class IdempotencyKeyReused(Refusal):
    """This Idempotency-Key was already used with other content. Send new content with a new key."""

    field = "idempotency_key"


class UserNotFound(Refusal):
    """There is no user with this id."""


class UserNotActive(Refusal):
    """This user is suspended or closed. The operator can make it active again: PATCH /users/{id}."""


class BalanceNotZero(Refusal):
    """An account of this user still holds money. Transfer it, or ask the operator to pay it out, then try again."""


class AccountExists(Refusal):
    """You have an account in this currency. GET /accounts lists yours."""


class AccountNotFound(Refusal):
    """There is no such account, or it is not yours to use. GET /accounts lists yours."""


class AccountNotActive(Refusal):
    """The user of one of these accounts is suspended or closed: it neither sends nor receives."""


class InsufficientFunds(Refusal):
    """The debit account holds less than this amount. Nothing was moved."""


class BalanceLimit(Refusal):
    """This would take a balance past 9007199254740991, the most that an account can hold. Nothing was moved."""


class SameAccount(Refusal):
    """The debit and the credit account are the same. Name two accounts."""

    def __init__(self, field: str = "credit_account_id") -> None:
        super().__init__()
        self.field = field


class CurrencyMismatch(Refusal):
    """The accounts have different currencies. Name two accounts of one currency."""

    field = "credit_account_id"


class CurrencyUnknown(Refusal):
    """There is no such currency here. GET /currencies lists those that there are."""

    field = "currency"


class TransferNotFound(Refusal):
    """There is no transfer with this id to or from an account of yours."""


class ReceiverOnly(Refusal):
    """Only who received the money, or the operator, can reverse a transfer."""


class OperatorTransfer(Refusal):
    """The operator made this transfer, so only the operator can reverse it."""


class AlreadyReversed(Refusal):
    """This transfer was reversed before. It is reversed once only."""


class ReversalNotReversible(Refusal):
    """This transfer is itself a reversal. Make a new transfer instead."""


class TokenNotFound(Refusal):
    """The user has no token with this id. GET /tokens lists them, for the operator GET /users/{id}/tokens."""


class Unauthenticated(Refusal):
    """The token is missing, unknown, expired or revoked. Send a valid one: "Authorization: Bearer svp_…"."""


class OperatorOnly(Refusal):
    """This call is the operator's. Send the operator's token."""


class UserOnly(Refusal):
    """This call is for a user. Send a user's token, not the operator's."""


class OperatorDisabled(Refusal):
    """No operator token is set up here. Set OPERATOR_TOKEN and restart to allow operator calls."""


class BatchRefused(Refusal):
    """Nothing was stored: items were refused. Mend those that errors names, or send on_error "continue"."""

    def __init__(self, refused: Sequence[tuple[int, Refusal]] = ()) -> None:
        super().__init__()
        self.refused = refused


class Interruption(Refusal):
    """What stops a whole transaction, whatever its items say."""


class Overloaded(Interruption):
    """Too many calls are waiting. Nothing was done; try again after the time in Retry-After."""


class ShuttingDown(Interruption):
    """This server is shutting down. Nothing was done; try again after the time in Retry-After."""


class Conflict(Interruption):
    """Other transactions kept getting in the way. Nothing was done; try again after the time in Retry-After."""


class DatabaseUnavailable(Interruption):
    """The database cannot be reached or is too busy. Nothing was done; try again after the time in Retry-After."""


class Locked(DatabaseUnavailable):
    """Another transaction holds what this call needs. Nothing was done; try again after the time in Retry-After."""


class SchemaBehind(Interruption):
    """The database has not been migrated to what this server needs. The operator runs: alembic upgrade head."""


class OutcomeUnknown(Interruption):
    """The change may have been stored, or not. Send it again if it had an Idempotency-Key; otherwise look first."""
