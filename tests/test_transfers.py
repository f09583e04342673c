"""Transfers, deposits, withdrawals, batches and reversals: money moves whole, once, or not at all."""

from typing import Any

import pytest
from conftest import AS_OPERATOR, Rows, noting_statements
from httpx2 import Response
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError
from starlette.testclient import TestClient
from test_accounts import (
    NO_ROW_HAS,
    Headers,
    Holder,
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

import crud
from db.database import Database
from ledger import Order
from operations import Operations

MOST = 2**53 - 1
"""The largest amount: as far as JSON numbers are exact everywhere."""


def keyed(headers: Headers, key: str | bytes) -> Any:
    """The headers with an Idempotency-Key."""
    return {**headers, "Idempotency-Key": key}


def try_transfer(
    client: TestClient, headers: Headers, debit_account_id: Any, credit_account_id: Any, amount: Any, **fields: Any
) -> Response:
    body = order(debit_account_id, credit_account_id, amount, **fields)
    return client.post("/transfers", json=body, headers=headers)


def system_account(rows: Rows, currency: str = "EUR") -> int:
    [(id,)] = rows(f"SELECT id FROM accounts WHERE user_id IS NULL AND currency = '{currency}'")
    assert isinstance(id, int)
    return id


def set_balance(rows: Rows, account_id: int, amount: int) -> None:
    """Change a balance by hand."""
    rows(f"UPDATE accounts SET balance = {amount} WHERE id = {account_id}")


def set_status(client: TestClient, holder: Holder, status: str) -> None:
    changed = client.patch(f"/users/{holder.user_id}", json={"status": status}, headers=AS_OPERATOR)
    assert changed.json()["status"] == status


# --- deposits and withdrawals -----------------------------------------------------------------------------------------


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
        "reverses_id": None,
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
        assert try_transfer(client, alice.headers, debit, credit, 1).json() == missing.json()
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


# --- transfers --------------------------------------------------------------------------------------------------------


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
        "reverses_id": None,
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
        assert stranger.json() == client.get("/transfers/999999", headers=eve.headers).json()


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
            with pytest.raises(IntegrityError) as refused:
                await connection.execute(text(sql))
        assert rule in str(refused.value.orig).lower(), (sql, refused.value.orig)
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


# --- who is not active ------------------------------------------------------------------------------------------------


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


# --- idempotency ------------------------------------------------------------------------------------------------------


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


# --- reversals --------------------------------------------------------------------------------------------------------


def reverse(client: TestClient, transfer: dict[str, Any], headers: Headers, key: str | None = None) -> Response:
    return client.post(f"/transfers/{transfer['id']}/reversal", headers=headers if key is None else keyed(headers, key))


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
        "reverses_id": sent["id"],
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


# --- batches ----------------------------------------------------------------------------------------------------------

CURSED_TRANSFERS = {
    "sqlite": """
        CREATE TRIGGER curse BEFORE INSERT ON transfers WHEN NEW.memo = 'cursed'
        BEGIN SELECT RAISE(ABORT, 'cursed'); END
    """,
    "postgresql": """
        CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.memo = 'cursed' THEN RAISE EXCEPTION 'cursed'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER curse BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION curse()
    """,
}
"""By engine: a trigger that nobody foresees, which refuses transfers with the memo "cursed"."""


def send_batch(client: TestClient, headers: Headers, transfers: Any, on_error: str | None = None) -> Response:
    body = {"transfers": transfers} | ({"on_error": on_error} if on_error else {})
    return client.post("/transfers/batch", json=body, headers=headers)


def results_of(response: Response) -> list[dict[str, Any]]:
    """The results of a batch, which are in order."""
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    assert [result["index"] for result in results] == list(range(len(results)))
    return results


def outcomes_of(response: Response) -> list[str]:
    """What became of each item: created, or the type of its problem."""
    return [
        result["problem"]["type"].removeprefix("/problems/") if result["status"] == "refused" else "created"
        for result in results_of(response)
    ]


def test_in_a_batch_one_transfer_spends_what_another_before_it_brought(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=1000, bob=0, carol=0)
    there = order(alice.account_id, bob.account_id, 600)
    onward = order(bob.account_id, carol.account_id, 500)
    before = books(rows)

    refused = send_batch(client, AS_OPERATOR, [onward, there])

    assert refusal_of(refused) == (409, "batch-refused")
    [error] = refused.json()["errors"]
    assert (error["index"], error["type"]) == (0, "/problems/insufficient-funds")
    assert error.keys() == {"index", "type", "detail"}
    assert books(rows) == before

    first, second = (result["transfer"] for result in results_of(send_batch(client, AS_OPERATOR, [there, onward])))
    assert (first["debit_balance_after"], first["credit_balance_after"]) == (400, 600)
    assert (second["debit_balance_after"], second["credit_balance_after"]) == (100, 500)
    assert [balance(rows, holder.account_id) for holder in (alice, bob, carol)] == [400, 100, 500]
    assert rows(f"SELECT amount, balance_after FROM entries WHERE account_id = {bob.account_id} ORDER BY seq") == [
        (600, 600),
        (-500, 100),
    ]


def test_a_batch_rolls_back_whole_or_continues_without_what_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=1000)
    mine, others = alice.account_id, bob.account_id
    batch = [
        order(mine, others, 600),
        order(mine, others, 600),
        order(others, mine, 1),
        order(mine, mine, 1),
        order(mine, others, 400),
    ]
    refused = {1: "insufficient-funds", 2: "account-not-found", 3: "same-account"}
    before = books(rows)

    rolled_back = send_batch(client, alice.headers, batch, "rollback")

    assert refusal_of(rolled_back) == (409, "batch-refused")
    errors = rolled_back.json()["errors"]
    assert {error["index"]: error["type"] for error in errors} == {
        index: f"/problems/{problem}" for index, problem in refused.items()
    }
    assert books(rows) == before

    continued = send_batch(client, alice.headers, batch, "continue")
    assert outcomes_of(continued) == [refused.get(index, "created") for index in range(5)]
    results = results_of(continued)
    assert results[3]["problem"]["errors"][0]["field"] == "body.transfers.3.credit_account_id"
    assert "errors" not in results[1]["problem"]
    # Each caller is shown what it would be shown of a single transfer.
    assert [results[index]["transfer"]["debit_balance_after"] for index in (0, 4)] == [400, 0]
    assert "credit_balance_after" not in results[0]["transfer"]
    assert [client.get(f"/transfers/{results[index]['transfer']['id']}", headers=alice.headers).json()["amount"]
            for index in (0, 4)] == [600, 400]  # fmt: skip
    assert (balance(rows, mine), balance(rows, others)) == (0, 2000)


