"""The schema that a database has, against the one that it should have."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from alembic_savepoint.doctor.catalog import OBJECTS, Schema, schema_of
from alembic_savepoint.doctor.included import included
from alembic_savepoint.doctor.objects import whole_schema_of
from alembic_savepoint.doctor.scratch import NoScratch, Scratch
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


COLUMN = re.compile(r"(.*?)( NOT NULL)?( GENERATED .*?)?( DEFAULT .*)?", re.DOTALL)
"""A column's text: its type, whether it may be NULL, how it is computed, and its default."""


def is_compared(difference: Difference, options: Mapping[str, Any]) -> bool:
    """Return whether env.py has Alembic compare what differs; a function for types is left to Alembic's comparison."""
    if difference.kind != "column" or difference.actual is None or difference.expected is None:
        return True
    both = (COLUMN.fullmatch(text) for text in (difference.actual, difference.expected))
    (type_, *rest, default), (wanted_type, *wanted_rest, wanted_default) = (found.groups() for found in both if found)
    return (
        rest != wanted_rest
        or (type_ != wanted_type and options.get("compare_type", True) is True)
        or (default != wanted_default and bool(options.get("compare_server_default")))
    )


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
        return included(schema_of(connection, schemas), connection, project.environment)


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
