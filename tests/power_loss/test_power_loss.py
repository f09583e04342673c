"""SQLite when the power fails, at 200 instants of a run: what was answered 2xx is there, whole and once."""

import random
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

import audit
from tests.support.accounts import order
from tests.support.power_loss import Disk, read_log
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, ROOT, serving
from tests.support.transfers import keyed

CC = shutil.which("cc") or shutil.which("gcc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CC is None or not Path("/proc/self").exists(), reason="a C compiler on Linux is needed"),
]

CUTS = 200
CLIENTS = 4
CALLS = 25
"""By each client, in each life of the server."""

USERS = """
    SELECT users.id, username, substr(users.email, 1, instr(users.email, '@') - 1) FROM users
    JOIN profiles ON profiles.user_id = users.id
    JOIN accounts ON accounts.user_id = users.id
    JOIN access_tokens ON access_tokens.user_id = users.id
"""
TRANSFERS = """
    SELECT t.id, t.debit_account_id, t.credit_account_id, t.amount, t.memo FROM transfers t
    JOIN entries d ON d.transfer_id = t.id AND d.account_id = t.debit_account_id AND d.amount = -t.amount
    JOIN entries c ON c.transfer_id = t.id AND c.account_id = t.credit_account_id AND c.amount = t.amount
"""
HOLDS = "SELECT id, debit_account_id, credit_account_id, amount, memo FROM holds"
BATCH = 5
"""Items of each batch and transaction. Their emails and memos begin with the same text, which no other call's does."""

Row = tuple[str, Any, Any, Any, Any]


class Acknowledged(NamedTuple):
    """A row that a 2xx answer promised, and the length of the log of syncs when the answer had come."""

    position: int
    row: Row


