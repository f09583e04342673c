"""Slow and hostile clients: each is closed in its time, takes little memory, and leaves the others' calls alone."""

import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest

from tests.support.http_edges import HEALTHZ, connect, peak_memory, post, register
from tests.support.service import AS_OPERATOR, Server, query, wait_until
from tests.support.slow_clients import HALF_A_BODY, MIB, impatient_server, is_alive, read_to_the_end

pytestmark = pytest.mark.slow

NO_BODY = post(b"x")[:-1]


OPENAPI = HEALTHZ.replace(b"/healthz", b"/openapi.json")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with impatient_server(tmp_path_factory.mktemp("slow")) as server:
        yield server


@pytest.mark.parametrize(
    "half", [HEALTHZ[:20], HALF_A_BODY, post(b"").replace(b": 0", b": 5")], ids=["head", "body", "no body"]
)
def test_a_request_that_does_not_come_whole_is_refused_in_time(server: Server, half: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(half)
        answer = read_to_the_end(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"type":"/problems/request-timeout"' in answer


@pytest.mark.parametrize("begun", [HEALTHZ[:-2] + b"X: ", HALF_A_BODY], ids=["head", "body"])
def test_a_request_that_comes_byte_by_byte_is_refused_in_time(server: Server, begun: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(begun)
        connection.settimeout(0.1)
        answer, deadline = b"", time.monotonic() + 20
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"a")
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("requests", [b"", HEALTHZ], ids=["before", "after"])
def test_a_connection_without_a_request_is_closed_without_an_answer(server: Server, requests: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(requests)

        assert read_to_the_end(connection).count(b"HTTP/1.1 ") == requests.count(b"GET")


def test_a_client_that_reads_no_answers_is_cut_and_takes_little_memory(server: Server) -> None:
    size = len(httpx2.get(f"{server.url}/openapi.json").content)
    before = peak_memory(server)
    with connect(server) as connection:
        connection.settimeout(1)
        sent = 0
        try:
            while sent < 5000:
                connection.sendall(OPENAPI)
                sent += 1
        except OSError:
            pass  # The server reads no more either.
        time.sleep(5)
        connection.settimeout(10)

        assert len(read_to_the_end(connection)) < sent * size
    assert peak_memory(server) - before < 20 * MIB


def test_hundreds_of_halves_of_bodies_take_a_bounded_amount_of_memory(tmp_path: Path) -> None:
    almost_a_mib = post(b"x" * (MIB - 1000))[:-1]
    with impatient_server(tmp_path, BODY_TIMEOUT=30) as server, ExitStack() as stack:
        is_alive(server)
        before = peak_memory(server)
        for _ in range(200):
            connection = stack.enter_context(connect(server))
            try:
                connection.sendall(almost_a_mib)
            except OSError:
                continue  # It was refused before it was sent.

        assert is_alive(server)
        assert peak_memory(server) - before < 160 * MIB


def test_idle_connections_make_room_for_others(tmp_path: Path) -> None:
    with impatient_server(tmp_path, CONNECTION_LIMIT=20, HEAD_TIMEOUT=60) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(server)).sendall(HEALTHZ[:20])
        # Whoever came in this second may be about to send something.
        time.sleep(3)

        assert [is_alive(server) for _ in range(5)] == [True] * 5


def test_connections_past_the_limit_are_refused_where_all_are_new(tmp_path: Path) -> None:
    with impatient_server(tmp_path, CONNECTION_LIMIT=20, BODY_TIMEOUT=60) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(server)).sendall(HALF_A_BODY)

        with connect(server) as connection:
            answer = read_to_the_end(connection)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"type":"/problems/overloaded"' in answer
        assert b"retry-after: 1" in answer


def test_calls_past_the_limit_are_refused_at_once_and_the_others_stored(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/savepoint.db"
    with impatient_server(tmp_path, CALL_LIMIT=5) as server, ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(50)]
        for number, connection in enumerate(connections):
            connection.sendall(register(f"user{number}", b"X-Request-ID: call-%d" % number))
        answers = [connection.recv(2000) for connection in connections]
        refused = [each for each in answers if each.startswith(b"HTTP/1.1 503 ")]
        assert is_alive(server)
        # A connection that was refused can be used again.
        for connection in connections:
            connection.sendall(HEALTHZ)
            assert connection.recv(2000).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: "overloaded" in server.log, "the line of log")
        time.sleep(1.5)

        assert 5 <= query(url, "SELECT count(*) FROM users")[0][0] == 50 - len(refused) < 50
        assert all(b'"type":"/problems/overloaded"' in each and b"retry-after: 1" in each for each in refused)
        assert all(b"\r\nx-request-id: call-%d\r\n" % number in each for number, each in enumerate(answers))
        assert server.log.count("overloaded") < 5
        metrics = httpx2.get(f"{server.url}/metrics", headers=AS_OPERATOR).text
        assert f'savepoint_refused_total{{reason="overloaded"}} {len(refused)}.0' in metrics


def test_bodies_that_do_not_come_use_up_no_calls(tmp_path: Path) -> None:
    with impatient_server(tmp_path, CALL_LIMIT=5, BODY_TIMEOUT=60) as server, ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(server)).sendall(HALF_A_BODY)
        with connect(server) as connection:
            connection.sendall(register("alice"))

            assert connection.recv(2000).startswith(b"HTTP/1.1 201 ")


def test_a_server_told_to_stop_waits_a_few_seconds_for_those_who_hold_it_up(tmp_path: Path) -> None:
    with (
        impatient_server(tmp_path, HEAD_TIMEOUT=60, BODY_TIMEOUT=60, ANSWER_TIMEOUT=60) as server,
        ExitStack() as stack,
    ):
        half_a_head, half_a_body = (stack.enter_context(connect(server)) for _ in range(2))
        unread = stack.enter_context(socket.socket())
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(half_a_head.getpeername())
        half_a_head.sendall(HEALTHZ[:20])
        half_a_body.sendall(HALF_A_BODY)
        unread.sendall(OPENAPI * 10)
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)

        assert read_to_the_end(half_a_body).startswith(b"HTTP/1.1 503 ")
        server.process.wait(20)
        assert "Application shutdown complete" in server.log


def test_a_slow_answer_is_not_lost_to_what_is_invalid_after_its_request(tmp_path: Path) -> None:
    with impatient_server(tmp_path) as server, closing(sqlite3.connect(tmp_path / "savepoint.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with connect(server) as connection:
            connection.sendall(register("alice") + b"nonsense\r\n\r\n")
            time.sleep(4)
            other.rollback()

            assert read_to_the_end(connection).startswith(b"HTTP/1.1 201 ")
