"""What the fast path answers and stores is, byte for byte, what FastAPI's own way does."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url
from starlette.testclient import TestClient

from api.fast_path import find_fast_routes
from api.fast_route import FastRoute
from main import app
from tests.support.accounts import Headers, answer_of, order, register_all
from tests.support.holds import Clock, hold
from tests.support.operator import issue_key
from tests.support.registration import named
from tests.support.service import AS_OPERATOR
from tests.support.transfers import set_status

JSON = "application/json"

ID = (b"x-request-id", b"the-same-for-both")

UUID4 = "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"

TRANSFER = json.dumps(order(1, 2, 5)).encode()

BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    TRANSFER,
    TRANSFER + b" ",
    TRANSFER + b"x",
    b"\xef\xbb\xbf" + TRANSFER,
    TRANSFER.decode().encode("utf-16"),
    TRANSFER.replace(b"5", b"5.0"),
    TRANSFER.replace(b"5", b"5e0"),
    TRANSFER.replace(b"5", b"-0"),
    TRANSFER.replace(b"5", b"05"),
    TRANSFER.replace(b"5", b"true"),
    TRANSFER.replace(b"5", b'"5"'),
    TRANSFER.replace(b"5", b"NaN"),
    TRANSFER.replace(b"5", b"Infinity"),
    TRANSFER.replace(b"5", b"9" * 5000),
    TRANSFER.replace(b"5", b"9007199254740992"),
    TRANSFER[:-1] + b', "amount": 6}',
    TRANSFER[:-1] + b', "\\u0061mount" : 6}',
    TRANSFER[:-1] + b', "memo": "to: \\"amount\\": 6"}',
    TRANSFER[:-1] + b', "\\ud800": 1}',
    b"{" + b'"a": 1, ' * 200 + TRANSFER[1:],
    b"[" + b"1, " * 20_000 + b"1]",
    b'{"amount": "x", ' + TRANSFER[1:],
    TRANSFER[:-1] + b', "memo": null}',
    TRANSFER[:-1] + b', "memo": "\\ud800"}',
    TRANSFER[:-1] + b', "memo": "\xff"}',
    TRANSFER[:-1] + b', "memo": "\\u0000"}',
    TRANSFER[:-1] + b', "memo": "a\tb"}',
    TRANSFER[:-1] + b', "memo": "' + "ü".encode() + b'"}',
    TRANSFER[:-1] + b', "admin": ' + b"[" * 300 + b"]" * 300 + b"}",
    b"[" * 100_000,
]


class Request(NamedTuple):
    """A request as it is sent."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | None = None
    in_pieces: bool = False


class BothWays:
    """The service, asked on the fast path and on FastAPI's own way in turn, each time from the same state."""

    def __init__(self, client: TestClient, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client, self.monkeypatch, self.path = client, monkeypatch, str(make_url(url).database)
        monkeypatch.setattr("crud.make_token", lambda: "svp_" + "x" * 43)  # the only secret that an answer may have
        monkeypatch.setattr("api.request_ids.new_id", lambda: "the-request")
        self.callers = self._fill()
        with closing(sqlite3.connect(self.path)) as database:
            self.start = [line for line in database.iterdump() if line.startswith("INSERT")]

    def _fill(self) -> dict[str, bytes]:
        """Users of each kind, transfers, holds and used keys; the headers of the callers."""
        client = self.client
        with pytest.MonkeyPatch.context() as patch:
            secrets = iter(f"svp_{number:043}" for number in range(100))
            patch.setattr("crud.make_token", lambda: next(secrets))
            alice, bob, suspended, closed = register_all(client, alice=100, bob=50, suspended=5, closed=0)
            answer_of(client.post("/register", json=named("carol"), headers={"Idempotency-Key": UUID4}))
            _, revoked = self._issue(alice.headers), self._issue(alice.headers)
        assert client.delete(f"/tokens/{revoked['id']}", headers=alice.headers).status_code == 204
        set_status(client, suspended, "suspended")
        set_status(client, closed, "closed")
        for path in ("/transfers", "/holds"):
            used = order(alice.account_id, bob.account_id, 5)
            answer_of(client.post(path, json=used, headers=alice.headers | {"Idempotency-Key": "used"}))
        ended = hold(client, alice, bob, 1)["id"]
        answer_of(client.post(f"/holds/{ended}/capture", headers=bob.headers))
        known = {"alice": alice.headers, "bob": bob.headers, "operator": AS_OPERATOR}
        known |= {"suspended": suspended.headers, "closed": closed.headers}
        known["revoked"] = {"Authorization": f"Bearer {revoked['access_token']}"}
        known["a key"] = issue_key(client, "money")
        return {name: headers["Authorization"].encode() for name, headers in known.items()}

    def _issue(self, headers: Headers) -> dict[str, Any]:
        return answer_of(self.client.post("/tokens", json={}, headers=headers))

    def _restore(self) -> None:
        with closing(sqlite3.connect(self.path)) as database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f"DELETE FROM {name}")
            for line in self.start:
                database.execute(line)
            database.commit()

    def _ask(self, request: Request) -> tuple[int, list[tuple[bytes, bytes]], bytes, list[str]]:
        self._restore()
        body = request.body
        content = iter([body[:9], body[9:]]) if body is not None and request.in_pieces else body
        answer = self.client.request(request.method, request.path, headers=[*request.headers, ID], content=content)
        with closing(sqlite3.connect(self.path)) as database:
            stored = [line for line in database.iterdump() if line.startswith("INSERT")]
        return answer.status_code, sorted(answer.headers.raw), answer.content, stored

    def compare(self, request: Request) -> int:
        """Expect the same answer, and the same to be stored, on both ways; the status."""
        fast = self._ask(request)
        with self.monkeypatch.context() as patch:
            # With an override, every request takes FastAPI's own way.
            patch.setitem(app.dependency_overrides, BothWays, BothWays)
            patch.delattr(FastRoute, "respond")
            assert self._ask(request) == fast
        return fast[0]


