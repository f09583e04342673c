"""Triggers and rules that drop rows without an error: nothing of the call is stored, and its answer is no 2xx."""

import pytest
from starlette.testclient import TestClient

from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows

TABLES = ("users", "profiles", "accounts", "access_tokens", "transfers", "entries")


def drop_rows(rows: Rows, engine: str, event: str, table: str) -> None:
    """From now on, let the database skip what is asked of this table."""
    if engine == "sqlite":
        rows(f"CREATE TRIGGER drop_rows BEFORE {event} ON {table} BEGIN SELECT RAISE(IGNORE); END")
    else:
        rows("CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        rows(f"CREATE TRIGGER drop_rows BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION drop_row()")


def content(rows: Rows) -> list[list[tuple[object, ...]]]:
    return [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES]


def register(client: TestClient, username: str) -> dict[str, str]:
    token = client.post("/register", json=named(username)).json()["access_token"]
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("change", [("INSERT", "entries"), ("UPDATE", "accounts")])
def test_a_transfer_of_which_a_part_is_dropped_moves_nothing(
    client: TestClient, rows: Rows, engine: str, caplog: pytest.LogCaptureFixture, change: tuple[str, str]
) -> None:
    event, table = change
    alice = register(client, "alice")
    deposit = {"account_id": 1, "amount": 100}
    assert client.post("/deposits", json=deposit, headers=AS_OPERATOR).status_code == 201
    register(client, "bob")
    before = content(rows)
    drop_rows(rows, engine, event, table)

    transfer = {"debit_account_id": 1, "credit_account_id": 3, "amount": 1}
    answers = [
        client.post("/transfers", json=transfer, headers=alice),
        client.post("/deposits", json=deposit, headers=AS_OPERATOR),
        client.post("/transfers/1/reversal", headers=AS_OPERATOR),
    ]

    assert [answer.status_code for answer in answers] == [500, 500, 500]
    assert content(rows) == before
    assert f"Of 2 rows to write to the table {table}, the database wrote fewer" in caplog.text


@pytest.mark.parametrize("table", ["profiles", "accounts", "access_tokens"])
def test_a_registration_of_which_a_part_is_dropped_registers_nobody(
    client: TestClient, rows: Rows, engine: str, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    drop_rows(rows, engine, "INSERT", table)

    assert client.post("/register", json=named("alice")).status_code == 500
    assert content(rows) == [[]] * len(TABLES)
    assert f"Of 1 rows to write to the table {table}, the database wrote fewer" in caplog.text


@pytest.mark.parametrize(
    ("change", "call"),
    [
        (("INSERT", "access_tokens"), ("POST", "/tokens", {"name": "laptop"})),
        (("UPDATE", "access_tokens"), ("DELETE", "/tokens/1", None)),
        (("UPDATE", "profiles"), ("DELETE", "/me", None)),
        (("UPDATE", "users"), ("PATCH", "/me", {"email": "other@example.com"})),
        (("INSERT", "accounts"), ("POST", "/accounts", {"currency": "USD"})),
        (("INSERT", "users"), ("POST", "/register", named("bob"))),
    ],
)
def test_a_change_that_is_dropped_is_not_answered_as_done(
    client: TestClient,
    rows: Rows,
    engine: str,
    change: tuple[str, str],
    call: tuple[str, str, dict[str, str] | None],
) -> None:
    alice = register(client, "alice")
    before = content(rows)
    drop_rows(rows, engine, *change)
    method, path, body = call

    answer = client.request(method, path, json=body, headers=alice if path != "/register" else None)

    assert answer.status_code >= 400
    assert content(rows) == before
