"""Helpers of the tests of rehearsal."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from alembic.config import Config
from rich.console import Console
from typer.testing import CliRunner, Result

import manage
from alembic_savepoint.rehearsal.rehearsal_report import as_text
from alembic_savepoint.rehearsal.trial import Rehearsal, Trial
from alembic_savepoint.rehearsal.watching import Statement, UnsafeStep
from schema import ALEMBIC_INI
from settings import Settings
from tests.support.migrations import HEAD, add_revision
from tests.support.project import rehearse
from tests.support.service import query

NEW = "ffffffffffff"
"""A revision that a test adds to a copy of the migrations."""


ADD_COLUMN = '    op.add_column("users", sa.Column("birthstone", sa.String(length=30), nullable=True))\n'


ALL_EMAILS = "    op.execute(\"UPDATE users SET email = 'nobody@example.com'\")\n"


def config_of(folder: Path) -> Config:
    """Alembic's configuration for the copy."""
    config = Config(ALEMBIC_INI)
    config.set_main_option("script_location", str(folder / "migrations"))
    return config


def settings(url: str) -> Settings:
    return Settings(database_url=url, migration_lock_timeout=0.3, lock_timeout=0.3)


def rehearsed(url: str, target: str = "head", *, copy: bool = False) -> Rehearsal:
    return rehearse(url, target, settings=settings(url), copy=copy)


def tried(url: str, upgrade: str, folder: Path) -> Rehearsal:
    """The rehearsal of one revision that a test adds."""
    add_revision(folder, NEW, HEAD, upgrade)
    return rehearsed(url)


def only(rehearsal: Rehearsal) -> Trial:
    (trial,) = rehearsal.revisions
    return trial


def statement(rehearsal: Rehearsal, beginning: str) -> Statement:
    """The statement of the last revision that begins so."""
    (found,) = (each for each in rehearsal.revisions[-1].statements if each.sql.startswith(beginning))
    return found


def findings(rehearsal: Rehearsal) -> list[UnsafeStep]:
    found = []
    for trial in rehearsal.revisions:
        for each in trial.statements:
            found += each.unsafe_steps
        found += trial.unsafe_steps
    return found


def rules(findings: list[UnsafeStep]) -> list[str]:
    return [finding.rule for finding in findings]


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(manage.app, ["rehearse", *arguments])


def everything(url: str) -> list[str]:
    """All that a database holds, as a script that makes it anew; on PostgreSQL also which databases there are."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return list(connection.iterdump())
    dump = subprocess.run(["pg_dump", f"--dbname={url}"], capture_output=True, text=True, check=True, timeout=60)
    # pg_dump 18 frames a script with a word that is new each time.
    script = [line for line in dump.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    return script + [name for (name,) in databases(url)]


def databases(url: str) -> list[tuple[str]]:
    """The databases on the server that are this one or a copy of it."""
    return query(url, "SELECT datname FROM pg_database WHERE starts_with(datname, current_database()) ORDER BY 1")


def others(url: str) -> bool:
    """Whether somebody else is connected."""
    return url.startswith("postgresql") and (
        query(url, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        != []
    )


def printed(rehearsal: Rehearsal, width: int = 100) -> str:
    """What people read."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(as_text(rehearsal), highlight=False)
    return capture.get()
