"""Runs of migrations: one migrator at a time, each revision whole, its losses counted, and recorded."""

import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep
from alembic.util import CommandError
from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.schema import CreateTable

from alembic_savepoint.backup import saves
from alembic_savepoint.guards.losses import count_losses, refuse_losses
from alembic_savepoint.history.applied import RECORD, applied_in, now
from alembic_savepoint.history.effects import drops, rebuilds
from alembic_savepoint.history.revisions import ASK_DOCTOR, Direction, History, Revision
from alembic_savepoint.project import Options, Project

logger = logging.getLogger("alembic.runtime.migration")

# A number that nothing else is likely to lock: "savepnt" in ASCII.
ADVISORY_LOCK = int.from_bytes(b"savepnt")

RECENT = timedelta(hours=1)
"""The maximum age of a save that was made for a migration."""


# --- one at a time ----------------------------------------------------------------------------------------------------


@contextmanager
def only_migrator(engine: sa.Engine, patience: float) -> Iterator[sa.Connection | None]:
    """Hold the lock for migrating this database; it ends with the process. On PostgreSQL, yield its connection.

    Raises CommandError after `patience` seconds, naming its holder.
    """
    if engine.dialect.name == "sqlite":
        with file_lock(Path(f"{engine.url.database}-migrating"), patience):
            yield None
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        deadline = time.monotonic() + patience
        while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(ADVISORY_LOCK))):
            if time.monotonic() > deadline:
                raise CommandError(busy(connection.scalar(HOLDER), patience))
            time.sleep(random.uniform(0.05, 0.2))
        yield connection


HOLDER = sa.text("""
    SELECT application_name || ', process ' || pid || coalesce(' from ' || host(client_addr), '')
           || ', since ' || to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND datname = current_database() AND pid <> pg_backend_pid()
""")


@contextmanager
def file_lock(path: Path, patience: float) -> Iterator[None]:
    """Lock the file, and write the holder into it, for those who wait."""
    try:
        with FileLock(path, timeout=patience, mode=0o600):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %T} UTC")
            yield
    except Timeout:
        raise CommandError(busy(path.read_text(), patience)) from None


def busy(holder: str | None, patience: float) -> str:
    """Return the message after waiting in vain."""
    return (
        f"Another process migrates this database ({holder or 'it has just ended'}). Waited {patience:g} seconds and "
        "changed nothing. Try again when it has ended; savepoint_migration_timeout is the time to wait."
    )


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


def contradicts_version(error: DBAPIError) -> bool:
    """Return whether something to be created existed already, or something to be changed did not."""
    # SQLite has one code for all errors of SQL.
    return getattr(error.orig, "sqlstate", None) in MISMATCHES or SQLITE_MISMATCH.search(str(error.orig)) is not None


MISMATCHES = ("42P07", "42701", "42710", "42P01", "42703", "42704")
"""Duplicate table, column and object; undefined table, column and object."""

SQLITE_MISMATCH = re.compile(r"^(table|index|view|trigger) .* already exists|^duplicate column name|^no such")


def other_schema(step: RevisionStep, heads: Sequence[str], error: DBAPIError) -> str:
    """Return the message for a schema that is not that of the revision in alembic_version."""
    at = " and ".join(heads) or "no revision"
    return (
        f"{step.name.capitalize()} {step.revision.revision}: {str(error.orig).splitlines()[0]}. alembic_version names "
        f"{at}, and the schema is another. This revision changed nothing. {ASK_DOCTOR} If you know which revision "
        "made the schema: alembic stamp REVISION"
    )


# --- one run ----------------------------------------------------------------------------------------------------------


