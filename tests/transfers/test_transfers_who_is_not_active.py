"""Transfers: who is not active; idempotency; reversals."""

from typing import Any

from starlette.testclient import TestClient

from tests.support.accounts import (
    answer_of,
    balance,
    books,
    cash,
    deposit,
    fields_of,
    order,
    refusal_of,
    register,
    register_all,
    send,
)
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import keyed, reverse, set_status, system_account, try_transfer


def test_who_is_not_active_neither_sends_nor_receives_but_is_paid_out(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=1000)
    sent = send(client, bob, alice, 100)
    system = system_account(rows)

    for status in ("suspended", "closed"):
        set_status(client, bob, status)
        before = books(rows)
        for headers, debit, credit in (
            (alice.headers, alice.account_id, bob.account_id),
            (AS_OPERATOR, alice.account_id, bob.account_id),
            (AS_OPERATOR, bob.account_id, alice.account_id),
            (AS_OPERATOR, system, bob.account_id),
        ):
            refused = try_transfer(client, headers, debit, credit, 1)
            assert refusal_of(refused) == (409, "account-not-active"), (status, debit, credit)
        paid_in = client.post("/deposits", json=cash(bob.account_id, 1), headers=AS_OPERATOR)
        assert refusal_of(paid_in) == (409, "account-not-active")
        for headers in (alice.headers, AS_OPERATOR):
            reversal = client.post(f"/transfers/{sent['id']}/reversal", headers=headers)
            assert refusal_of(reversal) == (409, "account-not-active")
        by_itself = try_transfer(client, bob.headers, bob.account_id, alice.account_id, 1)
        assert refusal_of(by_itself) == (403, "user-not-active")
        assert books(rows) == before
        answer_of(client.post("/withdrawals", json=cash(bob.account_id, 400), headers=AS_OPERATOR))

    answer_of(try_transfer(client, AS_OPERATOR, bob.account_id, system, 100))
    assert balance(rows, bob.account_id) == 0
    set_status(client, bob, "active")
    assert send(client, alice, bob, 1)["debit_balance_after"] == 1099


def test_a_user_closes_itself_only_once_it_holds_nothing(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=700)
    dollars = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=alice.headers))["id"]
    deposit(client, dollars, 1)

    refused = client.delete("/me", headers=alice.headers)

    assert refusal_of(refused) == (409, "balance-not-zero")
    assert rows(f"SELECT status FROM profiles WHERE user_id = {alice.user_id}") == [("active",)]
    answer_of(client.post("/withdrawals", json=cash(dollars, 1), headers=AS_OPERATOR))
    assert client.delete("/me", headers=alice.headers).status_code == 204
    # The operator may close a user who holds money, to settle later.
    set_status(client, bob, "closed")
    assert rows("SELECT status FROM profiles") == [("closed",)] * 2
    assert balance(rows, bob.account_id) == 700


def test_a_key_sent_again_answers_the_same_and_moves_nothing(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    body = order(alice.account_id, bob.account_id, 600, memo="rent")
    headers = keyed(alice.headers, "rent-5")

    first = client.post("/transfers", json=body, headers=headers)
    before = books(rows)
    # There is no longer enough to do it again, and the balances have changed since.
    again = client.post("/transfers", json=body, headers=headers)

    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert answer_of(again) == answer_of(first)
    assert books(rows) == before
    send(client, alice, bob, 400)
    set_status(client, bob, "suspended")
    assert client.post("/transfers", json=body, headers=headers).json() == first.json()


def test_a_key_sent_with_other_content_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=1000, bob=0, carol=0)
    second = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=alice.headers))["id"]
    body = order(alice.account_id, bob.account_id, 600, memo="rent")
    headers = keyed(alice.headers, "rent-5")
    answer_of(client.post("/transfers", json=body, headers=headers))
    before = books(rows)

    for change in (
        {"amount": 601},
        {"memo": "Rent"},
        {"memo": None},
        {"credit_account_id": carol.account_id},
        {"debit_account_id": second},
        {"debit_account_id": bob.account_id, "credit_account_id": alice.account_id},
        {"credit_account_id": 999_999},
    ):
        refused = client.post("/transfers", json=body | change, headers=headers)
        assert refusal_of(refused) == (422, "idempotency-key-reused"), change
        assert fields_of(refused) == ["header.Idempotency-Key"]
    assert books(rows) == before