@pytest.fixture
def engine() -> str:
    """What is stored differs by what the routes are given, not by the engine."""
    return "sqlite"


@pytest.fixture
def both(client: TestClient, url: str, monkeypatch: pytest.MonkeyPatch) -> BothWays:
    Clock(monkeypatch).stop()
    return BothWays(client, url, monkeypatch)


def headers_of(**named: bytes | None) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value) for name, value in named.items() if value is not None]


def test_any_body_is_answered_as_by_fastapi(both: BothWays) -> None:
    statuses = set()
    for body, caller in product(BODIES, ("alice", "nobody")):
        headers = headers_of(authorization=both.callers.get(caller), content_type=b"application/json")
        statuses.add(both.compare(Request("POST", "/transfers", headers, body, in_pieces=len(body) % 2 == 0)))

    assert statuses == {201, 400, 401, 422}


TEXTS = st.sampled_from(
    [
        *("1", "2", "3", "5", "6", "7", "999999", "0", "-1", "01", "1.0", "x", "", "1 ", "%31", "9" * 20, "Mg", "MA"),
        *("2026-01-01T00:00:00Z", "2030-01-01", "2030-01-01T00:00:00+01:00", "rent", "used", "a b", "\u0662", "ü"),
    ]
)

IDS = st.sampled_from([1, 1, 2, 2, 3])

VALUES = st.sampled_from(
    [
        *(0, -1, 5, 5.0, 1e3, 10**20, 2**53, "5", "", "x", "cap", "used", "a\tb", "\ud800", True, None),
        *([], {}, [1], {"a": "b"}),
    ]
)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "memo": st.sampled_from(["rent", None, ": , :"]),
    "reference": st.sampled_from(["order-1", None]),
    "metadata": st.sampled_from([{"cart": "c-17"}, {}, None]),
    "if_version": st.sampled_from([1, 2, 3, None]),
    "on_short": st.sampled_from(["cap", "refuse"]),
}

PARTIES = {"debit_account_id": IDS, "credit_account_id": IDS, "amount": st.sampled_from([1, 5, 50, 1000])}
PAYMENT = {"account_id": IDS, "amount": st.sampled_from([1, 5, 50])}
MORE = {name: FIELDS[name] for name in ("memo", "reference", "metadata")}

TRANSFERS = st.fixed_dictionaries(PARTIES, optional=FIELDS)

BODIES_OF: dict[str, st.SearchStrategy[Any]] = {
    "/register": st.fixed_dictionaries(
        {"username": st.sampled_from(["alice", "carol", "Dave"]), "email": st.just("someone@example.com")},
        optional={"phone_number": st.sampled_from(["+4915112345678", None])},
    ),
    "/transfers": TRANSFERS,
    "/holds": st.fixed_dictionaries(PARTIES, optional=FIELDS | {"expires_in": st.sampled_from([1, 86400])}),
    "/transactions": st.fixed_dictionaries(
        {"transfers": st.lists(TRANSFERS, min_size=1, max_size=3)},
        optional={name: FIELDS[name] for name in ("reference", "metadata")},
    ),
    "/deposits": st.fixed_dictionaries(PAYMENT, optional=MORE),
    "/withdrawals": st.fixed_dictionaries(PAYMENT, optional=MORE),
    "/holds/{id}/capture": st.fixed_dictionaries({}, optional={"amount": st.sampled_from([1, 5, 6])}),
}
"""Valid bodies, by path."""

QUERIES = [("limit", "1"), ("after", "MA"), ("after", "Mg"), ("at", "2030-01-01T00:00:00Z"), ("account_id", "1")]

DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda body: b" " + body.replace(b":", b" :\t") + b"\r\n",
    lambda body: b"\xef\xbb\xbf" + body,
    lambda body: body.decode().encode("utf-16"),
    lambda body: body + b"x",
    lambda body: body[:-1],
    lambda body: body.replace(b'"amount": ', b'"amount": 1, "amount": '),
    lambda body: body.replace(b'"amount": ', b'"\\u0061mount": 1, "amount": '),
    lambda body: body.replace(b'"email": ', b'"email": "a@example.com", "email": '),
    lambda body: body.replace(b": 5", b": 05").replace(b": 1", b": 1E0"),
    lambda body: b"[" + body + b"]",
    lambda body: b"",
]


