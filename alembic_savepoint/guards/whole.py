"""A revision's transaction: without the role's time-outs, and still the same one in the end."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, Self

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError


class NotWhole(CommandError):
    """A revision that would end its transaction, or write past it."""


class EndedUnseen(NotWhole):
    """A revision that has ended its transaction; what it did before may be stored."""

    revision = ""


class Whole:
    """A guard around a revision's function: it may neither end its transaction nor write past it.

    Raises NotWhole before a COMMIT or ROLLBACK that SQLAlchemy sees, and EndedUnseen after any other.
    """

    def __init__(self, context: MigrationContext, step: RevisionStep, lock_timeout: float) -> None:
        """`lock_timeout` is in seconds."""
        assert context.connection is not None
        self.context = context
        self.connection: sa.Connection = context.connection
        self.step = f"{step.name.capitalize()} {step.revision.revision}"
        self.revision: str = step.revision.revision
        self.lock_timeout = lock_timeout
        self.thread = threading.get_ident()
        self.sent: list[str] = []
        self.error: NotWhole | None = None
        self.has_block = self.in_block = False
        """Whether it has run, or runs, a part outside of the transaction: Alembic's autocommit_block."""
        self.autocommit_block: Callable[[], AbstractContextManager[None]] = context.autocommit_block

    def __enter__(self) -> Self:
        """Begin to watch."""
        self.begin()
        # Those of the class, to see the revision's own engines too.
        for name, listener in self.listeners:
            sa.event.listen(sa.Engine, name, listener)
        self.context.autocommit_block = self.block  # type: ignore[method-assign]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End to watch. Raises NotWhole, also if the revision caught it."""
        for name, listener in self.listeners:
            sa.event.remove(sa.Engine, name, listener)
        self.context.autocommit_block = self.autocommit_block  # type: ignore[method-assign, assignment]
        if self.error:
            raise self.error
        # After an error of SQL, the transaction is still there, or the connection is gone.
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, DBAPIError)):
            self.check()

    @property
    def listeners(self) -> list[tuple[str, Callable[..., None]]]:
        """Return the events and their functions."""
        return [
            ("commit", self.before_commit),
            ("rollback", self.before_rollback),
            ("before_cursor_execute", self.before_statement),
        ]

    @property
    def kept(self) -> str:
        """Return what is stored of it if it fails now."""
        if self.has_block:
            return f"{self.step} has an autocommit_block: what it did up to the end of that is stored."
        return f"{self.step} changed nothing."

    def begin(self) -> None:
        """Turn time-outs off, and set the mark that is gone if the transaction ends."""
        without_time_outs(self.connection, self.lock_timeout)
        self.send_past_events(f"SAVEPOINT {MARK}")

    def send_past_events(self, sql: str) -> None:
        """Send a statement that nobody else need know of."""
        cursor = self.connection.connection.cursor()
        try:
            cursor.execute(sql)
        finally:
            cursor.close()

    def check(self) -> None:
        """Raise EndedUnseen if the transaction is another than in the beginning."""
        try:
            self.send_past_events(f"RELEASE SAVEPOINT {MARK}")
        except Exception as error:  # Each driver has its own.
            if getattr(error, "sqlstate", None) == FAILED_ALREADY:
                return
            last = f" It sent {len(self.sent)} statements, the last: “{self.sent[-1]}”." if self.sent else ""
            self.error = EndedUnseen(
                f"{self.step} ended its own transaction, past SQLAlchemy: what it did before that is stored, and "
                f"alembic_version does not tell.{last} {INSTEAD}"
            )
            self.error.revision = self.revision
            raise self.error from None

    @contextmanager
    def block(self) -> Iterator[None]:
        """Replace autocommit_block: without time-outs there too, and with a new mark after it."""
        self.has_block = self.in_block = True
        is_postgresql = self.connection.dialect.name == "postgresql"
        try:
            with self.autocommit_block():
                if is_postgresql:
                    self.send_past_events(NO_TIME_OUTS.replace("true", "false"))
                try:
                    yield
                finally:
                    if is_postgresql:
                        self.send_past_events(USUAL_TIME_OUTS)
        finally:
            self.in_block = False
            if not self.connection.invalidated:
                self.begin()

    def before_commit(self, connection: sa.Connection) -> None:
        """Refuse a COMMIT by the revision."""
        if threading.get_ident() != self.thread or self.in_block:
            return
        if connection is self.connection:
            self.refuse("commits by itself")
        elif self.is_same_database(connection) and connection.exec_driver_sql(HAS_WRITTEN).scalar():
            self.refuse("writes through a second connection, which commits by itself")

    def before_rollback(self, connection: sa.Connection) -> None:
        """Refuse a ROLLBACK by the revision."""
        if connection is self.connection and not self.in_block:
            self.refuse("rolls back by itself")

    def before_statement(self, connection: sa.Connection, _: Any, sql: str, *__: Any) -> None:
        """Refuse a statement that ends the transaction, or is stored past it."""
        if threading.get_ident() != self.thread or self.in_block:
            return
        if connection is self.connection:
            if ENDS.search(QUOTED.sub(" ", sql)):
                self.refuse(f"ends its transaction by itself (“{shortened(sql)}”)")
            self.sent.append(shortened(sql))
        elif WRITES.match(sql) and self.is_same_database(connection) and is_autocommit(connection):
            self.refuse("writes through a second connection, which commits by itself")

    def is_same_database(self, connection: sa.Connection) -> bool:
        """Return whether another connection leads to the same PostgreSQL database; on SQLite it could not write."""
        own, other = self.connection.engine.url, connection.engine.url
        place = (own.host, own.port, own.database, own.query.get("host"))
        return connection.dialect.name == "postgresql" and place == (
            other.host, other.port, other.database, other.query.get("host"),
        )  # fmt: skip

    def refuse(self, what: str) -> NoReturn:
        """Raise NotWhole before it happens."""
        self.error = NotWhole(f"{self.step} {what}. {self.kept} {INSTEAD}")
        raise self.error


def without_time_outs(connection: sa.Connection, lock_timeout: float) -> None:
    """Turn the role's time-outs off until the PostgreSQL transaction ends; waits for locks take so many seconds."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(NO_TIME_OUTS)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(lock_timeout * 1000)}")


def is_autocommit(connection: sa.Connection) -> bool:
    """Return whether each statement on the connection is a transaction of its own."""
    return getattr(connection.connection.dbapi_connection, "autocommit", False) is True


def shortened(sql: str) -> str:
    """Return a statement in one short line."""
    return " ".join(sql.split())[:100]


MARK = "alembic_savepoint_revision"
FAILED_ALREADY = "25P02"
"""In failed SQL transaction: the next statement will say so."""
INSTEAD = (
    "A revision is one transaction, with alembic_version. For what cannot be in one: "
    "with op.get_context().autocommit_block(): …"
)
# Not all versions have all of them.
NO_TIME_OUTS = """
    SELECT set_config(name, '0', true) FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""
USUAL_TIME_OUTS = NO_TIME_OUTS.replace("'0', true", "reset_val, false")
HAS_WRITTEN = "SELECT txid_current_if_assigned() IS NOT NULL"
QUOTED = re.compile(r"\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
"""Texts, bodies of functions, and comments."""
ENDS = re.compile(
    r"(?:^|;)\s*(?:COMMIT|ROLLBACK|ABORT)(?:\s+(?:WORK|TRANSACTION))?\s*(?:;|$)|^\s*END\s*(?:;|$)", re.IGNORECASE
)
WRITES = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE|CREATE|ALTER|DROP|COPY)\b", re.IGNORECASE)
