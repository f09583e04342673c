"""Transfers: deposits and withdrawals; transfers."""

from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError
from starlette.testclient import TestClient

import crud
from db.database import Database
from ledger import Order
from operations import Operations
from refusals import Conflict
from tests.support.accounts import (
    NO_ROW_HAS,
    Headers,
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
from tests.support.problems import without_id
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import MOST, system_account, try_transfer


def test_the_first_deposit_in_a_currency_opens_its_system_account(client: TestClient, rows: Rows) -> None:
    alice = register(client)
    dollars = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=alice.headers))["id"]
    assert rows("SELECT count(*) FROM accounts WHERE user_id IS NULL") == [(0,)]

    first = deposit(client, alice.account_id, 1000, memo="first")
    deposit(client, alice.account_id, 500)
    deposit(client, dollars, 7)

    system = system_account(rows)
    assert first == {
        "id": first["id"],
        "debit_account_id": system,
        "credit_account_id": alice.account_id,
        "currency": "EUR",
        "amount": 1000,
        "memo": "first",
        "reference": None,
        "metadata": None,
        "asked_amount": None,
        "reverses_id": None,
        "transaction_id": None,
        "hold_id": None,
        "created_at": first["created_at"],
        "debit_balance_after": -1000,
        "credit_balance_after": 1000,
    }
    assert rows("SELECT currency, balance, version FROM accounts WHERE user_id IS NULL ORDER BY currency") == [
        ("EUR", -1500, 2),
        ("USD", -7, 1),
    ]
    assert balance(rows, alice.account_id) == 1500
    shown = client.get(f"/accounts/{system}", headers=AS_OPERATOR).json()
    assert (shown["user_id"], shown["balance"]) == (None, -1500)


def test_a_withdrawal_pays_out_what_there_is_and_no_more(client: TestClient, rows: Rows) -> None:
    alice = register(client, funds=1000)

    paid = client.post("/withdrawals", json=cash(alice.account_id, 400), headers=AS_OPERATOR)

    assert answer_of(paid)["debit_balance_after"] == 600
    assert (balance(rows, alice.account_id), balance(rows, system_account(rows))) == (600, -600)
    before = books(rows)
    refused = client.post("/withdrawals", json=cash(alice.account_id, 601), headers=AS_OPERATOR)
    assert refusal_of(refused) == (409, "insufficient-funds")
    assert books(rows) == before
    answer_of(client.post("/withdrawals", json=cash(alice.account_id, 600), headers=AS_OPERATOR))
    assert (balance(rows, alice.account_id), balance(rows, system_account(rows))) == (0, 0)


def test_payments_are_the_operators_and_the_system_account_is_hidden(client: TestClient, rows: Rows) -> None:
    alice = register(client, funds=1000)
    system = system_account(rows)
    before = books(rows)

    for path in ("/deposits", "/withdrawals"):
        refused = client.post(path, json=cash(alice.account_id, 1), headers=alice.headers)
        assert refusal_of(refused) == (403, "operator-only")
        assert refusal_of(client.post(path, json=cash(alice.account_id, 1))) == (401, "unauthenticated")
    missing = try_transfer(client, alice.headers, alice.account_id, 999_999, 1)
    assert refusal_of(missing) == (404, "account-not-found")
    for debit, credit in ((alice.account_id, system), (system, alice.account_id), (system, system)):
        assert without_id(try_transfer(client, alice.headers, debit, credit, 1)) == without_id(missing)
    for path in (f"/accounts/{system}", f"/accounts/{system}/entries"):
        assert refusal_of(client.get(path, headers=alice.headers)) == (404, "account-not-found")
    assert books(rows) == before


def test_a_payment_that_cannot_be_made_stores_nothing(client: TestClient, rows: Rows) -> None:
    alice = register(client, funds=1000)
    before = books(rows)

    for path in ("/deposits", "/withdrawals"):

        def pay(account_id: Any, amount: Any = 1, path: str = path, **fields: Any) -> Response:
            return client.post(path, json=cash(account_id, amount, **fields), headers=AS_OPERATOR)

        assert refusal_of(pay(999_999)) == (404, "account-not-found")
        to_itself = pay(system_account(rows))
        assert refusal_of(to_itself) == (422, "same-account")
        assert fields_of(to_itself) == ["body.account_id"]
        for account_id in (0, 2**63, str(alice.account_id), None):
            assert fields_of(pay(account_id)) == ["body.account_id"]
        for amount in (0, -1, 1.5, "5", 2**53):
            assert fields_of(pay(alice.account_id, amount)) == ["body.amount"]
        assert fields_of(pay(alice.account_id, memo="x" * 201)) == ["body.memo"]
        assert fields_of(pay(alice.account_id, currency="EUR")) == ["body.currency"]
    assert books(rows) == before


