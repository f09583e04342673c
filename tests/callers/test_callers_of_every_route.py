"""Every route, and what it answers every kind of caller."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.routing import iter_route_contexts
from httpx2 import Response
from starlette.testclient import TestClient

from main import app
from tests.support.accounts import Headers
from tests.support.callers import MARK, Things, World, outcome_of, shown_by
from tests.support.operator import SCOPES, issue_key, issue_key_of
from tests.support.routes import FOR_THE_OPERATOR, NOT_FOR_ANYONE, TABLE, call, scope_of
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Rows
from tokens import hash_secret

pytestmark = pytest.mark.usefixtures("events")

MONITORING = {"Authorization": "Bearer the-monitoring-in-the-tests"}


def nobody(world: World) -> dict[str, Headers]:
    """Headers that are nobody's, by what they are."""
    token = world.alice.headers["Authorization"].removeprefix("Bearer ")
    (revoked, as_revoked), (expired, as_expired) = world.issue(world.alice), world.issue(world.alice)
    assert world.client.delete(f"/tokens/{revoked}", headers=world.alice.headers).status_code == 204
    world.rows(f"UPDATE access_tokens SET expires_at = created_at WHERE id = {expired}")
    key, revoked_key, expired_key = (issue_key_of(world.client, *SCOPES) for _ in range(3))
    assert world.client.delete(f"/operator/keys/{revoked_key['id']}", headers=AS_OPERATOR).status_code == 204
    world.rows(f"UPDATE operator_keys SET expires_at = created_at WHERE id = {expired_key['id']}")
    written = {
        "an empty one": "",
        "no token": "Bearer",
        "an empty token": "Bearer ",
        "no scheme": token,
        "another scheme": f"Basic {token}",
        "a scheme that begins so": f"Bearer2 {token}",
        "two tokens": f"Bearer {token}, Bearer {token}",
        "the operator's with more": f"Bearer {OPERATOR_TOKEN}x",
        "an unknown token": f"Bearer svp_{'A' * 43}",
        "a part of a token": f"Bearer {token[:-1]}",
        "a token in capitals": f"Bearer {token.upper()}",
        "what the database keeps of a token": f"Bearer {hashlib.sha256(token.encode()).hexdigest()}",
        "a wildcard": "Bearer svp_%",
        "an unknown key": f"Bearer svo_{'A' * 43}",
        "what the database keeps of a key": f"Bearer {hashlib.sha256(key['secret'].encode()).hexdigest()}",
        "a revoked key": f"Bearer {revoked_key['secret']}",
        "an expired key": f"Bearer {expired_key['secret']}",
    }
    return {
        "no header": {},
        **{kind: {"Authorization": value} for kind, value in written.items()},
        "a cookie": {"Cookie": f"access_token={token}"},
        "another header": {"X-Authorization": f"Bearer {token}"},
        "a proxy's header": {"Proxy-Authorization": f"Bearer {token}"},
        "a revoked token": as_revoked,
        "an expired token": as_expired,
    }


@pytest.fixture
def world(client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(app.state, "metrics_token_hash", hash_secret(MONITORING["Authorization"].split()[1]))
    return World(client, rows)


def routes() -> Iterator[str]:
    """Every method and path that the app has; of an app that is mounted, which has routes of its own, the path."""
    for context in iter_route_contexts(app.routes):
        for method in context.methods or ("mounted",):
            yield f"{method} {re.sub(':[a-z]+}', '}', str(context.path))}"


def test_the_table_has_every_route_and_no_other() -> None:
    assert sorted(TABLE) == sorted(routes())
    described = app.openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in described.items() for method in methods} <= {*TABLE}


def test_each_route_is_described_as_for_whom_the_table_says_it_is() -> None:
    schemes = {
        "anyone": [],
        "user": ["UserToken"],
        "operator": ["OperatorToken"],
        "user or operator": ["OperatorToken", "UserToken"],
    }
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            route = f"{method.upper()} {path}"
            needed = [*operation.get("security", ())]
            scopes = [each["OperatorToken"] for each in needed if "OperatorToken" in each]
            if route == "POST /register":  # The settings can leave it to the operator.
                assert needed == [{}, {"OperatorToken": ["users"]}]
                continue
            assert sorted(scheme for each in needed for scheme in each) == schemes[TABLE[route].who], route
            assert scopes == [[scope_of(route)]] * ("operator" in TABLE[route].who), route


def answers_to(world: World, headers: Headers, things: Things) -> dict[str, Response]:
    """What each route that is not for anyone answers."""
    return {route: call(world.client, route, headers, things) for route in NOT_FOR_ANYONE}


@contextmanager
def unchanged(world: World) -> Iterator[None]:
    """Expect that nothing that is stored is changed meanwhile."""
    before = world.everything()
    yield
    assert world.everything() == before


def with_things(world: World) -> Things:
    """All that the calls need, made beforehand: who may not make a call is not to change anything by it."""
    things = Things(world)
    for route in NOT_FOR_ANYONE:
        assert outcome_of(call(world.client, route, {}, things)) == "401 unauthenticated", route
    return things


