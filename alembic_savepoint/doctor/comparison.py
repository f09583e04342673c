"""The schema that a database has, against the one that it should have."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import ops
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext

from alembic_savepoint.connections import create_engine, reading
from alembic_savepoint.doctor.catalog import Schema, schema_of
from alembic_savepoint.history.applied import Applied, read_applied
from alembic_savepoint.history.revisions import History, path_text
from alembic_savepoint.project import Project


class NoScratch(LookupError):
    """The reason why there is no place to create a schema to compare with."""


class RevisionFailed(RuntimeError):
    """The reason why the revisions fail on an empty database."""


# --- differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """A part that is not as expected, or (None) missing on one side. A constraint without a name has the name ""."""

    table: str
    kind: str
    name: str
    actual: str | None
    expected: str | None

    def __str__(self) -> str:
        what = f"{self.table}: {self.kind} {self.name}".rstrip()
        if self.kind != "table" and not self.name:
            what += f' without a name, "{self.actual or self.expected}",'
        if self.actual is None:
            return f"{what} is missing"
        if self.expected is None:
            return f"{what} is there and should not be"
        return f'{what} is "{self.actual}", not "{self.expected}"'


def differences(actual: Schema, expected: Schema) -> list[Difference]:
    """Return the differences of the actual schema, table by table; of a table that only one has, only that."""
    found = []
    for table in sorted(actual.keys() | expected.keys()):
        both = table in actual and table in expected
        there, wanted = (
            {part.identity: part.text for part in schema.get(table, ()) if both or part.kind == "table"}
            for schema in (actual, expected)
        )
        found += [
            Difference(table, *identity[:2], there.get(identity), wanted.get(identity))
            for identity in sorted(there.keys() | wanted.keys())
            if there.get(identity) != wanted.get(identity)
        ]
    return found


# --- what a schema should be ------------------------------------------------------------------------------------------


def schema_of_models(connection: sa.Connection, project: Project) -> Schema:
    """Return the schema that the models make on this engine. Changes nothing: see `scratch`. Raises NoScratch."""
    with scratch(connection) as place:
        for metadata in project.environment.metadata:
            metadata.create_all(place, checkfirst=False)
        return schema_of(place, project.versions.name)


def schema_of_revision(
    connection: sa.Connection,
    revision: str | Sequence[str],
    project: Project,
    after_each: Callable[[str, sa.Connection], None] | None = None,
) -> Schema:
    """Return the schema that the revisions make on this engine, run from base to this one, these ones, or "heads".

    `after_each` is called with each revision that was run, and its connection. Changes nothing: see `scratch`. Raises
    RevisionFailed, and NoScratch.
    """
    script, running = project.script, "their order"

    def steps(heads: Any, _: Any) -> Iterator[Any]:
        nonlocal running
        for step in script._upgrade_revs(cast("str", revision), heads) if revision else ():
            running = step.revision.revision
            yield step
            # Alembic asks for the next one when it has run this one.
            if after_each:
                after_each(running, place)

    with scratch(connection) as place, quiet():
        try:
            with EnvironmentContext(project.config, script, fn=steps) as context:
                context.configure(connection=place, **{**project.environment.options, "transactional_ddl": True})
                # All is one transaction that ends in a rollback, and tables without rows need no other.
                context.get_context().autocommit_block = nullcontext  # type: ignore[method-assign, assignment]
                context.run_migrations()
        except Exception as error:  # A file may raise anything.
            words = str(getattr(error, "orig", None) or error) or repr(error)
            raise RevisionFailed(f"{running}: {words.splitlines()[0]}") from error
        return schema_of(place, project.versions.name)


@contextmanager
def scratch(connection: sa.Connection) -> Iterator[sa.Connection]:
    """An empty schema on the same engine, invisible to others and removed in the end, even after a crash.

    On SQLite in memory. On PostgreSQL the temporary schema of a session of its own, in a transaction that is rolled
    back: a role may use that where it may not create schemas, and what a revision commits is gone with the session.
    """
    if connection.dialect.name == "sqlite":
        with create_engine("sqlite://").connect() as place:
            place.begin()
            yield place
        return
    # The engine may be one that only reads.
    with connection.engine.connect().execution_options(postgresql_readonly=False) as place:
        if not place.scalar(sa.text("SELECT has_database_privilege(current_database(), 'TEMPORARY')")):
            raise NoScratch(
                "To compare schemas, the role of savepoint_url needs a temporary schema. Let it have one: "
                "GRANT TEMPORARY ON DATABASE … TO …"
            )
        sa.event.listen(place, "before_cursor_execute", without_concurrently, retval=True)
        # No other schema: a table that is not there must not be found among those of the service.
        place.exec_driver_sql("SET search_path = pg_temp")
        place.commit()
        place.begin()
        yield place


def without_concurrently(*call: Any) -> tuple[str, Any]:
    """Return the statement without CONCURRENTLY, which no transaction allows; nobody else uses these tables."""
    _, _, statement, parameters, *_ = call
    return re.sub(r"\bINDEX\s+CONCURRENTLY\b", "INDEX", statement, flags=re.IGNORECASE), parameters


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs and warnings of revisions that run only for a comparison."""
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


