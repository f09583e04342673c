"""The feed: who goes on from the last event it read misses none, however late it was committed."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Thread
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.testclient import TestClient

from db.database import Database
from settings import Settings
from tests.support.accounts import register_all, send
from tests.support.database import until
from tests.support.events import INSERT, follow, read_all, stored
from tests.support.holds import hold
from tests.support.service import AS_OPERATOR, Rows
from webhooks import queries, transactions
from webhooks.sequencer import Sequencer

pytestmark = pytest.mark.usefixtures("events")


@contextmanager
def slow_commit(url: str, id: int) -> Iterator[Any]:
    """A transaction on PostgreSQL that has stored an event, and commits it late."""
    with psycopg.connect(url) as connection:
        connection.execute(INSERT.format(id=id))
        yield connection.commit


@pytest.mark.parametrize("engine", ["postgresql"])
def test_an_event_that_was_committed_late_comes_after_those_that_were_read_before(
    client: TestClient, rows: Rows, url: str
) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = read_all(client, rows)[-1]["id"]
    with slow_commit(url, id=4711) as commit:
        send(client, alice, bob, 1)
        early = follow(client, before, wait=10)
        commit()
        late = follow(client, early["next"], wait=10)

    # Its row is older, and its number is higher.
    [(_, older), (_, newer)] = stored(rows)[-2:]
    assert (older, newer) == (4711, early["items"][0]["data"]["id"])
    assert [each["data"]["id"] for each in early["items"]] == [newer]
    assert [each["data"]["id"] for each in late["items"]] == [4711]


@pytest.mark.parametrize("engine", ["postgresql"])
def test_events_are_told_though_an_account_with_an_expired_hold_is_locked(
    client: TestClient, rows: Rows, url: str
) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    held = hold(client, alice, bob, 4)
    before = read_all(client, rows)[-1]["id"]
    with psycopg.connect(url) as connection:
        connection.execute(f"SELECT 1 FROM accounts WHERE id = {alice.account_id} FOR UPDATE")
        rows(f"UPDATE holds SET expires_at = '2026-01-01 00:00:00+00' WHERE id = {held['id']}")
        client.post("/tokens", json={}, headers=bob.headers)

        told = follow(client, before, wait=20)
    expired = follow(client, told["next"], wait=20)

    assert [[each["type"] for each in page["items"]] for page in (told, expired)] == [
        ["token.issued"],
        ["hold.expired"],
    ]


async def insert_slowly(url: str, first: int) -> None:
    """Store events in transactions that commit in another order than they began."""

    async def insert(id: int) -> None:
        connection = await psycopg.AsyncConnection.connect(url)
        async with connection:
            await connection.execute(INSERT.format(id=id))
            await asyncio.sleep(0.02 * (id * 7 % 10))

    for start in range(first, first + 40, 5):
        await asyncio.gather(*(insert(id) for id in range(start, start + 5)))


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_two_processes_number_each_event_once_and_a_reader_misses_none(url: str, rows: Rows) -> None:
    settings = Settings(database_url=url, events=True)
    databases = [Database(settings) for _ in range(3)]
    sequencers = [Sequencer(database) for database in databases[:2]]
    running = [asyncio.create_task(each.run()) for each in sequencers]
    writing = asyncio.gather(*(insert_slowly(url, first) for first in (1000, 2000, 3000)))
    seen: list[tuple[int, int]] = []
    deadline = monotonic() + 60
    while len(seen) < 120 and monotonic() < deadline:
        after = seen[-1][0] if seen else 0
        page = await databases[2].read(transactions.list_events, after=after, types=None, limit=7)
        seen += [(each.id, each.data["id"]) for each in page.items]
        await asyncio.sleep(0.005)
    await writing
    for each in sequencers:
        each.end()
    await asyncio.gather(*running)
    for database in databases:
        await database.close()

    assert [id for id, _ in seen] == [*range(1, 121)]
    assert sorted(subject for _, subject in seen) == [*range(1000, 1040), *range(2000, 2040), *range(3000, 3040)]
    assert rows("SELECT count(*) FROM events WHERE number IS NULL") == [(0,)]
    # They were committed in another order than they were stored.
    assert [subject for _, subject in seen] != [subject for _, subject in stored(rows)]


async def test_only_one_transaction_numbers_at_a_time(url: str, rows: Rows) -> None:
    settings = Settings(database_url=url, events=True)
    databases = [Database(settings) for _ in range(4)]
    for id in range(150):
        rows(INSERT.format(id=id))

    for _ in range(8):
        await asyncio.gather(*(each.write(transactions.number_events) for each in databases))
    for database in databases:
        await database.close()

    assert rows("SELECT count(DISTINCT number), min(number), max(number) FROM events") == [(150, 1, 150)]
    assert rows("SELECT last FROM event_numbers") == [(150,)]


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_a_webhook_is_told_of_what_happens_once_it_is_there_also_while_events_are_numbered(
    url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has one writer at a time: nothing comes in between."""

    def create_meanwhile(dialect: str) -> Any:
        rows(
            "INSERT INTO webhooks (id, url, personal_data, status, secret, created_at)"
            " VALUES (1, 'https://hooks.example', false, 'active', 'secret', '2026-11-28 12:00:00+00')"
        )
        rows(INSERT.format(id=1))
        return number(dialect)

    number = queries.number_events
    rows(INSERT.format(id=2))
    database = Database(Settings(database_url=url, events=True))
    monkeypatch.setattr(queries, "number_events", create_meanwhile)
    await database.write(transactions.number_events)
    await database.close()

    assert rows("SELECT event_id FROM webhook_deliveries ORDER BY 1") == [(1,), (2,)]


