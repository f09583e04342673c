"""The schema of a database, compared with those of its revisions: drift, and the most similar revision."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from alembic_savepoint.doctor.catalog import OBJECTS, Part, Schema
from alembic_savepoint.doctor.comparison import Difference, RevisionFailed, differences, schema_of_revision
from alembic_savepoint.doctor.diagnosis import Case, Diagnosis, Next, event_text, or_if
from alembic_savepoint.doctor.objects import tables_in, whole_schema_of
from alembic_savepoint.doctor.scratch import NoScratch, Scratch, scratch
from alembic_savepoint.environment import no_bytecode
from alembic_savepoint.project import Project

LEFT_OVER = "_alembic_tmp_"
"""Alembic's prefix of the table that it fills on SQLite before it drops the old one."""

MOST = 20
"""The number of differences listed for a schema that no revision has."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """The revisions, or heads together, that have the schema at hand, the evidence, and what to run."""

    exact: list[tuple[str, ...]]
    lines: list[str]
    steps: list[Next]

    @property
    def restamp(self) -> tuple[str, ...]:
        """The revisions that a repair would write; empty unless exactly one fits."""
        return self.exact[0] if len(self.exact) == 1 else ()


class SchemaAtHand:
    """The schema of the database, to be compared with those of the revisions."""

    def __init__(self, case: Case, connection: sa.Connection, project: Project, place: Scratch) -> None:
        self.case = case
        self.dialect = connection.dialect
        self.project = project
        self.place = place
        whole = whole_schema_of(connection, project)
        self.actual: Schema = {table: parts for table, parts in whole.items() if not table.startswith(LEFT_OVER)}
        self.elsewhere = elsewhere(connection)
        self.obstacle: str | None = None
        """The reason why it could not be compared."""
        self.made: dict[tuple[str, ...], Schema] = {}
        """What revisions make, as far as it was asked for."""

    @classmethod
    @contextmanager
    def of(cls, case: Case, connection: sa.Connection, project: Project) -> Iterator["SchemaAtHand"]:
        """Read the schema, and provide a scratch database to compare it."""
        with scratch(connection, project.environment.schemas, project.options.scratch_url) as place:
            yield cls(case, connection, project, place)

    @property
    def tables(self) -> list[str]:
        """The names of its tables."""
        return sorted(tables_in(self.actual))

    @property
    def is_unversioned(self) -> bool:
        """Return whether there are tables of the models, and no revision."""
        return not self.case.applied.current and any(
            table.key in self.tables for table in self.project.environment.tables
        )

    def made_by(
        self, revisions: Sequence[str], after_each: Callable[[str, sa.Connection], None] | None = None
    ) -> Schema | None:
        """Return the schema that these revisions make; None, and an obstacle, if that is not known."""
        if self.case.is_broken:
            self.obstacle = "nothing is executed before the revision files form a history"
        key = tuple(sorted(revisions))
        if self.obstacle:
            return None
        if key in self.made and not after_each:
            return self.made[key]
        try:
            with no_bytecode():
                self.made[key] = schema_of_revision(self.place, revisions, self.project, after_each)
            return self.made[key]
        except RevisionFailed as error:
            self.obstacle = f"on an empty database the revisions fail: {error}"
        except NoScratch as error:
            self.obstacle = str(error)
        return None

    def against(self, revisions: Sequence[str]) -> list[Difference]:
        """Return the differences from these revisions; none, and an obstacle, if they are not known."""
        made = self.made_by(revisions)
        return [] if made is None else differences(self.actual, made)

    def against_all(self) -> dict[tuple[str, ...], list[Difference]]:
        """Return the differences from each revision, and all heads together; empty if one is not known."""
        history = self.case.history
        positions: list[tuple[str, ...]] = [(revision.id,) for revision in history.in_order()]
        # If one depends on another, the other is not written into alembic_version.
        heads = set(history.heads) - history.ancestors(*history.heads)
        if len(heads) > 1:
            positions.append(tuple(sorted(heads)))
        found: dict[tuple[str, ...], list[Difference]] = {}
        # From the last one on: the path to it passes all others except those of other branches.
        for position in reversed(positions):
            if position not in found:
                found |= self.on_the_way_to(position)
        return {} if self.obstacle else {position: found[position] for position in positions}

    def on_the_way_to(self, position: Sequence[str]) -> dict[tuple[str, ...], list[Difference]]:
        """Return the same for this position, and each revision before it without anything of another branch."""
        found: dict[tuple[str, ...], list[Difference]] = {}
        applied: set[str] = set()

        def look(revision: str, place: sa.Connection) -> None:
            applied.add(revision)
            if applied == {revision, *self.case.history.ancestors(revision)}:
                found[revision,] = differences(self.actual, whole_schema_of(place, self.project))

        made = self.made_by(position, look)
        return {} if made is None else {**found, tuple(position): differences(self.actual, made)}

    def likeness(self) -> Likeness:
        """Return the revisions that have this schema."""
        found = self.against_all()
        exact = [position for position, differs in found.items() if not differs]
        lines = [f"Its schema is exactly that of {self.named(position)}" for position in exact]
        if len(exact) == 1:
            step = Next("alembic-savepoint doctor --repair", f"Write {' and '.join(exact[0])} into alembic_version:")
            return Likeness(exact, lines, [step])
        if exact:
            stamps = [f"alembic stamp --purge {' '.join(each)}" for each in exact]
            choose = "Several revisions have this schema. If you know which one was applied last:"
            return Likeness(exact, lines, [Next(stamps[0], choose), *(Next(stamp, "Or:") for stamp in stamps[1:])])
        load = Next("alembic-savepoint saves", "List the saves; `alembic-savepoint load NAME` restores one:")
        if not found:
            why = f"The schema was not compared: {self.obstacle or 'there are no revisions'}"
            return Likeness([], [why], [load])
        nearest = min(found, key=lambda position: len(found[position]))
        lines = [f"No revision has its schema. The nearest is {self.named(nearest)}:"]
        lines += [str(difference) for difference in found[nearest][:MOST]]
        if (more := len(found[nearest]) - MOST) > 0:
            lines.append(f"and {more} more")
        return Likeness([], lines, [Next(None, "Undo by hand what differs by mistake, and run doctor again."), load])

    def named(self, position: Sequence[str]) -> str:
        """Return revisions to print."""
        return " and ".join(map(self.case.named, position))

    def obstacles(self) -> Iterator[Diagnosis]:
        """Diagnose that it could not be compared, unless other diagnoses say why."""
        if self.obstacle and not self.case.is_broken:
            step = Next("alembic-savepoint doctor", "When that is fixed, run doctor again:")
            yield Diagnosis("not-compared", "The schema could not be compared.", [f"Why: {self.obstacle}"], [step])


def schema_faults(case: Case, schema: SchemaAtHand) -> Iterator[Diagnosis]:
    """Compare the schema with that of its revision, if all revisions of the database have files."""
    current = case.applied.current
    if schema.is_unversioned:
        evidence = [f"Tables: {', '.join(schema.tables)}", "alembic_version: no revision"]
        evidence += [f"The record of the database: {event_text(event)}" for event in case.applied.record[-1:]]
        like = schema.likeness()
        why = "There are tables, but alembic_version, which holds their revision, is empty or missing."
        yield Diagnosis("unversioned", why, [*evidence, *like.lines], like.steps, like.restamp)
    before = set() if case.is_broken else case.history.ancestors(*current)
    newest, older = ([id for id in current if (id in before) is is_older] for is_older in (False, True))
    differs = schema.against(newest) if newest else []
    if not differs and not older:
        return
    if hidden := [each.table for each in differs if each.actual is None and each.table in schema.elsewhere]:
        yield in_another_schema(schema, hidden)
        return
    if not schema.tables:
        yield all_dropped(schema, differs)
        return
    evidence = [f"alembic_version: {schema.named(current)}", *map(str, differs)]
    like = schema.likeness()
    if older:
        why = f"alembic_version holds {', '.join(older)} as well as {', '.join(newest)}, which comes after it."
        yield Diagnosis("wrong-revision", why, [*evidence, *like.lines], like.steps, like.restamp)
    elif like.exact:
        why = "The schema is exactly that of another revision than alembic_version says."
        doubt, steps = undone_by_hand(schema, differs, like)
        yield Diagnosis("wrong-revision", why, [*evidence, *like.lines, *doubt], [*like.steps, *steps], like.restamp)
    else:
        count = "1 difference" if len(differs) == 1 else f"{len(differs)} differences"
        why = f"The schema is not what {', '.join(current)} makes: {count}."
        yield Diagnosis("drift", why, evidence, steps_against_drift(schema, differs))


# As the parts of the commands that would bring them together.
ELSEWHERE = sa.text("""
    SELECT relname, format('%I.%I', nspname, relname), quote_ident(nspname), quote_ident(current_schema()),
        quote_ident(current_user), current_setting('search_path')
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND pg_table_is_visible(pg_class.oid)
    AND nspname <> current_schema() AND nspname !~ '^pg_'
