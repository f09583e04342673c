"""Connections of our own, with the URL of the project's: to migrate, and to read without blocking anybody."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.util import CommandError
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

SUPPORTED = ("sqlite", "postgresql")


def driver_url(url: sa.URL | str) -> sa.URL:
    """Return the URL with a synchronous driver: SQLite's own, or psycopg. Raises CommandError for other engines."""
    parsed = sa.make_url(url)
    backend = parsed.get_backend_name()
    if backend not in SUPPORTED:
        raise CommandError(
            f"The project's database is {backend}. Saves, rehearsals and checks are for SQLite and PostgreSQL only."
        )
    if backend == "sqlite":
        return parsed.set(drivername="sqlite")
    if parsed.get_driver_name() == "asyncpg" and "ssl" in parsed.query:
        # asyncpg's name for libpq's parameter.
        parsed = parsed.difference_update_query(["ssl"]).update_query_dict({"sslmode": str(parsed.query["ssl"])})
    # psycopg reads SQL_ASCII, which may be the database's encoding, as bytes.
    parsed = parsed.set(drivername="postgresql+psycopg").update_query_dict({"client_encoding": "utf8"})
    if "target_session_attrs" in parsed.query:
        return parsed
    # After a failover a standby's address must not be taken for the primary's.
    return parsed.update_query_dict({"target_session_attrs": "read-write"})


def is_sqlite(url: sa.URL | str) -> bool:
    """Return whether the URL is of SQLite."""
    return sa.make_url(url).get_backend_name() == "sqlite"


def sqlite_path(url: sa.URL | str) -> Path:
    """Return the file of a SQLite database."""
    return Path(str(sa.make_url(url).database))


def no_file(url: sa.URL | str) -> str:
    """Return the message that the file of a SQLite database does not exist."""
    return f"There is no file {sqlite_path(url).absolute()}."


def sqlite_uri(path: Path) -> str:
    """Return the URI with which SQLite opens a file that exists, and creates none."""
    return f"{path.absolute().as_uri()}?mode=rw"


LITERAL = "savepoint_literal"
"""The execution option of an engine whose project has a driver that takes % in SQL literally, as psycopg does not."""


def is_literal(url: sa.URL | str) -> bool:
    """Return whether the project's own driver takes % in SQL that has no parameters literally."""
    return sa.make_url(url).get_driver_name() in ("asyncpg", "pg8000")


def double_percent_signs(_: Any, __: Any, sql: str, parameters: Any, context: Any, ___: Any) -> tuple[str, Any]:
    """Return SQL for psycopg that was written for another driver; what SQLAlchemy compiles is for psycopg already."""
    is_written = context is None or context.compiled is None
    return (sql.replace("%", "%%") if is_written and not parameters else sql), parameters


def create_engine(url: sa.URL | str, *, literal: bool = False) -> sa.Engine:
    """Create an engine for migrations: one connection, foreign keys off on SQLite, where DDL is in transactions too.

    Rebuilding a table on SQLite drops the old one; with foreign keys on, that would delete the rows that refer to it.
    With `literal`, SQL is taken as asyncpg takes it, which is so anyway if the URL names it.
    """
    is_file = is_sqlite(url)
    engine = sa.create_engine(
        driver_url(url),
        poolclass=NullPool,
        hide_parameters=True,
        # Seconds to wait for another process that migrates.
        connect_args={"timeout": 60} if is_file else {},
    )
    if is_file:
        sa.event.listen(engine, "connect", leave_transactions_to_us)
        sa.event.listen(engine, "begin", begin_immediate)
    elif literal or is_literal(url):
        sa.event.listen(engine, "before_cursor_execute", double_percent_signs, retval=True)
    return engine


def leave_transactions_to_us(dbapi_connection: Any, _: Any) -> None:
    """Turn the driver's own transactions off: they do not cover DDL."""
    dbapi_connection.isolation_level = None
    dbapi_connection.execute("PRAGMA foreign_keys=OFF")


def begin_immediate(connection: sa.Connection) -> None:
    """Take the write lock at once: a deferred BEGIN fails at its first write if another process wrote in between."""
    options = connection.get_execution_options()
    # Alembic's autocommit_block is for what no transaction allows, such as VACUUM.
    if not options.get("no_begin") and options.get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


LOCK_TIMEOUT = 3
"""Seconds for which commands that only look at a database wait for a lock that somebody else holds."""


class TablesLocked(SQLAlchemyError):
    """A table is locked by another session, such as a migration. Nothing was changed. Run it again when that has ended.

    It is found by: SELECT pid, query FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE mode = 'AccessExclusiveLock'
    """


@contextmanager
def reading(url: sa.URL | str) -> Iterator[sa.Connection]:
    """Yield a read-only connection that sees the database as it is at one instant, and blocks no one.

    Raises LookupError if the SQLite file does not exist, and TablesLocked if it waits too long for one lock.
    """
    is_file = is_sqlite(url)
    if is_file and not sqlite_path(url).exists():
        raise LookupError(no_file(url))
    engine = sa.create_engine(
        driver_url(url),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={} if is_file else {"connect_timeout": 3},
    )
    if is_file:
        sa.event.listen(engine, "do_connect", open_existing)
        sa.event.listen(engine, "connect", make_read_only)
        # A deferred transaction takes no lock, and sees one state from its first read on.
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    else:
        # For the transaction, since behind a pooler a session is not ours.
        limit = f"SET LOCAL lock_timeout = {LOCK_TIMEOUT * 1000}"
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(limit))
        engine = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True, **{LITERAL: is_literal(url)}
        )
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise TablesLocked(" ".join(str(TablesLocked.__doc__).split())) from None
        raise


def open_existing(dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """Have SQLite open the file only if it exists; for SQLAlchemy's event "do_connect"."""
    arguments[0], options["uri"] = sqlite_uri(Path(arguments[0])), True


def make_read_only(dbapi_connection: Any, _: Any) -> None:
    """Refuse all writes on a connection to SQLite, and leave transactions to SQLAlchemy's events."""
    dbapi_connection.isolation_level = None
    dbapi_connection.execute("PRAGMA query_only = ON")
