"""Every transaction on events, webhooks and their deliveries. Knows nothing of HTTP."""

import base64
import random
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, get_args

import sqlalchemy as sa
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from crud import LOOKED, Part, read_part, show
from db.isolation import begin, isolating_failures
from db.statements import dialect_of, insert_free, insert_rows, write_rows
from db.trips import call, execute, execute_together
from fields import ActionName, EventType, WebhookStatus
from ledger import Actor
from models import (
    DeliveryPublic,
    Event,
    EventNumbers,
    EventPublic,
    EventsPage,
    Webhook,
    WebhookDelivery,
    WebhookPublic,
    WebhookWithSecret,
    now,
)
from recording import Log, action, event, record, tell
from refusals import (
    EventNotFound,
    EventsPruned,
    EventUnknown,
    Refusal,
    SecretJustMade,
    WebhookEnded,
    WebhookLimit,
    WebhookNotFound,
)
from webhooks import queries
from webhooks.envelopes import Happened, read_events, show_events

ROWS_NUMBERED = 100
EVENTS_NUMBERED = 500
"""Rows that are numbered in one transaction, and events: when there are so many, no further row is added."""

ROWS_LIMIT = 200
"""Rows of events that a page of the feed reads, at most."""

MOST_WAITING = 1000
"""Waiting deliveries to a webhook that are counted, at most."""

WEBHOOK_LIMIT = 50
"""Webhooks that have not ended, at most."""

MOST_WAITING = 1000
"""Waiting deliveries to a webhook that are counted, at most."""

TYPES: Sequence[str] = get_args(EventType)

OVERLAP = timedelta(days=1)
"""How long the secret before a new one still signs."""

HASTE = timedelta(minutes=1)
"""How long no other new secret is made, so that who asks twice does not end the one that its receiver still has."""

LEASE = timedelta(minutes=1)
"""How long a delivery is its deliverer's alone; a delivery takes a quarter of it at most."""

PATIENCE = timedelta(days=3)
"""How long a webhook may fail before it is paused."""

WAITS = [
    *(timedelta(seconds=seconds) for seconds in (5, 60, 300, 1800)),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 15, 20, 20)),
]
"""How long a delivery waits after each attempt that failed: in all, somewhat longer than PATIENCE."""

GONE = 410
"""The HTTP status with which a receiver ends its webhook."""


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FeedState:
    """The last number that an event has; whether others wait for theirs; whether holds expired that nobody marked."""

    last: int
    has_unnumbered: bool
    has_expired: bool


async def get_feed_state(session: AsyncSession) -> FeedState:
    """Return how far events are numbered, and what is to be done."""
    [[last, unnumbered, expired]] = await execute(session, queries.select_feed(dialect_of(session)), moment=now())
    return FeedState(last, bool(unnumbered), bool(expired))


async def number_events(session: AsyncSession) -> tuple[int, bool] | None:
    """Give the next numbers to the oldest events without one, and each webhook its deliveries.

    Return the last number, and True if there may be more to number. One transaction at a time does so, and the others
    return None. So when a number can be seen, all below it can: a reader that goes on after the last one it saw misses
    no event, however late it was committed.
    """
    dialect = dialect_of(session)
    async with begin(session):
        turn = await execute(session, queries.lock_numbers(dialect))
        if not turn:
            # The first time, there is no row yet.
            turn = await insert_free(session, EventNumbers, [{"id": 1, "last": 0}], returning=("last",))
        if not turn:
            return None
        [[last]] = turn
        # After the lock: what is found now, nobody else numbers. The webhooks after the events: one that was there
        # before an event is told of it.
        rows, listeners = await execute_together(
            session,
            call(queries.number_events(dialect), most=ROWS_NUMBERED, enough=EVENTS_NUMBERED, last=last),
            call(queries.select_listeners(dialect)),
        )
        total = sum(size for _, size, *_ in rows)
        deliveries = [
            {"webhook_id": id, "event_id": number + place, "type": type}
            for id, types in listeners
            for number, _, type, subject_ids in rows
            for place, subject_id in enumerate(subject_ids)
            if (subject_id == id if type == "webhook.test" else types is None or type in types)
        ]
        if deliveries:
            moment = now()
            insert_rows(session, WebhookDelivery, deliveries, due_at=moment, created_at=moment)
        if rows:
            write_rows(session, EventNumbers, queries.advance_numbers(dialect), 1, last=last + total)
    return last + total, len(rows) == ROWS_NUMBERED or total >= EVENTS_NUMBERED


