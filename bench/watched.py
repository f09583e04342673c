"""Savepoint, which also counts how long its calls wait for their batches."""

import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter

import operations
from db import batching
from db.batching import Batcher, Call, Item, Outcome
from main import app

__all__ = ["app"]

WAITED = Counter("savepoint_waited_seconds", "Time that calls waited for their batches")


@dataclass(slots=True, eq=False)
class TimedCall(Call[Item, Outcome]):
    """A call that knows when it came."""

    since: float = field(default_factory=time.perf_counter)


class WatchedBatcher(Batcher[Item, Outcome]):
    """A batcher that adds up how long the calls of each batch have waited."""

    def take_waiting(self) -> Any:
        """The next batch."""
        batch: Any = super().take_waiting()
        moment = time.perf_counter()
        WAITED.inc(sum(moment - call.since for call in batch))
        return batch


batching.Call = TimedCall  # type: ignore[misc]
operations.Batcher = WatchedBatcher  # type: ignore[attr-defined]
