"""Limits that the connections of a process share: on their number, on incomplete requests, and on calls."""

import asyncio
import gc
import logging
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING

import metrics
from server.answers import BUSY, BUSY_CLOSING
from settings import settings_from_environment

if TYPE_CHECKING:
    from server.protocol import BoundedProtocol

logger = logging.getLogger("savepoint")

UNFINISHED_LIMIT = 32 * 2**20
"""Bytes of incomplete requests, of all connections together."""
REFUSED_LIMIT = 100
"""Connections over the limit that are answered with a refusal; further ones are cut."""
PAUSE = 0.01
REFUSALS_A_PAUSE = 150
"""Calls that are refused for overload after each pause, so that clients that repeat at once, however many, take about a
fifth of a core's time."""


class Worker:
    """The connections of this process, and the limits that they share."""

    def __init__(self, connections: "set[BoundedProtocol]", calls: set[asyncio.Task[None]]) -> None:
        self.connections = connections
        self.calls = calls
        self.settings = settings_from_environment()
        self.call_limit = self.settings.call_limit
        self.connection_limit = min(self.settings.connection_limit, _raise_descriptor_limit() * 9 // 10)
        self.unfinished: dict[BoundedProtocol, int] = {}
        """The bytes of each incomplete request."""
        self.uploading: set[BoundedProtocol] = set()
        """Connections whose call waits for its body."""
        self.unread: set[BoundedProtocol] = set()
        """Connections whose call waits until its client reads."""
        self.refused: Counter[str] = Counter()
        """Refusals since the last sweep, by reason."""
        self.ends_at = float("inf")
        """The time, by the event loop's clock, at which a server that was told to stop ends all connections."""
        self._loop = asyncio.get_running_loop()
        self._unfinished_bytes = 0
        self._replaceable: list[tuple[BoundedProtocol, object]] = []
        self._awaiting_refusal: deque[BoundedProtocol] = deque()
        self._is_sweeping = False

    def admit(self, connection: "BoundedProtocol") -> None:
        """Take a connection; if there are too many, end another one or refuse it."""
        if not self._is_sweeping:
            self._sweep_later()
        excess = len(self.connections) - self.connection_limit
        if excess > 0:
            left_out = self._make_room()
            if left_out is None:
                left_out = connection
                connection.refuse(BUSY_CLOSING)
            if excess > REFUSED_LIMIT:
                left_out.transport.abort()

    def _make_room(self) -> "BoundedProtocol | None":
        """End the connection whose client has been idle longest, and return it; None if there is none."""
        while self._replaceable:
            connection, scope = self._replaceable.pop()
            is_open = connection in self.connections and not connection.is_refused
            if is_open and connection.scope is scope and connection.time_out() is not None:
                connection.give_way()
                return connection
        return None

    def _sweep_later(self) -> None:
        self._is_sweeping = True
        self._loop.call_later(1, self._sweep)

    def _sweep(self) -> None:
        """Check the time-outs of all connections, and log refusals in one line for each reason."""
        self._is_sweeping = False
        connections = [*self.connections]
        for connection in connections:
            connection.grow_older()
        # In reverse: _make_room ends the last one first.
        replaceable = [each for each in connections if each.age and not each.is_refused]
        replaceable.sort(key=lambda each: (each.is_idle, each.age))
        self._replaceable = [(each, each.scope) for each in replaceable]
        for reason, count in self.refused.items():
            metrics.REFUSED.labels(reason).inc(count)
            logger.warning("Refused in the last second: %d (%s)", count, reason)
        if self.refused:
            # The exceptions of calls without their whole body are in cycles that hold its data.
            gc.collect(1)
        self.refused.clear()
        if connections:
            self._sweep_later()

    def hold(self, connection: "BoundedProtocol", size: int) -> None:
        """Count bytes of an incomplete request; over the limit, refuse the connections that hold the most."""
        self.unfinished[connection] = self.unfinished.get(connection, 0) + size
        self._unfinished_bytes += size
        while self._unfinished_bytes > UNFINISHED_LIMIT:
            max(self.unfinished, key=self.unfinished.__getitem__).refuse(BUSY_CLOSING)

    def release(self, connection: "BoundedProtocol") -> None:
        """Stop counting this connection's bytes."""
        self._unfinished_bytes -= self.unfinished.pop(connection, 0)
        self.uploading.discard(connection)

    def is_busy(self) -> bool:
        """Return True if the limit of requests that are being answered is reached."""
        return len(self.calls) - len(self.uploading) - len(self.unread) >= self.call_limit

    def refuse_soon(self, connection: "BoundedProtocol") -> None:
        """Refuse the call of this connection after a pause."""
        self.refused[BUSY.reason] += 1
        connection.awaits_refusal = True
        if not self._awaiting_refusal:
            self._loop.call_later(PAUSE, self._refuse_some)
        self._awaiting_refusal.append(connection)

    def _refuse_some(self) -> None:
        for _ in range(min(REFUSALS_A_PAUSE, len(self._awaiting_refusal))):
            connection = self._awaiting_refusal.popleft()
            if connection.awaits_refusal:
                connection.awaits_refusal = False
                connection.transport.write(BUSY.to(connection.refused_id))
        if self._awaiting_refusal:
            self._loop.call_later(PAUSE, self._refuse_some)


def _raise_descriptor_limit() -> int:
    """Raise the limit on open files and connections to the system's maximum, and return it."""
    if sys.platform == "win32":
        return 8192
    import resource  # noqa: PLC0415 (not on Windows)

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**20
