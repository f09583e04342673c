"""Each write tells what it did, in its own transaction; one that is refused or fails tells nothing."""

import inspect
from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
import recording
from db.database import Database
from main import app
from models import Registration
from settings import Settings
from tests.support.accounts import order, register_all
from tests.support.callers import Things, World
from tests.support.events import create_webhook, read_all, stored
from tests.support.holds import hold
from tests.support.registration import named
from tests.support.routes import TABLE, call
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import set_status
from webhooks import transactions
from webhooks.transactions import EVENTS_NUMBERED

pytestmark = pytest.mark.usefixtures("events")

NEW_USER = ["user.registered", "account.opened", "token.issued"]

EVENTS_OF = {
    "POST /register": NEW_USER,
    "PATCH /me": ["user.updated"],
    "DELETE /me": [],  # Alice has money: refused. See below.
    "POST /tokens": ["token.issued"],
    "DELETE /tokens/{id}": ["token.revoked"],
    "POST /accounts": ["account.opened"],
    "PATCH /accounts/{id}": ["account.updated"],
    "POST /transfers": ["transfer.created"],
    "POST /transfers/{id}/reversal": ["transfer.created"],
    "POST /transfers/batch": ["transfer.created"],
    "POST /transactions": ["transfer.created", "transaction.created"],
    "POST /holds": ["hold.created"],
    "POST /holds/{id}/capture": ["transfer.created", "hold.captured"],
    "POST /holds/{id}/void": ["hold.voided"],
    "POST /deposits": ["transfer.created"],
    "POST /withdrawals": ["transfer.created"],
    "POST /users/batch": NEW_USER,
    "PATCH /users/{id}": ["user.updated"],
    "POST /users/{id}/erasure": ["user.erased"],
    "POST /users/{id}/tokens": ["token.issued"],
    "DELETE /users/{id}/tokens": ["token.revoked"],
    "DELETE /users/{id}/tokens/{token_id}": ["token.revoked"],
    "POST /operator/keys": ["key.issued"],
    "DELETE /operator/keys/{id}": ["key.revoked"],
    "POST /webhooks": ["webhook.created"],
    "PATCH /webhooks/{id}": ["webhook.updated"],
    "DELETE /webhooks/{id}": ["webhook.ended"],
    "POST /webhooks/{id}/secret": ["webhook.updated"],
    "POST /webhooks/{id}/test": ["webhook.test"],
    "POST /webhooks/{id}/deliveries/{event_id}": [],  # It changes nothing that is told: the same event is sent again.
}
"""What each call that writes tells."""

FUNCTIONS = {
    "import_users": "test_imported_users_are_told",
    "expire_holds": "test_a_hold_that_expires_is_told_without_anybody_s_call",
    **dict.fromkeys(
        [
            "register_users",
            "update_users",
            "erase_users",
            "issue_tokens",
            "revoke_tokens",
            "revoke_users_tokens",
            "issue_keys",
            "revoke_keys",
            "open_accounts",
            "change_credit",
            "make_transfers",
            "reverse_transfers",
            "end_holds",
            "make_payments",
            "create_webhooks",
            "change_webhooks",
            "resend_deliveries",
        ],
        "test_each_call_that_writes_tells_what_it_did",
    ),
    # Of what these do, nothing is told but the change of a webhook: tests/webhooks.
    **dict.fromkeys(["number_events", "prune_events", "take_due", "finish_attempts"], "bookkeeping"),
}
"""Where each function that opens a transaction is seen to tell what it does."""


def test_each_function_that_writes_is_among_these_tests() -> None:
    """A new one must tell what it does, and be added above."""
    writing = {
        name
        for module in (crud, transactions)
        for name, function in vars(module).items()
        if inspect.iscoroutinefunction(function)
        and inspect.getmodule(function) is module
        and "async with begin(session)" in inspect.getsource(inspect.unwrap(function))
    }
    assert writing == {*FUNCTIONS}
    assert {*FUNCTIONS.values()} - {"bookkeeping"} <= {*globals()}


def test_each_call_that_writes_tells_what_it_did(client: TestClient, rows: Rows) -> None:
    world = World(client, rows)
    writing = {route for route in TABLE if not route.startswith("GET ") and "/console" not in route}
    assert writing == {*EVENTS_OF}
    for route, types in EVENTS_OF.items():
        things = Things(world)
        TABLE[route].path.format_map(things)
        TABLE[route].body(things)
        [(before,)] = rows("SELECT max(id) FROM events")
        headers = AS_OPERATOR if "operator" in TABLE[route].who else world.alice.headers
        assert call(client, route, headers, things).status_code < 500

        assert [type for type, _ in stored(rows, before)] == types, route


