"""A transaction reaches the database twice, and what fails on the way leaves nothing half-written."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from db import trips
from db.database import Database
from db.isolation import begin
from db.statements import insert_free, insert_rows
from ledger import Actor, Order, Posted
from models import Profile, User, now
from operations import Operations
from refusals import IdempotencyKeyReused, OutcomeUnknown
from settings import Settings
from tests.support.database import backend_that_waits, locked_elsewhere, on_postgresql, registration
from tests.support.registration import count
from tests.support.service import Rows

Trip = list[str]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Trip]:
    """The trips that the service makes: the first words of each of their statements."""
    made: list[Trip] = []
    run = trips.run

    async def note(driver: Any, calls: Sequence[trips.Call]) -> Any:
        made.append([each.text.removeprefix("WITH written AS \n(").split()[0] for each in calls])
        return await run(driver, calls)

    monkeypatch.setattr(trips, "run", note)
    return made


async def fund(operations: Operations) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Register alice and bob, and give alice 100; what makes a transfer from her to him."""
    for name in ("alice", "bob"):
        await operations.write(crud.register_users, registration(name))
    await operations.write(crud.make_payments, crud.Payment(1, 100, None, None, is_payout=False))
    return lambda **more: operations.write(crud.make_transfers, Order(1, 1, 2, 10, **more))


def balances(rows: Rows) -> list[Any]:
    return rows("SELECT balance FROM accounts WHERE user_id IS NOT NULL ORDER BY id")


async def test_a_transfer_and_a_registration_make_two_trips(
    operations: Operations, made: list[Trip], engine: str
) -> None:
    transfer = await fund(operations)
    made.clear()

    await transfer()
    await operations.write(crud.register_users, registration("carol"))

    writes = ["INSERT", "INSERT", "UPDATE"], ["INSERT", "INSERT", "INSERT"]
    if engine == "postgresql":
        assert made == [
            ["BEGIN", "SELECT", "SELECT", "SELECT"],
            [*writes[0], "COMMIT"],
            ["BEGIN", "INSERT"],
            [*writes[1], "COMMIT"],
        ]
    else:  # Each takes the lock first, and leaves COMMIT to the driver.
        assert made == [["BEGIN"], ["SELECT"] * 3, writes[0], ["BEGIN"], ["INSERT"], writes[1]]


async def test_what_the_operator_does_is_recorded_on_the_same_trip(
    operations: Operations, made: list[Trip], engine: str
) -> None:
    transfer = await fund(operations)
    made.clear()

    await transfer(actor=Actor(None, "a-request"))

    assert made[-1] == ["INSERT", "INSERT", "INSERT", "UPDATE", *(["COMMIT"] if engine == "postgresql" else [])]


@on_postgresql
@pytest.mark.parametrize("trip", [0, 1], ids=["first trip", "second trip"])
@pytest.mark.parametrize("is_reported", [False, True], ids=["it breaks before", "the server reports that it ends"])
async def test_a_connection_that_is_lost_before_it_commits_costs_another_attempt(
    operations: Operations, rows: Rows, monkeypatch: pytest.MonkeyPatch, trip: int, is_reported: bool
) -> None:
    transfer = await fund(operations)
    run, made = trips.run, 0

    async def lose(driver: Any, calls: Sequence[trips.Call]) -> Any:
        nonlocal made
        made += 1
        if made == trip + 1:
            if is_reported:  # As psycopg raises it before it has read the end of the connection.
                raise trips.TripFailed(calls[0], psycopg.errors.AdminShutdown("terminating connection"))
            rows(f"SELECT pg_terminate_backend({driver.info.backend_pid}, 5000)")
        return await run(driver, calls)

    monkeypatch.setattr(trips, "run", lose)
    await transfer()

    assert made > 2
    assert balances(rows) == [(90,), (10,)]


@on_postgresql
async def test_a_connection_that_breaks_while_it_writes_leaves_the_outcome_unknown_and_all_or_nothing(
    operations: Operations, url: str, rows: Rows
) -> None:
    transfer = await fund(operations)
    with locked_elsewhere(url, "entries") as let_go:
        transferring = asyncio.create_task(transfer(idempotency_key="rent"))
        rows(f"SELECT pg_terminate_backend({await backend_that_waits(rows, 'relation')})")
        let_go()
        with pytest.raises(OutcomeUnknown):
            await transferring

    assert balances(rows) == [(100,), (0,)]
    assert (await transfer(idempotency_key="rent")).replayed is False
    assert (await transfer(idempotency_key="rent")).replayed is True
    assert balances(rows) == [(90,), (10,)]


