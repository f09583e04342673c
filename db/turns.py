"""The turns of processes that write to one SQLite file: one that waits goes before one that has just written."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

try:
    import fcntl
except ImportError:  # On Windows processes take no turns.
    fcntl = None  # type: ignore[assignment]

SUFFIXES = ("-next", "-turn")
"""The suffixes of the two files beside a database that a writer locks, in this order."""

PAUSE = 0.001
"""Seconds between two attempts to lock a file."""

BRIEFLY = 0.02
"""Seconds to wait for the turn after waiting in vain."""


class ProcessTurns:
    """One process's locks on the two files. They only order writers: SQLite's own lock keeps transactions whole.

    A writer locks "next", then "turn", and then unlocks "next". So one that has written queues behind one that waits.
    Where the files cannot be created or locked, nobody waits. The locks of a process end with it.
    """

    def __init__(self, database: str) -> None:
        # As SQLite's own files, named after the target of a symbolic link.
        self.paths = [os.path.realpath(database) + suffix for suffix in SUFFIXES]
        # Kept open. Not SQLite's own files: closing one of those would release SQLite's locks.
        self.descriptors: list[int | None] = []
        self.waited_in_vain = False

    @asynccontextmanager
    async def take(self, patience: float) -> AsyncIterator[None]:
        """Wait for the turn for so many seconds, then go on without it: its holder may be a process that hangs."""
        self.descriptors = self.descriptors or [open_private(path) for path in self.paths]
        following, turn = self.descriptors
        try:
            await self._wait(following, turn, patience)
            yield
        finally:
            # Once closed, the number may be another file's.
            if self.descriptors:
                unlock(turn)

    async def _wait(self, following: int | None, turn: int | None, patience: float) -> None:
        give_up = time.monotonic() + (min(BRIEFLY, patience) if self.waited_in_vain else patience)
        try:
            while not (lock(following) and lock(turn)):
                if time.monotonic() >= give_up:
                    self.waited_in_vain = True
                    return
                await asyncio.sleep(PAUSE)
            self.waited_in_vain = False
        finally:
            unlock(following)

    def close(self) -> None:
        """Close the files, after the last transaction."""
        for descriptor in self.descriptors:
            if descriptor is not None:
                os.close(descriptor)
        self.descriptors = []


def open_private(path: str) -> int | None:
    """Open the file, created for its owner alone; None if that is not possible."""
    if fcntl is None:
        return None
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None


def lock(descriptor: int | None) -> bool:
    """Lock the file; return False if another process has locked it, and True also if it cannot be locked."""
    if descriptor is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def unlock(descriptor: int | None) -> None:
    """Unlock the file, if it is locked."""
    if descriptor is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
