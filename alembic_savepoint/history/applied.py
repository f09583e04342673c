"""The database's own record of its revisions."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import sqlalchemy as sa

from alembic_savepoint.connections import reading
from alembic_savepoint.history.revisions import History

if TYPE_CHECKING:
    from alembic_savepoint.project import Project


class UTCDateTime(sa.TypeDecorator[datetime]):
    """An instant, in UTC; SQLite stores no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert it to UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Read it as UTC."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


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
"""Alembic's table, unless env.py names another one."""


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


def read_applied(project: "Project") -> Applied:
    """Return what a database holds now; a missing table counts as empty. No migration file is needed or executed.

    Raises LookupError if the SQLite file does not exist, and SQLAlchemyError if the database cannot be read.
    """
    with reading(project.url) as connection:
        return applied_in(connection, project.versions)


def applied_in(connection: sa.Connection, versions: sa.TableClause = VERSIONS) -> Applied:
    """Return the same, read through this connection."""
    tables = sa.inspect(connection)
    stamped = sa.select(versions).order_by(versions.c.version_num)
    has_versions = tables.has_table(versions.name, schema=versions.schema)
    current = [revision_text(each) for each in connection.scalars(stamped)] if has_versions else []
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


def is_known(history: History, applied: Applied) -> bool:
    """Return whether the files have each revision that the database is at."""
    return all(id in history.by_id for id in applied.current)


def applied_revisions(history: History, applied: Applied) -> list[str]:
    """Return the applied revisions that files have, oldest first."""
    current = [id for id in applied.current if id in history.by_id]
    done = {*current, *history.ancestors(*current)}
    return [revision.id for revision in history.in_order() if revision.id in done]


def pending_revisions(history: History, applied: Applied) -> list[str]:
    """Return the revisions that are not applied, oldest first; none where the database may be ahead of the files."""
    if not is_known(history, applied):
        return []
    done = set(applied_revisions(history, applied))
    return [revision.id for revision in history.in_order() if revision.id not in done]


def edited_revisions(history: History, applied: Applied) -> list[str]:
    """Return the applied revisions whose files no longer have the recorded checksum, oldest first."""
    seen, doubled = applied.recorded, history.duplicates
    ids = [id for id in applied_revisions(history, applied) if id in seen and id not in doubled]
    return [id for id in ids if seen[id].checksum != history.by_id[id].checksum]
