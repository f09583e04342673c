"""Whatever bytes come, the server reads no request out of them that a strict proxy in front would not have read."""

import asyncio
from functools import cache
from typing import Any

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from tests.support import http_reference
from tests.support.transports import RecordingTransport

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /register HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /register HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
UPGRADE = POST.replace(b"Host: a", b"Host: a\r\nConnection: upgrade\r\nUpgrade: h2c")
ASKING = POST.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue")
OLD = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0")
LAST = GET.replace(b"Host: a", b"Host: a\r\nConnection: close")
FOREIGN = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b"\x7f",
        b"\xff",
        b":",
        b";",
        b",",
        b'"',
        b"0",
        b"5",
        b"+",
        b"-",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: 18446744073709551621\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:\r\n chunked\r\n"),
    *(b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: chunked, chunked\r\n", b"Host: b\r\n", b"\r\n\r\n"),
    *(b"Connection: close\r\n", b"Upgrade: h2c\r\n"),
    *(b"0\r\n\r\n", b"10000000000000005\r\n", b"0x5\r\n", b"HEAD ", b"CONNECT ", b"HTTP/1.0", b"HTTP/2.0", GET, POST),
]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Requests, with something cut, repeated or put in, in pieces as they arrive."""
    stream = b"".join(draw(st.lists(st.sampled_from([GET, POST, CHUNKED, UPGRADE, ASKING, OLD, LAST]), max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(stream)))
        end = draw(st.integers(start, min(len(stream), start + 3)))
        stream = stream[:start] + draw(st.sampled_from([b"", *FOREIGN])) + stream[end:]
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


async def note(scope: Scope, receive: Receive, send: Send) -> None:
    """The application: note each request in the state of its connection, and answer it."""
    try:
        body = await Request(scope, receive).body()
    except ClientDisconnect:
        return
    scope["state"]["seen"].append(http_reference.Request(scope["method"].encode(), body))
    await PlainTextResponse("ok")(scope, receive, send)


@cache
def configured() -> Config:
    """uvicorn, as it is recommended."""
    config = Config(note, http="server.protocol:BoundedProtocol", lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    return config


async def exchange(pieces: list[bytes]) -> tuple[list[http_reference.Request], bytes, bool]:
    """The requests that an application is given, the server's answers, and True if it closed the connection."""
    seen: list[http_reference.Request] = []
    config, state, transport = configured(), ServerState(), RecordingTransport()
    protocol: Any = config.http_protocol_class(config=config, server_state=state, app_state={"seen": seen})  # type: ignore[call-arg]
    protocol.connection_made(transport)
    for piece in pieces:
        if transport.is_closing():
            break
        protocol.data_received(piece)
        # Until everything has run that can.
        for _ in range(60):
            await asyncio.sleep(0)
    written, is_closed = b"".join(transport.writes), transport.is_closing()
    protocol.connection_lost(None)
    while state.tasks:
        await asyncio.wait(state.tasks)
    return seen, written, is_closed


def answers_in(data: bytes, methods: list[bytes]) -> list[int]:
    """The statuses of well-formed answers, one after the other, to requests with these methods and any more."""
    statuses = []
    for method in [*methods, b"GET", b"GET"]:
        if not data:
            break
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.InformationalResponse | h11.Response | h11.Data), data
            if isinstance(event, h11.Response):
                statuses.append(event.status_code)
        data = client.trailing_data[0]
    assert data == b""
    return statuses


@settings(max_examples=300, deadline=None)
@given(streams())
@example([CHUNKED.replace(b"Host: a", b"Host: a\r\nContent-Length: 5") + GET])
@example([POST[:-5] + GET])
@example([GET + CHUNKED[:-9] + b"nonsense"])
@example([UPGRADE.replace(b" HTTP/1.1", b"HTTP/1.1")])
@example([CHUNKED.replace(b"X: y", b"Connection: close"), GET])
def test_no_request_is_read_that_a_strict_proxy_would_not_have_read(pieces: list[bytes]) -> None:
    seen, written, is_closed = asyncio.run(exchange(pieces))

    read = http_reference.requests_in(b"".join(pieces))
    assert seen == read[: len(seen)], pieces
    assert is_closed or len(seen) == len(read)
    statuses = answers_in(written, [request.method for request in seen])
    assert statuses[: len(seen)] == [200] * len(seen)
    assert statuses[len(seen) :] in ([], [400])
    assert is_closed or len(statuses) == len(seen)
