"""Batches of 10,000 sent to one worker: their items a second, and how long others wait meanwhile; and the import."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, product
from pathlib import Path
from typing import Any

import httpx2

from bench.contenders import SAVEPOINT, serving
from bench.engines import OPERATOR_TOKEN, ROOT, Engine, copy_of, environment
from bench.load import Load, run_wrk
from bench.measure import check_books, check_rows, count_rows
from bench.workloads import ME, ORDER, REGISTRATION, SPREAD
from models import BATCH_LIMIT

CONNECTIONS, PAUSE = 8, 20
"""The others' load: at most 400 requests a second."""
IMPORTED = 100_000

ALONE = "items/s, alone"
ITEMS = {ME: "items/s beside GET /me", SPREAD: "items/s beside transfers"}
P99 = {ME: "p99 ms of GET /me", SPREAD: "p99 ms of transfers"}
FAILED = "failed beside it"
FIGURES = (ALONE, *ITEMS.values(), *P99.values(), FAILED)
NO_BATCH, IMPORT = "no batch", f"import of {IMPORTED:,} users"

KINDS = {"transfers": SPREAD.kind, "users": REGISTRATION.kind}
NUMBERS = count()


def measure_batches(
    engine: Engine, accounts: int, seconds: int, folder: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    """Send batches of each kind, alone and beside others; check that all of their items were stored."""
    answers: Counter[str] = Counter()
    load = Load(accounts, CONNECTIONS, seconds, pause=PAUSE)
    with copy_of(engine, "compared") as url:
        rows = count_rows(url)
        with serving(SAVEPOINT, url, folder) as (_, origins):
            for workload in P99:
                answers[workload.kind] += run_wrk(workload, origins, load).answers
            yield NO_BATCH, measure_beside(None, origins, load, answers)
            for noun, on_error in product(KINDS, ("continue", "rollback")):
                batches = Batches(origins[0], noun, on_error, accounts)
                yield f"{noun}, {on_error}", measure_beside(batches, origins, load, answers)
                answers[KINDS[noun]] += batches.sent * BATCH_LIMIT
        check_rows(url, rows, answers)
        check_books(url)


def measure_beside(
    batches: "Batches | None", origins: list[str], load: Load, answers: Counter[str]
) -> dict[str, float]:
    """Send batches alone, then while others send their load; the others' answers are added to `answers`."""
    figures = {FAILED: 0.0} if batches is None else {FAILED: 0.0, ALONE: batches.send_for(load.seconds)}
    for workload, p99 in P99.items():
        with ThreadPoolExecutor(1) as pool:
            others = pool.submit(run_wrk, workload, origins, load)
            if batches is not None:
                figures[ITEMS[workload]] = batches.send_for(load.seconds)
        measured = others.result()
        answers[workload.kind] += measured.answers
        figures[p99] = measured.p99
        figures[FAILED] += measured.failures
    return figures


class Batches:
    """The operator, who sends batches of one kind to one worker."""

    def __init__(self, origin: str, noun: str, on_error: str, accounts: int) -> None:
        self.url, self.noun, self.on_error, self.accounts = f"{origin}/{noun}/batch", noun, on_error, accounts
        self.sent = 0

    def send_for(self, seconds: float) -> float:
        """Send batches, one after the other; the items a second, from a batch's first byte to its answer's last."""
        waited, before, end = 0.0, self.sent, time.monotonic() + seconds
        headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}", "Content-Type": "application/json"}
        with httpx2.Client(headers=headers, timeout=60) as client:
            while time.monotonic() < end:
                body = json.dumps({self.noun: [self.item() for _ in range(BATCH_LIMIT)], "on_error": self.on_error})
                began = time.perf_counter()
                answer = client.post(self.url, content=body)
                waited += time.perf_counter() - began
                check_created(answer)
                self.sent += 1
        return (self.sent - before) * BATCH_LIMIT / waited

    def item(self) -> dict[str, Any]:
        """A new user, or a transfer between any two accounts."""
        if self.noun == "users":
            return new_user()
        debit = random.randint(1, self.accounts)
        credit = (debit + random.randint(0, self.accounts - 2)) % self.accounts + 1
        return ORDER | {"debit_account_id": debit, "credit_account_id": credit}


def new_user() -> dict[str, str]:
    """A user whom nobody has registered yet."""
    username = f"batch{next(NUMBERS)}"
    return {"username": username, "email": f"{username}@example.com"}


def check_created(answer: httpx2.Response) -> None:
    """End the benchmark unless all items of a batch were created."""
    if not answer.is_success:
        sys.exit(f"{answer.status_code}: {answer.text[:1000]}")
    statuses = Counter(result["status"] for result in answer.json()["results"])
    if statuses != {"created": BATCH_LIMIT}:
        sys.exit(f"Of a batch of {BATCH_LIMIT}: {dict(statuses)}")


def measure_import(engine: Engine, folder: Path) -> dict[str, float]:
    """Import users with `manage.py import`; users a second, from its start to its end."""
    users, tokens = folder / "users.csv", folder / "tokens.csv"
    lines = [",".join(new_user().values()) + "\n" for _ in range(IMPORTED)]
    users.write_text("".join(["username,email\n", *lines]))
    with copy_of(engine, "compared") as url:
        rows = count_rows(url)
        command = [sys.executable, str(ROOT / "manage.py"), "import", str(users), "--tokens", str(tokens)]
        began = time.perf_counter()
        done = subprocess.run(  # nosec B603 # no shell takes part
            command, cwd=folder, env=environment(url), capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            sys.exit(f"The import failed:\n{done.stdout}{done.stderr}")
        check_rows(url, rows, Counter({REGISTRATION.kind: IMPORTED}))
        check_books(url)
    tokens.unlink()
    return {ALONE: IMPORTED / seconds}
