"""Every route, as a call of alice's things, and what it answers every kind of caller."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fastapi.routing import iter_route_contexts
from httpx2 import Response
from starlette.testclient import TestClient

from main import app
from tests.support.accounts import Headers, cash, order
from tests.support.callers import RECEIVER, Things, registered_as


class Row(NamedTuple):
    """A call of alice's things, and what it answers alice, a user who has nothing to do with it, and the operator."""

    who: str
    alice: str
    eve: str
    operator: str
    path: str
    body: Callable[[Things], Any] = lambda things: None


NO_USER = "403 user-only"
NO_OPERATOR = "403 operator-only"
NO_ACCOUNT = "404 account-not-found"
NO_TRANSFER = "404 transfer-not-found"
NO_HOLD = "404 hold-not-found"

# Of transfers and holds, alice is the recipient, who may reverse, capture and void them.
TABLE = {
    "GET /": Row("anyone", "200", "200", "200", "/"),
    "GET /docs": Row("anyone", "200", "200", "200", "/docs"),
    "GET /redoc": Row("anyone", "200", "200", "200", "/redoc"),
    "GET /docs/assets/{name}": Row("anyone", "200", "200", "200", "/docs/assets/favicon.png"),
    "GET /openapi.json": Row("anyone", "200", "200", "200", "/openapi.json"),
    "GET /healthz": Row("anyone", "200", "200", "200", "/healthz"),
    "GET /readyz": Row("anyone", "200", "200", "200", "/readyz"),
    "GET /currencies": Row("anyone", "200", "200", "200", "/currencies"),
    "POST /register": Row("anyone", "201", "201", "201", "/register", lambda has: registered_as(has["name"])),
    "GET /metrics": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/metrics"),
    "GET /me": Row("user", "200", "200", NO_USER, "/me"),
    "PATCH /me": Row("user", "200", "200", NO_USER, "/me", lambda has: {"phone_number": has["number"]}),
    "DELETE /me": Row("user", "409 balance-not-zero", "409 balance-not-zero", NO_USER, "/me"),
    "GET /tokens": Row("user", "200", "200", NO_USER, "/tokens"),
    "POST /tokens": Row("user", "201", "201", NO_USER, "/tokens", lambda has: {"name": "web"}),
    "DELETE /tokens/{id}": Row("user", "204", "404 token-not-found", NO_USER, "/tokens/{token}"),
    "GET /accounts": Row("user or operator", "200", "200", "200", "/accounts?user_id={user}"),
    "POST /accounts": Row(
        "user or operator",
        *("201", NO_OPERATOR, "201", "/accounts"),
        lambda has: {"currency": "USD", "label": has["name"], "user_id": has["user"]},
    ),
    "GET /accounts/{id}": Row("user or operator", "200", NO_ACCOUNT, "200", "/accounts/{account}"),
    "GET /accounts/{id}/entries": Row("user or operator", "200", NO_ACCOUNT, "200", "/accounts/{account}/entries"),
    "PATCH /accounts/{id}": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "200", "/accounts/{account}", lambda has: {"credit_limit": 5}
    ),
    "GET /transfers": Row("user or operator", "200", NO_OPERATOR, "200", "/transfers?user_id={user}"),
    "POST /transfers": Row(
        "user or operator",
        *("201", NO_ACCOUNT, "201", "/transfers"),
        lambda has: order(has["account"], has["eves"], 1),
    ),
    "GET /transfers/{id}": Row("user or operator", "200", NO_TRANSFER, "200", "/transfers/{transfer}"),
    "POST /transfers/{id}/reversal": Row(
        "user or operator", "201", NO_TRANSFER, "201", "/transfers/{transfer}/reversal"
    ),
    "POST /transfers/batch": Row(
        "user or operator",
        *("200", "409 batch-refused", "200", "/transfers/batch"),
        lambda has: {"transfers": [order(has["account"], has["eves"], 1)]},
    ),
    "POST /transactions": Row(
        "user or operator",
        *("201", "409 transaction-refused", "201", "/transactions"),
        lambda has: {"transfers": [order(has["account"], has["eves"], 1)]},
    ),
    "GET /holds": Row("user or operator", "200", NO_ACCOUNT, "200", "/holds?account_id={account}"),
    "POST /holds": Row(
        "user or operator", "201", NO_ACCOUNT, "201", "/holds", lambda has: order(has["account"], has["eves"], 1)
    ),
    "GET /holds/{id}": Row("user or operator", "200", NO_HOLD, "200", "/holds/{hold}"),
    "POST /holds/{id}/capture": Row("user or operator", "201", NO_HOLD, "201", "/holds/{hold}/capture"),
    "POST /holds/{id}/void": Row("user or operator", "200", NO_HOLD, "200", "/holds/{hold}/void"),
    "POST /deposits": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "201", "/deposits", lambda has: cash(has["account"], 1)
    ),
    "POST /withdrawals": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "201", "/withdrawals", lambda has: cash(has["account"], 1)
    ),
    "GET /users": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/users"),
    "POST /users/batch": Row(
        "operator",
        *(NO_OPERATOR, NO_OPERATOR, "200", "/users/batch"),
        lambda has: {"users": [registered_as(has["name"])]},
    ),
    "GET /users/{id}": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/users/{user}"),
    "PATCH /users/{id}": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "200", "/users/{user}", lambda has: {"reference": has["name"]}
    ),
    "POST /users/{id}/erasure": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/users/{former user}/erasure"),
    "GET /users/{id}/tokens": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/users/{user}/tokens"),
    "POST /users/{id}/tokens": Row("operator", NO_OPERATOR, NO_OPERATOR, "201", "/users/{user}/tokens", lambda has: {}),
    "DELETE /users/{id}/tokens": Row("operator", NO_OPERATOR, NO_OPERATOR, "204", "/users/{another user}/tokens"),
    "GET /operator/keys": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/operator/keys"),
    "POST /operator/keys": Row(
        "operator",
        *(NO_OPERATOR, NO_OPERATOR, "201", "/operator/keys"),
        lambda has: {"name": has["name"], "scopes": ["keys"]},
    ),
    "DELETE /operator/keys/{id}": Row("operator", NO_OPERATOR, NO_OPERATOR, "204", "/operator/keys/{key}"),
    "GET /operator/actions": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/operator/actions"),
    "GET /events": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/events"),
    "GET /webhooks": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/webhooks"),
    "POST /webhooks": Row("operator", NO_OPERATOR, NO_OPERATOR, "201", "/webhooks", lambda has: {"url": RECEIVER}),
    "GET /webhooks/{id}": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/webhooks/{webhook}"),
    "PATCH /webhooks/{id}": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "200", "/webhooks/{webhook}", lambda has: {"status": "paused"}
    ),
    "DELETE /webhooks/{id}": Row("operator", NO_OPERATOR, NO_OPERATOR, "204", "/webhooks/{webhook}"),
    "POST /webhooks/{id}/secret": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/webhooks/{webhook}/secret"),
    "POST /webhooks/{id}/test": Row("operator", NO_OPERATOR, NO_OPERATOR, "202", "/webhooks/{webhook}/test"),
    "GET /webhooks/{id}/deliveries": Row("operator", NO_OPERATOR, NO_OPERATOR, "200", "/webhooks/{webhook}/deliveries"),
    "POST /webhooks/{id}/deliveries/{event_id}": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "202", "/webhooks/{webhook}/deliveries/{event}"
    ),
    "DELETE /users/{id}/tokens/{token_id}": Row(
        "operator", NO_OPERATOR, NO_OPERATOR, "204", "/users/{user}/tokens/{token}"
    ),
}
"""By method and path."""

