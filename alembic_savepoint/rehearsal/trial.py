"""The trial of a migration: each revision is run, watched and judged; the caller ends the transaction."""

import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep
from alembic.util import CommandError

from alembic_savepoint.backup import saves
from alembic_savepoint.doctor.comparison import config_for
from alembic_savepoint.guards.losses import Losses
from alembic_savepoint.guards.migrating import LOCK_ERRORS, check_foreign_keys
from alembic_savepoint.guards.record import write_record
from alembic_savepoint.guards.whole import EndedUnseen, Whole
from alembic_savepoint.history.revisions import Direction, History, code_of, path_text
from alembic_savepoint.project import Project
from alembic_savepoint.rehearsal.rebuild_losses import Rebuilds
from alembic_savepoint.rehearsal.unsafe import (
    enums_of,
    left_behind,
    long_held,
    newly_required,
    nullable_columns,
    slow_or_large,
)
from alembic_savepoint.rehearsal.watching import Lock, Statement, UnsafeStep, Watch, strongest

# --- what was seen ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Trial:
    """The effects of one revision; none if one before it failed."""

    id: str
    message: str
    losses: dict[str, int] = field(default_factory=dict)
    """The numbers of rows and values that it loses, by "table" or "table.column"."""
    locked_before: list[str] = field(default_factory=list)
    """The tables that an earlier revision locked in the same transaction: its own locks on them are not seen."""
    milliseconds: float | None = None
    statements: list[Statement] = field(default_factory=list)
    unsafe_steps: list[UnsafeStep] = field(default_factory=list)
    """The warnings about the revision; those about one statement are with that statement."""

    @property
    def locks(self) -> list[Lock]:
        """The strongest lock on each table that its statements took."""
        return strongest(lock for statement in self.statements for lock in statement.locks)

    @property
    def warnings(self) -> int:
        """The number of warnings; all losses are one."""
        return len(self.unsafe_steps) + sum(len(each.unsafe_steps) for each in self.statements) + bool(self.losses)


@dataclass(slots=True)
class Failure:
    """The error of a migration, with its statement, if it was one, and the line of the revision's file."""

    revision: str
    error: str
    sql: str | None
    where: str | None


@dataclass(slots=True)
class Rehearsal:
    """The observed effects of a migration."""

    engine: str
    target: str
    heads: tuple[str, ...]
    """The revisions of the database."""
    direction: Direction
    revisions: list[Trial] = field(default_factory=list)
    place: Literal["database", "copy"] = "database"
    reason: str | None = None
    """The reason for a copy."""
    is_guarded: bool = False
    """Whether the migration refuses losses that are not accepted."""
    failure: Failure | None = None
    is_stored: bool = False
    """Whether a revision committed past SQLAlchemy, which nothing prevents."""
    notes: list[str] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """The time of all revisions together."""
        return sum(revision.milliseconds or 0 for revision in self.revisions)

    @property
    def command(self) -> str:
        """The command that runs the migration."""
        lost = dict.fromkeys(chain.from_iterable(revision.losses for revision in self.revisions))
        option = f"-x accept-loss={','.join(lost)} " if lost and self.is_guarded else ""
        return f"alembic {option}{self.direction} {self.target}"

    @property
    def warnings(self) -> int:
        """The number of warnings."""
        return sum(revision.warnings for revision in self.revisions)

    @property
    def locks(self) -> list[Lock]:
        """The strongest lock on each table that a revision takes, and the longest of those."""
        return strongest(chain.from_iterable(revision.locks for revision in self.revisions))


# --- the trial --------------------------------------------------------------------------------------------------------


class TransactionEnded(CommandError):
    """An attempt by a revision to make its changes permanent."""


