"""The metrics of Savepoint, for Prometheus."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter("savepoint_requests", "Responses sent", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("savepoint_request_seconds", "Time from request to response", ["method", "route"])
BATCH_SIZE = Histogram(
    "savepoint_batch_size",
    "Calls that shared one transaction",
    ["operation"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
# Few, since each operation has its own.
SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2, 10)
QUEUE_WAIT_SECONDS = Histogram(
    "savepoint_queue_wait_seconds",
    "Time that the first call of a batch waited for it: none of the others waited longer",
    ["operation"],
    buckets=SECONDS,
)
TRANSACTION_SECONDS = Histogram(
    "savepoint_transaction_seconds",
    "Time from the start of a batch to its outcomes, with retries",
    ["operation"],
    buckets=SECONDS,
)
CONNECTIONS_USED = Gauge(
    "savepoint_database_connections_used", "Connections of the pool that are in use", multiprocess_mode="livesum"
)
CONNECTIONS_LIMIT = Gauge(
    "savepoint_database_connections_limit", "Connections that the pool may open", multiprocess_mode="livesum"
)
QUEUE_LENGTH = Gauge(
    "savepoint_queue_length", "Calls that wait for a batch", ["operation"], multiprocess_mode="livesum"
)
PROBLEMS = Counter("savepoint_problems", "Requests answered with a problem", ["type"])
REFUSED = Counter("savepoint_refused", "Requests refused before they reached a route", ["reason"])
TRANSACTIONS_RETRIED = Counter("savepoint_transactions_retried", "Transactions run again after a conflict")
BATCHES_HALVED = Counter("savepoint_batches_halved", "Batches rolled back and replayed in halves to isolate a failure")
DELIVERIES = Counter("savepoint_webhook_deliveries", "Attempts to deliver an event to a webhook", ["outcome"])
for outcome in ("delivered", "failed"):
    DELIVERIES.labels(outcome)


METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""The methods that become labels where a route takes them; any other is "other"."""


@cache
def of_route(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return the counter and the timer of a route, cached, since a look-up costs as much as counting."""
    return REQUESTS.labels(method, route, status), REQUEST_SECONDS.labels(method, route)


@cache
def of_problem(type_: str) -> Counter:
    """Return the counter of a type of problems, such as /problems/locked."""
    return PROBLEMS.labels(type_.rpartition("/")[2])


class Gathered:
    """Metrics that were asked for at a scrape, as a registry takes them."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Sequence[Metric]:
        """Return them."""
        return self.families


def exposition(gathered: Sequence[Metric] = ()) -> bytes:
    """Return all metrics, and those that were gathered elsewhere, in Prometheus' text format.

    With PROMETHEUS_MULTIPROC_DIR, a folder that the workers share (set it before they start), they are the sums of all
    workers; without it those of this worker.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    own = CollectorRegistry()
    own.register(Gathered(gathered))
    if folder is None:
        return generate_latest() + generate_latest(own)
    # The calls that waited in a worker that was killed no longer wait.
    for pid in _ended_processes(Path(folder)):
        mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry) + generate_latest(own)


def _ended_processes(folder: Path) -> set[int]:
    # prometheus_client ends the name of each file with the id of the process that writes it.
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("*_*.db")}
    return {pid for pid in pids if not _is_running(pid)}


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
