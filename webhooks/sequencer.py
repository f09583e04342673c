"""The sequencer: events get their numbers after COMMIT, and whoever waits for them is woken."""

import asyncio
import logging
from contextlib import suppress
from weakref import WeakSet

import crud
from db.database import Database
from refusals import Interruption
from webhooks import transactions

logger = logging.getLogger("savepoint")

LOOK_EACH = 0.25
"""Seconds between two looks at the events of all processes: those that arrive meanwhile are numbered together."""

EXPIRED_TOGETHER = 100
"""Accounts whose expired holds are marked in one transaction."""

_RUNNING: "WeakSet[Sequencer]" = WeakSet()


class Sequencer:
    """Numbers the events of all processes, one of them at a time, and marks holds that have expired."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.readers = 0
        """Calls that wait for events."""
        self._end = asyncio.Event()
        self._last = 0
        self._is_interrupted = False
        self._news = asyncio.Event()
        _RUNNING.add(self)

    @property
    def is_ending(self) -> bool:
        """Whether nobody is to wait any longer."""
        return self._end.is_set()

    async def run(self) -> None:
        """Look at the events until the end."""
        while not self.is_ending:
            has_more = False
            try:
                has_more = await self._step()
                self._is_interrupted = False
            except Interruption as interruption:
                if not self._is_interrupted:
                    logger.warning("Events wait for the database: %s", interruption.detail)
                self._is_interrupted = True
            except Exception:
                logger.exception("Events could not be numbered; this is tried again.")
            if not has_more:
                await self._wait_for(self._end, LOOK_EACH)

    async def _step(self) -> bool:
        """Number what is to be numbered, once; return True if there may be more."""
        state = await self.database.read(transactions.get_feed_state)
        last, has_more = state.last, False
        if state.has_unnumbered:
            numbered = await self.database.write(transactions.number_events)
            if numbered is not None:
                last, has_more = numbered
        # Fewer than before, where a save was loaded.
        if last != self._last:
            self._last = last
            self._news.set()
            self._news = asyncio.Event()
        # After that, since it may wait for locks.
        if state.has_expired:
            await self.database.write(crud.expire_holds, EXPIRED_TOGETHER)
        return has_more

    async def wait(self, seconds: float, after: int | None = None) -> None:
        """Wait for an event with a new number, at most so many seconds, or the end; not if one after this is known.

        For a reader's page may have been short, or have been read before the news.
        """
        is_known = after is not None and self._last > after
        if not is_known and not self.is_ending:
            await self._wait_for(self._news, seconds)

    async def _wait_for(self, event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def end(self) -> None:
        """Stop after the transaction that is under way, and let nobody wait any longer."""
        self._end.set()
        self._news.set()


def end_waiting() -> None:
    """Let nobody in this process wait any longer: the server was told to stop."""
    for each in _RUNNING:
        each.end()
