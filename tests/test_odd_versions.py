"""What is no text in alembic_version is shown as one by every command, and never a traceback."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from shutil import copy

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

import main
import manage
from alembic_savepoint.backup import saves
from tests.support.project import read_applied
from tests.support.service import OPERATOR_TOKEN, query

VALUES = {"x'ff00fe'": "x'ff00fe'", "NULL": "NULL", "7": "7", "1.5": "1.5"}


Run = Callable[..., Result]


@pytest.fixture(params=VALUES)
def value(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def odd_url(sqlite_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> str:
    """A database with this value as its revision; SQLite keeps a value of any type in any column."""
    path = copy(sqlite_template, tmp_path / "a.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "DROP TABLE alembic_version; CREATE TABLE alembic_version (version_num);"
            f"INSERT INTO alembic_version VALUES ({value})"
        )
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    monkeypatch.setenv("SAVES_DIR", str(tmp_path / "saves"))
    return f"sqlite:///{path}"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(manage.app, arguments)


def test_graph_draws_it(odd_url: str, value: str) -> None:
    result = run("graph")

    assert (result.exit_code, result.stderr) == (0, "")
    assert f"?  {VALUES[value]}" in result.stdout


def test_doctor_says_that_nothing_is_known_of_it(odd_url: str, value: str) -> None:
    result = run("doctor")

    assert isinstance(result.exception, SystemExit)
    assert "unknown-revision" in result.stdout
    assert VALUES[value] in result.stdout


def test_check_names_it(odd_url: str, value: str) -> None:
    assert f"unknown-revision: The database is at {VALUES[value]}, of which nothing is known." in run("check").stdout


def test_it_is_saved(odd_url: str, value: str, tmp_path: Path) -> None:
    assert run("save", "one").exit_code == 0
    assert run("save").exit_code == 0
    [save, *_] = [each for each in saves.list_saves(tmp_path / "saves") if each.name == "one"]
    assert save.revision == (VALUES[value],)


def test_the_service_starts_with_it(odd_url: str, value: str) -> None:
    with TestClient(main.app) as client:
        assert client.get("/readyz").status_code in (200, 503)


def test_a_number_of_several_kinds_is_sorted(odd_url: str, value: str) -> None:
    query(odd_url, "INSERT INTO alembic_version VALUES ('a1')")

    assert read_applied(odd_url).current == sorted(["a1", VALUES[value]])
