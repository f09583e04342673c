"""`python manage.py` alone says how the database is, and what to do next."""

import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

import manage
from tests.support.accounts import deposit, register_all
from tests.support.service import ROOT, alembic, free_port, query


@pytest.fixture(autouse=True)
def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "saves"
    monkeypatch.setenv("SAVES_DIR", str(folder))
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(manage.app, arguments)


def test_a_database_is_shown_in_figures(client: TestClient, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    alice, _, carol = register_all(client, alice=0, bob=0, carol=0)
    deposit(client, alice.account_id, 1250)
    client.delete("/me", headers=carol.headers)

    before = run()
    assert run("save").exit_code == 0
    after = run()

    assert before.exit_code == 0, before.stderr
    assert "(ready; this code's head is " in before.stdout
    assert "users      3: 2 active, 1 closed\n" in before.stdout
    assert ["EUR", "3", "1,250", "0"] in [line.split() for line in before.stdout.splitlines()]
    assert "last save  none in " in before.stdout
    assert before.stdout.endswith("Next: python manage.py save, and copy it to another machine.\n")
    assert " UTC, " in after.stdout
    assert after.stdout.endswith("Next: nothing. All commands: python manage.py --help\n")


def test_an_older_schema_is_to_be_migrated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert alembic(url, "downgrade", "d27f60b8e913").returncode == 0

    shown = run()

    assert shown.exit_code == 0, shown.stderr
    assert "d27f60b8e913 (behind; this code's head is " in shown.stdout
    assert shown.stdout.endswith("Next: python manage.py rehearse, then alembic upgrade head.\n")


@pytest.mark.parametrize(
    "change", ["ALTER TABLE entries RENAME COLUMN amount TO amount_x", "DROP TABLE operator_actions"]
)
def test_tables_that_were_changed_by_hand_lead_to_the_doctor(
    url: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    query(url, change)

    shown = run()

    assert shown.exit_code == 0, shown.stderr
    assert "(differs; this code's head is " in shown.stdout
    assert shown.stdout.endswith("Next: python manage.py doctor, which says what differs from the revision.\n")


def test_a_database_without_a_schema_is_behind(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    query(empty_url, "SELECT 1")

    assert "revision   none (behind; " in run().stdout


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("sqlite:///{folder}/none.db", "There is no file {folder}/none.db."),
        (
            "postgresql://savepoint:secret@127.0.0.1:{port}/none",
            "postgresql://savepoint:***@127.0.0.1:{port}/none cannot",
        ),
    ],
)
def test_a_database_that_is_not_there_is_named_without_its_password(
    missing: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"folder": tmp_path, "port": free_port()}
    monkeypatch.setenv("DATABASE_URL", missing.format(**values))

    shown = run()

    assert shown.exit_code == 2
    assert words.format(**values) in shown.stderr


def test_the_shell_completes_commands_and_options() -> None:
    def complete(*words: str) -> list[str]:
        environment = {
            "_MANAGE.PY_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        done = subprocess.run(
            [sys.executable, ROOT / "manage.py"], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout.split()

    assert complete("manage.py", "re") == ["rehearse"]
    assert complete("manage.py", "saves", "--ol") == ["--older-than"]
