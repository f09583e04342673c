"""Statements that are rendered once and executed by the driver itself.

SQLAlchemy caches rendered statements too, but its own work for each execution costs several times the driver's.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Concatenate, ParamSpec

from pydantic_core import to_json
from sqlalchemy import ARRAY, JSON, Dialect, Integer, make_url

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
