"""Where a prepared statement is lost, mixed up or out of date, no change is lost or half made."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

import crud
from db import trips
from db.database import Database
from ledger import OPERATOR, Order
from models import KeyedRegistration
from operations import Bulk, Operations
from refusals import Conflict
from settings import Settings
from tests.support.accounts import Headers, cash, order, register_all, send
from tests.support.database import registration
from tests.support.registration import count, named
from tests.support.service import AS_OPERATOR, Rows

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


TRANSACTION_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "SET")


@pytest.fixture
async def operations(url: str) -> AsyncIterator[Operations]:
    """The service's operations, on two connections."""
    settings = Settings(database_url=url, database_pool_size=2)
    operations = Operations(Database(settings), settings)
    yield operations
    await operations.close()


async def in_each_session(operations: Operations, act: Callable[[Any], Awaitable[None]]) -> None:
    """Do something on each of the two connections, with the driver, and leave their order as it was."""
    first, second = [await operations.database.engine.connect() for _ in range(2)]
    for connection in (second, first):
        await act((await connection.get_raw_connection()).driver_connection)
        await connection.close()


async def prepared_statements(operations: Operations) -> list[str]:
    """What the service's sessions have prepared."""
    found: list[str] = []

    async def look(driver: Any) -> None:
        cursor = await driver.execute("SELECT statement FROM pg_prepared_statements")
        found.extend([statement async for (statement,) in cursor])

    await in_each_session(operations, look)
    return found


async def replace(operations: Operations, part: str, replacement: str | None) -> int:
    """Take the statements with this part for another one under the same name, or for none; how many there were."""
    replaced = 0

    async def replace_in_session(driver: Any) -> None:
        nonlocal replaced
        cursor = await driver.execute("SELECT name FROM pg_prepared_statements WHERE strpos(statement, %s) > 0", [part])
        for (name,) in await cursor.fetchall():
            replaced += 1
            await driver.execute(f'DEALLOCATE "{name}"')
            if replacement is not None:
                await driver.execute(f'PREPARE "{name}" AS {replacement}')

    await in_each_session(operations, replace_in_session)
    return replaced


@on_postgresql
async def test_nothing_that_begins_or_ends_a_transaction_is_prepared(operations: Operations) -> None:
    for number in range(8):
        await operations.write(crud.register_users, registration(f"alice{number}"))
        # PostgreSQL takes no NUL, so that this one fails, and savepoints isolate it.
        failing = KeyedRegistration.model_construct(
            username=f"bob{number}\0", email="bob@example.com", phone_number=None, idempotency_key=None
        )
        await operations.write_many(
            crud.register_users, Bulk([registration(f"carol{number}"), failing], all_or_nothing=False)
        )
    await operations.write(crud.register_users, registration("dave"))

    statements = await prepared_statements(operations)

    assert any(statement.startswith("INSERT INTO users") for statement in statements)
    assert [statement for statement in statements if statement.startswith(TRANSACTION_CONTROL)] == []


