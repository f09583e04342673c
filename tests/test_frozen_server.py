"""A PostgreSQL that stops answering: callers are told at their deadline, and the next ones are served."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.database import Service, assert_refused_for_now, backend_that_waits, until
from tests.support.registration import count, named
from tests.support.service import Rows, Server, serving

pytestmark = [pytest.mark.parametrize("engine", ["postgresql"]), pytest.mark.slow]


SLOW_COMMIT = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.username LIKE 'slow%') EXECUTE FUNCTION dawdle()
"""
"""Makes the COMMIT of some registrations last."""


@contextmanager
def frozen(*backends: int) -> Iterator[None]:
    """These processes of PostgreSQL do nothing, and their connections stay open."""
    for backend in backends:
        os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        for backend in backends:
            os.kill(backend, signal.SIGCONT)


def backends(rows: Rows) -> list[int]:
    """The processes that serve Savepoint's connections."""
    return [
        pid
        for (pid,) in rows("""
            SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'savepoint'
        """)
    ]


async def test_after_a_backend_froze_writes_go_on_with_a_new_connection(service: Service, url: str, rows: Rows) -> None:
    async with service(url, request_timeout=0.5) as client:
        await client.post("/register", json=named("alice"))
        with frozen(*backends(rows)):
            unknown = await client.post("/register", json=named("bob"))
            async with asyncio.timeout(20):
                registered = await client.post("/register", json=named("carol"))

    assert_refused_for_now(unknown, "outcome-unknown")
    assert registered.status_code == 201
    assert rows("SELECT username FROM users WHERE username <> 'bob' ORDER BY id") == [("alice",), ("carol",)]


async def test_after_a_backend_froze_reads_go_on_with_a_new_connection(service: Service, url: str, rows: Rows) -> None:
    async with service(url, request_timeout=0.5) as client:
        registered = await client.post("/register", json=named("alice"))
        headers = {"Authorization": f"Bearer {registered.json()['access_token']}"}
        with frozen(*backends(rows)):
            refused = await client.get("/me", headers=headers)
            async with asyncio.timeout(20):
                answers = [await client.get(path, headers=headers) for path in ("/me", "/accounts", "/readyz")]

    assert_refused_for_now(refused, "database-unavailable")
    assert [answer.status_code for answer in answers] == [200, 200, 200]


async def test_a_commit_that_froze_is_whole_once_the_server_goes_on(service: Service, url: str, rows: Rows) -> None:
    rows(SLOW_COMMIT)
    async with service(url, request_timeout=0.5) as client:
        registering = asyncio.create_task(client.post("/register", json=named("slow")))
        with frozen(await backend_that_waits(rows, "PgSleep")):
            unknown = await registering
            registered = await client.post("/register", json=named("bob"))
        await until(lambda: count(rows) == (2, 2, 2), "the COMMIT to end")

    assert_refused_for_now(unknown, "outcome-unknown")
    assert registered.status_code == 201


async def test_a_write_that_outlasts_its_deadline_is_not_run_again(service: Service, url: str, rows: Rows) -> None:
    rows(SLOW_COMMIT.replace("DEFERRABLE INITIALLY DEFERRED", ""))
    async with service(url, request_timeout=0.5) as client:
        unknown = await client.post("/register", json=named("slow"))
        registered = await client.post("/register", json=named("bob"))
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        await until(lambda: not rows(sleeping), "PostgreSQL to notice that nobody waits for it")

    assert_refused_for_now(unknown, "outcome-unknown")
    assert registered.status_code == 201
    assert rows("SELECT username FROM users") == [("bob",)]


async def test_a_commit_that_hangs_holds_up_the_end_no_longer_than_one_deadline(
    url: str, rows: Rows, tmp_path: Path
) -> None:
    rows(SLOW_COMMIT.replace("pg_sleep(2)", "pg_sleep(60)"))
    timeout = 6

    async def register(server: Server) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
            return await client.post("/register", json=named("slow"))

    with serving(url, tmp_path, REQUEST_TIMEOUT=str(timeout), STATEMENT_TIMEOUT="60") as server:
        registering = asyncio.create_task(register(server))
        with frozen(await backend_that_waits(rows, "PgSleep")):
            began = time.monotonic()
            server.process.terminate()
            unknown = await registering
            await asyncio.to_thread(server.process.wait, 30)
            waited = time.monotonic() - began

    assert_refused_for_now(unknown, "outcome-unknown")
    assert waited < 1.6 * timeout
