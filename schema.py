"""The revision and the columns of the database, compared with those that this code needs."""

import asyncio
import configparser
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from logging.config import fileConfig
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    CHAR,
    DATETIME,
    JSON,
    Boolean,
    Connection,
    DateTime,
    Integer,
    String,
    column,
    false,
    inspect,
    table,
)
from sqlalchemy.dialects.postgresql import DOMAIN, JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine
from sqlmodel import AutoString, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from alembic_savepoint.project import Options, Project, Spelling
from db.engines import create_migration_engine
from refusals import SchemaBehind
from settings import NamedDatabase, Settings, SettingsError, settings_from_environment

ALEMBIC_INI = Path(__file__).with_name("alembic.ini")

SchemaStatus = Literal["ready", "behind", "ahead", "differs"]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The revision of the database, and the newest that this code knows."""

    status: SchemaStatus
    revision: str | None
    head: str


class Schema:
    """The revisions in migrations/versions."""

    def __init__(self) -> None:
        scripts = ScriptDirectory.from_config(read_ini())
        self.known = {script.revision for script in scripts.walk_revisions()}
        head = scripts.get_current_head()
        assert head is not None, "migrations/versions is empty"
        self.head = head

    def compare(self, revision: str | None) -> SchemaState:
        """Return the state at this revision: ready at the head, ahead at an unknown revision, behind at any other."""
        if revision == self.head:
            return SchemaState("ready", revision, self.head)
        return SchemaState("behind" if revision is None or revision in self.known else "ahead", revision, self.head)


async def get_state(session: AsyncSession, schema: Schema) -> SchemaState:
    """Return the state of the database: behind its code, or different from its revision, it cannot serve all calls."""
    state = schema.compare(await get_revision(session))
    if state.status != "behind" and not await _has_columns(session):
        return replace(state, status="differs")
    return state


async def get_revision(session: AsyncSession) -> str | None:
    """Return the revision in alembic_version, several where a branch was not merged, or None."""
    try:
        revisions = await session.exec(select(column("version_num", String)).select_from(table("alembic_version")))
    except SchemaBehind:
        return None
    # On SQLite, a column can hold values of any type.
    return ", ".join(map(str, revisions)) or None


async def _has_columns(session: AsyncSession) -> bool:
    """Return True if all tables and columns of models.py are there with fitting types, none of them altered by hand."""
    try:
        await session.exec(select_all_columns())
    except SchemaBehind:
        return False
    return await (await session.connection()).run_sync(has_types)


def select_all_columns() -> Any:
    """Return a SELECT that reads no row, and fails where a table or column is missing."""
    return select(*(select(*each.columns).where(false()).exists() for each in SQLModel.metadata.sorted_tables))


def has_types(connection: Connection) -> bool:
    """Return True if the columns that are there have types with the same values as those of models.py."""
    tables = SQLModel.metadata.tables
    found = inspect(connection).get_multi_columns(filter_names=[*tables])
    return all(
        _is_alike(tables[name].c[column["name"]].type, column["type"])
        for (_, name), columns in found.items()
        for column in columns
        if column["name"] in tables[name].c
    )


def _is_alike(type_: TypeEngine[Any], found: TypeEngine[Any]) -> bool:
    """Return True if both types have the same values in Python."""
    found = found.data_type if isinstance(found, DOMAIN) else found
    if isinstance(type_, Integer):
        return isinstance(found, Integer)
    if isinstance(type_, Boolean):
        return isinstance(found, Boolean)
    if isinstance(type_, String | AutoString):
        # CHAR fills its values up with blanks.
        return isinstance(found, String) and not isinstance(found, CHAR)
    if isinstance(type_, JSON):
        # To JSONB, PostgreSQL converts no JSON by itself.
        return isinstance(found, JSON) and not isinstance(found, JSONB)
    # Without a time zone, PostgreSQL would interpret each instant in the session's zone.
    return isinstance(found, DATETIME) or (isinstance(found, DateTime) and found.timezone)


def chosen_ini() -> Path:
    """Return the file that ALEMBIC_CONFIG names, as the alembic command does, or else alembic.ini."""
    named = Path(os.environ.get("ALEMBIC_CONFIG", ""))
    # With pyproject.toml, Alembic still reads the rest from alembic.ini.
    return ALEMBIC_INI if named.name in ("", "pyproject.toml") else named


def read_ini(path: Path = ALEMBIC_INI) -> Config:
    """Return Alembic's configuration in an ini file, in a folder of any name. Raises CommandError if it is invalid."""
    config = Config(path)
    with _explaining(path):
        here = config.file_config.defaults()["here"]
    # A % in a value begins a reference to another value.
    config.file_config["DEFAULT"]["here"] = here.replace("%", "%%")
    return config


