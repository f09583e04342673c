"""What another transaction holds, at psql say, holds up only the calls that need it, and those for LOCK_TIMEOUT."""

import asyncio
import time

import httpx2
import psycopg
import pytest

from tests.support.database import Service, assert_refused_for_now
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN

pytestmark = [pytest.mark.parametrize("engine", ["postgresql"]), pytest.mark.slow]


INSERT_USER = "INSERT INTO users (username, email, created_at) VALUES ('eve', 'eve@example.com', now())"


async def register(client: httpx2.AsyncClient, username: str) -> dict[str, str]:
    registered = await client.post("/register", json=named(username))
    return {"Authorization": f"Bearer {registered.json()['access_token']}"}


async def test_a_user_whose_row_is_held_keeps_no_other_user_waiting(service: Service, url: str) -> None:
    async with service(url, lock_timeout=3, operator_token=OPERATOR_TOKEN) as client:
        alice, bob = await register(client, "alice"), await register(client, "bob")
        with psycopg.connect(url) as other:
            other.execute("SELECT 1 FROM users WHERE username = 'alice' FOR UPDATE")
            held = asyncio.create_task(client.patch("/me", json={"phone_number": None}, headers=alice))
            await asyncio.sleep(0.05)
            answers = await asyncio.gather(
                client.patch("/me", json={"phone_number": None}, headers=bob),
                client.patch("/users/2", json={"status": "active"}, headers=AS_OPERATOR),
                client.post("/users/2/tokens", json={}, headers=AS_OPERATOR),
                client.post("/accounts", json={"currency": "USD"}, headers=bob),
            )
            assert not held.done()
            refused = await held

    assert [answer.status_code for answer in answers] == [200, 200, 201, 201]
    assert_refused_for_now(refused, "locked")


async def test_a_name_that_somebody_may_be_taking_keeps_no_other_registration_waiting(
    service: Service, url: str
) -> None:
    async with service(url, lock_timeout=3) as client:
        with psycopg.connect(url) as other:
            other.execute(INSERT_USER)
            held = asyncio.create_task(client.post("/register", json=named("eve")))
            await asyncio.sleep(0.05)
            answers = await asyncio.gather(
                *(client.post("/register", json=named(f"user{number}")) for number in range(8))
            )
            assert not held.done()
            other.rollback()
            registered = await held

    assert {answer.status_code for answer in answers} == {201}
    assert registered.status_code == 201


@pytest.mark.parametrize("table", ["accounts", "transfers"])
async def test_a_table_that_is_held_is_waited_for_as_long_as_the_setting_says(
    service: Service, url: str, table: str
) -> None:
    body = {"account_id": 1, "amount": 5}
    async with service(url, lock_timeout=1, operator_token=OPERATOR_TOKEN) as client:
        await register(client, "alice")
        with psycopg.connect(url) as other:
            other.execute(f"LOCK TABLE {table}".encode())
            began = time.monotonic()
            refused = await asyncio.gather(
                *(client.post("/deposits", json=body, headers=AS_OPERATOR) for _ in range(4))
            )
            waited = time.monotonic() - began

    for each in refused:
        assert_refused_for_now(each, "locked")
    assert 1 <= waited < 4
