"""The engines, the sessions on them, and what their errors mean."""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy.exc
from psycopg.errors import Diagnostic
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.util import await_only
from sqlmodel.ext.asyncio.session import AsyncSession

import metrics
import prepared
import sqlite_thread
from refusals import Conflict, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, SchemaBehind
from settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 5
"""How often a transaction runs before a conflict is the caller's to retry."""

# What is remembered with each connection.
COMMITTING = "savepoint_committing"
UNCONFIRMED = "savepoint_unconfirmed"


class Database:
    """One process's engine, and the sessions on it."""

    def __init__(self, settings: Settings) -> None:
        url = driver_url(settings.database_url, is_async=True)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.engine = create_async_engine(
            url,
            connect_args=connect_args(url, settings),
            pool_size=settings.database_pool_size,
            max_overflow=0,
            # The last one used again: what it has prepared and cached is of use.
            pool_use_lifo=True,
            pool_timeout=settings.lock_timeout,
            # Whoever returns a connection has ended its transaction; to make sure costs another call of the driver.
            pool_reset_on_return=None,
            hide_parameters=True,
        )
        prepare_engine(self.engine.sync_engine, begin_async)
        event.listen(self.engine.sync_engine, "handle_error", explain)
        # A single SELECT is a transaction by itself: it needs no BEGIN, and on SQLite no writer's turn.
        self.reader = self.engine.execution_options(no_begin=True)
        # SQLite has one writer at a time. Waiting for it here is fair, and its busy handler is not.
        self.turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.is_sqlite else nullcontext()

    async def write(
        self, operation: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation that opens its own transaction; run it again where the engine asks for that.

        Raises Conflict after ATTEMPTS, DatabaseUnavailable, SchemaBehind, and OutcomeUnknown where the end of a COMMIT
        was not seen or not confirmed.
        """

        async def run() -> T:
            async with self.turn, connect(self.engine) as connection:
                # Closed with its connection, which rolls back what has not ended: a close of its own costs a task.
                session = AsyncSession(connection, autoflush=False, expire_on_commit=False)
                outcome = await operation(session, *args, **kwargs)
                if connection.info.pop(UNCONFIRMED, False):
                    raise OutcomeUnknown
            return outcome

        return await retrying(run)

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query of one statement. Raises Conflict after ATTEMPTS, DatabaseUnavailable, SchemaBehind."""

        async def run() -> T:
            async with connect(self.reader) as connection:
                return await query(AsyncSession(connection), *args, **kwargs)

        return await retrying(run)

    async def close(self) -> None:
        """Close the connections, once nothing runs any more."""
        await self.engine.dispose()


async def retrying(run: Callable[[], Awaitable[T]]) -> T:
    """Run again what met a conflict, or a connection that had broken while it was idle."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await run()
        except Conflict:
            metrics.TRANSACTIONS_RETRIED.inc()
            # Jitter, so that two that collided do not collide again.
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))
    return await run()


@asynccontextmanager
async def connect(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection from the pool. Raises DatabaseUnavailable where none is free in time."""
    try:
        connection = await engine.connect()
    except sqlalchemy.exc.TimeoutError as error:
        raise DatabaseUnavailable from error
    try:
        yield connection
    finally:
        await connection.close()


def create_migration_engine(url: str) -> Engine:
    """An engine for Alembic: one synchronous connection, without time limits, foreign keys off on SQLite.

    Rebuilding a table on SQLite drops the old one, and with foreign keys on that would delete what refers to it.
    """
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    engine = create_engine(
        driver_url(url, is_async=False),
        poolclass=NullPool,
        hide_parameters=True,
        # Seconds to wait for another process that migrates.
        connect_args={"timeout": 60} if is_sqlite else {},
    )
    prepare_engine(engine, begin_immediate if is_sqlite else None)
    if is_sqlite:
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=OFF"))
    return engine


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """A connection that sees a database as it is at one instant, and cannot change it; nobody waits for it."""
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    engine = create_engine(
        driver_url(url, is_async=False),
        poolclass=NullPool,
        hide_parameters=True,
        # Nobody who only asks waits long for a server that does not answer.
        connect_args={} if is_sqlite else {"connect_timeout": 3},
    )
    if is_sqlite:
        event.listen(engine, "connect", only_read)
        # Not the writer's turn: from its first read on, a deferred transaction sees one state.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    else:
        engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with engine.connect() as connection:
        yield connection


def only_read(dbapi_connection: Any, _: ConnectionPoolEntry) -> None:
    """Without the driver's own transactions; SQLite itself refuses whatever would write."""
    dbapi_connection.isolation_level = None
    dbapi_connection.execute("PRAGMA query_only = ON")


def driver_url(url: str, *, is_async: bool) -> URL:
    """The URL with the driver that Savepoint uses: SQLite's own (through aiosqlite), or psycopg 3 for both kinds."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return parsed.set(drivername="sqlite+aiosqlite" if is_async else "sqlite")
    parsed = parsed.set(drivername="postgresql+psycopg")
    if "target_session_attrs" in parsed.query:
        return parsed
    # After a failover a standby's address must not be taken for the primary's.
    return parsed.update_query_dict({"target_session_attrs": "read-write"})


PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
}
"""How PostgreSQL plans: each statement once, and always by index.

Statements are constant, find their rows by key, and have arrays of any length for parameters. Not knowing the length,
the planner would read a table of 10,000 accounts from end to end rather than look up two of them.
"""


def connect_args(url: URL, settings: Settings) -> dict[str, Any]:
    """The driver's options: nothing waits for ever, and a network that was cut is noticed."""
    if url.get_backend_name() == "sqlite":
        # Each attempt waits for its part of it.
        return {"timeout": settings.lock_timeout / ATTEMPTS, "async_creator_fn": sqlite_thread.connect}
    limits = {
        "statement_timeout": settings.statement_timeout,
        "lock_timeout": settings.lock_timeout,
        "idle_in_transaction_session_timeout": settings.request_timeout,
    }
    milliseconds = {name: round(seconds * 1000) for name, seconds in limits.items()}
    return {
        # Transactions begin in begin_async, and single statements do without.
        "autocommit": True,
        "application_name": "savepoint",
        "connect_timeout": 3,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "options": " ".join(f"-c {name}={value}" for name, value in {**milliseconds, **PLANS}.items()),
    }


def prepare_engine(engine: Engine, begin: Callable[[Connection], None] | None) -> None:
    """Make every transaction whole, and its COMMIT one whose outcome is known; without `begin`, the driver begins."""
    event.listen(engine, "connect", prepare_sqlite if engine.dialect.name == "sqlite" else watch_notices)
    # Before BEGIN, which may be what finds that the connection broke.
    event.listen(engine, "begin", partial(remember_committing, False))
    if begin is not None:
        event.listen(engine, "begin", begin)
    event.listen(engine, "commit", partial(remember_committing, True))


def prepare_sqlite(dbapi_connection: Any, _: ConnectionPoolEntry) -> None:
    """Durable, with foreign keys, and without the driver's own transactions, which do not cover DDL."""
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # KiB: enough for the pages that a batch changes.
    cursor.execute("PRAGMA cache_size=-4000")
    cursor.close()


def switch_to_wal(cursor: Any) -> None:
    """Set WAL mode; on a new file SQLite refuses that at once while another process writes, whatever the time-out."""
    deadline = time.monotonic() + 5
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if sqlite_meaning(error.sqlite_errorcode, committing=False) != Conflict or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def begin_async(connection: Connection) -> None:
    """Begin in the database too, unless a single statement comes; on SQLite as begin_immediate says."""
    if connection.get_execution_options().get("no_begin"):
        return
    begin = "BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN"
    try:
        await_only(prepared.run(connection, begin))
    except BaseException as error:
        prepared.explain(connection, error, begin)


def begin_immediate(connection: Connection) -> None:
    """Take the writer's turn at once: a deferred BEGIN fails at its first write if another wrote in between."""
    if not connection.get_execution_options().get("no_begin"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def watch_notices(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    """Remember PostgreSQL's warning that it stopped waiting for the synchronous standby (syncrep.c)."""

    def note(diagnostic: Diagnostic) -> None:
        # By function, since the text depends on the server's language.
        if diagnostic.source_function == "SyncRepWaitForLSN":
            record.info[UNCONFIRMED] = True

    dbapi_connection.add_notice_handler(note)


def remember_committing(committing: bool, connection: Connection) -> None:
    """Note whether a COMMIT is under way: a connection that breaks then does not tell how it ended."""
    connection.info[COMMITTING] = committing


def explain(context: ExceptionContext) -> Interruption | None:
    """Tell what an error of the driver means; SQLAlchemy raises what its "handle_error" listeners answer."""
    meaning = meaning_of(context)
    return None if meaning is None else meaning()


def meaning_of(context: ExceptionContext) -> type[Interruption] | None:
    """What an error says of the whole transaction; None where one statement or value is at fault.

    Codes: sqlite.org/rescode.html, and appendix A of the PostgreSQL manual.
    """
    if not isinstance(context.original_exception, Exception):
        return None  # A cancelled read breaks its connection too, but it is no error to explain.
    if context.connection is None:
        return DatabaseUnavailable
    committing = context.connection.info.get(COMMITTING, False)
    error = context.original_exception
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        if any(words in str(error) for words in ("no such table", "no such column", "has no column named")):
            return SchemaBehind
        return sqlite_meaning(code, committing=committing)
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate == "25006":
        # A standby answered where the primary was; the next connection finds the primary.
        context.is_disconnect = True
        return Conflict
    if context.is_disconnect:
        return OutcomeUnknown if committing else Conflict
    return postgresql_meaning(sqlstate)


def sqlite_meaning(code: int, *, committing: bool) -> type[Interruption] | None:
    """What a result code of SQLite says of the whole transaction."""
    primary = code & 0xFF
    if primary in (5, 6, 15):  # BUSY, LOCKED, PROTOCOL
        return Conflict
    if primary == 10 and committing:  # IOERR
        return OutcomeUnknown
    if primary in (8, 10, 11, 13, 14, 26):  # READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB
        return DatabaseUnavailable
    return None


def postgresql_meaning(sqlstate: str) -> type[Interruption] | None:
    """What an SQLSTATE says of the whole transaction."""
    if sqlstate in ("40001", "40P01"):  # serialization failure, deadlock
        return Conflict
    if sqlstate == "40003":  # statement completion unknown
        return OutcomeUnknown
    if sqlstate in ("42P01", "42703"):  # undefined table, undefined column
        return SchemaBehind
    if sqlstate == "55P03":  # lock not available
        return Locked
    if sqlstate == "57014" or sqlstate[:2] in ("53", "58"):  # time-out; out of resources, input or output
        return DatabaseUnavailable
    return None
