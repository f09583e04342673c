"""Queries that wait share a connection; each has an outcome of its own."""

import asyncio

import sqlalchemy as sa
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from ledger import OPERATOR
from operations import READS_TOGETHER, Operations
from refusals import AccountNotFound, Conflict, SchemaBehind

CONNECTIONS: list[object] = []


async def double(session: AsyncSession, number: int) -> int:
    CONNECTIONS.append(session.bind)
    found = await (await session.connection()).execute(sa.text(f"SELECT 2 * {number}"))
    return int(found.scalar_one())


async def fail(session: AsyncSession) -> None:
    await (await session.connection()).execute(sa.text("SELECT * FROM no_such_table"))


async def test_a_query_that_fails_harms_none_of_those_beside_it(operations: Operations) -> None:
    CONNECTIONS.clear()
    calls = [
        asyncio.ensure_future(operations.read(double, number) if number % 5 else operations.read(fail))
        for number in range(40)
    ]
    refused = operations.read(crud.get_account, 4711, OPERATOR)

    *outcomes, last = await asyncio.gather(*calls, refused, return_exceptions=True)

    assert isinstance(last, AccountNotFound)
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, SchemaBehind) if number % 5 == 0 else outcome == 2 * number
    assert len(set(map(id, CONNECTIONS))) <= 40 / READS_TOGETHER + 4


async def test_all_are_run_again_after_a_conflict(operations: Operations) -> None:
    tries = 0

    async def conflict_once(session: AsyncSession) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Conflict
        return "read"

    calls = (operations.read(double, 1), operations.read(conflict_once), operations.read(double, 2))

    assert [*await asyncio.gather(*calls)] == [2, "read", 4]
    assert tries == 2
