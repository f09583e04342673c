"""The statements that webhooks/transactions.py executes, each rendered once for each dialect."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlmodel import SQLModel

from db.prepared import prepared
from db.statements import among, counted, table_of
from models import (
    AccessToken,
    Account,
    DeliveryPublic,
    Event,
    EventNumbers,
    Hold,
    HoldPublic,
    KeyPublic,
    OperatorKey,
    TokenPublic,
    Transaction,
    TransactionPublic,
    Transfer,
    TransferPublic,
    User,
    UserRecord,
    Webhook,
    WebhookDelivery,
    WebhookPublic,
)
from queries import has_expired, part


def _columns_of(model: type[SQLModel], *left_out: str) -> tuple[str, ...]:
    """Return the names of the columns that a schema shows."""
    return tuple(field.alias or name for name, field in model.model_fields.items() if name not in left_out)


SUBJECTS: dict[str, tuple[type[SQLModel], tuple[str, ...]]] = {
    "account": (Account, ("id", "user_id", "currency", "label")),
    "hold": (Hold, _columns_of(HoldPublic, "status", "resolved_at")),
    "key": (OperatorKey, _columns_of(KeyPublic, "name", "revoked_at")),
    "token": (AccessToken, ("user_id", *_columns_of(TokenPublic, "name", "revoked_at"))),
    "transaction": (Transaction, _columns_of(TransactionPublic, "transfers")),
    "transfer": (Transfer, _columns_of(TransferPublic)),
    "user": (User, _columns_of(UserRecord, "status")),
    "webhook": (Webhook, ("id", "created_at")),
}
"""The table that has the subjects of events of a kind, and its columns that never change, or are personal data."""


@prepared
def select_subjects(dialect: str, kind: str) -> Any:
    """SELECT what events show of their subjects `ids` of this kind."""
    model, names = SUBJECTS[kind]
    columns = table_of(model).c
    return sa.select(*(columns[name] for name in names)).where(among(dialect, columns.id, "ids"))


@prepared
def select_feed(_: str) -> Any:
    """SELECT the last number; 1 if events have none yet; 1 if holds have expired at this `moment`, and none says so."""
    unnumbered = sa.select(table_of(Event).c.id).where(_is_unnumbered()).limit(1)
    expired = sa.select(table_of(Hold).c.id).where(has_expired()).limit(1)
    counts = (sa.select(sa.func.count()).select_from(each.subquery()) for each in (unnumbered, expired))
    return sa.select(_last(), *(each.scalar_subquery() for each in counts))


def _last() -> Any:
    return sa.func.coalesce(sa.select(table_of(EventNumbers).c.last).scalar_subquery(), 0)


def _is_unnumbered() -> Any:
    return table_of(Event).c.number.is_(None)


@prepared
def lock_numbers(_: str) -> Any:
    """SELECT … FOR UPDATE the last number, unless another transaction has it."""
    return sa.select(table_of(EventNumbers).c.last).with_for_update(skip_locked=True)


@prepared
def count_unnumbered(_: str) -> Any:
    """SELECT how many events have no number, up to `most`."""
    ids = sa.select(table_of(Event).c.id).where(_is_unnumbered()).limit(sa.bindparam("most", type_=sa.Integer))
    return sa.select(sa.func.count()).select_from(ids.subquery())


@prepared
def select_listeners(_: str) -> Any:
    """SELECT id and types of the webhooks that have not ended."""
    webhook = table_of(Webhook).c
    return sa.select(webhook.id, webhook.types).where(webhook.status != "ended").order_by(webhook.id)


@prepared
def number_events(dialect: str) -> Any:
    """UPDATE the `take` oldest events without a number: they get those after `last`."""
    events = table_of(Event)
    oldest = sa.select(events.c.id).where(_is_unnumbered()).order_by(events.c.id)
    oldest_ids = oldest.limit(sa.bindparam("take", type_=sa.Integer)).subquery().c.id
    place = sa.func.row_number().over(order_by=oldest_ids)
    placed = sa.select(
        oldest_ids.label("id"), (place + sa.bindparam("last", type_=sa.BigInteger)).label("number")
    ).subquery()
    return counted(dialect, sa.update(events).where(events.c.id == placed.c.id).values(number=placed.c.number))


@prepared
def advance_numbers(dialect: str) -> Any:
    """UPDATE the last number: there are so many `more`."""
    numbers = table_of(EventNumbers)
    more = sa.bindparam("more", type_=sa.BigInteger)
    return counted(dialect, sa.update(numbers).values(last=numbers.c.last + more))


@prepared
def insert_deliveries(dialect: str) -> Any:
    """INSERT the deliveries of the events after `last` with one of these `types`, and of tests of it, to a webhook."""
    event = table_of(Event).c
    webhook_id = sa.bindparam("webhook_id", type_=sa.BigInteger)
    moment = sa.bindparam("moment", type_=event.created_at.type)
    is_test = event.type == sa.literal_column("'webhook.test'")
    is_its = sa.case((is_test, event.subject_id == webhook_id), else_=among(dialect, event.type, "types"))
    values: dict[str, Any] = {
        "webhook_id": webhook_id,
        "event_id": event.number,
        "status": sa.literal_column("'waiting'"),
        "attempts": sa.literal_column("0"),
        "due_at": moment,
        "created_at": moment,
    }
    new = sa.select(*values.values()).where(event.number > sa.bindparam("last", type_=sa.BigInteger), is_its)
    return sa.insert(table_of(WebhookDelivery)).from_select([*values], new)


@prepared
def select_bounds(_: str) -> Any:
    """SELECT the last number that was given, and the oldest one that is kept, or the one after the last."""
    oldest = sa.select(sa.func.min(table_of(Event).c.number)).scalar_subquery()
    return sa.select(_last(), sa.func.coalesce(oldest, _last() + 1))


@prepared
def select_events(dialect: str, has_types: bool) -> Any:
    """SELECT up to `limit` events in order, after this one and up to `last`; with `types`, those of them."""
    number, last = table_of(Event).c.number, sa.bindparam("last", type_=sa.BigInteger)
    query = sa.select(*_told()).where(number > sa.bindparam("after", type_=sa.BigInteger), number <= last)
    if has_types:
        query = query.where(among(dialect, table_of(Event).c.type, "types"))
    return query.order_by(number).limit(sa.bindparam("limit", type_=sa.Integer))


@prepared
def select_events_by_number(dialect: str) -> Any:
    """SELECT the events with these `numbers`, as select_events."""
    return sa.select(*_told()).where(among(dialect, table_of(Event).c.number, "numbers"))


def _told() -> Iterator[Any]:
    event = table_of(Event).c
    return (event[name] for name in ("number", "type", "subject_id", "data", "created_at"))


@prepared
def select_webhooks(dialect: str) -> Any:
    """SELECT a part of the list of webhooks."""
    webhook = table_of(Webhook).c
    return part(dialect, sa.select(*(webhook[name] for name in WebhookPublic.model_fields)), webhook.id)


@prepared
def select_deliveries(dialect: str, has_status: bool) -> Any:
    """SELECT a part of the list of a webhook's deliveries, newest first; with a `status`, of up to `looked`."""
    deliveries, event = table_of(WebhookDelivery), table_of(Event).c
    id = deliveries.c.event_id
    is_its, after = deliveries.c.webhook_id == sa.bindparam("webhook_id"), sa.bindparam("after", type_=sa.BigInteger)
    most = sa.bindparam("looked", type_=sa.Integer) if has_status else sa.bindparam("limit", type_=sa.Integer) + 1
    read = sa.select(deliveries).where(is_its, id < after).order_by(id.desc()).limit(most).cte("read")
    lowest = sa.select(sa.func.min(read.c.event_id)).having(sa.func.count() == most).scalar_subquery()
    columns = {**read.c, "type": event.type}
    query = sa.select(*(columns[name] for name in DeliveryPublic.model_fields)).join_from(
        read, event.number.table, event.number == read.c.event_id
    )
    if has_status:
        query = query.where(read.c.status == sa.bindparam("status"))
    return part(dialect, query, read.c.event_id, newest_first=True, otherwise=lowest)


