"""However a server ends, whoever was answered 201 is stored, and whoever is stored is stored whole."""

import asyncio
import itertools
import random
import signal
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.support.accounts import Holder, balance, order, register_all
from tests.support.database import until
from tests.support.registration import named
from tests.support.service import Rows, Server, audited, serving
from tests.support.transfers import keyed

pytestmark = pytest.mark.slow


async def register_until_it_ends(server: Server, end: Callable[[], None]) -> tuple[set[str], set[str]]:
    """Register from 16 connections and bring the server's end about meanwhile.

    Answers the names that were acknowledged with 201, and those whose connection ended before the answer.
    """
    acknowledged: set[str] = set()
    unanswered: set[str] = set()

    async def register_one_after_another(client: httpx2.AsyncClient, prefix: str) -> None:
        for number in itertools.count():
            name = f"{prefix}x{number}"
            try:
                response = await client.post("/register", json=named(name))
            except httpx2.TransportError:
                unanswered.add(name)
                return
            assert response.status_code == 201
            acknowledged.add(name)

    limits = httpx2.Limits(max_connections=16, max_keepalive_connections=16)
    async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=20) as client:
        callers = [asyncio.create_task(register_one_after_another(client, f"user{number}")) for number in range(16)]
        await until(lambda: len(acknowledged) > 100, "the first registrations")
        # At no particular moment of a batch.
        await asyncio.sleep(random.uniform(0, 0.1))
        end()
        await asyncio.gather(*callers)
    return acknowledged, unanswered


def stored_whole(rows: Rows) -> set[str]:
    """The users who have a profile and exactly one token."""
    sql = """
        SELECT username FROM users JOIN profiles ON profiles.user_id = users.id
        JOIN access_tokens ON access_tokens.user_id = users.id GROUP BY username HAVING count(*) = 1
    """
    return {username for (username,) in rows(sql)}


def stored(rows: Rows) -> set[str]:
    return {username for (username,) in rows("SELECT username FROM users")}


async def test_a_server_told_to_stop_answers_what_it_stores_and_stores_what_it_answers(
    url: str, rows: Rows, tmp_path: Path
) -> None:
    with serving(url, tmp_path) as server:
        acknowledged, unanswered = await register_until_it_ends(server, server.process.terminate)
        status = server.process.wait(10)

    assert status in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert acknowledged <= stored_whole(rows) == stored(rows)
    assert stored(rows) <= acknowledged | unanswered


async def test_a_server_killed_under_load_has_stored_whole_what_it_acknowledged(
    url: str, rows: Rows, tmp_path: Path
) -> None:
    with serving(url, tmp_path) as server:
        acknowledged, _ = await register_until_it_ends(server, server.process.kill)

    assert acknowledged <= stored_whole(rows) == stored(rows)


async def transfer_all(
    server: Server, sender: Holder, receiver: Holder, count: int, answers: dict[int, httpx2.Response]
) -> None:
    """Send so many transfers of 1 from 16 connections, each with a key of its own; add what is answered, by key."""
    numbers = iter(range(count))
    body = order(sender.account_id, receiver.account_id, 1)

    async def transfer_one_after_another(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            try:
                answers[number] = await client.post("/transfers", json=body, headers=keyed(sender.headers, f"{number}"))
            except httpx2.TransportError:
                return

    limits = httpx2.Limits(max_connections=16, max_keepalive_connections=16)
    async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=20) as client:
        await asyncio.gather(*(transfer_one_after_another(client) for _ in range(16)))


async def test_transfers_whose_answers_a_kill_cost_are_sent_again_and_made_once(
    url: str, rows: Rows, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first: dict[int, httpx2.Response] = {}
    again: dict[int, httpx2.Response] = {}
    with audited(url, request):
        with serving(url, tmp_path) as server:
            with httpx2.Client(base_url=server.url) as client:
                alice, bob = register_all(client, alice=1000, bob=0)
            sending = asyncio.create_task(transfer_all(server, alice, bob, 1000, first))
            # Answers, not rows: up to 16 transfers are made before they are answered.
            await until(lambda: len(first) > 100, "the first answers")
            server.process.kill()
            await sending
        assert 100 < len(first) <= balance(rows, bob.account_id) < 1000

        with serving(url, tmp_path) as server:
            await transfer_all(server, alice, bob, 1000, again)

    assert {response.status_code for response in (*first.values(), *again.values())} == {201}
    for number, response in first.items():
        assert again[number].headers["Idempotency-Replayed"] == "true"
        assert again[number].json() == response.json()
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (0, 1000)
