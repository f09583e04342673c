"""What keeps a migration whole: one at a time, each revision in a transaction, its losses counted, and recorded.

One line in env.py, instead of `with context.begin_transaction(): context.run_migrations()`:

    alembic_savepoint.guards.run_migrations()
"""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError

from alembic_savepoint.connections import begin_immediate
from alembic_savepoint.environment import ASKING, GUARDED, compared, environment_of
from alembic_savepoint.guards.migrating import Run, refuse_unknown
from alembic_savepoint.guards.turns import only_migrator
from alembic_savepoint.history.revisions import refuse_broken_history
from alembic_savepoint.project import Options, Project, Spelling
from alembic_savepoint.terminal import printable


def run_migrations(options: Options | None = None, spelling: Spelling | None = None) -> None:
    """Run what the command asks for, after context.configure().

    While no other process migrates this database, each revision runs in a transaction, and is recorded in it. Raises
    CommandError, a paragraph for people, if nothing could be done, or a revision failed.

    If the connection is in a transaction already, this is the caller's, and is neither committed nor rolled back: the
    revisions run in it, all or none, and no copy is saved before them.
    """
    migration = context.get_context()
    # Before anything is asked, which begins a transaction.
    is_inner = migration.connection is not None and not migration.as_sql and migration.connection.in_transaction()
    migration.opts.update(compared(migration.opts), **{GUARDED: True})
    if migration.opts.get(ASKING):
        # Without a statement: on SQLite, one could wait for whoever writes.
        migration.opts["fn"]((), migration)
        return
    environment = None if context.is_offline_mode() else environment_of(migration)
    project = Project(context.config, options, spelling=spelling, script=context.script, environment=environment)
    try:
        history = project.history
        refuse_broken_history(history)
        run = Run(project, history, context.get_x_argument(as_dictionary=True), is_inner=is_inner)
        if environment is None:
            migration.on_version_apply_callbacks = (*migration.on_version_apply_callbacks, run.record)
            run_all()
        else:
            run_online(migration, run)
    except CommandError as error:
        raise CommandError(printable(project.spelling.of(str(error)), keep="\n")) from error.__cause__


def run_all() -> None:
    """Run the revisions, or any other command, in Alembic's transactions."""
    with context.begin_transaction():
        context.run_migrations()


def run_online(migration: MigrationContext, run: Run) -> None:
    """Run the command on the database; one that changes it, while no other does."""
    connection, project = migration.connection, run.project
    assert connection is not None
    if "destination_rev" not in migration.opts:
        # A command that only reads: current, check, revision.
        refuse_unknown(project, run.history, migration.get_current_heads(), connection)
        run_all()
        return
    patience = run.settings.migration_timeout
    with ExitStack() as stack:
        if run.is_inner:
            begin_on_sqlite(connection)
        else:
            # What was asked so far; while this waits for its turn, it holds nothing that others wait for.
            connection.rollback()
            stack.enter_context(whole_on_sqlite(connection))
        holder = stack.enter_context(only_migrator(connection if run.is_inner else connection.engine, patience))
        heads = () if migration.purge else migration.get_current_heads()
        run.plan(migration, heads, migration.opts["fn"])
        context.configure(
            connection=connection,
            **{
                **project.environment.options,
                "fn": run.steps,
                "on_version_apply": (*migration.on_version_apply_callbacks, run.record),
                "transaction_per_migration": not run.all_at_once,
                "transactional_ddl": True,
            },
        )
        run.until_done(run_all, connection, holder)


def begin_on_sqlite(connection: sa.Connection) -> None:
    """Begin the caller's transaction on SQLite, which the driver does not do before DDL."""
    if connection.dialect.name == "sqlite":
        cursor = connection.connection.cursor()
        with suppress(sqlite3.OperationalError):  # It has begun.
            cursor.execute("BEGIN")
        cursor.close()


@contextmanager
def whole_on_sqlite(connection: sa.Connection) -> Iterator[None]:
    """On SQLite, have transactions cover DDL, and foreign keys checked after a revision instead of within it.

    Both can only be set outside a transaction, and the driver's own transactions do not cover DDL.
    """
    driver = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite" or driver is None:
        yield
        return
    if driver.isolation_level is not None:
        driver.isolation_level = None
        sa.event.listen(connection, "begin", begin_immediate)
    cursor = driver.cursor()
    cursor.execute("PRAGMA foreign_keys")
    [[are_checked]] = cursor.fetchall()
    cursor.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        connection.rollback()
        cursor.execute(f"PRAGMA foreign_keys={are_checked}")
        cursor.close()