def test_keys_belong_to_their_caller(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=1000)
    there = order(alice.account_id, bob.account_id, 10)
    back = order(bob.account_id, alice.account_id, 20)

    responses = [
        client.post("/transfers", json=there, headers=keyed(alice.headers, "one")),
        client.post("/transfers", json=back, headers=keyed(bob.headers, "one")),
        # The same content as alice's, by another caller.
        client.post("/transfers", json=there, headers=keyed(AS_OPERATOR, "one")),
    ]

    assert len({answer_of(response)["id"] for response in responses}) == 3
    assert not any("Idempotency-Replayed" in response.headers for response in responses)
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (1000, 1000)


def test_the_operators_calls_share_one_space_of_keys(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    payment = cash(alice.account_id, 10)
    calls: dict[str, dict[str, Any]] = {
        "/deposits": payment,
        "/withdrawals": payment,
        "/transfers": order(alice.account_id, bob.account_id, 10),
    }
    for first, body in calls.items():
        headers = keyed(AS_OPERATOR, f"first in {first}")
        made = client.post(first, json=body, headers=headers)
        before = books(rows)
        for path, other in calls.items():
            again = client.post(path, json=other, headers=headers)
            if path == first:
                assert again.headers["Idempotency-Replayed"] == "true"
                assert answer_of(again) == answer_of(made)
            else:
                assert refusal_of(again) == (422, "idempotency-key-reused"), (first, path)
        assert books(rows) == before


def test_a_deposit_is_the_transfer_from_the_system_account_that_it_is(client: TestClient, rows: Rows) -> None:
    alice = register(client, funds=1000)
    made = client.post("/deposits", json=cash(alice.account_id, 10), headers=keyed(AS_OPERATOR, "one"))
    body = order(system_account(rows), alice.account_id, 10)

    again = client.post("/transfers", json=body, headers=keyed(AS_OPERATOR, "one"))

    assert again.headers["Idempotency-Replayed"] == "true"
    assert answer_of(again) == answer_of(made)


def test_a_refusal_does_not_use_up_its_key(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=5, bob=0)
    headers = keyed(alice.headers, "patience")
    body = order(alice.account_id, bob.account_id, 10)
    assert refusal_of(client.post("/transfers", json=body, headers=headers)) == (409, "insufficient-funds")

    deposit(client, alice.account_id, 5)
    done = client.post("/transfers", json=body, headers=headers)

    assert "Idempotency-Replayed" not in done.headers
    assert answer_of(done)["debit_balance_after"] == 0


def test_a_key_is_1_to_255_visible_ascii_characters(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    body = order(alice.account_id, bob.account_id, 1)
    transfer = answer_of(client.post("/transfers", json=body, headers=keyed(alice.headers, "~")))
    for key in ("1", "!", "a b", "k" * 255):
        answer_of(client.post("/transfers", json=body, headers=keyed(alice.headers, key)))
        assert rows(f"SELECT count(*) FROM transfers WHERE idempotency_key = '{key}'") == [(1,)]

    before = books(rows)
    for wrong in (b"", b"k" * 256, "schlüssel".encode(), "schlüssel".encode("latin-1"), b"a\tb"):
        refused = client.post("/transfers", json=body, headers=keyed(alice.headers, wrong))
        assert fields_of(refused) == ["header.Idempotency-Key"], wrong
        batch = {"transfers": [body | {"idempotency_key": wrong.decode("latin-1")}]}
        refused = client.post("/transfers/batch", json=batch, headers=alice.headers)
        assert fields_of(refused) == ["body.transfers.0.idempotency_key"], wrong
    for path, content, headers in (
        ("/deposits", cash(alice.account_id, 1), AS_OPERATOR),
        ("/withdrawals", cash(alice.account_id, 1), AS_OPERATOR),
        (f"/transfers/{transfer['id']}/reversal", {}, bob.headers),
    ):
        refused = client.post(path, json=content, headers=keyed(headers, b"k" * 256))
        assert fields_of(refused) == ["header.Idempotency-Key"], path
    assert books(rows) == before


def test_the_receiver_sends_money_back_once(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=50)
    sent = send(client, alice, bob, 300, memo="rent")

    back = answer_of(reverse(client, sent, bob.headers))

    assert back == {
        "id": back["id"],
        "debit_account_id": bob.account_id,
        "credit_account_id": alice.account_id,
        "currency": "EUR",
        "amount": 300,
        "memo": None,
        "reference": None,
        "metadata": None,
        "asked_amount": None,
        "reverses_id": sent["id"],
        "transaction_id": None,
        "hold_id": None,
        "created_at": back["created_at"],
        "debit_balance_after": 50,
    }
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (1000, 50)
    before = books(rows)
    for headers in (bob.headers, AS_OPERATOR):
        assert refusal_of(reverse(client, sent, headers)) == (409, "already-reversed")
    # Its receiver is alice, who may not have it back and forth.
    for headers in (alice.headers, AS_OPERATOR):
        assert refusal_of(reverse(client, back, headers)) == (409, "reversal-not-reversible")
    assert books(rows) == before


def test_the_sender_cannot_reverse_and_a_stranger_sees_nothing(client: TestClient, rows: Rows) -> None:
    alice, bob, eve = register_all(client, alice=1000, bob=0, eve=0)
    sent = send(client, alice, bob, 300)
    before = books(rows)

    assert refusal_of(reverse(client, sent, alice.headers)) == (403, "receiver-only")
    for missing in (reverse(client, sent, eve.headers), reverse(client, {"id": 999_999}, AS_OPERATOR)):
        assert refusal_of(missing) == (404, "transfer-not-found")
    assert refusal_of(reverse(client, sent, {})) == (401, "unauthenticated")
    assert books(rows) == before
    by_operator = answer_of(reverse(client, sent, AS_OPERATOR))
    assert (by_operator["debit_balance_after"], by_operator["credit_balance_after"]) == (0, 1000)


def test_money_that_is_spent_comes_back_only_once_it_is_there_again(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    sent = send(client, alice, bob, 300)
    away = send(client, bob, alice, 1)
    before = books(rows)

    for headers in (bob.headers, AS_OPERATOR):
        assert refusal_of(reverse(client, sent, headers)) == (409, "insufficient-funds")
    assert books(rows) == before

    answer_of(reverse(client, away, alice.headers))
    answer_of(reverse(client, sent, bob.headers))
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (1000, 0)


def test_deposits_and_withdrawals_are_reversed_by_the_operator_alone(client: TestClient, rows: Rows) -> None:
    alice = register(client, funds=1000)
    paid_in = deposit(client, alice.account_id, 10)
    paid_out = answer_of(client.post("/withdrawals", json=cash(alice.account_id, 20), headers=AS_OPERATOR))

    assert refusal_of(reverse(client, paid_in, alice.headers)) == (403, "operator-transfer")
    assert answer_of(reverse(client, paid_in, AS_OPERATOR))["debit_balance_after"] == 980
    assert refusal_of(reverse(client, paid_out, alice.headers)) == (403, "receiver-only")
    assert answer_of(reverse(client, paid_out, AS_OPERATOR))["credit_balance_after"] == 1000
    assert (balance(rows, alice.account_id), balance(rows, system_account(rows))) == (1000, -1000)


def test_a_reversal_is_replayed_by_its_key(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    sent, other = send(client, alice, bob, 300), send(client, alice, bob, 300)
    first = reverse(client, sent, bob.headers, "back")
    before = books(rows)

    again = reverse(client, sent, bob.headers, "back")

    assert again.headers["Idempotency-Replayed"] == "true"
    assert answer_of(again) == answer_of(first)
    for refused in (
        reverse(client, other, bob.headers, "back"),
        # A transfer of the same content is no reversal.
        client.post(
            "/transfers", json=order(bob.account_id, alice.account_id, 300), headers=keyed(bob.headers, "back")
        ),
    ):
        assert refusal_of(refused) == (422, "idempotency-key-reused")
        assert fields_of(refused) == ["header.Idempotency-Key"]
    assert refusal_of(reverse(client, sent, bob.headers, "another key")) == (409, "already-reversed")
    assert books(rows) == before
