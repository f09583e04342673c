"""Runs of migrations: one migrator at a time, each revision whole, its losses counted, and recorded."""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from alembic_savepoint.backup import saves
from alembic_savepoint.guards.losses import Losses, may_destroy, refuse_losses
from alembic_savepoint.guards.record import record_half_done, refuse_half_done, write_record
from alembic_savepoint.guards.turns import is_in_memory
from alembic_savepoint.guards.whole import EndedUnseen, Whole, shortened
from alembic_savepoint.history.applied import applied_in, now
from alembic_savepoint.history.revisions import ASK_DOCTOR, History, Revision, code_of
from alembic_savepoint.project import Project

logger = logging.getLogger("alembic.runtime.migration")

RECENT = timedelta(hours=1)
"""The maximum age of a save that was made for a migration."""


# --- what the database and the files say ------------------------------------------------------------------------------


def refuse_unknown(project: Project, history: History, heads: Sequence[str], connection: sa.Connection) -> None:
    """Raise CommandError if the database is at a revision that no file has."""
    unknown = [id for id in heads if id not in history.by_id]
    if unknown:
        record = {event.revision: event for event in applied_in(connection, project.versions).record}
        known = {
            id: f" ({each.message!r}, {each.action} on {each.applied_at:%F %T} UTC)" for id, each in record.items()
        }
        named = ", ".join(f"{id}{known.get(id, '')}" for id in unknown)
        raise CommandError(
            f"The database is at {named}, and no revision file has that id: it was "
            "migrated by newer code or from another branch, or the file was lost. Nothing was changed, and nothing "
            f"should be by hand, least of all alembic_version. {ASK_DOCTOR}"
        )


# --- one run ----------------------------------------------------------------------------------------------------------


