"""How answers reach the connection: head and body in one write."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from main import app as savepoint
from tests.support.transports import RecordingTransport


async def exchange(app: ASGIApp, requests: str) -> list[bytes]:
    """What an application writes to the connection over which these requests come."""
    config = Config(app, http="server.protocol:BoundedProtocol", lifespan="off", log_config=None)
    config.load()
    state, transport = ServerState(), RecordingTransport()
    protocol: Any = config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]
    protocol.connection_made(transport)
    protocol.data_received(requests.replace("\n", "\r\n").encode())
    while state.tasks:
        await asyncio.wait(state.tasks)
    if protocol.timeout_keep_alive_task is not None:
        protocol.timeout_keep_alive_task.cancel()
    return transport.writes


def answering(answer: Callable[[Request], Response]) -> ASGIApp:
    """An application that reads each request and answers this."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        await answer(request)(scope, receive, send)

    return app


HELLO = answering(lambda _: PlainTextResponse("hello"))


async def test_head_and_body_are_one_write() -> None:
    [answer] = await exchange(HELLO, "GET / HTTP/1.1\nHost: a\n\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello")


async def test_an_answer_of_savepoint_is_one_write() -> None:
    [answer] = await exchange(savepoint, "GET /nowhere HTTP/1.1\nHost: a\n\n")

    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert answer.endswith(b"}")


async def test_pipelined_requests_are_answered_in_order() -> None:
    paths = answering(lambda request: PlainTextResponse(request.url.path))

    first, second = await exchange(paths, "GET /1 HTTP/1.1\nHost: a\n\nGET /2 HTTP/1.1\nHost: a\n\n")

    assert first.endswith(b"/1")
    assert second.endswith(b"/2")


@pytest.mark.parametrize(
    ("method", "answer"),
    [("HEAD", PlainTextResponse("hello")), ("GET", Response(status_code=204)), ("GET", Response(status_code=304))],
)
async def test_an_answer_without_a_body_does_not_wait_for_one(method: str, answer: Response) -> None:
    [head] = await exchange(answering(lambda _: answer), f"{method} / HTTP/1.1\nHost: a\n\n")

    assert head.startswith(f"HTTP/1.1 {answer.status_code} ".encode())
    assert head.endswith(b"\r\n\r\n")


async def test_all_is_written_before_the_connection_closes() -> None:
    answer, end = await exchange(HELLO, "GET / HTTP/1.1\nHost: a\nConnection: close\n\n")

    assert answer.endswith(b"hello")
    assert end == b""


async def test_later_pieces_are_written_as_they_come() -> None:
    async def pieces() -> AsyncIterator[str]:
        for piece in ("one", "two", "three"):
            yield piece

    first, *later = await exchange(answering(lambda _: StreamingResponse(pieces())), "GET / HTTP/1.1\nHost: a\n\n")

    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"one" in first
    assert b"two" in later[0]
    assert b"three" in later[1]


async def test_who_waits_to_be_asked_for_the_body_is_asked_at_once() -> None:
    asked, answer = await exchange(HELLO, "POST / HTTP/1.1\nHost: a\nExpect: 100-continue\nContent-Length: 2\n\nhi")

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.endswith(b"hello")


async def test_a_head_whose_body_failed_is_written_before_the_connection_closes() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        raise RuntimeError("no body")

    head, end = await exchange(fail, "GET / HTTP/1.1\nHost: a\n\n")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert end == b""
