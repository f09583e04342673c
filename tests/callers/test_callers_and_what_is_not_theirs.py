"""What is somebody else's and what is missing are answered the same: in status, headers and body."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from tests.support.accounts import Headers, Holder, order
from tests.support.callers import MARK, Things, World, outcome_of, shown_by, variants
from tests.support.service import Rows

MISSING = (999_999, 2**63 - 1)
NO_HEADERS: Headers = {}


class Call(NamedTuple):
    """A call by eve that names one thing which is not hers."""

    thing: str
    method: str
    path: str
    answer: str
    body: Callable[[Things], Any] = lambda has: None
    headers: Headers = NO_HEADERS


NO_ACCOUNT = "404 account-not-found"
NO_TRANSFER = "404 transfer-not-found"
NO_HOLD = "404 hold-not-found"
NO_OPERATOR = "403 operator-only"
NO_MONEY = "409 insufficient-funds"
KEY = {"Idempotency-Key": "rent"}
USED = {"Idempotency-Key": "used"}


def from_theirs(**fields: Any) -> Callable[[Things], Any]:
    """A transfer from the account that is asked about, to eve's."""
    return lambda has: order(has["account"], has["eves"], 1, **fields)


def to_theirs(**fields: Any) -> Callable[[Things], Any]:
    """A transfer from eve's account, which is empty, to the one that is asked about."""
    return lambda has: order(has["eves"], has["account"], 1, **fields)


def both(body: Callable[[Things], Any], **fields: Any) -> Callable[[Things], Any]:
    """Two transfers in one call."""
    return lambda has: {"transfers": [body(has), body(has)], **fields}


BODIES = [
    *((from_theirs(**fields), NO_ACCOUNT) for fields in ({}, {"if_version": 0}, {"on_short": "cap"}, {"memo": MARK})),
    *((to_theirs(**fields), NO_MONEY) for fields in ({}, {"if_version": 3}, {"on_short": "cap"}, {"reference": MARK})),
    (to_theirs(if_version=999), "409 version-mismatch"),
    (lambda has: order(has["account"], has["account"], 1), NO_ACCOUNT),
    (lambda has: order(has["account"], 888_888, 1), NO_ACCOUNT),
    (lambda has: order(888_888, has["account"], 1), NO_ACCOUNT),
]
"""Transfers that are refused, and why."""

