"""A line of log for each request, up to a limit a second; what is above it is counted in the next line.

So the log has each request where there are few of them, and costs little where there are many: a line takes more than
half of the CPU time that the app needs for a GET /me.
"""

import logging
from time import monotonic

from starlette.types import Scope

from api.callers import kind_of_caller
from api.problems import CAUSE, NOTED, Problem
from api.request_ids import request_id_of

logger = logging.getLogger("savepoint.requests")


class RequestLog:
    """The lines of one process."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, limit: int) -> None:
        """Begin anew, with up to `limit` lines a second for each status below 500."""
        self.limit = limit
        self._second = 0
        self._lines: dict[object, int] = {}
        self._left_out: dict[object, int] = {}

    def note(self, scope: Scope, method: str, route: str, status: int, seconds: float) -> None:
        """Write the line of a request that was answered, or count it."""
        problem: Problem | None = scope.get(NOTED)
        # An outage is a line a second for each of its problems. Other errors of the server are always written.
        kind: object = problem.type if status == 503 and problem else status
        limit = self.limit if status < 500 else 1 if status == 503 else None
        now = int(monotonic())
        if now != self._second:
            self._second = now
            self._lines.clear()
        lines = self._lines.get(kind, 0)
        if limit is not None and lines >= limit:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._lines[kind] = lines + 1
        level = logging.WARNING if status >= 500 else logging.INFO
        if not logger.isEnabledFor(level):
            return
        fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        fields |= {"caller": kind_of_caller(scope), "request_id": request_id_of(scope)}
        words = f"{method} {route} {status}"
        if problem is not None:
            fields["problem"] = problem.type.rpartition("/")[2]
            words += f" {fields['problem']}{scope.get(CAUSE, '')}"
        words += f" {fields['ms']} ms {fields['caller']} {fields['request_id']}"
        if left_out := self._left_out.pop(kind, 0):
            fields["left_out"] = left_out
            words += f" ({left_out} more since the last line)"
        logger.log(level, "%s", words, extra={"fields": fields})


LOG = RequestLog()
