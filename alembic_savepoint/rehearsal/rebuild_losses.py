"""Losses of a table's rebuild on SQLite: Alembic's batch mode copies a table, drops it, and renames the copy."""

import re
from collections.abc import Iterator

from alembic_savepoint.doctor.catalog import Part, schema_of
from alembic_savepoint.rehearsal.watching import UnsafeStep, Watch, mentions

TYPES = ("null", "integer", "real", "text", "blob")


Values = dict[str, dict[str, int]]
"""The number of values of each type, by column."""


class Rebuilds:
    """The tables that one revision drops and creates again."""

    def __init__(self, watch: Watch, meant: str) -> None:
        """`meant` is the revision's text: what it names is changed on purpose."""
        self.watch = watch
        self.meant = meant
        self.parts: dict[str, frozenset[Part]] = {}
        """The columns, constraints and indexes of each table before it was dropped for the first time."""
        self.triggers: dict[str, list[str]] = {}
        """The triggers on each of these tables."""
        self.dropped: dict[str, Values] = {}
        """The values in each table that does not exist again yet."""
        self.changed: list[UnsafeStep] = []

    def look(self, sql: str) -> None:
        """Look at a statement before it runs: if it drops a table, remember the table."""
        self.look_at_rebuilt()
        if dropped := DROPS.match(sql):
            name = dropped["name"].strip('"`[]')
            if self.has_table(name):
                self.parts.setdefault(name, self.parts_of(name))
                self.triggers.setdefault(name, self.triggers_on(name))
                self.dropped[name] = values_of(self.watch, name)

    def look_at_rebuilt(self) -> None:
        """Compare the values in each table that exists again, before anything else is done to it."""
        for name in filter(self.has_table, list(self.dropped)):
            self.changed += compare_values(name, self.dropped.pop(name), values_of(self.watch, name))

    def losses(self) -> Iterator[UnsafeStep]:
        """Yield what the rebuilds have lost by the end of the revision, besides rows, which losses.py counts."""
        self.look_at_rebuilt()
        yield from self.changed
        for name in filter(self.has_table, self.parts):
            yield from self.compare_parts(name, self.parts[name], self.parts_of(name))
            for trigger in set(self.triggers[name]) - set(self.triggers_on(name)):
                if not mentions(self.meant, trigger):
                    yield lost(f"the trigger {trigger} on {name}")

    def has_table(self, name: str) -> bool:
        """Return whether the table exists now."""
        return bool(self.watch.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))

    def parts_of(self, name: str) -> frozenset[Part]:
        """Return the definition of a table now; none of Alembic's own tables, which no revision rebuilds."""
        return schema_of(self.watch.connection).get(name, frozenset())

    def triggers_on(self, name: str) -> list[str]:
        """Return the triggers on a table now."""
        found = self.watch.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (name,))
        return [trigger for (trigger,) in found]

    def is_meant(self, table: str, name: str) -> bool:
        """Return whether the revision names it, also without the naming convention's prefix of a CHECK."""
        short = name.removeprefix(f"ck_{table}_")
        return mentions(self.meant, name) or f"drop_constraint({short!r}" in self.meant

    def compare_parts(self, name: str, before: frozenset[Part], after: frozenset[Part]) -> Iterator[UnsafeStep]:
        """Yield columns, constraints and indexes that are gone or changed."""
        kept = {(part.kind, part.text) for part in after if part.kind != "column"}
        columns = {part.name: part.text for part in after if part.kind == "column"}
        gone = [part.name for part in before if part.kind == "column" and part.name not in columns]
        for part in sorted(before, key=lambda part: part.identity):
            if self.is_meant(name, part.name):
                continue
            if part.kind == "column" and part.name in gone:
                yield lost(f"the column {name}.{part.name} with its values")
            elif any(mentions(part.text, each) for each in gone):
                continue
            elif part.kind == "column" and part.text != columns[part.name]:
                yield lost(f"what {name}.{part.name} is: {part.text}; it becomes {columns[part.name]}")
            elif part.kind == "table" and part not in after:
                yield lost(f"{part.text} of {name}")
            elif part.kind != "column" and (part.kind, part.text) not in kept:
                yield lost(f"{part.kind} {part.name or 'without a name'} on {name}: {part.text}")


def compare_values(name: str, before: Values, after: Values) -> Iterator[UnsafeStep]:
    """Yield the columns whose values changed their type, unless there are other rows."""
    for column in before.keys() & after.keys():
        old, new = before[column], after[column]
        changes = [f"{old[type]:,} {type} are now {new[type]:,}" for type in TYPES if old[type] != new[type]]
        if changes and sum(old.values()) == sum(new.values()):
            yield UnsafeStep(
                "rebuild-changed-values",
                f"The rebuild changes the type of values in {name}.{column}: {', '.join(changes)}.",
                "SQLite converts what it copies to the declared type of the new column.",
            )


def lost(what: str) -> UnsafeStep:
    """Return a loss."""
    return UnsafeStep("rebuild-loss", f"The rebuild loses {what}.", "Recreate it in the revision, after the rebuild.")


def values_of(watch: Watch, table: str) -> Values:
    """Return the number of values of each type, by column, counted in one pass."""
    columns = [name for _, name, *_ in watch.execute(f"PRAGMA table_xinfo({quoted(table)})")]
    sums = [f"coalesce(sum(typeof({quoted(column)}) = '{type}'), 0)" for column in columns for type in TYPES]
    # All names are quoted.
    (counts,) = watch.execute(f"SELECT {', '.join(sums)} FROM {quoted(table)}")  # noqa: S608  # nosec B608
    numbers = iter(counts)
    return {column: {type: next(numbers) for type in TYPES} for column in columns}


def quoted(name: str) -> str:
    """Return a name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


DROPS = re.compile(r"""\s*DROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?P<name>"[^"]+"|`[^`]+`|\[[^]]+\]|\w+)""", re.IGNORECASE)