async def test_events_that_a_killed_process_left_without_numbers_get_them_from_another(url: str, rows: Rows) -> None:
    rows(INSERT.format(id=1))
    database = Database(Settings(database_url=url, events=True))
    sequencer = Sequencer(database)
    running = asyncio.create_task(sequencer.run())

    # This process writes nothing itself.
    await until(lambda: rows("SELECT number FROM events") == [(1,)], "the number")
    sequencer.end()
    await running
    await database.close()


def test_the_feed_is_read_in_pages_that_join_without_gaps(client: TestClient, rows: Rows) -> None:
    register_all(client, alice=10, bob=0, carol=0)
    everything = read_all(client, rows)

    found: list[Any] = []
    position = None
    for _ in range(len(everything)):
        page = follow(client, position, limit=2)
        found += page["items"]
        position = page["next"]

    assert found == everything
    assert [each["id"] for each in everything] == [*range(1, len(everything) + 1)]
    assert follow(client, position) == {"items": [], "next": len(everything)}


def test_only_some_types_are_read_and_the_position_moves_past_the_others(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    send(client, alice, bob, 1)
    everything = read_all(client, rows)
    types = "transfer.created,user.registered"

    page = follow(client, 0, types=types)
    first = follow(client, 0, types=types, limit=1)

    assert page["items"] == [each for each in everything if each["type"] in types]
    assert page["next"] == everything[-1]["id"]
    assert (first["items"], first["next"]) == (page["items"][:1], page["items"][0]["id"])


def test_a_page_of_rare_events_is_short_and_goes_on(
    client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LOOKED", 5)
    register_all(client, alice=10, bob=0)
    rare = [each for each in read_all(client, rows) if each["type"] == "transfer.created"]

    found: list[Any] = []
    position = 0
    for _ in range(10):
        page = follow(client, position, types="transfer.created")
        assert page["next"] <= position + 5
        found += page["items"]
        position = page["next"]

    assert found == rare


def test_who_waits_for_rare_events_is_answered_with_those_that_are_there_and_waits_for_none(
    client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_all(client, alice=0, bob=0, carol=5)
    read_all(client, rows)
    monkeypatch.setattr(transactions, "LOOKED", 2)

    page = follow(client, 0, types="transfer.created", wait=1)

    assert len(page["items"]) == 1


def test_who_waits_is_answered_once_something_happens(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = read_all(client, rows)[-1]["id"]
    pages: list[Any] = []
    reader = Thread(target=lambda: pages.append(follow(client, before, wait=30, types="transfer.created")))
    reader.start()
    sleep(0.5)
    assert not pages

    client.post("/accounts", json={"currency": "USD"}, headers=alice.headers)  # It does not wait for this.
    sent = send(client, alice, bob, 1)
    reader.join(20)

    [page] = pages
    assert [each["data"]["id"] for each in page["items"]] == [sent["id"]]


def test_who_waits_is_answered_at_once_after_an_older_save_was_loaded(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=0)
    read_all(client, rows)
    rows("DELETE FROM events")
    rows("UPDATE event_numbers SET last = 1")
    assert follow(client, 1, wait=1)["items"] == []
    pages: list[Any] = []
    reader = Thread(target=lambda: pages.append(follow(client, 1, wait=30)))
    reader.start()
    sleep(0.5)
    client.post("/tokens", json={}, headers=alice.headers)
    reader.join(10)

    assert [[each["id"] for each in page["items"]] for page in pages] == [[2]]


def test_who_waits_in_vain_is_answered_with_no_event(client: TestClient, rows: Rows) -> None:
    register_all(client, alice=0)
    before = read_all(client, rows)[-1]["id"]

    started = monotonic()
    page = follow(client, before, wait=1)

    assert page == {"items": [], "next": before}
    assert monotonic() - started >= 1


def test_after_the_last_event_that_there_is_nothing_can_be_read(client: TestClient, rows: Rows) -> None:
    """A database that was loaded from a save has fewer events: its next ones have numbers that were read before."""
    register_all(client, alice=0)
    last = read_all(client, rows)[-1]["id"]

    answer = client.get("/events", params={"after": last + 1}, headers=AS_OPERATOR)

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/event-unknown")


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_no_look_at_the_events_reads_a_whole_table_or_is_compiled(database: Database, rows: Rows) -> None:
    """PostgreSQL would need half a second to compile what reads a row or two, four times a second."""
    rows("INSERT INTO event_numbers (id, last) VALUES (1, 0)")
    planned: dict[str, tuple[Any, dict[str, Any]]] = {
        "feed": (queries.select_feed("postgresql"), {"moment": datetime.now(UTC)}),
        "bounds": (queries.select_bounds("postgresql"), {}),
        "lock": (queries.lock_numbers("postgresql"), {}),
        "due": (queries.select_due_webhooks("postgresql"), {"moment": datetime.now(UTC)}),
        "listeners": (queries.select_listeners("postgresql"), {}),
        "queues": (queries.select_queues("postgresql"), {"most": 1000}),
    }

    async def plans_of(session: AsyncSession) -> dict[str, str]:
        driver: Any = await (await session.connection()).get_raw_connection()
        shown = await driver.driver_connection.execute("SHOW jit")
        assert (await shown.fetchone()) == ("off",)
        plans = {}
        for name, (statement, values) in planned.items():
            plan = await driver.driver_connection.execute(
                f"EXPLAIN (FORMAT JSON) {statement.text}", statement.bind(values)
            )
            [([whole],)] = await plan.fetchall()
            plans[name] = json.dumps(whole)
        return plans

    plans = await database.read(plans_of)
    assert [name for name, plan in plans.items() if "Seq Scan" in plan] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"types": "transfer.created,nothing"}, "query.types"),
        ({"types": ""}, "query.types"),
        ({"wait": 31}, "query.wait"),
        ({"after": -1}, "query.after"),
        ({"after": "NTA"}, "query.after"),
        ({"limit": 1001}, "query.limit"),
    ],
)
@pytest.mark.parametrize("engine", ["sqlite"])
def test_invalid_parameters_are_refused(client: TestClient, query: dict[str, Any], field: str) -> None:
    answer = client.get("/events", params=query, headers=AS_OPERATOR)

    assert answer.status_code == 422
    assert [each["field"] for each in answer.json()["errors"]] == [field]
