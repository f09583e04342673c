"""Accounts, currencies and statements: what a user holds, and how it came to be."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
from conftest import AS_OPERATOR, Rows, noting_statements
from httpx2 import Client, Response
from starlette.testclient import TestClient
from test_registration import CURSED, count, named

import crud
from db.database import Database
from ledger import OPERATOR, Order

Headers = dict[str, str]

NO_ROW_HAS = ["0", "-1", str(2**63), "x", "1.5"]
"""Ids that no row can have."""


class Holder(NamedTuple):
    """A user, its first account, and the header that speaks for it."""

    user_id: int
    account_id: int
    headers: Headers


def register(client: Client, username: str = "alice", funds: int = 0) -> Holder:
    """A new user, with this much in its account."""
    [holder] = register_all(client, **{username: funds})
    return holder


def register_all(client: Client, **funds: int) -> list[Holder]:
    """New users, each with this much in its account."""
    batch = {"users": [named(username) for username in funds]}
    results = client.post("/users/batch", json=batch, headers=AS_OPERATOR).json()["results"]
    accounts = walk(client, "/accounts", AS_OPERATOR, limit=200)
    account_ids = {account["user_id"]: account["id"] for account in accounts}
    holders = [
        Holder(user_id, account_ids[user_id], {"Authorization": f"Bearer {result['access_token']}"})
        for result in results
        for user_id in [result["user"]["id"]]
    ]
    for holder, amount in zip(holders, funds.values(), strict=True):
        if amount:
            deposit(client, holder.account_id, amount)
    return holders


def deposit(client: Client, account_id: int, amount: int, **fields: Any) -> dict[str, Any]:
    """Pay this much in, as the operator; the transfer that it was."""
    return answer_of(client.post("/deposits", json=cash(account_id, amount, **fields), headers=AS_OPERATOR))


def send(client: TestClient, sender: Holder, receiver: Holder, amount: int, **fields: Any) -> dict[str, Any]:
    """Transfer this much between first accounts, as the sender; the transfer that it was."""
    body = order(sender.account_id, receiver.account_id, amount, **fields)
    return answer_of(client.post("/transfers", json=body, headers=sender.headers))


def answer_of(response: Response) -> dict[str, Any]:
    """The body of a 201."""
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def cash(account_id: int, amount: Any, **fields: Any) -> dict[str, Any]:
    return {"account_id": account_id, "amount": amount, **fields}


def order(debit_account_id: int, credit_account_id: int, amount: Any, **fields: Any) -> dict[str, Any]:
    return {"debit_account_id": debit_account_id, "credit_account_id": credit_account_id, "amount": amount, **fields}


def refusal_of(response: Response) -> tuple[int, str]:
    """The status and type of a problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    return response.status_code, problem["type"].removeprefix("/problems/")


def fields_of(response: Response) -> list[str]:
    """The fields that a 422 names."""
    assert response.status_code == 422, response.text
    return [error["field"] for error in response.json()["errors"]]


def books(rows: Rows) -> list[list[tuple[Any, ...]]]:
    """All that the database knows of money."""
    return [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("accounts", "transfers", "entries")]


def balance(rows: Rows, account_id: int) -> int:
    [(balance,)] = rows(f"SELECT balance FROM accounts WHERE id = {account_id}")
    assert isinstance(balance, int)
    return balance


def walk(client: Client, path: str, headers: Headers, limit: int) -> list[Any]:
    """All items of a list, page by page."""
    seen: list[Any] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = client.get(path, params=query, headers=headers).json()
        assert len(page["items"]) == limit or page["next"] is None
        seen += page["items"]
        if page["next"] is None:
            return seen
        query["after"] = page["next"]


@pytest.fixture
def own_currencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Currencies of the operator's own; to be set before the service starts."""
    monkeypatch.setenv("CUSTOM_CURRENCIES", "POINTS,CREDITS:2")


@pytest.fixture
def points_by_default(monkeypatch: pytest.MonkeyPatch, own_currencies: None) -> None:
    monkeypatch.setenv("DEFAULT_CURRENCY", "POINTS")


# --- registration -----------------------------------------------------------------------------------------------------

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