async def list_events(
    session: AsyncSession, *, after: int | None, types: Collection[str] | None, limit: int
) -> EventsPage:
    """Return up to `limit` events in order, those after this one, with one of these types; without personal data.

    Of at most LOOKED events, or ROWS_LIMIT rows: so it may be short, even empty, before the last. Raises EventsPruned
    and EventUnknown.
    """
    dialect = dialect_of(session)
    bounds = call(queries.select_bounds(dialect))
    [[[last, oldest]]] = await execute_together(session, bounds)
    first = oldest - 1 if after is None else after
    if first > last:
        raise EventUnknown
    until = min(last, first + (LOOKED if types else limit))
    values: dict[str, Any] = {"after": first, "last": until, "limit": ROWS_LIMIT}
    if types:
        values["types"] = [*types]
    query = queries.select_events(dialect, bool(types))
    # The bounds again, after the events: what is pruned meanwhile is not passed over.
    rows, [[_, oldest]] = await execute_together(session, call(query, **values), bounds)
    if oldest > first + 1:
        raise EventsPruned
    events = [*read_events(rows)]
    if len(rows) == ROWS_LIMIT:
        until = min(until, events[-1].id)
    found = [each for each in events if first < each.id <= until][:limit]
    following = found[-1].id if len(found) == limit else until
    items = await show_events(session, found, personal_data=False)
    return EventsPage.model_construct(items=items, next=following)


async def list_newest_events(
    session: AsyncSession, type: str | None, *, before: int, limit: int
) -> tuple[list[EventPublic], int | None]:
    """Return up to `limit` events, newest first, from the first id less than `before`; and where older ones begin.

    With a type, those of at most LOOKED events. Without personal data.
    """
    dialect = dialect_of(session)
    [[last, oldest]] = await execute(session, queries.select_bounds(dialect))
    newest = min(before - 1, last)
    after = max(newest - (LOOKED if type else limit), 0)
    values: dict[str, Any] = {"types": [type]} if type else {}
    query = queries.select_events(dialect, bool(type), newest_first=True)
    rows = await execute(session, query, after=after, last=newest, limit=limit, **values)
    found = [each for each in read_events(rows[::-1]) if after < each.id <= newest][: -limit - 1 : -1]
    following = found[-1].id if len(found) == limit else after + 1
    items = await show_events(session, found, personal_data=False)
    return items, following if following > oldest else None


