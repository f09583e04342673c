"""Webhooks, their deliveries and events in the console: what is shown, and what can be done, by whom, and once."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any, NamedTuple

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from console.actions import ACTIONS
from main import app
from tests.support.accounts import register_all, send
from tests.support.console import Console, hidden, location, words
from tests.support.events import create_webhook
from tests.support.holds import hold
from tests.support.operator import actions_of, issue_key_of
from tests.support.service import AS_OPERATOR, Rows

SQLITE = pytest.mark.parametrize("engine", ["sqlite"])
URL = "https://shop.example/hooks"

pytestmark = pytest.mark.usefixtures("events")


def read_events(client: TestClient, rows: Rows) -> list[dict[str, Any]]:
    """All events, once they are numbered."""
    [[number]] = rows("SELECT sum(size) FROM events")
    found: list[dict[str, Any]] = []
    while len(found) < number:
        after = {"after": found[-1]["id"]} if found else {}
        found += client.get("/events", params={"wait": 5, **after}, headers=AS_OPERATOR).json()["items"]
    return found


class Twin(NamedTuple):
    """A webhook, and an event that was sent to it."""

    webhook: int
    event: int


@pytest.fixture
def twins(client: TestClient, rows: Rows) -> list[Twin]:
    """A webhook that the API changes, and one that the console does; a test of each arrived, and failed."""
    twins = [create_webhook(client, URL, types=["user.suspended"])["id"] for _ in range(2)]
    for id in twins:
        assert client.post(f"/webhooks/{id}/test", headers=AS_OPERATOR).status_code == 202
    events = [each for each in read_events(client, rows) if each["type"] == "webhook.test"]
    rows("UPDATE webhook_deliveries SET status = 'failed', attempts = 11, error = 'It answered <b>500'")
    return [Twin(each["data"]["id"], each["id"]) for each in events]


def state_of(rows: Rows, twin: Twin) -> list[Any]:
    """All that is stored of a twin, but for ids, times and secrets."""
    its = f"webhook_id = {twin.webhook}"
    return [
        rows(
            "SELECT url, status, types, failing_since IS NULL, secret IS NULL, previous_secret IS NULL "
            f"FROM webhooks WHERE id = {twin.webhook}"
        ),
        rows(f"SELECT status, attempts FROM webhook_deliveries WHERE {its} AND event_id = {twin.event}"),
        rows(f"SELECT type FROM events WHERE CAST(subject_ids AS text) = '[{twin.webhook}]' ORDER BY id"),
    ]


class Case(NamedTuple):
    """An action: its path, the same call of the API, and what the page says."""

    path: str
    call: Callable[[TestClient, Twin], Response]
    says: str


def call(method: str, path: str, **body: Any) -> Callable[[TestClient, Twin], Response]:
    """A call of the operator's; {webhook} and {event} in its path are the twin's."""

    def send_it(client: TestClient, twin: Twin) -> Response:
        return client.request(method, path.format_map(twin._asdict()), json=body or None, headers=AS_OPERATOR)

    return send_it


PATH = "/webhooks/{webhook}"
AGAIN = "/webhooks/{webhook}/deliveries/{event}"
CASES = {
    "pause": Case(f"{PATH}/pause", call("PATCH", PATH, status="paused"), f"Nothing more is sent to {URL} until"),
    "resume": Case(f"{PATH}/resume", call("PATCH", PATH, status="active"), f"Events are sent to {URL} again"),
    "test": Case(f"{PATH}/test", call("POST", f"{PATH}/test"), f"An event webhook.test is sent to {URL}, and to no"),
    "end": Case(f"{PATH}/end", call("DELETE", PATH), f"Nothing more is sent to {URL}, for good"),
    "send-again": Case(f"{AGAIN}/send-again", call("POST", AGAIN), f"webhook.test, is sent to {URL} again"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_action_on_a_webhook_does_what_the_call_of_the_api_does_once(
    client: TestClient, rows: Rows, twins: list[Twin], name: str
) -> None:
    case, (first, second) = CASES[name], twins
    if name == "resume":
        for twin in twins:
            assert CASES["pause"].call(client, twin).status_code == 200
    before = state_of(rows, second)
    assert before == state_of(rows, first)
    console, path = Console(client), case.path.format_map(second._asdict())

    page = console.review(path)
    assert case.says in words(page)
    assert state_of(rows, second) == before
    answer = console.confirm(path, page)

    assert case.call(client, first).status_code in (200, 202, 204)
    after = state_of(rows, second)
    assert after == state_of(rows, first) != before
    assert location(answer) == f"/console/webhooks/{second.webhook}?done={name}"
    [done] = [each.done for each in ACTIONS if each.name == name]
    assert done in words(console.get(location(answer).removeprefix("/console")))
    assert console.confirm(path, page).status_code in (303, 409)
    assert state_of(rows, second) == after


def test_each_action_on_webhooks_is_tested() -> None:
    assert sorted([*CASES, "create-webhook", "new-secret"]) == sorted(
        each.name for each in ACTIONS if each.scope == "webhooks"
    )


def secret_on(page: Response) -> str:
    assert page.status_code == 200, words(page)
    return page.text.partition('readonly value="')[2].partition('"')[0]


def test_a_webhook_is_created_once_and_each_secret_shown_once(client: TestClient, rows: Rows) -> None:
    console, typed = Console(client), {"url": "https://SHOP.example:443/hooks", "types": "user.closed, user.suspended"}
    page = console.review("/create-webhook", **typed, personal_data="yes")
    assert f"What happens from now on is sent to {URL}, signed. Events: user.closed, user.suspended." in words(page)
    assert "Personal data: names, addresses, memos and metadata are sent as well." in words(page)

    created = console.confirm("/create-webhook", page)

    first = secret_on(created)
    assert rows("SELECT url, personal_data, secret FROM webhooks") == [(URL, True, first)]
    # A second click, or a reload of the page with the secret.
    again = console.confirm("/create-webhook", page)
    assert (again.status_code, "or it was sent twice" in words(again)) == (409, True)
    rotation = console.review("/webhooks/1/new-secret")
    rotated = console.confirm("/webhooks/1/new-secret", rotation)
    second = secret_on(rotated)
    assert "The secret before it signs as well until" in words(rotated)
    assert console.confirm("/webhooks/1/new-secret", rotation).status_code == 409
    assert rows("SELECT secret, previous_secret FROM webhooks") == [(second, first)]
    assert "the secret before the present one stops signing at once" in words(console.get("/webhooks/1/new-secret"))
    for path in ("/webhooks", "/webhooks/1", "/events", "/actions", "/webhooks/1/new-secret", "/create-webhook"):
        assert console.get(path).status_code == 200
        assert not {first, second} & set(console.get(path).text.replace('"', " ").split())
    done = [each["action"] for each in actions_of(client)]
    assert done == ["webhook.create", "webhook.rotate"]


def test_two_clicks_at_once_on_a_new_secret_make_one(client: TestClient, rows: Rows) -> None:
    webhook = create_webhook(client)
    console = Console(client)
    page = console.review("/webhooks/1/new-secret")
    with ThreadPoolExecutor() as threads:
        answers = [*threads.map(lambda _: console.confirm("/webhooks/1/new-secret", page), range(4))]

    assert sorted(each.status_code for each in answers) == [200, 409, 409, 409]
    assert rows("SELECT previous_secret FROM webhooks") == [(webhook["secret"],)]
    # Nor does who has seen that it is new, until it may be in use.
    again = console.do("/webhooks/1/new-secret")
    assert (again.status_code, "less than a minute ago" in words(again)) == (409, True)


@SQLITE
@pytest.mark.parametrize(
    ("typed", "error"),
    [
        ({"url": ""}, "URL: This field is required."),
        ({"url": "http://shop.example/"}, "URL: Write a URL that begins with https://."),
        ({"url": "https://10.0.0.1/"}, "URL: The address 10.0.0.1 is not public"),
        ({"url": URL, "types": "user.closed;user"}, "Types of events: 'user.closed;user' is no type of event"),
        ({"url": URL, "types": ","}, "Types of events: '' is no type of event"),
        ({"url": URL, "personal_data": ""}, "With personal data: This field is required."),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_beside_its_field(
    client: TestClient, rows: Rows, typed: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(client)
    monkeypatch.setattr(app.state.operations.settings, "environment", "production")

    answer = console.review("/create-webhook", **{"types": "", "personal_data": "no", **typed})

    assert answer.status_code == 422
    assert error in words(answer).replace(" :", ":")
    assert rows("SELECT count(*) FROM webhooks") == [(0,)]


def test_pages_show_how_webhooks_and_their_deliveries_do(client: TestClient, rows: Rows, twins: list[Twin]) -> None:
    console, (failing, other) = Console(client), twins
    page = f"/webhooks/{failing.webhook}"
    assert "Events are sent to it as they happen." in words(console.get(page))
    assert "webhook.test" in words(console.get(f"{page}?status=failed"))
    assert "failed It answered <b>500 11 attempts – Send again" in words(console.get(page))
    assert "<b>" not in console.get(page).text
    assert "None is so now" in words(console.get(f"{page}?status=waiting"))
    its = f"WHERE webhook_id = {failing.webhook}"
    rows(f"UPDATE webhook_deliveries SET status = 'waiting', due_at = '2030-01-02 03:04:05.000000' {its}")
    rows(f"UPDATE webhooks SET failing_since = '2026-01-02 03:04:05.000000' WHERE id = {failing.webhook}")
    rows(f"UPDATE webhooks SET status = 'paused' WHERE id = {other.webhook}")

    shown = words(console.get("/webhooks"))
    assert f"{URL} user.suspended active failing since 2 Jan 2026, 03:04:05 1" in shown
    assert f"Webhook {other.webhook} {URL} user.suspended paused 0" in shown
    assert "Webhooks : 1 active, 1 paused, 1 delivery waits." in words(console.get())
    assert "next attempt 2 Jan 2030, 03:04:05" in words(console.get(page))
    assert "Nothing has arrived since 2 Jan 2026, 03:04:05" in words(console.get(page))
    assert "Paused by the operator" in words(console.get(f"/webhooks/{other.webhook}"))
    rows(f"UPDATE webhooks SET status = 'paused' WHERE id = {failing.webhook}")
    paused = words(console.get(page))
    assert "Paused: nothing has arrived since 2 Jan 2026, 03:04:05" in paused
    assert "next attempt" not in paused
    for wrong in ("/webhooks/9", f"{page}?status=x", f"{page}/deliveries/{2**63 - 1}/send-again", "/webhooks/9/test"):
        assert console.get(wrong).status_code == 404, wrong


def test_events_are_listed_newest_first_with_links_to_what_they_are_about(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    send(client, alice, bob, 1, memo="Secret memo")
    hold(client, alice, bob, 5)
    types = [each["type"] for each in read_events(client, rows)]
    console = Console(client)

    page = console.get("/events")

    assert re.findall(r"<code>([a-z.]+)</code>", page.text) == types[::-1]
    for path in ("/holds/1", "/transfers/2", f"/users/{alice.user_id}"):
        assert f'href="/console{path}"' in page.text
    assert "Secret memo" not in page.text
    found = console.get("/events?type=user.registered").text
    assert ("hold.created</code>" in found, "user.registered</code>" in found) == (False, True)
    assert "None of this type" in words(console.get("/events?type=user.erased"))
    assert console.get("/events?type=user").status_code == 404


@SQLITE
@pytest.mark.parametrize("query", ["", "type=user.registered&"])
def test_the_list_of_events_goes_on_where_the_page_before_ended(
    client: TestClient, rows: Rows, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhooks.transactions.LOOKED", 7)
    register_all(client, **{f"user{number:02}": 1 for number in range(30)})
    sought = [each["id"] for each in read_events(client, rows) if not query or each["type"] == "user.registered"]
    console, path = Console(client), f"/events?{query}"
    found: list[int] = []

    while path:
        page = console.get(path).text
        found += map(int, re.findall(r"number ([0-9]+)<", page))
        more = re.search('href="/console([^"]*)" rel="next"', page)
        path = unescape(more[1]) if more else ""

    assert found == sought[::-1]


@SQLITE
def test_with_the_scope_read_webhooks_are_only_seen(client: TestClient, rows: Rows, twins: list[Twin]) -> None:
    path, event = f"/webhooks/{twins[0].webhook}", twins[0].event
    paths = ["/create-webhook", f"{path}/deliveries/{event}/send-again"]
    paths += [f"{path}/{name}" for name in ("pause", "new-secret", "test", "end")]
    for scopes, is_allowed in ((("read", "users", "money", "keys"), False), (("read", "webhooks"), True)):
        console = Console(client, issue_key_of(client, *scopes)["secret"])
        pages = console.get("/webhooks").text + console.get(path).text
        assert pages.count(URL) >= 2
        for each in paths:
            assert (f'href="/console{each}"' in pages) == is_allowed, each
            assert console.get(each).status_code == (200 if is_allowed else 403), each
        sent = {**hidden(console.get("/sign-out")), "key": "console-" + "x" * 22, "seen": "", "step": "do"}
        token = console.get().text.partition('name="form_token" value="')[2].partition('"')[0]
        answer = console.post(f"{path}/end", **{**sent, "form_token": token})
        assert answer.status_code == (303 if is_allowed else 403)
        assert rows(f"SELECT status FROM webhooks WHERE id = {twins[0].webhook}") == [
            ("ended" if is_allowed else "active",)
        ]


@SQLITE
def test_a_webhook_that_ended_is_left_alone(client: TestClient, twins: list[Twin]) -> None:
    console, path = Console(client), f"/webhooks/{twins[1].webhook}"
    location(console.do(f"{path}/end"))

    shown = console.get(path)

    assert "Ended: nothing more is sent to it, and its secrets were deleted." in words(shown)
    for name in ("pause", "resume", "new-secret", "test", "end", f"deliveries/{twins[1].event}/send-again"):
        assert f"{path}/{name}" not in shown.text
        refused = console.get(f"{path}/{name}")
        assert (refused.status_code, "This webhook has ended." in words(refused)) == (409, True), name


@SQLITE
def test_the_51st_webhook_is_refused_with_what_was_typed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.transactions.WEBHOOK_LIMIT", 0)

    answer = Console(client).do("/create-webhook", url=URL, types="", personal_data="no")

    assert (answer.status_code, "the most that can be" in words(answer), f'value="{URL}"' in answer.text) == (
        *(409, True, True),
    )


@SQLITE
def test_without_events_pages_say_how_to_turn_them_on(client: TestClient, rows: Rows, twins: list[Twin]) -> None:
    console, path = Console(client), f"/webhooks/{twins[0].webhook}"
    needs = ["/create-webhook", f"{path}/test", f"{path}/deliveries/{twins[0].event}/send-again"]
    ready = [console.review("/create-webhook", url=URL, types="", personal_data="no"), *map(console.review, needs[1:])]
    tables = ("webhooks", "webhook_deliveries", "events")
    before = [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    app.state.operations.settings.events = False

    for shown in (console.get(page) for page in ("/events", "/webhooks", path)):
        assert "Events are off" in words(shown)
        assert "set EVENTS=true and restart the service" in words(shown)
        assert all(f'href="/console{each}"' not in shown.text for each in needs)
    for each, page in zip(needs, ready, strict=True):
        for refused in (console.get(each), console.confirm(each, page)):
            assert (refused.status_code, "This server stores no events." in words(refused)) == (409, True), each
    assert before == [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    assert "2 active, 0 paused" in words(console.get())
    location(console.do(f"{path}/end"))
    client.delete(f"/webhooks/{twins[1].webhook}", headers=AS_OPERATOR)
    assert "Webhooks" not in words(console.get())


@SQLITE
def test_the_dashboard_needs_no_tables_of_webhooks(client: TestClient, rows: Rows) -> None:
    console = Console(client)
    rows("ALTER TABLE webhooks RENAME TO away")

    assert "Schema differs" in words(console.get())
