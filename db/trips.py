"""Round trips: a statement that returns no rows waits, and is sent with the next one that does, or with COMMIT.

So a transaction reaches PostgreSQL twice: with BEGIN and what it reads, then with what it writes and COMMIT. A trip is
a pipeline there, and on SQLite one entry into the connection's thread.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import aiosqlite
import psycopg
from psycopg.errors import DivisionByZero
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

import tracing
from db.errors import COMMITTING
from db.postgresql import require_transaction
from db.prepared import Prepared
from refusals import RowsDropped

WAITING = "savepoint_waiting"
"""The key in a connection's `info` of the calls that are not sent yet."""

COMMITTED = "savepoint_committed"
"""The key in a connection's `info` that is True after a COMMIT that was sent with what waited."""

BEGIN, COMMIT = "BEGIN", "COMMIT"

PART = 1000
"""Rows that are converted at a time; that takes some milliseconds."""

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """A statement with its parameters as the driver takes them; where it writes, to which table and how many rows."""

    text: str
    parameters: Any = None
    statement: Prepared | None = None
    writes: tuple[str, int] | None = None


class TripFailed(Exception):
    """A call failed, and those after it were not executed; with `is_committing`, a COMMIT among them may have been."""

    def __init__(self, call: Call, error: BaseException, *, is_committing: bool = False) -> None:
        self.call = call
        self.error = error
        self.is_committing = is_committing


def call(statement: Prepared, /, **parameters: Any) -> Call:
    """Return a statement with its parameters, for execute_together."""
    return Call(statement.text, statement.bind(parameters), statement)


async def execute(session: AsyncSession, statement: Prepared, /, **parameters: Any) -> Rows:
    """Execute the statement on the session's connection, without a flush; return its rows."""
    [rows] = await execute_together(session, call(statement, **parameters))
    return rows


async def execute_together(session: AsyncSession, *calls: Call | None) -> list[Rows]:
    """Execute the statements in this order, in one round trip; return the rows of each, and of None no rows."""
    connection = _connection_of(session)
    waiting = connection.info.pop(WAITING, ())
    found = iter(await _run(connection, [*waiting, *filter(None, calls)]))
    for _ in waiting:
        next(found)
    return [next(found) if each else () for each in calls]


async def _run(connection: AsyncConnection, calls: Sequence[Call]) -> list[Rows]:
    assert connection.sync_connection is not None
    driver: Any = connection.sync_connection.connection.driver_connection
    if calls[-1].text == COMMIT and calls[0].text != BEGIN:
        await _require_transaction(connection, driver)
    try:
        found = await run(driver, calls)
    except TripFailed as failed:
        await connection.run_sync(raise_translated, failed)
    if calls[0].text == BEGIN and calls[-1].text != COMMIT:
        await _require_transaction(connection, driver)
    return found


async def _require_transaction(connection: AsyncConnection, driver: psycopg.AsyncConnection[Any]) -> None:
    # Without another greenlet, as long as all is well.
    if driver.pgconn.transaction_status != TransactionStatus.INTRANS:
        await connection.run_sync(require_transaction)


def execute_later(session: AsyncSession, statement: Prepared, table: str, count: int, **parameters: Any) -> None:
    """Execute a statement that writes `count` rows with the next trip. That raises RowsDropped if it writes fewer."""
    bound = statement.bind(parameters)
    wait(_connection_of(session), Call(statement.text, bound, statement, (table, count)))


def wait(connection: AsyncConnection | Connection, *calls: Call) -> None:
    """Send the calls with the next trip."""
    connection.info.setdefault(WAITING, []).extend(calls)


def send_before(connection: Connection, *_: Any) -> None:
    """Send what waits before a statement that SQLAlchemy executes; for its event "before_cursor_execute"."""
    if waiting := connection.info.pop(WAITING, ()):
        adapted: Any = connection.connection.dbapi_connection
        try:
            adapted.run_async(lambda driver: run(driver, waiting))
        except TripFailed as failed:
            raise_translated(connection, failed)
        require_transaction(connection)


async def end(session: AsyncSession, *, commit: bool) -> None:
    """Send what waits; on PostgreSQL, if it is to `commit`, with COMMIT."""
    connection = _connection_of(session)
    if session.new or session.dirty:
        await session.flush()
    waiting = connection.info.get(WAITING, ())
    if all(each.writes is None for each in waiting):
        return
    del connection.info[WAITING]
    if not commit or connection.dialect.name == "sqlite":
        await _run(connection, waiting)
        return
    await _run(connection, [*waiting, Call(COMMIT)])
    connection.info[COMMITTED] = True


def before_commit(connection: Connection) -> None:
    """Send what waits, if end() did not; raise Conflict if the server has no transaction. For the event "commit"."""
    if connection.info.pop(COMMITTED, False):
        return
    if any(each.writes for each in connection.info.get(WAITING, ())):
        try:
            send_before(connection)
        except BaseException:
            # SQLAlchemy does not, if this event fails.
            connection.connection.rollback()
            raise
    elif not connection.info.pop(WAITING, ()):
        require_transaction(connection)


