"""The engines, the sessions on them, and what their errors mean."""

import asyncio
import logging
import os
import random
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import sqlalchemy.exc
from psycopg.errors import ConnectionTimeout, Diagnostic
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.util import await_only
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

import metrics
from db import prepared, sqlite_file, sqlite_thread
from db.statements import RowsDropped
from refusals import Conflict, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, SchemaBehind
from settings import Settings

logger = logging.getLogger("savepoint")

# Below a warning, they log parameters and rows; at no level of theirs or the root's may that reach a log.
for name in ("aiosqlite", "psycopg", "sqlalchemy.engine.Engine"):
    logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.WARNING)

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 5
"""How often a transaction runs before a conflict is the caller's to retry."""

BUSY_TIMEOUT = 0.02
"""Seconds that SQLite itself waits for another process; longer waits are made of several."""

LOCKED_PAUSE = 0.05
"""Seconds between two attempts to write while another process keeps SQLite's lock."""

CONNECT_TIMEOUT = 3
"""Seconds to wait for a server that does not answer, each."""

LOST_STATEMENT = ("26000", "42P05", "08P01")
"""No such prepared statement, one of that name already, or parameters that do not fit it."""

# What is remembered with each connection.
COMMITTING = "savepoint_committing"
UNCONFIRMED = "savepoint_unconfirmed"


