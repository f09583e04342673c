"""The promises that only a real server with real connections can break."""

import asyncio
from collections import Counter

import httpx2
import pytest

from tests.support.accounts import answer_of, balance, cash, order
from tests.support.races import Post, holders, outcomes, post_at_once, retried
from tests.support.registration import CURSED, count, named
from tests.support.service import AS_OPERATOR, Rows, Server
from tests.support.transfers import keyed, system_account

pytestmark = pytest.mark.slow


async def test_of_32_who_want_one_name_exactly_one_gets_it(server: Server, rows: Rows) -> None:
    for round_number in range(5):
        spellings = [f"{spelling}{round_number}" for spelling in ("racer", "RACER", "Racer", "rAcEr")] * 8

        responses = await post_at_once(server, [Post("/register", named(spelling)) for spelling in spellings])

        assert outcomes(responses) == {"created": 1, "username-taken": 31}
        assert count(rows) == (round_number + 1,) * 3


async def test_one_failure_leaves_no_row_while_31_others_are_stored_whole(
    server: Server, rows: Rows, engine: str
) -> None:
    rows(CURSED[engine])
    private = {"email": "private@example.com", "phone_number": "+4915187654321"}
    bodies = [named(f"user{index}", **private) for index in range(31)]
    bodies.insert(17, named("cursed", **private))

    responses = await post_at_once(server, [Post("/register", body) for body in bodies])

    failed = responses.pop(17)
    assert failed.status_code == 500
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.json()["type"] == "/problems/internal-error"
    assert outcomes(responses) == {"created": 31}
    assert rows("SELECT count(*) FROM users WHERE username = 'cursed'") == [(0,)]
    assert count(rows) == (31, 31, 31)
    for told in (failed.text, server.log):
        for secret in ("private@example.com", "+4915187654321", "svp_", "INSERT", "SELECT"):
            assert secret not in told
    assert "POST /register failed unexpectedly" in server.log


async def test_500_opposing_transfers_in_both_directions_end_where_they_began(server: Server, rows: Rows) -> None:
    alice, bob = holders(server, alice=1000, bob=1000)
    there = Post("/transfers", order(alice.account_id, bob.account_id, 1), alice.headers)
    back = Post("/transfers", order(bob.account_id, alice.account_id, 1), bob.headers)

    before = retried(server)

    responses = await post_at_once(server, [there, back] * 500)

    assert outcomes(responses) == {"created": 1000}
    for holder in (alice, bob):
        assert rows(f"SELECT balance, version FROM accounts WHERE id = {holder.account_id}") == [(1000, 1001)]
    # Nor did the database have to end a deadlock.
    assert retried(server) == before


async def test_opposing_batches_and_transfers_that_share_many_accounts_do_not_deadlock(
    server: Server, rows: Rows
) -> None:
    crowd = holders(server, **{f"user{number}": 1000 for number in range(50)})
    ring = [*zip(crowd, crowd[1:] + crowd[:1], strict=True)]
    there = [order(one.account_id, next.account_id, 10) for one, next in ring]
    back = [order(next.account_id, one.account_id, 10) for one, next in ring]
    batches = [Post("/transfers/batch", {"transfers": each}, AS_OPERATOR) for each in (there, back[::-1])]
    before = retried(server)

    # Bulk calls that wait: no more than one worker would take.
    responses = await post_at_once(
        server, batches * 4 + [Post("/transfers", body, AS_OPERATOR) for body in (*there, *back)]
    )

    assert Counter(response.status_code for response in responses) == {200: 8, 201: 100}
    assert rows("SELECT DISTINCT balance, version FROM accounts WHERE user_id IS NOT NULL") == [(1000, 21)]
    assert retried(server) == before


async def test_of_many_who_want_the_last_money_only_as_many_get_it_as_it_lasts(server: Server, rows: Rows) -> None:
    alice, *others = holders(server, alice=1000, bob=0, carol=0, dave=0)
    wanted = [Post("/transfers", order(alice.account_id, each.account_id, 90), alice.headers) for each in others] * 16

    responses = await post_at_once(server, wanted)

    assert outcomes(responses) == {"created": 11, "insufficient-funds": 37}
    assert balance(rows, alice.account_id) == 10
    assert sum(balance(rows, each.account_id) for each in others) == 990