CALLS = [
    *(
        Call("account", "POST", path, answer, body, headers)
        for path in ("/transfers", "/holds")
        for body, answer in BODIES
        for headers in ({}, KEY)
    ),
    *(Call("account", "POST", "/transactions", "409 transaction-refused", both(body)) for body, _ in BODIES),
    *(
        Call("account", "POST", "/transfers/batch", status, both(body, on_error=on_error))
        for body, _ in BODIES
        for on_error, status in (("rollback", "409 batch-refused"), ("continue", "200"))
    ),
    *(
        Call("account", "POST", path, "422 idempotency-key-reused", body, USED)
        for path in ("/transfers", "/holds")
        for body in (from_theirs(), to_theirs(), to_theirs(if_version=999))
    ),
    Call("account", "GET", "/accounts/{account}", NO_ACCOUNT),
    Call("account", "GET", "/accounts/{account}?at=2030-01-01T00:00:00Z", NO_ACCOUNT),
    Call("account", "GET", "/accounts/{account}?at=2000-01-01T00:00:00Z", NO_ACCOUNT),
    Call("account", "GET", "/accounts/{account}/entries", NO_ACCOUNT),
    Call("account", "GET", "/accounts/{account}/entries?limit=1&after=Mg", NO_ACCOUNT),
    Call("account", "GET", "/transfers?account_id={account}", NO_ACCOUNT),
    Call("account", "GET", f"/transfers?account_id={{account}}&reference={MARK}&metadata.of={MARK}", NO_ACCOUNT),
    Call("account", "GET", "/holds?account_id={account}", NO_ACCOUNT),
    Call("account", "GET", "/holds?account_id={account}&status=open", NO_ACCOUNT),
    Call("account", "PATCH", "/accounts/{account}", NO_OPERATOR, lambda has: {"credit_limit": 5}),
    Call("account", "POST", "/deposits", NO_OPERATOR, lambda has: {"account_id": has["account"], "amount": 1}),
    Call("account", "POST", "/withdrawals", NO_OPERATOR, lambda has: {"account_id": has["account"], "amount": 1}),
    Call("transfer", "GET", "/transfers/{transfer}", NO_TRANSFER),
    Call("transfer", "POST", "/transfers/{transfer}/reversal", NO_TRANSFER),
    Call("transfer", "POST", "/transfers/{transfer}/reversal", NO_TRANSFER, headers=KEY),
    Call("transaction", "GET", "/transfers?transaction_id={transaction}", "200"),
    Call("hold", "GET", "/transfers?hold_id={hold}", "200"),
    Call("hold", "GET", "/holds/{hold}", NO_HOLD),
    Call("hold", "POST", "/holds/{hold}/void", NO_HOLD),
    *(
        Call("hold", "POST", "/holds/{hold}/capture", NO_HOLD, body, headers)
        for body in (lambda has: None, lambda has: {"amount": 1}, lambda has: {"amount": 999})
        for headers in ({}, KEY)
    ),
    *(
        Call("transfer", "GET", f"/transfers?{filters}", "200")
        for filters in (f"reference={MARK}", f"metadata.of={MARK}", f"reference={MARK}&from=2000-01-01T00:00:00Z", "")
    ),
    Call("hold", "GET", "/holds", "200"),
    Call("hold", "GET", "/holds?status=open", "200"),
    Call("token", "DELETE", "/tokens/{token}", "404 token-not-found"),
    Call("user", "GET", "/accounts?user_id={user}", "200"),
    Call("user", "GET", "/transfers?user_id={user}", NO_OPERATOR),
    Call("user", "POST", "/accounts", NO_OPERATOR, lambda has: {"currency": "EUR", "user_id": has["user"]}),
    Call("user", "GET", "/users/{user}", NO_OPERATOR),
    Call("user", "PATCH", "/users/{user}", NO_OPERATOR, lambda has: {"status": "closed"}),
    Call("user", "POST", "/users/{user}/erasure", NO_OPERATOR),
    Call("user", "GET", "/users/{user}/tokens", NO_OPERATOR),
    Call("user", "POST", "/users/{user}/tokens", NO_OPERATOR, lambda has: {}),
    Call("user", "DELETE", "/users/{user}/tokens", NO_OPERATOR),
    Call("user", "DELETE", "/users/{user}/tokens/1", NO_OPERATOR),
    Call("token", "DELETE", "/users/1/tokens/{token}", NO_OPERATOR),
]


@pytest.fixture
def world(client: TestClient, rows: Rows) -> World:
    """Eve has nothing: with money she could try which accounts there are, since anyone may be sent some."""
    return World(client, rows, eve=0)


def pay(client: TestClient, sender: Holder, receiver: Holder, headers: Headers, path: str = "/transfers") -> None:
    """Transfer 1, or hold it."""
    body = order(sender.account_id, receiver.account_id, 1)
    assert client.post(path, json=body, headers=sender.headers | headers).status_code == 201


def ask(world: World, each: Call, headers: Headers, id: int) -> Response:
    """Make the call, about the thing with this id."""
    things = Things(world, **{each.thing: id})
    path = each.path.format_map(things)
    # The same id for each request, so that all answers can be compared.
    sent = headers | each.headers | {"X-Request-ID": "same"}
    return world.client.request(each.method, path, json=each.body(things), headers=sent)


@pytest.mark.slow
def test_what_is_not_hers_is_as_if_it_were_not_there(world: World) -> None:
    theirs, client = variants(world), world.client
    bob, eve = world.bob, world.eve
    # What bob's key did is no answer to hers; what her own did is all that her key is about.
    pay(client, bob, eve, KEY)
    pay(client, bob, eve, KEY, "/holds")
    pay(client, eve, bob, USED)
    pay(client, bob, eve, NO_HEADERS)
    pay(client, eve, bob, USED, "/holds")
    before = world.everything()

    for each in CALLS:
        answers = {id: ask(world, each, eve.headers, id) for id in (*theirs[each.thing], *MISSING)}
        assert {outcome_of(answer) for answer in answers.values()} == {each.answer}, each
        seen = {id: shown_by(answer) for id, answer in answers.items()}
        assert seen == dict.fromkeys(seen, seen[MISSING[0]]), each
        assert not any(MARK in answer.text for answer in answers.values()), each
    assert world.everything() == before
