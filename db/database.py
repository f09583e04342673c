"""The database of a process: its connections, and transactions that run whole, and again after a conflict."""

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy.exc
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

import metrics
import tracing
from db import sqlite_file, trips
from db.engines import driver_url, prepare_engine
from db.errors import COMMITTING, is_busy, is_lost_statement, meaning_of
from db.postgresql import UNCONFIRMED, Connector, require_state
from db.turns import ProcessTurns
from refusals import Conflict, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, RowsDropped
from settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

TELLS_EVENTS = "savepoint_tells_events"
"""The key in a session's `info` of the setting EVENTS."""

ATTEMPTS = 5
"""Attempts at a transaction before the conflict is reported to the caller."""

BUSY_TIMEOUT = 0.02
"""Seconds that SQLite itself waits for another process; a longer wait is several of these."""

LOCKED_PAUSE = 0.05
"""Seconds between two attempts to write while another process holds SQLite's lock."""


class Database:
    """One process's engine, and the sessions on it."""

    def __init__(self, settings: Settings, *, lock_patience: float | None = None) -> None:
        """With `lock_patience`, a statement waits for a PostgreSQL lock for so many seconds only."""
        url = driver_url(settings.database_url, is_async=True)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.session_info = {TELLS_EVENTS: settings.events}
        self.lock_timeout = settings.lock_timeout
        self.deadline = settings.request_timeout
        self.postgresql = Connector(url, settings, min(lock_patience or settings.lock_timeout, settings.lock_timeout))
        on_sqlite = {"timeout": min(BUSY_TIMEOUT, settings.lock_timeout), "factory": trips.SQLiteConnection}
        self.engine = create_async_engine(
            url,
            connect_args=on_sqlite if self.is_sqlite else self.postgresql.arguments(),
            pool_size=settings.database_pool_size,
            max_overflow=0,
            # The connection used last has prepared and cached the most.
            pool_use_lifo=True,
            pool_timeout=settings.lock_timeout,
            # Each transaction has ended when its connection is returned; a reset costs another call of the driver.
            pool_reset_on_return=None,
            hide_parameters=True,
        )
        metrics.CONNECTIONS_LIMIT.set(settings.database_pool_size)
        prepare_engine(self.engine.sync_engine, self.begin)
        event.listen(self.engine.sync_engine, "commit", trips.before_commit)
        event.listen(self.engine.sync_engine, "before_cursor_execute", trips.send_before)
        event.listen(self.engine.sync_engine, "rollback", trips.drop_waiting)
        event.listen(self.engine.sync_engine, "rollback_savepoint", trips.drop_waiting)
        tracing.listen(self.engine.sync_engine)
        event.listen(self.engine.sync_engine, "handle_error", self._translate)
        self.file = sqlite_file.SQLiteFile(str(url.database)) if self.is_sqlite else None
        self.process_turns = ProcessTurns(str(url.database)) if self.is_sqlite else None
        if self.file is not None:
            self._watch(self.file)
        # A single SELECT is a transaction by itself: it needs no BEGIN, and on SQLite no write lock.
        self.reader = self.engine.execution_options(no_begin=True)
        # SQLite has one writer at a time. Waiting for it here is fair, and its busy handler is not.
        self.writing = asyncio.Lock()
        # When the current writer stops waiting for another process's lock; if the last wait failed; when to try again.
        self.give_up = 0.0
        self.is_locked = False
        self.ask_again = 0.0

    def _watch(self, file: sqlite_file.SQLiteFile) -> None:
        event.listen(self.engine.sync_engine, "do_connect", file.open)
        # After prepare_sqlite, which makes SQLite open -wal and -shm.
        event.listen(self.engine.sync_engine, "connect", file.opened)
        event.listen(self.engine.sync_engine, "close", file.closing)
        event.listen(self.engine.sync_engine, "after_cursor_execute", require_inserted)

    async def write(
        self, operation: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation that opens its own transaction; run it again after a conflict.

        Raises Conflict after ATTEMPTS, DatabaseUnavailable, SchemaBehind, OutcomeUnknown if the end of a COMMIT was not
        seen or not confirmed, and Locked if a lock is not released in time. On SQLite that is LOCK_TIMEOUT for the
        writers of this process and other processes together; after that, at once while another process holds the lock.
        """

        async def run(until: float) -> T:
            # Other processes last, so that none of them waits for this one's connection.
            async with (
                self.turn(),
                connect(self.engine, until, self.file) as connection,
                self.turn_of_process(),
            ):
                # Not closed, which would cost a task: closing the connection rolls back what has not ended.
                session = AsyncSession(connection, autoflush=False, expire_on_commit=False, info=self.session_info)
                outcome = await operation(session, *args, **kwargs)
                if connection.info.pop(UNCONFIRMED, False):
                    raise OutcomeUnknown
            return outcome

        return await self.retry(run)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the other writers of this process, on SQLite. Raises Locked after LOCK_TIMEOUT."""
        if not self.is_sqlite:
            yield
            return
        give_up = time.monotonic() + self.lock_timeout
        try:
            # Not wait_for, which would start a task for each batch.
            async with asyncio.timeout(self.lock_timeout):
                await self.writing.acquire()
        except TimeoutError:
            raise Locked from None
        try:
            if self.is_locked and time.monotonic() < self.ask_again:
                raise Locked
            self.give_up = give_up
            yield
        finally:
            self.writing.release()

    def turn_of_process(self) -> AbstractAsyncContextManager[None]:
        """Wait for the writers of other processes, on SQLite; after half of LOCK_TIMEOUT, only for SQLite's lock."""
        if self.process_turns is None:
            return nullcontext()
        return self.process_turns.take(min(self.lock_timeout / 2, self.give_up - time.monotonic()))

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query of one statement. Raises Conflict after ATTEMPTS, DatabaseUnavailable, SchemaBehind."""

        async def run(until: float) -> T:
            async with connect(self.reader, until, self.file) as connection:
                return await query(AsyncSession(connection), *args, **kwargs)

        return await self.retry(run)

    async def retry(self, run: Callable[[float], Awaitable[T]]) -> T:
        """Run again after a conflict, or if an idle connection had broken; until the deadline."""
        clock = asyncio.get_running_loop().time
        until = clock() + self.deadline
        # On SQLite a conflict is another process's lock; reads meet one only while it recovers or closes the file.
        patience = clock() + self.lock_timeout if self.is_sqlite else 0
        attempt = 0
        while True:
            attempt += 1
            try:
                return await run(until)
            except Conflict:
                if clock() >= until or (attempt >= ATTEMPTS and clock() >= patience):
                    raise
                metrics.TRANSACTIONS_RETRIED.inc()
                # Jitter, so that two that collided do not collide again.
                await asyncio.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, ATTEMPTS)))

    def begin(self, connection: Connection) -> None:
        """Begin a transaction, unless a single statement follows. PostgreSQL's BEGIN is sent with the first statement.

        Raises Conflict if the server is in a transaction already, and Locked.
        """
        if connection.get_execution_options().get("no_begin"):
            return
        # Otherwise what an earlier transaction left open would be committed with this one.
        require_state(connection, TransactionStatus.IDLE)
        trips.drop_waiting(connection)
        if self.is_sqlite:
            self._begin_immediate(connection)
        else:
            trips.wait(connection, *map(trips.Call, self.postgresql.begin(connection)))

    def _begin_immediate(self, connection: Connection) -> None:
        adapted: Any = connection.connection.dbapi_connection
        while True:
            try:
                adapted.run_async(lambda driver: trips.run(driver, [trips.Call("BEGIN IMMEDIATE")]))
                break
            except trips.TripFailed as failed:
                if not is_busy(failed.error):
                    trips.raise_translated(connection, failed)
                self._check_patience()
        self.is_locked = False

    def _check_patience(self) -> None:
        """Raise Locked once another process has held SQLite's lock for LOCK_TIMEOUT, and then at each attempt.

        So no writer waits behind one that waits in vain; the callers try again until their own time-out.
        """
        now = time.monotonic()
        if self.is_locked or now >= self.give_up:
            self.is_locked, self.ask_again = True, now + LOCKED_PAUSE
            raise Locked

    def _translate(self, context: ExceptionContext) -> Interruption | None:
        """Return the refusal for an error of the driver; SQLAlchemy raises what "handle_error" listeners return."""
        # Without a connection the error is that of a pooler that has refused to connect.
        if is_lost_statement(context) and not context.is_disconnect and context.connection is not None:
            self.postgresql.stop_preparing()
        meaning = meaning_of(context)
        return None if meaning is None else meaning()

    async def close(self) -> None:
        """Close the connections, after the last transaction."""
        await self.engine.dispose()
        if self.file is not None:
            self.file.close()
        if self.process_turns is not None:
            self.process_turns.close()


@asynccontextmanager
async def connect(
    engine: AsyncEngine, until: float, file: sqlite_file.SQLiteFile | None = None
) -> AsyncIterator[AsyncConnection]:
    """A connection from the pool. Raises DatabaseUnavailable if none is free in time, or the file is another one.

    At the time `until` of the event loop's clock it is cut off from a PostgreSQL server that has not answered: every
    caller has its answer by then (outcome unknown), and the next calls need the connection.
    """
    if file is not None:
        file.check()
    try:
        connection = await engine.connect()
    except sqlalchemy.exc.TimeoutError as error:
        raise DatabaseUnavailable from error
    metrics.CONNECTIONS_USED.inc()
    # An earlier COMMIT says nothing about this transaction.
    connection.info.pop(COMMITTING, None)
    connection.info.pop(trips.COMMITTED, None)
    timer = asyncio.get_running_loop().call_at(until, cut_off, connection)
    try:
        yield connection
    finally:
        metrics.CONNECTIONS_USED.dec()
        timer.cancel()
        await connection.close()


def cut_off(connection: AsyncConnection) -> None:
    """Shut the socket down. The server is not asked to cancel, since a cancelled COMMIT would look done."""
    record = connection.sync_connection
    if record is None or record.closed or record.invalidated or record.dialect.name == "sqlite":
        return
    driver: Any = record.connection.driver_connection
    if not driver.closed:
        # A copy of the descriptor, since closing this object would close what psycopg waits for.
        with socket.socket(fileno=os.dup(driver.fileno())) as copy, suppress(OSError):
            copy.shutdown(socket.SHUT_RDWR)


def require_inserted(
    _: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    """Raise RowsDropped if SQLite inserted nothing; SQLAlchemy would take the id of another row for the new one's."""
    if context.isinsert and cursor.description is None and cursor.rowcount == 0:
        raise RowsDropped(context.compiled.statement.table.name, 1)
