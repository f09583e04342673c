"""Statements for any number of rows, each built, compiled and prepared only once."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.schema import ScalarElementColumnDefault
from sqlmodel import AutoString, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from db.prepared import Prepared, prepared
from db.trips import execute, execute_later

Rows = Sequence[dict[str, Any]]


async def insert_free(
    session: AsyncSession, model: type[SQLModel], rows: Rows, *, returning: tuple[str, ...], **same: Any
) -> Sequence[Any]:
    """Insert the rows (each with the same keys) whose unique values are free; return these columns of them.

    The `same` values are those of all rows.
    """
    statement = _insert_statement(dialect_of(session), model, tuple(rows[0]), tuple(same), returning)
    return await execute(session, statement, rows=rows, **_named_same(same))


def insert_rows(session: AsyncSession, model: type[SQLModel], rows: Rows, **same: Any) -> None:
    """Insert all rows (each with the same keys), with the values that are the `same` in all of them.

    They are sent with the next statement that has an answer, or with COMMIT; that raises RowsDropped unless all rows
    were inserted.
    """
    statement = _insert_statement(dialect_of(session), model, tuple(rows[0]), tuple(same), ())
    _write_later(session, statement, model, rows, same)


def update_rows(session: AsyncSession, model: type[SQLModel], rows: Rows, **same: Any) -> None:
    """Update the row of each `id` to these values, and to those that are the `same` in all of them; as insert_rows."""
    statement = _update_statement(dialect_of(session), model, tuple(rows[0]), tuple(same))
    _write_later(session, statement, model, rows, same)


def _write_later(
    session: AsyncSession, statement: Prepared, model: type[SQLModel], rows: Rows, same: dict[str, Any]
) -> None:
    write_rows(session, model, statement, len(rows), rows=rows, **_named_same(same))


def write_rows(
    session: AsyncSession, model: type[SQLModel], statement: Prepared, number: int, **parameters: Any
) -> None:
    """Execute a statement, which is `counted`, with the next one that has an answer, or with COMMIT; as insert_rows."""
    expected = {} if dialect_of(session) == "sqlite" else {"expected": number}
    execute_later(session, statement, table_of(model).name, number, **parameters, **expected)


def _named_same(same: dict[str, Any]) -> dict[str, Any]:
    return {f"same_{name}": value for name, value in same.items()}


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
        return counted(dialect, statement)
    return statement.on_conflict_do_nothing().returning(*(table.c[name] for name in returning))


@prepared
def _update_statement(dialect: str, model: type[SQLModel], names: tuple[str, ...], same: tuple[str, ...]) -> Any:
    table = table_of(model)
    values = {**_same_values(table, same), **_row_values(dialect, table, names)}
    return counted(dialect, sa.update(table).where(table.c.id == values.pop("id")).values(values))


def counted(dialect: str, statement: Any) -> Any:
    """Make the statement fail unless it writes as many rows as `expected`: COMMIT may be sent along with it.

    On SQLite, db/trips.py counts. PostgreSQL divides by zero.
    """
    if dialect == "sqlite":
        return statement
    one: sa.ColumnClause[int] = sa.literal_column("1")
    written = statement.returning(one).cte("written")
    is_all = sa.case(
        (sa.func.count() == sa.bindparam("expected", type_=sa.BigInteger), one), else_=sa.literal_column("0")
    )
    return sa.select(one.op("/")(is_all)).select_from(written)


def _row_values(dialect: str, table: sa.Table, names: tuple[str, ...]) -> dict[str, sa.ColumnElement[Any]]:
    """The values of these columns in each of the parameter `rows`.

    The rows are sent as one JSON array, so that the statement is the same for any number of them, and no limit on the
    number of parameters applies.
    """
    rows = sa.bindparam("rows", type_=sa.JSON)
    if dialect == "sqlite":
        row = sa.func.json_each(rows).table_valued("value", name="item").c.value
        return {name: sa.func.json_extract(row, sa.literal_column(f"'$.{name}'")) for name in names}
    # Each object is read once; json_array_elements and ->> would read it for each column. A text of type VARCHAR(n)
    # could be cut, where one that is too long must fail.
    is_text = {name: isinstance(table.c[name].type, sa.String | AutoString) for name in names}
    columns = (sa.column(name, sa.Text() if is_text[name] else table.c[name].type) for name in names)
    record = sa.func.json_to_recordset(rows).table_valued(*columns, name="item").render_derived(with_types=True).c
    return {name: record[name] for name in names}


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