CALLERS = ["suspended", "closed", "revoked", "nobody"]

MEDIA_TYPES = [None, b"APPLICATION/json ; charset=utf-8", b"text/plain", b"application/problem+json"]

KEYS = [b"used", b'"used"', b"new", b"", b'"', b"\xfc", b"k" * 256, UUID4.encode()]

HEADERS = [
    *((b"authorization", b"Bearer x"), (b"idempotency-key", b"second"), (b"content-type", b"text/plain")),
    *((b"cookie", b"a=b"), (b"accept", b"text/html"), (b"content-encoding", b"gzip"), (b"x-shop", b"corner")),
]

PARTS = ["caller", "scheme", "path", "query", "value", "field", "bytes", "body", "media type", "key", "header"]
"""The parts of a request that can be odd."""


@st.composite
def bodies(draw: st.DrawFn, path: str, odd: set[str]) -> bytes | None:
    """A body for this path: valid, or odd in these parts."""
    if path not in BODIES_OF:
        return draw(st.sampled_from([b"", b"{}", b"x"])) if "body" in odd else None
    if "body" in odd:
        return draw(st.sampled_from(BODIES))
    content = draw(BODIES_OF[path])
    if "value" in odd and content:
        content[draw(st.sampled_from(sorted(content)))] = draw(VALUES)
    if "field" in odd:
        content.pop(draw(st.sampled_from(["admin", *content])), None)
        content |= draw(st.sampled_from([{}, {"admin": True}]))
    body = json.dumps(content).encode()
    return draw(st.sampled_from(DAMAGES))(body) if "bytes" in odd else body


@st.composite
def requests(draw: st.DrawFn, callers: dict[str, bytes]) -> Request:
    """A request to a fast route: valid, or odd in one or two parts."""
    (method, template), route = draw(st.sampled_from(sorted(find_fast_routes(app).items(), key=lambda each: each[0])))
    template = template.replace(":row", "")
    odd = draw(st.sets(st.sampled_from(PARTS), max_size=2))
    query = [f"{name}={text}" for name, text in draw(st.sets(st.sampled_from(QUERIES), max_size=2)) if method == "GET"]
    if "query" in odd:
        names = st.sampled_from([*route.query_names, "unknown", "metadata.cart"])
        texts = TEXTS.map(quote) | TEXTS.filter(lambda text: text.isascii() and " " not in text)
        query += [f"{draw(names)}={draw(texts)}" for _ in range(draw(st.integers(1, 2)))]
    else:
        query = [each for each in query if each.partition("=")[0] in route.query_names]
    id = (draw(TEXTS.map(quote)) if "path" in odd else "") or draw(st.sampled_from(["1", "2"]))
    body = draw(bodies(template, odd))
    authorization = callers.get(
        draw(st.sampled_from(CALLERS if "caller" in odd else ["alice", "bob", "operator", "a key"]))
    )
    if "scheme" in odd and authorization is not None:
        scheme = draw(st.sampled_from([b"bearer ", b"Bearer  ", b"Basic ", b"Bearer\t"]))
        authorization = authorization.replace(b"Bearer ", scheme)
    media_type = draw(st.sampled_from(MEDIA_TYPES)) if "media type" in odd else b"application/json"
    headers = headers_of(
        authorization=authorization,
        content_type=media_type if body is not None else None,
        idempotency_key=draw(st.sampled_from(KEYS)) if "key" in odd else None,
    )
    if "header" in odd:
        headers.insert(draw(st.integers(0, len(headers))), draw(st.sampled_from(HEADERS)))
    if method == "GET" and draw(st.integers(0, 5)) == 0:
        method = "HEAD"
    path = template.replace("{id}", id)
    return Request(method, "?".join([path, "&".join(query)]) if query else path, headers, body, draw(st.booleans()))


def test_any_header_is_answered_as_by_fastapi(both: BothWays) -> None:
    alice = both.callers["alice"]
    for key, media_type in [*((key, b"application/json") for key in KEYS), *((None, each) for each in MEDIA_TYPES)]:
        for path, body in (("/transfers", TRANSFER), ("/register", json.dumps(named("carol")).encode())):
            headers = headers_of(authorization=alice, content_type=media_type, idempotency_key=key)
            both.compare(Request("POST", path, headers, body))


@pytest.mark.slow
def test_any_request_to_a_fast_route_is_answered_as_by_fastapi(both: BothWays) -> None:
    seen: list[tuple[str, int]] = []

    @given(requests(both.callers))
    @settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def compare(request: Request) -> None:
        seen.append((request.method, both.compare(request)))

    compare()
    statuses = [status for _, status in seen]
    assert not {status for status in statuses if status >= 500}
    assert {200, 201, 400, 401, 403, 404, 409, 415, 422} <= {*statuses}
    # Were hardly any valid, this would be about refusals alone.
    assert sum(status < 300 for status in statuses) > len(statuses) / 6, statuses
