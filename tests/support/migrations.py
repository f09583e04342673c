"""Helpers of the tests of migrations."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeVar
from unittest.mock import patch

import psycopg
import pytest
from alembic.config import Config
from alembic.config import main as run_command_line
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, NullPool, create_engine, inspect, text

from db.engines import driver_url
from schema import ALEMBIC_INI
from tests.support.service import ENGINES, ROOT, alembic, query, wait_until

SCRIPTS = ScriptDirectory.from_config(Config(ALEMBIC_INI))


REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]
"""From the oldest to the head."""


ROWS = {
    "4f1c7a9d2b60": [
        "INSERT INTO users (username, email, created_at)"
        " VALUES ('alice', 'a@example.com', '2026-01-01 00:00+00'), ('bob', 'b@example.com', '2026-01-02 00:00+00')",
        "INSERT INTO profiles (user_id, status) VALUES (1, 'active'), (2, 'suspended')",
    ],
    "9b3e5d8a1c74": ["UPDATE users SET phone_number = '+4915112345678' WHERE username = 'alice'"],
    "d27f60b8e913": [
        "INSERT INTO access_tokens (user_id, token_hash, created_at) VALUES (1, 'a hash', '2026-01-01 00:00:00+00')"
    ],
    "e8a4c05b7d31": [
        # Alice was paid in 12.50.
        "INSERT INTO accounts (id, user_id, currency, balance, version, updated_at)"
        " VALUES (11, NULL, 'CHF', -1250, 1, '2026-01-03 00:00+00'), (12, 1, 'CHF', 1250, 1, '2026-01-03 00:00+00')",
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, currency, amount, initiator, created_at)"
        " VALUES (21, 11, 12, 'CHF', 1250, 0, '2026-01-03 00:00+00')",
        "INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at) VALUES"
        " (11, 1, 21, -1250, -1250, '2026-01-03 00:00+00'), (12, 1, 21, 1250, 1250, '2026-01-03 00:00+00')",
    ],
}
"""What is stored once a revision is reached, as its tables then are. A revision with a new table adds rows."""

LATER_ROWS = {
    "f3a96c1d7e52": ["INSERT INTO transactions (id, initiator, created_at) VALUES (31, 0, '2026-01-03 00:00+00')"],
    "a84e5d20b6f9": [
        "INSERT INTO holds (id, debit_account_id, credit_account_id, currency, amount, status, expires_at, initiator,"
        " created_at) VALUES (41, 12, 11, 'CHF', 5, 'voided', '2026-01-04 00:00+00', 1, '2026-01-03 00:00+00')"
    ],
    "c2e8f4a61b95": [
        "INSERT INTO operator_keys (id, name, scopes, key_hash, created_at)"
        " VALUES (51, 'support', '[\"users\"]', 'a hash', '2026-01-03 00:00+00')",
        "INSERT INTO operator_actions (id, action, key_id, request_id, user_id, created_at)"
        " VALUES (61, 'user.suspend', 51, 'request-1', 1, '2026-01-03 00:00+00')",
        "UPDATE transfers SET operator_key_id = 51",
    ],
    "d94b1f7e3a60": [
        "INSERT INTO events (id, number, type, subject_ids, size, created_at)"
        " VALUES (71, 7, 'user.suspended', '[1]', 1, '2026-01-03 00:00+00')",
        "INSERT INTO event_numbers (id, last) VALUES (1, 7)",
        "INSERT INTO webhooks (id, url, personal_data, status, secret, created_at)"
        " VALUES (81, 'https://hooks.example', false, 'active', 'whsec_AAAA', '2026-01-03 00:00+00')",
        "INSERT INTO webhook_deliveries (webhook_id, event_id, type, status, attempts, due_at, created_at)"
        " VALUES (81, 7, 'user.suspended', 'waiting', 0, '2026-01-03 00:00+00', '2026-01-03 00:00+00')",
    ],
}
"""The same of revisions that no other test goes back from with rows."""


ACCOUNTS = "e8a4c05b7d31"


BEFORE_ACCOUNTS = "d27f60b8e913"


HEAD = REVISIONS[-1]


only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])


only_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


Rows = dict[str, list[dict[str, Any]]]


T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """All that a database holds: its tables with the names and texts of their constraints, and every row."""

    schema: dict[str, dict[str, Any]]
    rows: Rows


def create_plain_engine(url: str) -> Engine:
    """An engine that owes nothing to the product's events and pragmas."""
    return create_engine(driver_url(url, is_async=False), poolclass=NullPool)


def schema_of(url: str) -> dict[str, dict[str, Any]]:
    """Each table as the database tells it; the order of its columns does not count."""
    inspector = inspect(create_plain_engine(url))

    def sort(constraints: Any) -> list[dict[str, Any]]:
        return sorted(constraints, key=lambda constraint: constraint["name"] or "")

    def indexes(table: str) -> list[dict[str, Any]]:
        # As text, since two expressions of the same text are not equal: sqlite_where is one.
        return [
            {**index, "dialect_options": {name: str(value) for name, value in index["dialect_options"].items()}}
            for index in sort(inspector.get_indexes(table))
        ]

    return {
        table: {
            # As repr, for the lengths and time zones.
            "columns": {
                column["name"]: {**column, "type": repr(column["type"])} for column in inspector.get_columns(table)
            },
            "primary key": [inspector.get_pk_constraint(table)],
            "unique": sort(inspector.get_unique_constraints(table)),
            "foreign keys": sort(inspector.get_foreign_keys(table)),
            "checks": sort(inspector.get_check_constraints(table)),
            "indexes": indexes(table),
        }
        for table in inspector.get_table_names()
        if table != "applied_revisions"
    }