""")


def elsewhere(connection: sa.Connection) -> dict[str, Any]:
    """Return the tables that PostgreSQL's search_path finds in another schema than the current one, by name."""
    return {row[0]: row for row in connection.execute(ELSEWHERE)} if connection.dialect.name == "postgresql" else {}


def in_another_schema(schema: SchemaAtHand, tables: list[str]) -> Diagnosis:
    """Diagnose tables in another schema than the current one, such as one that is named like the role."""
    _, table, there, current, role, path = schema.elsewhere[tables[0]]
    why = f"Tables are in the schema {there}, and new ones would go to {current}, which comes first in the search_path."
    evidence = [f"search_path: {path}, and the role is {role}", f"Only in {there}: {', '.join(tables)}"]
    steps = [
        Next(
            f"ALTER ROLE {role} SET search_path = {there};",
            "If they are right there, in psql; it counts for new connections:",
        ),
        Next(
            f"ALTER TABLE {table} SET SCHEMA {current};",
            f"Or, if they belong in {current}, for each of them and Alembic's own:",
        ),
        Next("alembic-savepoint doctor", "Then run doctor again:"),
    ]
    return Diagnosis("drift", why, evidence, steps)


def all_dropped(schema: SchemaAtHand, differs: list[Difference]) -> Diagnosis:
    """Diagnose a database without tables that is at a revision, as `metadata.drop_all` leaves it."""
    missing = sum(each.kind == "table" for each in differs)
    evidence = [f"alembic_version: {schema.named(schema.case.applied.current)}", f"All {missing} tables are missing"]
    evidence += [f"Left: {kind} {name}" for name, parts in sorted(schema.actual.items()) for kind in kinds(parts)]
    words = "Or, if they were dropped on purpose, create them again without rows:"
    if schema.actual:
        words = "Or, if they were dropped on purpose, drop what is left, and create all again without rows:"
    steps = [
        Next("alembic-savepoint saves", "List the saves; `alembic-savepoint load NAME` restores one:"),
        Next("alembic stamp --purge base && alembic upgrade head", words),
    ]
    return Diagnosis("wrong-revision", "alembic_version names a revision, and its tables are gone.", evidence, steps)


