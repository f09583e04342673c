"""Whatever is killed at whatever instant: each change is told, nothing else is, and what is told arrives."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

import audit
from tests.support.accounts import Holder, order, register, register_all
from tests.support.events import create_webhook, follow
from tests.support.registration import named
from tests.support.service import (
    AS_OPERATOR,
    OPERATOR_TOKEN,
    ROOT,
    Rows,
    answers,
    free_port,
    serving,
    wait_until,
)
from tests.support.webhook_inbox import Inbox, receiving

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "3"))
"""How many processes are killed, with their workers: more by hand."""

SUBJECTS = {
    "account.opened": "accounts WHERE true",
    "hold.captured": "holds WHERE status = 'captured'",
    "hold.created": "holds WHERE true",
    "hold.expired": "holds WHERE status = 'expired'",
    "hold.voided": "holds WHERE status = 'voided'",
    "token.issued": "access_tokens WHERE true",
    "transaction.created": "transactions WHERE true",
    "transfer.created": "transfers WHERE true",
    "user.registered": "users WHERE true",
    "webhook.created": "webhooks WHERE true",
}
"""The rows that each type of event tells of."""


@dataclass
class Processes:
    """The service and its deliverers, by what each of them runs; all are killed in the end."""

    folder: Path
    environment: dict[str, str]
    commands: dict[str, list[str]]
    url: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Start those that do not run, and wait until the service answers."""
        for name in self.commands.keys() - self.running.keys():
            with (self.folder / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [sys.executable, *self.commands[name]],
                    cwd=ROOT,
                    env=self.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        wait_until(lambda: answers(self.url), "the service to start")

    def kill(self, name: str) -> None:
        """Kill a process, with its workers."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_at_random(self, progress: Callable[[], int]) -> None:
        """Kill one of them after the other at no particular moment of their work, and start it again."""
        for number in range(KILLS):
            until = progress() + random.randrange(20, 60)
            wait_until(lambda until=until: progress() > until, "the callers to go on")  # type: ignore[misc]
            # Deliverers in turn with the service.
            self.kill([*self.commands][number % len(self.commands)])
            self.start()


@contextmanager
def processes(url: str, folder: Path, workers: int, deliverers: int) -> Iterator[Processes]:
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": url, "OPERATOR_TOKEN": OPERATOR_TOKEN, "EVENTS": "true"}
    service = ["-m", "uvicorn", "main:app", "--port", str(port), "--no-access-log", "--workers", str(workers)]
    commands = {f"deliverer{number}": ["manage.py", "deliver"] for number in range(deliverers)}
    if deliverers:
        environment["DELIVERER"] = "false"
    found = Processes(folder, environment, {"service": service, **commands}, f"http://127.0.0.1:{port}")
    found.start()
    try:
        yield found
    finally:
        for name in [*found.running]:
            found.kill(name)


@dataclass
class Callers:
    """Threads that call the service until they are told to stop, whatever becomes of it."""

    client: httpx2.Client
    holders: list[Holder]
    statuses: Counter[str] = field(default_factory=Counter)
    feed: list[dict[str, Any]] = field(default_factory=list)
    """What the one who follows the events has read."""
    stopping: threading.Event = field(default_factory=threading.Event)
    holds: list[int] = field(default_factory=list)

    def run(self, step: Callable[[], None]) -> None:
        while not self.stopping.is_set():
            try:
                step()
            except (httpx2.TransportError, httpx2.RemoteProtocolError):
                self.statuses["none"] += 1
                time.sleep(0.1)

    def call(self) -> None:
        """Register, transfer, hold, capture, void, ask for a token, or be refused."""
        sender, receiver = random.sample(self.holders, 2)
        # Every tenth is more than there is.
        body = order(sender.account_id, receiver.account_id, random.choice([1] * 9 + [10**9]))
        headers = sender.headers
        ending = f"/holds/{random.choice(self.holds or [0])}/{random.choice(['capture', 'void'])}"
        path, content = random.choice(
            [
                ("/transfers", body),
                ("/transfers/batch", {"transfers": [body] * 3, "on_error": "continue"}),
                ("/transactions", {"transfers": [body, body]}),
                ("/holds", body | {"expires_in": random.choice([1, 3600])}),
                (ending, None),
                ("/tokens", {}),
                ("/register", named(f"user{random.getrandbits(40)}")),
            ]
        )
        if path == ending:
            headers = AS_OPERATOR
        answer = self.client.post(path, json=content, headers={} if path == "/register" else headers)
        self.statuses[f"{answer.status_code // 100}xx"] += 1
        if path == "/holds" and answer.status_code == 201:
            self.holds.append(answer.json()["id"])

    def follow(self) -> None:
        """Read on after the last event, as a program that remembers where it was."""
        position = self.feed[-1]["id"] if self.feed else 0
        answer = self.client.get("/events", params={"after": position, "wait": 1}, headers=AS_OPERATOR)
        if answer.status_code == 200:
            self.feed += answer.json()["items"]


@contextmanager
def calling(callers: Callers, *steps: Callable[[], None]) -> Iterator[None]:
    threads = [threading.Thread(target=callers.run, args=[step]) for step in steps]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        callers.stopping.set()
        for thread in threads:
            thread.join()
        callers.stopping.clear()


def compare(rows: Rows, feed: list[dict[str, Any]], inbox: Inbox, webhooks: dict[str, dict[str, Any]]) -> None:
    """What is stored, what was told of it, and what arrived must be the same."""
    told = Counter((each["type"], each["data"]["id"]) for each in feed)
    for type, condition in SUBJECTS.items():
        ids = [id for (id,) in rows(f"SELECT id FROM {condition.replace('WHERE', 'AS found WHERE')}")]
        assert {id: told.pop((type, id), 0) for id in ids} == dict.fromkeys(ids, 1), type
    assert not told, "events that tell of what is not there"
    assert [each["id"] for each in feed] == [*range(1, len(feed) + 1)]
    assert rows("SELECT sum(size), max(last) FROM events, event_numbers") == [(len(feed), len(feed))]
    # What happened before that may have been told to the one that was there already.
    first = max(each["id"] for each in feed if each["type"] == "webhook.created")
    for path, webhook in webhooks.items():
        asked = {each["id"] for each in feed if each["type"] in (webhook["types"] or SUBJECTS) and each["id"] > first}
        delivered = f"SELECT event_id FROM webhook_deliveries WHERE webhook_id = {webhook['id']}"
        arrived = {each.verify(webhook["secret"])["id"]: each.event for each in inbox.at(path)}
        assert {id for (id,) in rows(f"{delivered} AND status = 'delivered'")} == arrived.keys()
        assert rows(f"{delivered} AND status <> 'delivered'") == []
        assert asked <= arrived.keys()
        assert arrived == {each["id"]: each for each in feed if each["id"] in arrived}


@pytest.mark.parametrize(
    ("engine", "workers", "deliverers"), [("sqlite", 1, 0), ("postgresql", 2, 2)], ids=["service", "deliverers"]
)
def test_each_change_is_told_and_arrives_and_nothing_else_though_everything_is_killed(
    url: str, rows: Rows, tmp_path: Path, workers: int, deliverers: int
) -> None:
    with (
        receiving() as inbox,
        processes(url, tmp_path, workers, deliverers) as running,
        httpx2.Client(base_url=running.url, timeout=10) as client,
    ):
        holders = register_all(client, alice=1000, bob=1000, carol=1000)
        callers = Callers(client, holders)
        webhooks = {
            "/all": create_webhook(client, f"{inbox.url}/all"),
            "/some": create_webhook(client, f"{inbox.url}/some", types=["hold.expired", "transfer.created"]),
        }
        with calling(callers, callers.follow, *[callers.call] * 4):
            running.kill_at_random(lambda: callers.statuses["2xx"])
        for name in [*running.running]:
            running.kill(name)
        # Instead of waiting until the leases of those that were killed end, and the holds.
        rows("UPDATE webhook_deliveries SET due_at = created_at WHERE status = 'waiting'")
        arrived_before = len(inbox.arrived)
        running.start()
        unfinished = """
            SELECT (SELECT count(*) FROM events WHERE number IS NULL)
            + (SELECT count(*) FROM webhook_deliveries WHERE status = 'waiting')
            + (SELECT count(*) FROM holds WHERE status = 'open' AND expires_at < created_at + 60 * interval '1 second')
        """
        if url.startswith("sqlite"):
            unfinished = unfinished.replace("created_at + 60 * interval '1 second'", "datetime(created_at, '1 minute')")
        with calling(callers, callers.follow):
            wait_until(lambda: rows(unfinished) == [(0,)], "everything to be told", 60)
            last = rows("SELECT last FROM event_numbers")[0][0]
            wait_until(lambda: bool(callers.feed) and callers.feed[-1]["id"] == last, "the end of the feed")
        arrived = Counter((each.path, each.id) for each in inbox.arrived)
        print(
            f"{KILLS} kills; calls: {dict(callers.statuses)}; events: {len(callers.feed)}; arrived:"
            f" {len(arrived)}, {len(inbox.arrived) - arrived_before} of them after the last start,"
            f" {sum(number > 1 for number in arrived.values())} more than once"
        )
        compare(rows, callers.feed, inbox, webhooks)
    with audit.open_books(url) as books:
        assert [*books.run(lambda rows: None)] == []


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_server_that_is_told_to_stop_lets_nobody_wait_for_events(url: str, rows: Rows, tmp_path: Path) -> None:
    answered: list[Any] = []
    with receiving() as inbox, serving(url, tmp_path, EVENTS="true") as server:
        with httpx2.Client(base_url=server.url) as client:
            inbox.hanging.add("/hook")
            create_webhook(client, f"{inbox.url}/hook", types=["user.registered"])
            register(client, "alice")
            wait_until(lambda: len(inbox.arrived) == 1, "a delivery to be under way")
            last = follow(client, wait=1)["next"]
        with httpx2.Client(base_url=server.url, timeout=40) as client:
            reader = threading.Thread(target=lambda: answered.append(follow(client, last, wait=30)))
            reader.start()
            time.sleep(1)

            server.process.terminate()
            status = server.process.wait(20)
            reader.join()
        inbox.end.set()

    assert answered == [{"items": [], "next": last}]
    assert status in (0, -signal.SIGTERM)
    # What was cut off is due again when its lease ends, and says nothing of the receiver.
    assert rows("SELECT status, attempts, error FROM webhook_deliveries") == [("waiting", 1, None)]
    assert rows("SELECT failing_since FROM webhooks") == [(None,)]