# --- currencies -------------------------------------------------------------------------------------------------------


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


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_user_opens_one_account_in_a_currency(client: TestClient, rows: Rows) -> None:
    alice = register(client)

    opened = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=alice.headers))

    assert opened == {
        "id": opened["id"],
        "user_id": alice.user_id,
        "currency": "USD",
        "balance": 0,
        "version": 0,
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


def test_the_operator_has_no_accounts_of_its_own(client: TestClient, rows: Rows) -> None:
    refused = client.post("/accounts", json={"currency": "USD"}, headers=AS_OPERATOR)

    assert refusal_of(refused) == (403, "user-only")
    assert rows("SELECT id FROM accounts") == []


# --- who sees what ----------------------------------------------------------------------------------------------------


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
        assert (others.status_code, others.json()) == (404, missing.json()), path
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
        "version": 1,
    }
    assert client.get(f"/accounts/{alice.account_id}", headers=AS_OPERATOR).json() == shown


def test_an_id_that_no_account_can_have_is_refused(client: TestClient) -> None:
    for id in NO_ROW_HAS:
        for path in (f"/accounts/{id}", f"/accounts/{id}/entries"):
            assert fields_of(client.get(path, headers=AS_OPERATOR)) == ["path.id"], path
        assert fields_of(client.get(f"/accounts?user_id={id}", headers=AS_OPERATOR)) == ["query.user_id"]


def test_accounts_are_shown_to_nobody_without_a_token(client: TestClient) -> None:
    alice = register(client)

    for path in ("/accounts", f"/accounts/{alice.account_id}", f"/accounts/{alice.account_id}/entries"):
        assert refusal_of(client.get(path)) == (401, "unauthenticated"), path
    assert refusal_of(client.post("/accounts", json={"currency": "USD"})) == (401, "unauthenticated")


# --- statements -------------------------------------------------------------------------------------------------------


def statement(client: TestClient, holder: Holder, **query: Any) -> list[dict[str, Any]]:
    page = client.get(f"/accounts/{holder.account_id}/entries", params=query, headers=holder.headers).json()
    items: list[dict[str, Any]] = page["items"]
    return items


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


# --- the balance at an instant ----------------------------------------------------------------------------------------

MICROSECOND = timedelta(microseconds=1)
BOTH = timezone(timedelta(hours=2)), timezone(timedelta(hours=-9, minutes=-30))


def at(client: TestClient, holder: Holder, instant: datetime | str) -> tuple[int, int]:
    """Balance and version of an account at an instant."""
    text = instant.isoformat() if isinstance(instant, datetime) else instant
    response = client.get(f"/accounts/{holder.account_id}", params={"at": text}, headers=holder.headers)
    assert response.status_code == 200, response.text
    account = response.json()
    assert (account["id"], account["user_id"], account["currency"]) == (holder.account_id, holder.user_id, "EUR")
    return account["balance"], account["version"]


