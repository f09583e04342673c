"""Lists of transfers read a limited number of rows by index, whatever the filters; ids ascend in each account."""

import random
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
from db import trips
from db.database import Database
from ledger import OPERATOR, Order, Posted
from settings import Settings
from tests.support.accounts import Holder, deposit, order, register_all
from tests.support.database import on_postgresql
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import system_account
from tests.support.work import AT_MOST, work_of

NEWEST = 2**63 - 1

TRANSFERS = """
    INSERT INTO transfers
        (id, debit_account_id, credit_account_id, currency, amount, reference, metadata, initiator, created_at)
    SELECT 1000 + n, {debit}, {credit}, 'EUR', 1, 'common', '{{"cart":"c-17"}}', 0, {moment} FROM {numbers}
"""
ENTRIES = """
    INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at)
    SELECT {account}, n, 1000 + n, {amount}, 1, {moment} FROM {numbers}
"""
NUMBERS = {
    "sqlite": "(WITH RECURSIVE a (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a WHERE n < 10000) SELECT n FROM a)",
    "postgresql": "generate_series(1, 10000) AS numbers (n)",
}
MOMENT = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', '2026-01-01', '+' || n || ' minutes')",
    "postgresql": "timestamptz '2026-01-01 00:00:00+00' + n * interval '1 minute'",
}


def fill(rows: Rows, engine: str, debit: int, credit: int) -> None:
    """Insert 10,000 transfers from one account to the other, a minute apart."""
    values: dict[str, Any] = {"moment": MOMENT[engine], "numbers": NUMBERS[engine]}
    rows(TRANSFERS.format(debit=debit, credit=credit, **values))
    for account, amount in ((debit, -1), (credit, 1)):
        rows(ENTRIES.format(account=account, amount=amount, **values))
        rows(f"UPDATE accounts SET version = 10000 WHERE id = {account}")


MIDDLE = datetime(2026, 1, 4, tzinfo=UTC)
NOTHING = {"metadata": {"cart": "no"}}


