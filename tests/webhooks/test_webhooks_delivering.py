"""What the service sends to webhooks: each event that they asked for, and nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.testclient import TestClient

from tests.support.accounts import register, register_all, send
from tests.support.events import act, create_webhook, read_all
from tests.support.service import AS_OPERATOR, Rows, wait_until
from tests.support.webhook_inbox import Inbox, receiving

pytestmark = pytest.mark.usefixtures("delivering")


@pytest.fixture
def delivering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service deliver events, and look for what is due so often that tests need not wait."""
    monkeypatch.setenv("EVENTS", "true")
    monkeypatch.setattr("webhooks.deliverer.LOOK_EACH", 0.05)
    monkeypatch.setattr("webhooks.deliverer.LONGEST_PAUSE", 0.05)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with receiving() as inbox:
        yield inbox


def subscribe(client: TestClient, inbox: Inbox, path: str, *types: str, **fields: Any) -> dict[str, Any]:
    """A webhook for events of these types, or all."""
    return create_webhook(client, inbox.url + path, types=types or None, **fields)


def deliveries(client: TestClient, webhook: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/webhooks/{webhook['id']}/deliveries", params=query, headers=AS_OPERATOR)
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def count_of(rows: Rows, condition: str) -> int:
    [(count,)] = rows(f"SELECT count(*) FROM webhook_deliveries WHERE {condition}")
    return int(count)


def await_delivered(rows: Rows, webhook: dict[str, Any], number: int) -> None:
    condition = f"webhook_id = {webhook['id']} AND status = 'delivered'"
    wait_until(lambda: count_of(rows, condition) == number, f"{number} deliveries")


def make_due(rows: Rows) -> None:
    """Let the time pass until what waits is due."""
    rows("UPDATE webhook_deliveries SET due_at = '2026-01-01 00:00:00+00' WHERE status = 'waiting'")


def test_each_event_that_was_asked_for_arrives_once_signed_as_the_feed_tells_it(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    everything = subscribe(client, inbox, "/all")
    transfers = subscribe(client, inbox, "/transfers", "transfer.created")
    alice, bob = register_all(client, alice=10, bob=0)
    sent = send(client, alice, bob, 1, memo="for you")

    told = read_all(client, rows)
    await_delivered(rows, everything, len(told))

    arrived = sorted(inbox.at("/all"), key=lambda each: each.id)
    assert [each.verify(everything["secret"]) for each in arrived] == told
    assert {each.headers["content-type"] for each in arrived} == {"application/json"}
    [deposited, transferred] = sorted(inbox.at("/transfers"), key=lambda each: each.id)
    assert (deposited.event["type"], transferred.event["data"]["id"]) == ("transfer.created", sent["id"])
    assert transferred.verify(transfers["secret"])
    with pytest.raises(WebhookVerificationError):
        transferred.verify(everything["secret"])


def test_personal_data_is_sent_only_where_it_was_asked_for_and_never_after_an_erasure(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    personal = subscribe(client, inbox, "/personal", "user.registered", "transfer.created", personal_data=True)
    plain = subscribe(client, inbox, "/plain", "user.registered", "transfer.created")
    alice, carol = register_all(client, alice=10, carol=0)
    send(client, alice, carol, 1, memo="for carol")
    send(client, carol, alice, 1)
    for webhook in (personal, plain):
        await_delivered(rows, webhook, 5)
    registered = next(each for each in inbox.at("/personal") if each.event["data"].get("username") == "carol")
    assert registered.event["data"]["email"] == "someone@example.com"
    assert any(each.event["data"].get("memo") == "for carol" for each in inbox.at("/personal"))
    assert not any(word in str(inbox.at("/plain")) for word in ("carol", "example.com"))

    client.delete("/me", headers=carol.headers)
    assert client.post(f"/users/{carol.user_id}/erasure", headers=AS_OPERATOR).status_code == 200
    inbox.arrived.clear()
    act(client, personal, f"/deliveries/{registered.id}")

    wait_until(lambda: len(inbox.at("/personal")) == 1, "the event again")
    assert not any(word in str(inbox.arrived) for word in ("carol", "example.com"))


def test_what_fails_arrives_later_and_meanwhile_the_webhook_is_shown_as_failing(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    failing = subscribe(client, inbox, "/fails", "user.registered")
    refused = create_webhook(client, "http://127.0.0.1:1/", types=["user.registered"])
    inbox.statuses["/fails"] = 500
    register_all(client, alice=0, bob=0)
    wait_until(lambda: count_of(rows, "error IS NOT NULL") == 4, "the first attempts")

    assert act(client, failing, method="GET")["failing_since"] is not None
    assert {(each["status"], each["error"]) for each in deliveries(client, failing)} == {("waiting", "answered 500")}
    assert {each["error"] for each in deliveries(client, refused)} == {
        "cannot connect to port 1 of 127.0.0.1 (127.0.0.1)"
    }
    inbox.statuses["/fails"] = 204
    make_due(rows)

    await_delivered(rows, failing, 2)
    assert {each["attempts"] for each in deliveries(client, failing)} == {2}
    first, second = (each["event_id"] for each in deliveries(client, failing)[::-1])
    assert inbox.ids("/fails") == [first, first, second, second]
    assert act(client, failing, method="GET")["failing_since"] is None


def test_nothing_is_sent_while_a_webhook_is_paused_and_all_of_it_afterwards(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    paused = subscribe(client, inbox, "/paused", "user.registered")
    active = subscribe(client, inbox, "/active", "user.registered")
    act(client, paused, method="PATCH", status="paused")
    register_all(client, alice=0, bob=0)
    await_delivered(rows, active, 2)
    assert not inbox.at("/paused")
    assert [each["status"] for each in deliveries(client, paused)] == ["waiting", "waiting"]

    act(client, paused, method="PATCH", status="active")

    await_delivered(rows, paused, 2)
    assert inbox.ids("/paused") == inbox.ids("/active")


def test_a_receiver_that_is_gone_ends_its_webhook_and_the_others_are_told(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    other = subscribe(client, inbox, "/other", "webhook.ended", "user.registered")
    gone = subscribe(client, inbox, "/gone", "user.registered", "webhook.ended")
    act(client, gone, "/secret")
    inbox.statuses["/gone"] = 410
    register(client, "alice")
    await_delivered(rows, other, 2)
    register(client, "bob")
    await_delivered(rows, other, 3)

    ended = next(each for each in inbox.at("/other") if each.event["type"] == "webhook.ended")
    assert (ended.event["data"]["id"], ended.event["data"]["status"]) == (gone["id"], "ended")
    assert len(inbox.at("/gone")) == 1
    assert len(deliveries(client, gone)) == 1
    assert rows(f"SELECT secret, previous_secret FROM webhooks WHERE id = {gone['id']}") == [(None, None)]
    for path in ("/test", f"/deliveries/{ended.id}", "/secret"):
        answer = client.post(f"/webhooks/{gone['id']}{path}", headers=AS_OPERATOR)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/webhook-ended")


def test_after_a_new_secret_both_verify_for_a_day_and_then_only_the_new_one(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    webhook = subscribe(client, inbox, "/hook", "user.registered")
    secret = act(client, webhook, "/secret")["secret"]
    register(client, "alice")
    await_delivered(rows, webhook, 1)
    rows("UPDATE webhooks SET previous_secret_expires_at = '2026-01-01 00:00:00+00'")
    register(client, "bob")
    await_delivered(rows, webhook, 2)

    during, after = inbox.at("/hook")
    assert during.verify(webhook["secret"]) == during.verify(secret) == during.event
    assert after.verify(secret)
    with pytest.raises(WebhookVerificationError):
        after.verify(webhook["secret"])


def test_a_test_is_sent_to_its_webhook_only_and_whatever_that_asked_for(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    subscribe(client, inbox, "/other", "webhook.test", "user.registered")
    webhook = subscribe(client, inbox, "/hook", "hold.created")
    act(client, webhook, "/test")
    register(client, "alice")
    wait_until(lambda: len(inbox.arrived) == 2, "the test and the registration")

    [test] = inbox.at("/hook")
    assert test.verify(webhook["secret"])["type"] == "webhook.test"
    assert [each.event["type"] for each in inbox.at("/other")] == ["user.registered"]


def test_any_event_that_is_kept_can_be_sent_again_with_the_same_id(
    client: TestClient, rows: Rows, inbox: Inbox
) -> None:
    [alice] = register_all(client, alice=10)
    older = read_all(client, rows)[0]
    webhook = subscribe(client, inbox, "/hook", "user.registered")
    register(client, "bob", 10)
    await_delivered(rows, webhook, 1)
    [delivered] = inbox.at("/hook")
    not_asked = read_all(client, rows)[-1]
    inbox.arrived.clear()

    for id in (older["id"], delivered.id, not_asked["id"]):
        assert act(client, webhook, f"/deliveries/{id}")["status"] == "waiting"
    await_delivered(rows, webhook, 3)

    assert inbox.ids("/hook") == [older["id"], delivered.id, not_asked["id"]]
    assert {each.id: each.event for each in inbox.arrived}[delivered.id] == delivered.event
    answer = client.post(f"/webhooks/{webhook['id']}/deliveries/{not_asked['id'] + 1}", headers=AS_OPERATOR)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/event-not-found")
    assert alice.user_id == older["data"]["id"]


def test_receivers_that_hang_do_not_delay_another_one(client: TestClient, rows: Rows, inbox: Inbox) -> None:
    hanging = [f"/hangs/{number}" for number in range(5)]
    inbox.hanging |= {*hanging}
    for path in hanging:
        subscribe(client, inbox, path, "user.registered")
    live = subscribe(client, inbox, "/live", "user.registered")

    register_all(client, **dict.fromkeys((f"user{number}" for number in range(12)), 0))

    await_delivered(rows, live, 12)
    assert not inbox.end.is_set()
    assert {each["attempts"] for each in deliveries(client, live)} == {1}
    # Each of those that hang has as many under way as one receiver may have.
    wait_until(lambda: all(len(inbox.at(path)) == 10 for path in hanging), "those that hang")
    inbox.end.set()


def test_without_a_deliverer_the_service_sends_nothing(url: str, rows: Rows, inbox: Inbox, request: Any) -> None:
    request.getfixturevalue("monkeypatch").setenv("DELIVERER", "false")
    client: TestClient = request.getfixturevalue("client")
    webhook = subscribe(client, inbox, "/hook", "user.registered")
    register(client, "alice")
    wait_until(lambda: len(deliveries(client, webhook)) == 1, "the delivery")
    # It is numbered and due; a deliverer would have looked ten times.
    client.get("/events", params={"after": len(read_all(client, rows)), "wait": 1}, headers=AS_OPERATOR)

    assert [(each["status"], each["attempts"]) for each in deliveries(client, webhook)] == [("waiting", 0)]
    assert not inbox.arrived
