"""What doctor writes where it is told to: the revision whose schema a database has, and that an edit was meant."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateTable

from db.engines import create_migration_engine
from migrations.applied import RECORD, VERSIONS, applied_in, read_applied
from migrations.comparison import edited_revisions
from migrations.diagnosis import Case, Diagnosis
from migrations.doctor import config_for
from migrations.migrating import only_migrator
from migrations.revisions import Revision, read_history
from migrations.schema_faults import SchemaAtHand
from models import now

NEVER = ("unreadable-file", "duplicate-id", "cycle", "missing-parent", "lost-file", "ahead", "foreign-branch")
"""Where the files have to be mended or found first, another revision would only hide what is wrong."""


class RepairRefused(Exception):
    """Why nothing was changed."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What alembic_version holds, and what it is to hold."""

    was: tuple[str, ...]
    becomes: tuple[str, ...]

    def __str__(self) -> str:
        return f"alembic_version: {', '.join(self.becomes)} instead of {', '.join(self.was) or 'no revision'}"


def plan_repair(diagnoses: Sequence[Diagnosis], url: str) -> Repair:
    """What would be written. Raises RepairRefused where a restamp is not what helps."""
    if first := next((each for each in diagnoses if each.kind in NEVER), None):
        raise RepairRefused(f"A restamp would not mend this ({first.kind}), only hide it. Do what is told above.")
    wanted = {each.restamp for each in diagnoses if each.kind in ("unknown-revision", "unversioned", "wrong-revision")}
    if not wanted:
        raise RepairRefused("None of this is mended by writing another revision into alembic_version.")
    if len(wanted) > 1 or () in wanted:
        raise RepairRefused("There is not exactly one revision whose schema this is, so none can be written.")
    return Repair(tuple(sorted(read_applied(url).current)), wanted.pop())


def restamp(url: str, repair: Repair, versions_folder: Path, patience: float) -> None:
    """Replace the rows of alembic_version, and record it.

    Everything is looked at again first. Raises RepairRefused, and CommandError where another migrates.
    """
    began, history = time.monotonic(), read_history(versions_folder)
    with turn_to_write(url, patience) as connection:
        applied = applied_in(connection)
        case = Case(history, applied, versions_folder)
        like = SchemaAtHand(case, connection, config_for(versions_folder)).likeness()
        if (tuple(applied.current), like.restamp) != (repair.was, repair.becomes):
            raise RepairRefused("The database was changed in the meantime. Nothing was written; run doctor again.")
        MigrationContext.configure(connection)._ensure_version_table()
        connection.execute(sa.delete(VERSIONS))
        connection.execute(sa.insert(VERSIONS), [{"version_num": id} for id in repair.becomes])
        for id in repair.becomes:
            revision = history.by_id[id]
            # What was applied, where that is known: a file that was edited since must still be noticed.
            checksum = applied.recorded.get(id, revision).checksum
            message, seconds = f"was {', '.join(repair.was) or 'no revision'}", time.monotonic() - began
            record(connection, "repair", revision, checksum=checksum, message=message, seconds=seconds)


def accept(url: str, id: str, versions_folder: Path, patience: float) -> None:
    """Record the file of an applied revision as it is now, so that it counts as what was applied.

    Raises RepairRefused where it is not told to be edited, and CommandError where another migrates.
    """
    history = read_history(versions_folder)
    with turn_to_write(url, patience) as connection:
        edited = edited_revisions(history, applied_in(connection))
        if id not in edited:
            others = f"those are: {', '.join(edited)}" if edited else "there is none"
            raise RepairRefused(f"{id} is no applied revision whose file was edited; {others}.")
        revision = history.by_id[id]
        record(connection, "accept", revision, checksum=revision.checksum, message=revision.message)


@contextmanager
def turn_to_write(url: str, patience: float) -> Iterator[sa.Connection]:
    """One transaction, while nobody else migrates. Raises CommandError where another does for longer than that."""
    engine = create_migration_engine(url)
    with only_migrator(engine, patience), engine.begin() as connection:
        yield connection


def record(
    connection: sa.Connection, action: str, revision: Revision, *, checksum: str, message: str, seconds: float = 0.0
) -> None:
    """Add to the record, which is made where it is missing."""
    connection.execute(CreateTable(RECORD, if_not_exists=True))
    connection.execute(
        RECORD.insert().values(
            action=action,
            revision=revision.id,
            parents=", ".join(revision.parents),
            checksum=checksum,
            message=message,
            applied_at=now(),
            seconds=seconds,
        )
    )
