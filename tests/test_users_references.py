"""References and metadata of users, which are the operator's: who sees them, what is unique, what is found by index."""

import asyncio
import re
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

import crud
from db.database import Database
from models import KeyedRegistration, UserPublic, UserRecord
from operations import Operations
from refusals import ReferenceTaken, UserNotFound
from settings import Settings
from tests.support.accounts import fields_of, refusal_of
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows, noting_statements, wait_until

STORED = "SELECT reference FROM users ORDER BY id"


@pytest.fixture
async def users(database: Database, rows: Rows) -> None:
    """Users 1 to 4."""
    registrations = [KeyedRegistration.model_validate(named(f"user{number}")) for number in range(1, 5)]
    for registration in registrations:
        await database.write(crud.register_users, [registration], "EUR")
    assert rows("SELECT id FROM users ORDER BY id") == [(1,), (2,), (3,), (4,)]


def change(user_id: int, reference: str | None, **fields: Any) -> crud.UserChange:
    return crud.UserChange(user_id, {"reference": reference, **fields}, by_operator=True)


def shown(outcomes: list[Any]) -> list[Any]:
    """The reference of each user that was changed, and the kinds of the refusals."""
    return [each.reference if isinstance(each, UserRecord) else type(each) for each in outcomes]


def register(client: TestClient, username: str = "alice") -> tuple[dict[str, Any], dict[str, str]]:
    answer = client.post("/register", json=named(username)).json()
    return answer["user"], {"Authorization": f"Bearer {answer['access_token']}"}


def patch(client: TestClient, user_id: int, **fields: Any) -> Any:
    return client.patch(f"/users/{user_id}", json=fields, headers=AS_OPERATOR)


def test_the_operator_changes_what_it_sends_and_null_removes_it(client: TestClient, rows: Rows) -> None:
    user, _ = register(client)
    metadata = {"plan": "pro", "note": 'a "quoted" text, 日本'}

    changed = patch(client, user["id"], reference="c-17", metadata=metadata, email="New@Example.COM")
    record = user | {"reference": "c-17", "metadata": metadata, "email": "New@example.com"}
    assert (changed.status_code, changed.json()) == (200, record)

    changes: list[dict[str, Any]] = [
        {},
        {"phone_number": "+4915112345678"},
        {"status": "suspended"},
        {"phone_number": None},
    ]
    for fields in changes:
        record |= fields
        assert patch(client, user["id"], **fields).json() == record
        assert client.get(f"/users/{user['id']}", headers=AS_OPERATOR).json() == record
        assert client.get("/users", headers=AS_OPERATOR).json()["items"] == [record]
    removed = patch(client, user["id"], reference=None, metadata=None)
    assert removed.json() == record | {"reference": None, "metadata": None}
    assert client.get("/users", headers=AS_OPERATOR).json()["items"] == [removed.json()]
    assert rows("SELECT count(*) FROM users WHERE reference IS NULL AND metadata IS NULL") == [(1,)]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("reference", ["", "x" * 101, "two\nlines", 17]),
        ("metadata", [{"a b": "x"}, {"a": 1}, [], "x", {str(number): "" for number in range(21)}, {"a": "x" * 4096}]),
        ("email", [None, "x"]),
        ("status", [None, "dead"]),
        ("username", ["bob"]),
    ],
)
def test_a_change_that_is_wrong_is_named(client: TestClient, rows: Rows, field: str, values: list[Any]) -> None:
    user, _ = register(client)
    before = rows("SELECT * FROM users")

    for value in values:
        assert {name[: len(f"body.{field}")] for name in fields_of(patch(client, user["id"], **{field: value}))} == {
            f"body.{field}"
        }
    assert rows("SELECT * FROM users") == before


def test_a_user_never_sees_them_and_cannot_change_them(client: TestClient) -> None:
    key = {"Idempotency-Key": "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"}
    registered = client.post("/register", json=named("alice"), headers=key).json()
    as_alice = {"Authorization": f"Bearer {registered['access_token']}"}
    patch(client, registered["user"]["id"], reference="secret-17", metadata={"risk": "secret"})

    answers = [
        client.get("/me", headers=as_alice),
        client.patch("/me", json={"phone_number": None}, headers=as_alice),
        client.patch("/me", json={}, headers=as_alice),
        client.post("/register", json=named("alice"), headers=key),
        client.get("/tokens", headers=as_alice),
        client.get("/accounts", headers=as_alice),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 201, 200, 200]
    for answer in answers:
        assert not re.search("secret|reference|metadata", answer.text), answer.text
    for field in ("reference", "metadata"):
        assert client.patch("/me", json={field: None}, headers=as_alice).status_code == 422


def test_a_reference_that_another_user_has_is_refused(client: TestClient, rows: Rows) -> None:
    (alice, _), (bob, _) = register(client, "alice"), register(client, "bob")
    patch(client, alice["id"], reference="c-17")

    refused = patch(client, bob["id"], reference="c-17", status="suspended", email="new@example.com")

    assert refusal_of(refused) == (409, "reference-taken")
    assert client.get(f"/users/{bob['id']}", headers=AS_OPERATOR).json() == bob | {"reference": None, "metadata": None}
    assert patch(client, alice["id"], reference="c-17").status_code == 200
    # Case counts, as in any id of somebody else's.
    assert patch(client, bob["id"], reference="C-17").status_code == 200
    assert rows(STORED) == [("c-17",), ("C-17",)]


