"""Helpers of the tests of doctor."""

import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from typer.testing import CliRunner, Result

import manage
from alembic_savepoint.doctor.catalog import schema_of
from alembic_savepoint.doctor.diagnosis import KINDS
from tests.support.migrations import (
    HEAD,
    REVISIONS,
    SCRIPTS,
    add_revision,
    create_plain_engine,
    only_sqlite,
)
from tests.support.service import alembic, query

NEW, OTHER = "ffffffffffff", "abcdef123456"
"""A revision that a test adds, and one that nobody has heard of."""


USERS, BEFORE_HEAD = REVISIONS[0], REVISIONS[-2]


MESSAGE = SCRIPTS.get_revision(HEAD).doc


ADD_COLUMN = '    op.add_column("users", sa.Column("birthstone", sa.String(length=30), nullable=True))'


DROP_COLUMN = '    op.drop_column("users", "birthstone")'


GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "dev@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
"""So that the developer's own configuration has no influence."""


on_one_engine = only_sqlite


REPAIR = ("python manage.py doctor --repair", f"Write {HEAD} into alembic_version:")


@dataclass(frozen=True)
class Place:
    """A copy of the repository, in git, and a database."""

    folder: Path
    url: str

    @property
    def config(self) -> Config:
        config = Config(self.folder / "alembic.ini")
        config.set_main_option("script_location", str(self.folder / "migrations"))
        return config

    @property
    def versions(self) -> Path:
        return self.folder / "migrations" / "versions"

    @cached_property
    def engine(self) -> sa.Engine:
        return create_plain_engine(self.url)

    def file_of(self, revision: str) -> Path:
        [path] = self.versions.glob(f"{revision}_*.py")
        return path

    def name_of(self, revision: str) -> str:
        return str(self.file_of(revision).relative_to(self.folder))

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        """Commit everything; the short id of the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)
        return self.git("rev-parse", "--short", "HEAD")

    def add(self, revision: str, parent: str, upgrade: str = ADD_COLUMN, downgrade: str = DROP_COLUMN) -> None:
        add_revision(self.folder, revision, parent, upgrade, downgrade)

    def upgrade(self, target: str = "head") -> None:
        command.upgrade(self.config, target)

    def downgrade(self, target: str) -> None:
        command.downgrade(self.config, target)

    def run(self, line: str) -> None:
        """Run a command as it was printed."""
        for part in line.split(" && "):
            program, *words = shlex.split(part)
            if program == "git":
                self.git(*words)
            else:
                assert program == "alembic"
                done = alembic(self.url, *words, cwd=self.folder)
                assert done.returncode == 0, done.stderr

    def everything(self) -> tuple[Any, ...]:
        """The database, the files and git, to see that nothing is changed."""
        files = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        stored = Path(self.url.removeprefix("sqlite:///"))
        return self.contents(), files, stored.read_bytes() if stored.exists() else None

    def contents(self) -> tuple[Any, ...]:
        """The schema and every row."""
        with self.engine.connect() as connection:
            tables = sa.inspect(connection).get_table_names()
            rows = {table: connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY 1")).all() for table in tables}
            return schema_of(connection), rows

    def command(self, *options: str) -> Result:
        return CliRunner().invoke(manage.app, ["doctor", *options])

    def doctor(self) -> list[dict[str, Any]]:
        """What doctor says, the most serious first; that it changes nothing, and ends with the right code."""
        before = self.everything()
        result = self.command("--json")
        assert self.everything() == before
        document = json.loads(result.stdout)
        found: list[dict[str, Any]] = document["diagnoses"]
        assert result.exit_code == document["exit_code"] == (KINDS[found[0]["kind"]][0] if found else 0)
        return found

    def only(self, kind: str, code: int) -> dict[str, Any]:
        """The only thing that doctor finds."""
        [found] = self.doctor()
        assert (found["kind"], found["exit_code"]) == (kind, code)
        return found

    @property
    def is_healthy(self) -> bool:
        return self.doctor() == []

    @property
    def stamped(self) -> list[tuple[Any, ...]]:
        return query(self.url, "SELECT version_num FROM alembic_version")

    def stamp(self, revision: str) -> None:
        query(self.url, f"UPDATE alembic_version SET version_num = '{revision}'")


def commands(found: dict[str, Any]) -> list[str]:
    return [step["command"] for step in found["next_commands"] if step["command"]]


def steps(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["command"], step["what"]) for step in found["next_commands"]]


def evidence(found: dict[str, Any]) -> str:
    return "\n".join(found["evidence"])


INDEX = "ix_access_tokens_user_id"