class Run:
    """The revisions that one command runs: up, each in its own transaction; down, all in one."""

    def __init__(self, project: Project, history: History, options: dict[str, str], *, is_inner: bool = False) -> None:
        self.project = project
        self.is_inner = is_inner
        """Whether it runs in a transaction of the caller."""
        self.history = history
        self.settings = project.options
        self.accepted = set(options.get("accept-loss", "").split(","))
        self.saved_elsewhere = options.get("saved") == "elsewhere"
        self.planned: list[Any] = []
        self.all_at_once = False
        """Whether Alembic is to be configured with transaction_per_migration=False."""
        self.stored: list[str] = []
        """The steps whose transaction has ended."""
        self.lost: dict[str, int] = {}
        self.guard: Whole | None = None
        self.expected: set[str] = set()
        self.began = 0.0
        self.waiting_since: float | None = None

    def plan(self, context: MigrationContext, heads: tuple[str, ...], find_steps: Callable[..., Any]) -> None:
        """Find the steps; save the data before any change, if one may lose some."""
        connection = context.connection
        assert connection is not None
        if not context.purge:
            refuse_unknown(self.project, self.history, heads, connection)
        try:
            self.planned = list(find_steps(heads, context))
        except CommandError as error:
            raise CommandError(f"{str(error).rstrip('.')}. Nothing was changed. {ASK_DOCTOR}") from None
        moves = [step for step in self.planned if isinstance(step, RevisionStep)]
        if moves:
            refuse_half_done(connection)
        self.all_at_once = self.is_inner or (bool(moves) and not any(step.is_upgrade for step in moves))
        for step in moves:
            step.migration_fn = self.whole(connection, step, is_last=step is moves[-1])
        if self.is_inner:
            return
        # Before others wait for this connection.
        connection.rollback()
        engine = connection.dialect.name
        if engine == "sqlite" and is_in_memory(connection):
            return
        endangering = [step for step in moves if heads and self.endangers(step, engine)]
        if endangering and self.settings.save_before_migrations and not self.saved_elsewhere:
            self.save_before(endangering[0], engine, heads)

    def file_of(self, step: RevisionStep) -> Revision:
        """Return the revision of a step, from its file."""
        return self.history.by_id[step.revision.revision]

    def steps(self, heads: tuple[str, ...], context: MigrationContext) -> Iterator[Any]:
        """Yield the remaining steps; Alembic runs each in a transaction, or all in one."""
        self.lost = {}
        for step in list(self.planned):
            self.guard = None
            self.began = time.monotonic()
            yield step
            self.read_back(context, step)
            if not self.all_at_once:
                self.planned.remove(step)
                self.stored.append(str(step))

    def whole(self, connection: sa.Connection, step: RevisionStep, *, is_last: bool) -> Callable[..., None]:
        """Return the function of this step, with its time-outs and checks."""
        migrate = step.migration_fn
        direction = "upgrade" if step.is_upgrade else "downgrade"

        def refuse(losses: Mapping[str, int]) -> None:
            refuse_losses(losses, self.accepted, direction, self.unchanged())

        @wraps(migrate)
        def run(**options: Any) -> None:
            self.guard = Whole(op.get_context(), step, self.settings.migration_lock_timeout)
            losses = Losses(connection, self.file_of(step), refuse)
            with self.guard, losses.watched():
                migrate(**options)
            if connection.dialect.name == "sqlite":
                check_foreign_keys(connection)
            self.lost |= losses.lost()
            if is_last or not self.all_at_once:
                refuse(self.lost)
                self.lost = {}

        return run

    def unchanged(self) -> str:
        """Return what was not changed, if the current step fails."""
        if self.is_inner:
            return "It ran in a transaction of the caller, which was not committed. Roll that back."
        before = f" Stored before it: {'; '.join(self.stored)}." if self.stored else ""
        if self.guard and (before or self.guard.has_block):
            return self.guard.kept + before
        return f"Nothing was changed.{before}"

    def record(self, ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], **_: Any) -> None:
        """Record a step, in its own transaction."""
        self.waiting_since = None
        self.expected = set(heads)
        write_record(ctx, step, self.history, time.monotonic() - self.began)

    def read_back(self, context: MigrationContext, step: Any) -> None:
        """Raise CommandError if alembic_version does not name the step, after its transaction."""
        connection = context.connection
        assert connection is not None
        is_in_transaction = connection.in_transaction()
        found = set(context.get_current_heads())
        if not is_in_transaction:
            connection.rollback()
        if found != self.expected:
            raise CommandError(
                f"{step} has run, and alembic_version names {', '.join(sorted(found)) or 'no revision'} instead of "
                f"{', '.join(sorted(self.expected)) or 'none'}: the revision, or another process, has changed it. "
                f"Run nothing again before that is clear. {ASK_DOCTOR}"
            )

    def save_before(self, step: RevisionStep, engine: str, heads: Sequence[str]) -> None:
        """Save what the step could lose; in production on PostgreSQL, demand a recent save. Raises CommandError."""
        what = f"{step.name.capitalize()} {step.revision.revision} drops or rebuilds something"
        folder = self.settings.saves_dir
        if engine == "postgresql" and self.settings.require_save:
            recent = [save for save in saves.list_saves(folder) if save.created_at > now() - RECENT]
            if any(set(save.revision) == set(heads) for save in recent):
                return
            raise CommandError(
                f"{what}, and {folder} holds no save of the last hour. Nothing was changed. Take one: "
                "alembic-savepoint save. If copies are kept elsewhere (a snapshot, pg_basebackup): "
                "alembic -x saved=elsewhere …"
            )
        try:
            name = saves.dated(f"before-{step.revision.revision}")
            save = saves.save(self.project, name)
        except saves.SaveError as error:
            raise CommandError(
                f"{what}, and no copy could be taken first. {error} Nothing was changed. To go on without one, set "
                "savepoint_save_before_migrations=false."
            ) from None
        load = self.project.spelling.of(f"alembic-savepoint load {save.name}")
        logger.info("Saved as %s; to restore it: %s", save.name, load)

    def endangers(self, step: RevisionStep, engine: str) -> bool:
        """Return whether the text of the step may lose something, or rebuilds a table."""
        code = code_of(self.file_of(step), "upgrade" if step.is_upgrade else "downgrade")
        return may_destroy(code) or (engine == "sqlite" and "batch_alter_table" in code)

    def until_done(self, attempt: Callable[[], None], connection: sa.Connection, holder: sa.Connection | None) -> None:
        """Run the remaining steps; without a lock, let others pass and try again. Raises CommandError."""
        with blockers_of(connection, holder) as blockers:
            while True:
                try:
                    return attempt()
                except EndedUnseen as error:
                    if not self.is_inner:
                        record_half_done(connection, error)
                    raise
                except DBAPIError as error:
                    if (
                        getattr(error.orig, "sqlstate", None) not in LOCK_ERRORS
                        or self.is_inner
                        or (self.guard and self.guard.has_block)
                    ):
                        raise CommandError(self.sql_error(error)) from None
                    self.waiting_since = self.waiting_since or time.monotonic()
                    if time.monotonic() - self.waiting_since > self.settings.migration_timeout:
                        raise CommandError(self.blocked(blockers)) from None
                    logger.info("%s; trying again", str(error.orig).splitlines()[0])
                # Jitter, so that it does not collide with the same work again.
                time.sleep(random.uniform(0.1, self.settings.migration_lock_timeout))

    def sql_error(self, error: DBAPIError) -> str:
        """Return the message for an error of a statement: that, and below it what was not changed, and what to do."""
        statement = f"“{shortened(error.statement)}”: " if error.statement else ""
        step = self.guard.step if self.guard else str(self.planned[0])
        what = f"{step}: {statement}{(str(error.orig) or repr(error.orig)).splitlines()[0]}\n{self.unchanged()}"
        # SQLite has one code for all errors of SQL.
        if getattr(error.orig, "sqlstate", None) in MISMATCHES or SQLITE_MISMATCH.search(str(error.orig)):
            return (
                f"{what} The schema is not that of the revisions in alembic_version. {ASK_DOCTOR} If you know which "
                "revision made the schema: alembic stamp REVISION"
            )
        return f"{what} Correct the revision, or what it needs, and run the command again."

    def blocked(self, blockers: Sequence[str]) -> str:
        """Return the message for locks that were not acquired."""
        return (
            f"{self.planned[0]}: its locks could not be acquired in {self.settings.migration_timeout:g} seconds, in "
            f"repeated attempts. Blocked by: {'; '.join(blockers) or 'nothing any more'}. This revision changed "
            "nothing. Wait for that to end, or end it (SELECT pg_terminate_backend(…)), then run the same command "
            "again."
        )


