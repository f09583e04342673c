"""Helpers of the tests of slow clients."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.http_edges import post
from tests.support.service import Server, serving

MIB = 2**20


HALF_A_BODY = post(b"x" * 1000)[:-500]


@contextmanager
def impatient_server(folder: Path, **settings: object) -> Iterator[Server]:
    """A server that waits for clients no longer than a second, or as the settings say."""
    impatience = {"HEAD_TIMEOUT": 1, "BODY_TIMEOUT": 1, "ANSWER_TIMEOUT": 1, **settings}
    environment = {name: str(value) for name, value in impatience.items()}
    with serving(f"sqlite:///{folder}/savepoint.db", folder, 1, **environment) as server:
        yield server


def read_to_the_end(connection: socket.socket) -> bytes:
    """What the server sends until it closes, or cuts, the connection."""
    received = b""
    try:
        while piece := connection.recv(MIB):
            received += piece
    except ConnectionResetError:
        pass
    return received


def is_alive(server: Server) -> bool:
    return httpx2.get(f"{server.url}/healthz", timeout=10).status_code == 200
