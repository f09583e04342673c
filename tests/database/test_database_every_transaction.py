"""Database: every transaction; reading; SQLite."""

import asyncio
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import aiosqlite
import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.testclient import TestClient

import crud
from db.database import Database
from db.errors import sqlite_meaning
from operations import Operations
from refusals import DatabaseUnavailable, OutcomeUnknown, SchemaBehind
from settings import Settings
from tests.support.database import (
    Service,
    assert_refused_for_now,
    backend_that_waits,
    count_users,
    execute,
    locked_elsewhere,
    on_postgresql,
    registration,
    run,
    until,
)
from tests.support.registration import count, named
from tests.support.service import Rows

on_sqlite = pytest.mark.parametrize("engine", ["sqlite"])


async def test_an_operation_that_fails_is_rolled_back_and_run_once(database: Database, rows: Rows) -> None:
    attempts = []

    async def insert_twice(session: AsyncSession) -> None:
        attempts.append(1)
        insert = "INSERT INTO users (username, email, created_at) VALUES ('alice', 'a@example.com', '2026-01-01')"
        await run(session, insert, insert)

    with pytest.raises(IntegrityError):
        await database.write(insert_twice)

    assert len(attempts) == 1
    assert count(rows) == (0, 0, 0)


async def test_a_lock_that_is_soon_let_go_is_waited_for(operations: Operations, url: str, rows: Rows) -> None:
    with locked_elsewhere(url) as let_go:
        registering = asyncio.create_task(operations.write(crud.register_users, registration("alice")))
        await asyncio.sleep(0.2)
        assert not registering.done()
        let_go()
        await registering

    assert count(rows) == (1, 1, 1)


@pytest.mark.parametrize(("engine", "problem"), [("sqlite", "locked"), ("postgresql", "locked")], ids=str)
async def test_a_lock_that_is_not_let_go_is_answered_503_and_leaves_nothing(
    service: Service, url: str, rows: Rows, problem: str
) -> None:
    async with service(url, lock_timeout=0.1) as client:
        with locked_elsewhere(url):
            response = await client.post("/register", json=named("alice"))

    assert_refused_for_now(response, problem)
    assert count(rows) == (0, 0, 0)


@on_sqlite
async def test_a_caller_is_answered_at_its_deadline_and_what_it_began_is_still_stored(
    service: Service, url: str, rows: Rows
) -> None:
    async with service(url, request_timeout=0.3, lock_timeout=10) as client:
        with locked_elsewhere(url) as let_go:
            began = time.monotonic()
            response = await client.post("/register", json=named("alice"))
            waited = time.monotonic() - began
            assert count(rows) == (0, 0, 0)
            let_go()
            await until(lambda: count(rows) == (1, 1, 1), "the registration to be stored")

    assert_refused_for_now(response, "outcome-unknown")
    assert 0.3 <= waited < 2


async def test_a_pool_without_a_free_connection_is_database_unavailable(url: str) -> None:
    database = Database(Settings(database_url=url, database_pool_size=2, lock_timeout=0.1))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        for _ in range(2):
            await stack.enter_async_context(database.engine.connect())

        with pytest.raises(DatabaseUnavailable):
            await database.write(run, "SELECT 1")


@pytest.mark.parametrize("missing", ["users", "access_tokens", "users.phone_number"])
async def test_a_schema_that_lacks_something_is_behind(operations: Operations, rows: Rows, missing: str) -> None:
    table, _, column = missing.partition(".")
    rows(f"ALTER TABLE {table} RENAME {f'COLUMN {column}' if column else ''} TO gone")

    with pytest.raises(SchemaBehind):
        await operations.write(crud.register_users, registration("alice"))
    with pytest.raises(SchemaBehind):
        await operations.authenticate("0" * 64)


SECRETS = ("secret@example.com", "+4915187654321", "svp_")