MISMATCHES = ("42P07", "42701", "42710", "42P01", "42703", "42704")
"""Duplicate table, column and object; undefined table, column and object."""

SQLITE_MISMATCH = re.compile(r"^(table|index|view|trigger) .* already exists|^duplicate column name|^no such")

LOCK_ERRORS = ("55P03", "40P01")
"""Lock not available, deadlock detected."""

BLOCKERS = sa.text("""
    SELECT 'process ' || pid || ' (' || coalesce(nullif(application_name, ''), 'no name') || ', ' || state || ' since '
           || to_char(state_change AT TIME ZONE 'UTC', 'HH24:MI:SS') || ' UTC): ' || left(query, 200)
    FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids(:waiting))
""")


@contextmanager
def blockers_of(connection: sa.Connection, observer: sa.Connection | None) -> Iterator[list[str]]:
    """Yield the latest blockers of a connection, which another one looks for while it waits."""
    blockers: list[str] = []
    # An asynchronous driver cannot be used in another thread.
    if observer is None or connection.dialect.is_async:
        yield blockers
        return
    waiting = connection.scalar(sa.select(sa.func.pg_backend_pid()))
    connection.rollback()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            if seen := list(observer.scalars(BLOCKERS, {"waiting": waiting})):
                blockers[:] = seen

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield blockers
    finally:
        ended.set()
        watcher.join()


def check_foreign_keys(connection: sa.Connection) -> None:
    """Raise CommandError for rows that refer to nothing; foreign keys were off while tables were rebuilt."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({f"{table} → {parent}" for table, _, parent, _ in broken}))
        raise CommandError(f"{len(broken)} rows would refer to rows that do not exist ({tables}). Nothing was changed.")
