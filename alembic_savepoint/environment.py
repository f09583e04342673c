"""What a project's env.py says of it: its database, its models, and how Alembic compares them."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from alembic_savepoint.connections import is_sqlite, sqlite_path
from alembic_savepoint.history.applied import RECORD
from alembic_savepoint.history.revisions import path_text

ASKING = "savepoint_asking"
"""The option in a MigrationContext's `opts` that is True while env.py is run only to see what it configures."""
GUARDED = "savepoint_guarded"
"""The option that is True where env.py calls `guards.run_migrations`."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What env.py configures: the database's URL, and the options that it gives to context.configure()."""

    url: sa.URL
    options: Mapping[str, Any]

    @property
    def metadata(self) -> Sequence[sa.MetaData]:
        """The models' tables."""
        return metadata_of(self.options)

    @property
    def schemas(self) -> list[str]:
        """The schemas that the models name, beside the default one."""
        return schemas_of(self.options)

    @property
    def tables(self) -> list[sa.Table]:
        """The models' tables, each before those that refer to it."""
        return [table for metadata in self.metadata for table in metadata.sorted_tables]


def metadata_of(options: Mapping[str, Any]) -> Sequence[sa.MetaData]:
    """Return the models' tables, of which env.py may name several collections, one or none."""
    found = options.get("target_metadata")
    return found if isinstance(found, Sequence) else [found] if found is not None else []


def schemas_of(options: Mapping[str, Any]) -> list[str]:
    """Return the schemas that the models name, beside the default one."""
    tables = (table for metadata in metadata_of(options) for table in metadata.tables.values())
    return sorted({table.schema for table in tables if table.schema})


OF_THE_COMMAND = {
    "as_sql",
    "destination_rev",
    "dont_mutate",
    "fn",
    "literal_binds",
    "on_version_apply",
    "output_buffer",
    "purge",
    "revision_context",
    "script",
    "starting_rev",
    "tag",
    "template_args",
    ASKING,
}
"""The options of a MigrationContext that belong to the command, and not to the project."""


def environment_of(context: MigrationContext) -> Environment:
    """Return what env.py has given to context.configure()."""
    connection = context.connection
    assert connection is not None
    options = {name: value for name, value in context.opts.items() if name not in OF_THE_COMMAND and value is not None}
    return Environment(url_of(connection), {**options, **compared(options)})


def url_of(connection: sa.Connection) -> sa.URL:
    """Return the URL of a connection, with PostgreSQL's search_path if env.py has set it."""
    url = connection.engine.url
    if connection.dialect.name != "postgresql":
        return url
    query = "SELECT setting, setting = reset_val FROM pg_settings WHERE name = 'search_path'"
    path, is_usual = connection.exec_driver_sql(query).one()
    if is_usual:
        return url
    # A blank that is not escaped would end the option.
    escaped = path.replace("\\", "\\\\").replace(" ", "\\ ")
    others = f"{url.query['options']} " if "options" in url.query else ""
    return url.update_query_dict({"options": f"{others}-csearch_path={escaped}"})


IncludeName = Callable[[str | None, str, Any], bool]


def compared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return env.py's options of which schemas and names are compared: never the record, which has no model.

    Where models name other schemas and env.py does not set include_schemas, these are compared too.
    """
    include_name: IncludeName = options.get("include_name") or (lambda *_: True)
    schemas = schemas_of(options)
    are_added = bool(schemas) and not options.get("include_schemas")

    def include(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema" and are_added:
            return name in {None, *schemas}
        return (kind, name) != ("table", RECORD.name) and include_name(name, kind, parents)

    return {"include_name": include, "include_schemas": are_added or options.get("include_schemas", False)}


def env_py_of(script: ScriptDirectory) -> str:
    """Return the path of env.py, to print."""
    return path_text(Path(script.env_py_location))


def ask(config: Config, script: ScriptDirectory) -> Environment:
    """Run env.py as a command does that only reads, and return what it configures."""
    found: list[Environment] = []
    started = time.time()

    def look(_: object, context: MigrationContext) -> list[Any]:
        found.append(environment_of(context))
        return []

    disabled = logging.root.manager.disable
    try:
        # What env.py prints, and Alembic logs, is not part of a report.
        logging.disable(logging.INFO)
        options = {"fn": look, "dont_mutate": True, ASKING: True}
        with no_bytecode(), redirect_stdout(sys.stderr), EnvironmentContext(config, script, **options):
            script.run_env()
    except (CommandError, SQLAlchemyError):
        raise
    except (Exception, SystemExit) as error:  # It may raise anything.
        words = (str(error) or repr(error)).splitlines()[0]
        raise CommandError(f"{env_py_of(script)} fails: {type(error).__name__}: {words}") from error
    finally:
        logging.disable(disabled)
        for each in found:
            remove_created(each.url, started)
    if not found:
        raise CommandError(f"{env_py_of(script)} does not call context.run_migrations(), so nothing is known.")
    if len({each.url for each in found}) > 1:
        raise CommandError(
            f"{env_py_of(script)} configures several databases (Alembic's template multidb). That is not "
            "supported: give each database a configuration of its own."
        )
    return found[-1]


@contextmanager
def no_bytecode() -> Iterator[None]:
    """Leave no __pycache__ in the folder of revisions."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def remove_created(url: sa.URL, started: float) -> None:
    """Remove the empty file that SQLite creates where there is no database."""
    if not is_sqlite(url) or not url.database or url.database == ":memory:":
        return
    path = sqlite_path(url)
    if path.is_file() and path.stat().st_size == 0 and path.stat().st_ctime >= started - 1:
        path.unlink()
