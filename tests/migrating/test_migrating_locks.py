"""Migrating: locks."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tests.support.accounts import order, register_all
from tests.support.migrating import ADD_COLUMN, NEW, record
from tests.support.migrations import HEAD, add_revision, complaints, look, only_postgresql, wait_for_a_lock
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows, alembic, query, serving, wait_until

pytestmark = pytest.mark.slow


@only_postgresql
def test_a_migration_lets_others_pass_and_gets_its_lock_in_the_end(url: str, fork: Path) -> None:
    add_revision(fork, NEW, HEAD, ADD_COLUMN)
    add_revision(fork, "0123456789ab", NEW, "    pass")

    with ThreadPoolExecutor() as threads, psycopg.connect(url) as reader:
        reader.execute("SELECT * FROM users")
        upgrade = threads.submit(alembic, url, "upgrade", "+1", cwd=fork, MIGRATION_LOCK_TIMEOUT="0.2")
        wait_for_a_lock(url, upgrade)
        # Whoever comes now waits behind the migration, until that gives up its place for a while.
        for _ in range(3):
            query(url, "SELECT * FROM users")
            time.sleep(0.2)
        reader.rollback()

    assert upgrade.result().returncode == 0
    assert "lock timeout; trying again" in upgrade.result().stderr
    # One step, however often it was tried.
    assert record(url)[-1] == ("upgrade", NEW)


@only_postgresql
def test_a_migration_that_gives_up_names_the_query_in_its_way(url: str, fork: Path) -> None:
    add_revision(fork, NEW, HEAD, ADD_COLUMN)
    before = look(url)

    with psycopg.connect(url, application_name="a report") as reader:
        reader.execute("SELECT count(*) FROM users")
        result = alembic(
            url, "upgrade", "head", cwd=fork, MIGRATION_LOCK_TIMEOUT="0.3", MIGRATION_TIMEOUT="0.5"
        )  # fmt: skip
        pid = reader.info.backend_pid

    assert result.returncode == 1
    line = complaints(result)[-1]
    assert f"process {pid} (a report, idle in transaction since " in line
    assert "SELECT count(*) FROM users" in line
    assert look(url) == before


def test_while_a_migration_runs_no_caller_fails(url: str, fork: Path, tmp_path: Path, rows: Rows) -> None:
    steps = {"sqlite": ADD_COLUMN, "postgresql": f'{ADD_COLUMN}\n    op.create_index("ix_x", "transfers", ["memo"])'}
    add_revision(fork, NEW, HEAD, steps[url.partition(":")[0]])
    statuses: list[int] = []
    ended = threading.Event()

    def keep_calling(client: httpx2.Client, number: int, body: dict[str, Any]) -> None:
        count = 0
        while not ended.is_set():
            count += 1
            statuses.append(client.post("/register", json=named(f"user{number}x{count}")).status_code)
            statuses.append(client.post("/transfers", json=body, headers=AS_OPERATOR).status_code)

    with serving(url, tmp_path) as server, httpx2.Client(base_url=server.url, timeout=20) as client:
        alice, bob = register_all(client, alice=100_000, bob=0)
        body = order(alice.account_id, bob.account_id, 1)
        with ThreadPoolExecutor() as threads:
            callers = [threads.submit(keep_calling, client, number, body) for number in range(4)]
            wait_until(lambda: len(statuses) > 50, "the first calls")
            upgrade = alembic(url, "upgrade", "head", cwd=fork)
            seen = len(statuses)
            wait_until(lambda: len(statuses) > seen + 50, "calls after the migration")
            downgrade = alembic(url, "downgrade", "-1", cwd=fork)
            ended.set()
        for caller in callers:
            caller.result()

    assert (upgrade.returncode, downgrade.returncode) == (0, 0), upgrade.stderr + downgrade.stderr
    assert set(statuses) == {201}
    assert rows("SELECT count(*) FROM transfers") == [(len(statuses) // 2 + 1,)]
