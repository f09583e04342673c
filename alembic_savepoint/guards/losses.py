"""The data that a revision loses, counted in its transaction: before statements that may lose it, and in the end."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from alembic.util import CommandError

from alembic_savepoint.history.revisions import Revision, assignments, parse
from alembic_savepoint.rehearsal.watching import mentions
from alembic_savepoint.terminal import plural


class TableName(str):
    """A name under which rows are lost; under any other, a column's, values are."""

    __slots__ = ()


@dataclass(slots=True)
class Table:
    """A table, its columns by what stays when they are renamed, and the tables that it refers to."""

    name: str
    schema: str | None
    columns: dict[Any, str]
    parents: list[Any] = field(default_factory=list)

    @property
    def shown(self) -> TableName:
        """Return the name for people and options; with the schema, unless the search_path finds it."""
        return TableName(f"{self.schema}.{self.name}" if self.schema else self.name)


@dataclass(slots=True)
class Count:
    """The rows of a table and the values of its columns; `limits` are those that COUNTS_AS_LOSS lets count, by name."""

    table: Table
    rows: int
    values: dict[Any, int]
    limits: dict[str, int] = field(default_factory=dict)


class Losses:
    """The losses of one revision on a connection.

    Each table is counted once, before the first statement that may take something from it, and again in the end. On
    PostgreSQL it is locked if the statement locks it as well; otherwise rows that others add meanwhile make up for
    those that are lost. A table or column that the revision itself has created, or renamed, is not lost.
    """

    def __init__(
        self, connection: sa.Connection, revision: Revision, refuse: Callable[[Mapping[str, int]], None] | None = None
    ) -> None:
        """`refuse` is called before a statement outside of transactions, with all that it may lose."""
        self.connection = connection
        self.counted = counts_as_loss(revision)
        self.refuse = refuse
        self.is_postgresql = connection.dialect.name == "postgresql"
        self.before = self.tables()
        self.counts: dict[Any, Count] = {}
        self.seen: set[str] = set()
        self.is_looking = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at each statement before it runs."""
        sa.event.listen(self.connection, "before_cursor_execute", self.listen)
        try:
            yield
        finally:
            sa.event.remove(self.connection, "before_cursor_execute", self.listen)

    def listen(self, _: Any, __: Any, sql: str, *___: Any) -> None:
        """Look at a statement, but not at those of the look itself."""
        if not self.is_looking:
            self.is_looking = True
            try:
                self.look(sql)
            finally:
                self.is_looking = False

    def look(self, sql: str) -> None:
        """Count the tables from which a statement may take something."""
        if sql in self.seen:
            return
        self.seen.add(sql)
        if not self.is_postgresql:
            self.follow_renames(sql)
        if not TAKES.search(sql):
            return
        now = self.tables()
        named = {key for key, table in now.items() if mentions(sql, table.name)}
        if TAKES_UNNAMED.search(sql):
            named = set(now)
        elif CASCADES.search(sql):
            named = with_children(named, now)
        keys = [key for key in now if key in named and key in self.before]
        if self.is_postgresql and DROPS.search(sql):
            self.lock(keys, now)
        for key in keys:
            if key not in self.counts:
                self.counts[key] = self.count(self.as_known(key, now[key]), self.counted)
        if self.refuse and DESTROYS.search(sql) and self.is_outside():
            self.refuse(self.differences({}, keys))

    def follow_renames(self, sql: str) -> None:
        """Follow renamed tables and columns on SQLite, where a name is all that they have."""
        if found := RENAMES_TABLE.match(sql):
            old, new = unquoted(found["old"]), unquoted(found["new"])
            if old in self.before and new not in self.before:
                self.before[new] = self.before.pop(old)
                if old in self.counts:
                    self.counts[new] = self.counts.pop(old)
        elif found := RENAMES_COLUMN.match(sql):
            self.rename_column(unquoted(found["table"]), unquoted(found["old"]), unquoted(found["new"]))
        elif found := COPIES.match(sql):
            # Alembic's rebuild of a table: each column of the copy, and what it is filled with.
            for new, filled in zip(split(found["columns"]), split(found["values"]), strict=False):
                if source := re.search(rf"(?:^|\(){IDENTIFIER}\.({IDENTIFIER})", filled.strip()):
                    self.rename_column(unquoted(found["table"]), unquoted(source[1]), unquoted(new.strip()))

    def rename_column(self, table: str, old: str, new: str) -> None:
        """Note the new name of a column."""
        if old != new and table in self.before:
            columns = self.before[table].columns
            first = next((first for first, name in columns.items() if name == old), None)
            if first is not None:
                columns[first] = new

    def as_known(self, key: Any, table: Table) -> Table:
        """Return a table with its columns by what they were when the revision began."""
        return table if self.is_postgresql else aligned(table, self.before[key].columns)

    def lock(self, keys: Iterable[Any], now: Mapping[Any, Table]) -> None:
        """Lock tables against others, as what follows does, so that none adds rows that were not counted."""
        # Dropping a table locks those that it refers to. Those were created first, and writers lock them first.
        locked = sorted({*keys, *(parent for key in keys for parent in now[key].parents if parent in now)})
        if locked and not self.is_outside():
            quote = self.connection.dialect.identifier_preparer.format_table
            names = (quote(sa.table(now[key].name, schema=now[key].schema)) for key in locked)
            self.connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)}")

    def is_outside(self) -> bool:
        """Return whether statements are run outside of transactions (autocommit_block)."""
        return getattr(self.connection.connection.dbapi_connection, "autocommit", False) is True

    def lost(self) -> dict[str, int]:
        """Return the numbers of rows and values that are gone, by "table" or "table.column"."""
        return self.differences(self.tables(), self.counts) if self.counts else {}

    def differences(self, now: Mapping[Any, Table], keys: Iterable[Any]) -> dict[str, int]:
        """Return how much less the tables hold now."""
        by_name = {table.shown: table for table in now.values()}
        found: dict[str, int] = {}
        for key in keys:
            before = self.counts[key]
            name = before.table.shown
            if key in now:
                after = self.count(self.as_known(key, now[key]), {})
            elif name in by_name:  # Another table took its name.
                after = self.count(aligned(by_name[name], before.table.columns), {})
            else:
                after = Count(before.table, 0, {})
            rows = max(before.rows - after.rows, 0)
            found[name] = min(rows, before.limits.get(name, rows))
            for column, count in before.values.items() if after.table is not before.table else ():
                if column in self.before[key].columns:  # Otherwise the revision has added it.
                    full = f"{name}.{before.table.columns[column]}"
                    less = max(count - after.values.get(column, 0) - rows, 0)
                    found[full] = min(less, before.limits.get(full, less))
        return {name: count for name, count in found.items() if count}

    def count(self, table: Table, counted: Mapping[str, str]) -> Count:
        """Count the rows and values of a table, in one pass."""
        rows = sa.table(table.name, *map(sa.column, table.columns.values()), schema=table.schema)
        counts = sa.select(sa.func.count(), *map(sa.func.count, rows.columns)).select_from(rows)
        total, *values = self.connection.execute(counts).one()
        limits = {}
        names = {table.shown: sa.true(), **{f"{table.shown}.{each.name}": each.is_not(None) for each in rows.columns}}
        for name in counted.keys() & names.keys():
            query = sa.select(sa.func.count()).select_from(rows).where(names[name], sa.text(counted[name]))
            limits[name] = self.connection.scalar(query) or 0
        return Count(table, total, dict(zip(table.columns, values, strict=True)), limits)

    def tables(self) -> dict[Any, Table]:
        """Return the tables that there are now."""
        if self.is_postgresql:
            rows = self.connection.exec_driver_sql(TABLES)
            return {
                oid: Table(name, schema, dict(zip(numbers, columns, strict=True)), parents)
                for oid, name, schema, numbers, columns, parents in rows
            }
        inspector = sa.inspect(self.connection)
        return {
            name: Table(name, None, {column["name"]: column["name"] for column in inspector.get_columns(name)})
            for name in inspector.get_table_names()
        }


def aligned(table: Table, known: Mapping[Any, str]) -> Table:
    """Return a table with its columns by the keys that these names have."""
    keys = {name: key for key, name in known.items()}
    return replace(table, columns={keys.get(name, (name,)): name for name in table.columns.values()})


def with_children(keys: Set[Any], tables: Mapping[Any, Table]) -> set[Any]:
    """Return the tables, and those that refer to them, and so on."""
    found = set(keys)
    while more := {key for key, table in tables.items() if found & set(table.parents)} - found:
        found |= more
    return found


def counts_as_loss(revision: Revision) -> dict[str, str]:
    """Return the conditions in SQL, by table or column, of the rows that count as a loss: {"users.fax": "FALSE"}."""
    said = assignments(parse(revision.source)).get("COUNTS_AS_LOSS")
    return dict(ast.literal_eval(said)) if said else {}


def may_destroy(code: str) -> bool:
    """Return whether the text of a revision has something that drops, deletes or empties rows or columns."""
    return DESTROYS_IN_PYTHON.search(code) is not None or DESTROYS.search(code) is not None


def losses_text(losses: Mapping[str, int]) -> str:
    """Return losses to print."""
    return ", ".join(
        f"{name}: {plural(count, 'row' if isinstance(name, TableName) else 'value')}" for name, count in losses.items()
    )


def refuse_losses(losses: Mapping[str, int], accepted: Set[str], direction: str, unchanged: str) -> None:
    """Raise CommandError for a loss that was not accepted; `unchanged` says what was not changed."""
    refused = {name: count for name, count in losses.items() if not {name, "all"} & accepted}
    if not refused:
        return
    meant = (
        f" If nobody needs them, also elsewhere, write it into the revision: COUNTS_AS_LOSS = "
        f"{dict.fromkeys(refused, 'FALSE')}."
        if direction == "upgrade"
        else ""
    )
    raise CommandError(
        f"This {direction} would lose data ({losses_text(refused)}). {unchanged} Take a copy first: "
        f"alembic-savepoint save. Then, to lose it: alembic -x accept-loss={','.join(losses)} {direction} …{meant}"
    )


def split(values: str) -> list[str]:
    """Return the parts between the commas that are in no parentheses."""
    return re.findall(r"(?:[^,()]|\((?:[^()]|\([^()]*\))*\))+", values)


def unquoted(name: str) -> str:
    """Return a name without its quotes."""
    return name.strip('"`[]')


IDENTIFIER = r'(?:"[^"]+"|`[^`]+`|\[[^]]+\]|\w+)'
KEEPS = (
    "CONSTRAINT NOT DEFAULT IDENTITY EXPRESSION INDEX VIEW MATERIALIZED TRIGGER FUNCTION PROCEDURE ROUTINE AGGREGATE "
    "OPERATOR SEQUENCE POLICY RULE ROLE USER STATISTICS COLLATION CAST PUBLICATION SUBSCRIPTION EVENT SERVER"
)
"""Words after DROP whose object holds no rows."""
DESTROYS = re.compile(rf"\bDROP\s+(?!(?:{'|'.join(KEEPS.split())})\b)|\bTRUNCATE\b|(?<!\bON )\bDELETE\b", re.IGNORECASE)
DESTROYS_IN_PYTHON = re.compile(r"\bdrop_(?:table|column|all)\b|\.drop\(|\bDrop(?:Table|Column)|(?i:=\s*NULL\b)")
TAKES = re.compile(
    rf"{DESTROYS.pattern}|(?<!\bON )(?<!\bFOR )\bUPDATE\b|\bMERGE\b|\bREPLACE\s+INTO\b|\bALTER\b.*\bUSING\b",
    re.IGNORECASE | re.DOTALL,
)
"""Statements that may take rows or values from a table that they name; if they take none, counting does no harm."""
DROPS = re.compile(r"\bDROP\b|\bTRUNCATE\b", re.IGNORECASE)
CASCADES = re.compile(r"\bCASCADE\b|\bDELETE\b", re.IGNORECASE)
TAKES_UNNAMED = re.compile(r"\bDROP\s+(?:SCHEMA|TYPE|DOMAIN|EXTENSION|OWNED)\b.*\bCASCADE\b", re.IGNORECASE | re.DOTALL)
RENAMES_TABLE = re.compile(
    rf"\s*ALTER\s+TABLE\s+(?P<old>{IDENTIFIER})\s+RENAME\s+TO\s+(?P<new>{IDENTIFIER})", re.IGNORECASE
)
RENAMES_COLUMN = re.compile(
    rf"\s*ALTER\s+TABLE\s+(?P<table>{IDENTIFIER})\s+RENAME\s+(?:COLUMN\s+)?(?P<old>{IDENTIFIER})\s+TO\s+"
    rf"(?P<new>{IDENTIFIER})",
    re.IGNORECASE,
)
COPIES = re.compile(
    rf"\s*INSERT\s+INTO\s+[\x22`]?_alembic_tmp_\w+[\x22`]?\s*\((?P<columns>[^)]*)\)\s*SELECT\s+(?P<values>.*?)\s+FROM\s+"
    rf"(?P<table>{IDENTIFIER})\s*$",
    re.IGNORECASE | re.DOTALL,
)
TABLES = """
    SELECT pg_class.oid::bigint, relname::text, CASE WHEN NOT pg_table_is_visible(pg_class.oid) THEN nspname::text END,
           ARRAY(SELECT attnum::int FROM pg_attribute
                 WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
           ARRAY(SELECT confrelid::bigint FROM pg_constraint WHERE conrelid = pg_class.oid AND contype = 'f')
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND nspname NOT IN ('pg_catalog', 'information_schema')
    ORDER BY pg_class.oid
"""
