"""The schema that a database has, against the one that it should have."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.operations import ops
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import DBAPIError

from alembic_savepoint.connections import reading
from alembic_savepoint.doctor.catalog import OBJECTS, Schema, schema_of
from alembic_savepoint.doctor.objects import included, tables_in, whole_schema_of
from alembic_savepoint.doctor.scratch import NoScratch, Scratch, scratch
from alembic_savepoint.history.applied import Applied, read_applied
from alembic_savepoint.history.revisions import History, path_text
from alembic_savepoint.project import Project


class RevisionFailed(RuntimeError):
    """The reason why the revisions fail on an empty database."""


class ModelsFailed(RuntimeError):
    """The reason why the models' tables cannot be created in an empty database."""


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
        if self.kind not in ("table", *OBJECTS) and not self.name:
            what += f' without a name, "{self.actual or self.expected}",'
        if self.actual is None:
            return f"{what} is missing"
        if self.expected is None:
            return f"{what} is there and should not be"
        if self.kind in OBJECTS:
            return f"{what} has another definition"
        return f'{what} is "{self.actual}", not "{self.expected}"'


def differences(actual: Schema, expected: Schema) -> list[Difference]:
    """Return the differences of the actual schema, table by table; of a table that only one has, only that."""
    found = []
    for table in sorted(actual.keys() | expected.keys()):
        both = table in actual and table in expected
        there, wanted = (
            {part.identity: part.text for part in schema.get(table, ()) if both or part.is_whole}
            for schema in (actual, expected)
        )
        found += [
            Difference(table, *identity[:2], there.get(identity), wanted.get(identity))
            for identity in sorted(there.keys() | wanted.keys())
            if there.get(identity) != wanted.get(identity)
        ]
    return found


# --- what a schema should be ------------------------------------------------------------------------------------------


def schema_of_models(place: Scratch, project: Project) -> Schema:
    """Return the tables that the models make on this engine. Raises ModelsFailed, and NoScratch."""
    schemas = project.environment.schemas
    with place.empty() as connection:
        if connection.dialect.name == "sqlite":  # It has no schemas.
            connection.execution_options(schema_translate_map=dict.fromkeys(schemas))
        try:
            for metadata in project.environment.metadata:
                metadata.create_all(connection, checkfirst=False)
        except DBAPIError as error:
            raise ModelsFailed(str(error.orig).splitlines()[0]) from None
        return included(schema_of(connection, schemas), project.environment)


def schema_of_revision(
    place: Scratch,
    revision: str | Sequence[str],
    project: Project,
    after_each: Callable[[str, sa.Connection], None] | None = None,
) -> Schema:
    """Return the schema that the revisions make on this engine, run from base to this one, these ones, or "heads".

    Each is committed, as in a real upgrade. `after_each` is called with each one that was run, and its connection.
    Raises RevisionFailed, and NoScratch, which may be for the lack of an extension or a right.
    """
    running = "their order"

    def steps(heads: Any, _: Any) -> Iterator[Any]:
        nonlocal running
        for step in project.script._upgrade_revs(cast("str", revision), heads) if revision else ():
            running = step.revision.revision
            yield step
            # Alembic asks for the next one when it has run this one.
            if after_each:
                after_each(running, connection)
                connection.rollback()

    with place.empty() as connection, quiet():
        try:
            config = config_for(connection, project.config)
            options = {**project.environment.options, "transactional_ddl": True, "transaction_per_migration": True}
            with EnvironmentContext(config, project.script, fn=steps) as context:
                context.configure(connection=connection, **options)
                with context.begin_transaction():
                    context.run_migrations()
        except NoScratch:
            raise
        except Exception as error:  # A file may raise anything.
            raise failure_of(running, error, place.missing) from error
        return whole_schema_of(connection, project)


def config_for(connection: sa.Connection, config: Config) -> Config:
    """Return a copy of the configuration in which a revision finds this database, and no other."""
    alone = copy(config)
    alone.file_config = deepcopy(config.file_config)
    alone.attributes = {**config.attributes, "connection": connection}
    url = connection.engine.url.render_as_string(hide_password=False)
    alone.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return alone


