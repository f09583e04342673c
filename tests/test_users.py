"""What users do with themselves and their tokens, and the operator with users."""

import asyncio
import logging
import re
from typing import Any

import pytest
from sqlmodel import SQLModel
from starlette.testclient import TestClient

import crud
from models import KeyedRegistration
from operations import Operations
from refusals import UserNotActive
from tests.support.problems import without_id
from tests.support.registration import CURSED, count, named
from tests.support.service import AS_OPERATOR, Rows
from tokens import hash_secret

NO_RECORD = {"reference": None, "metadata": None}
"""What only the operator sees of a user, where it has stored nothing."""


def register(client: TestClient, username: str = "alice") -> tuple[dict[str, Any], dict[str, str]]:
    """A new user, and the header that speaks for it."""
    answer = client.post("/register", json=named(username)).json()
    return answer["user"], {"Authorization": f"Bearer {answer['access_token']}"}


def test_a_user_changes_only_what_it_sends(client: TestClient, rows: Rows) -> None:
    user, as_user = register(client)

    changed = client.patch("/me", json={"phone_number": "+4915112345678"}, headers=as_user)

    assert changed.json() == user | {"phone_number": "+4915112345678"}
    assert client.patch("/me", json={"email": "New@Example.COM"}, headers=as_user).json()["email"] == "New@example.com"
    assert rows("SELECT email, phone_number FROM users") == [("New@example.com", "+4915112345678")]


def test_a_phone_number_of_null_is_removed(client: TestClient, rows: Rows) -> None:
    _, as_user = register(client)
    client.patch("/me", json={"phone_number": "+4915112345678"}, headers=as_user)

    client.patch("/me", json={"phone_number": None}, headers=as_user)

    assert rows("SELECT phone_number FROM users") == [(None,)]


@pytest.mark.parametrize("body", [{"email": None}, {"email": "x"}, {"username": "bob"}, {"status": "active"}, [], 3])
def test_a_user_cannot_change_what_is_not_its_to_change(client: TestClient, rows: Rows, body: Any) -> None:
    _, as_user = register(client)

    assert client.patch("/me", json=body, headers=as_user).status_code == 422
    assert rows("SELECT username, email FROM users") == [("alice", "someone@example.com")]


def test_a_user_who_closes_itself_is_closed_and_keeps_its_name(client: TestClient, rows: Rows) -> None:
    _, as_user = register(client)

    closed = client.delete("/me", headers=as_user)

    assert (closed.status_code, closed.content) == (204, b"")
    assert rows("SELECT status FROM profiles") == [("closed",)]
    refused = client.get("/me", headers=as_user)
    assert refused.status_code == 403
    assert refused.json()["type"] == "/problems/user-not-active"
    assert client.post("/register", json=named("alice")).status_code == 409


async def test_changes_of_one_user_in_one_batch_apply_in_order(operations: Operations, rows: Rows) -> None:
    await operations.write(crud.register_users, KeyedRegistration.model_validate(named("alice")))
    [(user_id,)] = rows("SELECT id FROM users")

    first, second, third, fourth = await asyncio.gather(
        operations.write(crud.update_users, crud.UserChange(user_id, {"email": "first@example.com"})),
        operations.write(crud.update_users, crud.UserChange(user_id, {"email": "second@example.com"})),
        operations.write(crud.update_users, crud.UserChange(user_id, {"status": "suspended"}, by_operator=True)),
        operations.write(crud.update_users, crud.UserChange(user_id, {"email": "fourth@example.com"})),
        return_exceptions=True,
    )

    assert not isinstance(first, BaseException)
    assert not isinstance(second, BaseException)
    assert not isinstance(third, BaseException)
    assert (first.email, second.email, third.status) == ("first@example.com", "second@example.com", "suspended")
    assert isinstance(fourth, UserNotActive)
    assert rows("SELECT email, status FROM users JOIN profiles ON user_id = id") == [
        ("second@example.com", "suspended")
    ]


def test_a_token_is_issued_listed_without_its_secret_and_revoked(client: TestClient) -> None:
    user, as_user = register(client)

    issued = client.post("/tokens", json={"name": "laptop", "expires_in_days": 30}, headers=as_user)

    assert issued.status_code == 201
    token = issued.json()
    as_laptop = {"Authorization": f"Bearer {token['access_token']}"}
    assert client.get("/me", headers=as_laptop).json() == user
    first, second = client.get("/tokens", headers=as_user).json()["items"]
    assert first["name"] is None
    assert second == {name: token[name] for name in ("id", "name", "created_at", "expires_at", "revoked_at")}

    for _ in range(2):
        assert client.delete(f"/tokens/{token['id']}", headers=as_user).status_code == 204
    assert client.get("/me", headers=as_laptop).status_code == 401
    assert client.get("/me", headers=as_user).status_code == 200
    assert client.get("/tokens", headers=as_user).json()["items"][1]["revoked_at"] is not None


def test_an_expired_token_lets_nobody_in(client: TestClient, rows: Rows) -> None:
    _, as_user = register(client)
    rows("UPDATE access_tokens SET expires_at = created_at")

    response = client.get("/me", headers=as_user)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["type"] == "/problems/unauthenticated"


