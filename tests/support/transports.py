"""The end of a connection, without a network."""

import asyncio
from typing import Any


class RecordingTransport(asyncio.Transport):
    """The end of a connection: each write, and b"" where it was closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        if data:
            self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def close(self) -> None:
        self.writes.append(b"")

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return b"" in self.writes

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...
