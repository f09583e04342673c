"""Statements for any number of rows at once, each built, compiled and prepared only once."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Table,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.schema import ScalarElementColumnDefault
from sqlalchemy.types import ARRAY, String
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

    With `returning`, rows whose unique values are taken are skipped, and these columns of the others are answered.
    Without it, RowsDropped is raised unless all were inserted.
    """
    statement = insert_statement(dialect_of(session), model, tuple(rows[0]), tuple(same), returning)
    same = {f"same_{name}": same[name] for name in same}
    inserted, count = await execute_and_count(session, statement, rows=rows, **same)
    if count < len(rows) and not returning:
        raise RowsDropped(table_of(model).name, len(rows), count)
    return inserted


@prepared
def insert_statement(
    dialect: str, model: type[SQLModel], names: tuple[str, ...], same: tuple[str, ...], returning: tuple[str, ...]
) -> Any:
    """INSERT … SELECT for insert_rows."""
    table = table_of(model)
    values = {**default_values(table), **same_values(table, same), **row_values(dialect, table, names)}
    # Without a WHERE, SQLite would take ON CONFLICT for the beginning of a join.
    source = select(*values.values()).where(true())
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    statement = insert.from_select([*values], source, include_defaults=False)
    if not returning:
        return statement
    return statement.on_conflict_do_nothing().returning(*(table.c[name] for name in returning))


async def update_rows(
    session: AsyncSession, model: type[SQLModel], rows: Sequence[dict[str, Any]], **same: Any
) -> None:
    """Give the row of each `id` these values, and those that are the `same` in all of them.

    Raises RowsDropped unless all were updated.
    """
    statement = update_statement(dialect_of(session), model, tuple(rows[0]), tuple(same))
    same = {f"same_{name}": same[name] for name in same}
    _, count = await execute_and_count(session, statement, rows=rows, **same)
    if count < len(rows):
        raise RowsDropped(table_of(model).name, len(rows), count)


@prepared
def update_statement(dialect: str, model: type[SQLModel], names: tuple[str, ...], same: tuple[str, ...]) -> Any:
    """UPDATE … FROM for update_rows."""
    table = table_of(model)
    values = {**same_values(table, same), **row_values(dialect, table, names)}
    return update(table).where(table.c.id == values.pop("id")).values(values)


def row_values(dialect: str, table: Table, names: tuple[str, ...]) -> dict[str, ColumnElement[Any]]:
    """The values of these columns in each of the parameter `rows`.

    The rows travel as one JSON array. So the statement is the same for any number of rows, and no limit on the number
    of parameters applies.
    """
    elements = func.json_each if dialect == "sqlite" else func.json_array_elements
    row = elements(bindparam("rows", type_=JSON)).table_valued(column("value", JSON), name="item").c.value
    texts = {name: row[name].as_string() for name in names}
    # A cast to VARCHAR(n) would cut what is too long, where it has to fail.
    return {
        name: text if isinstance(table.c[name].type, String | AutoString) else cast(text, table.c[name].type)
        for name, text in texts.items()
    }


def default_values(table: Table) -> dict[str, ColumnElement[Any]]:
    """The values that columns have unless told otherwise."""
    return {
        each.name: literal(each.default.arg, each.type)
        for each in table.c
        if isinstance(each.default, ScalarElementColumnDefault)
    }


def same_values(table: Table, names: tuple[str, ...]) -> dict[str, ColumnElement[Any]]:
    """The values of these columns that are one parameter each."""
    return {name: bindparam(f"same_{name}", type_=table.c[name].type) for name in names}


def among(dialect: str, column: Any, name: str) -> Any:
    """Whether the column is one of the values in the parameter `name`, a list of any length."""
    if dialect == "sqlite":
        return column.in_(select(func.json_each(bindparam(name, type_=JSON)).table_valued("value").c.value))
    return column == any_(bindparam(name, type_=ARRAY(column.type)))


def table_of(model: type[SQLModel]) -> Table:
    """The table that a class describes."""
    return SQLModel.metadata.tables[str(model.__tablename__)]


def dialect_of(session: AsyncSession) -> str:
    """The name of the engine's dialect."""
    return session.get_bind().dialect.name
