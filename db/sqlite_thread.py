"""SQLite in a thread of each connection's own, entered once for each statement.

aiosqlite enters it for the cursor, the statement, its rows and its end: four times.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import aiosqlite


class Connection(aiosqlite.Connection):
    """A connection with cursors that fetch all rows at once, as SQLAlchemy does anyway."""

    def cursor(self) -> "Cursor":  # type: ignore[override]
        """A cursor that has yet to enter the thread."""
        return Cursor(self)

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """Execute one statement; all rows, and how many it changed, if it returns none."""
        result: tuple[Sequence[Any], int] = await self._execute(self.fetch_in_thread, sql, parameters)  # type: ignore[no-untyped-call]
        return result

    def fetch_in_thread(self, sql: str, parameters: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """Execute in this connection's thread."""
        with closing(self._conn.execute(sql, parameters)) as cursor:
            return cursor.fetchall(), cursor.rowcount


class Cursor:
    """The results of a statement, and what SQLAlchemy asks of an asynchronous cursor."""

    description: Any = None
    rowcount = -1
    lastrowid: int | None = None

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rows: Sequence[Any] = ()

    async def __aenter__(self) -> "Cursor":
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> None:
        """Execute one statement with one set of parameters."""
        await self.connection._execute(self.run, sqlite3.Cursor.execute, sql, parameters)  # type: ignore[no-untyped-call]

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> None:
        """Execute one statement with each of these sets of parameters."""
        await self.connection._execute(self.run, sqlite3.Cursor.executemany, sql, parameters)  # type: ignore[no-untyped-call]

    def run(self, execute: Callable[..., Any], sql: str, parameters: Iterable[Any]) -> None:
        """Execute in the connection's thread, and keep what came of it."""
        with closing(self.connection._conn.cursor()) as cursor:
            execute(cursor, sql, parameters)
            self.rows = cursor.fetchall()
            self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid

    async def fetchall(self) -> Sequence[Any]:
        """The rows, which are here already."""
        return self.rows

    async def close(self) -> None:
        """Nothing is left to close."""


def connect(database: str, **options: Any) -> Connection:
    """A connection that is open once it was awaited."""
    connection = Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=1)
    connection._thread.daemon = True
    return connection
