"""Holds that many want to make, capture, void or spend at once."""

import asyncio
import random
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from tests.support.accounts import Holder, answer_of, balance, order
from tests.support.holds import hold, money_of, parsed
from tests.support.races import Post, holders, outcomes, post_at_once
from tests.support.service import AS_OPERATOR, Rows, Server
from tests.support.transfers import keyed

pytestmark = pytest.mark.slow


def hold_on(server: Server, sender: Holder, recipient: Holder, amount: int, expires_in: int = 3600) -> str:
    """A new hold; its path."""
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        return f"/holds/{hold(client, sender, recipient, amount, expires_in=expires_in)['id']}"


def money_on(server: Server, holder: Holder) -> tuple[int, int, int]:
    """What the account has, what of it is held, and what is available."""
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        return money_of(client, holder)


def shown(server: Server, path: str) -> dict[str, str]:
    answer: dict[str, str] = httpx2.get(f"{server.url}{path}", headers=AS_OPERATOR).json()
    return answer


async def test_of_32_captures_at_once_one_moves_the_money(server: Server) -> None:
    alice, bob = holders(server, alice=1000, bob=0)

    for number in range(5):
        made = hold_on(server, alice, bob, 100)
        captures = [Post(f"{made}/capture", {"amount": 70}, headers) for headers in (bob.headers, AS_OPERATOR)] * 16

        responses = await post_at_once(server, captures)

        assert outcomes(responses) == {"created": 1, "hold-resolved": 31}
        moved = 70 * (number + 1)
        assert money_on(server, alice) == (1000 - moved, 0, 1000 - moved)
        assert money_on(server, bob) == (moved, 0, moved)


async def test_of_captures_and_voids_at_once_one_ends_the_hold(server: Server) -> None:
    alice, bob = holders(server, alice=1000, bob=0)
    captured = 0

    for _ in range(5):
        made = hold_on(server, alice, bob, 100)
        ends = [Post(f"{made}/{end}", None, bob.headers) for end in ("capture", "void")] * 16
        random.shuffle(ends)

        found = outcomes(await post_at_once(server, ends))

        status = shown(server, made)["status"]
        assert found == {"created" if status == "captured" else "done": 1, "hold-resolved": 31}
        captured += status == "captured"
        assert money_on(server, alice) == (1000 - 100 * captured, 0, 1000 - 100 * captured)
        assert money_on(server, bob) == (100 * captured, 0, 100 * captured)


async def test_a_hold_that_expires_is_captured_before_or_spent_after(server: Server) -> None:
    crowd = holders(server, **{f"user{number}": 100 for number in range(16)}, bob=0, carol=0)
    *senders, bob, carol = crowd
    holds = [hold_on(server, each, bob, 100, expires_in=1) for each in senders]

    async def call_around_the_end(client: httpx2.AsyncClient, sender: Holder, made: str) -> list[httpx2.Response]:
        """Capture the hold and spend its money, again and again around the instant when it expires."""
        ends = parsed(shown(server, made)["expires_at"])
        capture = Post(f"{made}/capture", None, bob.headers)
        spend = Post("/transfers", order(sender.account_id, carol.account_id, 100), sender.headers)
        # Some holds are captured by the first call, if one is sent before the end.
        first = random.choice([-0.05, 0, 0.005])

        async def later(post: Post, seconds: float) -> httpx2.Response:
            await asyncio.sleep((ends - datetime.now(UTC)).total_seconds() + seconds)
            return await client.post(post.path, json=post.body, headers=post.headers)

        calls = [
            later(post, seconds)
            for post in (capture, spend)
            for seconds in (*(first + random.uniform(0, 0.03) for _ in range(4)), 0.2)
        ]
        return await asyncio.gather(*calls)

    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
        answers = await asyncio.gather(
            *(call_around_the_end(client, *each) for each in zip(senders, holds, strict=True))
        )

    captured = 0
    for sender, path, responses in zip(senders, holds, answers, strict=True):
        made = shown(server, path)
        found = outcomes(responses)
        assert found.pop("created") == 1
        assert found.keys() <= {"hold-resolved", "insufficient-funds"}
        [won] = [answer_of(each) for each in responses if each.status_code == 201]
        was_captured = won["hold_id"] is not None
        assert made["status"] == ("captured" if was_captured else "expired")
        assert (parsed(won["created_at"]) < parsed(made["expires_at"])) == was_captured
        assert money_on(server, sender) == (0, 0, 0)
        captured += was_captured
    assert (money_on(server, bob)[0], money_on(server, carol)[0]) == (100 * captured, 1600 - 100 * captured)


async def test_of_32_holds_of_all_that_is_there_one_passes(server: Server) -> None:
    alice, bob, carol = holders(server, alice=1000, bob=0, carol=0)
    wanted = [Post("/holds", order(alice.account_id, each.account_id, 1000), alice.headers) for each in (bob, carol)]

    responses = await post_at_once(server, wanted * 16)

    assert outcomes(responses) == {"created": 1, "insufficient-funds": 31}
    assert money_on(server, alice) == (1000, 1000, 0)


