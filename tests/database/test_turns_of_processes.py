"""Several processes that write to one SQLite file take turns, and none is refused for the sake of that order."""

import asyncio
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import groupby
from pathlib import Path

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from db import turns
from db.database import Database
from refusals import DatabaseUnavailable, Locked
from settings import Settings
from tests.support.database import execute
from tests.support.service import ROOT

pytestmark = pytest.mark.anyio

PATIENT = 60
"""A LOCK_TIMEOUT that no test waits for."""

HOLDER = """
import asyncio
import sys

from db.database import Database
from settings import Settings


async def hold(session):
    async with session.begin():
        await session.connection()
        print("begun", flush=True)
        await asyncio.sleep(60)


asyncio.run(Database(Settings(database_url=sys.argv[1])).write(hold))
"""


@asynccontextmanager
async def opened(path: Path, lock_timeout: float = PATIENT) -> AsyncIterator[Database]:
    database = Database(Settings(database_url=f"sqlite:///{path}", lock_timeout=lock_timeout))
    try:
        yield database
    finally:
        await database.close()


async def write(database: Database, then: Callable[[], object] = lambda: None) -> None:
    """Write one transaction."""

    async def change(session: AsyncSession) -> None:
        async with session.begin():
            await execute(session, "UPDATE accounts SET balance = balance")
            then()

    await database.write(change)


async def order_of(*databases: Database) -> list[int]:
    """Let the databases write all the time; return whose transaction followed whose, until the first has finished."""
    for database in databases:
        # Connects, so that all wait from the beginning.
        await write(database)
    order: list[int] = []

    async def write_all(number: int, database: Database) -> None:
        for _ in range(200):
            await write(database, lambda: order.append(number))
        finished.append(len(order))

    finished: list[int] = []
    async with asyncio.timeout(PATIENT / 2):
        await asyncio.gather(*(write_all(*each) for each in enumerate(databases)))
    return order[: finished[0]]


def longest_run(order: list[int]) -> int:
    return max(len(list(run)) for _, run in groupby(order))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The lock of a process that hangs."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, within a transaction."""
    command = [sys.executable, "-c", HOLDER, f"sqlite:///{path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            yield process
        finally:
            process.kill()


async def test_two_that_write_all_the_time_alternate(path: Path) -> None:
    async with opened(path) as first, opened(path) as second:
        assert longest_run(await order_of(first, second)) <= 5


async def test_a_turn_is_given_back_by_a_transaction_that_fails_or_is_cancelled(path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async with opened(path) as first, opened(path) as second, asyncio.timeout(PATIENT / 4):
        with pytest.raises(ZeroDivisionError):
            await write(first, fail)
        await write(second)
        with locked(path.with_name("a.db-turn")):
            waiting = asyncio.create_task(write(first))
            await asyncio.sleep(0.05)
            waiting.cancel()
        await write(second)


async def test_a_process_that_is_killed_gives_its_turn_back(path: Path) -> None:
    async with opened(path) as database, asyncio.timeout(PATIENT / 4):
        with holder(path) as process:
            waiting = asyncio.create_task(write(database))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            process.kill()
            await waiting


async def test_behind_a_process_that_hangs_in_a_transaction_a_write_is_locked_after_lock_timeout(path: Path) -> None:
    async with opened(path, lock_timeout=0.5) as database:
        with holder(path) as process:
            process.send_signal(signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(Locked):
                await asyncio.wait_for(write(database), PATIENT / 4)
            assert 0.5 <= time.monotonic() - start < 1
        await asyncio.sleep(0.1)
        await write(database)


@pytest.mark.parametrize("suffix", turns.SUFFIXES)
async def test_behind_a_process_that_hangs_outside_a_transaction_writes_go_on_and_then_alternate_again(
    path: Path, suffix: str
) -> None:
    async with opened(path, lock_timeout=0.5) as first, opened(path, lock_timeout=0.5) as second:
        with locked(path.with_name(f"a.db{suffix}")):
            async with asyncio.timeout(PATIENT / 4):
                for database in (first, second, first, second):
                    await write(database)

        assert longest_run(await order_of(first, second)) <= 5


@pytest.mark.parametrize("obstacle", ["a folder", "a link", "no locks", "no fcntl"])
async def test_without_the_files_or_their_locks_writes_go_on(
    path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if obstacle == "a folder":
        path.with_name("a.db-turn").mkdir()
    elif obstacle == "a link":
        path.with_name("a.db-next").symlink_to("elsewhere")
    elif obstacle == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(turns, "fcntl", None)

    async with opened(path) as first, opened(path) as second, asyncio.timeout(PATIENT / 4):
        for database in (first, second, first):
            await write(database)

    assert not path.with_name("elsewhere").exists()


async def test_writes_go_on_after_the_files_were_deleted(path: Path) -> None:
    async with opened(path) as first, opened(path) as second, asyncio.timeout(PATIENT / 4):
        await write(first)
        for suffix in turns.SUFFIXES:
            path.with_name(f"a.db{suffix}").unlink()
        for database in (second, first, second):
            await write(database)


async def test_the_files_are_private_and_beside_the_target_of_a_link(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "current.db").symlink_to(path)

    async with opened(folder / "current.db") as database:
        await write(database)

    assert [each.name for each in folder.iterdir()] == ["current.db"]
    assert [stat.S_IMODE(path.with_name(f"a.db{suffix}").stat().st_mode) for suffix in turns.SUFFIXES] == [0o600] * 2


async def test_no_file_is_created_for_a_database_that_is_missing_or_only_read(path: Path, tmp_path: Path) -> None:
    async with opened(path) as database, opened(tmp_path / "none.db") as missing:
        await database.read(lambda session: execute(session, "SELECT 1"))
        with pytest.raises(DatabaseUnavailable):
            await write(missing)

    assert not [each for each in path.parent.iterdir() if each.name.endswith(turns.SUFFIXES)]
