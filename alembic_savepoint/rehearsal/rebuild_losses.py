"""Losses of a table's rebuild on SQLite: Alembic's batch mode copies a table, drops it, and renames the copy."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from alembic_savepoint.doctor.catalog import Part, schema_of
from alembic_savepoint.rehearsal.watching import UnsafeStep, Watch, mentions

TYPES = ("null", "integer", "real", "text", "blob")


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a table, as numbers."""

    rows: int
    values: dict[str, dict[str, int]]
    """The number of values of each type, by column."""
    children: dict[str, int]
    """The number of rows of each table that refers to it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The definition of a table, and what depends on it."""

    parts: frozenset[Part]
    """Its columns, constraints and indexes."""
    triggers: list[str]
    readers: list[str]
    """The views, and triggers of other tables, that name it."""


class Rebuilds:
    """The tables that one revision rebuilds."""

    def __init__(self, meant: str) -> None:
        """`meant` is the revision's text: what it names is changed on purpose."""
        self.meant = meant
        self.copies = ""
        self.shapes: dict[str, Shape] = {}
        """The shape of each table before its first rebuild."""
        self.dropped: dict[str, Contents] = {}
        """The contents of each table that was dropped and is to be renamed back."""
        self.found: list[UnsafeStep] = []

    def look(self, watch: Watch, sql: str) -> None:
        """Look at a statement before it runs: if it drops a table whose rows were copied, remember the table."""
        self.look_at_rebuilt(watch)
        if COPIES.match(sql):
            self.copies += f"\n{sql}"
        elif dropped := DROPS.match(sql):
            name = dropped["name"].strip('"`[]')
            if mentions(self.copies, name) and has_table(watch, name):
                self.shapes.setdefault(name, shape_of(watch, name))
                self.dropped[name] = contents_of(watch, name)

    def look_at_rebuilt(self, watch: Watch) -> None:
        """Compare the contents of each table that exists again, before anything else is done to it."""
        for name in [name for name in self.dropped if has_table(watch, name)]:
            self.found += compare_contents(name, self.dropped.pop(name), contents_of(watch, name))

    def losses(self, watch: Watch) -> Iterator[UnsafeStep]:
        """Yield what the rebuilds have lost by the end of the revision."""
        self.look_at_rebuilt(watch)
        yield from self.found
        for name, before in self.shapes.items():
            if has_table(watch, name):
                after = shape_of(watch, name)
                yield from self.compare_parts(name, before, after)
                for trigger in before.triggers:
                    if trigger not in after.triggers and not mentions(self.meant, trigger):
                        yield lost(f"the trigger {trigger} on {name}")

    def obstacles(self) -> Iterator[UnsafeStep]:
        """Yield what prevented rebuilds that did not finish."""
        for name in self.dropped:
            for reader in self.shapes[name].readers:
                yield UnsafeStep(
                    "rebuild-under-reader",
                    f"The {reader} reads {name}, and SQLite rebuilds no table under it.",
                    "Drop it in the revision before that, and create it again after.",
                )

    def is_meant(self, table: str, name: str) -> bool:
        """Return whether the revision names it, also without the naming convention's prefix of a CHECK."""
        short = name.removeprefix(f"ck_{table}_")
        return mentions(self.meant, name) or f"drop_constraint({short!r}" in self.meant

    def compare_parts(self, name: str, before: Shape, after: Shape) -> Iterator[UnsafeStep]:
        """Yield columns, constraints and indexes that are gone or changed."""
        kept = {(part.kind, part.text) for part in after.parts if part.kind != "column"}
        columns = {part.name: part.text for part in after.parts if part.kind == "column"}
        gone = [part.name for part in before.parts if part.kind == "column" and part.name not in columns]
        for part in sorted(before.parts, key=lambda part: part.identity):
            if self.is_meant(name, part.name):
                continue
            if part.kind == "column" and part.name in gone:
                yield lost(f"the column {name}.{part.name} with its values")
            elif any(mentions(part.text, each) for each in gone):
                continue
            elif part.kind == "column" and part.text != columns[part.name]:
                yield lost(f"what {name}.{part.name} is: {part.text}; it becomes {columns[part.name]}")
            elif part.kind == "table" and part not in after.parts:
                yield lost(f"{part.text} of {name}")
            elif part.kind != "column" and (part.kind, part.text) not in kept:
                yield lost(f"{part.kind} {part.name or 'without a name'} on {name}: {part.text}")


