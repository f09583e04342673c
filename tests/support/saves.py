"""Helpers of the tests of saves."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from alembic import command
from alembic.config import Config
from typer.testing import Result

from alembic_savepoint.backup import saves
from alembic_savepoint.backup.saves import Save
from schema import ALEMBIC_INI
from tests.support.migrations import REVISIONS, Snapshot, look
from tests.support.service import query

HEAD = REVISIONS[-1]


only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])


only_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


Run = Callable[..., Result]


def upgrade(url: str, revision: str) -> None:
    """Run `alembic upgrade` in this process."""
    with patch.dict(os.environ, {"DATABASE_URL": url}):
        command.upgrade(Config(ALEMBIC_INI), revision)


def state(url: str) -> Snapshot:
    """All that the database holds, its record of revisions included."""
    found = look(url)
    for table in found.schema.values():
        for check in table["checks"]:
            # PostgreSQL writes casts anew when it reads them back from a dump.
            check["sqltext"] = re.sub(r"::[a-z ]+(\[\])?|[()]", "", check["sqltext"])
    found.rows["applied_revisions"] = [
        {"row": row} for row in query(url, "SELECT * FROM applied_revisions ORDER BY id")
    ]
    return found


def change(url: str) -> None:
    """Change rows, so that a load has something to undo."""
    query(url, "DELETE FROM profiles WHERE user_id = 2")
    query(url, "UPDATE users SET email = 'changed@example.com'")
    query(url, "CREATE TABLE notes (id INTEGER PRIMARY KEY)")


def counted(url: str, made: Save) -> dict[str, int]:
    """How many rows each table of the save has in this database."""
    return {table: query(url, f"SELECT count(*) FROM {table}")[0][0] for table in made.rows}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def half_way(act: Callable[[], None]) -> saves.Progress:
    """Do this once, when half of a save has been written over the database, uncommitted."""

    def progress(what: str, done: int, total: int) -> None:
        # On PostgreSQL a report comes each 1,000 lines; the first is made when the tables have been dropped.
        if what == "Loading" and (done * 2 >= total or (done == 0 and total < 1000)):
            act()

    return progress


def plain_dump(url: str) -> list[str]:
    """All that the database holds, as SQL."""
    dump = subprocess.run(["pg_dump", url], capture_output=True, text=True, check=True).stdout
    # But for keys that are new each time, and casts that PostgreSQL writes anew when it reads them back.
    return [line for line in dump.splitlines() if "restrict" not in line and "::character varying" not in line]


def run_until_killed(act: Callable[..., object], url: str, folder: Path, what: str, share: float) -> None:
    """Save or load in a process that is killed when this much of something is done."""

    def progress(said: str, done: int, total: int) -> None:
        if said == what and done >= total * share:
            os.kill(os.getpid(), signal.SIGKILL)

    # A fork has imported everything already.
    child = os.fork()
    if not child:
        try:
            act(url, folder, "kept", progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def flip_a_bit(made: Save, folder: Path) -> None:
    path = made.copy_in(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
