"""What docs/events.md shows is what happens: each type of event with its data, each call, and the programs."""

import json
import re
import sqlite3
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook
from starlette.testclient import TestClient

from tests.support.accounts import register, register_all
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, ROOT
from webhooks.envelopes import PERSONAL
from webhooks.queries import SUBJECTS
from webhooks.transactions import PATIENCE, TYPES, WAITS

GUIDE = (ROOT / "docs/events.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
CALLS = [
    call
    for language, text in BLOCKS
    if not language
    for call in re.findall(r"^([A-Z]+) (/\S+)(?: (\{.*\}))?$", text, re.MULTILINE)
]
ROWS = re.findall(r"^\| (.+?) \| (.*?) ?\| ?(.*?) ?\|$", GUIDE, re.MULTILINE)
BESIDES = {type.strip("`"): {*re.findall(r"`(\w+)`", besides)} for type, _, besides in ROWS if "." in type}
OF = {kind: ({*re.findall(r"\w+", data)}, {*re.findall(r"\w+", more)}) for kind, data, more in ROWS if kind in SUBJECTS}

# Whatever there is to be told, with the ids that it gets.
LIFE: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PATCH", "/accounts/1", {"credit_limit": 500}),
    ("POST", "/transfers", {"debit_account_id": 1, "credit_account_id": 2, "amount": 1}),
    ("POST", "/transactions", {"transfers": [{"debit_account_id": 1, "credit_account_id": 2, "amount": 1}]}),
    ("POST", "/holds", {"debit_account_id": 1, "credit_account_id": 2, "amount": 1}),
    ("POST", "/holds/1/capture", None),
    ("POST", "/holds", {"debit_account_id": 1, "credit_account_id": 2, "amount": 1}),
    ("POST", "/holds/2/void", None),
    ("POST", "/holds", {"debit_account_id": 1, "credit_account_id": 2, "amount": 1, "expires_in": 1}),
    ("POST", "/operator/keys", {"name": "support", "scopes": ["read"]}),
    ("DELETE", "/operator/keys/1", None),
    ("PATCH", "/users/3", {"email": "other@example.com"}),
    ("PATCH", "/users/3", {"status": "suspended"}),
    ("PATCH", "/users/3", {"status": "active"}),
    ("PATCH", "/users/3", {"status": "closed"}),
    ("POST", "/users/3/erasure", None),
]


def read(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    """The events from the first one on, once there is one."""
    parameters = {"after": 0, "wait": 5, "limit": 1000, **query}
    items: list[dict[str, Any]] = client.get("/events", params=parameters, headers=AS_OPERATOR).json()["items"]
    return items


def call(client: TestClient, method: str, path: str, body: Any) -> None:
    answer = client.request(method, path, json=body, headers=AS_OPERATOR)
    assert answer.status_code in (200, 201, 202, 204), f"{method} {path}: {answer.text}"


def test_the_guide_lists_every_type_with_its_data_and_its_calls_work(events: None, client: TestClient) -> None:
    for name in ("alice", "bob", "carol"):
        register(client, name)
    for method, path, body in LIFE:
        call(client, method, path, body)
    [expired] = read(client, types="hold.expired")
    for method, path, text in CALLS:
        call(client, method, path.replace("/4711", f"/{expired['id']}"), json.loads(text) if text else None)
    assert CALLS[-1] == ("DELETE", "/webhooks/1", "")
    read(client, types="webhook.ended")

    found: dict[str, set[str]] = defaultdict(set)
    for event in read(client):
        found[event["type"]] |= event["data"].keys()
    assert found == {type: OF[type.partition(".")[0]][0] | more for type, more in BESIDES.items()}
    assert [*BESIDES] == sorted(TYPES)
    assert {kind: more for kind, (_, more) in OF.items()} == {
        kind: PERSONAL.intersection(names) for kind, (_, names) in SUBJECTS.items()
    }
    [shown] = (json.loads(text) for language, text in BLOCKS if language == "json")
    [real, *_] = read(client, types=shown["type"])
    assert [*shown] == [*real]
    assert [*shown["data"]] == [*real["data"]]


class Killed(BaseException):
    """The end of a program's process."""


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_program_that_follows_the_feed_does_everything_once_though_killed_at_each_event(
    events: None, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_all(client, alice=0, bob=500, carol=0)
    read(client, types="transfer.created")
    expected = [(event["id"], event["type"]) for event in read(client)]
    met: set[int] = set()

    def answer(request: httpx2.Request) -> httpx2.Response:
        query = {**request.url.params, "wait": "0", "limit": "3"}
        page = client.get("/events", params=query, headers={"Authorization": request.headers["Authorization"]})
        if not page.json()["items"]:
            raise Killed
        return httpx2.Response(page.status_code, content=page.content)

    def do(id: int, type: str) -> None:
        program["database"].execute("INSERT INTO done VALUES (?, ?)", (id, type))
        if id not in met:
            met.add(id)
            raise Killed

    program: dict[str, Any] = {"print": do}
    start = httpx2.Client
    monkeypatch.setattr(httpx2, "Client", lambda **options: start(transport=httpx2.MockTransport(answer), **options))
    monkeypatch.setenv("SAVEPOINT_URL", "http://savepoint")
    monkeypatch.setenv("SAVEPOINT_KEY", OPERATOR_TOKEN)
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("mine.db")) as database:
        database.execute("CREATE TABLE done (id INTEGER, type TEXT)")
        for _ in range(len(expected) + 1):
            with pytest.raises(Killed):
                exec(PROGRAMS[0], program)  # noqa: S102
            program["database"].close()

        assert database.execute("SELECT * FROM done").fetchall() == expected


def test_the_receiver_of_the_guide_believes_what_is_signed_and_nothing_else() -> None:
    program: dict[str, Any] = {}
    exec(PROGRAMS[1], program)  # noqa: S102
    secret, sent_at, body = "whsec_" + "A" * 43 + "=", datetime.now(UTC), '{"id": 1}'
    signed = {
        "webhook-id": "1",
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(secret).sign("1", sent_at, body),
    }

    assert program["verify"](secret, signed, body.encode()) == {"id": 1}
    for forged in ({"webhook-id": "2"}, {"webhook-signature": "v1"}, {"webhook-timestamp": "1"}):
        assert program["verify"](secret, {**signed, **forged}, body.encode()) is None
    assert program["verify"](secret, signed, b'{"id": 2}') is None


def test_the_guide_lists_the_waits_between_attempts() -> None:
    text = " ".join(GUIDE.split())
    waits = [wait.total_seconds() for wait in WAITS]

    assert waits == [5, *(60 * each for each in (1, 5, 30)), *(3600 * each for each in (2, 5, 10, 15, 20, 20))]
    assert "after 5 seconds, 1 minute, 5 and 30 minutes, 2, 5, 10, 15, 20 and 20 hours" in text
    assert f"{len(waits) + 1} times in {PATIENCE.days} days" in text