@pytest.mark.parametrize("body", [{"expires_in_days": 0}, {"expires_in_days": "7"}, {"name": "a\u0000b"}, {"name": ""}])
def test_a_token_request_that_is_wrong_is_refused(client: TestClient, rows: Rows, body: dict[str, Any]) -> None:
    _, as_user = register(client)

    assert client.post("/tokens", json=body, headers=as_user).status_code == 422
    assert rows("SELECT count(*) FROM access_tokens") == [(1,)]


def test_another_users_token_cannot_be_revoked_and_is_not_shown_to_exist(client: TestClient, rows: Rows) -> None:
    register(client, "alice")
    _, as_bob = register(client, "bob")
    [(alices,)] = rows(
        "SELECT access_tokens.id FROM access_tokens JOIN users ON user_id = users.id AND username = 'alice'"
    )

    refused = client.delete(f"/tokens/{alices}", headers=as_bob)

    assert refused.status_code == 404
    assert without_id(refused) == without_id(client.delete("/tokens/999999", headers=as_bob))
    assert rows("SELECT count(*) FROM access_tokens WHERE revoked_at IS NOT NULL") == [(0,)]


def secrets_of(client: TestClient, key: str) -> list[str]:
    """The tokens of a user who registers with this key, and is issued one by itself and one by the operator."""
    first = client.post("/register", json=named("alice"), headers={"Idempotency-Key": key}).json()
    as_user = {"Authorization": f"Bearer {first['access_token']}"}
    second = client.post("/tokens", json={}, headers=as_user).json()
    third = client.post(f"/users/{first['user']['id']}/tokens", json={}, headers=AS_OPERATOR).json()
    return [each["access_token"] for each in (first, second, third)]


KEY = "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"


def test_no_secret_is_stored(client: TestClient, rows: Rows) -> None:
    secrets = secrets_of(client, KEY)

    stored = str([rows(f"SELECT * FROM {table}") for table in SQLModel.metadata.tables])

    assert len({*secrets}) == 3
    for secret in secrets:
        # 43 characters of 6 bits each have 256 bits.
        assert re.fullmatch("svp_[A-Za-z0-9_-]{43}", secret)
        assert secret.removeprefix("svp_") not in stored
        assert hash_secret(secret) in stored
    assert KEY not in stored


def test_no_log_has_secrets_or_personal_data(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    # The drivers', too: at this level they write what they send.
    caplog.set_level(logging.DEBUG)

    secrets = secrets_of(client, KEY)

    assert caplog.records
    for told in (*(secret.removeprefix("svp_") for secret in secrets), KEY, named("alice")["email"]):
        assert told not in caplog.text


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_a_user_who_is_not_active_can_do_nothing_until_it_is_again(client: TestClient, status: str) -> None:
    user, as_user = register(client)
    changed = client.patch(f"/users/{user['id']}", json={"status": status}, headers=AS_OPERATOR)
    assert changed.json() == user | NO_RECORD | {"status": status}

    assert client.get("/me", headers=as_user).json()["type"] == "/problems/user-not-active"

    client.patch(f"/users/{user['id']}", json={"status": "active"}, headers=AS_OPERATOR)
    # Closing has revoked the token.
    assert client.get("/me", headers=as_user).status_code == (401 if status == "closed" else 200)


def test_the_operator_sees_any_user(client: TestClient) -> None:
    user, _ = register(client)

    assert client.get(f"/users/{user['id']}", headers=AS_OPERATOR).json() == user | NO_RECORD
    missing = client.get("/users/999999", headers=AS_OPERATOR)
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/user-not-found")
    unchanged = client.patch("/users/999999", json={"status": "closed"}, headers=AS_OPERATOR)
    assert (unchanged.status_code, unchanged.json()["type"]) == (404, "/problems/user-not-found")


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_pages_follow_one_another_without_gap_or_repetition(client: TestClient, limit: int) -> None:
    users = [register(client, f"user{number}")[0] | NO_RECORD for number in range(6)]

    seen: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = client.get("/users", params={"limit": limit, **after}, headers=AS_OPERATOR).json()
        assert len(page["items"]) <= limit
        seen += page["items"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}

    assert seen == users


def test_users_are_filtered_by_status_and_prefix(client: TestClient) -> None:
    names = ["anna", "anne", "bert", "an_a", "an%a"]
    ids = {name: register(client, name)[0]["id"] for name in names}
    client.patch(f"/users/{ids['anne']}", json={"status": "suspended"}, headers=AS_OPERATOR)

    def listed(**filters: str) -> list[str]:
        page = client.get("/users", params=filters, headers=AS_OPERATOR).json()
        return [user["username"] for user in page["items"]]

    assert listed(username_prefix="ANN") == ["anna", "anne"]
    assert listed(username_prefix="an_") == ["an_a"]
    assert listed(username_prefix="an%") == ["an%a"]
    assert listed(status="suspended") == ["anne"]
    assert listed(status="active", username_prefix="an") == ["anna", "an_a", "an%a"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "after=x", "after=%00", "after=LTE", "status=dead", "username_prefix="]
)
def test_a_query_that_is_wrong_is_named(client: TestClient, query: str) -> None:
    response = client.get(f"/users?{query}", headers=AS_OPERATOR)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [f"query.{query.partition('=')[0]}"]