@pytest.mark.slow
@pytest.mark.wrong_books
@pytest.mark.parametrize("first", ["ANALYZE", "VACUUM", "SELECT 1"])
async def test_no_page_reads_much_more_than_it_may_look_at(
    client: TestClient, rows: Rows, url: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = "sqlite" if url.startswith("sqlite") else "postgresql"
    alice, bob = register_all(client, alice=0, bob=0)
    fill(rows, engine, alice.account_id, bob.account_id)
    # What the planner knows: all; what autovacuum knows before it analyses; nothing.
    rows(first)
    monkeypatch.setattr(crud, "LOOKED", 100)
    of_alice, referred = {"account_id": alice.account_id}, {"reference": "common"}
    period = {"since": MIDDLE, "before": MIDDLE.replace(hour=3)}

    for caller in (OPERATOR, alice.user_id):
        finders: list[dict[str, Any]] = [{}, of_alice, referred, {**of_alice, **referred}, {"transaction_id": 7}]
        finders += [{"hold_id": 7}, *([{"user_id": alice.user_id}] if caller == OPERATOR else [])]
        for finder in finders:
            for rest in ({}, NOTHING, period, {"before": MIDDLE}, {"since": MIDDLE}, {**period, **NOTHING}):
                filters = finder | rest
                work = await work_of(url, crud.list_transfers, caller, filters, after=NEWEST, limit=50)
                assert work < AT_MOST[engine], filters


def walk(client: TestClient, headers: dict[str, str], filters: dict[str, Any], limit: int) -> list[list[int]]:
    """The ids on each page."""
    pages: list[list[int]] = []
    sent: dict[str, Any] = {"limit": limit, **filters}
    while True:
        page = client.get("/transfers", params=sent, headers=headers).json()
        pages.append([item["id"] for item in page["items"]])
        if page["next"] is None:
            return pages
        sent["after"] = page["next"]


@pytest.mark.slow
@pytest.mark.wrong_books
def test_short_pages_lead_to_the_only_one_that_is_asked_for(
    client: TestClient, rows: Rows, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    fill(rows, engine, alice.account_id, bob.account_id)
    rows("""UPDATE transfers SET metadata = '{"cart":"c-18"}' WHERE id = 5000""")
    monkeypatch.setattr(crud, "LOOKED", 1000)

    for headers in (AS_OPERATOR, bob.headers):
        pages = walk(client, headers, {"metadata.cart": "c-18"}, limit=50)
        assert 10 <= len(pages) <= 11
        assert [page for page in pages if page] == [[5000]]
        assert walk(client, headers, {"metadata.cart": "c-17"}, limit=50)[0] == [*range(11_000, 10_950, -1)]


@pytest.mark.slow
@pytest.mark.parametrize("looked", [8, 100])
def test_every_walk_finds_what_a_look_at_all_rows_finds(
    client: TestClient, rows: Rows, looked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = register_all(client, alice=0, bob=0, carol=0)
    for number, owner in enumerate(holders):
        for label in "xyz"[: number + 1]:
            rows(f"""
                INSERT INTO accounts (user_id, currency, label, balance, version)
                VALUES ({owner.user_id}, 'EUR', '{label}', 0, 0)
            """)
    owners: dict[int, int] = dict(map(tuple, rows("SELECT id, user_id FROM accounts WHERE user_id IS NOT NULL")))
    for account_id in owners:
        deposit(client, account_id, 1000)
    choose = random.Random(17)
    for _ in range(6):
        pairs = [choose.sample([*owners], 2) for _ in range(10)]
        kinds: list[dict[str, Any]] = [
            {"reference": choose.choice("ab"), "metadata": {"kind": choose.choice("cd")}} for _ in pairs
        ]
        batch = [order(debit, credit, 1, **kind) for (debit, credit), kind in zip(pairs, kinds, strict=True)]
        client.post("/transfers/batch", json={"transfers": batch}, headers=AS_OPERATOR)
    everything = client.get("/transfers?limit=200", headers=AS_OPERATOR).json()["items"]
    assert len(everything) == len(owners) + 60
    instants = sorted({item["created_at"] for item in everything})
    monkeypatch.setattr(crud, "LOOKED", looked)

    def expected(party: int | None, filters: dict[str, Any]) -> list[int]:
        return [
            item["id"]
            for item in everything
            for sides in [(item["debit_account_id"], item["credit_account_id"])]
            if (party is None or party in map(owners.get, sides))
            and filters.get("account_id") in (None, *sides)
            and filters.get("reference") in (None, item["reference"])
            and filters.get("metadata.kind") in (None, (item["metadata"] or {}).get("kind"))
            and filters.get("from", "") <= item["created_at"] < filters.get("to", "9")
        ]

    def check(headers: dict[str, str], party: int | None, filters: dict[str, Any]) -> None:
        pages = walk(client, headers, filters, limit=3)
        assert [*chain.from_iterable(pages)] == expected(party, filters), filters

    for _ in range(40):
        holder: Holder = choose.choice(holders)
        own = choose.choice([id for id, user_id in owners.items() if user_id == holder.user_id])
        chances: list[dict[str, Any]] = [
            {"account_id": own},
            {"reference": "a"},
            {"metadata.kind": "c"},
            {"from": choose.choice(instants)},
            {"to": choose.choice(instants)},
        ]
        filters = {name: value for each in chances if choose.random() < 0.4 for name, value in each.items()}
        check(holder.headers, holder.user_id, filters)
        check(AS_OPERATOR, None, filters)
        of = choose.choice(holders).user_id
        pages = walk(client, AS_OPERATOR, {**filters, "user_id": of}, limit=3)
        assert [*chain.from_iterable(pages)] == expected(of, filters), (of, filters)


@on_postgresql
async def test_ids_ascend_in_an_account_that_was_locked_in_a_second_trip(
    client: TestClient, rows: Rows, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=0)
    other = Database(settings)
    sent: list[Any] = []
    system = system_account(rows)
    together = trips.execute_together

    async def arrive_between(*args: Any) -> Any:
        sent.append(args)
        if len(sent) == 2:
            await other.write(crud.make_transfers, [Order(OPERATOR, system, carol.account_id, 1)])
        return await together(*args)

    monkeypatch.setattr(crud, "execute_together", arrive_between)
    # Bob can pay carol, whose account is not locked at first, only because alice pays him.
    orders = [
        Order(alice.user_id, alice.account_id, bob.account_id, 10),
        Order(bob.user_id, bob.account_id, carol.account_id, 10),
    ]
    outcomes = await database.write(crud.make_transfers, orders)
    await other.close()

    assert all(isinstance(outcome, Posted) for outcome in outcomes)
    assert rows(f"SELECT count(*) FROM entries WHERE account_id = {carol.account_id}") == [(2,)]
    for holder in (alice, bob, carol):
        ids = [
            id for (id,) in rows(f"SELECT transfer_id FROM entries WHERE account_id = {holder.account_id} ORDER BY seq")
        ]
        assert all(first < second for first, second in pairwise(ids)), ids
