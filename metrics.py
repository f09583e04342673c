"""What Savepoint counts, for Prometheus."""

import os
import time

from prometheus_client import REGISTRY as THIS_PROCESS
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Counter("savepoint_requests", "Answers given", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("savepoint_request_seconds", "Time from request to answer", ["method", "route"])
BATCH_SIZE = Histogram(
    "savepoint_batch_size",
    "Calls that shared one transaction",
    ["operation"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
QUEUE_LENGTH = Gauge("savepoint_queue_length", "Calls that wait for a batch", ["operation"])
TRANSACTIONS_RETRIED = Counter("savepoint_transactions_retried", "Transactions run again after a conflict")
BATCHES_HALVED = Counter("savepoint_batches_halved", "Batches rolled back and replayed in halves to isolate a failure")


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


class CountRequests:
    """ASGI middleware: counts each answer by route template, so that ids never become labels."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            REQUESTS.labels(scope["method"], route, status).inc()
            REQUEST_SECONDS.labels(scope["method"], route).observe(time.perf_counter() - began)
