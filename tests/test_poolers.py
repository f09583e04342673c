"""Behind PgBouncer in transaction mode, where transactions have different backends, every change is still whole."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from db.database import Database
from refusals import DatabaseUnavailable
from settings import Settings
from tests.support.accounts import order, register_all
from tests.support.database import Service, assert_refused_for_now, locked_elsewhere, run
from tests.support.poolers import needs_pgbouncer, pooling
from tests.support.registration import count, named
from tests.support.service import Rows, Server, audited, serving
from tests.support.transfers import keyed

pytestmark = [pytest.mark.parametrize("engine", ["postgresql"]), pytest.mark.slow]


CALLS = int(os.environ.get("POOLER_CALLS", "400"))
"""How many registrations, and how many transfers, go through the pooler; `make poolers` sends more."""


async def send_all(servers: list[Server], requests: Iterator[dict[str, Any]], connections: int = 32) -> list[int]:
    """Send each request once, over so many connections to each server; the statuses of the answers."""
    statuses: list[int] = []

    async def send_one_after_another(client: httpx2.AsyncClient) -> None:
        statuses.extend([(await client.post(**request)).status_code for request in requests])

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx2.AsyncClient(base_url=server.url, limits=httpx2.Limits(max_connections=connections), timeout=60)
            )
            for server in servers
        ]
        await asyncio.gather(*(send_one_after_another(client) for client in clients for _ in range(connections)))
    return statuses


@needs_pgbouncer
@pytest.mark.parametrize("ignored", ["", "options"], ids=["options refused", "options ignored"])
async def test_two_processes_behind_a_pooler_make_every_change_whole(
    url: str, rows: Rows, tmp_path: Path, request: pytest.FixtureRequest, ignored: str
) -> None:
    with (
        audited(url, request),
        pooling(url, tmp_path, ignored=ignored) as through,
        serving(through, tmp_path) as one,
        serving(through, tmp_path) as other,
    ):
        with httpx2.Client(base_url=one.url) as client:
            alice, bob = register_all(client, alice=CALLS, bob=CALLS)
        registering = ({"url": "/register", "json": named(f"user{number}")} for number in range(CALLS))
        pairs = ((alice, bob), (bob, alice))
        transferring = (
            {
                "url": "/transfers",
                "json": order(sender.account_id, recipient.account_id, 1),
                "headers": keyed(sender.headers, str(number)),
            }
            for number in range(CALLS // 2)
            for sender, recipient in pairs
        )
        registered, transferred = await asyncio.gather(
            send_all([one, other], registering), send_all([one, other], transferring)
        )

        assert registered == transferred == [201] * CALLS
        for server in (one, other):
            assert server.log.count("A connection pooler is in front of PostgreSQL") == 1
    assert count(rows) == (CALLS + 2,) * 3
    assert rows("SELECT count(*) FROM entries") == [(2 * (CALLS + 2),)]


@needs_pgbouncer
async def test_time_limits_hold_behind_a_pooler(url: str, tmp_path: Path) -> None:
    with pooling(url, tmp_path) as through:
        database = Database(Settings(database_url=through, lock_timeout=0.1))

        with locked_elsewhere(url), pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(database.write(run, "LOCK TABLE users"), 5)

        await database.close()


@needs_pgbouncer
async def test_a_pooler_that_allows_no_transactions_is_named(
    service: Service, url: str, rows: Rows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pooling(url, tmp_path, pool_mode="statement") as through:
        async with service(through) as client:
            refused = await client.post("/register", json=named("alice"))

    assert_refused_for_now(refused, "database-unavailable")
    assert "statement pooling mode" in caplog.text
    assert count(rows) == (0, 0, 0)
