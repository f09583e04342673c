"""Rows for the record of applied revisions: of each step, and of a revision that is stored by half."""

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy.schema import CreateTable

from alembic_savepoint.guards.whole import EndedUnseen, shortened
from alembic_savepoint.history.applied import RECORD, applied_in, now
from alembic_savepoint.history.revisions import History

HALF_DONE = "half-done"
"""The action of a revision that ended its own transaction."""


def write_record(context: MigrationContext, step: MigrationInfo, history: History, seconds: float) -> None:
    """Add a step to the record, which is created if it is missing; with `--sql`, print that."""
    context.execute(CreateTable(RECORD, if_not_exists=True))
    for id in step.up_revision_ids or ("base",):
        revision = history.by_id.get(id)
        context.execute(
            RECORD.insert().values(
                action="stamp" if step.is_stamp else "upgrade" if step.is_upgrade else "downgrade",
                revision=id,
                parents=", ".join(revision.parents) if revision else "",
                checksum=revision.checksum if revision else "",
                message=revision.message if revision else "",
                # Printed SQL is run at another time.
                applied_at=sa.func.current_timestamp() if context.as_sql else now(),
                seconds=0.0 if context.as_sql else seconds,
            )
        )


def record_half_done(connection: sa.Connection, error: EndedUnseen) -> None:
    """Record that a revision is stored by half, so that it is not applied a second time."""
    connection.rollback()
    with connection.begin():
        RECORD.create(connection, checkfirst=True)
        connection.execute(
            RECORD.insert().values(
                action=HALF_DONE,
                revision=error.revision,
                parents="",
                checksum="",
                message=shortened(str(error)),
                applied_at=now(),
                seconds=0.0,
            )
        )


def refuse_half_done(connection: sa.Connection) -> None:
    """Raise CommandError if the last revision is stored by half."""
    record = applied_in(connection).record
    if record and record[-1].action == HALF_DONE:
        raise CommandError(
            f"Revision {record[-1].revision} ended its own transaction on {record[-1].applied_at:%F %T} UTC, so it is "
            "stored by half, and to run it again could change things twice. Nothing was changed. Load a save; or "
            "finish or undo it by hand, then say where the schema is: alembic stamp REVISION"
        )