def compare_contents(name: str, before: Contents, after: Contents) -> Iterator[UnsafeStep]:
    """Yield lost rows, and values that changed their type."""
    if after.rows < before.rows:
        yield lost(f"{before.rows - after.rows:,} of the {before.rows:,} rows of {name}")
    for child, rows in before.children.items():
        if after.children.get(child, rows) < rows:
            yield lost(f"{rows - after.children[child]:,} of the {rows:,} rows of {child}, which refer to {name}")
    for column, values in before.values.items():
        now = after.values.get(column, values)
        changes = [f"{values[type]:,} {type} are now {now[type]:,}" for type in TYPES if values[type] != now[type]]
        if changes and after.rows == before.rows:
            yield UnsafeStep(
                "rebuild-changed-values",
                f"The rebuild changes the type of values in {name}.{column}: {', '.join(changes)}.",
                "SQLite converts what it copies to the declared type of the new column.",
            )


def lost(what: str) -> UnsafeStep:
    """Return a loss."""
    return UnsafeStep("rebuild-loss", f"The rebuild loses {what}.", "Recreate it in the revision, after the rebuild.")


# --- a table, read from SQLite's catalog ------------------------------------------------------------------------------


def has_table(watch: Watch, name: str) -> bool:
    """Return whether the table exists now."""
    return bool(watch.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))


def shape_of(watch: Watch, name: str) -> Shape:
    """Return the definition of a table now."""
    others = watch.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master")
    return Shape(
        parts=schema_of(watch.connection)[name],
        triggers=[other for type, other, table, _ in others if type == "trigger" and table == name],
        readers=[
            f"{type} {other}"
            for type, other, table, sql in others
            if type in ("view", "trigger") and table != name and mentions(sql, name)
        ],
    )


def contents_of(watch: Watch, name: str) -> Contents:
    """Return the contents of a table now."""
    tables = watch.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> ?", (name,))
    return Contents(
        rows=count(watch, name),
        values=values_of(watch, name),
        children={
            other: count(watch, other)
            for (other,) in tables
            if any(key[2] == name for key in watch.execute(f"PRAGMA foreign_key_list({quoted(other)})"))
        },
    )


def values_of(watch: Watch, table: str) -> dict[str, dict[str, int]]:
    """Return the number of values of each type, by column, counted in one pass."""
    columns = [name for _, name, *_ in watch.execute(f"PRAGMA table_xinfo({quoted(table)})")]
    sums = [f"coalesce(sum(typeof({quoted(column)}) = '{type}'), 0)" for column in columns for type in TYPES]
    (counts,) = watch.execute(f"SELECT {', '.join(sums)} FROM {quoted(table)}")  # noqa: S608
    numbers = iter(counts)
    return {column: {type: next(numbers) for type in TYPES} for column in columns}


def count(watch: Watch, table: str) -> int:
    """Return the number of rows of a table."""
    ((rows,),) = watch.execute(f"SELECT count(*) FROM {quoted(table)}")  # noqa: S608
    return int(rows)


def quoted(name: str) -> str:
    """Return a name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


COPIES = re.compile(r"\s*(INSERT\b.*\bSELECT|CREATE\s+TABLE\b.*\bAS)\b", re.IGNORECASE | re.DOTALL)
DROPS = re.compile(r"""\s*DROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?P<name>"[^"]+"|`[^`]+`|\[[^]]+\]|\w+)""", re.IGNORECASE)
