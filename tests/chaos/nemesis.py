"""The faults: each is a function that does harm and, before it returns, ends it."""

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from tests.chaos.stage import CC, Stage
from tests.support.service import query

Fault = Callable[[Stage, random.Random], Awaitable[None]]


async def kill_server(stage: Stage, _: random.Random) -> None:
    stage.service.kill()


async def kill_worker(stage: Stage, chance: random.Random) -> None:
    os.kill(chance.choice(stage.workers()), signal.SIGKILL)


async def freeze_worker(stage: Stage, chance: random.Random) -> None:
    with frozen([chance.choice(stage.workers())]):
        await asyncio.sleep(chance.uniform(1, 7))  # After 5 s, uvicorn replaces it.


async def freeze_client(stage: Stage, chance: random.Random) -> None:
    with frozen([chance.choice(stage.clients).process.pid]):
        await asyncio.sleep(chance.uniform(1, 4))


async def fill_disk(stage: Stage, chance: random.Random) -> None:
    ballast = stage.disk / "ballast"
    with ballast.open("wb") as file:
        try:
            # What the database frees, it loses again.
            for _ in range(20):
                file.write(bytes(shutil.disk_usage(stage.disk).free))
                file.flush()
                await asyncio.sleep(chance.uniform(0.05, 0.15))
        except OSError:
            await asyncio.sleep(1)
    ballast.unlink()


async def step_clock(stage: Stage, chance: random.Random) -> None:
    # By less than a registration can be replayed, so that its retries stay safe.
    for offset in (chance.randint(60, 400), -chance.randint(60, 400), 0):
        stage.step_clock(offset)
        await asyncio.sleep(1)


async def kill_postgresql(stage: Stage, _: random.Random) -> None:
    stage.kill_postgresql()


async def kill_backend(stage: Stage, chance: random.Random) -> None:
    """Kill one process of PostgreSQL: the server then ends all others, and recovers."""
    os.kill(chance.choice(stage.backends()), signal.SIGKILL)


async def freeze_backends(stage: Stage, chance: random.Random) -> None:
    with frozen(chance.sample(stage.backends(), 1)):
        await asyncio.sleep(chance.uniform(1, 5))


async def end_connections(stage: Stage, _: random.Random) -> None:
    """End all connections to PostgreSQL, whatever they do, as firewalls and administrators may."""
    query(
        stage.url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()",
    )


async def kill_pooler(stage: Stage, _: random.Random) -> None:
    assert stage.pooler is not None
    stage.pooler.kill()


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """These processes do nothing, and their connections stay open."""
    signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # Its supervisor was faster.
            os.kill(pid, number)


def faults_of(stage: Stage) -> list[Fault]:
    """Return the faults that this setup can have."""
    faults: list[Fault] = [kill_server, kill_worker, freeze_worker, freeze_client]
    if CC:
        faults.append(step_clock)
    else:
        print("step clock: left out, since there is no C compiler")
    if stage.can_fill_disk:
        faults.append(fill_disk)
    else:
        print("fill disk: left out, since only root can mount one")
    if stage.setup != "sqlite":
        faults += [kill_postgresql, kill_backend, freeze_backends, end_connections]
    if stage.setup == "pgbouncer":
        faults.append(kill_pooler)
    return faults
