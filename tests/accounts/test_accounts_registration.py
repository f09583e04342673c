"""Accounts: registration; currencies; opening; who sees what; statements."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.accounts import (
    NO_ROW_HAS,
    Headers,
    answer_of,
    balance,
    deposit,
    fields_of,
    order,
    refusal_of,
    register,
    register_all,
    send,
    statement,
    walk,
)
from tests.support.problems import without_id
from tests.support.registration import CURSED, count, named
from tests.support.service import AS_OPERATOR, Rows


@pytest.fixture
def own_currencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Currencies of the operator's own; to be set before the service starts."""
    monkeypatch.setenv("CUSTOM_CURRENCIES", "POINTS,CREDITS:2")


@pytest.fixture
def points_by_default(monkeypatch: pytest.MonkeyPatch, own_currencies: None) -> None:
    monkeypatch.setenv("DEFAULT_CURRENCY", "POINTS")


CURSED_ACCOUNTS = {engine: sql.replace("profiles", "accounts") for engine, sql in CURSED.items()}
"""By engine: a trigger that refuses the accounts of users whose name begins with "cursed"."""


def count_four(rows: Rows) -> tuple[int, int, int, int]:
    """How many users, profiles, tokens and accounts the database holds."""
    return (*count(rows), rows("SELECT count(*) FROM accounts")[0][0])


def test_a_registration_opens_an_account_in_the_default_currency(client: TestClient, rows: Rows) -> None:
    user = client.post("/register", json=named("alice")).json()["user"]

    assert count_four(rows) == (1, 1, 1, 1)
    assert rows("SELECT user_id, currency, balance, version, updated_at FROM accounts") == [
        (user["id"], "EUR", 0, 0, None)
    ]


@pytest.mark.usefixtures("points_by_default")
def test_the_default_currency_may_be_the_operators_own(client: TestClient, rows: Rows) -> None:
    client.post("/register", json=named("alice"))
    client.post("/users/batch", json={"users": [named("bob")]}, headers=AS_OPERATOR)

    assert rows("SELECT currency FROM accounts") == [("POINTS",)] * 2


def test_a_batch_of_registrations_opens_an_account_for_each(client: TestClient, rows: Rows) -> None:
    users = [named("alice"), named("bob"), named("carol")]

    answer = client.post("/users/batch", json={"users": users}, headers=AS_OPERATOR).json()

    assert count_four(rows) == (3, 3, 3, 3)
    assert rows("SELECT user_id, currency, balance FROM accounts ORDER BY user_id") == [
        (result["user"]["id"], "EUR", 0) for result in answer["results"]
    ]


def test_an_account_that_cannot_be_opened_leaves_no_user_behind(client: TestClient, rows: Rows, engine: str) -> None:
    rows(CURSED_ACCOUNTS[engine])

    refused = client.post("/register", json=named("cursed"))

    assert refusal_of(refused) == (500, "internal-error")
    assert count_four(rows) == (0, 0, 0, 0)


def test_in_a_batch_an_account_that_cannot_be_opened_harms_no_other_user(
    client: TestClient, rows: Rows, engine: str
) -> None:
    rows(CURSED_ACCOUNTS[engine])
    batch = {"users": [named("alice"), named("cursed"), named("bob")]}

    rolled_back = client.post("/users/batch", json=batch, headers=AS_OPERATOR)
    assert refusal_of(rolled_back) == (500, "internal-error")
    assert count_four(rows) == (0, 0, 0, 0)

    continued = client.post("/users/batch", json=batch | {"on_error": "continue"}, headers=AS_OPERATOR).json()
    assert [result["status"] for result in continued["results"]] == ["created", "refused", "created"]
    assert count_four(rows) == (2, 2, 2, 2)


@pytest.mark.usefixtures("own_currencies")
def test_each_currency_is_listed_once_in_order_with_its_decimals(client: TestClient) -> None:
    currencies = walk(client, "/currencies", {}, limit=200)

    decimals = {currency["code"]: currency["decimals"] for currency in currencies}
    assert [currency["code"] for currency in currencies] == sorted(decimals)
    assert len(decimals) > 150
    expected = {"EUR": 2, "JPY": 0, "BHD": 3, "POINTS": 0, "CREDITS": 2}
    assert {code: decimals[code] for code in expected} == expected
    # Gold, testing, no currency.
    assert decimals.keys().isdisjoint({"XAU", "XTS", "XXX"})
    for limit in (7, 50):
        assert walk(client, "/currencies", {}, limit) == currencies


