"""Transactions that meet others, and transfers, on the same accounts."""

import itertools
from typing import Any

import pytest

from tests.support.accounts import Holder, answer_of, balance, order
from tests.support.races import Post, holders, outcomes, post_at_once, retried
from tests.support.service import AS_OPERATOR, Rows, Server
from tests.support.transfers import keyed

pytestmark = pytest.mark.slow


def chain(*path: Holder, amount: int = 1) -> dict[str, Any]:
    """A transaction that takes this amount from the first to the last, by way of all others."""
    return {"transfers": [order(one.account_id, two.account_id, amount) for one, two in itertools.pairwise(path)]}


def unequal_transactions(rows: Rows, legs: int) -> list[tuple[Any, ...]]:
    """The transactions that have not this many transfers, at one instant."""
    return rows(
        "SELECT transaction_id FROM transfers WHERE transaction_id IS NOT NULL GROUP BY transaction_id "
        f"HAVING count(*) <> {legs} OR count(DISTINCT created_at) <> 1"
    )


async def test_transactions_in_opposite_directions_are_whole_and_do_not_deadlock(server: Server, rows: Rows) -> None:
    crowd = holders(server, **{f"user{number}": 1000 for number in range(10)})
    there, back = (Post("/transactions", chain(*path), AS_OPERATOR) for path in (crowd, crowd[::-1]))
    ring = [
        Post("/transfers", order(one.account_id, two.account_id, 1), one.headers)
        for one, two in zip(crowd, crowd[1:] + crowd[:1], strict=True)
    ]
    before = retried(server)

    responses = await post_at_once(server, [there, back, *ring] * 50)

    assert outcomes(responses) == {"created": 600}
    assert rows("SELECT DISTINCT balance FROM accounts WHERE user_id IS NOT NULL") == [(1000,)]
    assert unequal_transactions(rows, legs=9) == []
    assert retried(server) == before


async def test_refused_transactions_harm_no_transfer_beside_them(server: Server, rows: Rows) -> None:
    alice, bob, carol = holders(server, alice=1000, bob=1000, carol=0)
    too_much = {
        "transfers": [order(alice.account_id, bob.account_id, 900), order(bob.account_id, carol.account_id, 5000)]
    }
    refused = Post("/transactions", too_much, AS_OPERATOR)
    good = Post("/transfers", order(alice.account_id, bob.account_id, 1), alice.headers)
    linked = Post("/transactions", chain(alice, bob, carol), AS_OPERATOR)

    responses = await post_at_once(server, [refused, good, linked, refused] * 100)

    assert outcomes(responses) == {"created": 200, "transaction-refused": 200}
    assert [balance(rows, each.account_id) for each in (alice, bob, carol)] == [800, 1100, 100]
    assert rows(
        "SELECT count(*) FROM transfers WHERE amount >= 900 AND initiator = 0 AND transaction_id IS NOT NULL"
    ) == [(0,)]
    assert unequal_transactions(rows, legs=2) == []


async def test_of_many_who_want_the_last_money_each_gets_all_legs_or_none(server: Server, rows: Rows) -> None:
    alice, *others = holders(server, alice=1000, bob=0, carol=0)
    wanted = {"transfers": [order(alice.account_id, each.account_id, 45) for each in others]}

    responses = await post_at_once(server, [Post("/transactions", wanted, alice.headers)] * 48)

    assert outcomes(responses) == {"created": 11, "transaction-refused": 37}
    assert [balance(rows, each.account_id) for each in (alice, *others)] == [10, 495, 495]


async def test_a_key_sent_32_times_at_once_makes_one_transaction(server: Server, rows: Rows) -> None:
    alice, bob, carol = holders(server, alice=1000, bob=0, carol=0)

    for number in range(5):
        body = {"transfers": [order(alice.account_id, each.account_id, 10) for each in (bob, carol)]}
        responses = await post_at_once(server, [Post("/transactions", body, keyed(alice.headers, f"{number}"))] * 32)

        assert outcomes(responses) == {"created": 1, "replayed": 31}
        assert len({answer_of(response)["id"] for response in responses}) == 1
        assert balance(rows, carol.account_id) == 10 * (number + 1)


async def test_of_a_key_with_different_accounts_at_once_one_wins(server: Server, rows: Rows) -> None:
    one, two, three, four = holders(server, one=1000, two=0, three=1000, four=0)

    for number in range(5):
        # They share no account, so that no lock makes one wait for the other.
        posts = [
            Post("/transactions", chain(*pair), keyed(AS_OPERATOR, f"{number}")) for pair in ((one, two), (three, four))
        ]

        responses = await post_at_once(server, posts * 16)

        assert outcomes(responses) == {"created": 1, "replayed": 15, "idempotency-key-reused": 16}
        assert balance(rows, two.account_id) + balance(rows, four.account_id) == number + 1


async def test_large_transactions_made_at_once_are_replayed_whole(server: Server) -> None:
    crowd = holders(server, **{f"user{number}": 1000 for number in range(16)})
    # They share no account, so that the workers write at the same time.
    pairs = [*zip(crowd[::2], crowd[1::2], strict=True)]
    posts = [
        Post("/transactions", chain(*[one, two] * 50), keyed(AS_OPERATOR, f"{number}"))
        for number, (one, two) in enumerate(pairs * 4)
    ]

    first = await post_at_once(server, posts)
    again = await post_at_once(server, posts)

    assert outcomes(first) == {"created": 32}
    assert outcomes(again) == {"replayed": 32}
    assert [each.json() for each in again] == [each.json() for each in first]
