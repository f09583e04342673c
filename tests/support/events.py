"""Helpers of the tests of events."""

from typing import Any

from httpx2 import Client

from tests.support.accounts import answer_of
from tests.support.service import AS_OPERATOR, Rows


def follow(client: Client, after: int | None = None, **parameters: Any) -> dict[str, Any]:
    """A page of the feed, from the beginning or after an event."""
    position = {} if after is None else {"after": after}
    answer: dict[str, Any] = client.get("/events", params={**position, **parameters}, headers=AS_OPERATOR).json()
    return answer


def read_all(client: Client, rows: Rows, after: int = 0) -> list[dict[str, Any]]:
    """All events that are stored now, as the feed tells them, once they have their numbers."""
    [(number,)] = rows("SELECT count(*) FROM events")
    found: list[dict[str, Any]] = []
    position = 0
    while len(found) < number:
        page = follow(client, position, wait=10, limit=1000)
        assert page["items"], f"{number - len(found)} events have no numbers after 10 seconds"
        found += page["items"]
        position = page["next"]
    return [each for each in found if each["id"] > after]


def create_webhook(client: Client, url: str = "https://hooks.example/savepoint", **fields: Any) -> dict[str, Any]:
    """A webhook, with its secret."""
    return answer_of(client.post("/webhooks", json={"url": url, **fields}, headers=AS_OPERATOR))
