"""Who takes part, and how each is served."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.engines import ROOT, environment


@dataclass(frozen=True, slots=True)
class Contender:
    """An ASGI application, and where it takes registrations."""

    name: str
    app: str
    path: str = "/register"
    stores: bool = True


USUAL = Contender("the usual way", "bench.usual:app")
CONTENDERS = (
    Contender("Savepoint", "main:app"),
    USUAL,
    Contender("no database (the ceiling)", "bench.usual:app", "/echo-register", stores=False),
)


@contextmanager
def serving(contender: Contender, database_url: str, folder: Path) -> Iterator[tuple[int, int]]:
    """The contender under uvicorn, one worker, the same settings for all; its process id, and its port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    uvicorn = f"-m uvicorn {contender.app} --port {port} --loop uvloop --http httptools --no-access-log"
    process = subprocess.Popen(
        [sys.executable, *uvicorn.split(), "--log-level=warning", "--app-dir", str(ROOT)],
        cwd=folder,
        env=environment(database_url),
    )
    try:
        wait_until_listening(process, port)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(60)


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait for the application to start, after which uvicorn listens."""
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    sys.exit("The server did not start.")
