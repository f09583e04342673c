"""Who waits for whom: a locked account holds up only those who need it, and who cannot send locks nothing of others."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import crud
from db.database import Database
from ledger import OPERATOR, Order, Posted
from models import KeyedRegistration
from operations import Bulk, Operations
from refusals import AccountNotFound, InsufficientFunds, Locked, Refusal
from settings import Settings
from tests.support.registration import named
from tests.support.service import Rows

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


LONG = 60
"""Seconds that no wait here lasts unless it waits for a lock that is not given back."""


@pytest.fixture
def engine() -> str:
    """SQLite locks no rows."""
    return "postgresql"


@pytest.fixture
def settings(url: str) -> Settings:
    return Settings(database_url=url, lock_timeout=1)


@pytest.fixture
async def holders(operations: Operations) -> list[tuple[int, int]]:
    """The ids of eight users and of their accounts, in this order; the first four hold 1,000, the others nothing."""
    registrations = [KeyedRegistration.model_validate(named(f"user{index}")) for index in range(8)]
    await operations.write_many(crud.register_users, Bulk(registrations, all_or_nothing=True))
    accounts = await operations.read(crud.list_accounts, user_id=None, after=0, limit=8)
    ids = [(account["user_id"], account["id"]) for account in json.loads(accounts.items)]
    for _, account_id in ids[:4]:
        await operations.write(crud.make_payments, crud.Payment(account_id, 1000, None, None, False))
    return ids


@contextmanager
def holding(url: str, *account_ids: int) -> Iterator[psycopg.Connection]:
    """Lock these accounts, as somebody at psql might, until the end."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT id FROM accounts WHERE id = ANY (%s) ORDER BY id FOR UPDATE", [[*account_ids]])
        yield connection
        connection.rollback()


def pay(holders: list[tuple[int, int]], sender: int, receiver: int, amount: int = 1, **fields: Any) -> Order:
    """A transfer between two of the holders, by the sender."""
    return Order(holders[sender][0], holders[sender][1], holders[receiver][1], amount, **fields)


