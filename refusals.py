"""Everything Savepoint refuses, each in the words that its caller reads."""

from collections.abc import Sequence


class Refusal(Exception):
    """The call was refused."""

    @property
    def detail(self) -> str:
        """What happened and what to do, for the caller: the docstring of the refusal's class."""
        return " ".join((type(self).__doc__ or "").split())


class UsernameTaken(Refusal):
    """This username is taken. Choose another one."""


class IdempotencyKeyReused(Refusal):
    """This Idempotency-Key was already used with other content. Send new content with a new key."""


class UserNotFound(Refusal):
    """There is no user with this id."""


class UserNotActive(Refusal):
    """This user is suspended or closed. Ask the operator to make it active again."""


class TokenNotFound(Refusal):
    """You have no token with this id. GET /tokens lists yours."""


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


class SchemaBehind(Interruption):
    """The database has not been migrated to what this server needs. The operator runs: alembic upgrade head."""


class OutcomeUnknown(Interruption):
    """The change may have been stored, or not. Send it again if it had an Idempotency-Key; otherwise look first."""
