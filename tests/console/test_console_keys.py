"""The operator's keys in the console: each page and action needs its scope, and what is done is recorded."""

import re
from html import unescape

import pytest
from starlette.testclient import TestClient

from console.actions import ACTIONS
from tests.support.accounts import Holder, register
from tests.support.console import Console, hidden, location, words
from tests.support.operator import actions_of, bearing, issue_key_of
from tests.support.service import AS_OPERATOR, Rows

SQLITE = pytest.mark.parametrize("engine", ["sqlite"])


def with_key(client: TestClient, *scopes: str) -> tuple[Console, int]:
    """The console for who signs in with a new key, and the key's id."""
    key = issue_key_of(client, *scopes)
    return Console(client, key["secret"]), key["id"]


@SQLITE
def test_a_key_that_cannot_read_cannot_sign_in(client: TestClient) -> None:
    for scope in ("users", "money", "keys"):
        secret = issue_key_of(client, scope)["secret"]
        answer = client.post("/console/sign-in", data={"token": secret})
        assert answer.status_code == 403
        assert "needs the scope “read”" in words(answer)
        assert secret not in answer.text


@SQLITE
@pytest.mark.parametrize("scope", ["read", "users", "money"])
def test_an_action_is_offered_and_done_with_its_scope_only(client: TestClient, scope: str) -> None:
    bob = register(client, "bob", 1000)
    console, _ = with_key(client, *{"read", scope})
    needed = {each.name: each.scope for each in ACTIONS}

    for path, actions in (
        (f"/users/{bob.user_id}", ("suspend", "change", "issue-token", "revoke-tokens", "open-account")),
        (f"/accounts/{bob.account_id}", ("deposit", "withdraw", "credit-limit")),
        ("/transfers/1", ("reverse",)),
    ):
        page = console.get(path).text
        for name in actions:
            is_allowed = needed[name] == scope
            assert (f'href="/console{path}/{name}"' in page) == is_allowed, name
            assert console.get(f"{path}/{name}").status_code == (200 if is_allowed else 403), name


@SQLITE
def test_a_form_without_the_scope_does_nothing(client: TestClient, rows: Rows) -> None:
    bob, reader = register(client, "bob"), with_key(client, "read", "money")[0]
    sent = hidden(reader.get(f"/accounts/{bob.account_id}/deposit"))

    refused = reader.post(f"/users/{bob.user_id}/suspend", **sent, key="console-" + "x" * 22, seen="", step="do")

    assert refused.status_code == 403
    assert 'the scope "users"' in words(refused)
    assert rows("SELECT status FROM profiles") == [("active",)]


@SQLITE
def test_a_key_that_is_revoked_or_expired_ends_its_sessions(client: TestClient, rows: Rows) -> None:
    for end in ("revoked_at", "expires_at"):
        console, key_id = with_key(client, "read")
        assert re.search(rf"Signed in as key \d+ \(key {key_id}\) until", console.get().text)
        rows(f"UPDATE operator_keys SET {end} = created_at WHERE id = {key_id}")
        assert location(console.get("/users")) == "/console/sign-in?next=/console/users"
        assert console.get("/sign-in").status_code == 200


@pytest.fixture
def bob(client: TestClient) -> Holder:
    return register(client, "bob", 1000)


def test_what_is_done_is_recorded_with_the_key_and_the_request(client: TestClient, bob: Holder) -> None:
    console, key_id = with_key(client, "read", "users", "money")
    user, account = f"/users/{bob.user_id}", f"/accounts/{bob.account_id}"
    token = client.get(f"{user}/tokens", headers=AS_OPERATOR).json()["items"][0]["id"]
    location(console.do(f"{user}/tokens/{token}/revoke"))
    assert console.do(f"{user}/issue-token", name="web").status_code == 200
    for path, typed in (
        (f"{user}/change", {"email": "new@example.com", "phone_number": "", "reference": "c-1"}),
        (f"{user}/open-account", {"currency": "USD", "label": "main"}),
        (f"{user}/revoke-tokens", {}),
        (f"{account}/deposit", {"amount": "5"}),
        (f"{account}/withdraw", {"amount": "1"}),
        (f"{account}/credit-limit", {"credit_limit": "3"}),
        ("/transfers/1/reverse", {}),
        (f"{user}/suspend", {}),
        (f"{user}/reopen", {}),
    ):
        location(console.do(path, **typed))

    done = actions_of(client, key_id=key_id)

    assert [each["action"] for each in done] == [
        *("token.revoke", "token.issue", "user.update", "account.open", "token.revoke"),
        *("transfer.deposit", "transfer.withdraw", "account.credit", "transfer.reverse", "user.suspend", "user.reopen"),
    ]
    assert {each["user_id"] for each in done} == {bob.user_id}
    assert len({each["request_id"] for each in done}) == len(done)
    page = words(console.get(f"/actions?key_id={key_id}"))
    assert all(each["action"] in page and each["request_id"] in page for each in done)
    assert re.search(rf"User {bob.user_id} key \d+ \(key {key_id}\)", page)
    assert f"with key {key_id}" in words(console.get(f"/transfers/{done[5]['transfer_id']}"))
    found = words(console.get(f"/actions?request_id={done[5]['request_id']}"))
    assert ("transfer.deposit" in found, "user.reopen" in found) == (True, False)
    for nothing in ("request_id=%00", "request_id=unknown", "user_id=999"):
        assert "None." in words(console.get(f"/actions?{nothing}"))
    assert console.get("/actions?user_id=x").status_code == 404


def test_what_was_done_is_shown_in_peoples_words(client: TestClient, bob: Holder) -> None:
    maker = issue_key_of(client, "read", "money", "keys", name="Ann's_key")
    issued = issue_key_of(client, "read", "money", name="cash_desk", headers=bearing(maker))
    as_key, account = bearing(maker), f"/accounts/{bob.account_id}"
    client.patch(account, json={"credit_limit": 1_000_050}, headers=as_key)
    client.patch(f"/users/{bob.user_id}", json={"phone_number": "+4915112345678"}, headers=AS_OPERATOR)
    console = Console(client, maker["secret"])

    page = words(console.get("/actions"))

    by = f"Ann's_key (key {maker['id']})"
    assert f"Signed in as {by}" in unescape(console.get().text)
    assert f"key.issue Key: cash_desk (key {issued['id']}) Scopes: money, read" in page
    assert "Old: 0.00 EUR New: 10 000.50 EUR" in page
    assert f"account {bob.account_id} {by}" in page
    assert "user.update Fields: phone number" in page
    assert "transfer 1 : 10.00 EUR root" in page


def test_sent_twice_an_action_is_recorded_once(client: TestClient, bob: Holder) -> None:
    console, key_id = with_key(client, "read", "money")
    path = f"/accounts/{bob.account_id}/deposit"
    page = console.review(path, amount="5")

    assert location(console.confirm(path, page)) == location(console.confirm(path, page))

    assert len(actions_of(client, key_id=key_id)) == 1