@pytest.mark.slow
def test_nobody_reaches_more_than_anyone_and_learns_nothing_of_tokens(world: World) -> None:
    things, kinds = with_things(world), nobody(world)
    first = {route: shown_by(answer) for route, answer in answers_to(world, {}, things).items()}

    with unchanged(world):
        for kind, headers in kinds.items():
            # Which tokens there are, or were, is not told apart.
            seen = {route: shown_by(answer) for route, answer in answers_to(world, headers, things).items()}
            assert seen == first, kind
    for kind in ("an empty one", "an unknown token", "a revoked token"):
        for route, row in TABLE.items():
            if row.who == "anyone":
                assert outcome_of(call(world.client, route, kinds[kind], Things(world))) == row.alice, (kind, route)


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_a_user_who_is_not_active_reaches_nothing_of_its_own(world: World, status: str) -> None:
    things = with_things(world)

    with world.in_status(world.alice, status) as headers, unchanged(world):
        answers = answers_to(world, headers, things)

    assert {outcome_of(each) for each in answers.values()} == {"403 user-not-active"}
    if status == "closed":
        assert outcome_of(world.client.get("/me", headers=headers)) == "401 unauthenticated"


def test_the_monitoring_reaches_metrics_and_nothing_else(world: World) -> None:
    things = with_things(world)

    with unchanged(world):
        answers = answers_to(world, MONITORING, things)

    reached = {route for route, answer in answers.items() if outcome_of(answer) != "401 unauthenticated"}
    assert reached == {"GET /metrics"}
    assert outcome_of(answers["GET /metrics"]) == "200"


def test_a_key_is_the_operator_where_it_has_the_scope_and_reaches_nothing_elsewhere(world: World) -> None:
    things = with_things(world)
    for scope in SCOPES:
        has, lacks = issue_key(world.client, scope), issue_key(world.client, *({*SCOPES} - {scope}))
        routes_of = [each for each in FOR_THE_OPERATOR if scope_of(each) == scope]
        with unchanged(world):
            refused = {route: call(world.client, route, lacks, things) for route in routes_of}
        for route, answer in refused.items():
            assert outcome_of(answer) == "403 scope-missing", route
            assert f'"{scope}"' in answer.json()["detail"]
            assert outcome_of(call(world.client, route, has, Things(world))) == TABLE[route].operator, route


def test_each_write_of_the_operator_adds_a_record_of_its_call_and_none_of_a_user(world: World) -> None:
    as_key = issue_key(world.client, *SCOPES) | {"X-Request-ID": "by-a-key"}
    as_alice = world.alice.headers | {"X-Request-ID": "by-alice"}
    [(key_id,)] = world.rows("SELECT id FROM operator_keys")
    for route in (each for each in FOR_THE_OPERATOR if not each.startswith("GET ")):
        before = world.rows("SELECT request_id, key_id, * FROM operator_actions ORDER BY id")
        assert call(world.client, route, as_key, Things(world)).is_success, route
        if "user" in TABLE[route].who:
            assert call(world.client, route, as_alice, Things(world)).is_success, route
        after = world.rows("SELECT request_id, key_id, * FROM operator_actions ORDER BY id")
        # Those that were there before are as they were.
        assert after[: len(before)] == before, route
        recorded = {row[:2] for row in after[len(before) :]}
        assert ("by-a-key", key_id) in recorded, route
        assert "by-alice" not in {request_id for request_id, _ in recorded}, route


def test_a_write_of_the_operator_whose_record_cannot_be_stored_changes_nothing(world: World, engine: str) -> None:
    things = with_things(world)
    if engine == "sqlite":
        world.rows("CREATE TRIGGER refuse BEFORE INSERT ON operator_actions BEGIN SELECT RAISE(ABORT, 'refused'); END")
    else:
        world.rows("ALTER TABLE operator_actions ADD CONSTRAINT refuse CHECK (false) NOT VALID")

    with unchanged(world):
        writes = [route for route in FOR_THE_OPERATOR if not route.startswith("GET ")]
        answers = {route: call(world.client, route, AS_OPERATOR, things).status_code for route in writes}

    assert answers == dict.fromkeys(writes, 500)


@pytest.mark.parametrize("caller", ["alice", "eve", "operator"])
def test_a_known_caller_is_answered_as_the_table_says(world: World, caller: str) -> None:
    known = {"alice": world.alice.headers, "eve": world.eve.headers, "operator": AS_OPERATOR}
    seen: dict[str, str] = {}
    for route, row in TABLE.items():
        answer = call(world.client, route, known[caller], Things(world))
        seen[route] = outcome_of(answer)
        if route.startswith("GET "):
            head = world.client.head(
                answer.request.url.raw_path.decode(), headers=known[caller], follow_redirects=False
            )
            assert (head.status_code, head.content) == (answer.status_code, b""), route
        if caller == "eve" and row.who != "anyone":
            assert MARK not in answer.text + str(answer.headers), route

    assert seen == {route: getattr(row, caller) for route, row in TABLE.items()}


def test_the_other_party_sees_what_it_sent_and_cannot_take_it_back(world: World) -> None:
    answers = {
        "GET /transfers/{id}": "200",
        "GET /holds/{id}": "200",
        "POST /transfers/{id}/reversal": "403 receiver-only",
        "POST /holds/{id}/capture": "403 receiver-only",
        "POST /holds/{id}/void": "403 receiver-only",
    }
    things = with_things(world)

    with unchanged(world):
        seen = {route: outcome_of(call(world.client, route, world.bob.headers, things)) for route in answers}

    assert seen == answers


def test_a_server_without_an_operators_token_has_no_operator(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    things = with_things(world)
    monkeypatch.setattr(app.state, "operator_token_hash", None)
    disabled = {"operator": "403 operator-disabled"}

    for headers in (AS_OPERATOR, {"Authorization": "Bearer None"}):
        answers = answers_to(world, headers, things)
        assert {route: outcome_of(answer) for route, answer in answers.items()} == {
            route: disabled.get(row.who, "401 unauthenticated") for route, row in NOT_FOR_ANYONE.items()
        }
