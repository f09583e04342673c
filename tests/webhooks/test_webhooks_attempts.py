"""What becomes of each attempt to deliver an event: whose it is meanwhile, when it is due again, and when no more."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from db import trips
from db.database import Database
from models import WebhookWithSecret
from refusals import Interruption
from settings import Settings
from tests.support.database import on_postgresql, until
from tests.support.events import INSERT
from tests.support.service import Rows
from tests.support.webhook_inbox import receiving
from webhooks import transactions
from webhooks.deliverer import Deliverer
from webhooks.sending import Sender
from webhooks.sequencer import Sequencer
from webhooks.transactions import WAITS, Attempt, Due, WebhookChange, WebhookCreation

pytestmark = pytest.mark.usefixtures("events")

LONG_AGO = "'2026-01-01 00:00:00+00'"


async def create(database: Database, tests: int = 1, url: str = "https://hooks.example/") -> int:
    """A webhook with so many tests to deliver, and nothing else."""
    [webhook] = await database.write(
        transactions.create_webhooks, [WebhookCreation(url, ["webhook.test"], personal_data=False)]
    )
    assert isinstance(webhook, WebhookWithSecret)
    await have_more(database, webhook.id, tests)
    return webhook.id


async def have_more(database: Database, id: int, number: int = 1) -> None:
    """Have so many more tests to deliver."""
    await database.write(transactions.change_webhooks, [WebhookChange(id, tests=True) for _ in range(number)])
    await database.write(transactions.number_events)


async def take(database: Database, id: int) -> dict[int, int]:
    """Take what is due, as a deliverer does: the events, each with its attempt's number."""
    due: Due | None = await database.write(transactions.take_due, id, 10)
    return {event.id: number for event, number in due.events} if due else {}


async def finish(
    database: Database, id: int, taken: dict[int, int], error: str | None = None, status: int | None = 200
) -> None:
    """Store the same outcome of all that was taken."""
    attempts = [Attempt(event_id, number, status, error) for event_id, number in taken.items()]
    await database.write(transactions.finish_attempts, id, attempts)


def state(rows: Rows) -> tuple[str, int, Any]:
    """Status, attempts and error of the only delivery."""
    [found] = rows("SELECT status, attempts, error FROM webhook_deliveries")
    return found


def webhook(rows: Rows, id: int) -> tuple[str, bool]:
    """The status of a webhook, and whether it is shown as failing."""
    [(status, failing_since)] = rows(f"SELECT status, failing_since FROM webhooks WHERE id = {id}")
    return status, failing_since is not None


def wait_of(rows: Rows) -> timedelta:
    """The time between the last attempt at the only delivery, and the next one."""
    [[attempted, due]] = rows("SELECT attempted_at, due_at FROM webhook_deliveries")
    return datetime.fromisoformat(str(due)) - datetime.fromisoformat(str(attempted))


def pass_time(rows: Rows) -> None:
    """Let the time pass until what waits is due."""
    rows(f"UPDATE webhook_deliveries SET due_at = {LONG_AGO}")


async def test_what_failed_is_due_again_after_ever_longer_waits_until_it_has_failed_for_good(
    database: Database, rows: Rows
) -> None:
    id = await create(database)
    waits = []
    for number in range(1, len(WAITS) + 1):
        taken = await take(database, id)
        assert [*taken.values()] == [number]
        assert wait_of(rows) == transactions.LEASE
        await finish(database, id, taken, "answered 500", 500)
        assert state(rows) == ("waiting", number, "answered 500")
        assert await take(database, id) == {}
        waits.append(wait_of(rows))
        pass_time(rows)
    assert sorted(WAITS) == WAITS
    for wait, least in zip(waits, WAITS, strict=True):
        assert least <= wait < 1.1 * least + timedelta(seconds=10)
    # All of it ends before EVENTS_DAYS can have it pruned, and not before a webhook that fails all the time is paused.
    assert transactions.PATIENCE < sum(waits, timedelta()) < timedelta(days=4)

    rows(f"UPDATE webhooks SET failing_since = {LONG_AGO}")
    await finish(database, id, await take(database, id), "answered 500", 500)

    assert state(rows) == ("failed", len(WAITS) + 1, "answered 500")
    assert webhook(rows, id) == ("paused", True)
    pass_time(rows)
    await database.write(transactions.change_webhooks, [WebhookChange(id, {"status": "active"})])
    assert await take(database, id) == {}
    assert webhook(rows, id) == ("active", False)


async def test_a_webhook_is_paused_where_nothing_has_arrived_for_three_days_and_others_are_told(
    database: Database, rows: Rows
) -> None:
    id = await create(database)
    await finish(database, id, await take(database, id), "answered 500", 500)
    assert webhook(rows, id) == ("active", True)
    rows(f"UPDATE webhooks SET failing_since = {LONG_AGO}")
    await have_more(database, id)

    await finish(database, id, await take(database, id), "answered 500", 500)

    assert webhook(rows, id) == ("paused", True)
    assert rows("SELECT type FROM events ORDER BY id DESC LIMIT 1") == [("webhook.updated",)]


async def test_one_event_that_its_receiver_never_takes_does_not_pause_a_webhook_that_takes_the_others(
    database: Database, rows: Rows
) -> None:
    id = await create(database)
    for _ in range(len(WAITS) + 1):
        never = await take(database, id)
        await finish(database, id, never, "answered 500", 500)
        await have_more(database, id)
        await finish(database, id, await take(database, id))
        rows(f"UPDATE webhook_deliveries SET due_at = {LONG_AGO} WHERE status = 'waiting'")

    assert rows("SELECT status FROM webhook_deliveries ORDER BY event_id LIMIT 1") == [("failed",)]
    assert webhook(rows, id) == ("active", False)


