"""A project that uses Alembic: its configuration, its revisions, its database, and what its env.py says of them."""

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from alembic_savepoint.connections import is_sqlite
from alembic_savepoint.environment import Environment, ask
from alembic_savepoint.history.applied import VERSIONS
from alembic_savepoint.history.revisions import History, read_history


@dataclass(frozen=True, slots=True)
class Spelling:
    """The commands and settings in a text, as the reader types them."""

    program: str = "alembic-savepoint"
    options: str = ""
    """What both commands need to mean this project: "-c other.ini"."""
    variables: str = ""
    """The same as environment variables: "ALEMBIC_CONFIG=other.ini"."""
    in_environment: bool = False
    """Whether settings are environment variables: LOCK_TIMEOUT instead of savepoint_lock_timeout."""

    def of(self, text: str) -> str:
        """Return the text with `alembic-savepoint …` and `alembic …` as they are typed for this project."""
        before, after = (f"{each} " if each else "" for each in (self.variables, self.options))
        text = COMMANDS.sub(lambda found: f"{before}{self.program if found[1] else 'alembic'} {after}", text)
        return SETTINGS.sub(lambda found: self._setting(found[1]), text)

    def _setting(self, name: str) -> str:
        if name == "url":
            return "DATABASE_URL" if self.in_environment else "sqlalchemy.url"
        return name.upper() if self.in_environment else f"savepoint_{name}"


COMMANDS = re.compile(r"(?<![\w./=-])alembic(-savepoint)? (?=[a-z-])")
SETTINGS = re.compile(r"\bsavepoint_(url|saves_dir|\w*timeout|save_before_migrations)\b")


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of this tool; in the ini file each has the prefix savepoint_. Times are in seconds."""

    saves_dir: Path = Path("saves")
    """The folder of the saves."""
    lock_timeout: float = 5
    """How long to wait for a lock that others hold."""
    migration_lock_timeout: float = 2
    """How long a migration on PostgreSQL waits for a lock before it lets others pass."""
    migration_timeout: float = 60
    """How long a migration tries to get its locks, or waits for another migration."""
    save_before_migrations: bool = True
    """Whether a copy is saved before a migration that drops something, or rebuilds a table on SQLite."""
    require_save: bool = False
    """Whether on PostgreSQL such a migration demands a save of the last hour instead: for production."""
    require_names: bool = False
    """Whether constraints without a name are findings of `check`: no revision could drop them on both engines."""
    scratch_url: str | None = None
    """An empty database for comparisons, where the role may not create one."""

    @classmethod
    def from_config(cls, config: Config) -> "Options":
        """Return the options in an ini file, or in pyproject.toml's [tool.alembic]. Raises CommandError."""
        found: dict[str, Any] = {}
        for each in fields(cls):
            written = config.get_alembic_option(f"savepoint_{each.name}")
            if written is not None:
                found[each.name] = _read(f"savepoint_{each.name}", str(written), each.default)
        return cls(**found)


def _read(name: str, written: str, default: object) -> object:
    if isinstance(default, bool):
        if written.lower() not in ("true", "false"):
            raise CommandError(f"{name} is {written!r}; write true or false.")
        return written.lower() == "true"
    if isinstance(default, int | float):
        try:
            seconds = float(written)
        except ValueError:
            seconds = 0
        if not 0.001 <= seconds <= 86_400:
            raise CommandError(f"{name} is {written!r}; write a number of seconds, such as 2.5.")
        return seconds
    return Path(written) if isinstance(default, Path) else written