@on_postgresql
async def test_a_write_that_is_cancelled_while_it_waits_leaves_nothing(
    database: Database, url: str, rows: Rows
) -> None:
    with locked_elsewhere(url, "profiles"):
        registering = asyncio.create_task(database.write(crud.register_users, [registration("alice")], "EUR"))
        await backend_that_waits(rows, "relation")
        registering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(registering, 10)

    assert count(rows) == (0, 0, 0)
    await database.write(crud.register_users, [registration("bob")], "EUR")
    assert count(rows) == (1, 1, 1)


@on_postgresql
async def test_a_key_that_another_process_uses_meanwhile_is_found_by_another_attempt(
    operations: Operations, settings: Settings, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = await fund(operations)
    for user_id in (1, 2):
        await operations.write(crud.open_accounts, crud.AccountOpening(user_id, "USD"))
    dollars = [id for (id,) in rows("SELECT id FROM accounts WHERE currency = 'USD' ORDER BY id")]
    await operations.write(crud.make_payments, crud.Payment(dollars[0], 100, None, None, is_payout=False))
    other_process = Database(settings)
    run, has_happened = trips.run, False

    async def be_late(driver: Any, calls: Sequence[trips.Call]) -> Any:
        nonlocal has_happened
        if calls[-1].text == trips.COMMIT and not has_happened:
            has_happened = True
            order = Order(1, dollars[0], dollars[1], 5, idempotency_key="rent")
            [posted] = await other_process.write(crud.make_transfers, [order])
            assert isinstance(posted, Posted)
        return await run(driver, calls)

    monkeypatch.setattr(trips, "run", be_late)
    with pytest.raises(IdempotencyKeyReused):
        await transfer(idempotency_key="rent")

    assert rows("SELECT amount FROM transfers WHERE idempotency_key = 'rent'") == [(5,)]
    await other_process.close()


async def write_half(session: AsyncSession, open_transaction: Any) -> None:
    """Insert two users, whose second profile is refused."""
    users = [{"username": name, "email": "a@example.com"} for name in ("carol", "dave")]
    async with open_transaction(session):
        await session.connection()
        inserted = await insert_free(session, User, users, returning=("id",), created_at=now())
        insert_rows(session, Profile, [{"user_id": inserted[0][0]}], status="active")
        insert_rows(session, Profile, [{"user_id": inserted[1][0]}], status="nonsense")


@pytest.mark.parametrize("open_transaction", [begin, AsyncSession.begin], ids=["ours", "SQLAlchemy's"])
async def test_what_waits_and_fails_takes_all_back(database: Database, rows: Rows, open_transaction: Any) -> None:
    with pytest.raises(Exception, match="ck_profiles_status"):
        await database.write(write_half, open_transaction)
    assert count(rows) == (0, 0, 0)

    # Nothing of it is left on the connection.
    await database.write(crud.register_users, [registration("erin")], "EUR")
    assert count(rows) == (1, 1, 1)


async def test_what_waits_is_written_by_a_plain_transaction_too(database: Database, rows: Rows) -> None:
    async def write(session: AsyncSession) -> None:
        async with session.begin():
            await session.connection()
            users = [{"username": "carol", "email": "a@example.com"}]
            [(id,)] = await insert_free(session, User, users, returning=("id",), created_at=now())
            insert_rows(session, Profile, [{"user_id": id}], status="active")

    await database.write(write)

    assert rows("SELECT status FROM profiles") == [("active",)]


async def test_what_waits_is_dropped_with_its_savepoint(database: Database, rows: Rows) -> None:
    async def write(session: AsyncSession) -> None:
        async with begin(session):
            users = [{"username": "carol", "email": "a@example.com"}]
            [(id,)] = await insert_free(session, User, users, returning=("id",), created_at=now())
            with suppress(ZeroDivisionError):
                async with begin(session):
                    insert_rows(session, Profile, [{"user_id": id}], status="refused if it were sent")
                    raise ZeroDivisionError
            insert_rows(session, Profile, [{"user_id": id}], status="active")

    await database.write(write)

    assert rows("SELECT status FROM profiles") == [("active",)]
