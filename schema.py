"""Which revision the database is at, and whether this code can work with it."""

import asyncio
import configparser
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import CHAR, DATETIME, Connection, DateTime, Integer, String, column, false, inspect, table
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.types import TypeEngine
from sqlmodel import AutoString, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from refusals import SchemaBehind
from settings import NamedDatabase, Settings, settings_from_environment

ALEMBIC_INI = Path(__file__).with_name("alembic.ini")

Readiness = Literal["ready", "behind", "ahead", "differs"]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The revision of the database, next to the newest that this code knows."""

    status: Readiness
    revision: str | None
    head: str


class Schema:
    """The revisions in migrations/versions, compared with those of a database."""

    def __init__(self) -> None:
        scripts = ScriptDirectory.from_config(read_ini())
        self.known = {script.revision for script in scripts.walk_revisions()}
        head = scripts.get_current_head()
        assert head is not None, "migrations/versions is empty"
        self.head = head

    def compare(self, revision: str | None) -> SchemaState:
        """Ready at the head, ahead at a revision that this code does not know yet, behind at any other."""
        if revision == self.head:
            return SchemaState("ready", revision, self.head)
        return SchemaState("behind" if revision is None or revision in self.known else "ahead", revision, self.head)


async def get_revision(session: AsyncSession) -> str | None:
    """What alembic_version holds: a revision, several where a branch was not merged, or none."""
    try:
        revisions = await session.exec(select(column("version_num", String)).select_from(table("alembic_version")))
    except SchemaBehind:
        return None
    # SQLite keeps a value of any type in any column.
    return ", ".join(map(str, revisions)) or None


async def has_columns(session: AsyncSession) -> bool:
    """Return whether every table and column of models.py is there, with a type whose values Python reads as it should.

    Somebody may have renamed, dropped or altered one by hand.
    """
    reads = (select(*each.columns).where(false()).exists() for each in SQLModel.metadata.sorted_tables)
    try:
        await session.exec(select(*reads))
    except SchemaBehind:
        return False
    return await (await session.connection()).run_sync(has_types)


def has_types(connection: Connection) -> bool:
    """Return whether the columns of models.py, all of which are there, have types of the same families."""
    tables = SQLModel.metadata.tables
    found = inspect(connection).get_multi_columns(filter_names=[*tables])
    return all(
        is_alike(tables[name].c[column["name"]].type, column["type"])
        for (_, name), columns in found.items()
        for column in columns
        if column["name"] in tables[name].c
    )


def is_alike(type_: TypeEngine[Any], found: TypeEngine[Any]) -> bool:
    """Return whether a column of the type that was found has the same values in Python as one of `type_`."""
    found = found.data_type if isinstance(found, DOMAIN) else found
    if isinstance(type_, Integer):
        return isinstance(found, Integer)
    if isinstance(type_, String | AutoString):
        # CHAR fills its values up with blanks.
        return isinstance(found, String) and not isinstance(found, CHAR)
    # Without a time zone, PostgreSQL would take each instant for one of the session's zone.
    return isinstance(found, DATETIME) or (isinstance(found, DateTime) and found.timezone)


def chosen_ini() -> Path:
    """The file that ALEMBIC_CONFIG names, as it does for the alembic command, or else alembic.ini."""
    named = Path(os.environ.get("ALEMBIC_CONFIG", ""))
    # Alembic reads settings of its own from pyproject.toml, and the rest from alembic.ini all the same.
    return ALEMBIC_INI if named.name in ("", "pyproject.toml") else named


def read_ini(path: Path = ALEMBIC_INI) -> Config:
    """Alembic's configuration in an ini file, in a folder of any name. Raises CommandError where it cannot be read."""
    config = Config(path)
    with ini_in_words(path):
        here = config.file_config.defaults()["here"]
    # A single % in a value begins the name of another one.
    config.file_config["DEFAULT"]["here"] = here.replace("%", "%%")
    return config


@contextmanager
def ini_in_words(path: str | Path | None) -> Iterator[None]:
    """Raise CommandError where an ini file cannot be read."""
    try:
        yield
    except (configparser.Error, UnicodeDecodeError) as error:
        # Without its text, which repeats what is in the file.
        line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", ())), None)
        where = getattr(error, "option", None) or (f"line {line}" if line else "it is not text")
        raise CommandError(
            f"{path} is not an ini file of Alembic: {where}. Correct it, or name another file in ALEMBIC_CONFIG."
        ) from None


def url_setting(config: Config | None = None) -> str:
    """The setting that holds the URL, as the ini file says. Raises CommandError where it does not."""
    config = config or read_ini(chosen_ini())
    with ini_in_words(config.config_file_name):
        location = config.get_main_option("script_location")
        setting = config.get_main_option("url_setting", "database_url")
    if location is None:
        raise CommandError(f"There is no file {config.config_file_name}, or it has no script_location in [alembic].")
    if not re.fullmatch(r"(\w+_)?database_url", setting) or setting not in Settings.model_fields:
        raise CommandError(f"{config.config_file_name}: url_setting is {setting}; set it to database_url.")
    return setting


def database_url(settings: Settings, config: Config | None = None) -> str:
    """The URL of the database that alembic migrates, and manage.py works on. Raises CommandError where none is set."""
    config = config or read_ini(chosen_ini())
    setting = url_setting(config)
    url: str | None = getattr(settings, setting)
    if url is None:
        raise CommandError(
            f"{setting.upper()} is not set: {config.config_file_name} is only for the database it names."
        )
    return url


def settings_kind(config: Config | None = None) -> type[Settings]:
    """Settings, or NamedDatabase where it is DATABASE_URL that the ini file names. Raises CommandError."""
    return NamedDatabase if url_setting(config) == "database_url" else Settings


def chosen_settings() -> Settings:
    """The settings, whose database_url is the one of database_url(). Raises CommandError and SettingsError."""
    settings = settings_from_environment(settings_kind())
    return settings.model_copy(update={"database_url": database_url(settings)})


def as_typed(command: str) -> str:
    """The command, before each of its calls the ALEMBIC_CONFIG that is set: else it is about another database."""
    ini = chosen_ini()
    if ini == ALEMBIC_INI:
        return command
    return re.sub(r"(?:^|(?<=&& ))(?=alembic |python manage\.py )", f"ALEMBIC_CONFIG={shlex.quote(str(ini))} ", command)


async def upgrade_to_head() -> None:
    """Run `alembic upgrade head`; on SQLite any number of processes may do so at once."""
    await asyncio.to_thread(command.upgrade, read_ini(), "head")
