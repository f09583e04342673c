"""Statements for any number of rows, each built, compiled and prepared only once."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.schema import ScalarElementColumnDefault
from sqlmodel import AutoString, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from db.prepared import execute_and_count, prepared
from refusals import RowsDropped


async def insert_rows(
    session: AsyncSession,
    model: type[SQLModel],
    rows: Sequence[dict[str, Any]],
    *,
    returning: tuple[str, ...] = (),
    **same: Any,
) -> Sequence[Any]:
    """Insert all rows (each with the same keys), with the values that are the `same` in all of them.

    With `returning`, rows whose unique values are taken are skipped, and these columns of the others returned.
    Without it, RowsDropped is raised unless all were inserted.
    """
    statement = _insert_statement(dialect_of(session), model, tuple(rows[0]), tuple(same), returning)
    same = {f"same_{name}": same[name] for name in same}
    inserted, count = await execute_and_count(session, statement, rows=rows, **same)
    if count < len(rows) and not returning:
        raise RowsDropped(table_of(model).name, len(rows), count)
    return inserted


@prepared
def _insert_statement(
    dialect: str, model: type[SQLModel], names: tuple[str, ...], same: tuple[str, ...], returning: tuple[str, ...]
) -> Any:
    table = table_of(model)
    defaults = {
        each.name: sa.literal(each.default.arg, each.type)
        for each in table.c
        if isinstance(each.default, ScalarElementColumnDefault)
    }
    values = {**defaults, **_same_values(table, same), **_row_values(dialect, table, names)}
    # Without a WHERE, SQLite would take ON CONFLICT for the beginning of a join.
    source = sa.select(*values.values()).where(sa.true())
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    statement = insert.from_select([*values], source, include_defaults=False)
    if not returning:
        return statement
    return statement.on_conflict_do_nothing().returning(*(table.c[name] for name in returning))


async def update_rows(
    session: AsyncSession, model: type[SQLModel], rows: Sequence[dict[str, Any]], **same: Any
) -> None:
    """Update the row of each `id` to these values, and to those that are the `same` in all of them.

    Raises RowsDropped unless all were updated.
    """
    statement = _update_statement(dialect_of(session), model, tuple(rows[0]), tuple(same))
    same = {f"same_{name}": same[name] for name in same}
    _, count = await execute_and_count(session, statement, rows=rows, **same)
    if count < len(rows):
        raise RowsDropped(table_of(model).name, len(rows), count)


@prepared
def _update_statement(dialect: str, model: type[SQLModel], names: tuple[str, ...], same: tuple[str, ...]) -> Any:
    table = table_of(model)
    values = {**_same_values(table, same), **_row_values(dialect, table, names)}
    return sa.update(table).where(table.c.id == values.pop("id")).values(values)


def _row_values(dialect: str, table: sa.Table, names: tuple[str, ...]) -> dict[str, sa.ColumnElement[Any]]:
    """The values of these columns in each of the parameter `rows`.

    The rows are sent as one JSON array, so that the statement is the same for any number of them, and no limit on the
    number of parameters applies.
    """
    elements = sa.func.json_each if dialect == "sqlite" else sa.func.json_array_elements
    row = elements(sa.bindparam("rows", type_=sa.JSON)).table_valued(sa.column("value", sa.JSON), name="item").c.value
    texts = {name: row[name].as_string() for name in names}
    # A cast to VARCHAR(n) would cut a text that is too long, which must fail.
    return {
        name: text if isinstance(table.c[name].type, sa.String | AutoString) else sa.cast(text, table.c[name].type)
        for name, text in texts.items()
    }


def _same_values(table: sa.Table, names: tuple[str, ...]) -> dict[str, sa.ColumnElement[Any]]:
    return {name: sa.bindparam(f"same_{name}", type_=table.c[name].type) for name in names}


def among(dialect: str, column: Any, name: str) -> Any:
    """The condition that the column is one of the values in the parameter `name`, a list of any length."""
    if dialect == "sqlite":
        return column.in_(sa.select(sa.func.json_each(sa.bindparam(name, type_=sa.JSON)).table_valued("value").c.value))
    return column == sa.any_(sa.bindparam(name, type_=sa.ARRAY(column.type)))


def table_of(model: type[SQLModel]) -> sa.Table:
    """The table that a class describes."""
    return SQLModel.metadata.tables[str(model.__tablename__)]


def dialect_of(session: AsyncSession) -> str:
    """The name of the engine's dialect."""
    return session.get_bind().dialect.name
