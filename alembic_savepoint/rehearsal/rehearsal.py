"""A migration run for real, watched, and rolled back; or run on a copy if it cannot be rolled back."""

import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, OperationalError

from alembic_savepoint.backup import saves
from alembic_savepoint.connections import create_engine
from alembic_savepoint.environment import GUARDED
from alembic_savepoint.guards.migrating import LOCK_ERRORS, blockers_of, refuse_unknown
from alembic_savepoint.guards.turns import only_migrator
from alembic_savepoint.guards.whole import without_time_outs
from alembic_savepoint.history.applied import RECORD
from alembic_savepoint.history.revisions import (
    ASK_DOCTOR,
    Direction,
    History,
    code_of,
    refuse_broken_history,
)
from alembic_savepoint.project import Options, Project
from alembic_savepoint.rehearsal.copies import copy_of
from alembic_savepoint.rehearsal.trial import Rehearsal, Trial, Trials, first_line, refuse_commit, sqlstate
from alembic_savepoint.rehearsal.unsafe import ask_squawk
from alembic_savepoint.rehearsal.watching import Watch


def rehearse(
    project: Project,
    target: str = "head",
    *,
    copy: bool = False,
    progress: saves.Progress = saves.silent,
) -> Rehearsal:
    """Run the migration to `target`, as alembic upgrade or downgrade takes it, and leave no trace.

    Without `copy` it is one transaction on the database itself, or on a copy if a revision cannot be in one. A failed
    migration is a result. Raises CommandError, a paragraph for people, if it could not be tried.
    """
    history = project.history
    refuse_broken_history(history)
    engine = create_engine(project.url)
    with reached(), interruptible(), only_migrator(engine, project.options.migration_timeout) as holder:
        rehearsal, steps = plan(engine, target, project, history)
        if not steps:
            return rehearsal
        rehearsal.reason = "as asked for" if copy else why_not_in_one_transaction(rehearsal, history)
        where: AbstractContextManager[sa.Connection]
        if rehearsal.reason:
            rehearsal.place = "copy"
            where = on_a_copy(project, progress)
        else:
            where = in_place(project, target, holder)
        with where as connection:
            trials = Trials(rehearsal, steps, history, connection, project.options.migration_lock_timeout)
            with sequences_noted(trials.watch, rehearsal):
                trials.run(project, progress)
            look_for_patterns(rehearsal, connection)
    return rehearsal


@contextmanager
def reached() -> Iterator[None]:
    """Raise CommandError if the database does not answer, or is not one."""
    try:
        yield
    except DBAPIError as error:
        raise CommandError(f"The database cannot be used: {first_line(error)}. Nothing was changed.") from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that a copy is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def look_for_patterns(rehearsal: Rehearsal, connection: sa.Connection) -> None:
    """Have squawk check the statements, or note why it did not."""
    if rehearsal.engine == "postgresql":
        major, minor, *_ = connection.dialect.server_version_info  # type: ignore[misc]
        statements = [trial.statements for trial in rehearsal.revisions]
        reason = ask_squawk(statements, rehearsal.direction, f"{major}.{minor}")
        rehearsal.notes += [reason] if reason else []


# --- what is to be run ------------------------------------------------------------------------------------------------


def plan(engine: sa.Engine, target: str, project: Project, history: History) -> tuple[Rehearsal, list[RevisionStep]]:
    """Return the direction, and the revisions in order. Raises CommandError if there is no path."""
    with engine.execution_options(no_begin=True).connect() as connection:
        script = project.script
        heads = MigrationContext.configure(connection, opts=project.version_options).get_current_heads()
        refuse_unknown(project, history, heads, connection)
        try:
            direction = direction_to(target, heads, script, history)
            find_steps: Callable[..., list[RevisionStep]] = (
                script._upgrade_revs if direction == "upgrade" else script._downgrade_revs
            )
            steps = find_steps(target, heads)
        except CommandError as error:
            raise CommandError(f"{str(error).rstrip('.')}. Nothing was changed. {ASK_DOCTOR}") from None
        is_guarded = project.environment.options.get(GUARDED, False)
        rehearsal = Rehearsal(engine.dialect.name, target, heads, direction, is_guarded=is_guarded)
        for step in steps:
            revision = history.by_id[step.revision.revision]
            rehearsal.revisions.append(Trial(revision.id, revision.message))
    return rehearsal, steps


def direction_to(target: str, heads: Sequence[str], script: ScriptDirectory, history: History) -> Direction:
    """Return "downgrade" for an ancestor of the current revisions, "upgrade" for any other."""
    if relative := re.search(r"([+-])\d+$", target):
        return "upgrade" if relative[1] == "+" else "downgrade"
    if re.search(r"(^|@)base$", target):
        return "downgrade"
    if re.search(r"(^|@)heads?$", target):
        return "upgrade"
    revision = script.get_revision(target)
    return "downgrade" if revision and revision.revision in history.ancestors(*heads) else "upgrade"


