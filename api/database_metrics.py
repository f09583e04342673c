"""What /metrics says of the database and the version, asked at each scrape."""

import asyncio

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric

import crud
from operations import Operations
from refusals import Interruption
from schema import Schema, get_state

PATIENCE = 2.0
"""Seconds for the database to answer: Prometheus itself waits for 10 by default."""


async def gather(operations: Operations, schema: Schema, version: str) -> list[Metric]:
    """Return the metrics; of a database that does not answer, only that it is not up."""
    up = GaugeMetricFamily("savepoint_database_up", f"1 if the database answers within {PATIENCE:g} seconds")
    revisions = InfoMetricFamily("savepoint_schema", "The database's revision, and the newest that this code knows")
    balances = GaugeMetricFamily(
        "savepoint_users_balance_minor_units", "The sum of all users' balances", labels=["currency"]
    )
    try:
        async with asyncio.timeout(PATIENCE):
            state = await operations.read(get_state, schema)
            up.add_metric([], 1)
            shown = {"status": state.status, "revision": state.revision or "", "head": state.head}
            revisions.add_metric([], shown)
            for currency, total in await operations.read(crud.sum_balances_of_users):
                balances.add_metric([currency], total)
    except (Interruption, TimeoutError):
        # Up, but without the tables, or not.
        if not up.samples:
            up.add_metric([], 0)
    return [InfoMetricFamily("savepoint", "The service", {"version": version}), up, revisions, balances]
