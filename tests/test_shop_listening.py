"""examples/shop/listening.py: the shop is told by webhooks, and believes, repeats and mixes up nothing."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook
from starlette.testclient import TestClient

from examples.shop import listening
from examples.shop.listening import EVENTS, LONGEST, Listener
from examples.shop.shop import Shop, open_database
from tests.support.service import AS_OPERATOR, Rows, wait_until

# The shop is what is tested here.
on_sqlite = pytest.mark.parametrize("engine", ["sqlite"])

SECRET = "whsec_" + "A" * 43 + "="
OTHER = "whsec_" + "B" * 43 + "="
VOIDED: dict[str, Any] = {
    "id": 1000,
    "type": "hold.voided",
    "data": {"id": 7, "debit_account_id": 30, "amount": 1000, "reference": "order-1"},
}


class Service(httpx2.BaseTransport):
    """The way to the service; `before_answer` is called between an order's hold and the shop's answer."""

    def __init__(self, service: TestClient) -> None:
        self.service = service
        self.before_answer: Callable[[int], None] = lambda hold_id: None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.service.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        if request.url.path == "/holds":
            self.before_answer(answer.json()["id"])
        return httpx2.Response(answer.status_code, content=answer.content)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the service as the shop's README says."""
    for name, value in {
        "CUSTOM_CURRENCIES": "CREDITS",
        "DEFAULT_CURRENCY": "CREDITS",
        "REGISTRATION": "operator",
        "EVENTS": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "shop.db")


@pytest.fixture
def way(client: TestClient) -> Service:
    return Service(client)


@pytest.fixture
def shop(way: Service, file: str) -> Iterator[Shop]:
    """A shop with a buyer, who has money, and a seller."""
    with httpx2.Client(base_url="http://savepoint", headers=AS_OPERATOR, transport=way) as savepoint:
        shop = Shop(file, savepoint)
        for name in ("anna", "ben"):
            shop.sign_up(name, f"{name}@example.com")
        shop.top_up("anna", 5000, "payment-1")
        yield shop


@pytest.fixture
def listener(file: str) -> Iterator[Listener]:
    """The shop's endpoint."""
    with Listener(file, SECRET, 0) as listener:
        thread = Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield listener
        listener.shutdown()
        thread.join()


@pytest.fixture
def webhook(client: TestClient, listener: Listener) -> None:
    """Let the service deliver to the endpoint."""
    body = {"url": url_of(listener), "types": EVENTS}
    listener.secret = client.post("/webhooks", json=body, headers=AS_OPERATOR).json()["secret"]


@pytest.fixture
def held(file: str) -> Iterator[sqlite3.Connection]:
    """The shop's database with an order whose price is held."""
    with closing(open_database(file)) as database:
        database.execute("INSERT INTO accounts VALUES ('anna', 3, 30), ('ben', 4, 40)")
        database.execute("INSERT INTO orders VALUES ('order-1', 'anna', 'ben', 1000, 30, 'held', 7)")
        yield database


def url_of(listener: Listener) -> str:
    return f"http://127.0.0.1:{listener.server_port}/savepoint"


def deliver(
    listener: Listener, event: dict[str, Any], secret: str = "", *, age: int = 0, body: Any = None, **changed: str
) -> int:
    """Send an event as Savepoint does, with another secret, so many seconds old, or changed after it was signed."""
    text, sent_at = json.dumps(event), datetime.now(UTC) - timedelta(seconds=age)
    headers = {
        "webhook-id": str(event["id"]),
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(secret or listener.secret).sign(str(event["id"]), sent_at, text),
    }
    return httpx2.post(
        url_of(listener),
        content=text if body is None else body,
        headers={name.encode(): value.encode() for name, value in {**headers, **changed}.items()},
    ).status_code


def follow(client: TestClient, number: int) -> list[dict[str, Any]]:
    """The first events of the feed that concern the shop."""
    items: list[dict[str, Any]] = []
    query: dict[str, Any] = {"types": ",".join(EVENTS), "wait": 5, "after": 0}
    while len(items) < number:
        page = client.get("/events", params=query, headers=AS_OPERATOR).json()
        items += page["items"]
        query["after"] = page["next"]
    return items


def state_of(database: sqlite3.Connection, order: str = "order-1") -> str:
    return str(database.execute("SELECT state FROM orders WHERE id = ?", (order,)).fetchone()[0])


def statuses_in(database: sqlite3.Connection) -> list[tuple[int, str]]:
    return database.execute("SELECT user_id, status FROM statuses").fetchall()


