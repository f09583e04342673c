"""Helpers of the tests of events."""

import json
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
    number = len(stored(rows))
    found: list[dict[str, Any]] = []
    position = 0
    while len(found) < number:
        page = follow(client, position, wait=10, limit=1000)
        assert page["items"], f"{number - len(found)} events have no numbers after 10 seconds"
        found += page["items"]
        position = page["next"]
    return [each for each in found if each["id"] > after]


def stored(rows: Rows, after: int = 0) -> list[tuple[str, int]]:
    """Type and subject of each event that is stored, numbered or not, but for those of the oldest rows."""
    found = rows(f"SELECT type, subject_ids FROM events WHERE id > {after} ORDER BY id")
    lists = [(type, json.loads(ids) if isinstance(ids, str) else ids) for type, ids in found]
    return [(type, id) for type, ids in lists for id in ids]


INSERT = """
    INSERT INTO events (type, subject_ids, size, created_at)
    VALUES ('transfer.created', '[{id}]', 1, '2026-11-28 12:00:00+00')
"""
"""Stores an event, as a transaction that does something."""


def create_webhook(client: Client, url: str = "https://hooks.example/savepoint", **fields: Any) -> dict[str, Any]:
    """A webhook, with its secret."""
    return answer_of(client.post("/webhooks", json={"url": url, **fields}, headers=AS_OPERATOR))


def act(client: Client, webhook: dict[str, Any], path: str = "", method: str = "POST", **body: Any) -> Any:
    """What the operator is answered who does something to a webhook."""
    answer = client.request(method, f"/webhooks/{webhook['id']}{path}", json=body or None, headers=AS_OPERATOR)
    assert answer.status_code < 300, answer.text
    return answer.json() if answer.content else None
