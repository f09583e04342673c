"""The sender's own side is judged first: whoever cannot send learns nothing of other accounts."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.accounts import answer_of, books, order, refusal_of, register_all, send
from tests.support.holds import capture, hold
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import reverse, set_status, system_account, try_transfer


@pytest.fixture
def others(client: TestClient, rows: Rows) -> dict[str, int]:
    """Accounts of every kind that a stranger might ask about, by what they are."""
    bob, suspended, closed = register_all(client, bob=1000, suspended=5, closed=0)
    dollars = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=bob.headers))["id"]
    set_status(client, suspended, "suspended")
    set_status(client, closed, "closed")
    return {
        "active": bob.account_id,
        "suspended": suspended.account_id,
        "closed": closed.account_id,
        "another currency": dollars,
        "the system's": system_account(rows),
        "missing": 999_999,
    }


def test_who_names_an_account_that_is_not_his_learns_nothing_of_either(
    client: TestClient, others: dict[str, int]
) -> None:
    [alice] = register_all(client, alice=1000)

    for debit in others.values():
        for credit in (*others.values(), alice.account_id):
            if debit != credit:
                refused = try_transfer(client, alice.headers, debit, credit, 1)
                assert refusal_of(refused) == (404, "account-not-found")


def test_a_reversal_without_money_does_not_tell_whether_its_sender_is_active(client: TestClient) -> None:
    alice, bob, eve = register_all(client, alice=0, bob=100, eve=100)
    sent = [send(client, sender, alice, 100) for sender in (bob, eve)]
    send(client, alice, bob, 150)
    set_status(client, eve, "suspended")

    assert {refusal_of(reverse(client, each, alice.headers)) for each in sent} == {(409, "insufficient-funds")}


def test_a_retry_answers_what_its_key_did_although_the_money_is_gone(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    headers = {**alice.headers, "Idempotency-Key": "rent"}
    first = try_transfer(client, headers, alice.account_id, bob.account_id, 100)

    again = try_transfer(client, headers, alice.account_id, bob.account_id, 100)

    assert again.headers["Idempotency-Replayed"] == "true"
    assert answer_of(again) == answer_of(first)
    # To name an account that is not there with the same key is other content, as naming one that is.
    for account_id in (999_999, bob.account_id):
        refused = try_transfer(client, headers, alice.account_id, account_id, 99)
        assert refusal_of(refused) == (422, "idempotency-key-reused")


def test_a_user_cannot_reverse_what_the_operator_moved(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=1000)
    [paid_in] = rows("SELECT id FROM transfers")
    moved = answer_of(try_transfer(client, AS_OPERATOR, bob.account_id, alice.account_id, 10))
    before = books(rows)

    assert refusal_of(reverse(client, {"id": paid_in[0]}, bob.headers)) == (403, "operator-transfer")
    assert refusal_of(reverse(client, moved, alice.headers)) == (403, "operator-transfer")
    # Who sent it could not reverse a transfer of its own, either; who is no party to it learns nothing.
    assert refusal_of(reverse(client, moved, bob.headers)) == (403, "receiver-only")
    assert refusal_of(reverse(client, {"id": paid_in[0]}, alice.headers)) == (404, "transfer-not-found")
    assert books(rows) == before
    assert answer_of(reverse(client, moved, AS_OPERATOR))["reverses_id"] == moved["id"]


def numbers_in(value: Any) -> Iterator[int]:
    """The numbers in an answer, however deep."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(each)
    elif isinstance(value, int):
        yield value


def test_no_answer_tells_either_party_what_the_other_has(client: TestClient) -> None:
    alice, bob = register_all(client, alice=5_000_000, bob=7_000_000)
    one = order(alice.account_id, bob.account_id, 1)
    sent, held = send(client, alice, bob, 1), hold(client, alice, bob, 1)
    lists = ("/transfers", f"/transfers/{sent['id']}", "/holds", f"/holds/{held['id']}", "/accounts")
    to_alice = [
        sent,
        held,
        *(
            client.post(path, json={"transfers": [one], **more}, headers=alice.headers).json()
            for path, more in (
                ("/transfers/batch", {"on_error": "rollback"}),
                ("/transfers/batch", {"on_error": "continue"}),
                ("/transactions", {}),
            )
        ),
        *(client.get(path, headers=alice.headers).json() for path in lists),
        client.get(f"/accounts/{alice.account_id}/entries", headers=alice.headers).json(),
    ]
    to_bob = [
        answer_of(capture(client, held["id"], bob.headers)),
        answer_of(reverse(client, sent, bob.headers)),
        *(client.get(path, headers=bob.headers).json() for path in lists),
        client.get(f"/accounts/{bob.account_id}/entries", headers=bob.headers).json(),
    ]

    for seen, own, others in ((to_alice, 5_000_000, 7_000_000), (to_bob, 7_000_000, 5_000_000)):
        numbers = [*numbers_in(seen)]
        assert any(abs(number - own) < 100 for number in numbers)
        assert not any(abs(number - others) < 100 for number in numbers)
