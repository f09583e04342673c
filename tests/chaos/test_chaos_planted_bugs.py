"""Bugs that are planted in a copy of the service: the attack must find each, and nothing in the service as it is."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.nemesis import Fault, end_connections, freeze_backends, freeze_worker, kill_worker
from tests.chaos.run import Report, run
from tests.chaos.stage import Stage
from tests.support.migrations import copy_of_the_repository
from tests.support.poolers import needs_pgbouncer
from tests.support.service import query

pytestmark = pytest.mark.slow

Bug = Sequence[tuple[str, str, str]]
"""Files, each with a text in it and what takes its place."""

COMMIT_BETWEEN: Bug = [
    (
        "crud.py",
        '        insert_rows(session, Profile, owners, status="active")\n',
        "        connection = await session.connection()\n"
        '        await connection.exec_driver_sql("COMMIT")\n'
        '        await connection.exec_driver_sql("BEGIN")\n'
        '        insert_rows(session, Profile, owners, status="active")\n',
    )
]

ANSWER_BEFORE_COMMIT: Bug = [
    # Each caller is answered when its outcome is known; the transaction goes on.
    (
        "db/database.py",
        "        return await self.retry(run)\n\n    @asynccontextmanager\n    async def turn(",
        "        known = asyncio.get_running_loop().create_future()\n"
        "        isolation.KNOWN.set(known)\n"
        "        task = asyncio.ensure_future(self.retry(run))\n"
        "        await asyncio.wait([task, known], return_when=asyncio.FIRST_COMPLETED)\n"
        "        return known.result() if known.done() else await task\n"
        "\n    @asynccontextmanager\n    async def turn(",
    ),
    ("db/database.py", "from db import sqlite_file, trips\n", "from db import isolation, sqlite_file, trips\n"),
    (
        "db/isolation.py",
        'P = ParamSpec("P")\n',
        "import asyncio\nimport contextvars\n\n"
        'KNOWN: contextvars.ContextVar[asyncio.Future] = contextvars.ContextVar("KNOWN")\n'
        'P = ParamSpec("P")\n',
    ),
    (
        "crud.py",
        "    async with begin(session):\n        return await post_orders(session, orders, wait=wait)\n",
        "    async with begin(session):\n"
        "        outcomes = await post_orders(session, orders, wait=wait)\n"
        "        isolation.KNOWN.get().done() or isolation.KNOWN.get().set_result(outcomes)\n"
        "        await asyncio.sleep(0.4)\n"
        "        return outcomes\n",
    ),
    ("crud.py", "import queries\n", "import queries\nfrom db import isolation\n"),
]

NO_KEY_CHECK: Bug = [
    (
        "crud.py",
        "            *(_read_posting(*row) for row in earlier),\n",
        "",
    )
]

BEGIN_IS_ANOTHER: Bug = [
    # What a prepared BEGIN does behind a pooler that does not keep sessions' statements apart. Preparing it breaks no
    # promise now: what was not found, or did not begin, is a 503.
    (
        "db/postgresql.py",
        'return ["BEGIN", *(',
        'return ["SELECT 1", *(',
    ),
    ("db/trips.py", "        await connection.run_sync(require_transaction)\n", "        pass\n"),
    ("db/trips.py", "        require_transaction(connection)\n\n\nasync def end(", "\n\nasync def end("),
    ("db/trips.py", "        require_transaction(connection)\n\n\ndef drop", "        pass\n\n\ndef drop"),
]

COMMIT_IS_RUN_AGAIN: Bug = [
    # What is lost with the answer to a COMMIT is taken for a conflict.
    (
        "db/database.py",
        "                if connection.info.pop(UNCONFIRMED, False):\n",
        "                import random\n"
        '                if operation.__name__ == "make_transfers" and random.random() < 0.3:\n'
        "                    raise Conflict\n"
        "                if connection.info.pop(UNCONFIRMED, False):\n",
    )
]


def planted(bug: Bug, folder: Path) -> Path:
    """A copy of the service with this bug."""
    root = folder / "planted"
    root.mkdir()
    copy_of_the_repository(root)
    for name, text, instead in bug:
        path = root / name
        assert path.read_text().count(text) == 1, f"{name} has changed: plant the bug there anew"
        path.write_text(path.read_text().replace(text, instead))
    return root


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own, which PostgreSQL's user may not enter."""
    with tempfile.TemporaryDirectory(prefix="savepoint-chaos-") as folder:
        yield Path(folder)


async def attacked(setup: str, folder: Path, bug: Bug, faults: Sequence[Fault], seconds: float, *unique: str) -> Report:
    """The report of an attack on a service with this bug, and without these unique constraints."""

    async def drop(stage: Stage) -> None:
        for name in unique:
            query(stage.url, f"ALTER TABLE transfers DROP CONSTRAINT {name}")

    root = planted(bug, folder)
    report = await run(setup, seconds, random.Random(1), folder, root=root, faults=faults, prepare=drop, patience=15)
    print(report.text())
    return report


async def test_a_commit_between_a_user_and_its_profile_is_found(folder: Path) -> None:
    report = await attacked("postgresql", folder, COMMIT_BETWEEN, [end_connections], 12)

    assert "half" in report.kinds()


async def test_an_answer_before_commit_is_found(folder: Path) -> None:
    report = await attacked("sqlite", folder, ANSWER_BEFORE_COMMIT, [kill_worker], 12)

    # What was read before COMMIT, or lost with it.
    assert report.kinds() & {"lost", "stale read"}


async def test_a_key_that_is_not_checked_is_found(folder: Path) -> None:
    faults = [freeze_worker, freeze_backends, end_connections]
    unique = "uq_transfers_initiator_idempotency_key"
    report = await attacked("postgresql", folder, NO_KEY_CHECK, faults, 12, unique)

    assert "doubled" in report.kinds()


async def test_what_is_run_again_after_its_commit_is_found(folder: Path) -> None:
    report = await attacked("sqlite", folder, COMMIT_IS_RUN_AGAIN, [], 5)

    assert "done before" in report.kinds()


@needs_pgbouncer
async def test_a_begin_that_is_another_sessions_statement_is_found(folder: Path) -> None:
    report = await attacked("pgbouncer", folder, BEGIN_IS_ANOTHER, [end_connections], 12)

    # Or the database itself refused what two did at once without locks.
    assert report.kinds() & {"half", "audit", "internal error"}
