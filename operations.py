"""The operations as the routes call them: coalesced, bounded, with a deadline, and finished at shutdown."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from batching import Batcher
from database import Database
from ledger import OPERATOR, Posted
from models import UserPublic
from refusals import DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, Overloaded
from settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BULK_QUEUE_LIMIT = 8
"""How many bulk calls may wait: each can hold 16 MiB."""


@dataclass(frozen=True, slots=True)
class Bulk(Generic[Item]):
    """Many items in one call: all or nothing, or each for itself."""

    items: Sequence[Item]
    all_or_nothing: bool


async def run_query(queries: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Each query by itself."""
    return [await query() for query in queries]


class Operations:
    """Everything that one process can be asked to do with its database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.batchers: list[Batcher[Any, Any]] = []
        self.in_batches: set[int] = set()
        currency = settings.default_currency
        self.register_user = self.coalesce(crud.register_users, currency)
        self.update_user = self.coalesce(crud.update_users)
        self.issue_token = self.coalesce(crud.issue_tokens)
        self.revoke_token = self.coalesce(crud.revoke_tokens)
        self.revoke_users_tokens = self.coalesce(crud.revoke_users_tokens)
        self.open_account = self.coalesce(crud.open_accounts)
        self.transfer = self.coalesce_postings(crud.make_transfers)
        self.reverse = self.coalesce_postings(crud.reverse_transfers)
        self.pay = self.coalesce_postings(crud.make_payments)
        self.register_many = self.bulk("register_many", crud.register_users, crud.register_all_users, currency)
        self.transfer_many = self.bulk("transfer_many", crud.make_transfers, crud.make_all_transfers)
        self.authenticate: Batcher[str, UserPublic] = self.batcher(
            "authenticate", lambda hashes: database.read(crud.authenticate, hashes), too_late=DatabaseUnavailable
        )
        # Left to end at the deadline: a query that is cancelled is waited for, on SQLite as long as it takes.
        self.query: Batcher[Callable[[], Awaitable[Any]], Any] = self.batcher(
            "query", run_query, tasks=4, batch_limit=1, too_late=DatabaseUnavailable
        )

    def batcher(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        tasks: int = 1,
        batch_limit: int | None = None,
        queue_limit: int | None = None,
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
            queue_limit=queue_limit or self.settings.queue_limit,
            deadline=self.settings.request_timeout,
            too_late=too_late,
        )
        self.batchers.append(batcher)
        return batcher

    def coalesce(
        self, write: crud.IsolatedWrite[Item, P, Outcome], *args: P.args, **kwargs: P.kwargs
    ) -> Batcher[Item, Outcome]:
        """Single calls of a crud function that writes many."""
        return self.batcher(write.__name__, lambda items: self.database.write(write, items, *args, **kwargs))

    def coalesce_postings(
        self, write: Callable[..., Awaitable[list[Posted | Exception]]]
    ) -> Callable[[Any], Awaitable[Posted]]:
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

        return self.patient(self.batcher(write.__name__, run))

    def patient(self, call: Batcher[Item, Outcome]) -> Callable[[Item], Awaitable[Outcome]]:
        """Calls that are tried until no other transaction's lock is in the way; Locked is raised after LOCK_TIMEOUT."""

        async def try_again(item: Item) -> Outcome:
            give_up = time.monotonic() + self.settings.lock_timeout
            pause = 0.05
            while True:
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, 0.5)
                try:
                    return await call(item)
                except Locked:
                    if time.monotonic() >= give_up:
                        raise

        async def try_first(item: Item) -> Outcome:
            try:
                return await call(item)
            except Locked:
                return await try_again(item)

        return try_first

    def bulk(
        self,
        name: str,
        write: crud.IsolatedWrite[Item, P, Outcome],
        write_all: crud.Write[Item, P, Outcome],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Callable[[Bulk[Any]], Awaitable[Sequence[Any]]]:
        """Calls of many items each, every call in a transaction of its own."""

        async def run(calls: Sequence[Bulk[Item]]) -> list[Sequence[Outcome | Exception]]:
            [call] = calls
            if call.all_or_nothing:
                return [await self.database.write(write_all, call.items, *args, **kwargs)]
            return [await self.database.write(write, call.items, *args, **kwargs)]

        calls: Batcher[Bulk[Item], Sequence[Outcome | Exception]] = self.batcher(
            name, run, batch_limit=1, queue_limit=BULK_QUEUE_LIMIT
        )
        return self.patient(calls)

    @contextmanager
    def only_batch_of(self, caller: int) -> Iterator[None]:
        """Hold a user to one bulk call at a time, so that the queue is everybody's. Raises Overloaded."""
        if caller in self.in_batches:
            raise Overloaded
        if caller != OPERATOR:
            self.in_batches.add(caller)
        try:
            yield
        finally:
            self.in_batches.discard(caller)

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query within the deadline. Raises DatabaseUnavailable after it."""
        answer: T = await self.query(partial(self.database.read, query, *args, **kwargs))
        return answer

    async def close(self) -> None:
        """Refuse what comes from now on, finish what was accepted, and close the connections."""
        # Whoever still waits after the deadline was told so, and a transaction that hangs must not hold up the end.
        await asyncio.wait(
            [asyncio.create_task(batcher.close()) for batcher in self.batchers], timeout=self.settings.request_timeout
        )
        await self.database.close()
