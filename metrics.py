"""What Savepoint counts, for Prometheus."""

import os
from functools import cache

from prometheus_client import REGISTRY as THIS_PROCESS
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter("savepoint_requests", "Answers given", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("savepoint_request_seconds", "Time from request to answer", ["method", "route"])
BATCH_SIZE = Histogram(
    "savepoint_batch_size",
    "Calls that shared one transaction",
    ["operation"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
QUEUE_LENGTH = Gauge(
    "savepoint_queue_length", "Calls that wait for a batch", ["operation"], multiprocess_mode="livesum"
)
REFUSED = Counter("savepoint_refused", "Requests refused before they reached a route", ["reason"])
TRANSACTIONS_RETRIED = Counter("savepoint_transactions_retried", "Transactions run again after a conflict")
BATCHES_HALVED = Counter("savepoint_batches_halved", "Batches rolled back and replayed in halves to isolate a failure")


@cache
def of_route(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """What counts the answers of a route, and times them; to find it costs as much as to count."""
    return REQUESTS.labels(method, route, status), REQUEST_SECONDS.labels(method, route)


def exposition() -> bytes:
    """All metrics in Prometheus' text format.

    Several workers are added up where PROMETHEUS_MULTIPROC_DIR names a folder that they share (set it before they
    start); without it each answers for itself.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(THIS_PROCESS)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
