"""A batch is one transaction, in which an item that fails unexpectedly fails alone."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSessionTransaction
from sqlmodel.ext.asyncio.session import AsyncSession

import metrics
from db import trips
from refusals import Interruption, Refusal

P = ParamSpec("P")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Write = Callable[Concatenate[AsyncSession, Sequence[Item], P], Awaitable[list[Outcome | Refusal]]]
IsolatedWrite = Callable[Concatenate[AsyncSession, Sequence[Item], P], Awaitable[list[Outcome | Exception]]]


@asynccontextmanager
async def begin(session: AsyncSession) -> AsyncIterator[AsyncSessionTransaction]:
    """A transaction, or a savepoint within the one that replays a batch."""
    is_savepoint = session.in_transaction()
    async with session.begin_nested() if is_savepoint else session.begin() as transaction:
        # The session begins at its first statement, but does not see those that the driver executes.
        await session.connection()
        yield transaction
        if transaction.is_active:
            await trips.end(session, commit=not is_savepoint)


def isolating_failures(write: Write[Item, P, Outcome]) -> IsolatedWrite[Item, P, Outcome]:
    """Let an item that fails unexpectedly fail alone: the exception is its outcome.

    When `write` raises, its transaction is rolled back and the items are replayed in halves, each half behind its own
    savepoint and halved again if it fails: n items with one that fails cost 2 log2(n) writes.
    """

    @wraps(write)
    async def isolated(
        session: AsyncSession, items: Sequence[Item], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Outcome | Exception]:
        try:
            return [*await write(session, items, *args, **kwargs)]
        except Interruption:
            raise
        except Exception as error:
            if len(items) == 1:
                return [error]
        metrics.BATCHES_HALVED.inc()
        middle = len(items) // 2
        async with begin(session):
            halves = (items[:middle], items[middle:])
            return [outcome for half in halves for outcome in await isolated(session, half, *args, **kwargs)]

    return isolated


def all_or_nothing(write: Write[Item, P, Outcome]) -> Write[Item, P, Outcome]:
    """Roll the whole batch back if one item is refused; the outcomes show which."""

    @wraps(write)
    async def whole(
        session: AsyncSession, items: Sequence[Item], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Outcome | Refusal]:
        async with begin(session) as transaction:
            outcomes = await write(session, items, *args, **kwargs)
            if any(isinstance(outcome, Refusal) for outcome in outcomes):
                await transaction.rollback()
        return outcomes

    return whole
