"""Transactions: several transfers, all or nothing, under one key."""

from typing import Any

import pytest
from httpx2 import Client, Response
from starlette.testclient import TestClient

import crud
from db.database import Database
from ledger import OPERATOR, LinkedOrders, Order, Posted
from tests.support.accounts import (
    Headers,
    answer_of,
    balance,
    books,
    fields_of,
    order,
    refusal_of,
    register_all,
)
from tests.support.holds import hold
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import reverse


def try_linked(client: Client, headers: Headers, *legs: Any, key: str = "", **fields: Any) -> Response:
    headers = headers | ({"Idempotency-Key": key} if key else {})
    response: Response = client.post("/transactions", json={"transfers": legs, **fields}, headers=headers)
    return response


def test_a_price_and_its_fee_are_moved_together(client: TestClient, rows: Rows) -> None:
    alice, bob, house = register_all(client, alice=1000, bob=0, house=0)
    words: dict[str, Any] = {"reference": "sale-1", "metadata": {"cart": "c-17"}}
    legs = [
        order(alice.account_id, bob.account_id, 950, memo="Price", reference="sale-1/price"),
        order(alice.account_id, house.account_id, 50, memo="Fee"),
    ]

    made = answer_of(try_linked(client, alice.headers, *legs, **words))

    assert {name: made[name] for name in words} == words
    assert [(each["amount"], each["memo"], each["debit_balance_after"]) for each in made["transfers"]] == [
        (950, "Price", 50),
        (50, "Fee", 0),
    ]
    assert {each["transaction_id"] for each in made["transfers"]} == {made["id"]}
    assert {each["created_at"] for each in made["transfers"]} == {made["created_at"]}
    assert "credit_balance_after" not in made["transfers"][0]
    seen = client.get(f"/transfers/{made['transfers'][0]['id']}", headers=bob.headers).json()
    assert (seen["transaction_id"], seen["reference"]) == (made["id"], "sale-1/price")
    assert rows("SELECT reference, initiator FROM transactions") == [("sale-1", alice.user_id)]


def test_an_exchange_goes_over_the_operators_accounts(client: TestClient) -> None:
    alice, house = register_all(client, alice=1000, house=0)
    alices, houses = (
        answer_of(client.post("/accounts", json={"currency": "USD"}, headers=holder.headers))["id"]
        for holder in (alice, house)
    )
    client.post("/deposits", json={"account_id": houses, "amount": 5000}, headers=AS_OPERATOR)

    made = try_linked(
        client,
        AS_OPERATOR,
        order(alice.account_id, house.account_id, 1000),
        order(houses, alices, 1080),
    ).json()

    assert [each["currency"] for each in made["transfers"]] == ["EUR", "USD"]
    assert [each["credit_balance_after"] for each in made["transfers"]] == [1000, 1080]


def test_a_leg_may_spend_what_one_before_it_brought(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)

    made = try_linked(
        client,
        AS_OPERATOR,
        order(alice.account_id, bob.account_id, 100),
        order(bob.account_id, alice.account_id, 70),
        order(alice.account_id, bob.account_id, 500, on_short="cap"),
    ).json()

    assert [each["amount"] for each in made["transfers"]] == [100, 70, 70]
    assert [balance(rows, each.account_id) for each in (alice, bob)] == [0, 100]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_leg_that_is_refused_undoes_all_and_is_named(client: TestClient, rows: Rows, place: int) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=50, carol=0)
    legs = [order(alice.account_id, carol.account_id, 30) for _ in range(2)]
    legs.insert(place, order(alice.account_id, bob.account_id, 101))
    before = books(rows)

    response = try_linked(client, alice.headers, *legs, key="key")

    assert refusal_of(response) == (409, "transaction-refused")
    [error] = response.json()["errors"]
    assert (error["index"], error["type"]) == (place, "/problems/insufficient-funds")
    assert books(rows) == before
    assert rows("SELECT count(*) FROM transactions") == [(0,)]
    # A refusal is not stored: the same key is judged anew.
    legs[place]["amount"] = 1
    assert try_linked(client, alice.headers, *legs, key="key").status_code == 201


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"credit_account_id": 99}, "account-not-found"),
        ({"if_version": 7}, "version-mismatch"),
        ({"debit_account_id": "credit"}, "account-not-found"),
        ({"credit_account_id": "debit"}, "same-account"),
    ],
)
def test_each_refusal_of_a_transfer_is_one_of_a_leg(
    client: TestClient, rows: Rows, wrong: dict[str, Any], problem: str
) -> None:
    alice, bob = register_all(client, alice=100, bob=50)
    ids = {"debit": alice.account_id, "credit": bob.account_id}
    leg = order(alice.account_id, bob.account_id, 1) | {name: ids.get(each, each) for name, each in wrong.items()}
    before = books(rows)

    response = try_linked(client, alice.headers, order(alice.account_id, bob.account_id, 5), leg)

    assert [(each["index"], each["type"]) for each in response.json()["errors"]] == [(1, f"/problems/{problem}")]
    assert books(rows) == before


