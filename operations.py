"""The operations as the routes call them: coalesced, bounded, with a deadline, and finished at shutdown."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from db.batching import Batcher
from db.database import Database
from db.isolation import IsolatedWrite, Write
from ledger import OPERATOR, Posted
from models import UserPublic
from refusals import BatchUnderWay, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, Overloaded
from settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


Calls = Callable[[Item], Coroutine[Any, Any, Outcome]]
"""What takes an item of a call, and returns what becomes of it."""

LOCK_PATIENCE = 0.2
"""Seconds that a batch waits for a lock: longer than other batches hold it, too short for its callers to notice."""


@dataclass(frozen=True, slots=True)
class Bulk(Generic[Item]):
    """Many items in one call: all or nothing, or each for itself."""

    items: Sequence[Item]
    all_or_nothing: bool


class Turns:
    """How many batches are in memory at once; the others wait, and their bodies with them.

    Users cannot keep the operator waiting: the turns of either are their own. A user has one at a time.
    """

    def __init__(self, wait: float) -> None:
        self.wait = wait
        self.of_operator = asyncio.Semaphore(2)
        self.of_users = asyncio.Semaphore(4)
        self.users: set[int] = set()

    @asynccontextmanager
    async def take(self, caller: int) -> AsyncIterator[None]:
        """Take a turn for as long as the context lasts. Raises BatchUnderWay, and Overloaded if none comes in time."""
        if caller in self.users:
            raise BatchUnderWay
        turns = self.of_operator if caller == OPERATOR else self.of_users
        self.users |= {caller} - {OPERATOR}
        try:
            try:
                async with asyncio.timeout(self.wait):
                    await turns.acquire()
            except TimeoutError:
                raise Overloaded from None
            try:
                yield
            finally:
                turns.release()
        finally:
            self.users.discard(caller)


async def run_query(queries: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Each query by itself."""
    return [await query() for query in queries]


