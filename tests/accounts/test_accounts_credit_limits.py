"""Accounts: how far the operator lets a balance go below 0."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from tests.support.accounts import (
    answer_of,
    balance,
    books,
    cash,
    fields_of,
    order,
    refusal_of,
    register_all,
    send,
    walk,
)
from tests.support.service import AS_OPERATOR, Rows, alembic, serving
from tests.support.transfers import try_transfer

MOST = 2**53 - 1


def limit(client: Any, account_id: Any, credit_limit: Any, headers: dict[str, str] = AS_OPERATOR) -> httpx2.Response:
    response: httpx2.Response = client.patch(
        f"/accounts/{account_id}", json={"credit_limit": credit_limit}, headers=headers
    )
    return response


def test_what_may_be_owed_is_spent_and_shown(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)

    changed = limit(client, alice.account_id, 50).json()

    assert changed == {
        "id": alice.account_id,
        "user_id": alice.user_id,
        "currency": "EUR",
        "balance": 100,
        "label": "main",
        "held": 0,
        "credit_limit": 50,
        "version": 1,
        "available": 150,
    }
    assert client.get(f"/accounts/{alice.account_id}", headers=alice.headers).json() == changed
    assert walk(client, "/accounts", alice.headers, limit=50) == [changed]
    assert send(client, alice, bob, 120)["debit_balance_after"] == -20
    assert send(client, alice, bob, 100, on_short="cap")["amount"] == 30
    before = books(rows)
    refused = try_transfer(client, alice.headers, alice.account_id, bob.account_id, 1)
    assert refusal_of(refused) == (409, "insufficient-funds")
    assert books(rows) == before
    shown = client.get(f"/accounts/{alice.account_id}", headers=AS_OPERATOR).json()
    assert (shown["balance"], shown["available"]) == (-50, 0)
    # Money that comes in pays off what is owed.
    send(client, bob, alice, 20)
    assert balance(rows, alice.account_id) == -30
    assert refusal_of(client.request("DELETE", "/me", headers=alice.headers)) == (409, "balance-not-zero")


def test_a_limit_below_what_is_owed_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    limit(client, alice.account_id, 50)
    send(client, alice, bob, 40)
    before = books(rows)

    for credit_limit in (0, 39):
        assert refusal_of(limit(client, alice.account_id, credit_limit)) == (409, "credit-in-use")
    assert books(rows) == before
    assert limit(client, alice.account_id, 40).json()["available"] == 0
    assert limit(client, alice.account_id, MOST).json()["available"] == MOST - 40
    client.post("/deposits", json=cash(alice.account_id, 1000), headers=AS_OPERATOR)
    # No number that JavaScript could not read.
    again = limit(client, alice.account_id, MOST).json()
    assert again["available"] == MOST
    assert client.get(f"/accounts/{alice.account_id}", headers=alice.headers).json() == again


def test_only_the_operator_sets_it_for_an_account_of_a_user(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=1)
    [(system,)] = rows("SELECT id FROM accounts WHERE user_id IS NULL")
    before = books(rows)

    assert refusal_of(limit(client, alice.account_id, 1, alice.headers)) == (403, "operator-only")
    assert refusal_of(limit(client, alice.account_id, 1, {})) == (401, "unauthenticated")
    assert refusal_of(limit(client, 999_999, 1)) == (404, "account-not-found")
    assert refusal_of(limit(client, system, 1)) == (409, "system-account")
    for wrong in (-1, MOST + 1, "1", 1.5, None, True):
        assert fields_of(limit(client, alice.account_id, wrong)) == ["body.credit_limit"]
    assert fields_of(client.patch(f"/accounts/{alice.account_id}", json={}, headers=AS_OPERATOR)) == [
        "body.credit_limit"
    ]
    assert books(rows) == before


def test_a_system_account_and_a_balance_of_the_past_have_nothing_available(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=100)
    limit(client, alice.account_id, 50)
    [(system,)] = rows("SELECT id FROM accounts WHERE user_id IS NULL")

    past = client.get(f"/accounts/{alice.account_id}?at=2020-01-01T00:00:00Z", headers=alice.headers).json()

    assert (past["balance"], past["available"]) == (0, None)
    assert client.get(f"/accounts/{system}", headers=AS_OPERATOR).json()["available"] is None


def test_in_a_batch_credit_is_used_once(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=10, bob=0, carol=0)
    limit(client, alice.account_id, 20)
    items = [order(alice.account_id, each.account_id, 20) for each in (bob, carol)]
    items.append(order(bob.account_id, alice.account_id, 15))
    items.append(order(alice.account_id, carol.account_id, 25))

    body = {"transfers": items, "on_error": "continue"}
    results = client.post("/transfers/batch", json=body, headers=AS_OPERATOR).json()["results"]

    assert [result["status"] for result in results] == ["created", "refused", "created", "created"]
    assert [balance(rows, each.account_id) for each in (alice, bob, carol)] == [-20, 5, 25]


@pytest.mark.parametrize("statement", ["SET balance = -51", "SET credit_limit = 49", "SET credit_limit = -1"])
def test_the_database_keeps_the_limit_itself(client: TestClient, rows: Rows, statement: str) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    limit(client, alice.account_id, 50)
    send(client, alice, bob, 50)

    with pytest.raises(Exception, match=r"(?i)check constraint"):
        rows(f"UPDATE accounts {statement} WHERE id = {alice.account_id}")


def test_while_an_account_owes_money_the_schema_before_is_refused(client: TestClient, rows: Rows, url: str) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    limit(client, alice.account_id, 50)
    send(client, alice, bob, 50)
    before = books(rows)

    refused = alembic(url, "-x", "accept-loss=all", "downgrade", "b7e4d90c2f15")

    assert refused.returncode == 1
    assert "Accounts that owe money: 1." in refused.stderr
    assert books(rows) == before
    client.post("/deposits", json=cash(alice.account_id, 50), headers=AS_OPERATOR)
    assert alembic(url, "-x", "accept-loss=all", "downgrade", "b7e4d90c2f15").returncode == 0
    assert alembic(url, "upgrade", "head").returncode == 0


@pytest.mark.slow
def test_a_limit_is_lowered_while_it_is_spent(url: str, tmp_path: Path, rows: Rows) -> None:
    with serving(url, tmp_path, workers=2) as server, httpx2.Client(base_url=server.url) as client:
        alice, bob = register_all(client, alice=0, bob=0)

        def spend(_: int) -> int:
            body = order(alice.account_id, bob.account_id, 10)
            return httpx2.post(f"{server.url}/transfers", json=body, headers=alice.headers).status_code

        def lower(_: int) -> int:
            return limit(client, alice.account_id, 0).status_code

        for _ in range(5):
            limit(client, alice.account_id, 100)
            with ThreadPoolExecutor(8) as pool:
                spent = pool.map(spend, range(16))
                lowered = pool.map(lower, range(4))
                codes = [*spent], [*lowered]
            owed = -balance(rows, alice.account_id)
            assert owed == 10 * codes[0].count(201)
            assert {*codes[0]} <= {201, 409}
            [(now,)] = rows(f"SELECT credit_limit FROM accounts WHERE id = {alice.account_id}")
            assert (owed, now) == (0, 0) if 200 in codes[1] else now == 100
            if owed:
                answer_of(client.post("/deposits", json=cash(alice.account_id, owed), headers=AS_OPERATOR))
