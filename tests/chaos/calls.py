"""A call that is sent until its answer is definite, and the record of it."""

import asyncio
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

ANSWER_TIMEOUT = 5
"""Seconds to wait for an answer; servers answer after REQUEST_TIMEOUT, which is less."""

LOST = 0.1
"""The share of calls whose first answer the client does not wait for, as when a proxy or a network loses it."""

UNKNOWN = frozenset(["outcome-unknown", "internal-error"])
"""Problems after which the call may have been stored."""


@dataclass
class Call:
    """A call, or an item of a batch; times are of the machine's monotonic clock, in seconds."""

    kind: str
    key: str
    sent: float
    answered: float = 0
    attempts: int = 0
    is_unknown: bool = False
    """Whether an attempt before the last may have been stored."""
    internal_errors: int = 0
    is_replayed: bool = False
    """Whether the answer says that an earlier attempt was done."""
    status: int | None = None
    """None where there was no definite answer in time."""
    problem: str = ""
    answer: Any = None
    account_id: int | None = None
    """The account that it debits or reads."""
    about: Any = None
    """What it asked for, where the answer does not say it: a username, a hold, the key of a batch that rolls back."""

    @property
    def is_done(self) -> bool:
        return self.status is not None and self.status < 300

    @property
    def is_refused(self) -> bool:
        return self.status is not None and self.status >= 400


class Client:
    """A client of the service that writes down each call and its definite answer."""

    def __init__(
        self, url: str, log: Path, patience: float, connections: int = 1, chance: random.Random | None = None
    ) -> None:
        """With `chance`, answers get lost. After `patience` seconds without a definite answer, a call is given up."""
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self.http = httpx2.AsyncClient(base_url=url, limits=limits)
        self.log = log.open("a", buffering=1)
        self.patience = patience
        self.chance = chance

    async def close(self) -> None:
        await self.http.aclose()
        self.log.close()

    def note(self, call: Call) -> None:
        self.log.write(json.dumps(asdict(call)) + "\n")

    async def send(
        self, call: Call, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Call:
        """Send the call until its answer is definite, and note it."""
        await self.send_unnoted(call, method, path, body, headers)
        self.note(call)
        return call

    async def send_unnoted(
        self, call: Call, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Call:
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            is_lost = self.chance and not call.attempts and self.chance.random() < LOST
            timeout = self.chance.uniform(0, 0.1) if self.chance and is_lost else ANSWER_TIMEOUT
            call.attempts += 1
            try:
                response = await self.http.request(method, path, json=body, headers=headers, timeout=timeout)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
                pass  # It was not sent.
            except httpx2.TransportError:
                call.is_unknown = True
            else:
                call.answer = response.json() if response.content else None
                call.problem = problem_of(call.answer)
                if response.status_code < 500 and not must_be_sent_again(call.answer):
                    call.status = response.status_code
                    call.is_replayed = response.headers.get("Idempotency-Replayed") == "true"
                    break
                call.internal_errors += response.status_code == 500
                call.is_unknown |= call.problem in UNKNOWN or response.status_code == 200
            await asyncio.sleep(0.05 * min(call.attempts, 10))
        call.answered = time.monotonic()
        return call


def problem_of(answer: object) -> str:
    """Return the type of the problem, "" where it is none."""
    type = answer.get("type") if isinstance(answer, dict) else None
    return type.removeprefix("/problems/") if isinstance(type, str) else ""


def must_be_sent_again(answer: object) -> bool:
    """Return whether items of a batch that continues are to be sent again."""
    results = answer.get("results", []) if isinstance(answer, dict) else []
    return any(each["status"] == "refused" and each["problem"]["status"] >= 500 for each in results)


def read_calls(log: Path) -> list[Call]:
    """Return the calls of a log; a line that was cut off by a kill is left out."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [Call(**json.loads(line)) for line in lines if line.endswith("\n")]
