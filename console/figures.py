"""The figures of the dashboard: of the database by queries that read few rows, of this worker by its metrics."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any

from fastapi import Request
from prometheus_client import Counter, Gauge, Histogram

import crud
import metrics
from alembic_savepoint.backup.save_files import Save
from alembic_savepoint.backup.saves import list_saves
from api.callers import operations_of
from console.subjects import has_events
from models import Transfer, User, now
from schema import Schema, SchemaState, get_state
from webhooks import transactions
from webhooks.transactions import MOST_WAITING, Queue

MINUTE = timedelta(minutes=1)


@dataclass(slots=True)
class Batches:
    """One operation of this worker: its transactions, the calls that shared them, and those that wait."""

    operation: str
    transactions: int = 0
    calls: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Webhooks:
    """How many webhooks are active and paused, and how many deliveries wait, or at least so many."""

    active: int
    paused: int
    waiting: int
    is_least: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """All that the dashboard shows."""

    registrations: int
    transfers: int
    most_counted: int
    totals: list[tuple[str, int]]
    schema: SchemaState
    last_save: Save | None
    webhooks: Webhooks | None
    batches: list[Batches] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)


async def collect_figures(request: Request) -> Figures:
    """Return the figures as they are now."""
    operations, since = operations_of(request), now() - MINUTE
    schema: Schema = request.app.state.schema
    state = await operations.read(get_state, schema)
    # A database that is behind may not have the tables of webhooks yet: the dashboard is to say that it is behind.
    has_tables = state.status in ("ready", "ahead")
    queues = await operations.read(transactions.list_queues) if has_tables else []
    return Figures(
        registrations=await operations.read(crud.count_newest, User, since),
        transfers=await operations.read(crud.count_newest, Transfer, since),
        most_counted=crud.MOST_COUNTED,
        totals=[*await operations.read(crud.sum_balances_of_users)],
        schema=state,
        last_save=next(iter(await asyncio.to_thread(list_saves, operations.settings.saves_dir)), None),
        webhooks=_sum_up(queues) if queues or has_events(request) else None,
        batches=_list_batches(),
        refusals=_list_refusals(),
        answers=_count_answers(),
    )


def _sum_up(queues: list[Queue]) -> Webhooks:
    statuses = [each.status for each in queues]
    waiting = [each.waiting for each in queues]
    return Webhooks(statuses.count("active"), statuses.count("paused"), sum(waiting), MOST_WAITING in waiting)


def _samples(metric: Counter | Gauge | Histogram) -> list[Any]:
    return [*chain.from_iterable(each.samples for each in metric.collect())]


def _list_batches() -> list[Batches]:
    """Return the operations that had calls, most calls first."""
    found: dict[str, Batches] = {}
    for sample in [*_samples(metrics.BATCH_SIZE), *_samples(metrics.QUEUE_LENGTH)]:
        operation = sample.labels["operation"]
        batches = found.setdefault(operation, Batches(operation))
        if sample.name.endswith("_count"):
            batches.transactions = int(sample.value)
        elif sample.name.endswith("_sum"):
            batches.calls = int(sample.value)
        elif sample.name.endswith("_length"):
            batches.waiting = int(sample.value)
    return sorted((each for each in found.values() if each.calls), key=lambda each: (-each.calls, each.operation))


def _list_refusals() -> list[tuple[str, int]]:
    """Return how often each type of problem was answered, most frequent first."""
    counted = [(sample.labels["type"], int(sample.value)) for sample in _samples(metrics.PROBLEMS)]
    return sorted(((kind, number) for kind, number in counted if number), key=lambda each: (-each[1], each[0]))


def _count_answers() -> dict[str, int]:
    """Return how many answers were sent, by the first digit of their status: 2xx, 4xx, 5xx."""
    counted: dict[str, int] = {}
    for sample in _samples(metrics.REQUESTS):
        kind = f"{sample.labels['status'][0]}xx"
        counted[kind] = counted.get(kind, 0) + int(sample.value)
    return dict(sorted(counted.items()))
