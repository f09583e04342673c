"""Clients that write without a pause, each call until it has a definite answer, and what became of their writes."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2

from tests.support.service import AS_OPERATOR

PAUSE = 0.02
"""Seconds between an answer and the same client's next write."""

ANSWER_TIMEOUT = 40
"""Seconds that a client waits for an answer: the service promises one in 30."""


@dataclass
class Write:
    """One key, and what its client was told."""

    kind: str
    name: str
    acknowledged: float | None = None
    """When the client was told that it is stored."""
    refused: str = ""
    unknown: int = 0
    """Answers that left open whether it was stored, or none at all."""
    put_off: int = 0
    """Answers that nothing was done, and to try again."""


@dataclass
class Figures:
    """What became of the writes of one scenario."""

    acknowledged: int
    unknown: int
    put_off: int
    refused: int
    lost: int
    doubled: int
    silence: float
    """Seconds, the longest in which no write of one kind was acknowledged."""


@dataclass
class Writers:
    """Threads that write to a service at a Unix socket."""

    socket: Path
    accounts: tuple[int, int]
    writes: list[Write] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    since: float = 0.0
    """When the scenario began."""

    def start(self) -> None:
        self.since = time.monotonic()
        for make in (self.deposit, self.deposit, self.transfer, self.transfer, self.registration, self.registration):
            self.threads.append(threading.Thread(target=self.run, args=[make], daemon=True))
            self.threads[-1].start()

    def stop(self) -> None:
        """Let each client get its definite answer, and no new one."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive(), "a client was never told what became of its write"

    def deposit(self, name: str) -> tuple[str, dict[str, Any]]:
        return "/deposits", {"account_id": self.accounts[0], "amount": 3, "reference": name}

    def transfer(self, name: str) -> tuple[str, dict[str, Any]]:
        debit, credit = self.accounts
        return "/transfers", {"debit_account_id": debit, "credit_account_id": credit, "amount": 1, "reference": name}

    def registration(self, name: str) -> tuple[str, dict[str, Any]]:
        return "/register", {"username": name, "email": f"{name}@example.com"}

    def run(self, make: Callable[[str], tuple[str, dict[str, Any]]]) -> None:
        with client_of(self.socket) as client:
            while not self.stopping.is_set():
                write = Write(make.__name__, uuid4().hex)
                self.writes.append(write)
                path, content = make(write.name)
                # A registration's key must be a UUID.
                insist(client, write, path, {"json": content, "headers": {"Idempotency-Key": str(uuid4())}})
                time.sleep(PAUSE)

    def acknowledged(self, kind: str, after: float = 0) -> list[float]:
        """When the writes of this kind were acknowledged, in order."""
        times = [write.acknowledged for write in list(self.writes) if write.kind == kind and write.acknowledged]
        return sorted(each for each in times if each > after)

    def are_served(self, after: float) -> bool:
        """True once some writes of each kind were acknowledged since then."""
        return all(len(self.acknowledged(kind, after)) >= 40 for kind in ("deposit", "transfer", "registration"))

    def silence(self) -> float:
        """Seconds, the longest in which no write of one kind was acknowledged."""
        silences: list[float] = []
        for kind in ("deposit", "transfer", "registration"):
            times = [self.since, *self.acknowledged(kind)]
            silences.extend(later - earlier for earlier, later in pairwise(times))
        return max(silences)

    def judge(self, stored: Iterable[str]) -> Figures:
        """What became of the writes, given the names of all that are stored in the end."""
        counts = Counter(stored)
        acknowledged = {write.name for write in self.writes if write.acknowledged}
        return Figures(
            acknowledged=len(acknowledged),
            unknown=sum(write.unknown for write in self.writes),
            put_off=sum(write.put_off for write in self.writes),
            refused=sum(bool(write.refused) for write in self.writes),
            lost=sum(counts[name] == 0 for name in acknowledged),
            doubled=sum(counts[write.name] > 1 for write in self.writes),
            silence=self.silence(),
        )


def client_of(path: Path) -> httpx2.Client:
    """A client of the service at a Unix socket."""
    transport = httpx2.HTTPTransport(uds=str(path))
    return httpx2.Client(transport=transport, base_url="http://service", headers=AS_OPERATOR, timeout=ANSWER_TIMEOUT)


def insist(client: httpx2.Client, write: Write, path: str, request: dict[str, Any]) -> None:
    """Send a write with its key again and again, until the answer is definite."""
    while True:
        try:
            answer = client.post(path, **request)
        except httpx2.TransportError:
            write.unknown += 1
            time.sleep(0.2)
            continue
        if answer.status_code == 201:
            write.acknowledged = time.monotonic()
            return
        slug = answer.json()["type"].removeprefix("/problems/")
        if answer.status_code < 500:
            write.refused = slug
            return
        if slug in ("outcome-unknown", "internal-error"):
            write.unknown += 1
        else:
            write.put_off += 1
        time.sleep(0.2)
