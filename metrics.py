"""The metrics of Savepoint, for Prometheus."""

import os
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
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
QUEUE_LENGTH = Gauge(
    "savepoint_queue_length", "Calls that wait for a batch", ["operation"], multiprocess_mode="livesum"
)
REFUSED = Counter("savepoint_refused", "Requests refused before they reached a route", ["reason"])
TRANSACTIONS_RETRIED = Counter("savepoint_transactions_retried", "Transactions run again after a conflict")
BATCHES_HALVED = Counter("savepoint_batches_halved", "Batches rolled back and replayed in halves to isolate a failure")


METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""The methods that become labels where a route takes them; any other is "other"."""


@cache
def of_route(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return the counter and the timer of a route, cached, since a look-up costs as much as counting."""
    return REQUESTS.labels(method, route, status), REQUEST_SECONDS.labels(method, route)


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format.

    With PROMETHEUS_MULTIPROC_DIR, a folder that the workers share (set it before they start), they are the sums of all
    workers; without it those of this worker.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest()
    # The calls that waited in a worker that was killed no longer wait.
    for pid in _ended_processes(Path(folder)):
        mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


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