# --- the check --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """An error of a kind with a stable name, and what to do about it."""

    kind: str
    text: str
    advice: str


ADVICE = {
    "unreadable-file": "Fix the file; git log -p shows how it was.",
    "duplicate-id": "Give one of the files an id of its own, and the other file as its parent.",
    "missing-parent": "Restore the file. Where it is: alembic-savepoint doctor",
    "cycle": "Restore down_revision as it was first committed; git log -p shows it.",
    "several-heads": 'Join them: alembic merge heads -m "…"',
    "edited-file": "Undo the edit, and move it into a revision of its own; or accept it. How: alembic-savepoint doctor",
    "unknown-revision": "Its schema was not compared. The cause, and what to do: alembic-savepoint doctor",
    "behind": "Run: alembic upgrade head",
    "revisions-fail": "Fix the revision: no new database can be created.",
    "not-in-revisions": "The models differ, and no revision changes it. Run: alembic revision --autogenerate -m …, "
    "and add what that does not detect, such as CHECK constraints.",
    "drift": "It was changed outside the revisions. Undo that by hand, or see what is known: alembic-savepoint doctor",
    "alembic": "Alembic would generate this. Run: alembic revision --autogenerate -m …",
    "unnamed-constraint": "No revision could drop it on both engines. Name it in the model and in a revision.",
}
"""The advice for each kind of finding."""


def check_schema(project: Project) -> list[Finding]:
    """Return all errors in a database, its revisions and the models. Changes nothing.

    Raises LookupError if the SQLite file does not exist, NoScratch, SQLAlchemyError if the database cannot be read, and
    CommandError if there is no folder of revisions.
    """
    history, applied = project.history, read_applied(project)
    with reading(project.url) as connection:
        in_schema = list(faults_of_schema(connection, history, applied, project))
    found = [*faults_of(history), *position_of(history, applied), *in_schema]
    return [Finding(kind, text, ADVICE[kind]) for kind, text in found]


def faults_of(history: History) -> Iterator[tuple[str, str]]:
    """Yield the errors in the files themselves."""
    for path, fault in history.unreadable.items():
        yield "unreadable-file", f"{path_text(path)}: {fault}"
    for id, paths in history.duplicates.items():
        yield "duplicate-id", f"{id} is the id of {' and of '.join(map(path_text, paths))}"
    for id, parents in history.missing_parents.items():
        yield "missing-parent", f"{id} comes after {', '.join(parents)}, which no file has"
    for cycle in history.cycles:
        yield "cycle", f"{', '.join(cycle)} come after one another in a cycle"
    if len(history.heads) > 1:
        yield "several-heads", f"{', '.join(sorted(history.heads))}: nothing comes after any of them"


