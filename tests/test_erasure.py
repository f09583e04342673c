"""The erasure of a closed user's personal data: nothing of the person is left, and nothing of the money is lost."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlmodel import SQLModel
from starlette.testclient import TestClient

import crud
from tests.support.accounts import cash, deposit, register_all
from tests.support.holds import hold
from tests.support.problems import assert_problem
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import set_status

KEY = "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"
PERSONAL = {"phone_number": "+4915112345678", "reference": "customer-of-anna", "metadata": {"called": "Anna"}}


def change(client: TestClient, user_id: int, **fields: Any) -> Any:
    return client.patch(f"/users/{user_id}", json=fields, headers=AS_OPERATOR)


def erase(client: TestClient, user_id: int) -> Any:
    return client.post(f"/users/{user_id}/erasure", headers=AS_OPERATOR)


def everything(rows: Rows) -> Iterator[str]:
    """The text of every value in the database."""
    for table in SQLModel.metadata.sorted_tables:
        for row in rows(f"SELECT * FROM {table.name}"):
            yield from map(str, row)


@pytest.fixture
def anna(client: TestClient) -> int:
    """A user with all personal data that there can be, and a transfer, who is closed."""
    sent = {**named("anna"), "email": "anna@example.com"}
    answer = client.post("/register", json=sent, headers={"Idempotency-Key": KEY}).json()
    id: int = answer["user"]["id"]
    assert change(client, id, **PERSONAL).status_code == 200
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    assert client.post("/tokens", json={"name": "Anna's phone"}, headers=headers).status_code == 201
    deposit(client, 1, 100)
    assert client.post("/withdrawals", json=cash(1, 100), headers=AS_OPERATOR).status_code == 201
    assert change(client, id, status="closed").status_code == 200
    return id


def test_nothing_of_the_person_is_left_and_all_of_the_money(client: TestClient, rows: Rows, anna: int) -> None:
    money = [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("accounts", "transfers", "entries")]

    erased = erase(client, anna).json()

    assert not [text for text in everything(rows) if re.search("anna|4915112345678", text, re.IGNORECASE)]
    assert erased == client.get(f"/users/{anna}", headers=AS_OPERATOR).json()
    assert {**erased, "created_at": ""} == {
        "id": anna,
        "username": f"erased {anna}",
        "email": f"erased-{anna}@erased.invalid",
        "phone_number": None,
        "status": "closed",
        "created_at": "",
        "reference": None,
        "metadata": None,
    }
    assert rows("SELECT registration_key_hash, registration_content_hash FROM users") == [(None, None)]
    assert [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("accounts", "transfers", "entries")] == money


def test_the_name_the_reference_and_the_key_are_free_again(client: TestClient, anna: int) -> None:
    erase(client, anna)

    again = client.post("/register", json=named("anna"), headers={"Idempotency-Key": KEY})

    assert again.status_code == 201
    assert again.json()["user"]["id"] != anna
    assert change(client, again.json()["user"]["id"], reference=PERSONAL["reference"]).status_code == 200


def test_it_is_done_and_recorded_once(client: TestClient, rows: Rows, anna: int) -> None:
    assert erase(client, anna).json() == erase(client, anna).json()

    assert rows("SELECT user_id FROM operator_actions WHERE action = 'user.erase'") == [(anna,)]


@pytest.mark.parametrize(
    "fields", [{"status": "active"}, {"email": "anna@example.com"}, {"reference": "again"}, {"status": "closed"}]
)
def test_an_erased_user_stays_as_it_is(client: TestClient, anna: int, fields: dict[str, str]) -> None:
    erased = erase(client, anna).json()

    assert_problem(change(client, anna, **fields), 409, "user-erased")
    assert client.get(f"/users/{anna}", headers=AS_OPERATOR).json() == erased


def test_who_is_not_closed_or_has_money_or_holds_is_not_erased(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=100)
    hold(client, carol, bob, 100)
    before = rows("SELECT * FROM users ORDER BY id")

    assert_problem(erase(client, bob.user_id), 409, "user-not-closed")
    change(client, bob.user_id, status="suspended")
    assert_problem(erase(client, bob.user_id), 409, "user-not-closed")
    for holder in (alice, carol):
        set_status(client, holder, "closed")
        assert_problem(erase(client, holder.user_id), 409, "balance-not-zero")
    assert_problem(erase(client, 99), 404, "user-not-found")
    assert_problem(client.post(f"/users/{alice.user_id}/erasure", headers=bob.headers), 403, "user-not-active")
    assert rows("SELECT * FROM users ORDER BY id") == before


async def test_of_a_batch_each_is_judged_for_itself(client: TestClient, database: Any, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=0, bob=0, carol=0)
    for holder in (alice, carol):
        set_status(client, holder, "closed")

    ids = (carol.user_id, bob.user_id, alice.user_id, carol.user_id)
    outcomes = await database.write(crud.erase_users, [crud.Erasure(id) for id in ids])

    names = [getattr(outcome, "username", type(outcome).__name__) for outcome in outcomes]
    erased = [f"erased {carol.user_id}", "UserNotClosed", f"erased {alice.user_id}", f"erased {carol.user_id}"]
    assert names == erased
    assert rows("SELECT username FROM users ORDER BY id") == [(names[2],), ("bob",), (names[0],)]