async def test_the_first_deposits_in_a_currency_open_one_system_account(server: Server, rows: Rows) -> None:
    crowd = holders(server, **{f"user{number}": 0 for number in range(32)})

    responses = await post_at_once(server, [Post("/deposits", cash(each.account_id, 5), AS_OPERATOR) for each in crowd])

    assert outcomes(responses) == {"created": 32}
    assert balance(rows, system_account(rows)) == -160


async def test_a_user_who_closes_itself_while_money_comes_holds_none_in_the_end_or_stays(
    server: Server, rows: Rows
) -> None:
    alice, *leavers = holders(server, alice=1000, **{f"user{number}": 0 for number in range(16)})

    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(
                call
                for leaver in leavers
                for call in (
                    client.delete("/me", headers=leaver.headers),
                    client.post(
                        "/transfers", json=order(alice.account_id, leaver.account_id, 7), headers=alice.headers
                    ),
                )
            )
        )

    for leaver, left, came in zip(leavers, answers[::2], answers[1::2], strict=True):
        assert (left.status_code, came.status_code) in ((204, 409), (409, 201))
        assert balance(rows, leaver.account_id) == (7 if came.status_code == 201 else 0)


async def test_a_key_sent_32_times_at_once_moves_money_once(server: Server, rows: Rows) -> None:
    alice, bob = holders(server, alice=1000, bob=0)

    for number in range(5):
        body = order(alice.account_id, bob.account_id, 10, memo=f"{number}")
        responses = await post_at_once(server, [Post("/transfers", body, keyed(alice.headers, f"{number}"))] * 32)

        assert outcomes(responses) == {"created": 1, "replayed": 31}
        assert len({answer_of(response)["id"] for response in responses}) == 1
        assert balance(rows, bob.account_id) == 10 * (number + 1)


async def test_of_a_key_with_different_accounts_at_once_one_wins(server: Server, rows: Rows) -> None:
    alice, bob, carol, dave = holders(server, alice=1000, bob=0, carol=1000, dave=0)

    for number in range(5):
        # They share no account, so that no lock makes one wait for the other.
        bodies = [order(alice.account_id, bob.account_id, 10), order(carol.account_id, dave.account_id, 10)]
        headers = keyed(AS_OPERATOR, f"{number}")
        responses = await post_at_once(server, [Post("/transfers", body, headers) for body in bodies] * 16)

        assert outcomes(responses) == {"created": 1, "replayed": 15, "idempotency-key-reused": 16}
        assert balance(rows, bob.account_id) + balance(rows, dave.account_id) == 10 * (number + 1)


async def test_one_key_of_many_callers_at_once_moves_the_money_of_each(server: Server, rows: Rows) -> None:
    crowd = holders(server, **{f"user{number}": 100 for number in range(31)}, bob=0)
    *senders, bob = crowd

    responses = await post_at_once(
        server,
        [Post("/transfers", order(each.account_id, bob.account_id, 1), keyed(each.headers, "one")) for each in senders],
    )

    assert outcomes(responses) == {"created": 31}
    assert balance(rows, bob.account_id) == 31


async def test_of_32_reversals_at_once_exactly_one_lands(server: Server, rows: Rows) -> None:
    alice, bob = holders(server, alice=1000, bob=1000)

    for _ in range(5):
        sent = order(alice.account_id, bob.account_id, 100)
        transfer = answer_of(httpx2.post(f"{server.url}/transfers", json=sent, headers=alice.headers))
        reversal = f"/transfers/{transfer['id']}/reversal"

        responses = await post_at_once(
            server, [Post(reversal, None, headers) for headers in (bob.headers, AS_OPERATOR)] * 16
        )

        assert outcomes(responses) == {"created": 1, "already-reversed": 31}
        assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (1000, 1000)
