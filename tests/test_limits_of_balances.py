"""No transfer takes a balance past 2^53 - 1, so that every JSON reader reads it exactly; a larger one may come back."""

import sqlite3

import psycopg
import pytest
from starlette.testclient import TestClient

from tests.support.accounts import (
    answer_of,
    balance,
    books,
    cash,
    deposit,
    order,
    refusal_of,
    register,
    register_all,
    send,
)
from tests.support.holds import hold, try_hold
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import MOST, set_balance, system_account, try_transfer


def test_the_operator_cannot_pay_in_past_the_limit(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    deposit(client, alice.account_id, MOST)
    before = books(rows)

    for account_id in (alice.account_id, bob.account_id):
        # The second time it is the system account that would pass the limit.
        refused = client.post("/deposits", json=cash(account_id, 1), headers=AS_OPERATOR)
        assert refusal_of(refused) == (409, "balance-limit")
        assert str(MOST) in refused.json()["detail"]
    assert books(rows) == before
    assert balance(rows, system_account(rows)) == -MOST


def test_in_one_batch_a_balance_reaches_the_limit_and_goes_no_further(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    deposit(client, bob.account_id, 1)
    system = system_account(rows)
    transfers = [
        order(system, alice.account_id, MOST - 1),
        order(system, alice.account_id, 1),
        order(bob.account_id, alice.account_id, 1),
        order(bob.account_id, alice.account_id, 1),
    ]

    batch = {"transfers": transfers, "on_error": "continue"}
    results = client.post("/transfers/batch", json=batch, headers=AS_OPERATOR).json()["results"]

    assert [result["status"] for result in results] == ["created", "refused", "created", "refused"]
    assert [result["problem"]["type"] for result in results[1::2]] == [
        "/problems/balance-limit",
        "/problems/insufficient-funds",
    ]
    assert balance(rows, alice.account_id) == MOST


@pytest.mark.wrong_books
def test_a_balance_from_before_the_limit_can_move_back_and_not_further_out(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=1000)
    system = system_account(rows)
    set_balance(rows, alice.account_id, 2**62)
    set_balance(rows, system, -(2**62))

    assert refusal_of(try_transfer(client, bob.headers, bob.account_id, alice.account_id, 1)) == (409, "balance-limit")
    refused = client.post("/deposits", json=cash(bob.account_id, 1), headers=AS_OPERATOR)
    assert refusal_of(refused) == (409, "balance-limit")

    assert send(client, alice, bob, 5)["debit_balance_after"] == 2**62 - 5
    paid_out = answer_of(client.post("/withdrawals", json=cash(alice.account_id, MOST), headers=AS_OPERATOR))
    assert paid_out["credit_balance_after"] == MOST - 2**62


def test_a_balance_at_the_limit_is_shown_exactly(client: TestClient) -> None:
    alice = register(client)
    deposit(client, alice.account_id, MOST)

    assert f'"balance":{MOST},' in client.get(f"/accounts/{alice.account_id}", headers=alice.headers).text


def test_what_is_held_passes_the_limit_no_more_than_a_balance(client: TestClient) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    deposit(client, alice.account_id, MOST)
    credit = {"credit_limit": MOST}
    assert client.patch(f"/accounts/{alice.account_id}", json=credit, headers=AS_OPERATOR).status_code == 200
    hold(client, alice, bob, MOST)

    refused = try_hold(client, alice.headers, alice.account_id, bob.account_id, 1)

    assert refusal_of(refused) == (409, "balance-limit")


@pytest.mark.parametrize("change", ["balance = -1", "balance = 4, held = 5", "credit_limit = -1", "held = -1"])
def test_the_database_itself_refuses_a_balance_below_its_limit(client: TestClient, rows: Rows, change: str) -> None:
    alice = register(client)
    before = books(rows)

    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.CheckViolation)):
        rows(f"UPDATE accounts SET {change} WHERE id = {alice.account_id}")

    assert books(rows) == before
