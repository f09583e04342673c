"""Accounts: the balance at an instant; query plans."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
from db.database import Database
from ledger import OPERATOR, Order
from tests.support.accounts import at, deposit, fields_of, order, register, register_all, send, statement
from tests.support.service import Rows, noting_statements

MICROSECOND = timedelta(microseconds=1)


BOTH = timezone(timedelta(hours=2)), timezone(timedelta(hours=-9, minutes=-30))


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
        rows(f"UPDATE accounts SET version = 10000 WHERE id = {account_id}")
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
    assert re.search("(FROM|JOIN) entries", sql)
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
        database, crud.list_entries, bob.account_id, OPERATOR, after=5000, limit=50
    )

    # Of SQLite's indexes, a primary key's has no name of its own; for PostgreSQL one of each kind.
    primary_key = {"sqlite": "sqlite_autoindex_entries_1", "postgresql": "pk_entries"}[engine]
    # The search for the balance is itself no table: whatever else is read from end to end is one.
    for plan in (balance_plan, statement_plan):
        assert re.search(rf"(SEARCH|Index Scan).* {primary_key}", plan), plan
        assert not re.search(r"Sort|Seq Scan|Bitmap|TEMP B-TREE|SCAN (?!search\b|anon_1|\(subquery)", plan), plan
    conditions = [line for line in balance_plan.splitlines() if re.search(r"SEARCH entries|Index Cond.*\bseq\b", line)]
    assert len(conditions) == 2
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

    statements = [(sql, parameters) for sql, parameters in sent if sql not in ("BEGIN", "COMMIT")]
    assert [sql.split()[0] for sql, _ in statements] == ["SELECT"] * 4 + ["WITH"] * 3
    for sql, parameters in statements:
        plan = await plan_of(database, sql, parameters)
        assert not re.search(r"Seq Scan|Hash", plan), plan
