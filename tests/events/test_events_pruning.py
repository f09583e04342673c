"""Old events are deleted, few at a time, and nobody passes over them in silence."""

import json
from datetime import UTC, datetime

import pytest
from starlette.testclient import TestClient

from db.database import Database
from settings import Settings
from tests.support.accounts import register_all, send
from tests.support.events import follow, read_all
from tests.support.service import AS_OPERATOR, Rows
from webhooks import transactions

pytestmark = pytest.mark.usefixtures("events")


@pytest.mark.parametrize("types", [None, "transfer.created"])
async def test_pruned_events_are_not_passed_over_in_silence(
    client: TestClient, rows: Rows, url: str, types: str | None
) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    send(client, alice, bob, 1)
    everything = read_all(client, rows)
    # Three rows, of two users each; then that of another account.
    rows("UPDATE events SET created_at = '2026-01-01 00:00:00+00' WHERE number <= 7")
    database = Database(Settings(database_url=url))
    before = datetime(2026, 2, 1, tzinfo=UTC)
    deleted = [await database.write(transactions.prune_events, before, 3) for _ in range(4)]
    assert deleted == [2, 2, 3, 0]
    await database.close()
    parameters = {"types": types} if types else {}

    for after in (0, 6):
        answer = client.get("/events", params={"after": after, **parameters}, headers=AS_OPERATOR)
        assert (answer.status_code, answer.json()["type"]) == (410, "/problems/events-pruned")
    assert follow(client, 7)["items"] == everything[7:]
    # From the beginning is from where they begin now.
    assert follow(client)["items"] == everything[7:]


async def test_a_clock_that_was_ahead_for_a_while_keeps_no_older_event(
    client: TestClient, rows: Rows, url: str
) -> None:
    register_all(client, alice=10, bob=0)
    register_all(client, carol=0)
    last = read_all(client, rows)[-1]["id"]
    rows("UPDATE events SET created_at = '2036-01-01 00:00:00+00' WHERE number < 9")
    rows("UPDATE events SET created_at = '2026-01-01 00:00:00+00' WHERE number = 9")
    database = Database(Settings(database_url=url))

    # More events than are deleted at once came from that clock; those after them are new.
    assert await database.write(transactions.prune_events, datetime(2026, 2, 1, tzinfo=UTC), 2) == 9
    assert rows("SELECT min(number) FROM events") == [(10,)]
    assert last > 9
    await database.close()


async def test_few_events_are_deleted_at_once_however_many_a_row_has(url: str, rows: Rows) -> None:
    for size in (300, 300, 300, 1, 1):
        ids = [*range(1, size + 1)]
        rows(
            "INSERT INTO events (type, subject_ids, size, created_at)"
            f" VALUES ('transfer.created', '{json.dumps(ids)}', {size}, '2026-01-01 00:00:00+00')"
        )
    database = Database(Settings(database_url=url))
    while (numbered := await database.write(transactions.number_events)) and numbered[1]:
        pass

    deleted = [await database.write(transactions.prune_events, datetime(2026, 2, 1, tzinfo=UTC), 400) for _ in range(4)]
    await database.close()

    assert deleted == [300, 300, 302, 0]


def test_numbers_go_on_after_all_events_were_pruned(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    last = read_all(client, rows)[-1]["id"]
    rows("DELETE FROM events")

    sent = send(client, alice, bob, 1)
    page = follow(client, last, wait=10)

    assert [(each["id"], each["data"]["id"]) for each in page["items"]] == [(last + 1, sent["id"])]
    assert client.get("/events", params={"after": last - 1}, headers=AS_OPERATOR).status_code == 410