class Operations:
    """Everything that one process can be asked to do with its database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.turns = Turns(settings.request_timeout)
        self.batchers: list[Batcher[Any, Any]] = []
        currency = settings.default_currency
        users_and_accounts: tuple[Any, ...] = (
            *(crud.update_users, crud.open_accounts),
            *(crud.issue_tokens, crud.revoke_tokens, crud.revoke_users_tokens),
        )
        money: tuple[Any, ...] = (crud.make_transfers, crud.reverse_transfers, crud.make_payments)
        self.single: dict[Any, Calls[Any, Any]] = {
            crud.register_users: self.coalesce(crud.register_users, currency),
            **{write: self.coalesce(write) for write in users_and_accounts},
            **{write: self.coalesce_postings(write) for write in money},
        }
        self.many: dict[Any, Calls[Bulk[Any], Sequence[Any]]] = {
            crud.register_users: self.bulk("register_many", crud.register_users, crud.register_all_users, currency),
            crud.make_transfers: self.bulk("transfer_many", crud.make_transfers, crud.make_all_transfers),
        }
        self.authenticate: Batcher[str, UserPublic] = self.batcher(
            "authenticate", lambda hashes: database.read(crud.authenticate, hashes), too_late=DatabaseUnavailable
        )
        # Left to end at the deadline: a query that is cancelled is waited for, on SQLite as long as it takes.
        self.query: Batcher[Callable[[], Awaitable[Any]], Any] = self.batcher(
            "query", run_query, tasks=4, batch_limit=1, too_late=DatabaseUnavailable
        )

    def write(self, write: IsolatedWrite[Item, ..., Outcome], item: Item) -> Coroutine[Any, Any, Outcome]:
        """Write one item, in one transaction with whatever else waits for the same crud function.

        Raises the Refusal or other exception that is the item's outcome, and Overloaded, ShuttingDown, Locked, or
        OutcomeUnknown after the deadline.
        """
        return self.single[write](item)

    def write_many(
        self, write: IsolatedWrite[Item, ..., Outcome], items: Bulk[Item]
    ) -> Coroutine[Any, Any, Sequence[Outcome | Exception]]:
        """Write many items in a transaction of their own; the outcomes in their order. Raises as `write`."""
        return self.many[write](items)

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query within the deadline. Raises DatabaseUnavailable after it."""
        answer: T = await self.query(partial(self.database.read, query, *args, **kwargs))
        return answer

    def batcher(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        tasks: int = 1,
        batch_limit: int | None = None,
        too_late: type[Interruption] = OutcomeUnknown,
    ) -> Batcher[Item, Outcome]:
        """A batcher as the settings say, unless told otherwise.

        One task writes, also on PostgreSQL: what comes while it commits makes the next batch larger, and each call in
        it cheaper, where a second task would halve the batches.
        """
        batcher = Batcher(
            name,
            run,
            tasks=tasks,
            batch_limit=batch_limit or self.settings.batch_limit,
            queue_limit=self.settings.queue_limit,
            deadline=self.settings.request_timeout,
            too_late=too_late,
        )
        self.batchers.append(batcher)
        return batcher

    def coalesce(
        self, write: IsolatedWrite[Item, P, Outcome], *args: P.args, **kwargs: P.kwargs
    ) -> Calls[Item, Outcome]:
        """Single calls of a crud function that writes many; those that need a locked row wait without the others."""

        async def run(items: Sequence[Item]) -> list[Outcome | Exception]:
            try:
                return await self.database.write(write, items, *args, **kwargs)
            except Locked as locked:
                if len(items) == 1:
                    return [locked]
            middle = len(items) // 2
            return [*await run(items[:middle]), *await run(items[middle:])]

        aside: Batcher[Item, Outcome] = self.batcher(f"{write.__name__}_aside", run, batch_limit=1)
        return self.patient(self.batcher(write.__name__, run), aside)

    def coalesce_postings(
        self, write: Callable[..., Awaitable[list[Posted | Exception]]]
    ) -> Callable[[Any], Coroutine[Any, Any, Posted]]:
        """Single calls of a crud function that moves money; those that need a locked account wait without the others.

        A batch waits for an account as long as other batches hold one: milliseconds. Where that is not enough, it is
        run again without waiting, as are all batches until half of LOCK_TIMEOUT is over.
        """
        waits_from = 0.0

        async def run(items: Sequence[Any]) -> list[Posted | Exception]:
            nonlocal waits_from
            if time.monotonic() >= waits_from:
                try:
                    return await self.database.write(write, items)
                except Locked:
                    waits_from = time.monotonic() + self.settings.lock_timeout / 2
            return await self.database.write(write, items, wait=False)

        calls = self.batcher(write.__name__, run)
        return self.patient(calls, calls)

    def patient(self, first: Batcher[Item, Outcome], again: Batcher[Item, Outcome]) -> Calls[Item, Outcome]:
        """Calls that are tried until no other transaction's lock is in the way; Locked is raised after LOCK_TIMEOUT."""

        async def try_again(item: Item, give_up: float) -> Outcome:
            pause = 0.05
            while True:
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, 0.5)
                try:
                    return await again(item)
                except Locked:
                    if time.monotonic() >= give_up:
                        raise

        async def try_first(item: Item) -> Outcome:
            give_up = time.monotonic() + self.settings.lock_timeout
            try:
                return await first(item)
            except Locked:
                return await try_again(item, give_up)

        return try_first

    def bulk(
        self,
        name: str,
        write: IsolatedWrite[Item, P, Outcome],
        write_all: Write[Item, P, Outcome],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Calls[Bulk[Any], Sequence[Any]]:
        """Calls of many items each, every call in a transaction of its own."""

        async def run(calls: Sequence[Bulk[Item]]) -> list[Sequence[Outcome | Exception]]:
            [call] = calls
            if call.all_or_nothing:
                return [await self.database.write(write_all, call.items, *args, **kwargs)]
            return [await self.database.write(write, call.items, *args, **kwargs)]

        calls = self.batcher(name, run, batch_limit=1)
        return self.patient(calls, calls)

    async def close(self) -> None:
        """Refuse what comes from now on, finish what was accepted, and close the connections."""
        # Whoever still waits after the deadline was told so, and a transaction that hangs must not hold up the end.
        await asyncio.wait(
            [asyncio.create_task(batcher.close()) for batcher in self.batchers], timeout=self.settings.request_timeout
        )
        await self.database.close()