@on_sqlite
def test_what_the_operator_and_time_do_arrives_in_the_shop(
    shop: Shop, webhook: None, client: TestClient, rows: Rows
) -> None:
    for order in ("voided", "captured", "expired"):
        assert shop.buy(order, "anna", "ben", 1000) == "held"
    voided, captured, expired = (id for (id,) in shop.database.execute("SELECT hold_id FROM orders ORDER BY rowid"))

    client.post(f"/holds/{voided}/void", headers=AS_OPERATOR)
    client.post(f"/holds/{captured}/capture", headers=AS_OPERATOR)
    rows(f"UPDATE holds SET expires_at = created_at WHERE id = {expired}")
    client.patch("/users/4", json={"status": "suspended"}, headers=AS_OPERATOR)

    wait_until(lambda: state_of(shop.database, "voided") == "freed", "the void to be told")
    wait_until(lambda: state_of(shop.database, "captured") == "captured", "the capture to be told")
    wait_until(lambda: state_of(shop.database, "expired") == "expired", "the end of the hold to be told")
    wait_until(lambda: shop.buy("another", "anna", "ben", 1) == "refused", "the suspension to be told")


@on_sqlite
def test_a_hold_that_ends_before_the_shops_own_call_is_answered_ends_its_order(
    shop: Shop, webhook: None, client: TestClient, way: Service
) -> None:
    def void(hold_id: int) -> None:
        client.post(f"/holds/{hold_id}/void", headers=AS_OPERATOR)
        wait_until(lambda: state_of(shop.database) == "freed", "the void to be told")

    way.before_answer = void

    assert shop.buy("order-1", "anna", "ben", 1000) == "freed"
    assert shop.deliver("order-1") == "freed"
    assert shop.balance_of("anna") == 5000


def live(shop: Shop, client: TestClient) -> list[dict[str, Any]]:
    """Let a hold be voided and a user suspended, reopened and closed; what the feed tells of it."""
    shop.buy("order-1", "anna", "ben", 1000)
    client.post("/holds/1/void", headers=AS_OPERATOR)
    for status in ("suspended", "active", "closed"):
        client.patch("/users/4", json={"status": status}, headers=AS_OPERATOR)
    return follow(client, 4)


@on_sqlite
def test_in_any_order_twice_or_not_the_shop_ends_up_with_the_same(shop: Shop, client: TestClient) -> None:
    events = live(shop, client)
    for order in permutations(events):
        shop.database.execute("UPDATE orders SET state = 'held', hold_id = 1")
        shop.database.execute("DELETE FROM statuses")
        for event in order:
            listening.handle(shop.database, event)
            listening.handle(shop.database, order[0])

        assert (state_of(shop.database), statuses_in(shop.database)) == ("freed", [(4, "closed")])


def test_what_is_delivered_twice_is_handled_once(held: sqlite3.Connection, listener: Listener) -> None:
    assert deliver(listener, VOIDED) == 204
    assert state_of(held) == "freed"
    held.execute("UPDATE orders SET state = 'held'")

    assert deliver(listener, VOIDED) == 204

    assert state_of(held) == "held"


def test_what_savepoint_did_not_sign_is_refused_and_changes_nothing(
    held: sqlite3.Connection, listener: Listener
) -> None:
    forgeries: list[tuple[dict[str, Any], int]] = [
        ({"secret": OTHER}, 401),
        ({"age": 301}, 401),
        ({"age": -310}, 401),
        ({"body": json.dumps({**VOIDED, "type": "hold.expired"})}, 401),
        ({"body": b"\xff"}, 401),
        ({"body": b""}, 401),
        ({"body": b"x" * (LONGEST + 1)}, 413),
        ({"webhook-id": "1001"}, 401),
        ({"webhook-timestamp": "nan"}, 401),
        ({"webhook-signature": ""}, 401),
        ({"webhook-signature": "v1"}, 401),
        ({"webhook-signature": "v1,é"}, 401),
        ({"webhook-signature": "v1a,AAAA"}, 401),
    ]
    before = [*held.iterdump()]

    assert [deliver(listener, VOIDED, **forgery) for forgery, _ in forgeries] == [status for _, status in forgeries]

    assert [*held.iterdump()] == before
    assert deliver(listener, VOIDED) == 204
    assert state_of(held) == "freed"


@pytest.mark.parametrize(
    "changed", [{"id": 8}, {"debit_account_id": 40}, {"amount": 999}, {"reference": "order-2"}, {"reference": None}]
)
def test_a_hold_of_others_with_the_orders_reference_does_not_end_it(
    held: sqlite3.Connection, changed: dict[str, Any]
) -> None:
    listening.handle(held, {**VOIDED, "data": {**VOIDED["data"], **changed}})

    assert state_of(held) == "held"


def test_what_could_not_be_stored_is_not_remembered_and_comes_again(
    held: sqlite3.Connection, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(listening, "end_order", fail)
        assert deliver(listener, VOIDED) == 503
    assert state_of(held) == "held"
    assert deliver(listener, VOIDED) == 204
    assert state_of(held) == "freed"
