"""The schema at start-up: SQLite brings itself to head, a server database is never touched, and /readyz says which."""

import asyncio
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from starlette.testclient import TestClient

import main
from schema import ALEMBIC_INI, Schema, upgrade_to_head
from tests.support.service import OPERATOR_TOKEN, Rows, alembic, query, serving

pytestmark = pytest.mark.slow

HEAD = Schema().head


OLDEST = ScriptDirectory.from_config(Config(ALEMBIC_INI)).get_base()


UNKNOWN = "ffffffffffff"


ALICE = {"username": "alice", "email": "alice@example.com"}


VERSION = "SELECT version_num FROM alembic_version"


SQLITE_TABLES = "SELECT name, sql FROM sqlite_master ORDER BY name"


only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])


only_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


Start = Callable[[str], AbstractContextManager[TestClient]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start the service in this process, on any database."""

    @contextmanager
    def start(url: str) -> Iterator[TestClient]:
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
        with TestClient(main.app, raise_server_exceptions=False) as client:
            yield client

    return start


@only_sqlite
def test_starting_on_an_empty_sqlite_file_brings_it_to_head(empty_url: str, start: Start) -> None:
    with start(empty_url) as client:
        assert client.get("/readyz").json() == {"status": "ready", "revision": HEAD, "head": HEAD}
        assert client.post("/register", json=ALICE).status_code == 201

    assert query(empty_url, VERSION) == [(HEAD,)]


@only_sqlite
def test_starting_on_an_older_sqlite_file_brings_it_to_head_with_its_rows(empty_url: str, start: Start) -> None:
    assert alembic(empty_url, "upgrade", OLDEST or "").returncode == 0
    query(empty_url, "INSERT INTO users (username, email, created_at) VALUES ('alice', 'a@example.com', '2026-01-01')")

    with start(empty_url) as client:
        assert client.get("/readyz").json()["status"] == "ready"

    assert query(empty_url, "SELECT username FROM users") == [("alice",)]


@only_sqlite
def test_four_workers_at_once_start_on_an_empty_sqlite_file(empty_url: str, tmp_path: Path) -> None:
    with serving(empty_url, tmp_path, workers=4) as server:
        assert httpx2.get(f"{server.url}/readyz").json()["status"] == "ready"

    assert "ERROR" not in server.log
    assert "Traceback" not in server.log


def upgrade_at(instant: float, url: str) -> None:
    """Upgrade, in a process of its own, when the others do."""
    os.environ["DATABASE_URL"] = url
    time.sleep(max(0, instant - time.time()))
    asyncio.run(upgrade_to_head())


def test_two_processes_may_upgrade_an_empty_sqlite_file_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        for number in range(10):
            url = f"sqlite:///{tmp_path}/{number}.db"
            list(processes.map(upgrade_at, [time.time() + 0.05] * 2, [url] * 2))
            assert query(url, VERSION) == [(HEAD,)]


@only_sqlite
def test_starting_waits_while_another_process_switches_the_file_to_wal(empty_url: str, start: Start) -> None:
    # A process that switches holds the lock of a writer, and SQLite then refuses the next one's switch at once,
    # whatever its busy time-out.
    other = sqlite3.connect(empty_url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.close)
    timer.start()

    with start(empty_url) as client:
        assert client.get("/readyz").json()["status"] == "ready"

    timer.join()


@only_postgresql
def test_an_empty_postgresql_database_is_left_alone(empty_url: str, start: Start) -> None:
    with start(empty_url):
        pass

    assert query(empty_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


@only_postgresql
def test_until_it_is_migrated_the_service_says_what_to_do(empty_url: str, start: Start) -> None:
    with start(empty_url) as client:
        readiness = client.get("/readyz")
        refusal = client.post("/register", json=ALICE)

    assert (readiness.status_code, readiness.json()) == (503, {"status": "behind", "revision": None, "head": HEAD})
    assert (refusal.status_code, refusal.json()["type"]) == (503, "/problems/schema-behind")
    assert refusal.headers["Content-Type"] == "application/problem+json"
    assert "alembic upgrade head" in refusal.json()["detail"]


@only_postgresql
def test_once_it_is_migrated_the_service_is_ready_without_a_restart(empty_url: str, tmp_path: Path) -> None:
    with serving(empty_url, tmp_path) as server, httpx2.Client(base_url=server.url) as client:
        assert client.get("/readyz").status_code == 503
        assert client.post("/register", json=ALICE).status_code == 503

        assert alembic(empty_url, "upgrade", "head").returncode == 0

        readiness = client.get("/readyz")
        assert (readiness.status_code, readiness.json()["status"]) == (200, "ready")
        assert client.post("/register", json=ALICE).status_code == 201

    assert f"The schema is at None and this code needs {HEAD}. Run: alembic upgrade head" in server.log


@only_postgresql
def test_a_postgresql_database_at_an_older_revision_is_behind_and_left_alone(empty_url: str, start: Start) -> None:
    assert alembic(empty_url, "upgrade", OLDEST or "").returncode == 0

    with start(empty_url) as client:
        readiness = client.get("/readyz")
        refusal = client.post("/register", json=ALICE)

    assert (readiness.status_code, readiness.json()) == (503, {"status": "behind", "revision": OLDEST, "head": HEAD})
    assert (refusal.status_code, refusal.json()["type"]) == (503, "/problems/schema-behind")
    assert query(empty_url, VERSION) == [(OLDEST,)]


@only_postgresql
def test_a_postgresql_database_at_base_is_behind(url: str, rows: Rows, start: Start) -> None:
    rows("DELETE FROM alembic_version")  # As `alembic downgrade base` leaves it.

    with start(url) as client:
        assert client.get("/readyz").json() == {"status": "behind", "revision": None, "head": HEAD}


@pytest.fixture
def newer_url(url: str) -> str:
    """A database that was migrated by a newer release."""
    query(url, f"UPDATE alembic_version SET version_num = '{UNKNOWN}'")
    return url


def test_at_an_unknown_revision_the_service_is_ahead_and_serves(newer_url: str, start: Start) -> None:
    with start(newer_url) as client:
        readiness = client.get("/readyz")
        registration = client.post("/register", json=ALICE)

    assert (readiness.status_code, readiness.json()) == (200, {"status": "ahead", "revision": UNKNOWN, "head": HEAD})
    assert registration.status_code == 201


@only_sqlite
def test_a_sqlite_file_at_an_unknown_revision_is_left_alone(newer_url: str, start: Start) -> None:
    tables = query(newer_url, SQLITE_TABLES)

    with start(newer_url):
        pass

    assert query(newer_url, VERSION) == [(UNKNOWN,)]
    assert query(newer_url, SQLITE_TABLES) == tables
