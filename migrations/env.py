"""Alembic's environment: one history for SQLite and PostgreSQL, each revision whole or not at all."""

import sys
from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from sqlmodel import SQLModel

import models  # noqa: F401 (its tables are what the database is compared with)
from alembic_savepoint.doctor.defaults import default_differs
from alembic_savepoint.guards import run_migrations
from db.engines import driver_url
from schema import configured_options, connect_to_migrate, log_as_configured, spelling


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Write types into scripts as SQLAlchemy's own, so that a script needs no SQLModel and runs on both engines."""
    if kind == "type" and isinstance(item, sa.TypeDecorator):
        impl = item.impl_instance
        return f"sa.{impl!r}" if type(impl).__module__.startswith("sqlalchemy.sql.") else False
    if kind == "server_default" and isinstance(item, sa.DefaultClause):
        for element, written in ((sa.true, "sa.true()"), (sa.false, "sa.false()"), (sa.func.now, "sa.func.now()")):
            if isinstance(item.arg, type(element())):
                return written
    return False


def configure(**where: Any) -> None:
    """Configure Alembic alike for every way of running."""
    context.configure(
        target_metadata=SQLModel.metadata,
        render_item=render_item,
        render_as_batch=True,
        compare_type=True,
        compare_server_default=default_differs,
        # Alembic assumes that SQLite's DDL is not transactional; with our engine it is.
        transactional_ddl=True,
        transaction_per_migration=True,
        **where,
    )
    run_migrations(options, spelling())


try:
    log_as_configured(context.config)
    url, options = configured_options(context.config)
    if context.is_offline_mode():
        configure(url=driver_url(url, is_async=False), dialect_opts={"paramstyle": "named"}, literal_binds=True)
    else:
        with connect_to_migrate(url) as connection:
            configure(connection=connection)
except CommandError as error:
    if context.config.cmd_opts is None:
        raise
    sys.exit(f"FAILED: {error}")