class Turn(NamedTuple):
    """The references of users 1 to 3 before a batch, its changes, their outcomes, and the references after it."""

    before: list[str | None]
    changes: list[tuple[int, str | None]]
    outcomes: list[Any]
    after: list[str | None]


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(
    "turn",
    [
        Turn(
            ["a", None, None],
            [(2, "a"), (3, "b"), (9, "c"), (1, "c")],
            [ReferenceTaken, "b", UserNotFound, "c"],
            ["c", None, "b"],
        ),
        # Freed, then taken: by a user with a smaller id too, which is written first.
        Turn(["a", None, None], [(1, None), (2, "a")], [None, "a"], [None, "a", None]),
        Turn([None, None, "a"], [(3, None), (1, "a")], [None, "a"], ["a", None, None]),
        Turn([None, None, "a"], [(3, "b"), (1, "a")], ["b", "a"], ["a", None, "b"]),
        # Taken before it is freed.
        Turn(["a", None, None], [(2, "a"), (1, None)], [ReferenceTaken, None], [None, None, None]),
        # Two that swap, and three that rotate.
        Turn(["a", "b", None], [(1, None), (2, "a"), (1, "b")], [None, "a", "b"], ["b", "a", None]),
        Turn(["a", "b", "c"], [(1, "x"), (2, "a"), (3, "b"), (1, "c")], ["x", "a", "b", "c"], ["c", "a", "b"]),
        Turn(["a", "b", None], [(1, "b"), (2, "a")], [ReferenceTaken, ReferenceTaken], ["a", "b", None]),
        # There and back.
        Turn(
            ["a", None, None],
            [(1, "b"), (2, "b"), (1, "a"), (2, "b")],
            ["b", ReferenceTaken, "a", "b"],
            ["a", "b", None],
        ),
        # Two want the same.
        Turn([None, None, None], [(3, "a"), (1, "a")], ["a", ReferenceTaken], [None, None, "a"]),
    ],
)
async def test_changes_of_one_batch_apply_in_order(database: Database, rows: Rows, turn: Turn) -> None:
    await database.write(crud.update_users, [change(id, each) for id, each in enumerate(turn.before, 1)])

    outcomes = await database.write(crud.update_users, [change(*each) for each in turn.changes])

    assert shown(outcomes) == turn.outcomes
    assert rows(STORED)[:3] == [(reference,) for reference in turn.after]


@pytest.mark.usefixtures("users")
async def test_a_reference_passes_on_when_its_user_is_closed_in_the_same_batch(database: Database, rows: Rows) -> None:
    await database.write(crud.update_users, [change(4, "a")])

    found = await database.write(crud.update_users, [change(4, None, status="closed"), change(1, "a", status="closed")])

    assert shown(found) == [None, "a"]
    assert rows("SELECT count(*) FROM access_tokens WHERE revoked_at IS NULL") == [(2,)]
    assert rows(STORED) == [("a",), (None,), (None,), (None,)]


@pytest.mark.usefixtures("users")
async def test_of_many_who_want_one_reference_at_once_one_gets_it(settings: Settings, rows: Rows) -> None:
    processes = [Operations(Database(settings), settings) for _ in range(2)]

    for turn in range(10):
        outcomes = await asyncio.gather(
            *(processes[id % 2].write(crud.update_users, change(id, f"turn {turn}")) for id in range(1, 5)),
            return_exceptions=True,
        )

        assert sorted(each.__name__ for each in map(type, outcomes)) == ["ReferenceTaken"] * 3 + ["UserRecord"]
        assert rows(f"SELECT count(*) FROM users WHERE reference = 'turn {turn}'") == [(1,)]
    for process in processes:
        await process.close()


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("others", [[], [2, 4]])
async def test_a_reference_that_another_process_takes_meanwhile_is_found_by_another_attempt(
    database: Database, settings: Settings, rows: Rows, others: list[int]
) -> None:
    other = Database(settings)
    async with database.engine.begin() as connection:
        # Not committed yet: who looks for the reference finds nobody.
        await connection.exec_driver_sql("UPDATE users SET reference = 'a' WHERE id = 1")
        late = asyncio.create_task(
            other.write(crud.update_users, [change(3, "a"), *(change(id, f"{id}") for id in others)])
        )
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await asyncio.to_thread(wait_until, lambda: rows(waiting) == [(1,)], "the other to wait")

    assert shown(await late) == [ReferenceTaken, *map(str, others)]
    assert rows(STORED) == [("a",), *((str(id) if id in others else None,) for id in (2, 3, 4))]
    await other.close()


