"""HTTP as odd, old and hostile clients write it: one request gets one answer, and nothing grows without bound."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from api.middleware import CatchUnexpected
from tests.support.http_edges import HEALTHZ, KIB, connect, peak_memory, post, register
from tests.support.service import Server, query, serving, wait_until


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('edges')}/savepoint.db"


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`uvicorn main:app` as typed."""
    with serving(database_url, tmp_path_factory.mktemp("server")) as server:
        yield server


def exchange(server: Server, *pieces: bytes, patience: float = 0.5) -> list[bytes]:
    """Send the pieces, and read until the server closes or says nothing more; its answers, and b"" where it closed."""
    received = b""
    with connect(server) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # The server has seen enough.
        while True:
            try:
                piece = connection.recv(2**16)
            except ConnectionResetError:
                piece = b""
            except TimeoutError:
                closed = False
                break
            if not piece:
                closed = True
                break
            received += piece
            connection.settimeout(patience)
    return [b"HTTP/1.1 " + answer for answer in received.split(b"HTTP/1.1 ")[1:]] + [b""] * closed


def statuses(answers: list[bytes]) -> list[int]:
    return [int(answer[9:12]) for answer in answers if answer]


def chunked(body: bytes) -> bytes:
    return (
        b"POST /register HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 20_000,
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 400_000,
        b"GET /" + b"a" * 300_000,
        b"GET /healthz?" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        chunked(b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 50_000),
        chunked(b"2;" + b"a" * 300_000),
    ],
    ids=["headers", "a long header", "an endless header", "an endless URL", "a long URL", "trailers", "an extension"],
)
def test_a_head_over_16_kib_is_refused_and_the_connection_closed(server: Server, head: bytes) -> None:
    answer, end = exchange(server, head)

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in answer
    assert b'"type":"/problems/request-header-fields-too-large"' in answer
    assert end == b""


