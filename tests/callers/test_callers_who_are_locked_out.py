"""Whoever is suspended or closed, or whose token is revoked, reaches nothing from then on, on no connection."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from api.callers import FRESH
from tests.support.accounts import Headers, Holder, order, register_all
from tests.support.service import AS_OPERATOR, Rows, Server, query, serving

pytestmark = pytest.mark.slow


class Service(NamedTuple):
    """A server with two workers, the operator's client, and a look into the database."""

    server: Server
    operator: httpx2.Client
    rows: Rows

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.server.url.removeprefix("http://"), timeout=30)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("locked-out")
    url = f"sqlite:///{folder}/savepoint.db"
    with (
        serving(url, folder, workers=2) as server,
        httpx2.Client(base_url=server.url, headers=AS_OPERATOR) as operator,
    ):
        yield Service(server, operator, lambda sql: query(url, sql))


def revoke(operator: httpx2.Client, holder: Holder) -> None:
    assert operator.delete(f"/users/{holder.user_id}/tokens").status_code == 204


def suspend(operator: httpx2.Client, holder: Holder) -> None:
    assert operator.patch(f"/users/{holder.user_id}", json={"status": "suspended"}).status_code == 200


def close(operator: httpx2.Client, holder: Holder) -> None:
    assert operator.patch(f"/users/{holder.user_id}", json={"status": "closed"}).status_code == 200


ENDS: list[tuple[Callable[[httpx2.Client, Holder], None], tuple[int, str]]] = [
    (revoke, (401, "/problems/unauthenticated")),
    (suspend, (403, "/problems/user-not-active")),
    (close, (403, "/problems/user-not-active")),
]


@pytest.mark.parametrize(("end", "refusal"), ENDS, ids=lambda each: getattr(each, "__name__", ""))
def test_every_open_connection_is_refused_at_once(
    service: Service, end: Callable[[httpx2.Client, Holder], None], refusal: tuple[int, str]
) -> None:
    [alice] = register_all(service.operator, **{f"{end.__name__}-a": 100})
    calls = [("GET", "/me"), ("GET", f"/accounts/{alice.account_id}"), ("GET", "/tokens"), ("GET", "/holds")]
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(service.connect())) for _ in range(20)]

        def ask(connection: HTTPConnection, method: str, path: str) -> tuple[int, Any]:
            connection.request(method, path, headers=alice.headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()).get("type")

        assert {ask(each, "GET", "/me") for each in connections} == {(200, None)}
        end(service.operator, alice)
        # Each on the connection that it had, of either worker.
        seen = {ask(connection, *calls[index % len(calls)]) for index, connection in enumerate(connections)}

    assert seen == {refusal}


def begin(
    service: Service, stack: ExitStack, call: tuple[str, str, Any], headers: Headers
) -> Callable[[], HTTPResponse]:
    """Send a call but for the last byte of its body; what sends that too, and returns the answer."""
    method, path, content = call
    body = json.dumps(content).encode()
    connection = stack.enter_context(closing(service.connect()))
    connection.putrequest(method, path)
    for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders(body[:-1])

    def finish() -> HTTPResponse:
        connection.send(body[-1:])
        return connection.getresponse()

    return finish


@pytest.mark.parametrize(("end", "refusal"), ENDS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_call_whose_body_was_kept_back_is_refused_too(
    service: Service, end: Callable[[httpx2.Client, Holder], None], refusal: tuple[int, str]
) -> None:
    names = [f"{end.__name__}-{letter}" for letter in "bcd"]
    alice, carol, bob = register_all(service.operator, **dict(zip(names, (100, 100, 0), strict=True)))
    transfer = order(alice.account_id, bob.account_id, 1)
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/transfers", transfer),
        ("POST", "/holds", transfer),
        ("POST", "/transactions", {"transfers": [transfer]}),
        ("POST", "/transfers/batch", {"transfers": [transfer]}),
        ("POST", "/accounts", {"currency": "USD"}),
        ("POST", "/tokens", {"name": "for later"}),
        ("PATCH", "/me", {"email": "thief@example.com"}),
    ]
    with ExitStack() as stack:
        begun = [begin(service, stack, call, alice.headers) for call in calls]
        going_on = begin(service, stack, ("PATCH", "/me", {"email": "carol@example.com"}), carol.headers)
        time.sleep(FRESH + 0.2)
        end(service.operator, alice)
        tables = ("users", "accounts", "transfers", "holds", "access_tokens")
        before = [service.rows(f"SELECT * FROM {table}") for table in tables]

        for finish, call in zip(begun, calls, strict=True):
            answer = finish()
            assert (answer.status, json.loads(answer.read()).get("type")) == refusal, call
        assert [service.rows(f"SELECT * FROM {table}") for table in tables] == before
        assert going_on().status == 200