def test_a_user_opens_one_account_in_a_currency(client: TestClient, rows: Rows) -> None:
    alice = register(client)

    opened = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=alice.headers))

    assert opened == {
        "id": opened["id"],
        "user_id": alice.user_id,
        "currency": "USD",
        "balance": 0,
        "label": "main",
        "held": 0,
        "credit_limit": 0,
        "version": 0,
        "available": 0,
    }
    assert rows("SELECT id, user_id, currency, balance, version FROM accounts ORDER BY id") == [
        (alice.account_id, alice.user_id, "EUR", 0, 0),
        (opened["id"], alice.user_id, "USD", 0, 0),
    ]
    for currency in ("USD", "EUR"):
        again = client.post("/accounts", json={"currency": currency}, headers=alice.headers)
        assert refusal_of(again) == (409, "account-exists")
    assert count_four(rows) == (1, 1, 1, 2)


def test_a_currency_that_there_is_not_is_refused(client: TestClient, rows: Rows) -> None:
    alice = register(client)
    unknown = ["XAU", "XXX", "ABC", "POINTS", "EUROS", "123"]
    invalid = ["eur", "EU", "", "EUR ", "EÜR", "ＥＵＲ", "EUR\n", "A" * 13, 978, None, ["EUR"]]

    for code in unknown + invalid:
        refused = client.post("/accounts", json={"currency": code}, headers=alice.headers)
        problem = "currency-unknown" if code in unknown else "invalid-request"
        assert refusal_of(refused) == (422, problem), code
        assert fields_of(refused) == ["body.currency"], code
    assert fields_of(client.post("/accounts", json={}, headers=alice.headers)) == ["body.currency"]
    extra = client.post("/accounts", json={"currency": "USD", "balance": 5}, headers=alice.headers)
    assert fields_of(extra) == ["body.balance"]
    assert count_four(rows) == (1, 1, 1, 1)


@pytest.mark.usefixtures("own_currencies")
def test_money_of_the_operators_own_currencies_moves_as_any(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    for currency in ("POINTS", "CREDITS"):
        sender, receiver = (
            answer_of(client.post("/accounts", json={"currency": currency}, headers=holder.headers))["id"]
            for holder in (alice, bob)
        )
        assert deposit(client, sender, 100)["currency"] == currency

        moved = answer_of(client.post("/transfers", json=order(sender, receiver, 30), headers=alice.headers))

        assert (moved["currency"], moved["debit_balance_after"]) == (currency, 70)
        assert (balance(rows, sender), balance(rows, receiver)) == (70, 30)


def test_a_user_lists_its_own_accounts_and_the_operator_all(client: TestClient) -> None:
    alice, bob = register_all(client, alice=500, bob=0)
    dollars = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=bob.headers))

    def listed(headers: Headers, **filters: Any) -> list[tuple[Any, ...]]:
        page = client.get("/accounts", params=filters, headers=headers).json()
        return [(each["id"], each["user_id"], each["currency"], each["balance"]) for each in page["items"]]

    alices = [(alice.account_id, alice.user_id, "EUR", 500)]
    bobs = [(bob.account_id, bob.user_id, "EUR", 0), (dollars["id"], bob.user_id, "USD", 0)]
    everything = listed(AS_OPERATOR)
    [system] = [account for account in everything if account[1] is None]
    assert system[2:] == ("EUR", -500)
    assert everything == sorted([*alices, *bobs, system])
    assert listed(AS_OPERATOR, user_id=bob.user_id) == bobs
    assert listed(AS_OPERATOR, user_id=999_999) == []
    assert listed(alice.headers) == alices
    # The filter is the operator's, and shows a user nothing else.
    assert listed(alice.headers, user_id=bob.user_id) == alices


def test_the_pages_of_accounts_have_each_once(client: TestClient) -> None:
    alice = register(client)
    for currency in ("USD", "CHF", "JPY", "BHD"):
        client.post("/accounts", json={"currency": currency}, headers=alice.headers)
    register(client, "bob")

    for headers, codes in (
        (alice.headers, ["EUR", "USD", "CHF", "JPY", "BHD"]),
        (AS_OPERATOR, ["EUR", "USD", "CHF", "JPY", "BHD", "EUR"]),
    ):
        for limit in (2, 5, 200):
            assert [account["currency"] for account in walk(client, "/accounts", headers, limit)] == codes


