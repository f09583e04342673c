"""What the fast path answers is, byte for byte, what FastAPI answers."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from api.fast_path import FastPath
from tests.support.accounts import order, register_all
from tests.support.registration import named
from tests.support.service import AS_OPERATOR

JSON = "application/json"


VALID = json.dumps(named("alice")).encode()


TRANSFER = json.dumps(order(1, 2, 5)).encode()


UUID4 = "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11"


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


def answers_both_ways(client: TestClient, monkeypatch: pytest.MonkeyPatch, *request: Any, **parts: Any) -> list[Any]:
    """Status, headers and body of the answer, as the route gives it and as FastAPI gives it."""

    async def leave_to_fastapi(self: FastPath, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    responses = [client.request(*request, **parts)]
    with monkeypatch.context() as patch:
        patch.setattr(FastPath, "__call__", leave_to_fastapi)
        responses.append(client.request(*request, **parts))
    return [(each.status_code, each.headers.raw, each.content) for each in responses]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_any_body_is_answered_as_by_fastapi(client: TestClient, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    alice, _ = register_all(client, alice=100, bob=0)
    # With a key, the second answer is a replay wherever the first was a transfer: both are then asked for again.
    headers = alice.headers | {"Content-Type": JSON, "Idempotency-Key": "order-4711"}
    client.post("/transfers", content=body, headers=headers)

    for sender in (headers, {"Content-Type": JSON}, headers | {"Idempotency-Key": "ü".encode()}):
        direct, fastapi = answers_both_ways(client, monkeypatch, "POST", "/transfers", content=body, headers=sender)
        assert direct == fastapi


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/problem+json"},
        {"Content-Type": "APPLICATION/JSON"},
        {"Content-Type": f"{JSON}; charset=utf-8"},
        {"Content-Type": JSON, "Idempotency-Key": ""},
        {"Content-Type": JSON, "Idempotency-Key": "order-4711"},
        {"Content-Type": JSON, "Idempotency-Key": "00000000-0000-1000-8000-000000000000"},
        {"Content-Type": JSON, "Idempotency-Key": UUID4},
    ],
)
def test_any_header_is_answered_as_by_fastapi(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    client.post("/register", json=named("alice"))

    direct, fastapi = answers_both_ways(client, monkeypatch, "POST", "/register", content=VALID, headers=headers)

    assert direct == fastapi


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x", "Basic x", "as the operator", "as alice"])
@pytest.mark.parametrize("path", ["/me", "/readyz", "/healthz"])
def test_any_token_is_answered_as_by_fastapi(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, authorization: str | None
) -> None:
    [alice] = register_all(client, alice=0)
    known = {None: {}, "as the operator": AS_OPERATOR, "as alice": alice.headers}
    headers = known.get(authorization, {"Authorization": authorization})

    direct, fastapi = answers_both_ways(client, monkeypatch, "GET", path, headers=headers)

    assert direct == fastapi


def test_a_body_in_pieces_is_answered_as_by_fastapi(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.post("/register", json=named("alice"))

    direct, fastapi = answers_both_ways(
        client, monkeypatch, "POST", "/register", content=[VALID[:20], VALID[20:]], headers={"Content-Type": JSON}
    )

    assert direct == fastapi
    assert direct[0] == 409  # it was read: the name is taken