def instant_of(transfer: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(transfer["created_at"])


def test_the_balance_at_an_instant_counts_what_was_entered_until_then(client: TestClient) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    first = instant_of(deposit(client, alice.account_id, 1000))
    second = instant_of(send(client, alice, bob, 300))
    third = instant_of(deposit(client, alice.account_id, 5))
    assert first < second < third

    assert at(client, alice, "0001-01-01T00:00:00Z") == (0, 0)
    assert at(client, alice, first - MICROSECOND) == (0, 0)
    assert at(client, alice, first) == (1000, 1)
    assert at(client, alice, first + (second - first) / 2) == (1000, 1)
    assert at(client, alice, second - MICROSECOND) == (1000, 1)
    assert at(client, alice, second) == (700, 2)
    assert at(client, alice, third) == (705, 3)
    assert at(client, alice, third + timedelta(days=1)) == (705, 3)
    assert at(client, alice, "9999-12-31T23:59:59Z") == (705, 3)
    assert at(client, bob, second - MICROSECOND) == (0, 0)
    assert at(client, bob, third) == (300, 1)


def test_an_instant_is_the_same_in_every_offset(client: TestClient) -> None:
    alice = register(client)
    first = instant_of(deposit(client, alice.account_id, 1000))
    deposit(client, alice.account_id, 5)

    for offset in BOTH:
        assert at(client, alice, first.astimezone(offset)) == (1000, 1)
        assert at(client, alice, (first - MICROSECOND).astimezone(offset)) == (0, 0)
    utc = first.astimezone(UTC).replace(tzinfo=None).isoformat()
    for spelling in (f"{utc}Z", f"{utc.lower()}z", f"{utc}-00:00"):
        assert at(client, alice, spelling) == (1000, 1)
    encoded = first.astimezone(BOTH[0]).isoformat().replace("+", "%2B")
    account = client.get(f"/accounts/{alice.account_id}?at={encoded}", headers=alice.headers).json()
    assert account["balance"] == 1000


def test_an_instant_that_is_none_is_refused(client: TestClient) -> None:
    alice = register(client)
    wrong = [
        "2026-11-23T09:00:00",
        "2026-11-23T09:00Z",
        "2026-11-23",
        "1795424400",
        "1795424400.5",
        "now",
        "",
        # Before the year 1 in UTC, and after 9999.
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "0000-01-01T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T09:60:00Z",
        "2026-11-23T09:00:60Z",
        "2026-02-30T09:00:00Z",
        "2026-11-23T09:00:00+24:00",
        "2026-11-23T09:00:00+0200",
        "2026-W48-1T09:00:00Z",
        "20261123T090000Z",
        "２０２６-11-23T09:00:00Z",
        "2026-11-23T09:00:00Z\x00",
    ]

    for instant in wrong:
        refused = client.get(f"/accounts/{alice.account_id}", params={"at": instant}, headers=alice.headers)
        assert fields_of(refused) == ["query.at"], instant


def test_of_entries_at_one_instant_the_last_counts(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    batch = {"transfers": [order(alice.account_id, bob.account_id, amount) for amount in (500, 1, 2, 3, 400)]}

    results = client.post("/transfers/batch", json=batch, headers=alice.headers).json()["results"]

    [instant] = {result["transfer"]["created_at"] for result in results}
    assert at(client, alice, instant) == (94, 6)
    assert at(client, bob, instant) == (906, 5)
    assert at(client, alice, datetime.fromisoformat(instant) - MICROSECOND) == (1000, 1)


def test_an_entry_is_never_older_than_the_one_before_even_after_a_fast_clock(
    client: TestClient, rows: Rows, engine: str
) -> None:
    alice, bob, carol = register_all(client, alice=1000, bob=0, carol=0)
    future = datetime.now(UTC).replace(microsecond=0) + timedelta(days=365)
    written = f"'{future:%Y-%m-%d %H:%M:%S}.000000{'+00' if engine == 'postgresql' else ''}'"
    rows(f"UPDATE entries SET created_at = {written} WHERE account_id = {alice.account_id}")
    rows(f"UPDATE accounts SET updated_at = {written} WHERE id = {alice.account_id}")

    send(client, alice, bob, 300)
    send(client, bob, carol, 100)
    deposit(client, carol.account_id, 1)

    for holder, expected in ((alice, (700, 2)), (bob, (200, 2)), (carol, (101, 2))):
        assert at(client, holder, future) == expected
        newer, older = statement(client, holder)
        assert instant_of(newer) >= instant_of(older)
        assert at(client, holder, newer["created_at"]) == expected
        assert at(client, holder, future - MICROSECOND) == (0, 0)


# --- query plans ------------------------------------------------------------------------------------------------------

MANY_ROWS = {
    "sqlite": """
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000)
        INSERT INTO {table} ({columns})
        SELECT {values} FROM numbers
    """,
    "postgresql": "INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series(1, 10000) AS numbers (n)",
}
"""By engine: 10,000 rows; n counts them."""
MOMENT = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', '2026-01-01', '+' || n || ' seconds')",
    "postgresql": "timestamptz '2026-01-01 00:00:00+00' + n * interval '1 second'",
}
"""By engine: one second later for each row."""


def insert_many(rows: Rows, engine: str, table: str, **values: Any) -> None:
    """Insert 10,000 rows; the values are SQL, in which n counts them."""
    columns = {name: str(value) for name, value in values.items()}
    rows(MANY_ROWS[engine].format(table=table, columns=", ".join(columns), values=", ".join(columns.values())))


def fill(rows: Rows, engine: str, debit_account_id: int, credit_account_id: int) -> None:
    """Give each of the two accounts 10,000 entries, a second apart."""
    insert_many(
        rows,
        engine,
        "transfers",
        id="1000 + n",
        debit_account_id=debit_account_id,
        credit_account_id=credit_account_id,
        currency="'EUR'",
        amount=1,
        initiator=0,
        created_at=MOMENT[engine],
    )
    for account_id, amount in ((debit_account_id, -1), (credit_account_id, 1)):
        insert_many(
            rows,
            engine,
            "entries",
            account_id=account_id,
            seq="n",
            transfer_id="1000 + n",
            amount=amount,
            balance_after=f"n * {amount}",
            created_at=MOMENT[engine],
        )
    rows("ANALYZE")


async def plan_of(database: Database, sql: str, parameters: Any) -> str:
    """How the engine runs a statement."""
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    async with database.engine.connect() as connection:
        plan = await connection.exec_driver_sql(
            f"{explain} {sql}", tuple(parameters) if database.is_sqlite else parameters
        )
        return "\n".join(str(row[-1]) for row in plan)


async def plan_of_last_statement(database: Database, query: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """How the engine runs the last statement that a query of crud sends."""
    with noting_statements() as sent:
        await database.read(query, *args, **kwargs)
    sql, parameters = sent[-1]
    assert "FROM entries" in sql
    return await plan_of(database, sql, parameters)


@pytest.mark.wrong_books
async def test_balance_and_statement_are_read_from_an_index_without_sorting(
    client: TestClient, database: Database, rows: Rows, engine: str
) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    fill(rows, engine, alice.account_id, bob.account_id)
    instant = datetime(2026, 1, 1, 1, tzinfo=UTC)
    assert at(client, bob, instant) == (3600, 3600)
    assert [entry["seq"] for entry in statement(client, bob, limit=2)] == [10_000, 9_999]

    balance_plan = await plan_of_last_statement(database, crud.get_account_at, bob.account_id, OPERATOR, instant)
    statement_plan = await plan_of_last_statement(
        database, crud.list_entries, bob.account_id, OPERATOR, before=5000, limit=51
    )

    # Of SQLite's indexes, a primary key's has no name of its own; for PostgreSQL one of each kind.
    primary_key = {"sqlite": "sqlite_autoindex_entries_1", "postgresql": "pk_entries"}[engine]
    # The search for the balance is itself no table: whatever else is read from end to end is one.
    for plan in (balance_plan, statement_plan):
        assert re.search(rf"(SEARCH|Index Scan).* {primary_key}", plan), plan
        assert not re.search(r"Sort|Seq Scan|Bitmap|TEMP B-TREE|SCAN (?!search\b)", plan), plan
    conditions = [line for line in balance_plan.splitlines() if re.search("SEARCH entries|Index Cond", line)]
    assert len(conditions) == 3
    assert all("account_id" in condition for condition in conditions), balance_plan


@pytest.mark.wrong_books
def test_among_many_entries_the_newest_of_an_instant_or_before_is_found(
    client: TestClient, rows: Rows, engine: str
) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    fill(rows, engine, alice.account_id, bob.account_id)
    second, before_all = timedelta(seconds=1), datetime(2026, 1, 1, tzinfo=UTC)

    for number in (0, 1, 2, 3, 4, 5, 4095, 4096, 4097, 8191, 8192, 9999, 10_000):
        instant = before_all + number * second
        assert at(client, bob, instant) == (number, number)
        assert at(client, bob, instant + second - MICROSECOND) == (number, number)
    assert at(client, bob, before_all + 10_001 * second) == (10_000, 10_000)


# SQLite, which is never told to ANALYZE, goes by index anyway.
@pytest.mark.wrong_books
@pytest.mark.parametrize("engine", ["postgresql"])
async def test_a_transfer_finds_its_rows_by_index(
    client: TestClient, database: Database, rows: Rows, engine: str
) -> None:
    alice, bob, carol, dave = register_all(client, alice=1, bob=0, carol=0, dave=0)
    id = "1000 + n"
    moment = MOMENT[engine]
    insert_many(
        rows, engine, "users", id=id, username="'user' || n", email="'u' || n || '@example.com'", created_at=moment
    )
    insert_many(rows, engine, "profiles", user_id=id, status="'active'")
    insert_many(rows, engine, "accounts", id=id, user_id=id, currency="'EUR'", balance=0, version=0)
    fill(rows, engine, carol.account_id, dave.account_id)

    with noting_statements() as sent:
        orders = [Order(alice.user_id, alice.account_id, bob.account_id, 1, idempotency_key="key")]
        await database.write(crud.make_transfers, orders)

    statements = [(sql, parameters) for sql, parameters in sent if not sql.startswith("BEGIN")]
    assert [sql.split()[0] for sql, _ in statements] == ["SELECT", "SELECT", "SELECT", "INSERT", "INSERT", "UPDATE"]
    for sql, parameters in statements:
        plan = await plan_of(database, sql, parameters)
        assert not re.search(r"Seq Scan|Hash", plan), plan