async def test_a_delivery_is_its_deliverer_s_alone_until_the_lease_ends(
    database: Database, url: str, rows: Rows
) -> None:
    id = await create(database, tests=25)
    other = Database(Settings(database_url=url, events=True))
    taken = await asyncio.gather(*(take(each, id) for each in (database, other, database, other)))
    assert sorted(event for each in taken for event in each) == [*range(2, 27)]
    assert (await take(database, id), await take(other, id)) == ({}, {})

    pass_time(rows)

    assert set((await take(other, id)).values()) == {2}
    await other.close()


async def test_what_was_cut_off_says_nothing_of_the_receiver(database: Database, rows: Rows) -> None:
    id = await create(database)
    await take(database, id)

    await database.write(transactions.finish_attempts, id, [])

    assert webhook(rows, id) == ("active", False)


async def test_a_late_outcome_changes_nothing_that_another_deliverer_has_stored(database: Database, rows: Rows) -> None:
    id = await create(database)
    late = await take(database, id)
    pass_time(rows)
    second = await take(database, id)

    await finish(database, id, late, "no answer within 15 seconds", None)
    assert state(rows) == ("waiting", 2, None)
    assert wait_of(rows) == transactions.LEASE
    await finish(database, id, second)
    await finish(database, id, late, "no answer within 15 seconds", None)

    assert state(rows) == ("delivered", 2, None)


async def test_what_has_arrived_is_delivered_though_its_lease_had_ended(database: Database, rows: Rows) -> None:
    id = await create(database)
    late = await take(database, id)
    pass_time(rows)
    second = await take(database, id)

    await finish(database, id, late)
    await finish(database, id, second, "answered 500", 500)

    assert state(rows) == ("delivered", 2, None)


async def test_a_webhook_that_ended_meanwhile_stays_ended(database: Database, rows: Rows) -> None:
    id = await create(database)
    taken = await take(database, id)
    await database.write(transactions.change_webhooks, [WebhookChange(id, ends=True)])

    await finish(database, id, taken, "answered 500", 500)
    pass_time(rows)

    assert webhook(rows, id) == ("ended", False)
    assert await take(database, id) == {}
    assert await database.read(transactions.list_due_webhooks) == []


async def test_of_what_was_pruned_meanwhile_nothing_is_left(database: Database, rows: Rows) -> None:
    id = await create(database, tests=3)
    taken = await take(database, id)
    # As sending again while the event was pruned would leave one.
    rows(
        f"INSERT INTO webhook_deliveries (webhook_id, event_id, type, status, attempts, due_at, created_at) "
        f"VALUES ({id}, 99, 'webhook.test', 'waiting', 0, {LONG_AGO}, {LONG_AGO})"
    )
    rows("DELETE FROM events")
    rows("DELETE FROM webhook_deliveries WHERE event_id < 99")

    await finish(database, id, taken, "answered 500", 500)
    assert await take(database, id) == {}

    assert rows("SELECT count(*) FROM webhook_deliveries") == [(0,)]


async def test_events_get_their_numbers_and_their_deliveries_together_or_not_at_all(
    database: Database, rows: Rows
) -> None:
    id = await create(database)
    await database.write(transactions.change_webhooks, [WebhookChange(id, tests=True)])
    rows("ALTER TABLE webhook_deliveries RENAME COLUMN type TO something_else")
    with pytest.raises(Interruption):
        await database.write(transactions.number_events)
    assert rows("SELECT count(*) FROM events WHERE number IS NULL") == [(1,)]

    rows("ALTER TABLE webhook_deliveries RENAME COLUMN something_else TO type")
    await database.write(transactions.number_events)

    assert rows("SELECT event_id FROM webhook_deliveries ORDER BY event_id") == [(2,), (3,)]


@on_postgresql
async def test_what_happens_right_after_a_webhook_was_created_is_delivered(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(database)
    run = trips.run

    async def let_others_commit(driver: Any, calls: Sequence[trips.Call]) -> Any:
        answer = await run(driver, calls)
        if any("event_numbers" in call.text and "FOR UPDATE" in call.text for call in calls):
            rows(
                f"INSERT INTO webhooks (url, types, personal_data, status, secret, created_at) "
                f"VALUES ('https://new.example/', NULL, false, 'active', 'whsec_', {LONG_AGO})"
            )
            rows(INSERT.format(id=4711))
        return answer

    monkeypatch.setattr(trips, "run", let_others_commit)
    await database.write(transactions.number_events)

    assert rows("SELECT webhook_id, type FROM webhook_deliveries WHERE webhook_id > 1") == [(2, "transfer.created")]


async def test_two_deliverers_send_nothing_twice(url: str, rows: Rows) -> None:
    settings = Settings(database_url=url, events=True)
    databases = [Database(settings) for _ in range(2)]
    with receiving() as inbox:
        async with Sender(development=True, networks=[], user_agent="Savepoint") as sender:
            id = await create(databases[0], tests=60, url=f"{inbox.url}/hook")
            sequencers = [Sequencer(database) for database in databases]
            deliverers = [Deliverer(*each, sequencers[n]) for n, each in enumerate((d, sender) for d in databases)]
            running = [asyncio.create_task(each.run()) for each in deliverers]
            delivered = f"SELECT 1 FROM webhook_deliveries WHERE webhook_id = {id} AND status = 'delivered'"
            await until(lambda: len(rows(delivered)) == 60, "60 deliveries")
            for sequencer in sequencers:
                sequencer.end()
            await asyncio.gather(*running)
    for database in databases:
        await database.close()

    assert inbox.ids("/hook") == [*range(2, 62)]
