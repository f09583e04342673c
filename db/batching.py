"""Many concurrent calls, one crud call: a batch is all that waits when a task becomes free."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

import metrics
import tracing
from refusals import Interruption, Overloaded, ShuttingDown

ANSWERED_AT_ONCE = 50
"""Callers that get their outcomes in one turn of the event loop; answering them takes some milliseconds."""

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(slots=True, eq=False)
class Call(Generic[Item, Outcome]):
    """One caller's item, and the future that it awaits."""

    item: Item
    outcome: asyncio.Future[Outcome]
    since: float
    wait: tracing.Wait | None
    begun: bool = False


@dataclass(eq=False)
class Batcher(Generic[Item, Outcome]):
    """Coalesces concurrent calls of one operation into few calls of a crud function.

    There is no timer: a call on an idle batcher starts at once, and those that come while it runs form the next
    batch. At most `tasks` batches run at a time, each of at most `batch_limit` items; at most `queue_limit` calls
    wait. `run` takes a list of items and returns their outcomes in order; an exception among them is the failure
    of that item. If it raises, every item of the batch fails with that exception.
    """

    name: str
    run: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]]
    _: KW_ONLY
    tasks: int
    batch_limit: int
    queue_limit: int
    deadline: float
    too_late: type[Interruption]
    waiting: deque[Call[Item, Outcome]] = field(default_factory=deque, init=False)
    running: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.batch_size = metrics.BATCH_SIZE.labels(self.name)
        self.queue_wait_seconds = metrics.QUEUE_WAIT_SECONDS.labels(self.name)
        self.transaction_seconds = metrics.TRANSACTION_SECONDS.labels(self.name)
        self.queue_length = metrics.QUEUE_LENGTH.labels(self.name)

    async def __call__(self, item: Item) -> Outcome:
        """Run `item` in one batch with all others that wait; raise the exception that is its outcome.

        Raises Overloaded or ShuttingDown where nothing was begun, and `too_late` after `deadline` seconds where
        the batch that holds the item has not ended: it goes on, since a cancelled COMMIT would look done.
        """
        if self.closed:
            raise ShuttingDown
        if len(self.waiting) >= self.queue_limit:
            raise Overloaded
        loop = asyncio.get_running_loop()
        call: Call[Item, Outcome] = Call(item, loop.create_future(), perf_counter(), tracing.wait(self.name))
        self.waiting.append(call)
        self.queue_length.set(len(self.waiting))
        if len(self.running) < self.tasks:
            self.running.add(loop.create_task(self.work()))
        timer = loop.call_later(self.deadline, self.give_up, call)
        try:
            return await call.outcome
        finally:
            timer.cancel()
            if call.wait is not None:
                call.wait.end()

    def give_up(self, call: Call[Item, Outcome]) -> None:
        """Answer a caller whose deadline has passed; a batch that has begun goes on."""
        settle(call, self.too_late() if call.begun else Overloaded())

    async def close(self) -> None:
        """Refuse further calls, and finish those that were accepted."""
        self.closed = True
        while self.running:
            await asyncio.wait(self.running)

    async def work(self) -> None:
        """Run batch after batch until nothing waits."""
        try:
            while batch := self.take_waiting():
                await self.run_batch(batch)
        finally:
            # Not in a done callback: a call before that would count on a task that has ended.
            self.running -= {asyncio.current_task()}

    async def run_batch(self, batch: Sequence[Call[Item, Outcome]]) -> None:
        """Run one batch, and give each caller its own outcome."""
        began = perf_counter()
        self.batch_size.observe(len(batch))
        self.queue_wait_seconds.observe(began - batch[0].since)
        outcomes: Sequence[Outcome | Exception]
        try:
            with tracing.batch(self.name, [call.wait for call in batch if call.wait is not None]):
                outcomes = await self.run([call.item for call in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        self.transaction_seconds.observe(perf_counter() - began)
        self.settle_in_turn(deque(zip(batch, outcomes, strict=True)))

    def settle_in_turn(self, settled: deque[tuple[Call[Item, Outcome], Outcome | Exception]]) -> None:
        """Give the callers their outcomes, ANSWERED_AT_ONCE at a time, so that many do not keep others waiting."""
        for _ in range(min(ANSWERED_AT_ONCE, len(settled))):
            settle(*settled.popleft())
        if settled:
            asyncio.get_running_loop().call_soon(self.settle_in_turn, settled)

    def take_waiting(self) -> list[Call[Item, Outcome]]:
        """The next batch, in order of arrival, without calls that were answered at their deadline.

        It is one task's share of what waits, so that calls share a batch only where there are more of them than tasks.
        """
        batch: list[Call[Item, Outcome]] = []
        limit = min(self.batch_limit, math.ceil(len(self.waiting) / self.tasks))
        while self.waiting and len(batch) < limit:
            call = self.waiting.popleft()
            if not call.outcome.done():
                call.begun = True
                batch.append(call)
        self.queue_length.set(len(self.waiting))
        return batch


def settle(call: Call[Item, Outcome], outcome: Outcome | Exception) -> None:
    """Give the caller its outcome, unless it was answered before."""
    if call.outcome.done():
        return
    if isinstance(outcome, Exception):
        call.outcome.set_exception(outcome)
    else:
        call.outcome.set_result(outcome)
