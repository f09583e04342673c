"""An upgrade while callers call: the code before the newest revisions, and this code, serve one database together."""

import io
import random
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.accounts import Holder, order, register_all
from tests.support.holds import capture, hold, try_hold, void
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, ROOT, alembic, new_database, serving

pytestmark = pytest.mark.slow

BEFORE, FIRST = "d1c83f5a7b46", "migrations/versions/e1f7a2c94d08_references_of_users_labels_of_accounts.py"
"""The revision of the older code, and the file that came next."""

Call = Callable[[httpx2.Client], httpx2.Response]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The code as it was before."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False).stdout

    commit = git("log", "--diff-filter=A", "--format=%H", "--", FIRST).decode().strip()
    archive = git("archive", f"{commit}^") if commit else b""
    if not archive:
        pytest.skip("this clone has no history of git to take the older code from")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "older", filter="data")
    return tmp_path / "older"


@contextmanager
def load(url: str, calls: list[Call], threads: int = 4) -> Iterator[Counter[str]]:
    """Make calls, in several threads, while the context lasts; the statuses of the answers, or their problems."""
    statuses: Counter[str] = Counter()
    is_over = threading.Event()

    def run(seed: int) -> None:
        choose = random.Random(seed)
        with httpx2.Client(base_url=url, timeout=60) as client:
            while not is_over.is_set():
                answer = choose.choice(calls)(client)
                statuses["made" if answer.is_success else answer.text] += 1

    running = [threading.Thread(target=run, args=(seed,)) for seed in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield statuses
    finally:
        is_over.set()
        for thread in running:
            thread.join()


def between(account_ids: list[int]) -> dict[str, object]:
    """A transfer between two of these accounts."""
    debit, credit = random.sample(account_ids, 2)
    return order(debit, credit, 1)


def old_calls(holders: list[Holder]) -> list[Call]:
    """What callers of the older code call."""

    def transfer(client: httpx2.Client) -> httpx2.Response:
        sender, receiver = random.sample(holders, 2)
        body = order(sender.account_id, receiver.account_id, random.randint(1, 9), reference="r")
        return client.post("/transfers", json=body, headers=sender.headers)

    def batch(client: httpx2.Client) -> httpx2.Response:
        ids = [holder.account_id for holder in holders]
        items = [between(ids) for _ in range(5)]
        return client.post("/transfers/batch", json={"transfers": items}, headers=AS_OPERATOR)

    def register(client: httpx2.Client) -> httpx2.Response:
        return client.post("/register", json=named(f"user{random.getrandbits(40)}"))

    def open_account(client: httpx2.Client) -> httpx2.Response:
        body = {"currency": random.choice(["USD", "GBP", "CHF"])}
        return client.post("/accounts", json=body, headers=random.choice(holders).headers)

    def limit(client: httpx2.Client) -> httpx2.Response:
        path = f"/accounts/{random.choice(holders).account_id}"
        return client.patch(path, json={"credit_limit": random.randint(0, 5)}, headers=AS_OPERATOR)

    def read(client: httpx2.Client) -> httpx2.Response:
        holder = random.choice(holders)
        path = random.choice(["/me", "/accounts", f"/accounts/{holder.account_id}/entries"])
        return client.get(path, headers=holder.headers)

    return [transfer, transfer, transfer, batch, register, open_account, limit, read, read]


def new_calls(holders: list[Holder]) -> list[Call]:
    """What callers of this code call too."""

    def end_hold(client: httpx2.Client) -> httpx2.Response:
        sender, receiver = random.sample(holders, 2)
        if random.random() < 0.2:
            return try_hold(client, sender.headers, sender.account_id, receiver.account_id, 2, expires_in=1)
        made = hold(client, sender, receiver, 2)
        end = random.choice([capture, void])
        return end(client, made["id"], receiver.headers)

    def link(client: httpx2.Client) -> httpx2.Response:
        ids = [holder.account_id for holder in holders]
        legs = [between(ids) for _ in range(3)]
        return client.post("/transactions", json={"transfers": legs}, headers=AS_OPERATOR)

    return [*old_calls(holders), end_hold, end_hold, end_hold, link]


def test_an_upgrade_refuses_nobody(
    older: Path, tmp_path: Path, request: pytest.FixtureRequest, postgresql_url: str
) -> None:
    with (
        new_database("postgresql", tmp_path, request) as url,
        httpx2.Client(timeout=60) as client,
    ):
        assert alembic(url, "upgrade", BEFORE).returncode == 0
        with serving(url, tmp_path, workers=2, root=older, LOCK_TIMEOUT="20") as server:
            client.base_url = server.url
            # So much that none of it is ever short: the older code knows nothing of what is held.
            holders = register_all(client, **{f"holder{number}": 10**9 for number in range(8)})
            with load(server.url, old_calls(holders)) as by_older:
                time.sleep(2)
                before = by_older.total()
                migrated = alembic(url, "upgrade", "head")
                assert migrated.returncode == 0, migrated.stderr
                time.sleep(1)
                between = by_older.total()
                assert httpx2.get(f"{server.url}/readyz").json()["status"] == "ahead"
                with (
                    serving(url, tmp_path, workers=2, LOCK_TIMEOUT="20") as newer,
                    load(newer.url, new_calls(holders)) as by_newer,
                ):
                    time.sleep(4)
                after = by_older.total()

    assert not [each for each in (*by_older, *by_newer) if each != "made" and '"status":409' not in each]
    assert min(before, between - before, after - between, by_newer.total()) > 50
