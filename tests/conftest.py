"""Databases of both engines, migrated; the service in this process and as real server processes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

import main
from db.database import Database
from operations import Operations
from settings import Settings
from tests.support.database import Service
from tests.support.service import (
    ENGINES,
    OPERATOR_TOKEN,
    POSTGRES_BIN,
    Rows,
    alembic,
    audited,
    execute_on_server,
    new_database,
    postgresql_cluster,
    query,
)

NEEDED_MEMORY = 4 * 2**30
"""Bytes that all tests' temporary files may take at once."""

MEASURED = ("doctor", "saves")
"""The folders whose slow tests coverage follows: they reach what no fast test reaches."""

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own settings out of the tests."""
    config.addinivalue_line("markers", "wrong_books: changes money by hand, so that the books are wrong in the end")
    config.addinivalue_line("markers", "slow: starts and kills servers, or migrates whole databases; not in make test")
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    use_memory_for_temporary_files()
    # What is saved before a migration is kept where nobody looks for it, and pg_dump comes with the server.
    os.environ["SAVES_DIR"] = tempfile.mkdtemp(prefix="savepoint-saves-")
    os.environ["PATH"] = f"{POSTGRES_BIN}{os.pathsep}{os.environ['PATH']}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let coverage, which slows Python down, follow few of the slow tests."""
    for item in items:
        if item.get_closest_marker("slow") is not None and item.path.parent.name not in MEASURED:
            item.add_marker("no_cover")


def use_memory_for_temporary_files() -> None:
    """Use memory where Linux has enough: on a disk, CREATE DATABASE can take ten times as long."""
    memory = Path("/dev/shm")  # noqa: S108
    if "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free > NEEDED_MEMORY:
        os.environ["TMPDIR"] = tempfile.tempdir = str(memory)


def pytest_unconfigure() -> None:
    """Leave no saves behind."""
    shutil.rmtree(os.environ["SAVES_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of this session's PostgreSQL server, with {} for the name of a database."""
    with postgresql_cluster() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite file at head, to copy."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    assert alembic(f"sqlite:///{path}", "upgrade", "head").returncode == 0
    return str(path)


@pytest.fixture(scope="session")
def postgresql_template(postgresql_url: str) -> str:
    """The name of a PostgreSQL database at head, to copy."""
    execute_on_server(postgresql_url, "CREATE DATABASE template_at_head")
    assert alembic(postgresql_url.format("template_at_head"), "upgrade", "head").returncode == 0
    return "template_at_head"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each test that uses a database runs on both engines."""
    name: str = request.param
    return name


@pytest.fixture
def empty_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without tables."""
    with new_database(engine, tmp_path, request) as url:
        yield url


@pytest.fixture
def url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database that was migrated to head."""
    with new_database(engine, tmp_path, request, request.getfixturevalue(f"{engine}_template")) as url:
        yield url


@pytest.fixture
def rows(url: str) -> Rows:
    """Look into the test's database, or change it, past the service."""
    return lambda sql: query(url, sql)


@pytest.fixture
def settings(url: str) -> Settings:
    return Settings(database_url=url)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings)
    yield database
    await database.close()


@pytest.fixture
async def operations(settings: Settings) -> AsyncIterator[Operations]:
    operations = Operations(Database(settings), settings)
    yield operations
    await operations.close()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service store and number events, but not deliver them."""
    monkeypatch.setenv("EVENTS", "true")
    monkeypatch.setenv("DELIVERER", "false")


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """The service in this process, started and stopped as uvicorn does; the books must be right in the end."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    with audited(url, request), TestClient(main.app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Start the service in this event loop, on this database; answers a client of it."""

    @asynccontextmanager
    async def start(url: str, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
        for name, value in {"database_url": url, **settings}.items():
            monkeypatch.setenv(name.upper(), str(value))
        transport = httpx2.ASGITransport(main.app, raise_app_exceptions=False)
        async with (
            main.lifespan(main.app),
            httpx2.AsyncClient(transport=transport, base_url="http://savepoint") as client,
        ):
            yield client

    monkeypatch.setenv("ENVIRONMENT", "production")  # No operator token is made and printed.
    return start


@pytest.fixture
def path(sqlite_template: str, tmp_path: Path) -> Path:
    """A database at head, in a folder of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    return Path(shutil.copy(sqlite_template, folder / "a.db"))
