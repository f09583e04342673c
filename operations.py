"""The operations as the routes call them: coalesced, bounded, with a deadline, and finished at shutdown."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from batching import Batcher
from database import Database
from models import KeyedRegistration, UserPublic
from refusals import DatabaseUnavailable, OutcomeUnknown
from settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BULK_QUEUE_LIMIT = 8
"""How many bulk calls may wait: each can hold 16 MiB."""


@dataclass(frozen=True, slots=True)
class BulkRegistration:
    """Many registrations in one call: all or nothing, or each for itself."""

    registrations: Sequence[KeyedRegistration]
    all_or_nothing: bool


class Operations:
    """Everything that one process can be asked to do with its database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        # One writer at a time is all that SQLite has; on PostgreSQL one batch fills while another commits.
        self.tasks = 1 if database.is_sqlite else 2
        self.register_user = self.coalesce_writes("register_user", crud.register_users)
        self.update_user = self.coalesce_writes("update_user", crud.update_users)
        self.issue_token = self.coalesce_writes("issue_token", crud.issue_tokens)
        self.revoke_token = self.coalesce_writes("revoke_token", crud.revoke_tokens)
        self.authenticate: Batcher[str, UserPublic] = Batcher(
            "authenticate",
            lambda hashes: database.read(crud.authenticate, hashes),
            tasks=self.tasks,
            batch_limit=settings.batch_limit,
            queue_limit=settings.queue_limit,
            deadline=settings.request_timeout,
            too_late=DatabaseUnavailable,
        )
        self.register_many = Batcher(
            "register_many",
            self.run_bulk,
            tasks=1,
            batch_limit=1,
            queue_limit=BULK_QUEUE_LIMIT,
            deadline=settings.request_timeout,
            too_late=OutcomeUnknown,
        )

    def coalesce_writes(self, name: str, write: crud.IsolatedWrite[Item, Outcome]) -> Batcher[Item, Outcome]:
        """Calls of a crud function that writes, coalesced."""
        return Batcher(
            name,
            lambda items: self.database.write(write, items),
            tasks=self.tasks,
            batch_limit=self.settings.batch_limit,
            queue_limit=self.settings.queue_limit,
            deadline=self.settings.request_timeout,
            too_late=OutcomeUnknown,
        )

    async def run_bulk(self, calls: Sequence[BulkRegistration]) -> list[Sequence[crud.Registered | Exception]]:
        """Each bulk call in a transaction of its own."""
        return [
            await self.database.write(
                crud.register_all_users if call.all_or_nothing else crud.register_users, call.registrations
            )
            for call in calls
        ]

    async def read(
        self, query: Callable[Concatenate[AsyncSession, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query within the deadline. Raises DatabaseUnavailable after it."""
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await self.database.read(query, *args, **kwargs)
        except TimeoutError:
            raise DatabaseUnavailable from None

    async def close(self) -> None:
        """Refuse what comes from now on, finish what was accepted, and close the connections."""
        batchers = (value for value in vars(self).values() if isinstance(value, Batcher))
        await asyncio.gather(*(batcher.close() for batcher in batchers))
        await self.database.close()
