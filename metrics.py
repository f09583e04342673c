"""The counters of Savepoint, for Prometheus."""

import os
from functools import cache
from pathlib import Path

from prometheus_client import REGISTRY as THIS_PROCESS
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

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


METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""The methods that become labels where a route takes them; any other that callers write is "other"."""


@cache
def of_route(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return the counter and the timer of a route; they are cached, since finding them costs as much as counting."""
    return REQUESTS.labels(method, route, status), REQUEST_SECONDS.labels(method, route)


def exposition() -> bytes:
    """All metrics in Prometheus' text format.

    Several workers are added up where PROMETHEUS_MULTIPROC_DIR names a folder that they share (set it before they
    start); without it each answers for itself.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest(THIS_PROCESS)
    # What a worker that was killed had waiting is no longer waiting.
    for pid in ended_processes(Path(folder)):
        mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def ended_processes(folder: Path) -> set[int]:
    """The processes that left files in the folder and run no more."""
    # prometheus_client ends the name of each file with the id of the process that writes it.
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("*_*.db")}
    return {pid for pid in pids if not is_running(pid)}


def is_running(pid: int) -> bool:
    """Return True if there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
