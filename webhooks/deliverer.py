"""The deliverer: sends what is due. Any number of them may run, in the service and beside it."""

import asyncio
import logging
from collections.abc import Sequence

from pydantic_core import to_json

import metrics
from db.database import Database
from models import EventPublic
from refusals import Interruption
from webhooks import transactions
from webhooks.sending import Outgoing, Sender
from webhooks.sequencer import Sequencer
from webhooks.transactions import Attempt, Due

logger = logging.getLogger("savepoint")

LOOK_EACH = 1.0
"""Seconds between two looks for what is due, where there is no news."""

SENT_TOGETHER = 10
"""Deliveries to a webhook that are under way at once."""

LONGEST_PAUSE = 60.0
"""Seconds between two attempts at a receiver that fails, at most: they are doubled from 1."""

ENDING_SECONDS = 5
"""Seconds that deliveries may take to their end when the process is told to stop; what is cut off is due again."""


class Deliverer:
    """Sends deliveries that are due, those of each webhook in a task of its own, so that none waits for another."""

    def __init__(self, database: Database, sender: Sender, sequencer: Sequencer) -> None:
        self.database = database
        self.sender = sender
        self.sequencer = sequencer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Task[Attempt]] = set()

    async def run(self) -> None:
        """Look for what is due until the sequencer ends."""
        while not self.sequencer.is_ending:
            try:
                for id in await self.database.read(transactions.list_due_webhooks):
                    if id not in self._tasks or self._tasks[id].done():
                        self._tasks[id] = asyncio.create_task(self._deliver_to(id))
            except Interruption:
                # The sequencer reports it.
                pass
            except Exception:
                logger.exception("What is due could not be read; this is tried again.")
            await self.sequencer.wait(LOOK_EACH)
        # Those that are just taking deliveries are about to send them.
        if tasks := [*self._tasks.values()]:
            await asyncio.wait(tasks, timeout=ENDING_SECONDS)
        for sending in self._sending:
            sending.cancel()
        await asyncio.gather(*tasks)

    async def _deliver_to(self, webhook_id: int) -> None:
        """Send what is due to a webhook until nothing is. While it fails, one at a time, with growing pauses."""
        pause = 0.0
        try:
            while not self.sequencer.is_ending:
                limit = 1 if pause else SENT_TOGETHER
                due = await self.database.write(transactions.take_due, webhook_id, limit)
                if due is None:
                    return
                attempts = await self._send(due)
                await self.database.write(transactions.finish_attempts, webhook_id, attempts)
                is_failing = all(attempt.error is not None for attempt in attempts)
                pause = min(2 * pause or 1.0, LONGEST_PAUSE) if is_failing else 0.0
                await self._rest(pause)
        except Interruption:
            # Nothing is lost: what was taken is due again when its lease ends.
            return
        except Exception:
            logger.exception("Deliveries to webhook %d failed; they are tried again.", webhook_id)

    async def _rest(self, seconds: float) -> None:
        while seconds > 0 and not self.sequencer.is_ending:
            await asyncio.sleep(min(seconds, LOOK_EACH))
            seconds -= LOOK_EACH

    async def _send(self, due: Due) -> Sequence[Attempt]:
        """Send all at once; return the outcomes of those that were not cut off."""
        sending = {asyncio.create_task(self._attempt(due, event, number)) for event, number in due.events}
        self._sending |= sending
        await asyncio.wait(sending)
        self._sending -= sending
        return [each.result() for each in sending if not each.cancelled()]

    async def _attempt(self, due: Due, event: EventPublic, number: int) -> Attempt:
        sent = await self.sender.send(Outgoing(due.url, due.secrets, message_id_of(event), to_json(event)))
        metrics.DELIVERIES.labels("delivered" if sent.is_delivered else "failed").inc()
        return Attempt(event.id, number, sent.status, sent.error)


def message_id_of(event: EventPublic) -> str:
    """Return the webhook-id, the same for each attempt. Numbers are given again once a save was loaded; this is not."""
    return f"{event.id}-{round(event.created_at.timestamp() * 1_000_000)}"