class Trials:
    """The revisions of a rehearsal, one after the other, on a connection that is watched."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        steps: list[RevisionStep],
        history: History,
        connection: sa.Connection,
        lock_timeout: float,
    ) -> None:
        self.rehearsal = rehearsal
        self.lock_timeout = lock_timeout
        self.losses: Losses | None = None
        self.steps = steps
        self.history = history
        self.watch = Watch(connection, self.before)
        self.nullable = nullable_columns(self.watch)
        self.enums = enums_of(self.watch)
        self.current = rehearsal.revisions[0]
        self.rebuilds: Rebuilds | None = None
        self.began = self.watch.clock()

    def run(self, project: Project, progress: saves.Progress) -> None:
        """Run them as the alembic command does, and note a failure.

        Raises TransactionEnded, and DBAPIError if a lock was not acquired or the connection broke.
        """
        one_by_one, config = partial(self.one_by_one, progress), project.config
        if self.rehearsal.place == "copy":
            config = config_for(self.watch.connection, config)
        try:
            with EnvironmentContext(config, project.script, fn=one_by_one) as environment:
                environment.configure(
                    connection=self.watch.connection,
                    on_version_apply=self.record,
                    # In a transaction that has begun already, the second does nothing.
                    **{**project.environment.options, "transactional_ddl": True, "transaction_per_migration": True},
                )
                environment.run_migrations()
        except TransactionEnded:
            raise
        except Exception as error:  # A revision may raise anything.
            if sqlstate(error) in LOCK_ERRORS or getattr(error, "connection_invalidated", False):
                raise
            self.end(error)
            self.rehearsal.failure = self.describe_failure(error)
            self.rehearsal.is_stored = isinstance(error, EndedUnseen) and self.rehearsal.place == "database"

    def one_by_one(self, progress: saves.Progress, _: Any, context: MigrationContext) -> Iterator[RevisionStep]:
        """Yield each step, with observations before and after it."""
        for number, (step, trial) in enumerate(zip(self.steps, self.rehearsal.revisions, strict=True)):
            progress("Rehearsing", number, len(self.steps))
            self.current, self.watch.statements = trial, trial.statements
            trial.locked_before = self.watch.locked()
            if not self.watch.is_postgresql:
                meant = code_of(self.history.by_id[trial.id], self.rehearsal.direction)
                self.rebuilds = Rebuilds(self.watch, meant)
            self.began = self.watch.clock()
            step.migration_fn = self.whole(step, context)
            yield step
            self.end(None)

    def whole(self, step: RevisionStep, context: MigrationContext) -> Callable[..., None]:
        """Return the function of a step, with the checks of migrating.py, but without refusing losses."""
        migrate, connection, trial = step.migration_fn, self.watch.connection, self.current

        @wraps(migrate)
        def run(**options: Any) -> None:
            with self.watch.aside():
                self.losses = losses = Losses(connection, self.history.by_id[trial.id])
            with Whole(context, step, self.lock_timeout) as guard:
                self.watch.kind = "revision"
                migrate(**options)
                self.watch.kind = "around"
            with self.watch.aside():
                trial.losses, self.losses = losses.lost(), None
            if guard.has_block:
                self.rehearsal.notes.append(
                    f"Revision {trial.id} is not whole: what it does up to the end of its autocommit_block stays, "
                    "also if the rest fails."
                )
            if connection.dialect.name == "sqlite":
                check_foreign_keys(connection)
            elif self.rehearsal.place == "database":
                check_deferred(connection)

        return run

    def record(
        self, ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
    ) -> None:
        """Record a step, as the real migration will."""
        write_record(ctx, step, self.history, (self.watch.clock() - self.began) / 1000)

    def before(self, sql: str) -> None:
        """Check a statement that is about to run. Raises TransactionEnded."""
        if self.rehearsal.place == "database" and LASTS.search(sql):
            refuse_commit()
        if self.losses and self.watch.kind == "revision":
            self.losses.look(sql)
        if self.rebuilds:
            self.rebuilds.look(sql)

    def end(self, error: Exception | None) -> None:
        """Judge what the revision did."""
        trial, self.watch.kind = self.current, "around"
        trial.milliseconds = self.watch.clock() - self.began
        self.watch.end_locks()
        self.losses = None
        for statement in trial.statements:
            if statement.kind == "revision":
                statement.unsafe_steps += slow_or_large(statement)
        for lock in trial.locks:
            trial.unsafe_steps += long_held(lock)
        if error is not None:
            return
        with self.watch.aside():
            trial.unsafe_steps += self.rebuilds.losses() if self.rebuilds else ()
            before, self.nullable = self.nullable, nullable_columns(self.watch)
            trial.unsafe_steps += newly_required(self.watch, before, self.nullable)
            enums, self.enums = self.enums, enums_of(self.watch)
            back = code_of(self.history.by_id[trial.id], "downgrade")
            trial.unsafe_steps += left_behind(enums, self.enums, self.rehearsal.direction, back)

    def describe_failure(self, error: Exception) -> Failure:
        """Return the failure, with its statement and line."""
        original = getattr(error, "orig", None)
        failed = [each.sql for each in self.current.statements if original and each.error is original]
        path = self.history.by_id[self.current.id].path
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if path == Path(frame.filename)]
        return Failure(
            self.current.id,
            first_line(error),
            failed[0] if failed else None,
            f"{path_text(path)}, line {lines[-1]}" if path and lines else None,
        )


def check_deferred(connection: sa.Connection) -> None:
    """Check the deferred constraints, as PostgreSQL would at a COMMIT."""
    connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    if deferred := connection.scalar(DEFERRED):
        connection.exec_driver_sql(f"SET CONSTRAINTS {deferred} DEFERRED")


DEFERRED = sa.text("""
    SELECT string_agg(DISTINCT connamespace::regnamespace || '.' || quote_ident(conname), ', ')
    FROM pg_catalog.pg_constraint WHERE condeferred
""")


def refuse_commit(*_: Any) -> None:
    """Raise TransactionEnded before a change becomes permanent."""
    raise TransactionEnded(
        "A revision does what cannot be rolled back, so it cannot be rehearsed in one transaction. "
        "Nothing was changed. Rehearse on a copy: alembic-savepoint rehearse --copy"
    )


LASTS = re.compile(r"\bsetval\s*\(", re.IGNORECASE)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text; the others may repeat what is in the rows."""
    original = getattr(error, "orig", None)
    if original is None and not isinstance(error, CommandError):
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return (str(original or error) or repr(original)).splitlines()[0]


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of an error."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)
