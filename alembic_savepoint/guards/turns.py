"""Turns of those who migrate a database: one at a time."""

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from alembic.util import CommandError
from filelock import FileLock, Timeout

from alembic_savepoint.guards.whole import without_time_outs

# A number that nothing else is likely to lock: "savepnt" in ASCII.
ADVISORY_LOCK = int.from_bytes(b"savepnt")

PROBES = 32
"""How often a connection is asked for its backend: a few milliseconds."""


@contextmanager
def only_migrator(place: sa.Engine | sa.Connection, patience: float) -> Iterator[sa.Connection | None]:
    """Hold the lock for migrating this database; it ends with the process. On PostgreSQL, yield another connection.

    Given a connection in a transaction, the lock is held until that ends, and no other connection is made. Raises
    CommandError after `patience` seconds, naming its holder, and behind a pooler in transaction mode.
    """
    if place.dialect.name == "sqlite":
        path = Path(f"{place.engine.url.database}-migrating")
        with nullcontext() if is_in_memory(place) else file_lock(path, patience):
            yield None
    elif isinstance(place, sa.Connection):
        take_turn(place, place, patience)
        yield None
    else:
        with place.connect() as connection, place.connect() as observer:
            observer.execution_options(isolation_level="AUTOCOMMIT")
            refuse_pooler(connection, observer)
            # The lock ends with the transaction: not even a pooler that was not noticed leaves it on another's backend.
            without_time_outs(connection, patience)
            take_turn(connection, observer, patience)
            yield observer


def is_in_memory(place: sa.Engine | sa.Connection) -> bool:
    """Return whether a SQLite database is in memory, where no other process finds it."""
    return place.engine.url.database in (None, "", ":memory:")


def take_turn(connection: sa.Connection, observer: sa.Connection, patience: float) -> None:
    """Take the lock until the connection's transaction ends. Raises CommandError after `patience` seconds."""
    deadline = time.monotonic() + patience
    # Without parameters: with them an open portal would keep a snapshot, for which CREATE INDEX CONCURRENTLY would
    # wait for ever.
    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({ADVISORY_LOCK})").scalar():
        if time.monotonic() > deadline:
            raise CommandError(busy(observer.scalar(HOLDER), patience))
        time.sleep(random.uniform(0.05, 0.2))


def refuse_pooler(connection: sa.Connection, other: sa.Connection) -> None:
    """Raise CommandError if a connection changes its backend between transactions, or shares it with another one."""
    backends: dict[sa.Connection, set[int]] = {connection: set(), other: set()}
    # At random: a pooler may take the backend that was used last, or each in turn, also beside others. Numbered:
    # a driver prepares what it sends often, and the next backend does not know that.
    for number, asked in enumerate(random.choices((connection, other), k=PROBES)):
        backends[asked].add(asked.exec_driver_sql(f"SELECT pg_backend_pid() -- {number}").scalar_one())
        asked.rollback()
    if backends[connection] & backends[other] or any(len(seen) > 1 for seen in backends.values()):
        port = other.scalar(sa.text("SELECT current_setting('port')"))
        raise CommandError(
            "This connection goes through a pooler in transaction mode (such as PgBouncer), where neither locks nor "
            "settings stay with one connection. Nothing was changed. Migrate through the server's own host and "
            f"port ({port}), not through the pooler's ({connection.engine.url.port or 'the default'})."
        )


HOLDER = sa.text("""
    SELECT application_name || ', process ' || pid || coalesce(' from ' || host(client_addr), '')
           || ', since ' || to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND datname = current_database() AND pid <> pg_backend_pid()
""")


@contextmanager
def file_lock(path: Path, patience: float) -> Iterator[None]:
    """Lock the file, and write the holder into it, for those who wait."""
    try:
        with FileLock(path, timeout=patience, mode=0o600):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %T} UTC")
            yield
    except Timeout:
        raise CommandError(busy(path.read_text(), patience)) from None


def busy(holder: str | None, patience: float) -> str:
    """Return the message after waiting in vain."""
    return (
        f"Another process migrates this database ({holder or 'it has just ended'}). Waited {patience:g} seconds and "
        "changed nothing. Try again when it has ended; savepoint_migration_timeout is the time to wait."
    )