def why_not_in_one_transaction(rehearsal: Rehearsal, history: History) -> str | None:
    """Return why the revisions cannot be tried in a transaction that is rolled back, from their text."""
    for trial in rehearsal.revisions:
        if found := NEEDS_COPY.search(code_of(history.by_id[trial.id], rehearsal.direction)):
            return f"revision {trial.id} has {' '.join(found[0].split())}, which cannot be tried in one transaction"
    return None


# An enum's new value cannot be used before a COMMIT; no rollback undoes setval. Other statements that PostgreSQL does
# not allow in a transaction (CREATE INDEX CONCURRENTLY, ALTER SYSTEM) fail in one, as they will for real.
# Who uses the driver itself can commit past SQLAlchemy, which nothing prevents.
NEEDS_COPY = re.compile(
    r"\bautocommit_block\b|\bVACUUM\b|\bsetval\b|\bADD\s+VALUE\b"
    r"|\b(?:dbapi|driver|raw)_connection\b|\bexecutescript\b|\.connection\.connection\b|\bcursor\(",
    re.IGNORECASE,
)


# --- where it is run --------------------------------------------------------------------------------------------------


@contextmanager
def on_a_copy(project: Project, progress: saves.Progress) -> Iterator[sa.Connection]:
    """Yield a connection to a copy, which is removed afterwards."""
    with (
        copy_of(project, progress) as copied,
        create_engine(copied).connect() as connection,
    ):
        yield connection


@contextmanager
def in_place(project: Project, target: str, holder: sa.Connection | None) -> Iterator[sa.Connection]:
    """Yield a connection to the database itself, in a transaction that is always rolled back."""
    engine, settings = create_engine(project.url), project.options
    if engine.dialect.name == "sqlite":
        limit = f"PRAGMA busy_timeout={round(settings.lock_timeout * 1000)}"
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute(limit))
    # Also of a connection that a revision opens beside this one.
    sa.event.listen(engine, "commit", refuse_commit)
    with engine.connect() as connection, blockers_of(connection, holder) as blockers:
        try:
            connection.begin()
            without_time_outs(connection, settings.migration_lock_timeout)
            yield connection
        except DBAPIError as error:
            raise CommandError(in_the_way(error, target, blockers, settings)) from None
        finally:
            # Also what a revision began itself.
            connection.rollback()


def in_the_way(error: DBAPIError, target: str, blockers: Sequence[str], settings: Options) -> str:
    """Return the message for a lock that was not acquired, or a broken connection."""
    way_out = f"Wait for that to end, or rehearse on a copy: alembic-savepoint rehearse {target} --copy"
    if sqlstate(error) in LOCK_ERRORS:
        return (
            f"“{' '.join((error.statement or '').split())[:100]}” needs a lock, and did not get it in "
            f"{settings.migration_lock_timeout:g} seconds (savepoint_migration_lock_timeout). Blocked by: "
            f"{'; '.join(blockers) or 'nothing any more'}. Nothing was changed. {way_out}"
        )
    if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        return (
            f"Another process has been writing for {settings.lock_timeout:g} seconds (savepoint_lock_timeout), so the "
            f"rehearsal could not begin. Nothing was changed. {way_out}"
        )
    return f"The rehearsal was aborted: {first_line(error)}. Nothing was changed."


# --- sequences --------------------------------------------------------------------------------------------------------


@contextmanager
def sequences_noted(watch: Watch, rehearsal: Rehearsal) -> Iterator[None]:
    """Roll back what is done meanwhile, with the record's own sequence, and note others that advanced."""
    if not watch.is_postgresql or rehearsal.place == "copy":
        yield
        return
    before = dict(watch.execute(SEQUENCES))
    for sequence, following in watch.execute(OWN_SEQUENCE):
        # A restarted sequence is rolled back. Others who need it wait, and only migrations need this one.
        watch.execute(f"ALTER SEQUENCE {sequence} RESTART WITH {following}")
    yield
    watch.connection.rollback()
    for sequence, last in watch.execute(SEQUENCES):
        if before.get(sequence, last) != last and has_used(watch, sequence):
            rehearsal.notes.append(
                f"The revisions took numbers from {sequence}, which PostgreSQL does not roll back: the next rows skip "
                "them, which does no harm."
            )


def has_used(watch: Watch, sequence: str) -> bool:
    """Return whether this connection, and not only others, took a number."""
    with watch.aside():
        try:
            watch.connection.execute(sa.select(sa.func.currval(sequence)))
        except OperationalError:  # It took none.
            return False
        finally:
            watch.connection.rollback()
    return True


SEQUENCES = "SELECT quote_ident(schemaname) || '.' || quote_ident(sequencename), last_value FROM pg_sequences"
OWN_SEQUENCE = f"""
    SELECT seqrelid::regclass::text, coalesce(pg_sequence_last_value(seqrelid) + seqincrement, seqstart)
    FROM pg_sequence JOIN pg_class ON pg_class.oid = seqrelid AND pg_has_role(relowner, 'USAGE')
    JOIN pg_depend ON objid = seqrelid AND deptype = 'a' AND refobjid = to_regclass('{RECORD.name}')
"""  # noqa: S608 (all of it is written here)  # nosec B608
