"""Engines: their drivers, and events that make every transaction whole."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from db import sqlite_file
from db.errors import remember_committing, sqlite_meaning
from db.postgresql import require_utf8, watch_notices
from refusals import Conflict

# Below a warning, they log parameters and rows, which no log level may let into a log.
for name in ("aiosqlite", "psycopg", "sqlalchemy.engine.Engine"):
    logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.WARNING)

# libpq sends them with each connection, as client_encoding below, and poolers keep them.
# A role or database may have others: psycopg reads instants in no other style, and in some zones not the year 9999.
os.environ |= {"PGDATESTYLE": "ISO", "PGTZ": "UTC"}


def driver_url(url: str, *, is_async: bool) -> URL:
    """The URL with the driver that Savepoint uses: SQLite's own (through aiosqlite), or psycopg 3 for both kinds."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return parsed.set(drivername="sqlite+aiosqlite" if is_async else "sqlite")
    # The default is the database's own encoding, and psycopg reads SQL_ASCII as bytes.
    parsed = parsed.set(drivername="postgresql+psycopg").update_query_dict({"client_encoding": "utf8"})
    if "target_session_attrs" in parsed.query:
        return parsed
    # After a failover a standby's address must not be taken for the primary's.
    return parsed.update_query_dict({"target_session_attrs": "read-write"})


def create_migration_engine(url: str) -> Engine:
    """An engine for Alembic: one synchronous connection, without time limits, foreign keys off on SQLite.

    Rebuilding a table on SQLite drops the old one; with foreign keys on, that would delete the rows that refer to it.
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
    """A read-only connection that sees the database as it is at one instant, and blocks no one."""
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    engine = create_engine(
        driver_url(url, is_async=False),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={} if is_sqlite else {"connect_timeout": 3},
    )
    if is_sqlite:
        event.listen(engine, "do_connect", sqlite_file.open_existing)
        event.listen(engine, "connect", _make_read_only)
        # A deferred transaction takes no lock, and sees one state from its first read on.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    else:
        event.listen(engine, "connect", require_utf8)
        engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with engine.connect() as connection:
        yield connection


def _make_read_only(dbapi_connection: Any, _: ConnectionPoolEntry) -> None:
    dbapi_connection.isolation_level = None
    dbapi_connection.execute("PRAGMA query_only = ON")


def prepare_engine(engine: Engine, begin: Callable[[Connection], None] | None) -> None:
    """Listen to the events that make every transaction whole; without `begin`, the driver begins transactions."""
    is_sqlite = engine.dialect.name == "sqlite"
    event.listen(engine, "connect", prepare_sqlite if is_sqlite else watch_notices)
    if not is_sqlite:
        event.listen(engine, "connect", require_utf8)
    # Before BEGIN, which may be the first statement to find the connection broken.
    event.listen(engine, "begin", partial(remember_committing, False))
    if begin is not None:
        event.listen(engine, "begin", begin)
    event.listen(engine, "commit", partial(remember_committing, True))


def prepare_sqlite(dbapi_connection: Any, _: ConnectionPoolEntry) -> None:
    """Make commits durable, check foreign keys, and turn the driver's own transactions off: they do not cover DDL."""
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # KiB: enough for the pages that a batch changes.
    cursor.execute("PRAGMA cache_size=-4000")
    cursor.close()


def switch_to_wal(cursor: Any) -> None:
    """Set WAL mode; on a new file SQLite refuses that while another process writes, without waiting."""
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
    """Take the write lock at once: a deferred BEGIN fails at its first write if another process wrote in between."""
    options = connection.get_execution_options()
    # Alembic's autocommit_block is for what no transaction allows, such as VACUUM.
    if not options.get("no_begin") and options.get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
