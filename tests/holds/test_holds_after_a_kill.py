"""A server that is killed while money is held, captured and moved: nothing is lost or doubled."""

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path

import httpx2
import pytest

from tests.support.accounts import Headers, Holder, balance, order, register_all
from tests.support.database import until
from tests.support.holds import money_of
from tests.support.service import Rows, Server, audited, serving
from tests.support.transfers import keyed

pytestmark = pytest.mark.slow

COUNT = 240


Answers = dict[tuple[str, int], httpx2.Response]
"""What each call answered, by its kind and number."""


class Shop:
    """Alice pays Bob, and Carol a fee, in every way there is; the calls of a number have keys of their own."""

    def __init__(self, alice: Holder, bob: Holder, carol: Holder) -> None:
        self.alice, self.bob, self.carol = alice, bob, carol

    async def pay(self, client: httpx2.AsyncClient, number: int, answers: Answers) -> None:
        """Pay once in every way; add each answer when it comes."""

        async def post(kind: str, path: str, body: object, headers: Headers) -> httpx2.Response:
            response = await client.post(path, json=body, headers=keyed(headers, f"{number}"))
            answers[kind, number] = response
            return response

        alice, bob, carol = self.alice, self.bob, self.carol
        await post("transfer", "/transfers", order(alice.account_id, bob.account_id, 1), alice.headers)
        fee = order(alice.account_id, carol.account_id, 3)
        legs = {"transfers": [order(alice.account_id, bob.account_id, 2), fee]}
        await post("transaction", "/transactions", legs, alice.headers)
        made = await post("hold", "/holds", order(alice.account_id, bob.account_id, 5), alice.headers)
        path = f"/holds/{made.json()['id']}"
        if number % 3 == 0:
            # Numbers are also the keys of transfers, but of Alice's.
            await post("capture", f"{path}/capture", {"amount": 4}, bob.headers)
        elif number % 3 == 1:
            await post("void", f"{path}/void", None, bob.headers)

    async def pay_often(self, server: Server, numbers: Iterable[int], answers: Answers) -> None:
        """Pay these numbers from 16 connections, until the server ends."""
        rest = iter(numbers)

        async def pay_one_after_another(client: httpx2.AsyncClient) -> None:
            for number in rest:
                try:
                    await self.pay(client, number, answers)
                except httpx2.TransportError:
                    return

        limits = httpx2.Limits(max_connections=16, max_keepalive_connections=16)
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
            await asyncio.gather(*(pay_one_after_another(client) for _ in range(16)))


async def test_what_was_acknowledged_is_there_and_what_is_sent_again_is_done_once(
    url: str, rows: Rows, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    killed: list[Answers] = [{}, {}]
    last: Answers = {}
    shop: Shop | None = None
    for answers in killed:
        with audited(url, request), serving(url, tmp_path) as server:
            if shop is None:
                with httpx2.Client(base_url=server.url) as client:
                    shop = Shop(*register_all(client, alice=10_000, bob=0, carol=0))
            paying = asyncio.create_task(shop.pay_often(server, range(COUNT), answers))
            # More than the first time, where the second begins with what was done then.
            enough = 150 if answers is killed[0] else len(killed[0]) + 150
            await until(lambda enough=enough, answers=answers: len(answers) > enough, "answers")  # type: ignore[misc]
            await asyncio.sleep(random.uniform(0, 0.05))
            server.process.kill()
            await paying
    assert shop is not None
    assert len(killed[1]) < COUNT * 3
    with audited(url, request), serving(url, tmp_path) as server:
        await shop.pay_often(server, range(COUNT), last)
        with httpx2.Client(base_url=server.url) as client:
            money = money_of(client, shop.alice)

    for earlier, later in ((killed[0], killed[1] | last), (killed[1], last)):
        for (kind, number), response in earlier.items():
            again = later[kind, number]
            if kind == "void" and response.status_code == 200:
                assert "voided already" in again.json()["detail"]
            elif kind != "void":
                assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
                assert again.json() == response.json()
    assert {each.status_code for (kind, _), each in last.items() if kind != "void"} == {201}
    assert rows("SELECT status, count(*) FROM holds GROUP BY status ORDER BY status") == [
        (status, COUNT // 3) for status in ("captured", "open", "voided")
    ]
    assert rows("SELECT count(*) FROM transactions") == [(COUNT,)]
    captured, still_held = 4 * COUNT // 3, 5 * COUNT // 3
    paid = 6 * COUNT + captured
    assert money == (10_000 - paid, still_held, 10_000 - paid - still_held)
    assert balance(rows, shop.bob.account_id) == 3 * COUNT + captured
    assert balance(rows, shop.carol.account_id) == 3 * COUNT
