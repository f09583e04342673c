"""Helpers of the tests of http edges."""

import socket
from pathlib import Path

from tests.support.service import Server

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


KIB = 1024


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)


def peak_memory(server: Server) -> int:
    """The most memory that the server has used, in bytes."""
    return int(Path(f"/proc/{server.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * KIB


def post(body: bytes, *headers: bytes, path: bytes = b"/register") -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: a", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def register(name: str, *headers: bytes) -> bytes:
    return post(b'{"username": "%b", "email": "a@example.com"}' % name.encode(), *headers)
