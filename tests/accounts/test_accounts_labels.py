"""Several accounts of one user: labels, accounts that the operator opens, and how many there can be."""

import asyncio
from itertools import product
from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
from db.database import Database
from models import AccountPublic, KeyedRegistration
from operations import Operations
from refusals import AccountExists, AccountLimit, UserNotFound
from settings import Settings
from tests.support.accounts import answer_of, deposit, fields_of, order, refusal_of, register, register_all
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows

COUNT = "SELECT count(*) FROM accounts"


def opening(number: int, user_id: int = 1) -> crud.AccountOpening:
    return crud.AccountOpening(user_id, "EUR", f"account {number}")


async def register_one(database: Database, rows: Rows) -> None:
    """Register user 1, who has one account then."""
    await database.write(crud.register_users, [KeyedRegistration.model_validate(named("alice"))], "EUR")
    assert rows("SELECT id FROM users") == [(1,)]


def test_a_user_has_several_accounts_in_a_currency_by_label(client: TestClient, rows: Rows) -> None:
    alice = register(client, funds=500)

    opened = answer_of(client.post("/accounts", json={"currency": "EUR", "label": "Ferien 🏖"}, headers=alice.headers))

    assert (opened["label"], opened["balance"], opened["available"]) == ("Ferien 🏖", 0, 0)
    listed = client.get("/accounts", headers=alice.headers).json()["items"]
    assert [(each["id"], each["label"]) for each in listed] == [(alice.account_id, "main"), (opened["id"], "Ferien 🏖")]
    assert client.get(f"/accounts/{opened['id']}", headers=alice.headers).json() == opened == listed[1]
    moved = client.post("/transfers", json=order(alice.account_id, opened["id"], 200), headers=alice.headers)
    assert answer_of(moved)["debit_balance_after"] == 300
    assert rows("SELECT label, balance FROM accounts WHERE user_id IS NOT NULL ORDER BY id") == [
        ("main", 300),
        ("Ferien 🏖", 200),
    ]


def test_an_account_with_the_same_currency_and_label_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    savings = {"currency": "EUR", "label": "savings"}
    answer_of(client.post("/accounts", json=savings, headers=alice.headers))

    for body in (savings, {"currency": "EUR"}, {"currency": "EUR", "label": "main"}):
        assert refusal_of(client.post("/accounts", json=body, headers=alice.headers)) == (409, "account-exists")
        body_of_operator = body | {"user_id": alice.user_id}
        assert refusal_of(client.post("/accounts", json=body_of_operator, headers=AS_OPERATOR))[1] == "account-exists"
    assert rows(COUNT) == [(3,)]
    for body in ({"currency": "USD", "label": "savings"}, {"currency": "EUR", "label": "Savings"}):
        answer_of(client.post("/accounts", json=body, headers=alice.headers))
    answer_of(client.post("/accounts", json=savings, headers=bob.headers))


@pytest.mark.parametrize("label", ["", "x" * 51, "two\nlines", "a\u0000b", "\u202eabc", 7, None])
def test_a_label_that_is_wrong_is_refused(client: TestClient, rows: Rows, label: Any) -> None:
    alice = register(client)

    refused = client.post("/accounts", json={"currency": "USD", "label": label}, headers=alice.headers)

    assert fields_of(refused) == ["body.label"]
    assert rows(COUNT) == [(1,)]


def test_the_operator_opens_an_account_for_a_user(client: TestClient) -> None:
    alice = register(client)
    body = {"currency": "EUR", "label": "bonus", "user_id": alice.user_id}

    opened = answer_of(client.post("/accounts", json=body, headers=AS_OPERATOR))

    assert (opened["user_id"], opened["label"]) == (alice.user_id, "bonus")
    deposit(client, opened["id"], 70)
    assert client.get("/accounts", headers=alice.headers).json()["items"][1]["balance"] == 70


def test_the_operator_names_an_active_user(client: TestClient, rows: Rows) -> None:
    alice = register(client)
    for body in ({}, {"user_id": None}, {"user_id": 0}, {"user_id": "1"}):
        refused = client.post("/accounts", json={"currency": "USD", **body}, headers=AS_OPERATOR)
        assert fields_of(refused) == ["body.user_id"], body

    missing = client.post("/accounts", json={"currency": "USD", "user_id": 999_999}, headers=AS_OPERATOR)
    assert refusal_of(missing) == (404, "user-not-found")
    for status in ("suspended", "closed"):
        client.patch(f"/users/{alice.user_id}", json={"status": status}, headers=AS_OPERATOR)
        refused = client.post("/accounts", json={"currency": "USD", "user_id": alice.user_id}, headers=AS_OPERATOR)
        assert refusal_of(refused) == (403, "user-not-active")
    assert rows(COUNT) == [(1,)]