def test_an_account_of_someone_else_is_as_one_that_there_is_not(client: TestClient) -> None:
    alice, bob = register_all(client, alice=500, bob=0)

    for path in ("/accounts/{}", "/accounts/{}/entries", "/accounts/{}?at=2026-01-01T00:00:00Z"):
        missing = client.get(path.format(999_999), headers=bob.headers)
        assert refusal_of(missing) == (404, "account-not-found")
        others = client.get(path.format(alice.account_id), headers=bob.headers)
        assert (others.status_code, without_id(others)) == (404, without_id(missing)), path
        assert client.get(path.format(999_999), headers=AS_OPERATOR).status_code == 404
        for headers in (alice.headers, AS_OPERATOR):
            assert client.get(path.format(alice.account_id), headers=headers).status_code == 200, path


def test_the_operator_and_the_owner_see_the_same_account(client: TestClient) -> None:
    alice = register(client, funds=500)

    shown = client.get(f"/accounts/{alice.account_id}", headers=alice.headers).json()

    assert shown == {
        "id": alice.account_id,
        "user_id": alice.user_id,
        "currency": "EUR",
        "balance": 500,
        "label": "main",
        "held": 0,
        "credit_limit": 0,
        "version": 1,
        "available": 500,
    }
    assert client.get(f"/accounts/{alice.account_id}", headers=AS_OPERATOR).json() == shown


def test_an_id_that_no_account_can_have_is_refused(client: TestClient) -> None:
    for id in NO_ROW_HAS:
        for path in (f"/accounts/{id}", f"/accounts/{id}/entries"):
            assert fields_of(client.get(path, headers=AS_OPERATOR)) == ["path.id"], path
        assert fields_of(client.get(f"/accounts?user_id={id}", headers=AS_OPERATOR)) == ["query.user_id"]


def test_a_statement_tells_newest_first_what_came_and_went(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    assert statement(client, alice) == []
    salary = deposit(client, alice.account_id, 1000, memo="salary")
    rent = send(client, alice, bob, 300, memo="rent")
    back = answer_of(client.post(f"/transfers/{rent['id']}/reversal", headers=bob.headers))

    entries = statement(client, alice)

    [(system_id,)] = rows("SELECT id FROM accounts WHERE user_id IS NULL")
    assert entries == [
        {
            "seq": seq,
            "amount": amount,
            "balance_after": balance_after,
            "transfer_id": transfer["id"],
            "reverses_id": reverses_id,
            "counterparty_account_id": counterparty,
            "memo": memo,
            "created_at": transfer["created_at"],
        }
        for seq, amount, balance_after, transfer, reverses_id, counterparty, memo in (
            (3, 300, 1000, back, rent["id"], bob.account_id, None),
            (2, -300, 700, rent, None, bob.account_id, "rent"),
            (1, 1000, 1000, salary, None, system_id, "salary"),
        )
    ]
    assert [entry["balance_after"] for entry in statement(client, bob)] == [0, 300]
    operators = client.get(f"/accounts/{alice.account_id}/entries", headers=AS_OPERATOR)
    assert operators.json() == {"items": entries, "next": None}
    assert rows(f"SELECT seq, amount FROM entries WHERE account_id = {alice.account_id} ORDER BY seq") == [
        (1, 1000),
        (2, -300),
        (3, 300),
    ]


def test_the_pages_of_a_statement_have_each_entry_once_while_more_are_made(client: TestClient) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    batch = {"transfers": [order(alice.account_id, bob.account_id, amount) for amount in range(1, 6)]}
    client.post("/transfers/batch", json=batch, headers=alice.headers)
    path = f"/accounts/{alice.account_id}/entries"

    for limit in (2, 3):
        before = walk(client, path, alice.headers, limit=200)
        seen = []
        query: dict[str, Any] = {"limit": limit}
        for _ in before:
            page = client.get(path, params=query, headers=alice.headers).json()
            seen += page["items"]
            deposit(client, alice.account_id, 1)
            if page["next"] is None:
                break
            query["after"] = page["next"]
        assert seen == before
        assert [entry["seq"] for entry in seen] == list(range(len(before), 0, -1))
    for limit in (1, 200):
        assert [entry["seq"] for entry in walk(client, path, alice.headers, limit)] == list(
            range(len(before) + 3, 0, -1)
        )


def test_a_statements_query_that_is_wrong_is_named(client: TestClient) -> None:
    alice = register(client)

    for query in ("limit=0", "limit=201", "limit=x", "after=x", "after=LTE", "after="):
        refused = client.get(f"/accounts/{alice.account_id}/entries?{query}", headers=alice.headers)
        assert fields_of(refused) == [f"query.{query.partition('=')[0]}"], query