@contextmanager
def _explaining(path: str | Path | None) -> Iterator[None]:
    """Raise CommandError if the ini file is invalid."""
    try:
        yield
    except (configparser.Error, UnicodeDecodeError) as error:
        # Without its text, which repeats the content of the file.
        line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", ())), None)
        where = getattr(error, "option", None) or (f"line {line}" if line else "it is not text")
        raise CommandError(
            f"{path} is not an ini file of Alembic: {where}. Correct it, or name another file in ALEMBIC_CONFIG."
        ) from None


def url_setting(config: Config | None = None) -> str:
    """Return the name of the setting with the URL, from the ini file. Raises CommandError if it has none."""
    config = config or read_ini(chosen_ini())
    with _explaining(config.config_file_name):
        location = config.get_main_option("script_location")
        setting = config.get_main_option("url_setting", "database_url")
    if location is None:
        raise CommandError(f"There is no file {config.config_file_name}, or it has no script_location in [alembic].")
    if not re.fullmatch(r"(\w+_)?database_url", setting) or setting not in Settings.model_fields:
        raise CommandError(f"{config.config_file_name}: url_setting is {setting}; set it to database_url.")
    return setting


def database_url(settings: Settings, config: Config | None = None) -> str:
    """Return the URL of the database that alembic and manage.py work on. Raises CommandError if none is set."""
    config = config or read_ini(chosen_ini())
    setting = url_setting(config)
    url: str | None = getattr(settings, setting)
    if url is None:
        raise CommandError(
            f"{setting.upper()} is not set: {config.config_file_name} is only for the database it names."
        )
    return url


def settings_kind(config: Config | None = None) -> type[Settings]:
    """Return NamedDatabase if the ini file names DATABASE_URL, or else Settings. Raises CommandError."""
    return NamedDatabase if url_setting(config) == "database_url" else Settings


def chosen_settings() -> Settings:
    """Return the settings with the URL of database_url(). Raises CommandError and SettingsError."""
    settings = settings_from_environment(settings_kind())
    return settings.model_copy(update={"database_url": database_url(settings)})


def chosen_project() -> Project:
    """Return the project for the commands of migrations. Raises CommandError and SettingsError."""
    settings = chosen_settings()
    config = read_ini(chosen_ini())
    options = options_of(settings, config)
    return Project(config, options, url=settings.database_url, spelling=spelling())


def configured_options(config: Config) -> tuple[str, Options]:
    """Return the URL and the settings of migrations, for env.py. Raises CommandError.

    If the ini file names another URL, DATABASE_URL may be missing.
    """
    try:
        settings = settings_from_environment(settings_kind(config))
    except SettingsError as error:
        raise CommandError(str(error)) from None
    url = database_url(settings, config)
    return url, options_of(settings.model_copy(update={"database_url": url}), config)


def connect_to_migrate(url: str) -> Connection:
    """Return a connection for migrations. Raises CommandError."""
    engine = create_migration_engine(url)
    try:
        return engine.connect()
    except DBAPIError as error:
        words = f"The database {engine.url.database} cannot be used: {str(error.orig).splitlines()[0]}"
        raise CommandError(words) from None


def log_as_configured(config: Config) -> None:
    """Set up logging from the ini file, for the command `alembic`: the service has its own. Raises CommandError."""
    if config.cmd_opts is None or config.config_file_name is None:
        return
    try:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    except (configparser.Error, KeyError, RuntimeError, ValueError):
        raise CommandError(
            f"{config.config_file_name}: its sections for logging are wrong. Copy those of alembic.ini."
        ) from None


def options_of(settings: Settings, config: Config) -> Options:
    """Return the settings of migrations; the scratch database is named in the ini file."""
    in_production = settings.environment == "production" or settings.database_url == settings.prod_database_url
    values = {each.name: getattr(settings, each.name) for each in fields(Options) if hasattr(settings, each.name)}
    scratch_url = config.get_alembic_option("savepoint_scratch_url")
    return Options(**values, require_save=in_production, require_names=True, scratch_url=scratch_url)


def spelling() -> Spelling:
    """Return how commands are typed for the chosen ini file, and that settings are environment variables."""
    ini = chosen_ini()
    variables = "" if ini == ALEMBIC_INI else f"ALEMBIC_CONFIG={shlex.quote(str(ini))}"
    return Spelling("python manage.py", variables=variables, in_environment=True)


async def upgrade_to_head() -> None:
    """Run `alembic upgrade head`; on SQLite, several processes may do so at once."""
    await asyncio.to_thread(command.upgrade, read_ini(), "head")