class Run:
    """The revisions that one command runs, up or down, each in its own transaction."""

    def __init__(self, project: Project, history: History, options: dict[str, str]) -> None:
        self.project = project
        self.history = history
        self.settings = project.options
        self.accepted = set(options.get("accept-loss", "").split(","))
        self.saved_elsewhere = options.get("saved") == "elsewhere"
        self.planned: list[Any] = []
        self.began = 0.0
        self.waiting_since: float | None = None

    def plan(self, context: MigrationContext, heads: tuple[str, ...], find_steps: Callable[..., Any]) -> None:
        """Find the steps; before any change, refuse to lose data, and save it before dangerous steps."""
        connection = context.connection
        assert connection is not None
        if not context.purge:
            refuse_unknown(self.project, self.history, heads, connection)
        try:
            self.planned = list(find_steps(heads, context))
        except CommandError as error:
            raise CommandError(f"{str(error).rstrip('.')}. Nothing was changed. {ASK_DOCTOR}") from None
        moves = [step for step in self.planned if isinstance(step, RevisionStep)]
        lost: dict[str, int] = {}
        for step in moves:
            if not step.is_upgrade:
                lost |= count_losses(connection, self.file_of(step))
            step.migration_fn = self.whole(connection, step, heads)
        refuse_losses(lost, self.accepted)
        # Before others wait for this connection.
        connection.rollback()
        engine = connection.dialect.name
        endangering = [step for step in moves if heads and self.endangers(step, engine)]
        if endangering and self.settings.save_before_migrations and not self.saved_elsewhere:
            self.save_before(endangering[0], engine, heads)

    def file_of(self, step: RevisionStep) -> Revision:
        """Return the revision of a step, from its file."""
        return self.history.by_id[step.revision.revision]

    def steps(self, heads: tuple[str, ...], context: MigrationContext) -> Iterator[Any]:
        """Yield the remaining steps; Alembic runs each in a transaction."""
        while self.planned:
            self.began = time.monotonic()
            yield self.planned[0]

    def whole(self, connection: sa.Connection, step: RevisionStep, heads: Sequence[str]) -> Callable[..., None]:
        """Return the function of this step, with its time-out and checks."""
        migrate = step.migration_fn

        @wraps(migrate)
        def run(**options: Any) -> None:
            if connection.dialect.name == "postgresql":
                limit = round(self.settings.migration_lock_timeout * 1000)
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {limit}")
            if not step.is_upgrade:
                refuse_losses(count_losses(connection, self.file_of(step), lock=True), self.accepted)
            try:
                migrate(**options)
            except DBAPIError as error:
                if not contradicts_version(error):
                    raise
                raise CommandError(other_schema(step, heads, error)) from None
            if connection.dialect.name == "sqlite":
                check_foreign_keys(connection)

        return run

    def record(self, ctx: MigrationContext, step: MigrationInfo, **_: Any) -> None:
        """Record a step, in its own transaction."""
        if self.planned:
            self.planned.pop(0)
        self.waiting_since = None
        write_record(ctx, step, self.history, time.monotonic() - self.began)

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
        logger.info(
            "Saved as %s; to restore it: %s", save.name, self.project.spelling.of(f"alembic-savepoint load {save.name}")
        )

    def endangers(self, step: RevisionStep, engine: str) -> bool:
        """Return whether the step drops a table or column, or rebuilds a table."""
        direction: Direction = "upgrade" if step.is_upgrade else "downgrade"
        revision = self.file_of(step)
        return bool(drops(revision, direction) or (engine == "sqlite" and rebuilds(revision, direction)))

    def until_done(self, attempt: Callable[[], None], connection: sa.Connection, holder: sa.Connection | None) -> None:
        """Run the remaining steps; without a lock, let others pass and try again. Raises CommandError."""
        with blockers_of(connection, holder) as blockers:
            while True:
                try:
                    return attempt()
                except OperationalError as error:
                    if getattr(error.orig, "sqlstate", None) not in LOCK_ERRORS:
                        raise
                    self.waiting_since = self.waiting_since or time.monotonic()
                    if time.monotonic() - self.waiting_since > self.settings.migration_timeout:
                        raise CommandError(blocked(self.planned[0], blockers, self.settings)) from None
                    logger.info("%s; trying again", str(error.orig).splitlines()[0])
                # Jitter, so that it does not collide with the same work again.
                time.sleep(random.uniform(0.1, self.settings.migration_lock_timeout))


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
    if observer is None:
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


def blocked(step: Any, blockers: Sequence[str], settings: Options) -> str:
    """Return the message for locks that were not acquired."""
    return (
        f"{step}: its locks could not be acquired in {settings.migration_timeout:g} seconds, in repeated attempts. "
        f"Blocked by: {'; '.join(blockers) or 'nothing any more'}. This revision changed nothing. Wait for that to "
        "end, or end it (SELECT pg_terminate_backend(…)), then run the same command again."
    )


def check_foreign_keys(connection: sa.Connection) -> None:
    """Raise CommandError for rows that refer to nothing; foreign keys were off while tables were rebuilt."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({f"{table} → {parent}" for table, _, parent, _ in broken}))
        raise CommandError(f"{len(broken)} rows would refer to rows that do not exist ({tables}). Nothing was changed.")


# --- the record -------------------------------------------------------------------------------------------------------


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