def test_a_transfer_is_stored_whole(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=50)

    moved = send(client, alice, bob, 300, memo="房租 für Mai 🏠")

    assert moved == {
        "id": moved["id"],
        "debit_account_id": alice.account_id,
        "credit_account_id": bob.account_id,
        "currency": "EUR",
        "amount": 300,
        "memo": "房租 für Mai 🏠",
        "reference": None,
        "metadata": None,
        "asked_amount": None,
        "reverses_id": None,
        "transaction_id": None,
        "hold_id": None,
        "created_at": moved["created_at"],
        # What the receiver now has is none of the sender's business.
        "debit_balance_after": 700,
    }
    assert rows(
        "SELECT debit_account_id, credit_account_id, currency, amount, memo, reverses_id, initiator, idempotency_key"
        f" FROM transfers WHERE id = {moved['id']}"
    ) == [(alice.account_id, bob.account_id, "EUR", 300, "房租 für Mai 🏠", None, alice.user_id, None)]
    assert rows(
        "SELECT account_id, seq, amount, balance_after FROM entries"
        f" WHERE transfer_id = {moved['id']} ORDER BY account_id"
    ) == [(alice.account_id, 2, -300, 700), (bob.account_id, 2, 300, 350)]
    assert rows(
        "SELECT id, balance, version FROM accounts JOIN (SELECT account_id, max(created_at) AS newest FROM entries"
        " GROUP BY account_id) AS entered ON account_id = id AND newest = updated_at"
        " WHERE user_id IS NOT NULL ORDER BY id"
    ) == [(alice.account_id, 700, 2), (bob.account_id, 350, 2)]


def test_who_sees_which_balance_after_a_transfer(client: TestClient) -> None:
    alice, bob, eve = register_all(client, alice=1000, bob=0, eve=0)
    by_owner = send(client, alice, bob, 300)
    by_operator = answer_of(try_transfer(client, AS_OPERATOR, alice.account_id, bob.account_id, 100, memo="fee"))

    assert by_owner["debit_balance_after"] == 700
    assert "credit_balance_after" not in by_owner
    assert (by_operator["debit_balance_after"], by_operator["credit_balance_after"]) == (600, 400)
    for transfer in (by_owner, by_operator):
        shown = {name: value for name, value in transfer.items() if not name.endswith("balance_after")}
        for headers in (alice.headers, bob.headers, AS_OPERATOR):
            assert client.get(f"/transfers/{transfer['id']}", headers=headers).json() == shown
        stranger = client.get(f"/transfers/{transfer['id']}", headers=eve.headers)
        assert refusal_of(stranger) == (404, "transfer-not-found")
        assert without_id(stranger) == without_id(client.get("/transfers/999999", headers=eve.headers))


def test_a_transfer_that_is_not_asked_for_rightly_is_named_and_stores_nothing(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=MOST, bob=0)
    before = books(rows)
    good = order(alice.account_id, bob.account_id, 5)
    wrong: dict[str, list[Any]] = {
        "amount": [0, -1, 1.5, 5.0, "5", True, None, 2**53, 10**30],
        "debit_account_id": [0, 2**63, str(alice.account_id), True],
        "credit_account_id": [-1, 2**63, None, float(bob.account_id)],
        "memo": ["x" * 201, "a\nb", "a\x00b", "\x7f", 5],
        "currency": ["EUR"],
        "reverses_id": [1],
        "idempotency_key": ["in the header instead"],
    }

    for field, values in wrong.items():
        for value in values:
            refused = client.post("/transfers", json=good | {field: value}, headers=alice.headers)
            assert refusal_of(refused) == (422, "invalid-request"), (field, value)
            assert fields_of(refused) == [f"body.{field}"], (field, value)
    for missing in good:
        body = {name: value for name, value in good.items() if name != missing}
        assert fields_of(client.post("/transfers", json=body, headers=alice.headers)) == [f"body.{missing}"]
    for literal in ("1e999", '"\\ud800"'):
        content = f'{{"debit_account_id":{alice.account_id},"credit_account_id":{bob.account_id},"amount":{literal}}}'
        headers = alice.headers | {"Content-Type": "application/json"}
        assert fields_of(client.post("/transfers", content=content, headers=headers)) == ["body.amount"], literal
    for id in NO_ROW_HAS:
        assert fields_of(client.get(f"/transfers/{id}", headers=alice.headers)) == ["path.id"]
        assert fields_of(client.post(f"/transfers/{id}/reversal", headers=alice.headers)) == ["path.id"]
    assert books(rows) == before