def drop_waiting(connection: Connection, *_: Any) -> None:
    """Forget what was to be written by what is rolled back; for events of SQLAlchemy."""
    # A broken connection would be opened again for its `info`.
    if not connection.invalidated:
        connection.info.pop(WAITING, None)


def _connection_of(session: AsyncSession) -> AsyncConnection:
    assert isinstance(session.bind, AsyncConnection)
    return session.bind


async def run(driver: Any, calls: Sequence[Call]) -> list[Rows]:
    """Execute the calls with the driver; return the rows of each. Raises TripFailed."""
    with tracing.trip(calls):
        if isinstance(driver, aiosqlite.Connection):
            found: Any = await driver.execute_fetchall(SQLiteConnection.TOGETHER, calls)
        else:
            found = await _run_on_postgresql(driver, calls)
    return [await _convert(call.statement, rows) for call, rows in zip(calls, found, strict=True)]


async def _convert(statement: Prepared | None, rows: Any) -> Rows:
    if statement is None or not statement.to_python:
        return rows  # type: ignore[no-any-return]
    converted: list[Any] = []
    for first in range(0, len(rows), PART):
        if first:
            # Other calls go on.
            await asyncio.sleep(0)
        converted += map(statement.read, rows[first : first + PART])
    return converted


async def _run_on_postgresql(driver: psycopg.AsyncConnection[Any], calls: Sequence[Call]) -> list[Rows]:
    cursors: list[psycopg.AsyncCursor[Any]] = []
    may_commit = False
    error: BaseException | None = None
    try:
        if calls[-1].text == COMMIT:
            # Find out if the connection broke since the last trip: if it breaks now, the outcome is unknown. The first
            # reads the server's last message, the second the end.
            driver.pgconn.consume_input()
            driver.pgconn.consume_input()
            may_commit = True
        if len(calls) == 1:
            cursors.append(await _execute(driver, calls[0]))
        else:
            async with driver.pipeline():
                # Not raised through the pipeline's end, which would log what fails because of it.
                try:
                    for each in calls:
                        cursors.append(await _execute(driver, each))  # noqa: PERF401 each that was sent counts
                except psycopg.Error as early:
                    error = early
    except BaseException as late:
        # A cancellation is never hidden by an error.
        error = error if error is not None and isinstance(late, Exception) else late
    if error is None:
        # What writes only counts. Not `description`, which makes an object for each column.
        return [
            await cursor.fetchall() if call.statement and call.statement.has_rows and not call.writes else ()
            for cursor, call in zip(cursors, calls, strict=True)
        ]
    while isinstance(error, psycopg.errors.PipelineAborted) and error.__context__:
        error = error.__context__
    done = sum(each.statusmessage is not None for each in cursors)
    failed = calls[min(done, len(calls) - 1)]
    # An error that the server reports for another statement ended the transaction before COMMIT.
    is_known = isinstance(error, psycopg.Error) and error.sqlstate and failed.text != COMMIT
    raise TripFailed(failed, error, is_committing=may_commit and not is_known)


async def _execute(driver: psycopg.AsyncConnection[Any], call: Call) -> psycopg.AsyncCursor[Any]:
    # Nothing else is ever prepared, above all not BEGIN: see docs/decisions/0002.
    return await driver.execute(call.text, call.parameters, prepare=call.statement is not None)


class SQLiteConnection(sqlite3.Connection):
    """Executes several calls in one entry into the thread that aiosqlite keeps for it."""

    TOGETHER = "-- several calls"

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Execute a statement or, if it is TOGETHER, the calls that are its parameters. These raise TripFailed."""
        if sql is not self.TOGETHER:
            return super().execute(sql, parameters)
        return _Results([self._execute_call(call) for call in parameters])

    def _execute_call(self, call: Call) -> Rows:
        try:
            cursor = super().execute(call.text, call.parameters or ())
            rows = cursor.fetchall()
            if call.writes and cursor.rowcount < call.writes[1]:
                raise RowsDropped(*call.writes)
        except Exception as error:
            raise TripFailed(call, error) from error
        return rows


@dataclass(frozen=True, slots=True)
class _Results:
    rows: list[Rows]

    def fetchall(self) -> list[Rows]:
        return self.rows


def raise_translated(connection: Connection, failed: TripFailed) -> NoReturn:
    """Raise what an error of the driver means, or SQLAlchemy's exception; a broken connection leaves the pool."""
    error, call = failed.error, failed.call
    connection.info[COMMITTING] = failed.is_committing
    if isinstance(error, RowsDropped):
        raise error
    if isinstance(error, DivisionByZero) and call.writes:
        raise RowsDropped(*call.writes) from None
    try:
        raise error
    except BaseException:
        connection._handle_dbapi_exception(error, call.text, None, None, None)
