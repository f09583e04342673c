"""POST /register: whole or not at all, once, under one name."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

import crud
import metrics
from models import KeyedRegistration
from operations import Operations
from refusals import IdempotencyKeyReused, UsernameTaken
from tests.support.registration import CURSED, count, named
from tests.support.service import Rows
from tokens import hash_secret

ALICE = {"username": "alice", "email": "alice@example.com", "phone_number": "+4915112345678"}


def test_a_registration_stores_user_profile_and_token_together(client: TestClient, rows: Rows) -> None:
    response = client.post("/register", json=ALICE)

    assert response.status_code == 201
    answer = response.json()
    user = answer["user"]
    assert answer["message"] == "Registration successful"
    assert answer["token_type"] == "bearer"
    assert {name: user[name] for name in ALICE} == ALICE
    assert user["status"] == "active"
    assert user["created_at"].endswith("Z")
    assert rows("SELECT id, username, email, phone_number FROM users") == [(user["id"], *ALICE.values())]
    assert rows("SELECT user_id, status FROM profiles") == [(user["id"], "active")]
    assert rows("SELECT user_id, token_hash FROM access_tokens") == [(user["id"], hash_secret(answer["access_token"]))]


def test_the_token_of_a_registration_lets_its_user_in(client: TestClient) -> None:
    answer = client.post("/register", json=ALICE).json()

    me = client.get("/me", headers={"Authorization": f"Bearer {answer['access_token']}"})

    assert me.json() == answer["user"]


@pytest.mark.parametrize("variant", ["alice", "ALICE", "aLiCe", "ａｌｉｃｅ", "ＡＬＩＣＥ"])
def test_a_taken_name_is_refused_in_every_spelling_and_leaves_nothing_behind(
    client: TestClient, rows: Rows, variant: str
) -> None:
    client.post("/register", json=ALICE)

    response = client.post("/register", json=named(variant))

    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/username-taken"
    assert count(rows) == (1, 1, 1)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("王小明", "王小明"),
        ("Jürgen_Müller", "jürgen_müller"),
        ("u\u0308ber", "über"),
        ("GROẞ", "groß"),
        ("Ünal", "ünal"),
        ("a@b.c", "a@b.c"),
        ("x" * 50, "x" * 50),
        ("u\u0308" * 50, "ü" * 50),
    ],
)
def test_a_username_in_any_language_is_kept_normalised(client: TestClient, rows: Rows, given: str, kept: str) -> None:
    assert client.post("/register", json=named(given)).json()["user"]["username"] == kept

    assert rows("SELECT username FROM users") == [(kept,)]


@pytest.mark.parametrize(
    "username",
    ["", "a b", " a", "a\t", "a\x00b", "a\x7f", "a\u200db", "\u202ea", "ﬁ", "😀", "x" * 51, "x" * 5000, "\ud800"],
)
def test_a_name_that_could_deceive_or_does_not_fit_is_refused(client: TestClient, rows: Rows, username: str) -> None:
    # With escapes, since half a surrogate pair cannot be encoded as UTF-8.
    body = json.dumps(named(username), ensure_ascii=True)

    response = client.post("/register", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["body.username"]
    assert count(rows) == (0, 0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", 7),
        ("username", None),
        ("username", ["alice"]),
        ("email", "alice"),
        ("email", "alice@localhost"),
        ("email", "Alice <alice@example.com>"),
        ("email", "a\u0000@example.com"),
        ("email", "a" * 60 + "@" + "b" * 40 + ".com"),
        ("email", True),
        ("phone_number", "0151 12345678"),
        ("phone_number", "+49 151 12345678"),
        ("phone_number", "+0123456789"),
        ("phone_number", "+123456"),
        ("phone_number", "+1234567890123456"),
        ("phone_number", "+٤٩١٥١١٢٣٤٥٦"),
        ("phone_number", "+4915112345678\n"),
        ("phone_number", 4915112345678),
        ("is_admin", True),
    ],
)
def test_a_field_that_is_wrong_is_named(client: TestClient, rows: Rows, field: str, value: Any) -> None:
    response = client.post("/register", json=ALICE | {field: value})

    assert response.status_code == 422
    assert response.json()["type"] == "/problems/invalid-request"
    assert [error["field"] for error in response.json()["errors"]] == [f"body.{field}"]
    assert count(rows) == (0, 0, 0)


@pytest.mark.parametrize("missing", ["username", "email"])
def test_a_field_that_is_missing_is_named(client: TestClient, missing: str) -> None:
    response = client.post("/register", json={name: value for name, value in ALICE.items() if name != missing})

    assert response.json()["errors"] == [{"field": f"body.{missing}", "detail": "This field is required"}]


def test_a_phone_number_may_be_left_out(client: TestClient) -> None:
    assert client.post("/register", json=named("bob")).json()["user"]["phone_number"] is None


def test_a_key_sent_again_answers_the_same_user_with_a_fresh_token(client: TestClient, rows: Rows) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = client.post("/register", json=ALICE, headers=key)

    again = client.post("/register", json=ALICE | {"username": "ALICE"}, headers=key)

    assert (first.status_code, again.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["user"] == first.json()["user"]
    assert again.json()["access_token"] != first.json()["access_token"]
    assert count(rows) == (1, 1, 2)
    for answer in (first.json(), again.json()):
        me = client.get("/me", headers={"Authorization": f"Bearer {answer['access_token']}"})
        assert me.json() == first.json()["user"]


@pytest.mark.parametrize("change", [{"username": "bob"}, {"email": "other@example.com"}, {"phone_number": None}])
def test_a_key_sent_with_other_content_is_refused(client: TestClient, rows: Rows, change: dict[str, Any]) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    client.post("/register", json=ALICE, headers=key)

    response = client.post("/register", json=ALICE | change, headers=key)

    assert response.status_code == 422
    assert response.json()["type"] == "/problems/idempotency-key-reused"
    assert count(rows) == (1, 1, 1)


def test_a_replay_is_told_by_its_request_though_the_user_has_changed(client: TestClient, rows: Rows) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = client.post("/register", json=ALICE, headers=key).json()
    change = {"email": "two@example.com", "phone_number": None}
    changed = client.patch("/me", json=change, headers={"Authorization": f"Bearer {first['access_token']}"}).json()

    again = client.post("/register", json=ALICE, headers=key)
    other = client.post("/register", json=ALICE | change, headers=key)

    assert (again.status_code, again.json()["user"]) == (201, changed)
    assert again.json()["access_token"] != first["access_token"]
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert count(rows) == (1, 1, 2)


def test_a_user_whom_older_code_stored_is_compared_as_it_is_now(client: TestClient, rows: Rows) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    client.post("/register", json=ALICE, headers=key)
    rows("UPDATE users SET registration_content_hash = NULL")

    assert client.post("/register", json=ALICE, headers=key).status_code == 201
    assert client.post("/register", json=ALICE | {"email": "two@example.com"}, headers=key).status_code == 422


def test_after_15_minutes_a_key_replays_no_more(client: TestClient, rows: Rows, engine: str) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    client.post("/register", json=ALICE, headers=key)
    earlier = {
        "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', created_at, '-901 seconds')",
        "postgresql": "created_at - interval '901 seconds'",
    }
    rows(f"UPDATE users SET created_at = {earlier[engine]}")

    response = client.post("/register", json=ALICE, headers=key)

    assert response.status_code == 409
    assert response.json()["type"] == "/problems/username-taken"
    assert count(rows) == (1, 1, 1)


def test_a_key_is_kept_only_hashed(client: TestClient, rows: Rows) -> None:
    key = str(uuid4())
    client.post("/register", json=ALICE, headers={"Idempotency-Key": key})

    assert rows("SELECT registration_key_hash FROM users") == [(hash_secret(key),)]


@pytest.mark.parametrize(
    "key", ["order-17", "c232ab00-9414-11ec-b3c8-9f6bdeced846", "00000000-0000-0000-0000-000000000000"]
)
def test_a_key_that_can_be_guessed_is_refused(client: TestClient, rows: Rows, key: str) -> None:
    response = client.post("/register", json=ALICE, headers={"Idempotency-Key": key})

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["header.Idempotency-Key"]
    assert count(rows) == (0, 0, 0)


def test_a_refusal_is_not_remembered_with_its_key(client: TestClient) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    client.post("/register", json=ALICE)
    assert client.post("/register", json=named("alice"), headers=key).status_code == 409

    assert client.post("/register", json=named("alice2"), headers=key).status_code == 201


def registration(username: str, **fields: Any) -> KeyedRegistration:
    return KeyedRegistration.model_validate(named(username, **fields))


async def test_a_name_asked_for_by_many_at_once_goes_to_one(operations: Operations, rows: Rows) -> None:
    outcomes = await asyncio.gather(
        *(
            operations.write(crud.register_users, registration(name))
            for name in ["alice", "ALICE", "Alice", "aLICE"] * 8
        ),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes].count(UsernameTaken) == 31
    assert count(rows) == (1, 1, 1)


async def test_a_key_sent_by_many_at_once_registers_one_user(operations: Operations, rows: Rows) -> None:
    key = str(uuid4())

    outcomes = await asyncio.gather(
        *(operations.write(crud.register_users, registration("alice", idempotency_key=key)) for _ in range(8))
    )

    assert len({outcome.user.id for outcome in outcomes}) == 1
    assert [outcome.replayed for outcome in outcomes].count(False) == 1
    assert count(rows) == (1, 1, 8)


async def test_in_one_batch_a_name_whose_first_key_is_spent_goes_to_the_next(
    operations: Operations, rows: Rows
) -> None:
    key = str(uuid4())
    await operations.write(crud.register_users, registration("first", idempotency_key=key))

    spent, next_one = await asyncio.gather(
        operations.write(crud.register_users, registration("bob", idempotency_key=key, email="spent@example.com")),
        operations.write(crud.register_users, registration("bob", email="next@example.com")),
        return_exceptions=True,
    )

    assert isinstance(spent, IdempotencyKeyReused)
    assert not isinstance(next_one, BaseException)
    assert rows("SELECT email FROM users WHERE username = 'bob'") == [("next@example.com",)]


@pytest.mark.parametrize("cursed", [[0], [31], [13], [0, 1, 30, 31], list(range(32))])
async def test_a_failure_that_nobody_foresaw_harms_no_neighbour(
    operations: Operations, rows: Rows, engine: str, cursed: list[int]
) -> None:
    rows(CURSED[engine])
    names = [f"{'cursed' if index in cursed else 'user'}{index}" for index in range(32)]
    halved = metrics.BATCHES_HALVED._value.get()

    outcomes = await asyncio.gather(
        *(operations.write(crud.register_users, registration(name)) for name in names), return_exceptions=True
    )

    assert [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == cursed
    assert rows("SELECT count(*) FROM users WHERE username LIKE 'cursed%'") == [(0,)]
    assert count(rows) == (32 - len(cursed),) * 3
    assert metrics.BATCHES_HALVED._value.get() > halved


async def test_a_failure_between_two_statements_harms_no_neighbour(
    operations: Operations, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = crud.show

    def fail_for_the_cursed(model: Any, row: Any, **others: Any) -> Any:
        # The profile and the account wait for the next round trip by now.
        if row.username.startswith("cursed"):
            raise RuntimeError
        return show(model, row, **others)

    monkeypatch.setattr(crud, "show", fail_for_the_cursed)
    names = ["user0", "user1", "cursed2", "user3", "user4"]

    outcomes = await asyncio.gather(
        *(operations.write(crud.register_users, registration(name)) for name in names), return_exceptions=True
    )

    assert [name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Exception)] == [
        "cursed2"
    ]
    assert count(rows) == (4, 4, 4)
