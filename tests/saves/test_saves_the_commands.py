"""Saves: the commands."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alembic_savepoint.guards.turns import only_migrator
from db.engines import create_migration_engine
from tests.support.migrations import REVISIONS
from tests.support.project import contents, load, save
from tests.support.saves import HEAD, Run, change, flip_a_bit, only_sqlite, state, upgrade
from tests.support.service import ROOT

pytestmark = pytest.mark.slow


def test_the_commands_save_list_and_load(run: Run, full_url: str, folder: Path) -> None:
    before = state(full_url)

    made = run("save", "kept")
    change(full_url)
    listed = run("saves")
    loaded = run("load", "kept", "--yes")

    assert [each.exit_code for each in (made, listed, loaded)] == [0, 0, 0]
    assert "python manage.py load kept" in made.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines() if "kept" in line] == ["kept"]
    cells = {tuple(line.split()) for line in loaded.stdout.splitlines()}
    assert {("revision", HEAD, HEAD), ("profiles", "1", "2"), ("notes", "0")} <= cells
    assert "python manage.py load replaced-20" in loaded.stderr
    assert state(full_url) == before


def test_saves_are_listed_as_json(run: Run, url: str, folder: Path) -> None:
    assert json.loads(run("saves", "--json").stdout) == []
    made = save(url, folder, "kept")

    assert json.loads(run("saves", "--json").stdout) == [made.model_dump(mode="json")]


def test_where_there_are_no_saves_it_is_said_how_to_make_one(run: Run) -> None:
    result = run("saves")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "python manage.py save" in result.stderr


def test_nothing_is_replaced_when_there_is_nobody_to_ask(run: Run, full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    result = run("load", "kept")

    assert result.exit_code == 1
    assert "--yes" in result.stderr
    assert state(full_url) == before


@only_sqlite
@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_who_sits_at_the_terminal_is_asked(full_url: str, folder: Path, answer: bytes, code: int) -> None:
    old = state(full_url)
    save(full_url, folder, "kept")
    change(full_url)
    new = state(full_url)
    ours, theirs = pty.openpty()
    os.write(ours, answer)

    result = subprocess.run(
        [sys.executable, ROOT / "manage.py", "load", "kept"],
        stdin=theirs,
        env={**os.environ, "DATABASE_URL": full_url, "SAVES_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    for end in (ours, theirs):
        os.close(end)

    assert result.returncode == code, result.stderr
    assert "Replace what is there?" in result.stderr
    assert state(full_url) == (old if answer == b"y\n" else new)


def test_a_refusal_is_exit_code_1(run: Run, url: str, folder: Path) -> None:
    made = save(url, folder, "kept")
    flip_a_bit(made, folder)

    for arguments, words in (
        (("save", "kept"), "exists already"),
        (("save", "not a name"), "cannot be the name"),
        (("load", "kept", "--yes"), "is damaged"),
        (("load", "unknown", "--yes"), "There is no save unknown"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr


def test_an_older_save_says_what_comes_next(run: Run, empty_url: str, folder: Path) -> None:
    upgrade(empty_url, REVISIONS[0])
    save(empty_url, folder, "older")

    result = run("load", "older", "--yes")

    assert result.exit_code == 0
    assert "alembic upgrade head" in result.stderr


def test_a_load_waits_for_a_migration(run: Run, full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_TIMEOUT", "0.2")
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    with only_migrator(create_migration_engine(full_url), 1):
        result = run("load", "kept", "--yes")

    assert result.exit_code == 2
    assert "Another process migrates this database" in result.stderr
    assert state(full_url) == before


def test_a_database_that_cannot_be_reached_is_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, words in (
        ("postgresql://localhost:1/x", "Connection refused"),
        (f"sqlite:///{tmp_path}/missing.db", "There is no file"),
    ):
        monkeypatch.setenv("DATABASE_URL", url)
        result = run("save")
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr


def test_progress_never_passes_its_total(full_url: str, folder: Path) -> None:
    reports: list[tuple[str, int, int]] = []

    def progress(*report: Any) -> None:
        reports.append(report)

    save(full_url, folder, "kept", progress)
    load(full_url, folder, "kept", progress)

    assert all(0 <= done <= total for _, done, total in reports)
    assert {"Verifying", "Loading"} < {what for what, _, _ in reports}


def test_what_is_there_is_counted(full_url: str, empty_url: str) -> None:
    there = contents(full_url)

    assert there is not None
    assert there.rows["users"] == 2
    assert there.revision == (HEAD,)
    assert contents(empty_url) is None
