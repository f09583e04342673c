"""Restamping: writing into alembic_version the one revision whose schema a database has."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateTable

from database import create_migration_engine
from migrations.applied import RECORD, VERSIONS, Applied, read_applied
from migrations.diagnosis import Case, Diagnosis
from migrations.doctor import config_for
from migrations.migrating import only_migrator
from migrations.revisions import read_history
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
    """Replace the rows of alembic_version, and record it, in one transaction, while nobody else migrates.

    Everything is looked at again in that transaction. Raises RepairRefused, and CommandError where another migrates.
    """
    began = time.monotonic()
    history = read_history(versions_folder)
    recorded = Case(history, read_applied(url), versions_folder).recorded
    engine = create_migration_engine(url)
    with only_migrator(engine, patience), engine.begin() as connection:
        there = sa.inspect(connection).has_table(VERSIONS.name)
        current = tuple(sorted(connection.scalars(sa.select(VERSIONS)))) if there else ()
        case = Case(history, Applied(list(current), []), versions_folder)
        _, _, exact = SchemaAtHand(case, connection, config_for(versions_folder)).likeness()
        if (current, exact) != (repair.was, repair.becomes):
            raise RepairRefused("The database was changed in the meantime. Nothing was written; run doctor again.")
        MigrationContext.configure(connection)._ensure_version_table()
        connection.execute(sa.delete(VERSIONS))
        connection.execute(sa.insert(VERSIONS), [{"version_num": id} for id in repair.becomes])
        connection.execute(CreateTable(RECORD, if_not_exists=True))
        for id in repair.becomes:
            revision = history.by_id[id]
            connection.execute(
                RECORD.insert().values(
                    action="repair",
                    revision=id,
                    parents=", ".join(revision.parents),
                    # What was applied, where that is known: a file that was edited since must still be noticed.
                    checksum=recorded[id].checksum if id in recorded else revision.checksum,
                    message=f"was {', '.join(repair.was) or 'no revision'}",
                    applied_at=now(),
                    seconds=time.monotonic() - began,
                )
            )