async def prune_events(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete the oldest events, those from before an instant, and their deliveries; return how many.

    These are the events of one row, or of several rows that have up to `limit` events in all. What was committed before
    an old event is old, whatever its clock said: so the feed has no gap, and a clock that was ahead keeps nothing.
    """
    async with begin(session):
        [[_, oldest]] = await execute(session, queries.select_bounds(dialect_of(session)))
        kept = select(Event.number, Event.size, Event.created_at)
        kept = kept.where(col(Event.number).is_not(None), col(Event.created_at) <= now())
        rows = (await session.exec(kept.order_by(col(Event.number)).limit(limit))).all()
        sums = accumulate(size for _, size, _ in rows)
        counted = [row for row, total in zip(rows, sums, strict=True) if total <= limit] or rows[:1]
        old = [(number or 0) + size for number, size, created_at in counted if created_at < before]
        if not old:
            return 0
        for id in await session.exec(select(Webhook.id)):
            is_its = (col(WebhookDelivery.webhook_id) == id) & (col(WebhookDelivery.event_id) < old[-1])
            await session.exec(sa.delete(WebhookDelivery).where(is_its))
        await session.exec(sa.delete(Event).where(col(Event.number) < old[-1]))
    return int(old[-1] - oldest)


# --- webhooks ---------------------------------------------------------------------------------------------------------

# In id order, so that two transactions that lock the same webhooks cannot deadlock.
WEBHOOKS = select(Webhook).order_by(col(Webhook.id))


def make_secret() -> str:
    """Return a new secret, as Standard Webhooks writes them: `whsec_` and 256 random bits in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class WebhookCreation:
    """A webhook to create."""

    url: str
    types: list[EventType] | None
    personal_data: bool
    actor: Actor | None = None


@isolating_failures
async def create_webhooks(
    session: AsyncSession, creations: Sequence[WebhookCreation]
) -> list[WebhookWithSecret | Refusal]:
    """Create the webhooks; they are told of events that are numbered after that. Refusal: WebhookLimit."""
    moment = now()
    async with begin(session):
        alive = len((await session.exec(select(Webhook.id).where(Webhook.status != "ended"))).all())
        room = max(0, WEBHOOK_LIMIT - alive)
        webhooks = [
            Webhook(
                url=each.url,
                types=each.types,
                personal_data=each.personal_data,
                secret=make_secret(),
                created_at=moment,
            )
            for each in creations[:room]
        ]
        session.add_all(webhooks)
        await session.flush()
        log = Log()
        for creation, webhook in zip(creations, webhooks, strict=False):
            log.did(creation.actor, "webhook.create", webhook_id=webhook.id)
            log.happened("webhook.created", webhook.id, **_state_of(webhook))
        log.store(session, moment)
        return [
            *(show(WebhookWithSecret, webhook) for webhook in webhooks),
            *(WebhookLimit() for _ in creations[room:]),
        ]


def _state_of(webhook: Webhook) -> dict[str, Any]:
    """Return what events tell of a webhook; not its address, in which there may be a secret."""
    return {"status": webhook.status, "types": webhook.types, "personal_data": webhook.personal_data}


@dataclass(frozen=True, slots=True)
class WebhookChange:
    """New values of some fields of a webhook; with rotates, a new secret; with ends, its end; with tests, a test."""

    webhook_id: int
    fields: dict[str, Any] = field(default_factory=dict)
    rotates: bool = False
    ends: bool = False
    tests: bool = False
    actor: Actor | None = None


@isolating_failures
async def change_webhooks(session: AsyncSession, changes: Sequence[WebhookChange]) -> list[WebhookPublic | Refusal]:
    """Apply the changes in order; one that rotates returns a WebhookWithSecret, the only one that has the new secret.

    Refusals: WebhookNotFound, WebhookEnded, SecretJustMade.
    """
    moment = now()
    async with begin(session):
        asked = WEBHOOKS.where(col(Webhook.id).in_({each.webhook_id for each in changes}))
        # New deliveries refer to them, and do not wait for it.
        found = {webhook.id: webhook for webhook in await session.exec(asked.with_for_update(key_share=True))}
        log = Log()
        outcomes = [_change_webhook(each, found.get(each.webhook_id), moment, log) for each in changes]
        log.store(session, moment)
        return outcomes


def _change_webhook(
    change: WebhookChange, webhook: Webhook | None, moment: datetime, log: Log
) -> WebhookPublic | Refusal:
    """Apply one change to the locked row of its webhook, and add it to the `log`."""
    if webhook is None:
        return WebhookNotFound()
    applied = _apply_change(change, webhook, moment)
    if isinstance(applied, Refusal):
        return applied
    if applied is not None:
        done, told = applied
        log.did(change.actor, done, webhook_id=webhook.id)
        log.happened(told, webhook.id, **({} if change.tests else _state_of(webhook)))
    return show(WebhookWithSecret if change.rotates else WebhookPublic, webhook)


def _apply_change(
    change: WebhookChange, webhook: Webhook, moment: datetime
) -> tuple[ActionName, EventType] | Refusal | None:
    """Apply one change; return its names as an action and as an event. The session writes the row at COMMIT."""
    if webhook.status == "ended":
        return None if change.ends else WebhookEnded()
    if change.ends:
        end_webhook(webhook)
        return "webhook.end", "webhook.ended"
    if change.rotates:
        return ("webhook.rotate", "webhook.updated") if _rotate_secret(webhook, moment) else SecretJustMade()
    if change.tests:
        return "webhook.test", "webhook.test"
    changed = {name: value for name, value in change.fields.items() if getattr(webhook, name) != value}
    for name, value in changed.items():
        setattr(webhook, name, value)
    if change.fields.get("status") == "active":
        webhook.failing_since = None
    return ("webhook.update", "webhook.updated") if changed else None


def _rotate_secret(webhook: Webhook, moment: datetime) -> bool:
    """Give a locked webhook a new secret, unless it was given one just now."""
    expires_at = webhook.previous_secret_expires_at
    if expires_at is not None and expires_at > moment + OVERLAP - HASTE:
        return False
    webhook.previous_secret, webhook.previous_secret_expires_at = webhook.secret, moment + OVERLAP
    webhook.secret = make_secret()
    return True


def end_webhook(webhook: Webhook) -> None:
    """End a locked webhook; the session writes it at COMMIT."""
    webhook.status = "ended"
    webhook.secret = webhook.previous_secret = webhook.previous_secret_expires_at = None


async def list_webhooks(session: AsyncSession, *, after: int, limit: int) -> Part:
    """Return up to `limit` webhooks (WebhookPublic) in order of id, from the first id greater than `after`."""
    return await read_part(session, queries.select_webhooks(dialect_of(session)), after=after, limit=limit)


async def get_webhook(session: AsyncSession, id: int) -> WebhookPublic:
    """Return the webhook with this id. Raises WebhookNotFound."""
    for webhook in await session.exec(WEBHOOKS.where(Webhook.id == id)):
        return show(WebhookPublic, webhook)
    raise WebhookNotFound


@dataclass(frozen=True, slots=True)
class Queue:
    """A webhook that has not ended: how many deliveries to it wait, up to MOST_WAITING, and when the first was due."""

    webhook_id: int
    status: WebhookStatus
    waiting: int
    failing_since: datetime | None
    due_at: datetime | None


async def list_queues(session: AsyncSession) -> list[Queue]:
    """Return the queue of each webhook that has not ended, in order of id."""
    rows = await execute(session, queries.select_queues(dialect_of(session)), most=MOST_WAITING)
    return [Queue(*row) for row in rows]


# --- deliveries -------------------------------------------------------------------------------------------------------


async def list_deliveries(
    session: AsyncSession, webhook_id: int, status: str | None, *, after: int, limit: int
) -> Part:
    """Return up to `limit` deliveries (DeliveryPublic) to a webhook, newest first, from the first id less than `after`.

    With a status, those of at most LOOKED: a part may be short. Raises WebhookNotFound.
    """
    await get_webhook(session, webhook_id)
    filters: dict[str, Any] = {"status": status, "looked": LOOKED} if status else {}
    query = queries.select_deliveries(dialect_of(session), bool(status))
    return await read_part(session, query, webhook_id=webhook_id, after=after, limit=limit, **filters)


@dataclass(frozen=True, slots=True)
class Resending:
    """An event to send to a webhook again, or though it did not ask for it."""

    webhook_id: int
    event_id: int
    actor: Actor | None = None


@isolating_failures
async def resend_deliveries(session: AsyncSession, resendings: Sequence[Resending]) -> list[DeliveryPublic | Refusal]:
    """Make each delivery due now, as if it was new. Refusals: WebhookNotFound, WebhookEnded, EventNotFound."""
    moment = now()
    async with begin(session):
        ids = {each.webhook_id for each in resendings}
        webhooks = {webhook.id: webhook for webhook in await session.exec(WEBHOOKS.where(col(Webhook.id).in_(ids)))}
        events = await _find_events(session, {each.event_id for each in resendings})
        refusals = [_judge_resending(each, webhooks.get(each.webhook_id), events) for each in resendings]
        done = [each for each, refusal in zip(resendings, refusals, strict=True) if refusal is None]
        keys = sorted({(each.webhook_id, each.event_id, events[each.event_id].type) for each in done})
        deliveries = await _make_due(session, keys, moment)
        by_operator = [
            action(each.actor, "webhook.resend", webhook_id=each.webhook_id, event_id=each.event_id)
            for each in done
            if each.actor is not None
        ]
        record(session, by_operator, moment)
        return [
            refusal or show(DeliveryPublic, deliveries[each.webhook_id, each.event_id])
            for each, refusal in zip(resendings, refusals, strict=True)
        ]


async def _find_events(session: AsyncSession, ids: Collection[int]) -> dict[int, Happened]:
    """Return the events with these ids that are kept."""
    rows = await execute(session, queries.select_events_by_id(dialect_of(session)), ids=sorted(ids))
    return {each.id: each for each in read_events(rows) if each.id in ids}


def _judge_resending(resending: Resending, webhook: Webhook | None, events: Mapping[int, Happened]) -> Refusal | None:
    if webhook is None:
        return WebhookNotFound()
    if webhook.status == "ended":
        return WebhookEnded()
    return None if resending.event_id in events else EventNotFound()


async def _make_due(
    session: AsyncSession, keys: Sequence[tuple[int, int, EventType]], moment: datetime
) -> dict[tuple[int, int], WebhookDelivery]:
    """Make the deliveries with these keys, in order, due now; one that is not there is made."""
    if not keys:
        return {}
    rows = [dict(zip(("webhook_id", "event_id", "type"), key, strict=True)) for key in keys]
    await insert_free(session, WebhookDelivery, rows, returning=("event_id",), due_at=moment, created_at=moment)
    is_asked = sa.tuple_(col(WebhookDelivery.webhook_id), col(WebhookDelivery.event_id)).in_(key[:2] for key in keys)
    query = select(WebhookDelivery).where(is_asked)
    query = query.order_by(col(WebhookDelivery.webhook_id), col(WebhookDelivery.event_id))
    found = {(each.webhook_id, each.event_id): each for each in await session.exec(query.with_for_update())}
    for delivery in found.values():
        delivery.status, delivery.attempts, delivery.due_at = "waiting", 0, moment
    return found


async def list_due_webhooks(session: AsyncSession) -> list[int]:
    """Return the ids of the active webhooks with deliveries that are due."""
    rows = await execute(session, queries.select_due_webhooks(dialect_of(session)), moment=now())
    return [id for (id,) in rows]


@dataclass(frozen=True, slots=True)
class Due:
    """Deliveries that are now their deliverer's alone, until the LEASE ends: events, each with its attempt's number."""

    url: str
    secrets: Sequence[str]
    events: Sequence[tuple[EventPublic, int]]


async def take_due(session: AsyncSession, webhook_id: int, limit: int) -> Due | None:
    """Take up to `limit` deliveries to a webhook that are due, or None. If their deliverer dies, they are due again."""
    moment = now()
    dialect = dialect_of(session)
    async with begin(session):
        webhook = (await session.exec(WEBHOOKS.where(Webhook.id == webhook_id))).first()
        if webhook is None or webhook.status != "active" or webhook.secret is None:
            return None
        due = await execute(session, queries.select_due(dialect), webhook_id=webhook_id, moment=moment, limit=limit)
        ids = [id for (id,) in due]
        if not ids:
            return None
        leased = await execute(
            session,
            queries.lease_deliveries(dialect),
            its=webhook_id,
            ids=ids,
            moment=moment,
            later=moment + LEASE,
        )
        attempts: dict[int, int] = dict(leased)  # type: ignore[arg-type]
        found = await _find_events(session, {*ids})
        if gone := {*ids} - {*found}:
            # They were sent again while their events were pruned.
            is_gone = (col(WebhookDelivery.webhook_id) == webhook_id) & col(WebhookDelivery.event_id).in_(gone)
            await session.exec(sa.delete(WebhookDelivery).where(is_gone))
        if not found:
            return None
        events = await show_events(session, [found[id] for id in sorted(found)], personal_data=webhook.personal_data)
        valid, expires_at = [webhook.secret], webhook.previous_secret_expires_at
        if webhook.previous_secret and expires_at and expires_at > moment:
            valid.append(webhook.previous_secret)
        return Due(webhook.url, valid, [(each, attempts[each.id]) for each in events])


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome of an attempt to deliver an event; with an error, it failed."""

    event_id: int
    number: int
    status_code: int | None
    error: str | None


async def finish_attempts(session: AsyncSession, webhook_id: int, attempts: Sequence[Attempt]) -> None:
    """Store the outcomes of attempts. What failed is due again later; after 3 days it has failed for good.

    A webhook whose receiver answered 410 ends. One where nothing has arrived for PATIENCE is paused.
    """
    moment = now()
    async with begin(session):
        webhook = (await session.exec(WEBHOOKS.where(Webhook.id == webhook_id).with_for_update(key_share=True))).one()
        ids = {each.event_id for each in attempts}
        query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
        query = query.where(col(WebhookDelivery.event_id).in_(ids)).order_by(col(WebhookDelivery.event_id))
        deliveries = {delivery.event_id: delivery for delivery in await session.exec(query.with_for_update())}
        for attempt in attempts:
            # It is gone if it was pruned meanwhile.
            if delivery := deliveries.get(attempt.event_id):
                _finish_attempt(attempt, delivery, moment)
        tell(session, _judge_webhook(webhook, attempts, moment), moment)


def _finish_attempt(attempt: Attempt, delivery: WebhookDelivery, moment: datetime) -> None:
    if attempt.error is None:
        # Also if another deliverer has taken it since: it has arrived.
        delivery.status, delivery.status_code, delivery.error = "delivered", attempt.status_code, None
    elif delivery.status == "waiting" and delivery.attempts == attempt.number:
        delivery.status_code, delivery.error = attempt.status_code, attempt.error[:200]
        if attempt.number > len(WAITS):
            delivery.status = "failed"
        else:
            # Jitter, so that what failed together is not tried together.
            delivery.due_at = moment + WAITS[attempt.number - 1] * random.uniform(1, 1.1)


def _judge_webhook(webhook: Webhook, attempts: Sequence[Attempt], moment: datetime) -> list[dict[str, Any]]:
    """Change the locked row of a webhook as the outcomes demand; return what happened to it."""
    # None, if all of them were cut off: that says nothing of the receiver.
    if webhook.status == "ended" or not attempts:
        return []
    if any(attempt.status_code == GONE for attempt in attempts):
        end_webhook(webhook)
        return [event("webhook.ended", webhook.id, **_state_of(webhook))]
    if any(attempt.error is None for attempt in attempts):
        webhook.failing_since = None
        return []
    webhook.failing_since = webhook.failing_since or moment
    if webhook.status == "active" and moment - webhook.failing_since > PATIENCE:
        webhook.status = "paused"
        return [event("webhook.updated", webhook.id, **_state_of(webhook))]
    return []
