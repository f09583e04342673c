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
    numbers = table_of(EventNumbers).c
    return sa.func.coalesce(sa.select(numbers.last).where(numbers.id == sa.literal_column("1")).scalar_subquery(), 0)


def _is_unnumbered() -> Any:
    return table_of(Event).c.number.is_(None)


@prepared
def lock_numbers(_: str) -> Any:
    """SELECT … FOR UPDATE the last number, unless another transaction has it."""
    numbers = table_of(EventNumbers).c
    return sa.select(numbers.last).where(numbers.id == sa.literal_column("1")).with_for_update(skip_locked=True)


@prepared
def select_listeners(_: str) -> Any:
    """SELECT id and types of the webhooks that have not ended."""
    webhook = table_of(Webhook).c
    return sa.select(webhook.id, webhook.types).where(webhook.status != "ended").order_by(webhook.id)


@prepared
def number_events(_: str) -> Any:
    """UPDATE the `most` oldest rows of events without a number, or fewer that have `enough` events; return them.

    They get the numbers after `last`.
    """
    events = table_of(Event)
    oldest = sa.select(events.c.id, events.c.size).where(_is_unnumbered()).order_by(events.c.id)
    taken = oldest.limit(sa.bindparam("most", type_=sa.Integer)).subquery().c
    before = sa.cast(sa.func.sum(taken.size).over(order_by=taken.id) - taken.size, sa.BigInteger)
    summed = sa.select(taken.id, before.label("before")).subquery().c
    is_numbered = (events.c.id == summed.id) & (summed.before < sa.bindparam("enough", type_=sa.BigInteger))
    number = summed.before + sa.bindparam("last", type_=sa.BigInteger) + 1
    update = sa.update(events).where(is_numbered).values(number=number)
    return update.returning(events.c.number, events.c.size, events.c.type, events.c.subject_ids)


@prepared
def advance_numbers(dialect: str) -> Any:
    """UPDATE the last number to `last`."""
    last = sa.bindparam("last", type_=sa.BigInteger)
    numbers = table_of(EventNumbers)
    return counted(dialect, sa.update(numbers).where(numbers.c.id == sa.literal_column("1")).values({"last": last}))


@prepared
def select_bounds(_: str) -> Any:
    """SELECT the last number that was given, and the oldest one that is kept, or the one after the last."""
    oldest = sa.select(sa.func.min(table_of(Event).c.number)).scalar_subquery()
    return sa.select(_last(), sa.func.coalesce(oldest, _last() + 1))


@prepared
def select_events(dialect: str, has_types: bool, newest_first: bool = False) -> Any:
    """SELECT up to `limit` rows with the events after this one and up to `last`; with `types`, those of them."""
    number, last = table_of(Event).c.number, sa.bindparam("last", type_=sa.BigInteger)
    first = sa.func.coalesce(_row_of(sa.bindparam("after", type_=sa.BigInteger) + 1), 0)
    query = sa.select(*_told()).where(number >= first, number <= last)
    if has_types:
        query = query.where(among(dialect, table_of(Event).c.type, "types"))
    order = number.desc() if newest_first else number
    return query.order_by(order).limit(sa.bindparam("limit", type_=sa.Integer))


def _row_of(id: Any) -> Any:
    """Return the number of the row that has the event with this id."""
    among_all = table_of(Event).alias().c.number
    found = sa.select(sa.func.max(among_all)).where(among_all <= id)
    return found.scalar_subquery().correlate_except(among_all.table)


@prepared
def select_events_by_id(dialect: str) -> Any:
    """SELECT the rows with the events `ids`, as select_events."""
    if dialect == "sqlite":
        ids = sa.func.json_each(sa.bindparam("ids", type_=sa.JSON)).table_valued("value")
    else:
        ids = sa.func.unnest(sa.bindparam("ids", type_=sa.ARRAY(sa.BigInteger))).table_valued("value", name="ids")
        ids = ids.render_derived()
    rows = sa.select(_row_of(ids.c.value)).select_from(ids)
    return sa.select(*_told()).where(table_of(Event).c.number.in_(rows))


def _told() -> Iterator[Any]:
    event = table_of(Event).c
    return (event[name] for name in ("number", "type", "subject_ids", "data", "created_at"))


@prepared
def select_webhooks(dialect: str) -> Any:
    """SELECT a part of the list of webhooks."""
    webhook = table_of(Webhook).c
    return part(dialect, sa.select(*(webhook[name] for name in WebhookPublic.model_fields)), webhook.id)


@prepared
def select_queues(_: str) -> Any:
    """SELECT the webhooks that have not ended: how many deliveries wait, up to `most`, and when the first was due."""
    webhooks, delivery = table_of(Webhook), table_of(WebhookDelivery).c
    is_its = (delivery.webhook_id == webhooks.c.id) & _is_waiting()
    waiting = sa.select(delivery.event_id).where(is_its).limit(sa.bindparam("most", type_=sa.Integer))
    number = sa.select(sa.func.count()).select_from(waiting.correlate(webhooks).subquery()).scalar_subquery()
    due_at = sa.select(sa.func.min(delivery.due_at)).where(is_its).correlate(webhooks).scalar_subquery()
    alive = sa.select(webhooks.c.id, webhooks.c.status, number, webhooks.c.failing_since, due_at)
    return alive.where(webhooks.c.status != "ended").order_by(webhooks.c.id)


@prepared
def select_deliveries(dialect: str, has_status: bool) -> Any:
    """SELECT a part of the list of a webhook's deliveries, newest first; with a `status`, of up to `looked`."""
    deliveries = table_of(WebhookDelivery)
    id = deliveries.c.event_id
    is_its, after = deliveries.c.webhook_id == sa.bindparam("webhook_id"), sa.bindparam("after", type_=sa.BigInteger)
    most = sa.bindparam("looked", type_=sa.Integer) if has_status else sa.bindparam("limit", type_=sa.Integer) + 1
    read = sa.select(deliveries).where(is_its, id < after).order_by(id.desc()).limit(most).cte("read")
    lowest = sa.select(sa.func.min(read.c.event_id)).having(sa.func.count() == most).scalar_subquery()
    query = sa.select(*(read.c[name] for name in DeliveryPublic.model_fields))
    if has_status:
        query = query.where(read.c.status == sa.bindparam("status"))
    return part(dialect, query, read.c.event_id, newest_first=True, otherwise=lowest)


@prepared
def select_due_webhooks(_: str) -> Any:
    """SELECT the ids of the active webhooks with deliveries that are due at this `moment`."""
    webhook, delivery = table_of(Webhook).c, table_of(WebhookDelivery).c
    is_due = sa.exists().where(delivery.webhook_id == webhook.id, _is_due())
    # In order, so that PostgreSQL reads them by their index.
    return sa.select(webhook.id).where(webhook.status == "active", is_due).order_by(webhook.id)


def _is_due() -> Any:
    """Return the condition that a delivery is due, in the words of its index."""
    delivery = table_of(WebhookDelivery).c
    return _is_waiting() & (delivery.due_at <= sa.bindparam("moment", type_=delivery.due_at.type))


def _is_waiting() -> Any:
    return table_of(WebhookDelivery).c.status == sa.literal_column("'waiting'")


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