def failure_of(revision: str, error: Exception, missing: Sequence[str]) -> Exception:
    """Return NoScratch if the revision failed for the lack of an extension or a right, or else RevisionFailed."""
    driver_error = getattr(error, "orig", None)
    words = f"{revision}: {(str(driver_error or error) or repr(error)).splitlines()[0]}"
    is_denied = getattr(driver_error, "sqlstate", None) == "42501"
    if not missing and not is_denied and "EXTENSION" not in str(getattr(error, "statement", "")).upper():
        return RevisionFailed(words)
    extensions = f" Extensions that could not be created there: {'; '.join(missing)}." if missing else ""
    return NoScratch(
        f"in a scratch database the role may not do, or the server lacks, what a revision needs ({words}).{extensions} "
        "As a superuser, create an empty database that has the extensions and where the role may do it, and name it as "
        "savepoint_scratch_url in Alembic's ini file."
    )


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
    "not-in-revisions": "This is so in what the revisions make, and the models say otherwise. Run: alembic revision "
    "--autogenerate -m …, and add what that does not detect, such as CHECK constraints.",
    "drift": "It was changed outside the revisions. Undo that by hand, or see what is known: alembic-savepoint doctor",
    "not-compared": "Nothing is known of drift. When the reason is fixed, run it again.",
    "alembic": "Alembic would generate this. Run: alembic revision --autogenerate -m …",
    "unnamed-constraint": "No revision could drop it on both engines. Name it in the model and in a revision.",
}
"""The advice for each kind of finding."""


def check_schema(project: Project) -> list[Finding]:
    """Return all errors in a database, its revisions and the models. Changes nothing, and holds no lock.

    Raises LookupError if the SQLite file does not exist, SQLAlchemyError if the database cannot be read, and
    CommandError if there is no folder of revisions.
    """
    history, applied = project.history, read_applied(project)
    at_head = is_known(history, applied) and not pending_revisions(history, applied)
    schemas = project.environment.schemas
    with reading(project.url) as connection:
        actual = whole_schema_of(connection, project)
        generated = list(generated_by_alembic(connection, project)) if at_head and project.environment.metadata else []
        with scratch(connection, schemas, project.options.scratch_url) as place:
            # To hold no lock while the revisions run.
            connection.rollback()
            in_schema = list(faults_of_schema(actual, generated, place, history, applied, project=project))
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
    actual: Schema,
    generated: Sequence[tuple[str, str]],
    place: Scratch,
    history: History,
    applied: Applied,
    *,
    project: Project,
) -> Iterator[tuple[str, str]]:
    """Compare the database with the revisions, and the revisions with the models; add what Alembic would generate."""
    known = is_known(history, applied)
    at_head = known and not pending_revisions(history, applied)
    wanted: Schema | None = None
    made: Schema | None
    try:
        try:
            wanted = schema_of_models(place, project) if project.environment.metadata else None
        except ModelsFailed as error:
            yield "not-compared", f"The models were not compared: on an empty database, {error}"
        made = schema_of_revision(place, "heads", project)
        expected = made if at_head else schema_of_revision(place, applied.current, project) if known else actual
    except NoScratch as error:
        yield "not-compared", f"The schema was not compared: {error}"
        wanted = made = expected = actual = {}
    except RevisionFailed as error:
        if {kind for kind, _ in faults_of(history)} <= {"several-heads"}:
            yield "revisions-fail", f"On an empty database they fail: {error}"
        made, expected = wanted, actual
    undone = differences(tables_in(made), wanted) if made is not None and wanted is not None else []
    drift = differences(actual, expected)
    yield from (("not-in-revisions", str(difference)) for difference in undone)
    yield from (("drift", str(difference)) for difference in drift)
    reported = {difference.table for difference in [*undone, *drift]}
    yield from (("alembic", text) for table, text in generated if table not in reported)
    # Where only the database or the revisions have them, they are differences.
    if not project.options.require_names:
        return
    for table, parts in sorted((wanted or {}).items()):
        unnamed = sorted(f"{part.kind} {part.text}" for part in parts if not part.is_named)
        yield from (("unnamed-constraint", f"{table}: {constraint} has no name of its own") for constraint in unnamed)


def generated_by_alembic(connection: sa.Connection, project: Project) -> Iterator[tuple[str, str]]:
    """Yield what `alembic revision --autogenerate` would write, by table."""
    # The comparison of schemas sees every default, and Alembic's fails for one with an apostrophe.
    options = {**project.environment.options, "compare_server_default": False}
    with quiet():
        script = produce_migrations(MigrationContext.configure(connection, opts=options), options["target_metadata"])
    for operation in script.upgrade_ops.ops if script.upgrade_ops else ():
        schema, name = getattr(operation, "schema", None), str(getattr(operation, "table_name", ""))
        table = f"{schema}.{name}" if schema else name
        for step in operation.ops if isinstance(operation, ops.OpContainer) else [operation]:
            lines = render_python_code(ops.UpgradeOps([step])).splitlines()
            yield table, f"{table}: " + " ".join(line.strip() for line in lines if not line.startswith("#"))
