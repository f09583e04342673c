"""The keys of the operator: issued, listed, revoked, and never more than the key that issued them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

import crud
from ledger import Actor
from main import app
from operations import Operations
from refusals import KeyNameTaken, Unauthenticated
from tests.support.accounts import answer_of, register
from tests.support.callers import outcome_of
from tests.support.database import Service, backend_that_waits, on_postgresql
from tests.support.operator import actions_of, bearing, issue_key, issue_key_of
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Rows, batcher_of
from tokens import hash_secret


def keys_of(client: TestClient) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/operator/keys", headers=AS_OPERATOR).json()["items"]
    return items


def test_a_key_is_shown_once_and_only_its_hash_is_kept(client: TestClient, rows: Rows) -> None:
    key = issue_key_of(client, "users", "read", "users", expires_in_days=90)

    secret = key.pop("secret")
    assert len(secret) == len("svo_") + 43
    assert secret.startswith("svo_")
    assert key["scopes"] == ["read", "users"]
    lasts = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
    assert lasts == timedelta(days=90)
    assert keys_of(client) == [key]
    assert rows("SELECT key_hash FROM operator_keys") == [(hash_secret(secret),)]
    assert secret not in str(rows("SELECT * FROM operator_keys") + rows("SELECT * FROM operator_actions"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scopes", []),
        ("scopes", ["root"]),
        ("scopes", "read"),
        ("name", ""),
        ("name", "a\nb"),
        ("expires_in_days", 0),
        ("actor", None),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(client: TestClient, field: str, value: Any) -> None:
    body = {"name": "support", "scopes": ["read"], field: value}

    answer = client.post("/operator/keys", json=body, headers=AS_OPERATOR)

    assert outcome_of(answer) == "422 invalid-request"
    assert answer.json()["errors"][0]["field"].startswith(f"body.{field}")


def test_a_name_has_one_key_until_that_is_revoked(client: TestClient) -> None:
    body = {"name": "support", "scopes": ["read"]}
    first = answer_of(client.post("/operator/keys", json=body, headers=AS_OPERATOR))

    assert outcome_of(client.post("/operator/keys", json=body, headers=AS_OPERATOR)) == "409 key-name-taken"
    assert client.delete(f"/operator/keys/{first['id']}", headers=AS_OPERATOR).status_code == 204
    second = answer_of(client.post("/operator/keys", json=body, headers=AS_OPERATOR))
    assert [(key["id"], key["revoked_at"] is None) for key in keys_of(client)] == [
        (first["id"], False),
        (second["id"], True),
    ]


def test_a_revoked_key_stops_at_once_and_stays_as_it_was_revoked_first(client: TestClient) -> None:
    key = issue_key_of(client, "read")
    assert client.get("/users", headers=bearing(key)).status_code == 200

    assert client.delete(f"/operator/keys/{key['id']}", headers=AS_OPERATOR).status_code == 204
    assert outcome_of(client.get("/users", headers=bearing(key))) == "401 unauthenticated"
    revoked = keys_of(client)
    assert client.delete(f"/operator/keys/{key['id']}", headers=AS_OPERATOR).status_code == 204
    assert keys_of(client) == revoked
    assert [each["action"] for each in actions_of(client)] == ["key.issue", "key.revoke"]
    assert outcome_of(client.delete("/operator/keys/999", headers=AS_OPERATOR)) == "404 key-not-found"


def test_a_key_issues_no_more_than_it_has_and_nothing_that_outlives_it(client: TestClient, rows: Rows) -> None:
    issuer = issue_key_of(client, "keys", "read", expires_in_days=10)

    def ask(scopes: list[str], days: int | None) -> str:
        body = {"name": f"{scopes} for {days}", "scopes": scopes, "expires_in_days": days}
        return outcome_of(client.post("/operator/keys", json=body, headers=bearing(issuer)))

    before = rows("SELECT id FROM operator_keys")
    for scopes, days in ((["read", "users"], 1), (["money"], 1), (["read"], None), (["keys"], 11)):
        assert ask(scopes, days) == "403 key-exceeded"
    assert rows("SELECT id FROM operator_keys") == before
    assert ask(["keys", "read"], 9) == "201"
    [_, issued] = actions_of(client, action="key.issue")
    assert (issued["key_id"], issued["details"]["scopes"]) == (issuer["id"], ["keys", "read"])


def test_no_user_causes_a_look_up_of_keys_and_no_key_one_of_users(client: TestClient) -> None:
    alice, key = register(client), issue_key(client, "read")
    asked: dict[str, int] = {}
    for name in ("authenticate", "authenticate_key"):
        batcher = batcher_of(app.state.operations, name)

        async def run(hashes: Any, batcher: Any = batcher, of: Callable[..., Any] = batcher.run) -> Any:
            asked[batcher.name] = asked.get(batcher.name, 0) + 1
            return await of(hashes)

        batcher.run = run

    assert client.get("/me", headers=alice.headers).status_code == 200
    assert asked == {"authenticate": 1}
    assert client.get("/users", headers=key).status_code == 200
    assert client.get("/users", headers=AS_OPERATOR).status_code == 200
    assert asked == {"authenticate": 1, "authenticate_key": 1}


def test_without_an_operators_token_no_key_is_the_operator(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    key = issue_key(client, "read", "users")
    monkeypatch.setattr(app.state, "operator_token_hash", None)

    assert outcome_of(client.get("/users", headers=key)) == "403 operator-disabled"
    assert outcome_of(client.get("/accounts", headers=key)) == "401 unauthenticated"


async def test_a_key_that_is_revoked_while_a_body_arrives_makes_no_call(
    service: Service, url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.callers.FRESH", 0)
    async with service(url, operator_token=OPERATOR_TOKEN) as client:
        body = {"name": "stolen", "scopes": ["users"]}
        key = (await client.post("/operator/keys", json=body, headers=AS_OPERATOR)).json()

        async def kept_back() -> AsyncIterator[bytes]:
            yield b'{"users": [{"username": "mallory", '
            await client.delete(f"/operator/keys/{key['id']}", headers=AS_OPERATOR)
            yield b'"email": "m@example.com"}]}'

        headers = bearing(key) | {"Content-Type": "application/json"}
        answer = await client.post("/users/batch", content=kept_back(), headers=headers)

    assert answer.status_code == 401
    assert rows("SELECT * FROM users") == []


def test_invalid_keys_count_for_the_limit_of_their_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    monkeypatch.setenv("FAILED_TOKENS_PER_ADDRESS", "2/hour")
    with TestClient(app) as client:
        key = issue_key(client, "read")
        answers = [client.get("/users", headers={"Authorization": f"Bearer svo_{number}"}) for number in range(3)]
        assert [each.status_code for each in answers] == [401, 401, 429]
        assert client.get("/users", headers=key).status_code == 200


async def test_a_key_that_is_revoked_while_it_issues_others_issues_none_after_that(
    operations: Operations, rows: Rows
) -> None:
    for number in range(10):
        stolen = await operations.write(crud.issue_keys, crud.KeyIssue(f"{number}", ["keys"], None))
        actor = Actor(stolen.id, "a-request")
        issues = [
            operations.write(crud.issue_keys, crud.KeyIssue(f"{number}-{each}", ["keys"], None, actor))
            for each in range(8)
        ]
        revoking = operations.write(crud.revoke_keys, crud.KeyRevocation(stolen.id, Actor(None, "a-request")))
        outcomes = await asyncio.gather(*issues[:4], revoking, *issues[4:], return_exceptions=True)
        assert all(not isinstance(each, Exception) or isinstance(each, Unauthenticated) for each in outcomes)

        [(revoked,)] = rows("SELECT id FROM operator_actions WHERE action = 'key.revoke' ORDER BY id DESC LIMIT 1")
        assert rows(f"SELECT id FROM operator_actions WHERE key_id = {stolen.id} AND id > {revoked}") == []


@on_postgresql
async def test_a_key_that_another_process_is_revoking_waits_and_issues_none(
    operations: Operations, url: str, rows: Rows
) -> None:
    stolen = await operations.write(crud.issue_keys, crud.KeyIssue("stolen", ["keys"], None))
    with psycopg.connect(url) as other:
        other.execute("UPDATE operator_keys SET revoked_at = now()")
        issue = crud.KeyIssue("another", ["keys"], None, Actor(stolen.id, "a-request"))
        issuing = asyncio.create_task(operations.write(crud.issue_keys, issue))
        await backend_that_waits(rows, "transactionid")
        other.commit()
        with pytest.raises(Unauthenticated):
            await issuing

    assert rows("SELECT name FROM operator_keys") == [("stolen",)]


async def test_of_many_keys_with_one_name_one_is_issued(operations: Operations) -> None:
    issues = [operations.write(crud.issue_keys, crud.KeyIssue("support", ["read"], None)) for _ in range(8)]

    outcomes = await asyncio.gather(*issues, return_exceptions=True)

    assert sum(isinstance(each, KeyNameTaken) for each in outcomes) == 7


async def test_an_expired_key_issues_none(operations: Operations, rows: Rows) -> None:
    expired = await operations.write(crud.issue_keys, crud.KeyIssue("expired", ["keys"], 1))
    rows(f"UPDATE operator_keys SET expires_at = '{datetime.now(UTC) - timedelta(days=1)}'")
    actor = Actor(expired.id, "a-request")

    with pytest.raises(Unauthenticated):
        await operations.write(crud.issue_keys, crud.KeyIssue("another", ["keys"], None, actor))
