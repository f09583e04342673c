"""The messages about a revision that failed."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError

from alembic_savepoint.guards.whole import shortened
from alembic_savepoint.history.revisions import ASK_DOCTOR
from alembic_savepoint.project import Options


def sql_error(step: str, error: DBAPIError, unchanged: str) -> str:
    """Return two lines: the step, its statement and the server's message; what was not changed, and what to do."""
    statement = f"“{shortened(error.statement)}”: " if error.statement else ""
    line = f"{step}: {statement}{(str(error.orig) or repr(error.orig)).splitlines()[0]}"
    if not contradicts_version(error):
        return f"{line}\n{unchanged} Correct the revision, or what it needs, and run the command again."
    return (
        f"{line}\n{unchanged} The schema is not that of the revisions in alembic_version. {ASK_DOCTOR} If you "
        "know which revision made the schema: alembic stamp REVISION"
    )


def contradicts_version(error: DBAPIError) -> bool:
    """Return whether something to be created existed already, or something to be changed did not."""
    # SQLite has one code for all errors of SQL.
    return getattr(error.orig, "sqlstate", None) in MISMATCHES or SQLITE_MISMATCH.search(str(error.orig)) is not None


MISMATCHES = ("42P07", "42701", "42710", "42P01", "42703", "42704")
"""Duplicate table, column and object; undefined table, column and object."""

SQLITE_MISMATCH = re.compile(r"^(table|index|view|trigger) .* already exists|^duplicate column name|^no such")


def blocked(step: Any, blockers: Sequence[str], settings: Options) -> str:
    """Return the message for locks that were not acquired."""
    return (
        f"{step}: its locks could not be acquired in {settings.migration_timeout:g} seconds, in repeated attempts. "
        f"Blocked by: {'; '.join(blockers) or 'nothing any more'}. This revision changed nothing. Wait for that to "
        "end, or end it (SELECT pg_terminate_backend(…)), then run the same command again."
    )