@on_postgresql
@pytest.mark.parametrize("part", ["INSERT INTO users", "INSERT INTO accounts", "INSERT INTO access_tokens"])
@pytest.mark.parametrize("replacement", [None, "SELECT version_num FROM alembic_version"], ids=["gone", "another"])
async def test_a_statement_that_a_pooler_lost_or_mixed_up_leads_to_no_half_registration(
    operations: Operations, rows: Rows, part: str, replacement: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(8):
        await operations.write(crud.register_users, registration(f"alice{number}"))
    assert await replace(operations, part, replacement) >= 1

    await operations.write(crud.register_users, registration("bob"))

    assert count(rows) == (9, 9, 9)
    assert rows("SELECT count(*) FROM accounts") == [(9,)]
    assert "Set PREPARED_STATEMENTS=false" in caplog.text
    assert await prepared_statements(operations) == []


@on_postgresql
async def test_without_a_transaction_no_money_moves(
    operations: Operations, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alice", "bob"):
        await operations.write(crud.register_users, registration(name))
    run = trips.run

    async def begin_nothing(driver: Any, calls: Sequence[trips.Call]) -> Any:
        return await run(driver, [trips.Call("SELECT 1") if each.text == "BEGIN" else each for each in calls])

    monkeypatch.setattr(trips, "run", begin_nothing)

    with pytest.raises(Conflict):
        await operations.write(crud.make_transfers, Order(OPERATOR, 1, 2, 5))

    assert rows("SELECT count(*), max(balance) FROM accounts") == [(2, 0)]


@on_postgresql
async def test_prepared_statements_can_be_turned_off(url: str, rows: Rows) -> None:
    settings = Settings(database_url=url, database_pool_size=2, prepared_statements=False)
    operations = Operations(Database(settings), settings)

    for number in range(8):
        await operations.write(crud.register_users, registration(f"alice{number}"))

    assert await prepared_statements(operations) == []
    assert count(rows) == (8, 8, 8)
    await operations.close()


CHANGES = {
    "users": "ALTER COLUMN email TYPE varchar(200)",
    "access_tokens": "ALTER COLUMN token_hash TYPE varchar(99)",
    "accounts": "ALTER COLUMN currency TYPE varchar(24)",
    "transfers": "ALTER COLUMN memo TYPE text",
    "entries": "ALTER COLUMN created_at TYPE timestamptz(3)",
}
"""By table: what a newer version's migration may do while this one runs."""


@on_postgresql
@pytest.mark.parametrize("table", CHANGES)
def test_a_column_that_changes_its_type_while_the_service_runs_fails_no_call(
    client: TestClient, rows: Rows, table: str
) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    paths = ("/me", "/accounts", f"/accounts/{alice.account_id}", f"/accounts/{alice.account_id}/entries")

    def call_everything(key: str) -> list[int]:
        headers = alice.headers | {"Idempotency-Key": key}
        body = order(alice.account_id, bob.account_id, 1)
        answers = [client.get(path, headers=alice.headers) for path in paths for _ in range(3)]
        answers += [client.post("/transfers", json=body, headers=headers) for _ in range(3)]
        answers.append(client.post("/register", json=named(f"user-{key}")))
        answers.append(client.get("/users", headers=AS_OPERATOR))
        return [answer.status_code for answer in answers if answer.status_code not in (200, 201)]

    assert call_everything("before") == []
    rows(f"ALTER TABLE {table} {CHANGES[table]}")

    assert call_everything("after") == []


@on_postgresql
def test_after_idle_connections_broke_every_call_simply_works(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    body = order(alice.account_id, bob.account_id, 1)
    sent = send(client, alice, bob, 1)
    calls: list[tuple[str, str, object, Headers]] = [
        ("GET", "/me", None, alice.headers),
        ("GET", "/accounts", None, alice.headers),
        ("GET", f"/accounts/{alice.account_id}", None, alice.headers),
        ("GET", f"/accounts/{alice.account_id}/entries", None, alice.headers),
        ("PATCH", "/me", {"phone_number": None}, alice.headers),
        ("PATCH", f"/users/{alice.user_id}", {"reference": "a"}, AS_OPERATOR),
        ("PATCH", f"/accounts/{alice.account_id}", {"credit_limit": 5}, AS_OPERATOR),
        ("POST", "/register", named("carol"), {}),
        ("POST", "/users/batch", {"users": [named("dave")]}, AS_OPERATOR),
        ("POST", "/tokens", {}, alice.headers),
        ("POST", "/accounts", {"currency": "USD"}, alice.headers),
        ("POST", "/deposits", cash(alice.account_id, 1), AS_OPERATOR),
        ("POST", "/transfers", body, alice.headers),
        ("POST", f"/transfers/{sent['id']}/reversal", None, bob.headers),
        ("POST", "/transactions", {"transfers": [body]}, alice.headers),
        ("POST", "/holds", body, alice.headers),
        ("POST", "/holds/1/capture", None, bob.headers),
    ]
    statuses = {}
    for method, path, json, headers in calls:
        # The connection that breaks is one on which a COMMIT was the last thing.
        client.post("/transfers", json=body, headers=alice.headers)
        rows("""
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'savepoint'
        """)
        statuses[method, path] = client.request(method, path, json=json, headers=headers).status_code

    assert {call: status for call, status in statuses.items() if status not in (200, 201)} == {}


@on_postgresql
async def test_the_options_in_a_url_override_those_of_the_service(url: str) -> None:
    database = Database(Settings(database_url=f"{url}&options=-c%20lock_timeout%3D1234"))

    async with database.engine.connect() as connection:
        shown = [
            (await connection.exec_driver_sql(f"SHOW {name}")).scalar_one()
            for name in ("lock_timeout", "statement_timeout")
        ]
    await database.close()

    assert shown == ["1234ms", "10s"]


@pytest.mark.parametrize("parameter", ["prepare_threshold=0", "sslmod=require", "pool_size=5"])
def test_a_parameter_that_no_url_of_postgresql_has_is_refused_by_name(parameter: str) -> None:
    with pytest.raises(ValidationError, match=f"{parameter.partition('=')[0]} is not a parameter of a PostgreSQL URL"):
        Settings(database_url=f"postgresql://user:hunter2@host/name?{parameter}")