def test_a_transaction_sent_again_answers_what_it_did(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=0)
    legs = [
        order(alice.account_id, bob.account_id, 80, on_short="cap", metadata={"a": "b"}),
        order(alice.account_id, carol.account_id, 80, on_short="cap"),
    ]

    first, again = (try_linked(client, alice.headers, *legs, key="key", reference="r") for _ in range(2))

    assert again.json() == answer_of(first)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [each["amount"] for each in again.json()["transfers"]] == [80, 20]
    others: list[tuple[Any, dict[str, Any]]] = [
        (legs[::-1], {"reference": "r"}),
        (legs[:1], {"reference": "r"}),
        ([*legs, legs[0]], {"reference": "r"}),
        (legs, {"reference": "s"}),
        (legs, {"reference": "r", "metadata": {"a": "b"}}),
    ]
    for other, fields in others:
        response = try_linked(client, alice.headers, *other, key="key", **fields)
        assert refusal_of(response) == (422, "idempotency-key-reused")
    # Another caller's key, and a transfer's, are others.
    assert try_linked(client, AS_OPERATOR, order(bob.account_id, carol.account_id, 1), key="key").status_code == 201
    single = client.post(
        "/transfers",
        json=order(bob.account_id, carol.account_id, 1),
        headers=bob.headers | {"Idempotency-Key": "key"},
    )
    assert single.status_code == 201
    assert rows("SELECT count(*) FROM transactions") == [(2,)]


def test_one_leg_is_reversed_by_its_recipient(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=0)
    legs = order(alice.account_id, bob.account_id, 60), order(alice.account_id, carol.account_id, 40)
    price, fee = try_linked(client, alice.headers, *legs).json()["transfers"]

    back = answer_of(reverse(client, price, bob.headers))

    assert (back["amount"], back["transaction_id"], balance(rows, alice.account_id)) == (60, None, 60)
    assert refusal_of(reverse(client, fee, bob.headers)) == (404, "transfer-not-found")
    assert refusal_of(reverse(client, price, bob.headers)) == (409, "already-reversed")


def test_what_is_held_is_not_there_for_a_leg(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    hold(client, alice, bob, 50)

    legs = [order(alice.account_id, bob.account_id, 30) for _ in range(2)]

    assert refusal_of(try_linked(client, alice.headers, *legs)) == (409, "transaction-refused")


@pytest.mark.parametrize(
    ("legs", "field"),
    [
        ([], "body.transfers"),
        ([order(1, 2, 1)] * 101, "body.transfers"),
        ([order(1, 2, 0)], "body.transfers.0.amount"),
        ([order(1, 2, 1), {**order(1, 2, 1), "idempotency_key": "k"}], "body.transfers.1.idempotency_key"),
        ([order(1, 2, "1")], "body.transfers.0.amount"),
    ],
)
def test_invalid_transactions_are_refused(client: TestClient, legs: list[Any], field: str) -> None:
    [alice] = register_all(client, alice=1)

    assert fields_of(try_linked(client, alice.headers, *legs)) == [field]


def test_a_hundred_legs(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)

    made = try_linked(client, alice.headers, *[order(alice.account_id, bob.account_id, 1)] * 100).json()

    assert [each["debit_balance_after"] for each in made["transfers"]] == [*range(99, -1, -1)]
    ids = [each["id"] for each in made["transfers"]]
    assert ids == sorted(ids)


async def test_transactions_whose_transfers_have_ids_by_turns_are_each_replayed(
    client: TestClient, rows: Rows, database: Database
) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    legs = [Order(OPERATOR, alice.account_id, bob.account_id, 1)] * 2
    orders = [LinkedOrders(OPERATOR, legs, key) for key in ("one", "two")]
    await database.write(crud.make_transfers, orders)
    # As two workers may number them that take ids from PostgreSQL's sequence at the same time.
    rows("UPDATE transfers SET transaction_id = 1 + id % 2 WHERE transaction_id IS NOT NULL")

    again = await database.write(crud.make_transfers, orders)

    assert [isinstance(each, Posted) and each.replayed for each in again] == [True, True]
