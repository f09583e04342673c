"""Helpers of the tests of migrating."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from filelock import FileLock

from alembic_savepoint.guards.turns import ADVISORY_LOCK
from tests.support.service import query

NEW = "ffffffffffff"
"""A revision that a test adds to a copy of the repository."""


ADD_COLUMN = '    op.add_column("users", sa.Column("birthstone", sa.String(length=30), nullable=True))'


def record(url: str) -> list[tuple[Any, ...]]:
    """What the database says was done to it."""
    return query(url, "SELECT action, revision FROM applied_revisions ORDER BY id")


@contextmanager
def somebody_who_migrates(url: str) -> Iterator[str]:
    """Hold the turn; how a command that waits for it must call whoever does."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///") + "-migrating")
        with FileLock(path):
            path.write_text("process 4711 on elsewhere, since noon")
            yield "process 4711 on elsewhere, since noon"
        return
    with psycopg.connect(url, autocommit=True, application_name="another migration") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        yield f"another migration, process {connection.info.backend_pid}"