def test_items_that_are_not_valid_are_named_by_their_place(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    good = order(alice.account_id, bob.account_id, 1)
    batch = [good, good | {"amount": 0}, good | {"amount": "1", "memo": "a\x00"}, good | {"currency": "EUR"}, 7, good]
    named = ["1.amount", "2.amount", "2.memo", "3.currency", "4"]
    before = books(rows)

    refused = send_batch(client, alice.headers, batch)

    assert refusal_of(refused) == (422, "invalid-request")
    assert fields_of(refused) == [f"body.transfers.{place}" for place in named]
    assert books(rows) == before

    continued = send_batch(client, alice.headers, batch, "continue")
    assert outcomes_of(continued) == ["created", *["invalid-request"] * 4, "created"]
    problems = [result["problem"] for result in results_of(continued) if result["status"] == "refused"]
    assert [error["field"] for problem in problems for error in problem["errors"]] == fields_of(refused)
    assert balance(rows, bob.account_id) == 2


def test_a_batch_that_is_none_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    good = order(alice.account_id, bob.account_id, 1)
    before = books(rows)
    wrong: list[Any] = [[], [good] * 1_001, {}, None, "x"]

    for transfers in wrong:
        assert fields_of(send_batch(client, alice.headers, transfers)) == ["body.transfers"]
    assert fields_of(send_batch(client, alice.headers, [good], "retry")) == ["body.on_error"]
    assert refusal_of(send_batch(client, {}, [good])) == (401, "unauthenticated")
    assert books(rows) == before


def test_a_transfer_that_fails_unforeseen_fails_alone_or_takes_all_back(
    client: TestClient, rows: Rows, engine: str
) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    rows(CURSED_TRANSFERS[engine])
    batch = [order(alice.account_id, bob.account_id, 10) for _ in range(9)]
    batch[6]["memo"] = "cursed"
    before = books(rows)

    rolled_back = send_batch(client, alice.headers, batch, "rollback")
    assert refusal_of(rolled_back) == (500, "internal-error")
    assert books(rows) == before

    continued = send_batch(client, alice.headers, batch, "continue")
    assert outcomes_of(continued) == ["created"] * 6 + ["internal-error"] + ["created"] * 2
    assert "cursed" not in continued.text.replace('"memo":"cursed"', "")
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (920, 80)
    assert rows(f"SELECT seq, balance_after FROM entries WHERE account_id = {bob.account_id} ORDER BY seq") == [
        (seq, 10 * seq) for seq in range(1, 9)
    ]


def test_a_key_in_a_batch_and_in_a_single_call_is_the_same_key(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    body = order(alice.account_id, bob.account_id, 100)
    single = answer_of(client.post("/transfers", json=body, headers=keyed(alice.headers, "one")))
    one, two = body | {"idempotency_key": "one"}, body | {"idempotency_key": "two"}
    changed = two | {"amount": 101}

    results = results_of(send_batch(client, alice.headers, [one, two, two, changed, one], "continue"))

    assert [results[index]["transfer"] for index in (0, 4)] == [single] * 2
    assert results[1]["transfer"] == results[2]["transfer"]
    assert results[1]["transfer"]["debit_balance_after"] == 800
    assert results[3]["problem"]["type"] == "/problems/idempotency-key-reused"
    assert results[3]["problem"]["errors"][0]["field"] == "body.transfers.3.idempotency_key"
    assert rows("SELECT idempotency_key FROM transfers WHERE initiator > 0 ORDER BY id") == [("one",), ("two",)]
    assert balance(rows, bob.account_id) == 200

    again = client.post("/transfers", json=body, headers=keyed(alice.headers, "two"))
    assert again.headers["Idempotency-Replayed"] == "true"
    assert answer_of(again) == results[1]["transfer"]
    assert results_of(send_batch(client, alice.headers, [one, two])) == [
        {**result, "index": index} for index, result in enumerate(results[:2])
    ]
    assert balance(rows, bob.account_id) == 200


def test_transfers_that_are_alike_each_count(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)

    results = results_of(send_batch(client, alice.headers, [order(alice.account_id, bob.account_id, 10)] * 50))

    ids = [result["transfer"]["id"] for result in results]
    assert ids == sorted(set(ids))
    assert [result["transfer"]["debit_balance_after"] for result in results] == list(range(990, 490, -10))
    assert rows(
        f"SELECT transfer_id, balance_after FROM entries WHERE account_id = {alice.account_id} AND seq > 1 ORDER BY seq"
    ) == [(result["transfer"]["id"], result["transfer"]["debit_balance_after"]) for result in results]


def test_a_batch_of_10000_costs_as_many_statements_as_one_of_10(client: TestClient, rows: Rows) -> None:
    alice, *others = register_all(client, alice=1000, **{f"user{number}": 0 for number in range(100)})

    def sent(size: int) -> int:
        """How many statements a batch of this size costs, that sends all of alice's money to others and back."""
        transfers: list[dict[str, Any]] = []
        for number in range(size // 2):
            other = others[number % 100]
            there, back = (alice.account_id, other.account_id), (other.account_id, alice.account_id)
            transfers += [
                order(*accounts, 1000, memo=f"{number}", idempotency_key=f"{size} {number} {accounts}")
                for accounts in (there, back)
            ]
        with noting_statements() as statements:
            results = results_of(send_batch(client, AS_OPERATOR, transfers))
        assert [result["transfer"]["memo"] for result in results] == [transfer["memo"] for transfer in transfers]
        return len(statements)

    few = sent(10)
    assert 0 < few < 12
    assert sent(10_000) == few
    assert rows(f"SELECT balance, version FROM accounts WHERE id = {alice.account_id}") == [(1000, 10_011)]
    assert rows("SELECT count(*), sum(amount) FROM entries") == [(20_022, 0)]
