"""Statements that are rendered once and executed by the driver itself.

SQLAlchemy caches rendered statements too, but its own work for each execution costs several times the driver's.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Concatenate, NoReturn, ParamSpec

import aiosqlite
from pydantic_core import to_json
from sqlalchemy import ARRAY, JSON, Connection, Dialect, Integer, make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

P = ParamSpec("P")


class Prepared:
    """A statement as a driver takes it, and the conversions of its parameters and columns."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text: str = compiled.string
        # None where the driver takes the parameters by name.
        self.order: Sequence[str] | None = compiled.positiontup
        self.constants: dict[str, Any] = {}
        self.from_python: dict[str, Callable[[Any], Any]] = {}
        for parameter, name in compiled.bind_names.items():
            convert = _converter_to_driver(parameter.type, dialect)
            if not parameter.required:
                self.constants[name] = convert(parameter.value) if convert else parameter.value
            elif convert:
                self.from_python[name] = convert
        columns = [*statement.exported_columns]
        self.has_rows = bool(columns)
        self.to_python = {
            index: convert
            for index, column in enumerate(columns)
            if (convert := column.type.dialect_impl(dialect).result_processor(dialect, None)) is not None
        }

    def bind(self, parameters: dict[str, Any]) -> Any:
        """The parameters as the driver takes them."""
        values = self.constants | parameters
        for name, convert in self.from_python.items():
            values[name] = convert(values[name])
        return values if self.order is None else [values[name] for name in self.order]

    def read(self, row: Sequence[Any]) -> Sequence[Any]:
        """A row with the values that the columns have in Python."""
        values = [*row]
        for index, convert in self.to_python.items():
            values[index] = convert(values[index])
        return values


def _converter_to_driver(type_: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return the conversion of a parameter of this type; JSON, and arrays of integers, are sent as text."""
    if isinstance(type_, JSON):
        return lambda value: to_json(value).decode()
    if isinstance(type_, ARRAY) and isinstance(type_.item_type, Integer):
        return lambda value: f"{{{','.join(map(str, value))}}}"
    converter: Callable[[Any], Any] | None = type_.dialect_impl(dialect).bind_processor(dialect)
    return converter


def prepared(build: Callable[Concatenate[str, P], Any]) -> Callable[Concatenate[str, P], Prepared]:
    """Make a function that builds a statement, for the dialect of this name, return it rendered, and cached.

    The arguments must be hashable.
    """

    def render(dialect: str, /, *args: P.args, **kwargs: P.kwargs) -> Prepared:
        return Prepared(build(dialect, *args, **kwargs), _dialect_named(dialect))

    return cache(render)  # type: ignore[return-value]


@cache
def _dialect_named(name: str) -> Dialect:
    url = make_url({"sqlite": "sqlite+aiosqlite://", "postgresql": "postgresql+psycopg_async://"}[name])
    return url.get_dialect()()


async def execute(session: AsyncSession, statement: Prepared, **parameters: Any) -> Sequence[Sequence[Any]]:
    """Execute the statement on the session's connection, without a flush; return its rows."""
    rows, _ = await execute_and_count(session, statement, **parameters)
    return rows


async def execute_and_count(
    session: AsyncSession, statement: Prepared, **parameters: Any
) -> tuple[Sequence[Sequence[Any]], int]:
    """Execute as `execute` does; return the rows, and for a statement without rows how many it changed."""
    connection = session.bind
    assert isinstance(connection, AsyncConnection)
    assert connection.sync_connection is not None
    driver = connection.sync_connection.connection.driver_connection
    try:
        rows, count = await run(
            driver, statement.text, statement.bind(parameters), has_rows=statement.has_rows, is_prepared=True
        )
    except BaseException as error:
        await connection.run_sync(raise_translated, error, statement.text)
    return ([statement.read(row) for row in rows] if statement.to_python else rows), count


async def run(
    driver: Any, text: str, parameters: Any = None, *, has_rows: bool = False, is_prepared: bool = False
) -> tuple[Sequence[Sequence[Any]], int]:
    """Execute with the driver; return all rows, and how many were changed (on SQLite, triggers included)."""
    if isinstance(driver, aiosqlite.Connection):
        before = driver.total_changes
        # One entry into the connection's thread, where a cursor takes four.
        return [*await driver.execute_fetchall(text, parameters)], driver.total_changes - before
    cursor = await driver.execute(text, parameters, prepare=is_prepared)
    return await cursor.fetchall() if has_rows else (), cursor.rowcount


def raise_translated(connection: Connection, error: BaseException, text: str) -> NoReturn:
    """Raise SQLAlchemy's exception for an error of the driver; a broken connection leaves the pool."""
    connection._handle_dbapi_exception(error, text, None, None, None)
