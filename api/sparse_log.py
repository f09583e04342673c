"""One line of log a second for events of which there can be thousands."""

import logging
import time
from collections import Counter

logger = logging.getLogger("savepoint")


class SparseLog:
    """Warnings, at most one a second of each kind; the next one of that kind gives the number left out."""

    def __init__(self) -> None:
        self.next_at: dict[str, float] = {}
        self.left_out: Counter[str] = Counter()

    def warn(self, kind: str, message: str, count: int = 1) -> None:
        """Log this, unless a warning of this kind was logged within the last second; it stands for `count` events."""
        now = time.monotonic()
        if now < self.next_at.get(kind, 0):
            self.left_out[kind] += count
            return
        self.next_at[kind] = now + 1
        left_out = self.left_out.pop(kind, 0)
        logger.warning("%s%s", message, f" ({left_out} more since the last line)" if left_out else "")