class Project:
    """An Alembic project. What is not given is asked of its env.py when it is needed for the first time."""

    def __init__(
        self,
        config: Config,
        options: Options | None = None,
        *,
        url: str | None = None,
        spelling: Spelling | None = None,
        script: ScriptDirectory | None = None,
        environment: Environment | None = None,
    ) -> None:
        self.config = config
        self.options = Options.from_config(config) if options is None else options
        self.spelling = spelling or Spelling(options=options_of(config), variables=variables_of(config))
        self._url = sa.make_url(url) if url is not None else None
        # Not where env.py itself made the project: it would run within itself.
        self._asks = url is None and script is None
        if script is not None:
            self.script = script
        if environment is not None:
            self.environment = environment

    @cached_property
    def script(self) -> ScriptDirectory:
        """The folder of scripts. Raises CommandError."""
        return ScriptDirectory.from_config(self.config)

    @cached_property
    def environment(self) -> Environment:
        """What env.py configures. Raises CommandError, and SQLAlchemyError if its database cannot be reached."""
        return ask(self.config, self.script)

    @property
    def url(self) -> str:
        """The database's URL, with its password."""
        url = self._url if self._url is not None else self.environment.url
        return url.render_as_string(hide_password=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is of SQLite."""
        return is_sqlite(self.url)

    @property
    def folders(self) -> list[Path]:
        """The folders of the revisions."""
        if self._asks:
            # It may set others.
            with suppress(CommandError, SQLAlchemyError):
                self.environment  # noqa: B018
        return [Path(each) for each in self.script.version_locations or [os.path.join(self.script.dir, "versions")]]

    @property
    def history(self) -> History:
        """The revisions in the files as they are now."""
        return read_history(*self.folders, recursive=self.script.recursive_version_locations)

    @property
    def root(self) -> Path:
        """The folder in which git searches for lost files: that of the ini file, or of the scripts."""
        folder = Path(self.script.dir).absolute()
        ini = Path(self.config.config_file_name or self.config.toml_file_name or folder).absolute()
        return ini.parent if folder.is_relative_to(ini.parent) else folder

    @property
    def versions(self) -> sa.TableClause:
        """Alembic's table in the database."""
        options = self.environment.options
        name, schema = options.get("version_table", VERSIONS.name), options.get("version_table_schema")
        return sa.table(name, sa.column("version_num", sa.String), schema=schema)

    @property
    def version_options(self) -> dict[str, Any]:
        """Those options of context.configure() that are about Alembic's table."""
        return {name: each for name, each in self.environment.options.items() if name.startswith("version_table")}

    def at(self, url: str, **options: Any) -> "Project":
        """Return the same project with another database, and with other options."""
        chosen = replace(self.options, **options)
        return Project(
            self.config, chosen, url=url, spelling=self.spelling, script=self.script, environment=self.environment
        )


# --- the configuration ------------------------------------------------------------------------------------------------


def read_config(files: Sequence[str] = (), section: str = "alembic", **others: Any) -> Config:
    """Return the configuration that Alembic itself reads with these options -c and -n, and in ALEMBIC_CONFIG."""
    named = [*files, *filter(None, [os.environ.get("ALEMBIC_CONFIG")])]
    toml, ini = (
        [name for name in named if (Path(name).name == "pyproject.toml") is is_toml] for is_toml in (True, False)
    )
    return Config((ini or ["alembic.ini"])[0], toml_file=(toml or ["pyproject.toml"])[0], ini_section=section, **others)


def options_of(config: Config) -> str:
    """Return the options that mean this configuration, as typed."""
    named = config.cmd_opts and getattr(config.cmd_opts, "config", None)
    options = [f"-c {shlex.quote(str(name))}" for name in named or ()]
    if config.config_ini_section != "alembic":
        options.append(f"-n {shlex.quote(config.config_ini_section)}")
    # An acceptance is for one command, and never for the next.
    options += [
        f"-x {shlex.quote(each)}"
        for each in getattr(config.cmd_opts, "x", None) or ()
        if not each.startswith(("accept-loss=", "saved="))
    ]
    return " ".join(options)


def variables_of(config: Config) -> str:
    """Return the environment variable that means this configuration, as typed."""
    named = os.environ.get("ALEMBIC_CONFIG")
    is_used = named and named in (config.config_file_name, config.toml_file_name)
    return f"ALEMBIC_CONFIG={shlex.quote(str(named))}" if is_used else ""
