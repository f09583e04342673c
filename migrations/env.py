"""Alembic's environment: one history for SQLite and PostgreSQL, each revision whole or not at all."""

import sys
from configparser import Error as ConfigParserError
from logging.config import fileConfig
from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError
from sqlmodel import AutoString, SQLModel, UTCDateTime

import models  # noqa: F401 (its tables are what the database is compared with)
from db.engines import create_migration_engine, driver_url
from migrations.applied import RECORD
from migrations.migrating import Run, only_migrator, refuse_unknown
from migrations.revisions import read_history, refuse_broken_history, versions_folder
from schema import database_url, settings_kind
from settings import Settings, SettingsError, settings_from_environment
from terminal import printable

config = context.config

# Only for the `alembic` command: the service has set up its own logging.
if config.cmd_opts is not None and config.config_file_name is not None:
    try:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    except (ConfigParserError, KeyError, RuntimeError, ValueError):
        sys.exit(f"FAILED: {config.config_file_name}: its sections for logging are wrong. Copy those of alembic.ini.")


def read_settings() -> Settings:
    """Return the settings; if the ini file names another URL, DATABASE_URL may be missing. Raises CommandError."""
    try:
        return settings_from_environment(settings_kind(config))
    except SettingsError as error:
        if config.cmd_opts is not None:
            sys.exit(f"FAILED: {error}")  # One line per setting.
        raise CommandError(str(error)) from None


def render_item(kind: str, item: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Write types into scripts as SQLAlchemy's own, so that a script needs no SQLModel and runs on both engines."""
    if kind == "type" and isinstance(item, UTCDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String(length={item.length})" if item.length else "sa.String()"
    if kind == "server_default" and isinstance(item, sa.DefaultClause):
        for element, written in ((sa.true, "sa.true()"), (sa.false, "sa.false()"), (sa.func.now, "sa.func.now()")):
            if isinstance(item.arg, type(element())):
                return written
    return False


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Leave the record of applied revisions out of every comparison; like alembic_version, it has no model."""
    return (kind, name) != ("table", RECORD.name)


def configure(**options: Any) -> MigrationContext:
    """Configure Alembic alike for every way of running."""
    context.configure(
        target_metadata=SQLModel.metadata,
        include_name=include_name,
        render_item=render_item,
        render_as_batch=True,
        compare_type=True,
        compare_server_default=True,
        # Alembic assumes that SQLite's DDL is not transactional; with our engine it is.
        transactional_ddl=True,
        **{"transaction_per_migration": True, **options},
    )
    return context.get_context()


def run_revisions() -> None:
    """Run the revisions, or any other command, in Alembic's transactions."""
    with context.begin_transaction():
        context.run_migrations()


def run_offline(url: str, run: Run) -> None:
    """Print the SQL instead of running it (`--sql`)."""
    configure(
        url=driver_url(url, is_async=False),
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        on_version_apply=run.record,
    )
    run_revisions()


def run_online(url: str, run: Run) -> None:
    """Run each revision in its own transaction, while no other process migrates this database."""
    engine = create_migration_engine(url)
    try:
        connection = engine.connect()
    except DBAPIError as error:
        words = f"The database {engine.url.database} cannot be used: {str(error.orig).splitlines()[0]}"
        raise CommandError(words) from None
    with connection:
        migration = configure(connection=connection, on_version_apply=run.record)
        if "destination_rev" not in migration.opts:
            # A command that only reads: current, check, revision.
            refuse_unknown(run.history, migration.get_current_heads(), connection)
            run_revisions()
            return
        with only_migrator(engine, run.settings.migration_timeout) as holder:
            heads = () if migration.purge else migration.get_current_heads()
            run.plan(migration, heads, migration.opts["fn"])
            configure(
                connection=connection,
                on_version_apply=run.record,
                fn=run.steps,
                transaction_per_migration=not run.all_at_once,
            )
            run.until_done(run_revisions, connection, holder)


def main() -> None:
    """Run the command."""
    settings = read_settings()
    history = read_history(versions_folder(config))
    refuse_broken_history(history)
    run = Run(database_url(settings, config), history, settings, context.get_x_argument(as_dictionary=True))
    (run_offline if context.is_offline_mode() else run_online)(run.url, run)


try:
    main()
except CommandError as error:
    if config.cmd_opts is None:
        raise
    sys.exit(f"FAILED: {printable(str(error), keep=chr(10))}")
