"""Errors of the engines, and what each means for the whole transaction."""

import sqlite3
from typing import Any

from psycopg.pq import PipelineStatus
from sqlalchemy import Connection
from sqlalchemy.engine import ExceptionContext
from sqlmodel import SQLModel

from refusals import Conflict, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, SchemaBehind

LOST_STATEMENT = ("26000", "42P05", "08P01")
"""No such prepared statement, one of that name already, or parameters that do not fit it."""

POSTGRESQL_MEANINGS: dict[str, type[Interruption]] = {
    "40001": Conflict,  # serialization failure
    "40P01": Conflict,  # deadlock
    "40003": OutcomeUnknown,  # statement completion unknown
    "42P01": SchemaBehind,  # undefined table
    "42703": SchemaBehind,  # undefined column
    "55P03": Locked,  # lock not available
    "57014": DatabaseUnavailable,  # time-out
    "53": DatabaseUnavailable,  # insufficient resources
    "58": DatabaseUnavailable,  # system error
}
"""What an SQLSTATE, or all of a class, means for the whole transaction."""

COMMITTING = "savepoint_committing"
"""The key in a connection's `info` that is True while a COMMIT runs."""


def remember_committing(committing: bool, connection: Connection) -> None:
    """Remember if a COMMIT runs: its outcome is unknown if the connection breaks meanwhile."""
    connection.info[COMMITTING] = committing


def meaning_of(context: ExceptionContext) -> type[Interruption] | None:
    """Return what an error means for the whole transaction; None if only one statement or value failed.

    Codes: sqlite.org/rescode.html, and appendix A of the PostgreSQL manual.
    """
    if not isinstance(context.original_exception, Exception):
        return None  # A cancelled read breaks its connection too, but is no error.
    if isinstance(context.original_exception, Interruption):
        return None  # It was translated where it arose, in an event of a statement that SQLAlchemy executes.
    # A connection that broke before has been found out; what fails now is to open another.
    if context.connection is None or context.connection.invalidated:
        return DatabaseUnavailable
    committing = context.connection.info.get(COMMITTING, False)
    error: Any = context.original_exception
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        if any(words in str(error) for words in ("no such table", "no such column", "has no column named")):
            return SchemaBehind
        return sqlite_meaning(code, committing=committing)
    sqlstate = getattr(error, "sqlstate", None) or ""
    diagnostic: Any = getattr(error, "diag", None)
    # A column has changed its type since the statement was prepared (plancache.c).
    is_stale_plan = diagnostic is not None and diagnostic.source_function == "RevalidateCachedQuery"
    pgconn: Any = getattr(context.connection.connection.driver_connection, "pgconn", None)
    is_stuck = pgconn is not None and pgconn.pipeline_status != PipelineStatus.OFF
    if sqlstate == "25006" or sqlstate[:3] == "57P" or is_lost_statement(context) or is_stale_plan or is_stuck:
        # The server is a standby now or ends the connection, its prepared statements are useless, or what was sent
        # together was not answered to the end: a new connection helps.
        context.is_disconnect = True
    if context.is_disconnect:
        return OutcomeUnknown if committing else Conflict
    if sqlstate == "23502":
        table = SQLModel.metadata.tables.get(diagnostic.table_name)
        # A NOT NULL column that was added by hand: this code has no value for it.
        return SchemaBehind if table is not None and diagnostic.column_name not in table.c else None
    if sqlstate == "23505" and str(diagnostic.constraint_name).endswith(("_idempotency_key", "_reference", "_hold_id")):
        # Another transaction has used the key, reference or hold since it was looked up. Run again, this one finds it.
        return Conflict
    return POSTGRESQL_MEANINGS.get(sqlstate) or POSTGRESQL_MEANINGS.get(sqlstate[:2])


def is_lost_statement(context: ExceptionContext) -> bool:
    """Return True if a prepared statement was not the one that this connection had prepared."""
    return getattr(context.original_exception, "sqlstate", None) in LOST_STATEMENT


def is_busy(error: BaseException) -> bool:
    """Return True if another process holds SQLite's lock."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def sqlite_meaning(code: int, *, committing: bool) -> type[Interruption] | None:
    """Return what a result code of SQLite means for the whole transaction."""
    primary = code & 0xFF
    if primary in (5, 6, 15):  # BUSY, LOCKED, PROTOCOL
        return Conflict
    # A COMMIT writes its mark last, then syncs: if the write failed, nothing was committed.
    if primary == 10 and committing and code != sqlite3.SQLITE_IOERR_WRITE:  # IOERR
        return OutcomeUnknown
    if primary in (8, 10, 11, 13, 14, 26):  # READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB
        return DatabaseUnavailable
    return None