FOR_THE_OPERATOR = {route: row for route, row in TABLE.items() if "operator" in row.who}
# The console knows no tokens but at its sign-in page: what it answers who has a session, tests/console says.
TABLE |= {
    f"{method} {path}": Row("anyone", "303", "303", "303", re.sub("{.*?}", "1", path))
    for context in iter_route_contexts(app.routes)
    if (path := str(context.path).replace(":path}", "}")).startswith("/console")
    for method in context.methods or ()
}
TABLE |= {
    "GET /console/sign-in": Row("anyone", "200", "200", "200", "/console/sign-in"),
    "POST /console/sign-in": Row("anyone", "415", "415", "415", "/console/sign-in"),
    "GET /console/assets/{name}": Row("anyone", "200", "200", "200", "/console/assets/style.css"),
}

NOT_FOR_ANYONE = {route: row for route, row in TABLE.items() if row.who != "anyone"}


def scope_of(route: str) -> str:
    """The scope that a key of the operator needs for a route."""
    if "/operator/keys" in route:
        return "keys"
    if route.startswith("GET "):
        return "read"
    if "/webhooks" in route:
        return "webhooks"
    return "users" if "/users" in route or route == "POST /accounts" else "money"


def call(client: TestClient, route: str, headers: Headers, things: Things) -> Response:
    """Make the call of a route's row."""
    row, method = TABLE[route], route.partition(" ")[0]
    path = row.path.format_map(things)
    # The same id for each request, so that all answers can be compared.
    return client.request(
        method, path, json=row.body(things), headers={"X-Request-ID": "same", **headers}, follow_redirects=False
    )