def look(url: str) -> Snapshot:
    """What the database holds now."""
    schema = schema_of(url)
    with create_plain_engine(url).connect() as connection:
        rows = {
            table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1")).mappings()]
            for table in schema
        }
    return Snapshot(schema, rows)


def common(before: Snapshot, after: Snapshot) -> tuple[Rows, Rows]:
    """The rows of both, in the tables and columns that both have."""

    def part(snapshot: Snapshot) -> Rows:
        return {
            table: [{name: row[name] for name in row if name in columns[table]} for row in snapshot.rows[table]]
            for table in columns
        }

    columns = {
        table: before.schema[table]["columns"].keys() & after.schema[table]["columns"].keys()
        for table in before.schema.keys() & after.schema.keys() - {"alembic_version"}
    }
    return part(before), part(after)


@cache
def alembic_processes() -> ProcessPoolExecutor:
    """Processes that have imported what alembic needs: that takes ten times as long as most commands do."""
    return ProcessPoolExecutor(len(ENGINES), get_context("spawn"))


def run_alembic(url: str, arguments: tuple[str, ...], environment: dict[str, str]) -> CompletedProcess[str]:
    """Run the alembic command in this process."""
    code: Any = 0
    with (
        patch.dict(os.environ, {"DATABASE_URL": url, **environment}),
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        try:
            run_command_line(("-c", str(ALEMBIC_INI), *arguments))
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
    return CompletedProcess(arguments, code & 0xFF, stdout.getvalue(), stderr.getvalue())


def quick_alembic(url: str, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """Run the alembic command in a process that has started already."""
    return alembic_processes().submit(run_alembic, url, arguments, environment).result(timeout=60)


def migrate(url: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> Snapshot:
    """Run an alembic command that must succeed; what the database holds then."""
    if cwd == ROOT:
        result = quick_alembic(url, *arguments, **environment)
    else:
        result = alembic(url, *arguments, cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    return look(url)


def complaints(result: CompletedProcess[str]) -> list[str]:
    """What a command printed besides its progress."""
    return [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("INFO")]


def fill(url: str, *revisions: str) -> None:
    """Store what belongs to the revisions."""
    for revision in revisions:
        for sql in ROWS.get(revision, ()):
            query(url, sql)


def run_script(url: str, sql: str) -> None:
    """Run statements that open and end their transactions themselves."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as sqlite:
            sqlite.executescript(sql)
    else:
        with psycopg.connect(url, autocommit=True) as postgresql:
            postgresql.execute(sql.encode())


def on_both_engines(run: Callable[[str], T]) -> dict[str, T]:
    """Run for both engines at once, since most of an alembic command's time goes into starting Python."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(ENGINES, threads.map(run, ENGINES), strict=True))


def copy_of_the_repository(folder: Path) -> Path:
    """What alembic uses of the repository, for a test to change."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*alembic.ini")]:
        shutil.copy2(path, folder)
    for package in ("alembic_savepoint", "api", "console", "db", "migrations", "server", "webhooks"):
        shutil.copytree(ROOT / package, folder / package)
    return folder


MORE_USERS = """
INSERT INTO users (id, username, email, created_at)
VALUES (30, 'carol', 'c@example.com', '2026-01-03 00:00+00'), (1000000, 'dave', 'd@example.com', '2026-01-04 00:00+00')
"""


def make_older(url: str) -> str:
    """Bring an empty database to where there are no accounts yet, with users: 1, 2, 30 and 1000000."""
    assert quick_alembic(url, "upgrade", BEFORE_ACCOUNTS).returncode == 0
    fill(url, *REVISIONS[: REVISIONS.index(ACCOUNTS)])
    query(url, MORE_USERS)
    return url


def wait_for_a_lock(url: str, running: Future[Any]) -> None:
    """Wait until the command that runs waits for somebody's transaction, or has ended without."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: running.done() or query(url, waiting) != [], "a lock to be waited for")


def downgrade(url: str, *options: str, to: str = BEFORE_ACCOUNTS) -> CompletedProcess[str]:
    """Go back to where there were no accounts."""
    return quick_alembic(url, *(part for option in options for part in ("-x", option)), "downgrade", to)


def add_revision(folder: Path, revision: str, down_revision: str, upgrade: str, downgrade: str = "    pass") -> None:
    """Add a revision that does `upgrade`."""
    (folder / "migrations" / "versions" / f"{revision}_added.py").write_text(
        '"""added"""\nimport sqlalchemy as sa\nfrom alembic import op\n\n'
        f'revision = "{revision}"\ndown_revision = "{down_revision}"\n\n\n'
        f"def upgrade():\n{upgrade}\n\n\ndef downgrade():\n{downgrade}\n"
    )
