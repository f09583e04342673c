"""Helpers of the tests of the operator's keys and actions."""

from itertools import count
from typing import Any

from httpx2 import Client

from tests.support.accounts import Headers, answer_of
from tests.support.service import AS_OPERATOR

SCOPES = ("read", "users", "money", "keys", "webhooks")

NUMBERS = count(1)


def issue_key_of(client: Client, *scopes: str, headers: Headers = AS_OPERATOR, **fields: Any) -> dict[str, Any]:
    """A new key with these scopes, issued with OPERATOR_TOKEN unless another caller is named."""
    body = {"name": f"key {next(NUMBERS)}", "scopes": scopes, **fields}
    return answer_of(client.post("/operator/keys", json=body, headers=headers))


def issue_key(client: Client, *scopes: str) -> Headers:
    """The header that has a new key with these scopes."""
    return bearing(issue_key_of(client, *scopes))


def bearing(key: dict[str, Any]) -> Headers:
    """The header that has this key."""
    return {"Authorization": f"Bearer {key['secret']}"}


def actions_of(client: Client, **filters: Any) -> list[dict[str, Any]]:
    """What the operator did, oldest first."""
    page = client.get("/operator/actions", params={"limit": 200, **filters}, headers=AS_OPERATOR).json()
    items: list[dict[str, Any]] = page["items"]
    return items[::-1]
