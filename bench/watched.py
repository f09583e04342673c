"""Savepoint, which also counts how long its calls wait for their batches."""

import time
from typing import Any

from prometheus_client import Counter

import operations
from db.batching import Batcher, Item, Outcome
from main import app

__all__ = ["app"]

WAITED = Counter("savepoint_waited_seconds", "Time that calls waited for their batches")


class WatchedBatcher(Batcher[Item, Outcome]):
    """A batcher that adds up how long the calls of each batch have waited."""

    def take_waiting(self) -> Any:
        """The next batch."""
        batch: Any = super().take_waiting()
        moment = time.perf_counter()
        WAITED.inc(sum(moment - call.since for call in batch))
        return batch


operations.Batcher = WatchedBatcher  # type: ignore[attr-defined]