async def lockable(url: str, account_ids: list[int]) -> set[int]:
    """Those of these accounts that nobody holds."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await connection.execute(
            "SELECT id FROM accounts WHERE id = ANY (%s) FOR UPDATE SKIP LOCKED", [account_ids]
        )
        return {id for (id,) in await found.fetchall()}


async def test_a_locked_account_holds_up_only_the_transfers_that_need_it(
    operations: Operations, holders: list[tuple[int, int]], url: str
) -> None:
    with holding(url, holders[0][1]):
        stuck = [
            asyncio.ensure_future(operations.write(crud.make_transfers, order))
            for order in (pay(holders, 0, 1), pay(holders, 1, 0), Order(OPERATOR, holders[2][1], holders[0][1], 1))
        ]
        for _ in range(5):
            free = [operations.write(crud.make_transfers, pay(holders, sender, 7)) for sender in (1, 2, 3)]
            assert all(isinstance(each, Posted) for each in await asyncio.wait_for(asyncio.gather(*free), LONG))
        outcomes = await asyncio.wait_for(asyncio.gather(*stuck, return_exceptions=True), LONG)
    assert [type(each) for each in outcomes] == [Locked] * 3


async def test_what_waited_for_a_locked_account_is_done_once_it_is_free(
    operations: Operations, settings: Settings, holders: list[tuple[int, int]], url: str, rows: Rows
) -> None:
    settings.lock_timeout = LONG
    with holding(url, holders[0][1]):
        waiting = [
            asyncio.ensure_future(operations.write(crud.make_transfers, pay(holders, sender, 0)))
            for sender in (1, 2, 3)
        ]
        await operations.write(crud.make_transfers, pay(holders, 1, 7))
        await asyncio.sleep(0.5)
        assert not any(each.done() for each in waiting)
        # Meanwhile they hold none of the accounts that are free, but for an instant with each attempt.
        free = {id for _, id in holders[1:]}
        for _ in range(20):
            if (found := await lockable(url, [account_id for _, account_id in holders])) == free:
                break
        assert found == free

    assert all(isinstance(each, Posted) for each in await asyncio.wait_for(asyncio.gather(*waiting), LONG))
    assert rows(f"SELECT balance FROM accounts WHERE id = {holders[0][1]}") == [(1003,)]


async def test_reversals_and_payments_go_round_a_locked_account_too(
    operations: Operations, holders: list[tuple[int, int]], url: str
) -> None:
    locked, free = [await operations.write(crud.make_transfers, pay(holders, sender, 4)) for sender in (0, 1)]
    reversals = [crud.Reversal(each.posting.id, holders[4][0]) for each in (locked, free)]
    payments = [crud.Payment(account_id, 5, None, None, True) for _, account_id in (holders[0], holders[2])]

    with holding(url, holders[0][1]):
        outcomes = await asyncio.wait_for(
            asyncio.gather(
                *(operations.write(crud.reverse_transfers, each) for each in reversals),
                *(operations.write(crud.make_payments, each) for each in payments),
                return_exceptions=True,
            ),
            LONG,
        )

    assert [type(each) for each in outcomes] == [Locked, Posted, Locked, Posted]


@pytest.mark.parametrize("all_or_nothing", [True, False])
async def test_a_bulk_call_that_needs_a_locked_account_holds_up_no_other(
    operations: Operations, holders: list[tuple[int, int]], url: str, rows: Rows, all_or_nothing: bool
) -> None:
    before = rows("SELECT count(*) FROM transfers")
    with holding(url, holders[0][1]):
        stuck = asyncio.ensure_future(
            operations.write_many(crud.make_transfers, Bulk([pay(holders, 1, 7), pay(holders, 1, 0)], all_or_nothing))
        )
        [done] = await asyncio.wait_for(
            operations.write_many(crud.make_transfers, Bulk([pay(holders, 2, 6)], all_or_nothing)), LONG
        )
        assert isinstance(done, Posted)
        with pytest.raises(Locked):
            await asyncio.wait_for(stuck, LONG)
    assert rows("SELECT count(*) FROM transfers") == [(before[0][0] + 1,)]


async def test_a_hot_account_is_waited_for_as_long_as_others_need_it(
    operations: Operations, settings: Settings, holders: list[tuple[int, int]], rows: Rows
) -> None:
    settings.lock_timeout = LONG
    other = Operations(Database(settings), settings)
    try:
        orders = [pay(holders, index % 4, 7) for index in range(400)]
        outcomes = await asyncio.gather(
            *(
                each.write(crud.make_transfers, order)
                for each, order in zip([operations, other] * 200, orders, strict=True)
            )
        )
    finally:
        await other.close()

    assert len(outcomes) == 400
    assert rows(f"SELECT balance, version FROM accounts WHERE id = {holders[7][1]}") == [(400, 400)]


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        # Of whom, from whose account to whose, and how much.
        ((4, 4, 0, 1), InsufficientFunds),
        ((0, 0, 1, 1001), InsufficientFunds),
        ((4, 0, 1, 1), AccountNotFound),
        ((4, 0, 4, 1), AccountNotFound),
        ((0, 1, 2, 1), AccountNotFound),
    ],
)
async def test_who_cannot_send_waits_for_nobody_and_locks_no_account_of_others(
    operations: Operations,
    holders: list[tuple[int, int]],
    url: str,
    wanted: tuple[int, int, int, int],
    refusal: type[Refusal],
) -> None:
    sender, debit, credit, amount = wanted
    order = Order(holders[sender][0], holders[debit][1], holders[credit][1], amount)
    others = [account_id for user_id, account_id in holders if user_id != order.initiator]

    with holding(url, *others):
        with pytest.raises(refusal):
            await asyncio.wait_for(operations.write(crud.make_transfers, order), LONG)
        [outcome] = await asyncio.wait_for(
            operations.write_many(crud.make_transfers, Bulk([order], all_or_nothing=True)), LONG
        )
    assert isinstance(outcome, refusal)


async def test_money_that_comes_in_the_same_batch_can_be_spent_in_it(
    database: Database, holders: list[tuple[int, int]], rows: Rows
) -> None:
    chain = [pay(holders, 0, 4, 1000), pay(holders, 4, 5, 1000), pay(holders, 5, 6, 999), pay(holders, 5, 7, 2)]

    outcomes = await database.write(crud.make_transfers, chain)

    assert [type(each) for each in outcomes] == [Posted, Posted, Posted, InsufficientFunds]
    balances = {id: rows(f"SELECT balance FROM accounts WHERE id = {account}")[0][0] for id, account in holders}
    assert [balances[holders[index][0]] for index in (0, 4, 5, 6, 7)] == [0, 0, 1, 999, 0]


async def test_money_that_came_while_its_account_was_waited_for_can_be_spent(
    operations: Operations, holders: list[tuple[int, int]], url: str
) -> None:
    empty = holders[4][1]
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE accounts SET balance = balance + 7 WHERE id = %s", [empty])
        connection.execute("UPDATE accounts SET balance = balance - 7 WHERE id = %s", [holders[0][1]])
        spending = asyncio.ensure_future(operations.write(crud.make_transfers, pay(holders, 4, 5, 7)))
        for _ in range(1000):
            waiting = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            if waiting == (1,):
                break
            await asyncio.sleep(0.001)
        connection.commit()

    assert isinstance(await asyncio.wait_for(spending, LONG), Posted)
