"""The effects of each statement on a connection: its time, its rows, its locks, and the tables that it rewrites."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import ExceptionContext

Kind = Literal["revision", "around", "reading"]

BLOCKS = {
    "AccessShareLock": "nobody but migrations",
    "RowShareLock": "nobody but migrations",
    "RowExclusiveLock": "nobody but migrations",
    "ShareUpdateExclusiveLock": "nobody but migrations and VACUUM",
    "ShareLock": "writes",
    "ShareRowExclusiveLock": "writes",
    "ExclusiveLock": "writes",
    "AccessExclusiveLock": "reads and writes",
}
"""The operations that each lock on a table blocks, weakest first (PostgreSQL manual, Explicit Locking)."""
STRENGTH = {mode: strength for strength, mode in enumerate(BLOCKS)}

OWN = ("alembic_version", "applied_revisions")
"""Tables that only migrations use, one at a time."""


@dataclass(slots=True)
class UnsafeStep:
    """A warning: the rule (squawk's name or our own), what it means, and what to do instead."""

    rule: str
    message: str
    help: str = ""


@dataclass(slots=True)
class Lock:
    """A lock on an existing table, held until the transaction of its revision ends."""

    table: str
    mode: str
    milliseconds: float = 0.0

    @property
    def blocks(self) -> str:
        """The operations that it blocks."""
        return BLOCKS[self.mode]

    @property
    def strength(self) -> int:
        """The rank of its mode."""
        return STRENGTH[self.mode]

    @property
    def is_felt(self) -> bool:
        """Return whether it blocks the service."""
        return self.strength >= STRENGTH["ShareLock"]


@dataclass(slots=True)
class Statement:
    """A statement as it was sent, with placeholders for its parameters."""

    sql: str
    kind: Kind
    """Its sender: the revision, or Alembic or Savepoint around it; or "reading", to read the schema."""
    has_parameters: bool
    began: float
    milliseconds: float | None = None
    """None if it failed."""
    rows: int | None = None
    """The number of rows that it inserted, updated or deleted; None for other statements."""
    locks: list[Lock] = field(default_factory=list)
    """On PostgreSQL, the locks that it was the first to take in its transaction."""
    in_transaction: bool = True
    """Otherwise its locks are released before they can be read."""
    unsafe_steps: list[UnsafeStep] = field(default_factory=list)
    error: BaseException | None = None


def strongest(locks: Iterable[Lock]) -> list[Lock]:
    """Return the strongest lock on each table, and of equal ones the longest."""
    found: dict[str, Lock] = {}
    for lock in locks:
        other = found.get(lock.table)
        if other is None or (lock.strength, lock.milliseconds) > (other.strength, other.milliseconds):
            found[lock.table] = lock
    return [found[table] for table in sorted(found)]


class Watch:
    """Observes every statement on a connection, and its effects on tables that existed before."""

    def __init__(self, connection: sa.Connection, before: Callable[[str], None]) -> None:
        """`before` is called with each statement before it runs."""
        self.connection = connection
        self.is_postgresql = connection.dialect.name == "postgresql"
        self.before = before
        self.statements: list[Statement] = []
        self.kind: Kind = "around"
        self.paused = False
        self.overhead = 0.0
        self.held: dict[int, set[str]] = {}
        self.sent: set[str] = set()
        tables = self.look()
        # Others know a table that is renamed meanwhile under its old name.
        self.names = {oid: table for oid, table, _, _ in tables}
        self.files = {oid: file for oid, _, file, _ in tables}
        sa.event.listen(connection, "before_cursor_execute", self.begin)
        sa.event.listen(connection, "after_cursor_execute", self.end)
        sa.event.listen(connection, "commit", self.commit)
        sa.event.listen(connection.engine, "handle_error", self.fail)

    def clock(self) -> float:
        """Return the time in milliseconds, without that of the watch itself."""
        return (time.perf_counter() - self.overhead) * 1000

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Query the database without recording the statements or their time."""
        began, paused, self.paused = time.perf_counter(), self.paused, True
        try:
            yield
        finally:
            self.paused = paused
            if not paused:
                self.overhead += time.perf_counter() - began

    def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        """Query in the same transaction, without SQLAlchemy's events."""
        cursor = self.connection.connection.cursor()
        try:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            cursor.close()

    def begin(self, _: Any, __: Any, sql: str, parameters: Any, ___: Any, ____: bool) -> None:
        """Record a statement that is about to run."""
        if self.paused:
            return
        with self.aside():
            self.before(sql)
            shown = sql.replace("%%", "%") if self.is_postgresql else sql
        kind: Kind = "reading" if READS_THE_SCHEMA.match(shown) else "around" if sql == BEGIN else self.kind
        self.statements.append(Statement(shown.strip(), kind, bool(parameters), self.clock()))

    def end(self, connection: sa.Connection, cursor: Any, *_: Any) -> None:
        """Record the effects of a statement that has run."""
        if self.paused:
            return
        statement = self.statements[-1]
        statement.milliseconds = self.clock() - statement.began
        if cursor.rowcount >= 0 and (
            cursor.description is None or (self.is_postgresql and CHANGES.match(statement.sql))
        ):
            statement.rows = cursor.rowcount
        if self.is_postgresql and statement.kind != "reading":
            statement.in_transaction = not connection.connection.dbapi_connection.autocommit  # type: ignore[union-attr]
            # A repeated statement has its locks already, and a loop over many rows must not be slowed down.
            if statement.sql not in self.sent:
                self.sent.add(statement.sql)
                with self.aside():
                    self.see(statement)

    def fail(self, context: ExceptionContext) -> None:
        """Record the error of a statement."""
        if context.connection is self.connection and not self.paused and context.statement and self.statements:
            self.statements[-1].error = context.original_exception

    def commit(self, _: sa.Connection) -> None:
        """Record the end of a transaction, and of its locks."""
        self.end_locks()
        self.held, self.sent = {}, set()

    def end_locks(self) -> None:
        """Record how long the current locks were held."""
        for statement in self.statements:
            for lock in statement.locks:
                lock.milliseconds = lock.milliseconds or self.clock() - statement.began

    def look(self) -> list[tuple[int, str, int, list[str]]]:
        """Return the tables, each with its file and this connection's locks on it; only on PostgreSQL."""
        return self.execute(TABLES) if self.is_postgresql else []

    def locked(self) -> list[str]:
        """Return the tables that are locked now, so that further locks on them would not be seen."""
        return sorted(
            self.names[oid]
            for oid, table, _, modes in self.look()
            if oid in self.names and any(Lock(table, mode).is_felt for mode in modes)
        )

    def see(self, statement: Statement) -> None:
        """Record new locks, and tables with a new file."""
        for oid, table, file, modes in self.look():
            if oid not in self.names or table in OWN:
                continue
            new = set(modes) - self.held.get(oid, set())
            statement.locks += strongest(Lock(self.names[oid], mode) for mode in new)
            self.held[oid] = set(modes)
            if file != self.files[oid] and not TRUNCATES.match(statement.sql):
                statement.unsafe_steps.append(rewritten(table))
            self.files[oid] = file


def rewritten(table: str) -> UnsafeStep:
    """Return the warning about a table that was rewritten."""
    return UnsafeStep(
        "table-rewrite",
        f"PostgreSQL rewrites all of {table}, which cannot be read or written meanwhile.",
        "Add a column beside the old one and fill it in parts, or do this while the table is not needed.",
    )


def mentions(sql: str, name: str) -> bool:
    """Return whether the text has the name as a whole word."""
    return bool(name) and re.search(rf"(?<!\w){re.escape(name.strip(chr(34)))}(?!\w)", sql, re.IGNORECASE) is not None


CHANGES = re.compile(r"\s*(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
TRUNCATES = re.compile(r"\s*TRUNCATE\b", re.IGNORECASE)
BEGIN = "BEGIN IMMEDIATE"  # db/database.py's own
READS_THE_SCHEMA = re.compile(
    r"\s*(PRAGMA\s+[\w.\"]+\s*\(|SELECT\b.*\b(pg_catalog|information_schema|sqlite_(temp_)?(master|schema))\b)",
    re.IGNORECASE | re.DOTALL,
)
TABLES = """
    SELECT pg_class.oid, pg_class.oid::regclass::text, pg_relation_filenode(pg_class.oid),
           array_remove(array_agg(mode), NULL)
    FROM pg_class LEFT JOIN pg_locks ON locktype = 'relation' AND relation = pg_class.oid AND granted
        AND pid = pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    WHERE relkind IN ('r', 'p', 'm') AND relnamespace NOT IN ('pg_catalog'::regnamespace,
        'information_schema'::regnamespace)
    GROUP BY pg_class.oid
"""
