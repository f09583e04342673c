"""What the operator sees of webhooks and does to them: lists, limits, records, and no secrets in any of them."""

import logging

import pytest
from starlette.testclient import TestClient

from tests.support.accounts import refusal_of, register_all, walk
from tests.support.events import act, create_webhook, follow, read_all
from tests.support.operator import actions_of
from tests.support.service import AS_OPERATOR, Rows, wait_until
from webhooks import transactions

pytestmark = pytest.mark.usefixtures("events")

HIDDEN = "https://hooks.example/savepoint?token=hidden"


def test_there_are_at_most_so_many_webhooks_that_have_not_ended(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "WEBHOOK_LIMIT", 2)
    first, second = create_webhook(client), create_webhook(client)
    body = {"url": "https://hooks.example/"}
    act(client, second, method="PATCH", status="paused")

    refused = client.post("/webhooks", json=body, headers=AS_OPERATOR)
    act(client, first, method="DELETE")

    assert refusal_of(refused) == (409, "webhook-limit")
    assert client.post("/webhooks", json=body, headers=AS_OPERATOR).status_code == 201


def test_deliveries_are_listed_newest_first_in_pages_and_by_status(client: TestClient, rows: Rows) -> None:
    webhook = create_webhook(client, types=["user.registered"])
    register_all(client, alice=0, bob=0, carol=0, dora=0)
    told = [each["id"] for each in read_all(client, rows) if each["type"] == "user.registered"]
    path = f"/webhooks/{webhook['id']}/deliveries"
    rows(f"UPDATE webhook_deliveries SET status = 'delivered' WHERE event_id <> {told[1]}")

    everything = walk(client, path, AS_OPERATOR, limit=3)
    waiting = client.get(path, params={"status": "waiting"}, headers=AS_OPERATOR).json()["items"]

    assert [each["event_id"] for each in everything] == told[::-1]
    assert [each["event_id"] for each in waiting] == [told[1]]
    assert client.get("/webhooks/99/deliveries", headers=AS_OPERATOR).status_code == 404


def test_what_the_operator_does_is_recorded_and_no_secret_is_anywhere(
    client: TestClient, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    webhook = create_webhook(client, HIDDEN, types=["webhook.test"])
    new = act(client, webhook, "/secret")["secret"]
    act(client, webhook, method="PATCH", personal_data=True)
    act(client, webhook, method="PATCH", personal_data=True)
    act(client, webhook, "/test")
    wait_until(lambda: rows("SELECT count(*) FROM webhook_deliveries") == [(1,)], "the delivery")
    [delivery] = act(client, webhook, "/deliveries", method="GET")["items"]
    act(client, webhook, f"/deliveries/{delivery['event_id']}")
    act(client, webhook, method="DELETE")
    act(client, webhook, method="DELETE")

    names = ["create", "rotate", "update", "test", "resend", "end"]
    assert [(each["action"], each["details"]["webhook_id"]) for each in actions_of(client)] == [
        (f"webhook.{name}", webhook["id"]) for name in names
    ]
    listed = client.get("/webhooks", headers=AS_OPERATOR).text
    assert HIDDEN in listed
    for text in (str(actions_of(client)), str(follow(client, limit=1000)), str(delivery), caplog.text):
        assert "hidden" not in text
    for text in (listed, str(actions_of(client)), str(follow(client, limit=1000)), str(delivery), caplog.text):
        assert webhook["secret"] not in text
        assert new not in text
