"""The record of what the operator did: what it says, what leaves none, and how it is found."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

import crud
from main import app
from tests.support.accounts import Headers, Holder, answer_of, cash, order, register_all, send
from tests.support.holds import hold
from tests.support.operator import actions_of, bearing, issue_key_of
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Rows, noting_statements
from tests.support.transfers import keyed
from tests.support.work import AT_MOST, work_of

KEY = "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"


class Shop(NamedTuple):
    """Two users, and a key that may do everything to them."""

    client: TestClient
    alice: Holder
    bob: Holder
    key_id: int
    headers: Headers

    def do(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, path, json=body, headers=self.headers)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def recorded(self) -> list[tuple[Any, ...]]:
        """What the key did: action, user, account, transfer and details."""
        names = ("action", "user_id", "account_id", "transfer_id", "details")
        return [tuple(each[name] for name in names) for each in actions_of(self.client, key_id=self.key_id)]


@pytest.fixture
def shop(client: TestClient) -> Shop:
    alice, bob = register_all(client, alice=1000, bob=1000)
    key = issue_key_of(client, "read", "users", "money")
    return Shop(client, alice, bob, key["id"], bearing(key))


def test_a_record_says_what_was_done_to_a_user_without_personal_data(shop: Shop) -> None:
    user = shop.alice.user_id
    shop.do("PATCH", f"/users/{user}", {"status": "suspended", "email": "new@example.com", "metadata": {"a": "b"}})
    shop.do("PATCH", f"/users/{user}", {"status": "active", "email": "new@example.com"})
    token = shop.do("POST", f"/users/{user}/tokens", {"name": "found again"})["id"]
    shop.do("DELETE", f"/users/{user}/tokens/{token}")
    shop.do("DELETE", f"/users/{user}/tokens")
    savings = shop.do("POST", "/accounts", {"user_id": user, "currency": "EUR", "label": "savings"})["id"]
    shop.do("PATCH", f"/accounts/{savings}", {"credit_limit": 500})
    shop.do("PATCH", f"/users/{user}", {"status": "closed"})
    [registered] = shop.do("POST", "/users/batch", {"users": [named("carol")]})["results"]

    assert shop.recorded() == [
        ("user.suspend", user, None, None, {"old": "active", "new": "suspended"}),
        ("user.update", user, None, None, {"fields": ["email", "metadata"]}),
        ("user.reopen", user, None, None, {"old": "suspended", "new": "active"}),
        ("token.issue", user, None, None, {"token_id": token}),
        ("token.revoke", user, None, None, {"token_id": token}),
        ("token.revoke", user, None, None, {"count": 1}),
        ("account.open", user, savings, None, None),
        ("account.credit", user, savings, None, {"old": 0, "new": 500}),
        ("user.close", user, None, None, {"old": "active", "new": "closed"}),
        ("user.register", registered["user"]["id"], None, None, None),
    ]


def test_a_record_says_whose_money_was_moved_or_held(shop: Shop, rows: Rows) -> None:
    (alice, account, _), (bob, bobs, _) = shop.alice, shop.bob
    paid_in = shop.do("POST", "/deposits", cash(account, 10))["id"]
    paid_out = shop.do("POST", "/withdrawals", cash(account, 10))["id"]
    moved = shop.do("POST", "/transfers", order(account, bobs, 5))["id"]
    back = shop.do("POST", f"/transfers/{moved}/reversal")["id"]
    legs = shop.do("POST", "/transactions", {"transfers": [order(account, bobs, 1), order(bobs, account, 1)]})
    voided, captured = (shop.do("POST", "/holds", order(account, bobs, 3))["id"] for _ in range(2))
    shop.do("POST", f"/holds/{voided}/void")
    capture = shop.do("POST", f"/holds/{captured}/capture")["id"]
    batch = shop.do("POST", "/transfers/batch", {"transfers": [order(bobs, account, 1)]})["results"]

    first, second = (leg["id"] for leg in legs["transfers"])
    assert shop.recorded() == [
        ("transfer.deposit", alice, account, paid_in, None),
        ("transfer.withdraw", alice, account, paid_out, None),
        ("transfer.create", alice, account, moved, None),
        ("transfer.reverse", bob, bobs, back, None),
        ("transfer.create", alice, account, first, None),
        ("transfer.create", bob, bobs, second, None),
        ("hold.create", alice, account, None, {"hold_id": voided}),
        ("hold.create", alice, account, None, {"hold_id": captured}),
        ("hold.void", alice, account, None, {"hold_id": voided}),
        ("hold.capture", alice, account, capture, None),
        ("transfer.create", bob, bobs, batch[0]["transfer"]["id"], None),
    ]
    made = {paid_in, paid_out, moved, back, first, second, capture, batch[0]["transfer"]["id"]}
    assert {id for (id,) in rows(f"SELECT id FROM transfers WHERE operator_key_id = {shop.key_id}")} == made


def test_what_is_refused_replayed_or_changes_nothing_leaves_no_record(shop: Shop) -> None:
    client, alice, bob = shop.client, shop.alice, shop.bob
    once = keyed(shop.headers, "once")
    for _ in range(2):
        answer_of(client.post("/transfers", json=order(alice.account_id, bob.account_id, 5), headers=once))
        answer_of(client.post("/holds", json=order(alice.account_id, bob.account_id, 5), headers=once))
        shop.do("PATCH", f"/users/{alice.user_id}", {"reference": "customer-1"})
        shop.do("PATCH", f"/accounts/{alice.account_id}", {"credit_limit": 5})
        shop.do("DELETE", f"/users/{alice.user_id}/tokens")
    done = [action for action, *_ in shop.recorded()]
    for path, body in (
        ("/transfers", order(alice.account_id, bob.account_id, 10**9)),
        ("/transfers/batch", {"transfers": [order(alice.account_id, bob.account_id, each) for each in (1, 10**9)]}),
        ("/transactions", {"transfers": [order(alice.account_id, bob.account_id, each) for each in (1, 10**9)]}),
        ("/users/batch", {"users": [named("dave"), named("alice")]}),
        ("/holds/999/void", None),
        ("/users/999/tokens", {}),
    ):
        assert client.post(path, json=body, headers=shop.headers).status_code in (404, 409)

    assert done == ["transfer.create", "hold.create", "user.update", "account.credit", "token.revoke"]
    assert [action for action, *_ in shop.recorded()] == done


def test_a_part_of_a_batch_that_lands_is_recorded_alone(shop: Shop) -> None:
    batch = {"users": [named("dave"), named("alice"), named("erin")], "on_error": "continue"}
    results = shop.do("POST", "/users/batch", batch)["results"]

    created = [each["user"]["id"] for each in results if each["status"] == "created"]
    assert [user_id for _, user_id, *_ in shop.recorded()] == created


def test_keys_share_the_operators_idempotency_keys(shop: Shop) -> None:
    body = order(shop.alice.account_id, shop.bob.account_id, 5)
    first = shop.client.post("/transfers", json=body, headers=keyed(shop.headers, "rent"))
    again = shop.client.post("/transfers", json=body, headers=keyed(AS_OPERATOR, "rent"))

    assert again.json() == answer_of(first)
    assert again.headers["Idempotency-Replayed"] == "true"


def test_a_registration_is_recorded_where_it_is_the_operators_and_its_replay_as_a_token(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    monkeypatch.setenv("REGISTRATION", "operator")
    with TestClient(app) as client:
        for _ in range(2):
            answer_of(client.post("/register", json=named("alice"), headers=keyed(AS_OPERATOR, KEY)))
        actions = actions_of(client)

    assert [(each["action"], each["user_id"], each["key_id"]) for each in actions] == [
        ("user.register", 1, None),
        ("token.issue", 1, None),
    ]


def test_actions_are_found_by_what_they_concern(shop: Shop) -> None:
    client, (alice, account, _), bob = shop.client, shop.alice, shop.bob
    transfer = shop.do("POST", "/transfers", order(account, bob.account_id, 5))["id"]
    as_one = shop.headers | {"X-Request-ID": "call-17"}
    client.patch(f"/users/{alice}", json={"status": "suspended"}, headers=as_one)
    everything = actions_of(client)
    nothing: list[dict[str, Any]] = [
        {"account_id": account, "user_id": bob.user_id},
        {"request_id": "another"},
        {"account_id": 999},
    ]

    searches: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
        ({"key_id": shop.key_id}, lambda each: each["key_id"] == shop.key_id),
        ({"user_id": alice}, lambda each: each["user_id"] == alice),
        ({"account_id": account}, lambda each: each["account_id"] == account),
        ({"transfer_id": transfer}, lambda each: each["transfer_id"] == transfer),
        ({"request_id": "call-17"}, lambda each: each["action"] == "user.suspend"),
        ({"action": "transfer.deposit"}, lambda each: each["action"] == "transfer.deposit"),
        (
            {"user_id": alice, "key_id": shop.key_id, "action": "transfer.create"},
            lambda each: each["transfer_id"] == transfer,
        ),
        *((each, lambda each: False) for each in nothing),
    ]
    for filters, is_found in searches:
        expected = [each for each in everything if is_found(each)]
        assert actions_of(client, **filters) == expected, filters
        assert expected or filters in nothing
    # A word that is no action's is an error, and no empty list.
    assert client.get("/operator/actions?action=user.kill", headers=AS_OPERATOR).status_code == 422


@pytest.mark.parametrize("filters", [{}, {"user_id": 1}, {"account_id": 1}, {"action": "transfer.deposit"}])
def test_pages_have_every_action_once_newest_first(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    # So that a page looks at less than it needs.
    monkeypatch.setattr("crud.LOOKED", 3)
    for name in ("alice", "bob"):
        answer_of(client.post("/register", json=named(name)))
    for number in range(10):
        answer_of(client.post("/deposits", json=cash(1 + number % 2, 1), headers=AS_OPERATOR))
    everything = [each for each in range(10, 0, -1) if not {"user_id", "account_id"} & {*filters} or each % 2]

    seen: list[int] = []
    query: dict[str, Any] = {"limit": 2, **filters}
    for _ in range(20):
        page = client.get("/operator/actions", params=query, headers=AS_OPERATOR).json()
        seen += [each["transfer_id"] for each in page["items"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]

    assert seen == everything


NUMBERS = {
    "sqlite": "(WITH RECURSIVE a (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a WHERE n < 10000) SELECT n FROM a)",
    "postgresql": "generate_series(1, 10000) AS numbers (n)",
}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ANALYZE", "VACUUM", "SELECT 1"])
async def test_no_page_reads_much_more_than_it_may_look_at(
    shop: Shop, rows: Rows, url: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = "sqlite" if url.startswith("sqlite") else "postgresql"
    alice, bob, client = shop.alice, shop.bob, shop.client
    rows(f"""
        INSERT INTO operator_actions (action, key_id, request_id, user_id, account_id, transfer_id, created_at)
        SELECT 'transfer.deposit', {shop.key_id}, 'request-' || n, {alice.user_id}, {alice.account_id}, 1000 + n,
               '2026-11-28 00:00:00+00' FROM {NUMBERS[engine]}
    """)
    another = issue_key_of(client, "read")["id"]
    # What the planner knows: all; what autovacuum knows before it analyses; nothing.
    rows(first)
    monkeypatch.setattr("crud.LOOKED", 100)
    finders: list[dict[str, Any]] = [{}, {"request_id": "request-7"}, {"transfer_id": 1007}, {"transfer_id": 7}]
    finders += [{"user_id": each.user_id} for each in (alice, bob)]
    finders += [{"account_id": each.account_id} for each in (alice, bob)]
    finders += [{"key_id": each} for each in (shop.key_id, another)]
    for finder in finders:
        for rest in ({}, {"action": "transfer.deposit"}, {"action": "user.close"}, {"user_id": bob.user_id}):
            filters = finder | rest
            work = await work_of(url, crud.list_actions, filters, after=2**63 - 1, limit=50)
            assert work < AT_MOST[engine], filters


def test_what_users_do_costs_not_one_statement_or_column_more(shop: Shop) -> None:
    with noting_statements() as sent:
        send(shop.client, shop.alice, shop.bob, 1)
        hold(shop.client, shop.alice, shop.bob, 1)

    written = [text for text, _ in sent if "INSERT INTO" in text]
    assert len(written) == 3
    assert not any("operator" in text for text in written)
    with noting_statements() as sent:
        shop.do("POST", "/transfers/batch", {"transfers": [order(shop.alice.account_id, shop.bob.account_id, 1)] * 50})
    assert sum("operator_actions" in text for text, _ in sent) == 1