def kinds(parts: Iterable[Part]) -> list[str]:
    """Return the kinds of these parts."""
    return sorted({part.kind for part in parts})


def undone_by_hand(schema: SchemaAtHand, differs: list[Difference], like: Likeness) -> tuple[list[str], list[Next]]:
    """Return the evidence and steps for the other explanation: alembic_version is right, and something was dropped."""
    current = schema.case.applied.current
    earlier = [each for each in like.exact if set(each) <= schema.case.history.ancestors(*current)]
    if not earlier:
        return [], []
    record = [line for id in current for line in schema.case.record_of(id)]
    doubt = (
        f"Either alembic_version is wrong, or what came after {' and '.join(earlier[-1])} was applied and undone by"
        " hand"
    )
    return [*record, doubt], or_if("it was undone by hand", steps_against_drift(schema, differs))


def steps_against_drift(schema: SchemaAtHand, differs: list[Difference]) -> list[Next]:
    """Return the SQL if it is clear and loses nothing, and saves for the rest."""
    sketches = [(difference, statement(difference, schema.dialect)) for difference in differs]
    shell_name = "sqlite3" if schema.dialect.name == "sqlite" else "psql"
    steps = [Next(sql, f"In {shell_name}, for {each.kind} {each.name}:") for each, sql in sketches if sql]
    if any(sql is None for _, sql in sketches):
        rest = "the rest" if steps else "it"
        words = f"Undo {rest} by hand, or restore a save with `alembic-savepoint load NAME`. The saves:"
        steps.append(Next("alembic-savepoint saves", words))
    return [*steps, Next("alembic-savepoint doctor", "Then run doctor again:")]


def statement(difference: Difference, dialect: sa.Dialect) -> str | None:
    """Return the statement that removes a difference; None if that is not clear, or could lose data."""
    quote = dialect.identifier_preparer.quote
    *schema, bare = difference.table.split(".", 1)
    table, name, wanted = ".".join(map(quote, [*schema, bare])), quote(difference.name), difference.expected
    if difference.kind in OBJECTS:
        return None
    if difference.kind == "index":
        drop = f"DROP INDEX {'.'.join([*map(quote, schema), name])};" if difference.actual else ""
        unique, rest = ("UNIQUE ", wanted[7:]) if wanted and wanted.startswith("UNIQUE ") else ("", wanted)
        return f"{drop} CREATE {unique}INDEX {name} ON {table} {rest};".strip() if wanted else drop
    if difference.kind == "column":
        # Old rows have no value for it, it is computed, or it is an enum, whose values are listed in parentheses.
        is_unclear = wanted is None or re.search(r"NOT NULL|GENERATED| AS \(| \('", wanted)
        return None if difference.actual or is_unclear else f"ALTER TABLE {table} ADD COLUMN {name} {wanted};"
    if difference.kind == "table" or not difference.name or dialect.name == "sqlite":
        return None
    actions = [f"DROP CONSTRAINT {name}"] if difference.actual else []
    if wanted:
        actions.append(f"ADD CONSTRAINT {name} {f'CHECK ({wanted})' if difference.kind == 'CHECK' else wanted}")
    return f"ALTER TABLE {table} {', '.join(actions)};"
