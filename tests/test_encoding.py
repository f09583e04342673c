"""A PostgreSQL database that is not UTF-8 is refused in words, and what it holds can be moved."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import main
import manage
from starting import StartRefused
from tests.support.project import load, save
from tests.support.service import alembic, execute_on_server, new_database, query

pytestmark = pytest.mark.slow

ENCODINGS = ("SQL_ASCII", "LATIN1")


WORDS = "and Savepoint needs UTF8. Create another database: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"


Create = Callable[[str], str]


@pytest.fixture
def create(postgresql_url: str) -> Iterator[Create]:
    """Create a database with this encoding, in place of the one before; its URL."""
    name = f"test_encoding_{os.getpid()}"

    def create(encoding: str) -> str:
        execute_on_server(postgresql_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        locale = "LC_COLLATE 'C' LC_CTYPE 'C'"
        execute_on_server(postgresql_url, f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 {locale}")
        return postgresql_url.format(name)

    yield create
    execute_on_server(postgresql_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_alembic_start_up_and_every_command_refuse_it_and_name_the_remedy(
    create: Create, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = create(encoding)
    monkeypatch.setenv("DATABASE_URL", url)
    words = f"the database's encoding is {encoding}, {WORDS}"

    upgrade = alembic(url, "upgrade", "head")
    assert upgrade.returncode == 1
    assert words in upgrade.stderr
    assert upgrade.stderr.count("\n") == 1
    with pytest.raises(StartRefused) as refusal, TestClient(main.app):
        pass
    assert words in str(refusal.value)
    for command in ("doctor", "check", "audit", "graph", "rehearse"):
        answer = CliRunner().invoke(manage.app, [command])
        assert words in " ".join(f"{answer.stdout} {answer.stderr}".split()), command
        assert answer.exit_code == (0 if command == "graph" else 2), command
    assert query(url, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


def test_a_database_that_becomes_another_one_under_the_service_makes_it_unready(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = create("UTF8")
    assert alembic(url, "upgrade", "head").returncode == 0
    monkeypatch.setenv("DATABASE_URL", url)
    with TestClient(main.app) as client:
        assert client.get("/readyz").status_code == 200
        create("SQL_ASCII")
        # The first one finds that its connection broke.
        answers = [client.get("/readyz") for _ in range(2)]

    assert (answers[-1].status_code, answers[-1].json()["type"]) == (503, "/problems/database-unavailable")


def test_text_travels_as_utf_8_whatever_the_client_is_set_to(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    url = create("UTF8")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("DATABASE_URL", f"{url}&client_encoding=latin1")
    assert alembic(url, "upgrade", "head").returncode == 0

    with TestClient(main.app) as client:
        registered = client.post("/register", json={"username": "łukasz", "email": "l@example.com"})

    assert registered.status_code == 201
    with closing(psycopg.connect(url, client_encoding="utf8")) as connection:
        assert connection.execute("SELECT username FROM users").fetchall() == [("łukasz",)]


def test_what_a_latin1_database_holds_is_moved_by_a_save(
    create: Create, postgresql_template: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with new_database("postgresql", tmp_path, request, postgresql_template) as source:
        query(source, "INSERT INTO users (username, email, created_at) VALUES ('émile', 'e@example.com', now())")
        save(source, tmp_path, "first")
    old = create("LATIN1")
    load(old, tmp_path, "first")
    save(old, tmp_path, "second")

    new = create("UTF8")
    load(new, tmp_path, "second")

    assert query(new, "SELECT username FROM users") == [("émile",)]


def test_a_save_is_not_loaded_into_one(
    create: Create,
    postgresql_template: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with new_database("postgresql", tmp_path, request, postgresql_template) as source:
        save(source, tmp_path, "first")
    monkeypatch.setenv("SAVES_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", create("LATIN1"))

    answer = CliRunner().invoke(manage.app, ["load", "first", "--yes"])

    assert answer.exit_code == 2
    assert WORDS in answer.stderr
