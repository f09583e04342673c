"""A receiver of webhooks, and the names by which it is found."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from webhooks.sending import Outgoing

NEW, OLD = "whsec_bmV3IHNlY3JldCBuZXcgc2VjcmV0", "whsec_b2xkIHNlY3JldCBvbGQgc2VjcmV0"
BODY = '{"id": 7, "memo": "für Ärzte"}'.encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Receiver:
    """A server on all loopback addresses."""

    def __init__(self) -> None:
        self.answer: bytes | Answer = OK
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connected: list[str] = []
        """The address of each connection."""
        self.ended = asyncio.Event()
        """Set once a connection was closed."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.append(writer.get_extra_info("sockname")[0])
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                request, *lines = head.strip().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines)
                self.requests.append((request, headers, await reader.readexactly(int(headers["Content-Length"]))))
                if isinstance(self.answer, bytes):
                    writer.write(self.answer)
                else:
                    await self.answer(writer)
        self.ended.set()
        writer.close()


class Names:
    """A resolver: the addresses of each name, one list after the other; the last list stays."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: str, port: int, **kinds: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host not in self.addresses and not host.startswith("127."):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        lists = self.addresses.get(host, [[host]])
        found = lists.pop(0) if len(lists) > 1 else lists[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


def outgoing(url: str) -> Outgoing:
    return Outgoing(url, [NEW, OLD], "7", BODY)