def position_of(history: History, applied: Applied) -> Iterator[tuple[str, str]]:
    """Yield what keeps the database from the newest revision, and files that were edited since."""
    newest = {event.revision: event for event in applied.record}
    for id in edited_revisions(history, applied):
        seen = applied.recorded[id]
        was = f"what was recorded on {seen.applied_at:%F %T} UTC ({seen.action})"
        yield "edited-file", f"{history.path_text(id)} is not {was}"
    for id in applied.current:
        if id not in history.by_id:
            known = f" ({newest[id].message!r}, {newest[id].applied_at:%F %T} UTC)" if id in newest else ""
            yield "unknown-revision", f"The database is at {id}{known}, which no file has"
    if pending := pending_revisions(history, applied):
        at = ", ".join(applied.current) or "no revision"
        yield "behind", f"The database is at {at}; pending: {', '.join(pending)}"


def is_known(history: History, applied: Applied) -> bool:
    """Return whether the files have each revision that the database is at."""
    return all(id in history.by_id for id in applied.current)


def applied_revisions(history: History, applied: Applied) -> list[str]:
    """Return the applied revisions that files have, oldest first."""
    current = [id for id in applied.current if id in history.by_id]
    done = {*current, *history.ancestors(*current)}
    return [revision.id for revision in history.in_order() if revision.id in done]


def pending_revisions(history: History, applied: Applied) -> list[str]:
    """Return the revisions that are not applied, oldest first; none where the database may be ahead of the files."""
    if not is_known(history, applied):
        return []
    done = set(applied_revisions(history, applied))
    return [revision.id for revision in history.in_order() if revision.id not in done]


def edited_revisions(history: History, applied: Applied) -> list[str]:
    """Return the applied revisions whose files no longer have the recorded checksum, oldest first."""
    seen, doubled = applied.recorded, history.duplicates
    ids = [id for id in applied_revisions(history, applied) if id in seen and id not in doubled]
    return [id for id in ids if seen[id].checksum != history.by_id[id].checksum]


def faults_of_schema(
    connection: sa.Connection, history: History, applied: Applied, project: Project
) -> Iterator[tuple[str, str]]:
    """Compare the database with the revisions, and the revisions with the models."""
    actual, wanted = schema_of(connection, project.versions.name), schema_of_models(connection, project)
    known = is_known(history, applied)
    at_head = known and not pending_revisions(history, applied)
    try:
        made = schema_of_revision(connection, "heads", project)
        expected = made if at_head else schema_of_revision(connection, applied.current, project) if known else actual
    except RevisionFailed as error:
        if {kind for kind, _ in faults_of(history)} <= {"several-heads"}:
            yield "revisions-fail", f"On an empty database they fail: {error}"
        made, expected = wanted, wanted if at_head else actual
    undone, drift = differences(made, wanted), differences(actual, expected)
    yield from (("not-in-revisions", str(difference)) for difference in undone)
    yield from (("drift", str(difference)) for difference in drift)
    if at_head:
        reported = {difference.table for difference in [*undone, *drift]}
        yield from (
            ("alembic", text) for table, text in generated_by_alembic(connection, project) if table not in reported
        )
    # Where only the database or the revisions have them, they are differences.
    if not project.options.require_names:
        return
    for table, parts in sorted(wanted.items()):
        unnamed = sorted(f"{part.kind} {part.text}" for part in parts if not part.is_named)
        yield from (("unnamed-constraint", f"{table}: {constraint} has no name of its own") for constraint in unnamed)


def generated_by_alembic(connection: sa.Connection, project: Project) -> Iterator[tuple[str, str]]:
    """Yield what `alembic revision --autogenerate` would write, by table."""
    options = {**project.environment.options}
    with quiet():
        script = produce_migrations(MigrationContext.configure(connection, opts=options), options["target_metadata"])
    for operation in script.upgrade_ops.ops if script.upgrade_ops else ():
        table = str(getattr(operation, "table_name", ""))
        for step in operation.ops if isinstance(operation, ops.OpContainer) else [operation]:
            lines = render_python_code(ops.UpgradeOps([step])).splitlines()
            yield table, f"{table}: " + " ".join(line.strip() for line in lines if not line.startswith("#"))