TELLING_TRIGGER = {
    "sqlite": """
        CREATE TRIGGER refuse BEFORE INSERT ON profiles
        BEGIN SELECT RAISE(ABORT, 'secret@example.com +4915187654321'); END
    """,
    "postgresql": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'refused: %', (SELECT string_agg(users::text, ',') FROM users); END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON profiles FOR EACH ROW EXECUTE FUNCTION refuse()
    """,
}
"""By engine: refuses every profile, in words that tell what nobody may read in a log."""


def test_a_statement_that_fails_unforeseen_tells_neither_values_nor_sql(
    client: TestClient, rows: Rows, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows(TELLING_TRIGGER[engine])
    caplog.set_level(logging.INFO)
    headers = {"Idempotency-Key": str(uuid4())}
    body = {"username": "alice", "email": SECRETS[0], "phone_number": SECRETS[1]}

    response = client.post("/register", json=body, headers=headers)

    assert (response.status_code, response.json()["type"]) == (500, "/problems/internal-error")
    assert "POST /register failed unexpectedly" in caplog.text
    for told in (response.text, caplog.text):
        for secret in (*SECRETS, headers["Idempotency-Key"], "INSERT INTO", "SELECT "):
            assert secret not in told


@on_postgresql
async def test_a_read_whose_connection_breaks_is_run_again(database: Database, rows: Rows) -> None:
    queries = iter(["SELECT pg_sleep(60)", "SELECT 'read'"])

    async def read_slowly(session: AsyncSession) -> Any:
        return (await execute(session, next(queries))).scalar_one()

    reading = asyncio.create_task(database.read(read_slowly))
    rows(f"SELECT pg_terminate_backend({await backend_that_waits(rows, 'PgSleep')})")

    assert await reading == "read"


SLOW_QUERY = {
    "sqlite": "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9000000) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(60)",
}
"""By engine: lasts for longer than a test waits."""


async def test_a_read_that_outlasts_the_deadline_is_database_unavailable(url: str, engine: str) -> None:
    settings = Settings(database_url=url, request_timeout=0.3, statement_timeout=2)
    operations = Operations(Database(settings), settings)
    await operations.read(count_users)  # From here on it is connected.

    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        await operations.read(execute, SLOW_QUERY[engine])
    waited = time.monotonic() - began

    await operations.close()
    assert waited < 1


@on_postgresql
async def test_readiness_is_answered_at_the_deadline_while_the_database_hangs(
    service: Service, url: str, rows: Rows
) -> None:
    async with service(url, request_timeout=0.2, lock_timeout=2) as client:
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE alembic_version")
            began = time.monotonic()
            response = await client.get("/readyz")
            waited = time.monotonic() - began

    assert_refused_for_now(response, "database-unavailable")
    assert waited < 1


@on_sqlite
async def test_every_connection_is_durable_and_keeps_foreign_keys(database: Database, settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(settings.database_pool_size):
            connection = await stack.enter_async_context(database.reader.connect())
            in_force = [
                (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert in_force == ["wal", 2, 1]


@on_sqlite
async def test_a_prepared_statement_enters_the_thread_of_its_connection_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.read(crud.authenticate, ["unknown"])  # From here on it is connected.
    entered: list[Callable[..., Any]] = []
    enter = aiosqlite.Connection._execute

    async def note(connection: aiosqlite.Connection, function: Callable[..., Any], *arguments: Any) -> Any:
        entered.append(function)
        return await enter(connection, function, *arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(aiosqlite.Connection, "_execute", note)
    await database.read(crud.authenticate, ["unknown"])

    assert len(entered) == 1


@on_sqlite
async def test_a_transaction_takes_the_writers_turn_before_it_reads(database: Database, url: str) -> None:
    async def read_and_look_around(session: AsyncSession) -> None:
        async with session.begin():
            await execute(session, "SELECT count(*) FROM users")
            other = sqlite3.connect(str(make_url(url).database), timeout=0, isolation_level=None)
            with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()

    await database.write(read_and_look_around)


@on_sqlite
async def test_read_then_write_by_two_processes_loses_nothing(
    database: Database, settings: Settings, rows: Rows
) -> None:
    rows("CREATE TABLE counter (number INTEGER)")
    rows("INSERT INTO counter VALUES (0)")

    async def increment(session: AsyncSession) -> None:
        async with session.begin():
            number = (await execute(session, "SELECT number FROM counter")).scalar_one()
            await asyncio.sleep(0.001)
            await execute(session, f"UPDATE counter SET number = {number + 1}")

    # As two processes are: neither knows the other's turns.
    other = Database(settings)
    await asyncio.gather(*(each.write(increment) for each in (database, other) for _ in range(20)))
    await other.close()

    assert rows("SELECT number FROM counter") == [(40,)]


@on_sqlite
async def test_a_read_does_not_wait_for_a_writer_elsewhere(database: Database, url: str) -> None:
    with locked_elsewhere(url):
        assert await asyncio.wait_for(database.read(count_users), 2) == 0


@on_sqlite
async def test_a_read_does_not_wait_for_a_writer_in_this_process(database: Database) -> None:
    written, read = asyncio.Event(), asyncio.Event()

    async def insert_slowly(session: AsyncSession) -> None:
        async with session.begin():
            await execute(
                session, "INSERT INTO users (username, email, created_at) VALUES ('a', 'a@example.com', '2026-01-01')"
            )
            written.set()
            await read.wait()

    writing = asyncio.create_task(database.write(insert_slowly))
    await written.wait()

    # What is not committed is not seen, either.
    assert await asyncio.wait_for(database.read(count_users), 2) == 0
    read.set()
    await writing
    assert await database.read(count_users) == 1


def test_a_commit_that_could_not_be_written_is_not_there_and_one_that_could_not_be_synced_is_unknown() -> None:
    assert sqlite_meaning(sqlite3.SQLITE_IOERR_WRITE, committing=True) is DatabaseUnavailable
    assert sqlite_meaning(sqlite3.SQLITE_IOERR_FSYNC, committing=True) is OutcomeUnknown


LIMITED = """
import resource, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA synchronous=FULL")
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
connection.execute("BEGIN IMMEDIATE")
connection.execute("CREATE TABLE half AS SELECT randomblob(90000) AS content")
try:
    connection.execute("COMMIT")
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname, flush=True)
import os
os._exit(0)
"""


@on_sqlite
def test_past_the_limit_of_a_files_size_sqlite_says_that_it_could_not_write(url: str, rows: Rows) -> None:
    rows("PRAGMA journal_mode=WAL")
    python = [sys.executable, "-c", LIMITED, str(make_url(url).database)]

    assert subprocess.run(python, capture_output=True, text=True, check=True).stdout == "SQLITE_IOERR_WRITE\n"
    assert rows("SELECT count(*) FROM sqlite_master WHERE name = 'half'") == [(0,)]


@on_sqlite
@pytest.mark.parametrize("limit", ["PRAGMA query_only = ON", "PRAGMA max_page_count = 1"])
async def test_a_disk_that_takes_no_more_is_database_unavailable(database: Database, rows: Rows, limit: str) -> None:
    insert = "INSERT INTO users (username, email, created_at) VALUES (hex(randomblob(9999)), '', '2026-01-01')"

    with pytest.raises(DatabaseUnavailable):
        await database.write(run, limit, insert)

    assert count(rows) == (0, 0, 0)
