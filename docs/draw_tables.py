"""Draw the tables of models.py in ARCHITECTURE.md, as a Mermaid diagram: `make tables`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Column, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlmodel import SQLModel

import models  # noqa: F401 # defines the tables

FILE = Path(__file__).parent.parent / "ARCHITECTURE.md"
DIAGRAM = re.compile(r"(?<=```mermaid\n)erDiagram\n.*?(?=```)", re.DOTALL)
POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


def draw_tables() -> str:
    """The tables in the order of their foreign keys: each column with its type, its keys, and what is to be known."""
    tables = SQLModel.metadata.sorted_tables
    relations = [line for table in tables for line in draw_relations(table)]
    columns = [line for table in tables for line in draw_columns(table)]
    return "".join(f"{line}\n" for line in ("erDiagram", *relations, *columns))


def draw_relations(table: Table) -> Iterator[str]:
    """A line for each foreign key: from the table that it refers to, to this one."""
    for key in sorted(table.foreign_key_constraints, key=lambda key: [*key.column_keys]):
        referred = "|o" if any(column.nullable for column in key.columns) else "||"
        referring = "o|" if tuple(key.columns) in unique_columns(table) else "o{"
        yield f"    {key.referred_table.name} {referred}--{referring} {table.name} : {key.column_keys[0]}"


def draw_columns(table: Table) -> Iterator[str]:
    """The table with a line for each column."""
    yield f"    {table.name} {{"
    for column in table.columns:
        kind = column.type.compile(POSTGRESQL).lower().replace("timestamp with time zone", "timestamptz")
        line = f"        {kind} {column.name} {', '.join(keys_of(column))}".rstrip()
        notes = ["null"] if column.nullable else []
        notes += [
            f"unique ({', '.join(each.name for each in columns)})"
            for columns in unique_columns(table)
            if len(columns) > 1 and columns[0] is column and columns != tuple(table.primary_key)
        ]
        yield f'{line} "{"; ".join(notes)}"' if notes else line
    yield "    }"


def keys_of(column: Column[Any]) -> Iterator[str]:
    """The keys that a column is, or is a part of."""
    if column.primary_key:
        yield "PK"
    if column.foreign_keys:
        yield "FK"
    if (column,) in unique_columns(column.table) and not column.primary_key:
        yield "UK"


def unique_columns(table: Table) -> list[tuple[Column[Any], ...]]:
    """The columns of the primary key, and of each unique constraint."""
    keys = [key for key in table.constraints if isinstance(key, PrimaryKeyConstraint | UniqueConstraint)]
    return sorted((tuple(key.columns) for key in keys), key=lambda columns: [column.name for column in columns])


if __name__ == "__main__":
    text = FILE.read_text(encoding="utf-8")
    FILE.write_text(DIAGRAM.sub(lambda _: draw_tables(), text), encoding="utf-8")
