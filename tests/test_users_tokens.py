"""The operator's remedy for lost and stolen tokens, and what suspending and closing a user does to them."""

import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
from models import KeyedRegistration
from operations import Operations
from refusals import UserNotActive
from tests.support.accounts import Headers, answer_of, refusal_of, register, register_all, walk
from tests.support.database import Service
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Rows
from tests.support.transfers import keyed, set_status

KEY = "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"


def issue(client: TestClient, user_id: int, **fields: Any) -> dict[str, Any]:
    """A token that the operator issues to a user."""
    return answer_of(client.post(f"/users/{user_id}/tokens", json=fields, headers=AS_OPERATOR))


def bearing(token: dict[str, Any]) -> Headers:
    return {"Authorization": f"Bearer {token['access_token']}"}


def status_of(client: TestClient, headers: Headers) -> int:
    """How GET /me answers the bearer of a token."""
    status: int = client.get("/me", headers=headers).status_code
    return status


def test_the_operator_issues_a_token_that_works_and_is_listed_without_its_secret(client: TestClient) -> None:
    alice, bob = register_all(client, alice=0, bob=0)

    token = issue(client, alice.user_id, name="web", expires_in_days=1)

    assert (token["name"], token["token_type"], token["revoked_at"]) == ("web", "bearer", None)
    assert client.get("/me", headers=bearing(token)).json()["id"] == alice.user_id
    listed = walk(client, f"/users/{alice.user_id}/tokens", AS_OPERATOR, limit=1)
    assert listed == walk(client, "/tokens", alice.headers, limit=1)
    assert [each["name"] for each in listed] == [None, "web"]
    assert token["access_token"] not in str(listed)
    assert len(walk(client, f"/users/{bob.user_id}/tokens", AS_OPERATOR, limit=200)) == 1


def test_a_stolen_token_is_revoked_and_the_others_work_on(client: TestClient) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    stolen = issue(client, alice.user_id, name="stolen")
    path = f"/users/{alice.user_id}/tokens/{stolen['id']}"

    assert refusal_of(client.delete(f"/users/{bob.user_id}/tokens/{stolen['id']}", headers=AS_OPERATOR)) == (
        404,
        "token-not-found",
    )
    assert status_of(client, bearing(stolen)) == 200
    assert client.delete(path, headers=AS_OPERATOR).status_code == 204
    revoked_at = walk(client, "/tokens", alice.headers, limit=200)[1]["revoked_at"]
    assert client.delete(path, headers=AS_OPERATOR).status_code == 204

    assert status_of(client, bearing(stolen)) == 401
    assert status_of(client, alice.headers) == 200
    assert walk(client, "/tokens", alice.headers, limit=200)[1]["revoked_at"] == revoked_at


def test_all_tokens_of_a_user_are_revoked_at_once_and_a_new_one_works(client: TestClient) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    second = issue(client, alice.user_id)

    for _ in range(2):
        assert client.delete(f"/users/{alice.user_id}/tokens", headers=AS_OPERATOR).status_code == 204

    assert [status_of(client, headers) for headers in (alice.headers, bearing(second))] == [401, 401]
    assert status_of(client, bob.headers) == 200
    assert status_of(client, bearing(issue(client, alice.user_id))) == 200


def test_suspending_revokes_nothing_and_closing_revokes_all_for_good(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)

    set_status(client, alice, "suspended")
    assert status_of(client, alice.headers) == 403
    set_status(client, alice, "active")
    assert status_of(client, alice.headers) == 200
    assert rows("SELECT count(*) FROM access_tokens WHERE revoked_at IS NOT NULL") == [(0,)]

    set_status(client, alice, "closed")
    set_status(client, alice, "active")
    assert status_of(client, alice.headers) == 401
    assert client.delete("/me", headers=bob.headers).status_code == 204
    set_status(client, bob, "active")
    assert status_of(client, bob.headers) == 401
    assert rows("SELECT count(*) FROM access_tokens WHERE revoked_at IS NULL") == [(0,)]


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_who_is_not_active_is_issued_no_token(client: TestClient, rows: Rows, status: str) -> None:
    registration = named("alice")
    user_id = answer_of(client.post("/register", json=registration, headers=keyed({}, KEY)))["user"]["id"]
    client.patch(f"/users/{user_id}", json={"status": status}, headers=AS_OPERATOR)
    before = rows("SELECT id FROM access_tokens")

    issued = client.post(f"/users/{user_id}/tokens", json={}, headers=AS_OPERATOR)
    replayed = client.post("/register", json=registration, headers=keyed({}, KEY))
    batch = {"users": [{**registration, "idempotency_key": KEY}], "on_error": "continue"}
    [result] = client.post("/users/batch", json=batch, headers=AS_OPERATOR).json()["results"]

    assert refusal_of(issued) == refusal_of(replayed) == (403, "user-not-active")
    assert result["problem"]["type"] == "/problems/user-not-active"
    assert rows("SELECT id FROM access_tokens") == before
    # Without the key, the name is taken, and no more is told.
    assert refusal_of(client.post("/register", json=registration)) == (409, "username-taken")


def test_the_replay_of_an_active_users_registration_still_issues_a_token(client: TestClient) -> None:
    first, second = (answer_of(client.post("/register", json=named("alice"), headers=keyed({}, KEY))) for _ in "12")

    assert first["user"] == second["user"]
    assert first["access_token"] != second["access_token"]


def test_a_user_who_is_not_there_has_no_tokens(client: TestClient) -> None:
    register(client)
    calls = [
        client.get("/users/999999/tokens", headers=AS_OPERATOR),
        client.post("/users/999999/tokens", json={}, headers=AS_OPERATOR),
        client.delete("/users/999999/tokens", headers=AS_OPERATOR),
        client.delete("/users/999999/tokens/1", headers=AS_OPERATOR),
    ]

    assert [refusal_of(call) for call in calls] == [(404, "user-not-found")] * 4


@pytest.mark.anyio
async def test_no_token_is_left_to_a_user_who_is_closed_while_tokens_are_issued(
    operations: Operations, rows: Rows
) -> None:
    for name in ("alice", "bob", "carol"):
        user = (await operations.write(crud.register_users, KeyedRegistration.model_validate(named(name)))).user
        closing = operations.write(crud.update_users, crud.UserChange(user.id, {"status": "closed"}))
        issues = [operations.write(crud.issue_tokens, crud.TokenIssue(user.id, None, None)) for _ in range(5)]
        outcomes = await asyncio.gather(*issues, closing, return_exceptions=True)
        assert all(not isinstance(each, Exception) or isinstance(each, UserNotActive) for each in outcomes), outcomes

    assert rows("SELECT count(*) FROM access_tokens WHERE revoked_at IS NULL") == [(0,)]


@pytest.mark.anyio
async def test_whoever_holds_a_stolen_token_is_left_with_none_when_all_are_revoked(
    service: Service, url: str, rows: Rows
) -> None:
    async with service(url, operator_token=OPERATOR_TOKEN) as client:
        for number in range(20):
            registered = (await client.post("/register", json=named(f"user{number}"))).json()
            stolen = bearing(registered)
            issues = [client.post("/tokens", json={}, headers=stolen) for _ in range(8)]
            revoking = client.delete(f"/users/{registered['user']['id']}/tokens", headers=AS_OPERATOR)
            answers = await asyncio.gather(*issues[:4], revoking, *issues[4:])
            assert {each.status_code for each in answers} <= {201, 204, 401}

    assert rows("SELECT count(*) FROM access_tokens WHERE revoked_at IS NULL") == [(0,)]