def test_a_user_opens_accounts_for_nobody_else(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)

    for user_id in (bob.user_id, 999_999):
        refused = client.post("/accounts", json={"currency": "USD", "user_id": user_id}, headers=alice.headers)
        assert refusal_of(refused) == (403, "operator-only")
    assert rows(COUNT) == [(2,)]
    own = client.post("/accounts", json={"currency": "USD", "user_id": alice.user_id}, headers=alice.headers)
    assert answer_of(own)["user_id"] == alice.user_id


def test_a_user_has_at_most_100_accounts(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    for number in range(crud.ACCOUNT_LIMIT - 1):
        answer_of(client.post("/accounts", json={"currency": "EUR", "label": f"{number}"}, headers=alice.headers))

    for headers, body in ((alice.headers, {}), (AS_OPERATOR, {"user_id": alice.user_id})):
        refused = client.post("/accounts", json={"currency": "USD", **body}, headers=headers)
        assert refusal_of(refused) == (409, "account-limit")
        existing = client.post("/accounts", json={"currency": "EUR", **body}, headers=headers)
        assert refusal_of(existing) == (409, "account-exists")
    answer_of(client.post("/accounts", json={"currency": "USD"}, headers=bob.headers))
    assert rows(f"{COUNT} WHERE user_id = {alice.user_id}") == [(100,)]


async def test_within_one_batch_the_first_get_the_places_that_are_left(database: Database, rows: Rows) -> None:
    await register_one(database, rows)
    await database.write(crud.open_accounts, [opening(number) for number in range(97)])

    outcomes = await database.write(
        crud.open_accounts, [opening(97), opening(0), opening(97), opening(98), opening(5, user_id=9), opening(99)]
    )

    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [AccountPublic, AccountExists, AccountExists, AccountPublic, UserNotFound, AccountLimit]
    assert rows(COUNT) == [(100,)]


async def test_two_processes_that_open_accounts_at_once_open_100_in_all(
    settings: Settings, database: Database, rows: Rows
) -> None:
    await register_one(database, rows)
    await database.write(crud.open_accounts, [opening(number) for number in range(89)])
    others = [Operations(Database(settings), settings) for _ in range(2)]

    # So that their transactions overlap, in calls of their own; both want the same labels as well.
    outcomes = await asyncio.gather(
        *(each.write(crud.open_accounts, opening(number)) for number, each in product(range(89, 119), others)),
        return_exceptions=True,
    )

    for each in others:
        await each.close()
    opened = [outcome.label for outcome in outcomes if isinstance(outcome, AccountPublic)]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, AccountPublic)]
    assert len(opened) == len({*opened}) == 10
    assert {type(outcome) for outcome in refused} <= {AccountExists, AccountLimit}
    assert rows(COUNT) == [(100,)]


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_the_last_place_is_counted_after_the_lock_without_keeping_money_from_moving(
    settings: Settings, database: Database, rows: Rows
) -> None:
    await register_one(database, rows)
    await database.write(crud.open_accounts, [opening(number) for number in range(98)])
    other = Database(settings)
    async with database.engine.begin() as connection:
        # As open_accounts of another process locks the user, and counts.
        await connection.exec_driver_sql("SELECT FROM users WHERE id = 1 FOR NO KEY UPDATE")
        late = asyncio.create_task(other.write(crud.open_accounts, [opening(99)]))
        # A row that refers to the user can be inserted meanwhile: nobody waits who opens no account.
        async with asyncio.timeout(5):
            await connection.exec_driver_sql(
                "INSERT INTO accounts (user_id, currency, balance, version) VALUES (1, 'USD', 0, 0)"
            )
            await other.write(crud.revoke_users_tokens, [crud.RevocationOfAll(1)])
        await asyncio.sleep(0.2)
        assert not late.done()

    assert [type(outcome) for outcome in await late] == [AccountLimit]
    assert rows(COUNT) == [(100,)]
    await other.close()