@prepared
def select_due_webhooks(_: str) -> Any:
    """SELECT the ids of the active webhooks with deliveries that are due at this `moment`."""
    webhook, delivery = table_of(Webhook).c, table_of(WebhookDelivery).c
    is_due = sa.exists().where(delivery.webhook_id == webhook.id, _is_due())
    return sa.select(webhook.id).where(webhook.status == "active", is_due)


def _is_due() -> Any:
    """Return the condition that a delivery is due, in the words of its index."""
    delivery = table_of(WebhookDelivery).c
    return (delivery.status == sa.literal_column("'waiting'")) & (
        delivery.due_at <= sa.bindparam("moment", type_=delivery.due_at.type)
    )


@prepared
def select_due(_: str) -> Any:
    """SELECT … FOR UPDATE the event ids of up to `limit` deliveries to a webhook that are due, the oldest first."""
    delivery = table_of(WebhookDelivery).c
    query = sa.select(delivery.event_id).where(delivery.webhook_id == sa.bindparam("webhook_id"), _is_due())
    query = query.order_by(delivery.due_at, delivery.event_id).limit(sa.bindparam("limit", type_=sa.Integer))
    return query.with_for_update(skip_locked=True)


@prepared
def lease_deliveries(dialect: str) -> Any:
    """UPDATE the deliveries of the events `ids` to a webhook: attempted once more now, and due again `later`."""
    deliveries = table_of(WebhookDelivery)
    instant = deliveries.c.due_at.type
    is_its = (deliveries.c.webhook_id == sa.bindparam("its")) & among(dialect, deliveries.c.event_id, "ids")
    values: dict[str, Any] = {
        "attempts": deliveries.c.attempts + 1,
        "attempted_at": sa.bindparam("moment", type_=instant),
        "due_at": sa.bindparam("later", type_=instant),
    }
    returning = (deliveries.c.event_id, deliveries.c.attempts)
    return sa.update(deliveries).where(is_its).values(values).returning(*returning)
