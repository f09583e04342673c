"""The database's own record of its revisions."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import UTCDateTime

from db.engines import LOCK_TIMEOUT, reading

RECORD = sa.Table(
    "applied_revisions",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    # "upgrade", "downgrade", "stamp", "repair" or "accept"
    sa.Column("action", sa.String(9), nullable=False),
    sa.Column("revision", sa.String(32), nullable=False),
    sa.Column("parents", sa.String(), nullable=False),
    sa.Column("checksum", sa.String(64), nullable=False),
    sa.Column("message", sa.String(), nullable=False),
    sa.Column("applied_at", UTCDateTime(), nullable=False),
    sa.Column("seconds", sa.Float(), nullable=False),
)
"""All changes of the schema, in order; rows are only added. Like alembic_version, it belongs to no revision."""
VERSIONS = sa.table("alembic_version", sa.column("version_num", sa.String))


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the record: an action ("upgrade", "accept" …) on a revision, and its time."""

    id: int
    action: str
    revision: str
    parents: tuple[str, ...]
    checksum: str
    message: str
    applied_at: datetime
    seconds: float


@dataclass(frozen=True)
class Applied:
    """The revisions in alembic_version, for which files may be missing, and the record, oldest first."""

    current: list[str]
    record: list[Event]

    @cached_property
    def recorded(self) -> dict[str, Event]:
        """The newest event of each revision that has its file's checksum."""
        return {event.revision: event for event in self.record if event.checksum}


def read_applied(url: str) -> Applied:
    """Return what a database holds now; a missing table counts as empty. No migration file is needed or executed.

    Raises LookupError if the SQLite file does not exist, and SQLAlchemyError if the database cannot be read.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        raise LookupError(f"There is no file {parsed.database}.")
    with reading(url, LOCK_TIMEOUT) as connection:
        return applied_in(connection)


def applied_in(connection: sa.Connection) -> Applied:
    """Return the same, read through this connection."""
    tables = sa.inspect(connection)
    versions = sa.select(VERSIONS).order_by(VERSIONS.c.version_num)
    current = [revision_text(each) for each in connection.scalars(versions)] if tables.has_table(VERSIONS.name) else []
    events = sa.select(RECORD).order_by(RECORD.c.id)
    rows = connection.execute(events).all() if tables.has_table(RECORD.name) else []
    return Applied(current, [as_event(row) for row in rows])


def revision_text(value: object) -> str:
    """Return a value of alembic_version as text; SQLite stores values of any type in any column."""
    if value is None:
        return "NULL"
    return f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)


def as_event(row: sa.Row[tuple[object, ...]]) -> Event:
    """Return a row of the record, with its parents as a tuple."""
    values = dict(row._mapping)
    return Event(**{**values, "parents": tuple(filter(None, values["parents"].split(", ")))})
