"""What /metrics says of the database and the version, asked at each scrape."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric

import crud
from models import now
from operations import Operations
from refusals import Interruption
from schema import Schema, get_state
from webhooks import transactions
from webhooks.transactions import Queue

PATIENCE = 2.0
"""Seconds for the database to answer: Prometheus itself waits for 10 by default."""


async def gather(operations: Operations, schema: Schema, version: str) -> list[Metric]:
    """Return the metrics; of a database that does not answer, only that it is not up."""
    up = GaugeMetricFamily("savepoint_database_up", f"1 if the database answers within {PATIENCE:g} seconds")
    revisions = InfoMetricFamily("savepoint_schema", "The database's revision, and the newest that this code knows")
    balances = GaugeMetricFamily(
        "savepoint_users_balance_minor_units", "The sum of all users' balances", labels=["currency"]
    )
    webhooks: list[Metric] = []
    try:
        async with asyncio.timeout(PATIENCE):
            state = await operations.read(get_state, schema)
            up.add_metric([], 1)
            shown = {"status": state.status, "revision": state.revision or "", "head": state.head}
            revisions.add_metric([], shown)
            for currency, total in await operations.read(crud.sum_balances_of_users):
                balances.add_metric([currency], total)
            webhooks = _describe_webhooks(await operations.read(transactions.list_queues), now())
    except (Interruption, TimeoutError):
        # Up, but without the tables, or not.
        if not up.samples:
            up.add_metric([], 0)
    info = InfoMetricFamily("savepoint", "The service", {"version": version})
    return [info, up, revisions, balances, *webhooks]


def _describe_webhooks(queues: Sequence[Queue], moment: datetime) -> list[Metric]:
    webhooks = GaugeMetricFamily("savepoint_webhooks", "Webhooks that have not ended", labels=["status"])
    statuses = [queue.status for queue in queues]
    for status in ("active", "paused"):
        webhooks.add_metric([status], statuses.count(status))
    waiting = sum(queue.waiting for queue in queues)
    # Of paused ones it would grow until somebody resumes them.
    instants = (each for queue in queues if queue.status == "active" for each in (queue.failing_since, queue.due_at))
    late = max((0.0, *((moment - each).total_seconds() for each in instants if each is not None)))
    return [
        webhooks,
        GaugeMetricFamily("savepoint_webhook_deliveries_waiting", "Deliveries that wait for their receiver", waiting),
        GaugeMetricFamily("savepoint_webhook_wait_seconds", "How long an active webhook has failed or been late", late),
    ]
