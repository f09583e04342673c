"""A connection of uvicorn's that refuses ambiguous requests, and writes each answer at once.

Undocumented names of uvicorn and httptools are used in this file only. docs/decisions/0008-private-interfaces.md lists
them, and tests/test_canaries.py fails if a new version differs.
"""

import asyncio
import re
import socket
from enum import IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

Stage = IntEnum("Stage", ["BETWEEN", "HEAD", "BODY"], start=0)
"""Where in a request the next byte belongs."""
HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
"""The characters of a host and its port (RFC 3986, 3.2.2)."""

SEND_BUFFER = 2**17
"""Bytes of answers that the system keeps for a client that does not read (Linux takes twice as many)."""


class OneWrite:
    """A transport that writes the head of an answer together with the first piece of its body.

    uvicorn writes each by itself, which is a system call and a packet more. Calls on a closed connection, for which
    uvloop raises an error, do nothing.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold a head back until the next write; a large piece is not copied for it."""
        if self.is_closing():
            return
        if self._head:
            head, self._head = self._head, b""
            if len(data) > 64 * 2**10:
                self._transport.write(head)
            else:
                data = head + data
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 100"):
            self._head = data
            return
        self._transport.write(data)

    def release(self) -> None:
        """Write a head that was held back."""
        if self._head:
            self.write(b"")

    def pause_reading(self) -> None:
        """Stop reading."""
        if not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading."""
        if not self.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close after the last write."""
        self.release()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol class, without upgrades, and strict about requests that two servers could read differently."""

    transport: OneWrite  # type: ignore[assignment]

    def __init__(self, config: Config, server_state: ServerState, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, server_state, *args, **kwargs)
        self.stage = Stage.BETWEEN
        # Without WebSockets, an offer to upgrade is ignored (RFC 9110, 7.8).
        self.ws_protocol_class = None
        # uvicorn's only public way to leave its name out is a flag, --no-server-header.
        for headers in (config.encoded_headers, server_state.default_headers):
            headers[:] = [header for header in headers if header != (b"server", b"uvicorn")]

    @classmethod
    def install(cls) -> None:
        """Make uvicorn create objects of this class instead of HttpToolsProtocol.

        `uvicorn main:app` chooses its protocol before it imports the application.
        """
        HttpToolsProtocol.__new__ = lambda *_, **__: object.__new__(cls)  # type: ignore[method-assign,assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        # While a client leaves anything unread, no further answer is made for it.
        transport.set_write_buffer_limits(high=0)
        # Left alone, Linux keeps 4 MB for each, and a few hundred such clients take all the memory that TCP may have.
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]

    @property
    def is_answering(self) -> bool:
        """True until the last request is answered completely."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_unread(self) -> bool:
        """True while the client leaves a part of an answer unread."""
        return self.flow.write_paused

    @property
    def is_unheard(self) -> bool:
        """True while nothing is read from the client, since the application is behind."""
        return self.flow.read_paused

    @property
    def is_kept_alive(self) -> bool:
        """True while uvicorn's time-out until the next request (--timeout-keep-alive) runs."""
        return self.timeout_keep_alive_task is not None

    def end_keep_alive(self) -> None:
        """Stop that time-out."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def feed(self, data: bytes) -> None:
        """Parse, ignoring offers to upgrade. Raises httptools.HttpParserError."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # httptools has skipped the body: parse the head again, without the offer.
            version = self.parser.get_http_version().encode()
            head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
            for name, value in self.headers:
                if name == b"connection":
                    value = b"close" if b"close" in value.lower() else b"keep-alive"  # noqa: PLW2901
                if name != b"upgrade":
                    head += [name, b": ", value, b"\r\n"]
            self.parser = httptools.HttpRequestParser(self)
            self.feed(b"".join([*head, b"\r\n", data[upgrade.args[0] :]]))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.stage = Stage.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application."""
        super().on_headers_complete()
        self.stage = Stage.BODY
        if self.expect_100_continue:
            # A client that is answered before the 100 may send its body or not. Only closing the connection makes clear
            # where the next request begins.
            self.cycle.keep_alive = False
        # So trailers, which are added to this list, do not become headers (RFC 9110, 6.5.1).
        self.headers = []

    def on_message_complete(self) -> None:
        """End a request."""
        if self.stage is Stage.BODY:
            self.stage = Stage.BETWEEN
            if self.expect_100_continue:
                self.cycle.keep_alive = self.parser.should_keep_alive()
            elif not self.parser.should_keep_alive():
                # Where a trailer said "Connection: close", the parser ignores whatever comes next.
                self.cycle.keep_alive = False
                if self.cycle.response_complete:
                    self.transport.close()
            super().on_message_complete()

    def size_of_head(self) -> int:
        """Return about the size in bytes of the request line and the headers."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def is_unambiguous(self) -> bool:
        """Return True if all servers read the same host and end of the body from the head (RFC 9112, 3.2 and 6.1)."""
        version = self.parser.get_http_version()
        # The parser takes a request line without a version for one of HTTP/0.9.
        if version not in ("1.1", "1.0"):
            return False
        # A URL in a request has no fragment (RFC 9112, 3.2); some servers take it for a part of the path.
        if b"#" in self.url:
            return False
        names = [name for name, _ in self.headers]
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or version != "1.0"):
            return False
        if hosts and HOST.fullmatch(hosts[0]) is None:
            return False
        if b"transfer-encoding" not in names:
            return True
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        return codings == [b"chunked"]

    def eof_received(self) -> Any:
        """Answer complete requests although the client has closed its side, then close the connection."""
        if not self.is_answering or self.stage is not Stage.BETWEEN:
            return False
        last = self.pipeline[0][0] if self.pipeline else self.cycle
        last.keep_alive = False
        return True

    def on_response_complete(self) -> None:
        """Write the rest of an answer, and go on."""
        self.transport.release()
        super().on_response_complete()

    def end_with(self, answer: bytes) -> None:
        """Send this answer, unless another one was begun, and close the connection."""
        if self.is_answering and self.stage is not Stage.BODY:
            # The request before is complete, and gets its answer; this one is ignored.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        is_answerable = self.stage is not Stage.BODY
        self.stage = Stage.BETWEEN
        if self.pipeline:
            # The requests before are complete, and get their answers first; this one makes none of its own.
            self.cycle.disconnected = True
            self.pipeline[0] = (self.cycle, partial(self._end_in_turn, answer))
            self.flow.pause_reading()
            return
        if self.is_answering:
            is_answerable = not self.cycle.response_started
            self.cycle.disconnected = self.cycle.response_complete = True
            self.cycle.message_event.set()
        self._end_now(answer, is_answerable=is_answerable)

    async def _end_in_turn(self, answer: bytes, *_: object) -> None:
        """Send this answer, and close the connection: an application for uvicorn."""
        self.cycle.response_complete = True
        self._end_now(answer, is_answerable=True)

    def _end_now(self, answer: bytes, *, is_answerable: bool) -> None:
        if is_answerable:
            self.transport.write(answer)
        if is_answerable and self.transport.can_write_eof() and not self.transport.is_closing():
            # Closing now would reset the connection, and lose the answer, if the client has sent more.
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()


def headers_of_one_request(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return its headers if these bytes are exactly one request, after which the connection stays open."""
    seen: list[str] = []
    headers: list[tuple[bytes, bytes]] = []
    handlers: dict[str, Any] = {f"on_message_{name}": partial(seen.append, name) for name in ("begin", "complete")}
    handlers["on_header"] = lambda name, value: headers.append((name.lower(), value))
    parser = httptools.HttpRequestParser(SimpleNamespace(**handlers))
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return headers if seen == ["begin", "complete"] and parser.should_keep_alive() else None