class Database:
    """One process's engine, and the sessions on it."""

    def __init__(self, settings: Settings, *, lock_patience: float | None = None) -> None:
        """With `lock_patience`, a statement waits for a PostgreSQL lock for so many seconds only."""
        url = driver_url(settings.database_url, is_async=True)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.limits = time_limits(settings, min(lock_patience or settings.lock_timeout, settings.lock_timeout))
        self.lock_timeout = settings.lock_timeout
        self.deadline = settings.request_timeout
        self.prepares_statements = settings.prepared_statements
        self.has_options = "options" in url.query
        self.is_pooled = False
        arguments = sqlite_arguments(settings) if self.is_sqlite else postgresql_arguments(url, self.limits)
        if not self.is_sqlite:
            arguments["async_creator_fn"] = self.connect_to_postgresql
        self.engine = create_async_engine(
            url,
            connect_args=arguments,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            # The last one used again: what it has prepared and cached is of use.
            pool_use_lifo=True,
            pool_timeout=settings.lock_timeout,
            # Whoever returns a connection has ended its transaction; to make sure costs another call of the driver.
            pool_reset_on_return=None,
            hide_parameters=True,
        )
        prepare_engine(self.engine.sync_engine, self.begin)
        event.listen(self.engine.sync_engine, "commit", require_transaction)
        event.listen(self.engine.sync_engine, "handle_error", self.explain)
        self.file = sqlite_file.SQLiteFile(str(url.database)) if self.is_sqlite else None
        if self.file is not None:
            event.listen(self.engine.sync_engine, "do_connect", self.file.open)
            # After prepare_sqlite, which has SQLite open -wal and -shm.
            event.listen(self.engine.sync_engine, "connect", self.file.opened)
            event.listen(self.engine.sync_engine, "close", self.file.closing)
            event.listen(self.engine.sync_engine, "after_cursor_execute", require_inserted)
        # A single SELECT is a transaction by itself: it needs no BEGIN, and on SQLite no writer's turn.
        self.reader = self.engine.execution_options(no_begin=True)
        # SQLite has one writer at a time. Waiting for it here is fair, and its busy handler is not.
        self.writing = asyncio.Lock()
        # Until when the one whose turn it is waits for another process's transaction, and whether that was in vain.
        self.give_up = 0.0
        self.is_locked = False
        self.ask_again = 0.0

    async def write(
        self, operation: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation that opens its own transaction; run it again where the engine asks for that.

        Raises Conflict after ATTEMPTS, DatabaseUnavailable, SchemaBehind, and OutcomeUnknown where the end of a COMMIT
        was not seen or not confirmed. Raises Locked where a lock is not given back in time; on SQLite that is
        LOCK_TIMEOUT for the turn in this process and for other processes together, and at once while they hold it.
        """

        async def run(until: float) -> T:
            async with self.turn(), connect(self.engine, until, self.file) as connection:
                # Closed with its connection, which rolls back what has not ended: a close of its own costs a task.
                session = AsyncSession(connection, autoflush=False, expire_on_commit=False)
                outcome = await operation(session, *args, **kwargs)
                if connection.info.pop(UNCONFIRMED, False):
                    raise OutcomeUnknown
            return outcome

        return await self.retry(run)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The writer's turn in this process, on SQLite. Raises Locked where it does not come in time."""
        if not self.is_sqlite:
            yield
            return
        give_up = time.monotonic() + self.lock_timeout
        try:
            await asyncio.wait_for(self.writing.acquire(), self.lock_timeout)
        except TimeoutError:
            raise Locked from None
        try:
            if self.is_locked and time.monotonic() < self.ask_again:
                raise Locked
            self.give_up = give_up
            yield
        finally:
            self.writing.release()

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query of one statement. Raises Conflict after ATTEMPTS, DatabaseUnavailable, SchemaBehind."""

        async def run(until: float) -> T:
            async with connect(self.reader, until, self.file) as connection:
                return await query(AsyncSession(connection), *args, **kwargs)

        return await self.retry(run)

    async def retry(self, run: Callable[[float], Awaitable[T]]) -> T:
        """Run again what met a conflict, or a connection that had broken while it was idle; until the deadline."""
        clock = asyncio.get_running_loop().time
        until = clock() + self.deadline
        # On SQLite a conflict is another process, which reads meet only while it recovers or closes the file.
        patience = clock() + self.lock_timeout if self.is_sqlite else 0
        for attempt in count(1):
            try:
                return await run(until)
            except Conflict:
                if clock() >= until or (attempt >= ATTEMPTS and clock() >= patience):
                    raise
                metrics.TRANSACTIONS_RETRIED.inc()
                # Jitter, so that two that collided do not collide again.
                await asyncio.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, ATTEMPTS)))
        raise AssertionError("It counts for ever.")

    async def connect_to_postgresql(
        self, *args: Any, options: str, **kwargs: Any
    ) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """Open a connection, directly or through a pooler, which gives each transaction another backend.

        Nothing that a session keeps can be relied on there: statements are not prepared, and each transaction sets its
        own time limits. Raises psycopg.OperationalError.
        """
        try:
            driver = await psycopg.AsyncConnection.connect(*args, options=options, **kwargs)
        except psycopg.OperationalError as error:
            # PgBouncer and others refuse this start-up parameter; what the operator asked for is not left out.
            if "options" not in str(error) or self.has_options:
                raise
            driver = await psycopg.AsyncConnection.connect(*args, **kwargs)
        # Only what prepared.py prepares on purpose is prepared, never BEGIN, COMMIT or SAVEPOINT: under a pooler that
        # does not keep statements apart, the name of one may be that of another session's statement.
        driver.prepare_threshold = 2**31 if self.prepares_statements else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if await is_pooled(driver):
                    driver.prepare_threshold = None
                    self.note_pooler()
        except TimeoutError:
            await driver.close()
            raise ConnectionTimeout("connected, but the server does not answer") from None
        except BaseException:
            await driver.close()
            raise
        return driver

    def note_pooler(self) -> None:
        """Say once that there is a pooler, and what follows."""
        if not self.is_pooled:
            self.is_pooled = True
            logger.info(
                "A connection pooler is in front of PostgreSQL: statements are not prepared, and each transaction sets "
                "its own time limits. Run alembic and manage.py with the server's own address, not the pooler's."
            )

    def begin(self, connection: Connection) -> None:
        """Begin in the database too, unless a single statement comes; on SQLite as begin_immediate says.

        Raises Conflict where the server says that no transaction has begun.
        """
        if connection.get_execution_options().get("no_begin"):
            return
        driver: Any = connection.connection.driver_connection
        begin = "BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN"
        if not self.is_sqlite and driver.prepare_threshold is None:
            # In one round trip with BEGIN, since the time limits of the session may be another session's.
            begin = "; ".join((begin, *(f"SET LOCAL {name} = {value}" for name, value in self.limits.items())))
        # Else what a transaction before left undone would be committed with this one.
        require_state(connection, TransactionStatus.IDLE)
        while True:
            try:
                await_only(prepared.run(connection, begin))
            except BaseException as error:
                if is_busy(error):
                    self.wait_or_give_up()
                    continue
                prepared.explain(connection, error, begin)
            break
        self.is_locked = False
        require_transaction(connection)

    def wait_or_give_up(self) -> None:
        """Raise Locked once another process has kept SQLite's lock for LOCK_TIMEOUT; from then on, at each attempt.

        So nobody waits behind those who wait in vain; the callers try again until their own time is over.
        """
        now = time.monotonic()
        if self.is_locked or now >= self.give_up:
            self.is_locked, self.ask_again = True, now + LOCKED_PAUSE
            raise Locked

    def explain(self, context: ExceptionContext) -> Interruption | None:
        """Return what an error of the driver means; SQLAlchemy raises what its "handle_error" listeners return."""
        if (
            getattr(context.original_exception, "sqlstate", None) in LOST_STATEMENT
            and not context.is_disconnect
            and context.connection is not None  # Otherwise a pooler has refused to connect, and says why.
            and self.prepares_statements
        ):
            self.prepares_statements = False
            logger.warning(
                "A prepared statement was not what this service had prepared: a connection pooler seems to be in front "
                "of PostgreSQL. Statements are not prepared from now on. Set PREPARED_STATEMENTS=false."
            )
        meaning = meaning_of(context)
        return None if meaning is None else meaning()

    async def close(self) -> None:
        """Close the connections, once nothing runs any more."""
        await self.engine.dispose()
        if self.file is not None:
            self.file.close()


async def is_pooled(driver: psycopg.AsyncConnection[Any]) -> bool:
    """Return whether a pooler is in between: the backend that answers is not the one that the connection was told of.

    Raises psycopg.OperationalError where the pooler does not keep a transaction together (PgBouncer's pool_mode
    statement).
    """
    cursor = await driver.execute("SELECT pg_backend_pid()", prepare=False)
    [(pid,)] = await cursor.fetchall()
    if pid == driver.info.backend_pid:
        return False
    await driver.execute("BEGIN", prepare=False)
    await driver.rollback()
    return True


@asynccontextmanager
async def connect(
    engine: AsyncEngine, until: float, file: sqlite_file.SQLiteFile | None = None
) -> AsyncIterator[AsyncConnection]:
    """A connection from the pool. Raises DatabaseUnavailable where none is free in time, or the file is another one.

    At the time `until` of the event loop's clock it is cut off from a PostgreSQL server that has not answered: every
    caller was told by then that the outcome is unknown, and what hangs must not hold up those who come next.
    """
    if file is not None:
        file.check()
    try:
        connection = await engine.connect()
    except sqlalchemy.exc.TimeoutError as error:
        raise DatabaseUnavailable from error
    # A COMMIT that has ended before says nothing of what comes now.
    connection.info.pop(COMMITTING, None)
    timer = asyncio.get_running_loop().call_at(until, cut_off, connection)
    try:
        yield connection
    finally:
        timer.cancel()
        await connection.close()


def cut_off(connection: AsyncConnection) -> None:
    """End the connection on this side. The server is not asked to cancel, since a COMMIT would then look done."""
    record = connection.sync_connection
    if record is None or record.closed or record.invalidated or record.dialect.name == "sqlite":
        return
    driver: Any = record.connection.driver_connection
    if not driver.closed:
        # A copy of the descriptor, since closing this object would close what psycopg waits for.
        with socket.socket(fileno=os.dup(driver.fileno())) as copy, suppress(OSError):
            copy.shutdown(socket.SHUT_RDWR)


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
        event.listen(engine, "do_connect", sqlite_file.open_private)
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
        event.listen(engine, "do_connect", sqlite_file.open_existing)
        event.listen(engine, "connect", only_read)
        # Not the writer's turn: from its first read on, a deferred transaction sees one state.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    else:
        event.listen(engine, "connect", require_utf8)
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
    # Otherwise it is the database's own, and psycopg reads SQL_ASCII as bytes.
    parsed = parsed.set(drivername="postgresql+psycopg").update_query_dict({"client_encoding": "utf8"})
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


def time_limits(settings: Settings, lock_timeout: float) -> dict[str, int]:
    """PostgreSQL's time limits in milliseconds, by their names."""
    limits = {
        "statement_timeout": settings.statement_timeout,
        "lock_timeout": lock_timeout,
        "idle_in_transaction_session_timeout": settings.request_timeout,
    }
    return {name: round(seconds * 1000) for name, seconds in limits.items()}


def sqlite_arguments(settings: Settings) -> dict[str, Any]:
    """How SQLite's driver connects."""
    return {"timeout": min(BUSY_TIMEOUT, settings.lock_timeout), "async_creator_fn": sqlite_thread.connect}


def postgresql_arguments(url: URL, limits: dict[str, int]) -> dict[str, Any]:
    """How psycopg connects: nothing waits for ever, and a network that was cut is noticed."""
    ours = " ".join(f"-c {name}={value}" for name, value in {**limits, **PLANS}.items())
    return {
        # Transactions begin in Database.begin, and single statements do without.
        "autocommit": True,
        "application_name": "savepoint",
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        # The last one of a name counts, so that the operator's URL overrides.
        "options": f"{ours} {url.query.get('options', '')}".strip(),
    }


def prepare_engine(engine: Engine, begin: Callable[[Connection], None] | None) -> None:
    """Make every transaction whole, and its COMMIT one whose outcome is known; without `begin`, the driver begins."""
    is_sqlite = engine.dialect.name == "sqlite"
    event.listen(engine, "connect", prepare_sqlite if is_sqlite else watch_notices)
    if not is_sqlite:
        event.listen(engine, "connect", require_utf8)
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


class EncodingRefused(psycopg.OperationalError):
    """The database cannot hold every name that users may have."""


def require_utf8(_: Any, record: ConnectionPoolEntry) -> None:
    """Raise EncodingRefused unless PostgreSQL keeps text as UTF-8."""
    connection: Any = record.driver_connection
    encoding = connection.info.parameter_status("server_encoding")
    # None where the server is not PostgreSQL itself.
    if encoding not in (None, "UTF8"):
        raise EncodingRefused(
            f"the database's encoding is {encoding}, and Savepoint needs UTF8. Create another database: CREATE "
            "DATABASE … ENCODING 'UTF8' TEMPLATE template0. To move what is in this one: manage.py save, and load"
        )


def remember_committing(committing: bool, connection: Connection) -> None:
    """Note whether a COMMIT is under way: a connection that breaks then does not tell how it ended."""
    connection.info[COMMITTING] = committing


def require_inserted(
    _: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    """Raise RowsDropped where SQLite inserted nothing; SQLAlchemy takes the id of another row for that of this one."""
    if context.isinsert and cursor.description is None and cursor.rowcount == 0:
        raise RowsDropped(context.compiled.statement.table.name, 1, 0)


def require_transaction(connection: Connection) -> None:
    """Raise Conflict unless the server is in a transaction: what comes would commit piece by piece."""
    require_state(connection, TransactionStatus.INTRANS)


def require_state(connection: Connection, state: TransactionStatus) -> None:
    """Raise Conflict where a server says otherwise; the connection is not used again."""
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        if driver.pgconn.transaction_status != state:
            connection.invalidate()
            raise Conflict


def meaning_of(context: ExceptionContext) -> type[Interruption] | None:
    """What an error says of the whole transaction; None where one statement or value is at fault.

    Codes: sqlite.org/rescode.html, and appendix A of the PostgreSQL manual.
    """
    if not isinstance(context.original_exception, Exception):
        return None  # A cancelled read breaks its connection too, but it is no error to explain.
    if context.connection is None:
        return DatabaseUnavailable
    committing = context.connection.info.get(COMMITTING, False)
    error: Any = context.original_exception
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        if any(words in str(error) for words in ("no such table", "no such column", "has no column named")):
            return SchemaBehind
        return sqlite_meaning(code, committing=committing)
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate == "25006" or sqlstate in LOST_STATEMENT or is_stale_plan(error):
        # A standby answered where the primary was, or what the connection has prepared is of no use: a new one helps.
        context.is_disconnect = True
    if context.is_disconnect:
        return OutcomeUnknown if committing else Conflict
    if sqlstate == "23502" and is_unknown_column(error.diag.table_name, error.diag.column_name):
        # Not null, and added by hand: this code has no value for it.
        return SchemaBehind
    return postgresql_meaning(sqlstate)


def is_unknown_column(table: str, column: str) -> bool:
    """Return whether models.py has the table, and not the column."""
    return table in SQLModel.metadata.tables and column not in SQLModel.metadata.tables[table].c


def is_stale_plan(error: Any) -> bool:
    """Return whether a column has changed its type since the statement was prepared (plancache.c)."""
    diagnostic = getattr(error, "diag", None)
    return diagnostic is not None and diagnostic.source_function == "RevalidateCachedQuery"


def is_busy(error: BaseException) -> bool:
    """Return whether SQLite waited in vain for another process."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def sqlite_meaning(code: int, *, committing: bool) -> type[Interruption] | None:
    """What a result code of SQLite says of the whole transaction."""
    primary = code & 0xFF
    if primary in (5, 6, 15):  # BUSY, LOCKED, PROTOCOL
        return Conflict
    # The mark of a COMMIT is what it writes last, and before it is synced: one that was not written is not there.
    if primary == 10 and committing and code != sqlite3.SQLITE_IOERR_WRITE:
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
