"""Operations as the routes call them: coalesced, bounded, with a deadline, and finished at shutdown."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from db.batching import Batcher
from db.database import Database
from db.isolation import IsolatedWrite, Write
from ledger import OPERATOR, Posted
from models import UserPublic
from refusals import BatchUnderWay, Conflict, DatabaseUnavailable, Interruption, Locked, OutcomeUnknown, Overloaded
from settings import Settings
from webhooks import transactions

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Call = Callable[[Item], Coroutine[Any, Any, Outcome]]

READS_TOGETHER = 4
"""Queries that may share a connection, one after the other: to take one costs as much as a short query."""

SEARCHES: tuple[Any, ...] = (
    crud.list_users,
    crud.list_transfers,
    crud.list_actions,
    transactions.list_deliveries,
    transactions.list_events,
    transactions.list_newest_events,
)
"""Queries that may read many rows."""

PART = 250
"""Items of a batch that share a transaction, unless all do; others need a turn, or the locks, in between."""

LOCK_PATIENCE = 0.2
"""Seconds that a batch waits for a lock: longer than other batches hold it, too short for callers to notice."""


@dataclass(frozen=True, slots=True)
class Bulk(Generic[Item]):
    """The items of one call: all or nothing, or each for itself."""

    items: Sequence[Item]
    all_or_nothing: bool


class Turns:
    """A limit on the batches that are in memory at once; the bodies of the others are not read yet.

    The operator has turns of its own, so that users cannot keep it waiting. A user has one turn at a time.
    """

    def __init__(self, wait: float) -> None:
        self.wait = wait
        self.of_operator = asyncio.Semaphore(2)
        self.of_users = asyncio.Semaphore(4)
        self.users: set[int] = set()

    @asynccontextmanager
    async def take(self, caller: int) -> AsyncIterator[None]:
        """Hold a turn while the context lasts. Raises BatchUnderWay, and Overloaded if there is none in time."""
        if caller in self.users:
            raise BatchUnderWay
        turns = self.of_operator if caller == OPERATOR else self.of_users
        with ExitStack() as on_exit:
            self.users |= {caller} - {OPERATOR}
            on_exit.callback(self.users.discard, caller)
            try:
                async with asyncio.timeout(self.wait):
                    await turns.acquire()
            except TimeoutError:
                raise Overloaded from None
            on_exit.callback(turns.release)
            yield


async def _run_queries(session: AsyncSession, queries: Sequence[Callable[[AsyncSession], Awaitable[Any]]]) -> list[Any]:
    """Run the queries one after the other; return what each returns, or the exception that it raises."""
    outcomes: list[Any] = []
    for query in queries:
        try:
            outcomes.append(await query(session))
        except Conflict:
            # All are run again: the connection broke, perhaps.
            raise
        except Exception as error:
            outcomes.append(error)
    return outcomes


class Operations:
    """Everything that one process does with its database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.turns = Turns(settings.request_timeout)
        self.batchers: list[Batcher[Any, Any]] = []
        currency = settings.default_currency
        self.single: dict[Any, Call[Any, Any]] = {
            crud.register_users: self._coalesce(crud.register_users, currency),
            crud.update_users: self._coalesce(crud.update_users),
            crud.erase_users: self._coalesce(crud.erase_users),
            crud.open_accounts: self._coalesce(crud.open_accounts),
            crud.change_credit: self._coalesce(crud.change_credit),
            crud.issue_tokens: self._coalesce(crud.issue_tokens),
            crud.revoke_tokens: self._coalesce(crud.revoke_tokens),
            crud.revoke_users_tokens: self._coalesce(crud.revoke_users_tokens),
            crud.issue_keys: self._coalesce(crud.issue_keys),
            crud.revoke_keys: self._coalesce(crud.revoke_keys),
            transactions.create_webhooks: self._coalesce(transactions.create_webhooks),
            transactions.change_webhooks: self._coalesce(transactions.change_webhooks),
            transactions.resend_deliveries: self._coalesce(transactions.resend_deliveries),
            crud.make_transfers: self._coalesce_postings(crud.make_transfers),
            crud.reverse_transfers: self._coalesce_postings(crud.reverse_transfers),
            crud.end_holds: self._coalesce_postings(crud.end_holds),
            crud.make_payments: self._coalesce_postings(crud.make_payments),
        }
        self.many: dict[Any, Call[Bulk[Any], Sequence[Any]]] = {
            crud.register_users: self._bulk("register_many", crud.register_users, crud.register_all_users, currency),
            crud.make_transfers: self._bulk("transfer_many", crud.make_transfers, crud.make_all_transfers),
        }
        self.authenticate: Batcher[str, UserPublic] = self._batcher(
            "authenticate", lambda hashes: database.read(crud.authenticate, hashes), too_late=DatabaseUnavailable
        )
        self.authenticate_key: Batcher[str, crud.AdmittedKey] = self._batcher(
            "authenticate_key",
            lambda hashes: database.read(crud.authenticate_keys, hashes),
            too_late=DatabaseUnavailable,
        )
        # Not cancelled at the deadline: SQLite would wait for the query to end, however long that takes.
        self.query = self._query_batcher("query", tasks=4, together=READS_TOGETHER)
        # They may read all users, or 10,000 rows, where every other query reads a few by an index.
        self.search = self._query_batcher("search", tasks=2, together=1)

    def write(self, write: IsolatedWrite[Item, ..., Outcome], item: Item) -> Coroutine[Any, Any, Outcome]:
        """Write one item, in one transaction with the others that wait for the same crud function.

        Raises the item's outcome, if it is an exception, and Overloaded, ShuttingDown, Locked, or OutcomeUnknown after
        the deadline.
        """
        return self.single[write](item)

    def write_many(
        self, write: IsolatedWrite[Item, ..., Outcome], items: Bulk[Item]
    ) -> Coroutine[Any, Any, Sequence[Outcome | Exception]]:
        """Write many items in a transaction of their own; return the outcomes in order. Raises as `write` does."""
        return self.many[write](items)

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query within the deadline. Raises DatabaseUnavailable after it."""

        async def run(session: AsyncSession) -> T:
            return await query(session, *args, **kwargs)

        batcher = self.search if query in SEARCHES else self.query
        answer: T = await batcher(run)
        return answer

    def _batcher(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        tasks: int = 1,
        batch_limit: int | None = None,
        too_late: type[Interruption] = OutcomeUnknown,
    ) -> Batcher[Item, Outcome]:
        # One task writes, also on PostgreSQL: calls that arrive while it commits make the next batch larger and each
        # call in it cheaper, where a second task would halve the batches.
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

    def _query_batcher(
        self, name: str, *, tasks: int, together: int
    ) -> Batcher[Callable[[AsyncSession], Awaitable[Any]], Any]:
        def run(queries: Sequence[Callable[[AsyncSession], Awaitable[Any]]]) -> Awaitable[list[Any]]:
            return self.database.read(_run_queries, queries)

        return self._batcher(name, run, tasks=tasks, batch_limit=together, too_late=DatabaseUnavailable)

    def _coalesce(self, write: IsolatedWrite[Item, ..., Outcome], *args: Any) -> Call[Item, Outcome]:
        """Return what calls `write` for a single item; items that need a locked row wait without the others."""

        async def run(items: Sequence[Item]) -> list[Outcome | Exception]:
            try:
                return await self.database.write(write, items, *args)
            except Locked as locked:
                if len(items) == 1:
                    return [locked]
            middle = len(items) // 2
            return [*await run(items[:middle]), *await run(items[middle:])]

        aside: Batcher[Item, Outcome] = self._batcher(f"{write.__name__}_aside", run, batch_limit=1)
        return self._patient(self._batcher(write.__name__, run), aside)

    def _coalesce_postings(self, write: IsolatedWrite[Item, ..., Posted[Any]]) -> Call[Item, Posted[Any]]:
        """Return what calls `write` for a single item; items that need a locked account wait without the others.

        A batch waits for an account as long as other batches hold one: milliseconds. Where that is not enough, it is
        run again without waiting, as are all batches until half of LOCK_TIMEOUT is over.
        """
        waits_from = 0.0

        async def run(items: Sequence[Item]) -> list[Posted[Any] | Exception]:
            nonlocal waits_from
            if time.monotonic() >= waits_from:
                try:
                    return await self.database.write(write, items)
                except Locked:
                    waits_from = time.monotonic() + self.settings.lock_timeout / 2
            return await self.database.write(write, items, wait=False)

        batcher = self._batcher(write.__name__, run)
        return self._patient(batcher, batcher)

    def _patient(self, first: Batcher[Item, Outcome], again: Batcher[Item, Outcome]) -> Call[Item, Outcome]:
        """Return what retries an item while another transaction has the lock; after LOCK_TIMEOUT, Locked is raised."""

        async def call(item: Item) -> Outcome:
            give_up = time.monotonic() + self.settings.lock_timeout
            try:
                return await first(item)
            except Locked:
                pause = 0.05
            while True:
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, 0.5)
                try:
                    return await again(item)
                except Locked:
                    if time.monotonic() >= give_up:
                        raise

        return call

    def _bulk(
        self, name: str, write: IsolatedWrite[Item, ..., Outcome], write_all: Write[Item, ..., Outcome], *args: Any
    ) -> Call[Bulk[Item], Sequence[Any]]:
        """Return what writes many items in one call, in a transaction of its own."""

        async def run(calls: Sequence[Bulk[Item]]) -> list[Sequence[Outcome | Exception]]:
            [call] = calls
            if call.all_or_nothing:
                return [await self.database.write(write_all, call.items, *args)]
            return [await self.database.write(write, call.items, *args)]

        batcher = self._batcher(name, run, batch_limit=1)
        patient = self._patient(batcher, batcher)

        async def call(bulk: Bulk[Item]) -> Sequence[Outcome | Exception]:
            return await (patient(bulk) if bulk.all_or_nothing else self._write_parts(patient, bulk.items))

        return call

    async def _write_parts(
        self, write: Call[Bulk[Item], Sequence[Outcome | Exception]], items: Sequence[Item]
    ) -> Sequence[Outcome | Exception]:
        """Write the items in parts; where one fails after others, return what is stored, and why the rest is not."""
        outcomes: list[Outcome | Exception] = []
        give_up = time.monotonic() + self.settings.request_timeout
        for first in range(0, len(items), PART):
            part = items[first : first + PART]
            try:
                if time.monotonic() > give_up:
                    raise Overloaded
                outcomes += await write(Bulk(part, all_or_nothing=False))
            except Locked as locked:
                outcomes += [locked] * len(part)
            except Interruption as interruption:
                if not outcomes:
                    raise
                outcomes += [interruption] * len(part)
                # Nothing of the rest was tried.
                rest = DatabaseUnavailable() if isinstance(interruption, OutcomeUnknown) else interruption
                return outcomes + [rest] * (len(items) - len(outcomes))
        if outcomes and all(isinstance(outcome, Locked) for outcome in outcomes):
            raise Locked
        return outcomes

    async def close(self) -> None:
        """Refuse new calls, finish those that were accepted, and close the connections."""
        # After the deadline all callers have been answered, and a transaction that hangs must not delay the shutdown.
        await asyncio.wait(
            [asyncio.create_task(batcher.close()) for batcher in self.batchers], timeout=self.settings.request_timeout
        )
        await self.database.close()
