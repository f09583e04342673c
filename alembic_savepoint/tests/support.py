"""An Alembic project of a stranger: made by `alembic init`, and used through the two commands only."""

import multiprocessing
import os
import re
import runpy
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import sqlalchemy as sa

OWN_BLOCK = re.compile(r"( *)with context\.begin_transaction\(\):\n +context\.run_migrations\(\)\n")
"""The lines of Alembic's templates that the guards replace."""

# Each command is a process of its own, forked from one that has imported the libraries.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["alembic.config", "alembic.autogenerate", "alembic_savepoint.commands.main"])

MODELS = """
import sqlalchemy as sa

metadata = sa.MetaData()
users = sa.Table(
    "users", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(50), nullable=False),
    sa.Column("email", sa.String(100)),
)
"""

FIRST = """
def upgrade():
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(50), nullable=False),
    )

def downgrade():
    op.drop_table("users")
"""

SECOND = """
def upgrade():
    op.add_column("users", sa.Column("email", sa.String(100)))

def downgrade():
    op.drop_column("users", "email")
"""


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, and what it printed."""

    code: int | None
    output: str
    errors: str

    @property
    def text(self) -> str:
        """All that was printed, with single spaces, however it was wrapped."""
        return " ".join(f"{self.output} {self.errors}".split())


@dataclass
class Stranger:
    """A project in a folder of its own, and its database."""

    folder: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    started: int = 0

    def start(self, program: str, *arguments: str) -> Callable[[], Result]:
        """Start a command in the project's folder; what is returned waits for its end."""
        self.started += 1
        output, errors = (self.folder.parent / f"{self.started}.{name}" for name in ("out", "err"))
        command = ([program, *arguments], str(self.folder), self.environment, str(output), str(errors))
        process = _FORKS.Process(target=_execute, args=command)
        process.start()

        def end() -> Result:
            process.join(60)
            if process.exitcode is None:
                process.kill()
            return Result(process.exitcode, output.read_text(), errors.read_text())

        return end

    def run(self, program: str, *arguments: str) -> Result:
        """Run a command in the project's folder."""
        return self.start(program, *arguments)()

    def alembic(self, *arguments: str) -> Result:
        """Run `alembic`, which must succeed."""
        result = self.run("alembic", *arguments)
        assert result.code == 0, result
        return result

    def savepoint(self, *arguments: str, code: int = 0) -> Result:
        """Run `alembic-savepoint`, which must end with this exit code."""
        result = self.run("alembic_savepoint", *arguments)
        assert (result.code, "Traceback" in result.errors) == (code, False), result
        return result

    def edit(self, name: str, *replacements: tuple[str, str]) -> None:
        """Replace texts in a file; each must be there."""
        path = self.folder / name
        text = path.read_text()
        for old, new in replacements:
            assert old in text, (old, text)
            text = text.replace(old, new)
        path.write_text(text)

    def guard(self) -> None:
        """Put the guards' line into env.py, wherever the template has its own lines."""
        path = self.folder / "migrations/env.py"
        text, count = OWN_BLOCK.subn(r"\1guards.run_migrations()\n", path.read_text())
        assert count
        path.write_text(
            text.replace(
                "from alembic import context\n", "from alembic import context\nfrom alembic_savepoint import guards\n"
            )
        )

    def use_models(self) -> None:
        """Name the models in env.py."""
        (self.folder / "models.py").write_text(MODELS)
        self.edit("migrations/env.py", ("target_metadata = None", "from models import metadata as target_metadata"))

    def add_revision(self, id: str, body: str, after: str | None, folder: str = "migrations/versions") -> Path:
        """Write a revision."""
        path = self.folder / folder / f"{id}_.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'"""Revision {id}"""\nimport sqlalchemy as sa\nfrom alembic import op\n\n'
            f"revision = {id!r}\ndown_revision = {after!r}\nbranch_labels = None\ndepends_on = None\n{body}"
        )
        return path

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Ask the database, or change it, past the tool."""
        url = sa.make_url(self.url)
        if url.get_backend_name() == "sqlite":
            connection = sqlite3.connect(str(self.folder / str(url.database)))
            try:
                with connection:
                    return connection.execute(sql).fetchall()
            finally:
                connection.close()
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(False), autocommit=True) as postgresql:
            cursor = postgresql.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def tables(self) -> set[object]:
        """The names of the tables in the default schema."""
        everywhere = "SELECT name FROM sqlite_master WHERE type = 'table'"
        if not self.url.startswith("sqlite"):
            everywhere = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        return {name for (name,) in self.query(everywhere)}


def begin_project(folder: Path, url: str, template: str = "generic") -> Stranger:
    """Make an untouched project of one of Alembic's templates, with the URL in alembic.ini and two revisions."""
    folder.mkdir()
    project = Stranger(folder, url)
    project.alembic("init", "-t", template, "migrations")
    project.edit("alembic.ini", ("driver://user:pass@localhost/dbname", url.replace("%", "%%")))
    project.add_revision("aaa1", FIRST, None)
    project.add_revision("bbb2", SECOND, "aaa1")
    return project


def _execute(arguments: Sequence[str], folder: str, environment: dict[str, str], *outputs: str) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ |= environment
    sys.argv = [arguments[0].replace("_", "-"), *arguments[1:]]
    sys.path.insert(0, folder)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
