"""The repairs by doctor: write the revision whose schema a database has, and accept an edited file."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateTable

from alembic_savepoint.connections import create_engine
from alembic_savepoint.doctor.diagnosis import Case, Diagnosis
from alembic_savepoint.doctor.schema_faults import SchemaAtHand
from alembic_savepoint.guards.turns import only_migrator
from alembic_savepoint.history.applied import RECORD, applied_in, edited_revisions, now, read_applied
from alembic_savepoint.history.revisions import Revision
from alembic_savepoint.project import Project

NEVER = ("unreadable-file", "duplicate-id", "cycle", "missing-parent", "lost-file", "ahead", "foreign-branch")
"""Kinds whose files have to be fixed or found first: another revision in alembic_version would only hide the error.

Except where the file is known to be gone for good, and one revision has the schema.
"""


class RepairRefused(Exception):
    """The reason why nothing was changed."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The contents of alembic_version, before and after."""

    was: tuple[str, ...]
    becomes: tuple[str, ...]

    def __str__(self) -> str:
        return f"alembic_version: {', '.join(self.becomes)} instead of {', '.join(self.was) or 'no revision'}"


def plan_repair(diagnoses: Sequence[Diagnosis], project: Project) -> Repair:
    """Return what would be written. Raises RepairRefused if that would not help."""
    if first := next((each for each in diagnoses if each.kind in NEVER and not each.restamp), None):
        raise RepairRefused(f"A restamp would not fix this ({first.kind}), only hide it. Follow the steps above.")
    unfit = ("unknown-revision", "unversioned", "wrong-revision")
    wanted = {each.restamp for each in diagnoses if each.restamp or each.kind in unfit}
    if not wanted:
        raise RepairRefused("None of this is fixed by writing another revision into alembic_version.")
    if len(wanted) > 1 or () in wanted:
        raise RepairRefused("Not exactly one revision has this schema, so none can be written.")
    return Repair(tuple(sorted(read_applied(project).current)), wanted.pop())


def restamp(project: Project, repair: Repair) -> None:
    """Replace the rows of alembic_version, and record it.

    Everything is checked again first. Raises RepairRefused, and CommandError while another process migrates.
    """
    began, history = time.monotonic(), project.history
    with turn_to_write(project) as connection:
        applied = applied_in(connection, project.versions)
        case = Case(history, applied, project.root)
        with SchemaAtHand.of(case, connection, project) as schema:
            like = schema.likeness()
        if (tuple(applied.current), like.restamp) != (repair.was, repair.becomes):
            raise RepairRefused("The database was changed in the meantime. Nothing was written; run doctor again.")
        MigrationContext.configure(connection, opts=project.version_options)._ensure_version_table()
        connection.execute(sa.delete(project.versions))
        connection.execute(sa.insert(project.versions), [{"version_num": id} for id in repair.becomes])
        for id in repair.becomes:
            revision = history.by_id[id]
            # The checksum that was applied, if it is known: a file that was edited since must still be noticed.
            checksum = applied.recorded.get(id, revision).checksum
            message, seconds = f"was {', '.join(repair.was) or 'no revision'}", time.monotonic() - began
            record(connection, "repair", revision, checksum=checksum, message=message, seconds=seconds)


def accept(project: Project, id: str) -> None:
    """Record the file of an applied revision as it is now, so that it counts as what was applied.

    Raises RepairRefused if it was not edited, and CommandError while another process migrates.
    """
    history = project.history
    with turn_to_write(project) as connection:
        edited = edited_revisions(history, applied_in(connection, project.versions))
        if id not in edited:
            others = f"those are: {', '.join(edited)}" if edited else "there are none"
            raise RepairRefused(f"{id} is not an applied revision whose file was edited; {others}.")
        revision = history.by_id[id]
        record(connection, "accept", revision, checksum=revision.checksum, message=revision.message)


@contextmanager
def turn_to_write(project: Project) -> Iterator[sa.Connection]:
    """Begin a transaction while no other process migrates. Raises CommandError if one does for too long."""
    # Before the transaction, which env.py's own connection would wait for.
    project.environment  # noqa: B018
    engine = create_engine(project.url)
    with only_migrator(engine, project.options.migration_timeout), engine.begin() as connection:
        yield connection


def record(
    connection: sa.Connection, action: str, revision: Revision, *, checksum: str, message: str, seconds: float = 0.0
) -> None:
    """Add to the record, which is created if it is missing."""
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
