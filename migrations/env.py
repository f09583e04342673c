"""How Alembic connects and compares: one history for SQLite and PostgreSQL, each run whole or not at all."""

from logging.config import fileConfig
from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from sqlmodel import AutoString, SQLModel, UTCDateTime

import models  # noqa: F401 (its tables are what the database is compared with)
from database import create_migration_engine, driver_url
from settings import Settings, first_error

config = context.config

# Only for the `alembic` command: the service has set up its own logging.
if config.cmd_opts is not None and config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)


def database_url() -> str:
    """The URL in the setting that the ini file names."""
    setting = config.get_main_option("url_setting", "database_url")
    try:
        url: str | None = getattr(Settings(), setting)
    except ValidationError as error:
        raise CommandError(first_error(error)) from None
    if url is None:
        raise CommandError(
            f"{setting.upper()} is not set: {config.config_file_name} migrates only the database that it names."
        )
    return url


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


def configure(**options: Any) -> None:
    """Configure Alembic alike for every way of running."""
    context.configure(
        target_metadata=SQLModel.metadata,
        render_item=render_item,
        render_as_batch=True,
        compare_type=True,
        compare_server_default=True,
        # Alembic takes SQLite's DDL for not transactional; with our engine it is.
        transactional_ddl=True,
        **options,
    )


def run_offline() -> None:
    """Print the SQL instead of running it (`--sql`)."""
    url = driver_url(database_url(), is_async=False)
    configure(url=url, dialect_opts={"paramstyle": "named"}, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run the revisions in one transaction: all of them, or none."""
    engine = create_migration_engine(database_url())
    try:
        connection = engine.connect()
    except OperationalError as error:
        raise CommandError(f"The database cannot be reached: {str(error.orig).splitlines()[0]}") from None
    with connection:
        configure(connection=connection)
        migration = context.get_context()
        with context.begin_transaction():
            heads = migration.get_current_heads()
            context.run_migrations()
            if engine.dialect.name == "sqlite" and migration.get_current_heads() != heads:
                check_foreign_keys(connection)


def check_foreign_keys(connection: sa.Connection) -> None:
    """Refuse to commit rows that refer to nothing; foreign keys were off while tables were rebuilt."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({f"{table} → {parent}" for table, _, parent, _ in broken}))
        raise CommandError(f"{len(broken)} rows would refer to rows that do not exist ({tables}). Nothing was changed.")


if context.is_offline_mode():
    run_offline()
else:
    run_online()