def test_a_head_of_15_kib_is_read(server: Server) -> None:
    [answer] = exchange(server, HEALTHZ[:-2] + b"X: " + b"a" * 15 * KIB + b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_sends_its_head_for_ever_takes_no_memory(server: Server) -> None:
    before = peak_memory(server)
    for _ in range(10):
        exchange(server, HEALTHZ[:-2], *[b"a: b\r\n" * 10_000] * 40)

    assert peak_memory(server) - before < 50 * 2**20


def test_requests_that_come_in_hundreds_without_waiting_are_answered_up_to_a_limit(server: Server) -> None:
    answers = exchange(server, HEALTHZ * 500)

    assert set(statuses(answers)) == {200}
    assert 1 <= len(statuses(answers)) <= 20
    assert answers[-1] == b""


def test_sixteen_requests_that_come_together_are_answered_in_order(server: Server) -> None:
    answers = exchange(server, b"".join(register(f"pipelined{number}") for number in range(16)))

    assert statuses(answers) == [201] * 16
    assert [b'"pipelined%d"' % number in answer for number, answer in enumerate(answers)] == [True] * 16


@pytest.mark.parametrize(
    "headers",
    [
        (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAA"),
        (b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA=="),
        (b"Connection: keep-alive, Upgrade", b"Upgrade: TLS/1.0"),
        (b"Connection: Upgrade",),
        (b"Upgrade: h2c",),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_an_offer_to_upgrade_is_ignored_and_the_body_read(
    server: Server, headers: tuple[bytes, ...], pieces: int, request: pytest.FixtureRequest
) -> None:
    name = f"upgrade{abs(hash(request.node.name))}"
    head, _, body = register(name, *headers).partition(b"\r\n\r\n")
    sent = [
        [head + b"\r\n\r\n" + body],
        [head + b"\r\n\r\n", body],
        [head[:40], head[40:] + b"\r\n\r\n" + body[:9], body[9:]],
    ]

    answer, health = exchange(server, *sent[pieces - 1][:-1], sent[pieces - 1][-1] + HEALTHZ)

    assert answer.startswith(b"HTTP/1.1 201 ")
    assert health.startswith(b"HTTP/1.1 200 ")


def test_an_offer_to_upgrade_that_ends_the_connection_ends_it(server: Server) -> None:
    answer, end = exchange(server, register("upgradeclose", b"Connection: close, Upgrade", b"Upgrade: h2c") + HEALTHZ)

    assert answer.startswith(b"HTTP/1.1 201 ")
    assert end == b""


@pytest.mark.parametrize(
    "request_of_two_lengths",
    [
        post(b"{}", b"Transfer-Encoding: chunked"),
        post(b"{}", b"Content-Length: 2"),
        post(b"{}", b"Content-Length: 3"),
        chunked(b"").replace(b"chunked", b"chunked\r\nTransfer-Encoding: identity"),
        chunked(b"0\r\n\r\n").replace(b"chunked", b"xchunked"),
        chunked(b"0\r\n\r\n").replace(b": chunked", b":\r\n chunked"),
        chunked(b"0\n\n"),
        chunked(b"-2\r\n{}\r\n0\r\n\r\n"),
        post(b"{}").replace(b"Content-Length:", b"Content-Length :"),
        post(b"{}").replace(b"Content-Length: ", b"Content-Length: +"),
        post(b"{}").replace(b"Host: a", b"Host: a\r\n folded"),
        post(b"{}").replace(b"Host: a\r\n", b"Host: a\n"),
        post(b"{}").replace(b"Host: a", b"Host: a\rX: b"),
        post(b"{}").replace(b"Host: a", b"Host: a\0"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        chunked(b"2\r\n{}\r\n0\r\n\r\n").replace(b"chunked", b"gzip, chunked"),
        chunked(b"2\r\n{}\r\n0\r\n\r\n").replace(b"Host: a", b"Transfer-Encoding: gzip\r\nHost: a"),
        HEALTHZ.replace(b"Host: a\r\n", b""),
        HEALTHZ.replace(b"Host: a", b"Host: a\r\nHost: b"),
        HEALTHZ.replace(b"/healthz", b"/healthz#/docs"),
    ],
)
def test_what_two_servers_could_read_differently_is_refused_once_and_the_connection_closed(
    server: Server, request_of_two_lengths: bytes
) -> None:
    answer, end = exchange(server, request_of_two_lengths + HEALTHZ)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"type":"/problems/invalid-http"' in answer
    assert end == b""


@pytest.mark.parametrize("names", [["half"], ["halves1", "halves2", "halves3"]])
def test_a_client_that_closes_its_side_gets_its_answers(server: Server, names: list[str]) -> None:
    received = b""
    with connect(server) as connection:
        connection.sendall(b"".join(map(register, names)))
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(2**16):
            received += piece

    assert received.count(b"HTTP/1.1 201 ") == len(names)
    assert received.count(b"connection: close") == 1


def test_a_request_of_http_1_0_needs_no_host(server: Server) -> None:
    answer, _ = exchange(server, b"GET /healthz HTTP/1.0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_what_is_invalid_after_a_request_leaves_that_requests_answer_alone(server: Server) -> None:
    answer, end = exchange(server, register("before") + b"nonsense\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 201 ")
    assert end == b""


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed by the client"])
@pytest.mark.parametrize(
    "broken",
    [chunked(b"nonsense\r\n"), b"nonsense\r\n\r\n", register("broken")[:-5], HEALTHZ[:-5]],
    ids=["body", "head", "half a body", "half a head"],
)
def test_a_request_that_is_broken_costs_those_before_it_no_answer(
    server: Server, broken: bytes, is_closed: bool, number: int, request: pytest.FixtureRequest
) -> None:
    names = [f"before{abs(hash(request.node.name))}{index}" for index in range(number)]
    sent = b"".join(register(name) for name in names) + broken
    with connect(server) as connection:
        connection.sendall(sent)
        if is_closed:
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1)
        received = b""
        with suppress(TimeoutError):  # Without the end, half a request is waited for.
            while piece := connection.recv(2**16):
                received += piece

    assert received.count(b"HTTP/1.1 201 ") == number
    assert [f'"{name}"'.encode() in received for name in names] == [True] * number


def test_a_body_that_is_broken_is_refused_after_the_answers_before_it(server: Server) -> None:
    answers = exchange(server, register("whole") + chunked(b"nonsense\r\n"))

    assert statuses(answers) == [201, 400]
    assert answers[-1] == b""


def test_a_trailer_is_no_header(server: Server, database_url: str) -> None:
    body = b'{"username": "trailer", "email": "a@example.com"}'
    key = b"Idempotency-Key: 5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11\r\n"
    [answer] = exchange(server, chunked(b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, key)))

    assert answer.startswith(b"HTTP/1.1 201 ")
    assert query(database_url, "SELECT registration_key_hash FROM users WHERE username = 'trailer'") == [(None,)]


def test_healthz_does_not_wait_for_an_announced_body(server: Server) -> None:
    [answer] = exchange(server, HEALTHZ[:-2] + b"Content-Length: 5\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [(b"/transfers", 100, 401), (b"/deposits", 100_000, 401), (b"/users/batch", 100, 401), (b"/register", 2**21, 413)],
)
def test_a_body_that_will_be_refused_is_not_asked_for(server: Server, path: bytes, length: int, status: int) -> None:
    [answer, end] = exchange(server, post(b"", b"Expect: 100-continue", path=path).replace(b": 0", b": %d" % length))

    assert statuses([answer]) == [status]
    assert end == b""  # Who was not asked may send its body, or not.


def test_a_body_that_is_wanted_is_asked_for(server: Server) -> None:
    head, _, body = register("asked", b"Expect: 100-continue").partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        answer = connection.recv(1000)
        connection.sendall(HEALTHZ)

        assert answer.startswith(b"HTTP/1.1 201 ")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_request_that_the_server_refuses_has_its_id_in_the_answer(server: Server) -> None:
    named_call = HEALTHZ[:-2] + b"X-Request-ID: order-4711\r\n"
    for refused in (named_call + b"Host: b\r\n\r\n", named_call + b"X: " + b"a" * 17_000 + b"\r\n\r\n"):
        assert b"\r\nx-request-id: order-4711\r\n" in exchange(server, refused)[0]
    with connect(server) as connection:
        connection.sendall(named_call + b"\r\n")
        assert b"order-4711" in connection.recv(1000)
        connection.sendall(b"nonsense\r\n\r\n")
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{16}\r\n", answer)


def test_answers_do_not_name_the_server(server: Server) -> None:
    for request in (HEALTHZ, b"nonsense\r\n\r\n", post(b"{}")):
        assert b"server:" not in exchange(server, request)[0].lower()


def test_the_log_has_the_time_and_no_queries(server: Server) -> None:
    exchange(server, HEALTHZ.replace(b"/healthz", b"/users?email=alice@example.com"))

    wait_until(lambda: "GET /users 401 unauthenticated" in server.log, "the line of log")
    assert "alice" not in server.log
    started = server.log.index("Application startup complete")
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ ", line) for line in server.log[started:].splitlines()[1:])


async def test_a_path_writes_no_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError

    async def ignore(*_: object) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/a\nERROR: forged \x1b[31m", "headers": []}
    await CatchUnexpected(fail)(scope, ignore, ignore)  # type: ignore[arg-type]

    assert "GET unknown failed unexpectedly" in caplog.text
    assert "forged" not in caplog.text