class Run:
    """Clients that write, and what they were answered."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.acknowledged: list[Acknowledged] = []
        self.numbers = count(1)

    def serve(self, url: str, seed: int) -> None:
        """Send the calls of one client, until they are done or the server is gone."""
        choose = random.Random(seed)
        with httpx2.Client(base_url=url, timeout=30) as client:
            try:
                for _ in range(CALLS):
                    self.call(client, choose)
            except httpx2.TransportError:
                return

    def call(self, client: httpx2.Client, choose: random.Random) -> None:
        """Make one call of some kind, and note what it promises."""
        tag = f"call{next(self.numbers)}-"
        first, second = choose.sample(range(1, 5), 2)
        amount = choose.randint(1, 9)
        body = order(first, second, amount, memo=tag)
        legs = [order(first, second, amount, memo=f"{tag}{item}") for item in range(BATCH)]
        batch = [named(f"{tag}{item}", email=f"{tag}{item}@example.com") for item in range(BATCH)]
        path, content = choose.choice(
            [
                ("/register", named(tag + "x", email=f"{tag}@example.com")),
                ("/transfers", body),
                ("/holds", body),
                ("/deposits", {"account_id": first, "amount": amount, "memo": tag}),
                ("/users/batch", {"users": batch}),
                ("/transfers/batch", {"transfers": legs}),
                ("/transactions", {"transfers": legs}),
            ]
        )
        headers = AS_OPERATOR if path in ("/register", "/users/batch", "/transfers/batch") else keyed(AS_OPERATOR, tag)
        answer = client.post(path, json=content, headers=headers)
        position = self.log.stat().st_size
        assert answer.is_success, answer.text
        self.acknowledged += [Acknowledged(position, row) for row in rows_of(path, answer.json())]


def rows_of(path: str, answer: dict[str, Any]) -> Iterator[Row]:
    """What an answer promises."""
    if path == "/holds":
        yield "hold", *transfer_of(answer)
        return
    for item in answer.get("results") or answer.get("transfers") or [answer]:
        if "user" in item:
            yield "user", item["user"]["id"], item["user"]["username"], item["user"]["email"].partition("@")[0], None
        else:
            yield "transfer", *transfer_of(item.get("transfer", item))


def transfer_of(item: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(item[name] for name in ("id", "debit_account_id", "credit_account_id", "amount", "memo"))


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What writes down what a server does to its files."""
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([str(CC), "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def run_service(folder: Path, shim: Path, lives: tuple[int, ...], root: Path = ROOT) -> Run:
    """Serve and call, in each life with so many workers; the first begins without a file and ends by kill -9."""
    data = folder / "data"
    data.mkdir()
    run = Run(folder / "log")
    environment = {"LD_PRELOAD": str(shim), "POWER_LOSS_FOLDER": str(data), "POWER_LOSS_LOG": str(run.log)}
    for life, workers in enumerate(lives):
        with serving(f"sqlite:///{data}/savepoint.db", folder, workers, root, **environment) as server:
            if life == 0:
                with httpx2.Client(base_url=server.url, timeout=30) as client:
                    users = [named(f"holder{number}") for number in range(4)]
                    assert client.post("/users/batch", json={"users": users}, headers=AS_OPERATOR).is_success
                    for account in range(1, 5):
                        paid = {"account_id": account, "amount": 10**9}
                        assert client.post("/deposits", json=paid, headers=AS_OPERATOR).is_success
            threads = [
                threading.Thread(target=run.serve, args=(server.url, CLIENTS * life + number))
                for number in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            if life == 0:
                threads[0].join()
                server.process.kill()
                server.process.wait()
            for thread in threads:
                thread.join()
    return run


def databases_after_power_losses(run: Run, cuts: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """The lengths of the log at seeded instants, each with the database as it is if the power fails then."""
    choose = random.Random(cuts)
    ends = [record.end for record in read_log(run.log)]
    instants = set(choose.sample(ends, cuts))
    disk = Disk()
    for record in read_log(run.log):
        disk.follow(record)
        if record.end in instants:
            place = folder / str(record.end)
            place.mkdir()
            disk.fail(choose, place)
            yield record.end, place / "savepoint.db"
            shutil.rmtree(place)


def check(path: Path, promised: set[Row]) -> list[str]:
    """What is wrong with a database after the power failed."""
    if not path.exists() or not is_migrated(path):
        return ["all of it is lost"] * bool(promised)
    with closing(sqlite3.connect(path)) as connection:
        faults = [str(row) for row in connection.execute("PRAGMA integrity_check") if row != ("ok",)]
        faults += [str(row) for row in connection.execute("PRAGMA foreign_key_check")]
        users = connection.execute(USERS).fetchall()
        transfers = connection.execute(TRANSFERS).fetchall()
        holds = connection.execute(HOLDS).fetchall()
        for table, whole in (("users", users), ("transfers", transfers), ("holds", holds)):
            [(number,)] = connection.execute(f"SELECT count(*) FROM {table}")
            if number != len(whole):
                faults.append(f"of {number} {table}, {len(whole)} are whole")
    found: set[Row] = {("user", *row, None) for row in users}
    found |= {("transfer", *row) for row in transfers} | {("hold", *row) for row in holds}
    faults += [f"lost: {row}" for row in promised - found]
    faults += doubled_or_in_part([row[2] for row in users], [row[4] for row in transfers], [row[4] for row in holds])
    with audit.open_books(f"sqlite:///{path}") as books:
        faults += map(str, books.run(lambda rows: None))
    return faults


def doubled_or_in_part(emails: list[str], *memos: list[str | None]) -> list[str]:
    """Calls that were made twice, and batches of which some items are missing."""
    faults = []
    each_kind: list[list[str | None]] = [[*emails], *memos]
    for texts in each_kind:
        calls: dict[str, list[str]] = {}
        for text in texts:
            call, dash, item = (text or "").partition("-")
            if dash:
                calls.setdefault(call, []).append(item)
        faults += [
            f"{call} has the items {items}"
            for call, items in calls.items()
            if sorted(items) not in ([""], [str(item) for item in range(BATCH)])
        ]
    return faults


def is_migrated(path: Path) -> bool:
    """Whether the migration of the first start has come to its end; what came of it is whole in any case."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        return {"holds", "transactions"} <= names


def faults_after_power_losses(run: Run, cuts: int, folder: Path) -> tuple[list[str], int]:
    """What is wrong after all of them together, and how many promises were there to be kept."""
    faults: list[str] = []
    kept = 0
    for position, path in databases_after_power_losses(run, cuts, folder):
        promised = {each.row for each in run.acknowledged if each.position <= position}
        kept += len(promised)
        faults += [f"at {position}: {fault}" for fault in check(path, promised)]
    return faults, kept


def test_a_loss_of_power_loses_nothing_that_was_acknowledged(tmp_path: Path, shim: Path) -> None:
    run = run_service(tmp_path, shim, lives=(1, 2, 1))

    faults, kept = faults_after_power_losses(run, CUTS, tmp_path)

    assert faults == []
    assert len(run.acknowledged) > 300
    assert kept > CUTS * 50


def test_with_synchronous_normal_the_same_check_finds_losses(tmp_path: Path, shim: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT, code, ignore=shutil.ignore_patterns(".*", "tests", "bench", "saves", "*.db*", "__pycache__"))
    engines = code / "db" / "engines.py"
    text = engines.read_text()
    assert text.count("synchronous=FULL") == 1
    engines.write_text(text.replace("synchronous=FULL", "synchronous=NORMAL"))
    run = run_service(tmp_path, shim, lives=(1,), root=code)

    faults, _ = faults_after_power_losses(run, 20, tmp_path)

    assert any("lost: " in fault for fault in faults)