def test_what_is_told_is_what_the_api_shows_but_for_personal_data(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    body = order(alice.account_id, bob.account_id, 5, memo="For John", reference="order-1", metadata={"a": "b"})
    transfer = client.post("/transfers", json=body, headers=alice.headers).json()
    held = hold(client, alice, bob, 7, memo="For John")
    client.post(f"/holds/{held['id']}/capture", json={"amount": 4}, headers=bob.headers)
    captured = client.get(f"/holds/{held['id']}", headers=bob.headers).json()

    events = {(each["type"], each["data"]["id"]): each for each in read_all(client, rows)}

    shown = {name: value for name, value in transfer.items() if name not in ("memo", "metadata", "debit_balance_after")}
    assert events["transfer.created", transfer["id"]]["data"] == shown
    for type, now in (("hold.created", held), ("hold.captured", captured)):
        shown = {name: value for name, value in now.items() if name not in ("memo", "metadata")}
        assert events[type, held["id"]]["data"] == shown
    user = client.get(f"/users/{alice.user_id}", headers=AS_OPERATOR).json()
    shown = {name: user[name] for name in ("id", "status", "reference", "created_at")}
    assert events["user.registered", alice.user_id]["data"] == shown
    account = client.get(f"/accounts/{alice.account_id}", headers=AS_OPERATOR).json()
    shown = {name: account[name] for name in ("id", "user_id", "currency", "label", "credit_limit")}
    assert events["account.opened", alice.account_id]["data"] == shown
    assert "John" not in str(events)
    assert "alice" not in str(events)


def test_closing_a_user_tells_of_each_token_that_it_revokes(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=0)
    client.post("/tokens", json={}, headers=alice.headers)
    before = read_all(client, rows)[-1]["id"]

    assert client.delete("/me", headers=alice.headers).status_code == 204

    assert sorted(each["type"] for each in read_all(client, rows, before)) == [
        "token.revoked",
        "token.revoked",
        "user.closed",
    ]


def test_a_user_s_status_is_told_as_it_was_then(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=0)
    for status in ("suspended", "active", "closed"):
        set_status(client, alice, status)

    told = [each for each in read_all(client, rows) if each["type"].startswith("user.")]

    assert [(each["type"], each["data"]["status"]) for each in told] == [
        ("user.registered", "active"),
        ("user.suspended", "suspended"),
        ("user.reopened", "active"),
        ("user.closed", "closed"),
    ]


def test_a_change_that_changes_nothing_is_not_told(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=0)
    before = read_all(client, rows)[-1]["id"]

    set_status(client, alice, "active")
    client.patch(f"/accounts/{alice.account_id}", json={"credit_limit": 0}, headers=AS_OPERATOR)
    client.patch("/me", json={"phone_number": None}, headers=alice.headers)

    assert read_all(client, rows, before) == []


def test_what_is_refused_or_rolled_back_is_not_told(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = read_all(client, rows)[-1]["id"]
    good, bad = order(alice.account_id, bob.account_id, 4), order(alice.account_id, bob.account_id, 11)

    assert client.post("/transfers", json=bad, headers=alice.headers).status_code == 409
    assert client.post("/transfers/batch", json={"transfers": [good, bad]}, headers=alice.headers).status_code == 409
    assert client.post("/transactions", json={"transfers": [good, bad]}, headers=alice.headers).status_code == 409
    users = {"users": [named("carol"), named("alice")]}
    assert client.post("/users/batch", json=users, headers=AS_OPERATOR).status_code == 409
    partly = {"transfers": [good, bad], "on_error": "continue"}
    assert client.post("/transfers/batch", json=partly, headers=alice.headers).status_code == 200

    [told] = read_all(client, rows, before)
    assert (told["type"], told["data"]["amount"]) == ("transfer.created", 4)


def test_a_change_whose_event_cannot_be_stored_does_not_happen(client: TestClient, rows: Rows, engine: str) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    read_all(client, rows)
    rows("ALTER TABLE events RENAME COLUMN subject_ids TO something_else")

    answer = client.post("/transfers", json=order(alice.account_id, bob.account_id, 4), headers=alice.headers)
    rows("ALTER TABLE events RENAME COLUMN something_else TO subject_ids")

    assert answer.status_code == 503
    assert rows(f"SELECT balance FROM accounts WHERE id = {alice.account_id}") == [(10,)]


def test_the_events_of_a_large_batch_are_numbered_and_delivered_in_parts(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=5000, bob=0)
    read_all(client, rows)
    create_webhook(client, types=["transfer.created"])
    body = {"transfers": [order(alice.account_id, bob.account_id, 1)] * 2100}
    assert client.post("/transfers/batch", json=body, headers=AS_OPERATOR).status_code == 200

    told = [each["data"]["id"] for each in read_all(client, rows) if each["type"] == "transfer.created"]

    assert told == sorted(told)
    assert len(told) == 2101
    [(largest,)] = rows("SELECT max(size) FROM events")
    assert largest <= recording.SUBJECTS_TOGETHER
    # The rows of one transaction have one created_at.
    [(together,)] = rows(
        "SELECT max(number) FROM (SELECT count(*) AS number FROM webhook_deliveries GROUP BY created_at) AS found"
    )
    assert together < recording.SUBJECTS_TOGETHER + EVENTS_NUMBERED


def test_a_repeated_call_is_told_once(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = read_all(client, rows)[-1]["id"]
    for _ in range(3):
        body, key = order(alice.account_id, bob.account_id, 4), {"Idempotency-Key": "once"}
        assert client.post("/transfers", json=body, headers=alice.headers | key).status_code == 201

    assert [each["type"] for each in read_all(client, rows, before)] == ["transfer.created"]


def test_a_hold_that_expires_is_told_without_anybody_s_call(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    held = hold(client, alice, bob, 4)
    before = read_all(client, rows)[-1]["id"]

    rows(f"UPDATE holds SET expires_at = '2026-01-01 00:00:00+00' WHERE id = {held['id']}")
    page = client.get("/events", params={"after": before, "wait": 30}, headers=AS_OPERATOR).json()

    [told] = page["items"]
    assert (told["type"], told["data"]["status"]) == ("hold.expired", "expired")
    assert told["data"]["resolved_at"] == told["data"]["expires_at"]
    assert rows("SELECT held FROM accounts WHERE held <> 0") == []


def test_a_hold_that_expired_is_told_once_whoever_finds_it(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    for _ in range(5):
        hold(client, alice, bob, 1, expires_in=1)
    give_up = 100
    while rows("SELECT count(*) FROM holds WHERE status = 'open'") != [(0,)] and give_up:
        # The first transfer that touches the account may find them as well.
        client.post("/transfers", json=order(alice.account_id, bob.account_id, 1), headers=alice.headers)
        give_up -= 1

    expired = [each["data"]["id"] for each in read_all(client, rows) if each["type"] == "hold.expired"]
    assert sorted(expired) == [1, 2, 3, 4, 5]


async def test_imported_users_are_told(url: str, rows: Rows) -> None:
    database = Database(Settings(database_url=url, events=True))
    registrations = [Registration(**named(name)) for name in ("alice", "bob")]
    kept: list[Any] = []

    await database.write(crud.import_users, registrations, "EUR", kept.extend)
    await database.write(crud.import_users, registrations, "EUR", kept.extend)
    await database.close()

    assert sorted(stored(rows)) == [(type, id) for type in sorted(NEW_USER) for id in (1, 2)]


async def test_a_large_import_is_told_in_rows_of_bounded_size(url: str, rows: Rows) -> None:
    database = Database(Settings(database_url=url, events=True))
    registrations = [Registration(**named(f"user{number}")) for number in range(1201)]

    await database.write(crud.import_users, registrations, "EUR", lambda tokens: None)
    await database.close()

    assert sorted(stored(rows)) == sorted((type, id) for type in NEW_USER for id in range(1, 1202))
    sizes = [size for (size,) in rows("SELECT size FROM events ORDER BY size")]
    assert sizes == [201] * 3 + [recording.SUBJECTS_TOGETHER] * 6


def test_without_the_setting_nothing_is_stored_and_the_caller_is_told_how_to_set_it(
    client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.operations.database, "session_info", {})
    monkeypatch.setattr(app.state, "sequencer", None)
    alice, bob = register_all(client, alice=10, bob=0)
    client.post("/transfers", json=order(alice.account_id, bob.account_id, 4), headers=alice.headers)

    assert rows("SELECT count(*) FROM events") == [(0,)]
    for answer in (
        client.get("/events", headers=AS_OPERATOR),
        client.post("/webhooks", json={"url": "https://hooks.example"}, headers=AS_OPERATOR),
    ):
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/events-off")
        assert "EVENTS=true" in answer.json()["detail"]
