"""What env.py excludes from comparisons: its include_name and include_object, asked as Alembic asks them."""

import warnings
from typing import Any

import sqlalchemy as sa

from alembic_savepoint.doctor.catalog import Part, Schema
from alembic_savepoint.environment import Environment

KINDS = {
    "table": "table",
    "column": "column",
    "index": "index",
    "unique constraint": "unique_constraint",
    "foreign key": "foreign_key_constraint",
    "CHECK": "check_constraint",
}
"""Alembic's word for each kind of part that it asks about."""


def included(schema: Schema, connection: sa.Connection, environment: Environment) -> Schema:
    """Return the schema of a database without what env.py excludes; with a table, its triggers are excluded as well."""
    current = f"{connection.dialect.default_schema_name}."
    models, reflected = {table.key.removeprefix(current): table for table in environment.tables}, sa.MetaData()
    if environment.options.get("include_object") and models:
        with warnings.catch_warnings(action="ignore"):  # Of types that SQLAlchemy does not know.
            for name in (None, *(environment.schemas if connection.dialect.name == "postgresql" else ())):
                reflected.reflect(connection, schema=name, resolve_fks=False)
    found = {}
    for owner, parts in schema.items():
        model, there = models.get(owner), reflected.tables.get(owner)
        left = frozenset(part for part in parts if is_included(owner, part, model, there, environment))
        if all(part in left for part in parts if part.kind == "table"):
            found[owner] = left
    return found


def is_included(
    owner: str, part: Part, model: sa.Table | None, there: sa.Table | None, environment: Environment
) -> bool:
    """Return whether Alembic would compare this part of a table, of which there may be a model."""
    kind = KINDS.get(part.kind)
    if kind is None:
        return True
    schema, _, table = owner.rpartition(".")
    name = table if kind == "table" else part.name or None
    parents = {"schema_name": schema or None, "table_name": table, "schema_qualified_table_name": owner}
    include_name, include_object = (environment.options.get(f"include_{each}") for each in ("name", "object"))
    if include_name and not include_name(name, kind, parents):
        return False
    actual, wanted = item_of(there, kind, name), item_of(model, kind, name)
    if not include_object or actual is None:
        return True
    if wanted is None:
        return bool(include_object(actual, name, kind, True, None))
    return bool(include_object(wanted, name, kind, False, actual))


def item_of(table: sa.Table | None, kind: str, name: str | None) -> Any:
    """Return what stands for a part in SQLAlchemy's table, which uses Alembic's words for kinds; or None."""
    if table is None or kind == "table":
        return table
    items = (*table.columns, *table.indexes, *table.constraints)
    return next((each for each in items if (each.__visit_name__, each.name) == (kind, name)), None)
