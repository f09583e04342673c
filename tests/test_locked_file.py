"""Another process keeps SQLite's one lock for writing: every write is locked within LOCK_TIMEOUT, and none unknown."""

import asyncio
import time

import pytest

import crud
from db.database import LOCKED_PAUSE, Database
from refusals import Locked
from settings import Settings
from tests.support.database import Service, locked_elsewhere, registration
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("engine", ["sqlite"])]


async def test_a_lock_that_another_process_keeps_is_locked_after_lock_timeout(url: str) -> None:
    database = Database(Settings(database_url=url, lock_timeout=0.2))

    with locked_elsewhere(url) as let_go:
        for timeout in (0.2, 0):
            start = time.monotonic()
            with pytest.raises(Locked):
                await database.write(crud.register_users, [registration("alice")], "EUR")
            assert timeout <= time.monotonic() - start < timeout + 0.15
        let_go()
        await asyncio.sleep(LOCKED_PAUSE)
        await database.write(crud.register_users, [registration("alice")], "EUR")

    await database.close()


async def test_while_another_process_keeps_the_lock_every_kind_of_write_is_locked_in_time(
    service: Service, url: str
) -> None:
    async with service(url, lock_timeout=0.5, operator_token=OPERATOR_TOKEN) as client:
        answer = await client.post("/register", json={"username": "alice", "email": "alice@example.com"})
        alice = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        deposit = {"account_id": 1, "amount": 100}
        transfer = {"debit_account_id": 1, "credit_account_id": 2, "amount": 1}
        await client.post("/deposits", json=deposit, headers=AS_OPERATOR)

        async def call(
            delay: float, method: str, path: str, body: object, headers: dict[str, str]
        ) -> tuple[int, str, bool]:
            await asyncio.sleep(delay)
            start = time.monotonic()
            answer = await client.request(method, path, json=body, headers=headers)
            return answer.status_code, answer.json()["type"], time.monotonic() - start < 10

        calls: list[tuple[str, str, object, dict[str, str]]] = [
            ("PATCH", "/me", {"phone_number": None}, alice),
            ("POST", "/accounts", {"currency": "USD"}, alice),
            ("POST", "/tokens", {}, alice),
            ("DELETE", "/tokens/1", None, alice),
            ("DELETE", "/users/1/tokens", None, AS_OPERATOR),
            ("POST", "/transfers", transfer, alice),
            ("POST", "/transfers/1/reversal", None, AS_OPERATOR),
            ("POST", "/deposits", deposit, AS_OPERATOR),
            ("POST", "/transfers/batch", {"transfers": [transfer]}, alice),
            *(("POST", "/register", {"username": f"bob{i}", "email": "b@example.com"}, {}) for i in range(20)),
        ]
        with locked_elsewhere(url):
            answers = await asyncio.gather(
                *(
                    call(delay, *each)
                    for delay in (0, 0.1, 0.6)
                    for each in calls
                    if delay == 0 or each[1][-5:] != "batch"
                )
            )

    assert set(answers) == {(503, "/problems/locked", True)}


async def test_a_call_goes_on_as_soon_as_another_process_gives_the_lock_back(service: Service, url: str) -> None:
    async with service(url, lock_timeout=2) as client:
        with locked_elsewhere(url) as let_go:
            body = {"username": "alice", "email": "alice@example.com"}
            waiting = asyncio.create_task(client.post("/register", json=body))
            await asyncio.sleep(0.3)
            let_go()
            start = time.monotonic()
            assert (await waiting).status_code == 201
            assert time.monotonic() - start < 0.5