def test_a_refused_transfer_stores_nothing(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=1000)
    dollars = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=bob.headers))["id"]
    mine, others = alice.account_id, bob.account_id
    before = books(rows)
    cases: list[tuple[Headers, int, int, int, int, str]] = [
        (alice.headers, mine, mine, 1, 422, "same-account"),
        (alice.headers, mine, dollars, 1, 422, "currency-mismatch"),
        (alice.headers, mine, others, 1001, 409, "insufficient-funds"),
        (alice.headers, mine, others, MOST, 409, "insufficient-funds"),
        (alice.headers, mine, 999_999, 1, 404, "account-not-found"),
        (alice.headers, 999_999, mine, 1, 404, "account-not-found"),
        # Someone else's account tells nothing of itself.
        (alice.headers, others, mine, 1, 404, "account-not-found"),
        (alice.headers, others, others, 1, 404, "account-not-found"),
        (alice.headers, dollars, mine, 1, 404, "account-not-found"),
        (AS_OPERATOR, mine, mine, 1, 422, "same-account"),
        (AS_OPERATOR, mine, dollars, 1, 422, "currency-mismatch"),
        (AS_OPERATOR, mine, others, 1001, 409, "insufficient-funds"),
        (AS_OPERATOR, mine, 999_999, 1, 404, "account-not-found"),
        (AS_OPERATOR, 999_999, 999_998, 1, 404, "account-not-found"),
    ]

    for headers, debit, credit, amount, status, problem in cases:
        refused = try_transfer(client, headers, debit, credit, amount)
        assert refusal_of(refused) == (status, problem), (debit, credit, amount)
        if status == 422:
            assert fields_of(refused) == ["body.credit_account_id"]
    assert refusal_of(try_transfer(client, {}, mine, others, 1)) == (401, "unauthenticated")
    assert books(rows) == before


def test_an_account_can_be_emptied_to_the_last_cent(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)

    assert send(client, alice, bob, 1000)["debit_balance_after"] == 0

    refused = try_transfer(client, alice.headers, alice.account_id, bob.account_id, 1)
    assert refusal_of(refused) == (409, "insufficient-funds")
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (0, 1000)


def test_the_largest_amount_arrives_exactly(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=MOST, bob=0)

    moved = send(client, alice, bob, MOST, memo="x" * 200)

    assert (moved["amount"], moved["debit_balance_after"]) == (MOST, 0)
    assert balance(rows, system_account(rows)) == -MOST
    assert rows(f"SELECT amount, memo FROM transfers WHERE id = {moved['id']}") == [(MOST, "x" * 200)]


FORBIDDEN = [
    ("UPDATE accounts SET balance = -1 WHERE id = {alice}", "ck_accounts_balance"),
    ("UPDATE accounts SET held = balance + 1 WHERE id = {alice}", "ck_accounts_balance"),
    ("UPDATE accounts SET held = -1 WHERE id = {alice}", "ck_accounts_held"),
    # Between currencies: with one account's, with the other's, with none of both.
    ("UPDATE transfers SET credit_account_id = {dollars} WHERE id = {sent}", "foreign key"),
    ("UPDATE transfers SET debit_account_id = {dollars} WHERE id = {sent}", "foreign key"),
    ("UPDATE transfers SET currency = 'USD' WHERE id = {sent}", "foreign key"),
    ("UPDATE transfers SET amount = 0 WHERE id = {sent}", "ck_transfers_amount"),
    ("UPDATE transfers SET amount = -1 WHERE id = {sent}", "ck_transfers_amount"),
    ("UPDATE transfers SET credit_account_id = debit_account_id WHERE id = {sent}", "ck_transfers_accounts"),
    ("UPDATE entries SET amount = 0 WHERE account_id = {alice}", "ck_entries_amount"),
    # A second reversal, a second use of a key.
    ("UPDATE transfers SET reverses_id = {sent} WHERE reverses_id IS NULL AND id <> {sent}", "reverses_id"),
    ("UPDATE transfers SET initiator = 0, idempotency_key = 'key'", "idempotency_key"),
    # A second account of the system, or of a user, in a currency.
    ("INSERT INTO accounts (currency, balance, version) VALUES ('EUR', 0, 0)", "currency"),
    ("INSERT INTO accounts (user_id, currency, balance, version) VALUES ({user}, 'EUR', 0, 0)", "user_id"),
    ("DELETE FROM accounts WHERE id = {alice}", "foreign key"),
    ("DELETE FROM transfers WHERE id = {sent}", "foreign key"),
]
"""Changes that break the books, and what the engine names when it refuses them."""


async def test_the_database_itself_refuses_books_that_are_wrong(
    client: TestClient, database: Database, rows: Rows
) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    dollars = answer_of(client.post("/accounts", json={"currency": "USD"}, headers=alice.headers))["id"]
    sent = send(client, alice, bob, 300)
    answer_of(client.post(f"/transfers/{sent['id']}/reversal", headers=bob.headers))
    before = books(rows)

    for change, rule in FORBIDDEN:
        sql = change.format(alice=alice.account_id, user=alice.user_id, dollars=dollars, sent=sent["id"])
        async with database.engine.connect() as connection:
            # Where a key is used twice, the service would look it up again.
            with pytest.raises((IntegrityError, Conflict)) as refused:
                await connection.execute(text(sql))
        error = refused.value.__cause__
        assert rule in str(error).lower(), (sql, error)
    assert books(rows) == before


@pytest.mark.parametrize("engine", ["postgresql"])  # SQLite keeps texts of any length.
async def test_what_is_too_long_for_its_column_fails_and_is_not_cut(
    client: TestClient, operations: Operations, rows: Rows
) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    before = books(rows)

    with pytest.raises(DataError):
        await operations.write(
            crud.make_transfers, Order(alice.user_id, alice.account_id, bob.account_id, 1, memo="x" * 201)
        )

    assert books(rows) == before