@pytest.mark.usefixtures("users")
async def test_two_processes_that_swap_references_leave_no_error_behind(settings: Settings, rows: Rows) -> None:
    first, second = Database(settings), Database(settings)
    await first.write(crud.update_users, [change(1, "a"), change(2, "b")])

    for _ in range(10):
        outcomes = await asyncio.gather(
            first.write(crud.update_users, [change(1, None), change(2, "a"), change(1, "b")]),
            second.write(crud.update_users, [change(2, None), change(1, "b"), change(2, "a")]),
        )

        assert {type(each) for batch in outcomes for each in batch} <= {UserRecord, ReferenceTaken}
        stored = [each for (each,) in rows(STORED) if each is not None]
        assert sorted(stored) == sorted({*stored})
    await first.close()
    await second.close()


def test_users_are_found_by_address_and_reference(client: TestClient) -> None:
    ids = {name: register(client, name)[0]["id"] for name in ("anna", "anne", "bert")}
    for name, id in ids.items():
        patch(client, id, reference=f"ref {name}", email="Shared@Example.com" if name != "bert" else "bert@example.com")
    patch(client, ids["anne"], status="suspended")

    def found(**query: str) -> list[str]:
        page = client.get("/users", params=query, headers=AS_OPERATOR)
        assert page.status_code == 200, page.text
        return [user["username"] for user in page.json()["items"]]

    assert found(reference="ref anne") == ["anne"]
    assert found(reference="ref") == found(reference="REF ANNE") == []
    assert found(email="Shared@EXAMPLE.com") == ["anna", "anne"]
    assert found(email="shared@example.com") == []
    assert found(email="Shared@example.com", status="suspended") == ["anne"]
    assert found(email="Shared@example.com", username_prefix="ann", reference="ref anna", status="active") == ["anna"]
    assert found(email="bert@example.com", reference="ref anna") == []
    first = client.get("/users", params={"email": "Shared@example.com", "limit": 1}, headers=AS_OPERATOR).json()
    assert found(email="Shared@example.com", after=first["next"]) == ["anne"]
    for query in ("email=x", "email=", "reference=", f"reference={'x' * 101}", "reference=a%00"):
        assert fields_of(client.get(f"/users?{query}", headers=AS_OPERATOR)) == [f"query.{query.partition('=')[0]}"]


def fill(rows: Rows, engine: str) -> None:
    """Twenty thousand users, each with an address of its own; half of them have a reference."""
    numbers = {
        "sqlite": "WITH RECURSIVE n(n) AS (VALUES (100) UNION ALL SELECT n + 1 FROM n LIMIT 20000) SELECT {} FROM n",
        "postgresql": "SELECT {} FROM generate_series(100, 20099) AS n",
    }[engine]
    columns = "n, 'u' || n, 'u' || n || '@example.com', '2026-01-01 00:00:00', CASE WHEN n % 2 = 0 THEN 'r' || n END"
    if engine == "postgresql":
        columns = columns.replace("00:00:00'", "00:00:00Z'::timestamptz")
    rows("INSERT INTO users (id, username, email, created_at, reference) " + numbers.format(columns))
    rows("INSERT INTO profiles (user_id, status) " + numbers.format("n, 'active'"))
    rows("ANALYZE")


async def test_look_ups_go_by_index_among_many(database: Database, rows: Rows, engine: str) -> None:
    fill(rows, engine)
    prefix = {"username_prefix": "u2"}
    queries: list[tuple[str, dict[str, Any]]] = [
        ("ix_users_email", {"email": "u200@example.com"}),
        ("ix_users_email", {"email": "u200@example.com", "status": "active", **prefix}),
        ("uq_users_reference", {"reference": "r200"}),
        ("uq_users_reference", {"reference": "r200", "status": "active", **prefix}),
        ("ix_users_email|uq_users_reference", {"reference": "r200", "email": "u200@example.com"}),
    ]
    for index, query in queries:
        with noting_statements() as sent:
            part: crud.Part = await database.read(crud.list_users, **query, after=0, limit=50)
        assert '"username":"u200"' in part.items.replace(" ", "")
        await assert_by_index(database, *sent[-1], index)
    with noting_statements() as sent:
        await database.write(crud.update_users, [change(100, "r200"), change(101, "new")])
    [look_up] = [each for each in sent if "SELECT users.reference" in each[0]]
    await assert_by_index(database, *look_up, "uq_users_reference")


async def assert_by_index(database: Database, sql: str, parameters: Any, index: str) -> None:
    """Check that the statement reads the users by this index."""
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    async with database.engine.connect() as connection:
        rows = await connection.exec_driver_sql(explain + sql, tuple(parameters) if database.is_sqlite else parameters)
        plan = "\n".join(str(row[-1]) for row in rows)
    assert re.search(index, plan), plan
    assert not re.search(r"Seq Scan|SCAN (users|profiles)", plan), plan


async def test_the_query_of_every_call_reads_none_of_it(database: Database) -> None:
    with noting_statements() as sent:
        await database.read(crud.authenticate, ["x"])

    assert [re.search("reference|metadata", sql) for sql, _ in sent] == [None]
    assert "reference" not in UserPublic.model_fields
