"""Errors of the engines: what each says of the whole transaction."""

import sqlite3
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import ExceptionContext
from sqlmodel import SQLModel

from refusals import Conflict, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, SchemaBehind

LOST_STATEMENT = ("26000", "42P05", "08P01")
"""No such prepared statement, one of that name already, or parameters that do not fit it."""

# What is remembered with each connection.
COMMITTING = "savepoint_committing"


def remember_committing(committing: bool, connection: Connection) -> None:
    """Note whether a COMMIT is under way: a connection that breaks then does not tell how it ended."""
    connection.info[COMMITTING] = committing


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
    if sqlstate == "25006" or is_lost_statement(context) or is_stale_plan(error):
        # A standby answered where the primary was, or what the connection has prepared is of no use: a new one helps.
        context.is_disconnect = True
    if context.is_disconnect:
        return OutcomeUnknown if committing else Conflict
    if sqlstate == "23502" and is_unknown_column(error.diag.table_name, error.diag.column_name):
        # Not null, and added by hand: this code has no value for it.
        return SchemaBehind
    return postgresql_meaning(sqlstate)


def is_lost_statement(context: ExceptionContext) -> bool:
    """Return whether a prepared statement was not what this connection had prepared."""
    return getattr(context.original_exception, "sqlstate", None) in LOST_STATEMENT


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
    if primary == 10 and committing and code != sqlite3.SQLITE_IOERR_WRITE:  # IOERR
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