async def test_of_holds_and_transfers_only_as_many_pass_as_there_is_money(server: Server) -> None:
    alice, bob, carol = holders(server, alice=1000, bob=0, carol=0)
    wanted = [
        Post(path, order(alice.account_id, each.account_id, 90), alice.headers)
        for path in ("/holds", "/transfers")
        for each in (bob, carol)
    ] * 8
    linked = {"transfers": [order(alice.account_id, each.account_id, 45) for each in (bob, carol)]}
    wanted += [Post("/transactions", linked, alice.headers)] * 8
    random.shuffle(wanted)

    found = outcomes(await post_at_once(server, wanted))

    assert found["created"] == 11
    assert found["insufficient-funds"] + found.get("transaction-refused", 0) == 29
    has, held, available = money_on(server, alice)
    assert (available, held % 90) == (10, 0)
    assert has + money_on(server, bob)[0] + money_on(server, carol)[0] == 1000


async def test_a_limit_is_lowered_or_the_credit_is_held(server: Server) -> None:
    *crowd, bob = holders(server, **{f"user{number}": 0 for number in range(16)}, bob=0)
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:

        def set_limit(each: Holder, limit: int) -> Coroutine[Any, Any, httpx2.Response]:
            return client.patch(f"/accounts/{each.account_id}", json={"credit_limit": limit}, headers=AS_OPERATOR)

        await asyncio.gather(*(set_limit(each, 50) for each in crowd))
        answers = await asyncio.gather(
            *(
                call
                for each in crowd
                for call in (
                    client.post("/holds", json=order(each.account_id, bob.account_id, 50), headers=each.headers),
                    set_limit(each, 0),
                )
            )
        )

    for each, made, lowered in zip(crowd, answers[::2], answers[1::2], strict=True):
        assert (made.status_code, lowered.status_code) in ((201, 409), (409, 200))
        assert money_on(server, each) == ((0, 50, 0) if made.status_code == 201 else (0, 0, 0))


async def test_what_has_expired_is_spent_though_its_recipient_is_busy(server: Server) -> None:
    *crowd, rich, bob = holders(server, **{f"user{number}": 10 for number in range(16)}, rich=100_000, bob=0)
    for each in crowd:
        hold_on(server, each, bob, 10, expires_in=1)
    await asyncio.sleep(1)
    others = [Post("/transfers", order(rich.account_id, bob.account_id, 1), rich.headers)] * 400
    spends = [Post("/transfers", order(each.account_id, bob.account_id, 10), each.headers) for each in crowd]

    responses = await post_at_once(server, [*others[:100], *spends, *others[100:]])

    assert outcomes(responses) == {"created": 416}
    assert money_on(server, bob) == (560, 0, 560)


async def test_a_key_sent_32_times_at_once_holds_and_captures_once(server: Server, rows: Rows) -> None:
    alice, bob = holders(server, alice=1000, bob=0)

    for number in range(5):
        body = order(alice.account_id, bob.account_id, 10)
        made = await post_at_once(server, [Post("/holds", body, keyed(alice.headers, f"{number}"))] * 32)
        path = f"/holds/{answer_of(made[0])['id']}/capture"
        taken = await post_at_once(server, [Post(path, None, keyed(bob.headers, f"{number}"))] * 32)

        assert outcomes(made) == outcomes(taken) == {"created": 1, "replayed": 31}
        assert len({answer_of(response)["id"] for response in made}) == 1
        assert len({answer_of(response)["id"] for response in taken}) == 1
        assert balance(rows, bob.account_id) == 10 * (number + 1)


async def test_of_a_key_for_holds_of_different_accounts_one_wins(server: Server, rows: Rows) -> None:
    alice, bob, carol, dave = holders(server, alice=1000, bob=0, carol=1000, dave=0)

    for number in range(5):
        # They share no account, so that no lock makes one wait for the other.
        bodies = [order(alice.account_id, bob.account_id, 10), order(carol.account_id, dave.account_id, 10)]
        posts = [Post("/holds", body, keyed(AS_OPERATOR, f"{number}")) for body in bodies]

        found = outcomes(await post_at_once(server, posts * 16))

        assert found == {"created": 1, "replayed": 15, "idempotency-key-reused": 16}
        assert rows("SELECT count(*), sum(amount) FROM holds WHERE status = 'open'") == [(number + 1, 10 * number + 10)]


async def test_two_holds_that_want_each_others_accounts_do_not_deadlock(server: Server) -> None:
    alice, bob = holders(server, alice=1000, bob=1000)
    there, back = ([hold_on(server, *pair, 5) for _ in range(50)] for pair in ((alice, bob), (bob, alice)))
    posts = [
        Post(f"{path}/{random.choice(['capture', 'void'])}", None, holder.headers)
        for paths, holder in ((there, bob), (back, alice))
        for path in paths
    ]
    posts += [
        Post("/transfers", order(one.account_id, two.account_id, 1), one.headers)
        for one, two in ((alice, bob), (bob, alice))
    ] * 50
    random.shuffle(posts)

    found = outcomes(await post_at_once(server, posts))

    assert found["created"] + found["done"] == 200
    money = [money_on(server, each) for each in (alice, bob)]
    assert sum(has for has, _, _ in money) == 2000
    assert [held for _, held, _ in money] == [0, 0]
