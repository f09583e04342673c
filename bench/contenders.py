"""Who takes part, and how each is served."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.engines import ROOT, environment
from bench.usual import ASYNC_DRIVER
from bench.workloads import COMPARED, HOT, ME, REGISTRATION, SPREAD, STATEMENT, WORKLOADS, Workload


@dataclass(frozen=True, slots=True)
class Contender:
    """An ASGI application under uvicorn; or, without one, pgbench, which sends the SQL itself.

    It takes part in `workloads`. pgbench's script for a kind of request is named `script`, and calls what the file
    `function` creates.
    """

    name: str
    app: str | None
    workers: int = 1
    stores: bool = True
    workloads: Sequence[Workload] = COMPARED
    script: str = "{}.sql"
    function: str | None = None


SAVEPOINT = Contender("Savepoint, 1 worker", "main:app", workloads=WORKLOADS)
SAVEPOINT_2 = Contender("Savepoint, 2 workers", "main:app", workers=2, workloads=WORKLOADS)
USUAL = Contender("the usual way", "bench.usual_sync:app")
USUAL_ASYNC = Contender(
    f"the usual way, async, {ASYNC_DRIVER}", "bench.usual_async:app", workloads=(ME, SPREAD, REGISTRATION)
)
UVICORN = Contender("Savepoint, 1 worker, uvicorn as it comes", "bench.plain:app", workloads=(ME, SPREAD, REGISTRATION))
PGBENCH = Contender("pgbench, no HTTP", None)
PGLEDGER = Contender(
    "pgledger's way, no HTTP",
    None,
    workloads=(SPREAD, HOT),
    script="ledger_{}.sql",
    function="ledger_function.sql",
)
CEILING = Contender(
    "no database (the ceiling)", "bench.ceiling:app", stores=False, workloads=(ME, STATEMENT, SPREAD, REGISTRATION)
)
# To measure costs time, so it is in no table.
WATCHED = Contender("Savepoint, watched", "bench.watched:app", workloads=(SPREAD,))
# Without a database, the ceiling is the same for both engines.
CONTENDERS = {
    "SQLite": (SAVEPOINT, SAVEPOINT_2, USUAL),
    "PostgreSQL": (SAVEPOINT, SAVEPOINT_2, UVICORN, USUAL, USUAL_ASYNC, PGBENCH, PGLEDGER, CEILING),
}
QUICK = {"SQLite": (SAVEPOINT, USUAL), "PostgreSQL": (SAVEPOINT_2, USUAL, PGBENCH, PGLEDGER, CEILING)}


@contextmanager
def serving(contender: Contender, database_url: str, folder: Path) -> Iterator[tuple[list[int], list[str]]]:
    """The contender under uvicorn, the same settings for all: the process ids of the workers, and their URLs.

    Each worker has a port of its own, as behind a proxy that shares the connections out: of 32 connections that come
    at once to a port that two workers share, one of them takes up to 30. Where there is no application, nothing is
    started, and the URL is the database's own.
    """
    if contender.app is None:
        yield [], [database_url]
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(contender.app, database_url, folder)) for _ in range(contender.workers)]
        yield [pid for pid, _ in workers], [url for _, url in workers]


@contextmanager
def worker(app: str, database_url: str, folder: Path) -> Iterator[tuple[int, str]]:
    """One process of uvicorn on loopback: its id and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uvicorn = f"-m uvicorn {app} --port {port} --loop uvloop --http httptools --no-access-log"
    log = folder / f"uvicorn-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(  # nosec B603 # no shell takes part
            [sys.executable, *uvicorn.split(), "--app-dir", str(ROOT)],
            cwd=folder,
            env=environment(database_url),
            stderr=output,
        )
    try:
        wait_until_started(process, log)
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the server to start."""
    deadline = time.monotonic() + 30
    while "Application startup complete" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"The server did not start:\n{log.read_text()}")
        time.sleep(0.05)
    # It says so just before it listens.
    time.sleep(0.2)