@pytest.mark.parametrize("id", ["0", "-1", "x", str(2**63), "1.5"])
def test_an_id_that_no_row_can_have_is_refused(client: TestClient, id: str) -> None:
    assert client.get(f"/users/{id}", headers=AS_OPERATOR).status_code == 422


def send_batch(client: TestClient, users: list[Any], on_error: str | None = None) -> tuple[int, Any]:
    body = {"users": users} | ({"on_error": on_error} if on_error else {})
    response = client.post("/users/batch", json=body, headers=AS_OPERATOR)
    return response.status_code, response.json()


TEN_THOUSAND = [named(f"user{number}") for number in range(10_000)]


def test_a_batch_of_10000_is_stored_whole(client: TestClient, rows: Rows) -> None:
    status, answer = send_batch(client, TEN_THOUSAND)

    assert status == 200
    assert [result["index"] for result in answer["results"]] == list(range(10_000))
    assert {result["status"] for result in answer["results"]} == {"created"}
    assert [result["user"]["username"] for result in answer["results"]] == [user["username"] for user in TEN_THOUSAND]
    assert count(rows) == (10_000, 10_000, 10_000)
    last = answer["results"][-1]
    me = client.get("/me", headers={"Authorization": f"Bearer {last['access_token']}"})
    assert me.json() == last["user"]


def test_a_batch_of_10000_with_one_refused_stores_nothing(client: TestClient, rows: Rows) -> None:
    register(client, "user7777")

    status, answer = send_batch(client, TEN_THOUSAND, "rollback")

    assert status == 409
    assert answer["type"] == "/problems/batch-refused"
    assert [(error["index"], error["type"]) for error in answer["errors"]] == [(7777, "/problems/username-taken")]
    assert count(rows) == (1, 1, 1)


def test_a_batch_of_10000_that_continues_stores_the_good_and_reports_the_others(
    client: TestClient, rows: Rows, engine: str
) -> None:
    register(client, "user7777")
    rows(CURSED[engine])
    users: list[Any] = list(TEN_THOUSAND)
    users[0] = named("user1")
    users[17] = named("cursed")
    users[99] = named("bad name", email="nowhere")
    users[9_999] = "user9999"

    status, answer = send_batch(client, users, "continue")

    assert status == 200
    assert [result["index"] for result in answer["results"]] == list(range(10_000))
    refused = {result["index"]: result["problem"] for result in answer["results"] if result["status"] == "refused"}
    assert {index: problem["type"] for index, problem in refused.items()} == {
        1: "/problems/username-taken",  # its name went to item 0
        17: "/problems/internal-error",
        99: "/problems/invalid-request",
        7777: "/problems/username-taken",
        9_999: "/problems/invalid-request",
    }
    assert [error["field"] for error in refused[99]["errors"]] == ["body.users.99.username", "body.users.99.email"]
    assert count(rows) == (10_000 - 5 + 1,) * 3


def test_an_invalid_item_refuses_a_whole_rollback_batch(client: TestClient, rows: Rows) -> None:
    status, answer = send_batch(client, [named("good"), named("bad", email="x"), {"username": "worse"}])

    assert status == 422
    assert [error["field"] for error in answer["errors"]] == ["body.users.1.email", "body.users.2.email"]
    assert count(rows) == (0, 0, 0)


def test_a_failure_that_nobody_foresaw_rolls_a_whole_batch_back(client: TestClient, rows: Rows, engine: str) -> None:
    rows(CURSED[engine])

    status, answer = send_batch(client, [named("good"), named("cursed")], "rollback")

    assert status == 500
    assert answer["type"] == "/problems/internal-error"
    assert count(rows) == (0, 0, 0)


def test_a_batch_sent_again_with_its_keys_registers_nobody_twice(client: TestClient, rows: Rows) -> None:
    users = [named(f"user{number}", idempotency_key=f"00000000-0000-4000-8000-{number:012}") for number in range(1, 4)]
    _, first = send_batch(client, users)

    status, again = send_batch(client, users)

    assert status == 200
    assert [result["user"] for result in again["results"]] == [result["user"] for result in first["results"]]
    assert rows("SELECT count(*) FROM users") == [(3,)]


@pytest.mark.parametrize("users", [[], [named("user")] * 10_001, {}, None])
def test_a_batch_holds_1_to_10000_items(client: TestClient, users: Any) -> None:
    status, answer = send_batch(client, users)

    assert status == 422
    assert [error["field"] for error in answer["errors"]] == ["body.users"]


def test_a_batch_of_invalid_items_only_is_answered_item_by_item(client: TestClient) -> None:
    status, answer = send_batch(client, [1, 2], "continue")

    assert status == 200
    assert [result["status"] for result in answer["results"]] == ["refused", "refused"]
