"""Clients that take what others need (connections, memory, calls, the end): the others are served all the same."""

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.worker import UNFINISHED_LIMIT
from tests.support.http_edges import HEALTHZ, connect, post, register
from tests.support.service import Server
from tests.support.slow_clients import HALF_A_BODY, MIB, impatient_server, is_alive, read_to_the_end

pytestmark = pytest.mark.slow

ASSET = HEALTHZ.replace(b"/healthz", b"/docs/assets/swagger-ui-bundle.js")


def connect_unread(server: Server) -> socket.socket:
    """A connection that little can be sent to before its client reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return connection


def test_those_who_hold_most_unfinished_bytes_are_refused_and_not_who_sends_next(tmp_path: Path) -> None:
    almost_a_mib = post(b"x" * (MIB - 1000))[:-1]
    head, _, body = register("alice").partition(b"\r\n\r\n")
    with impatient_server(tmp_path, BODY_TIMEOUT=60) as server, ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(connect(server)).sendall(almost_a_mib)
        last = stack.enter_context(connect(server))
        last.sendall(almost_a_mib[: UNFINISHED_LIMIT - 32 * len(almost_a_mib) - 50])
        time.sleep(2)
        with connect(server) as honest:
            honest.sendall(head + b"\r\n\r\n")
            time.sleep(0.5)
            honest.sendall(body)

            assert honest.recv(2000).startswith(b"HTTP/1.1 201 ")


def test_slow_uploads_make_room_for_others_and_are_told(tmp_path: Path) -> None:
    with impatient_server(tmp_path, CONNECTION_LIMIT=20, BODY_TIMEOUT=60) as server, ExitStack() as stack:
        uploads = [stack.enter_context(connect(server)) for _ in range(20)]
        for upload in uploads:
            upload.sendall(HALF_A_BODY)
        time.sleep(3)

        assert [is_alive(server) for _ in range(5)] == [True] * 5
        for upload in uploads:
            upload.settimeout(0.1)
        told = 0
        for upload in uploads:
            try:
                told += upload.recv(2000).startswith(b"HTTP/1.1 503 ")
            except TimeoutError:
                continue
        assert 1 <= told <= 5


def test_unread_answers_make_room_for_others(tmp_path: Path) -> None:
    with impatient_server(tmp_path, CONNECTION_LIMIT=20, ANSWER_TIMEOUT=60) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect_unread(server)).sendall(ASSET * 3)
        time.sleep(3)

        assert [is_alive(server) for _ in range(5)] == [True] * 5


def test_the_system_keeps_little_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    with impatient_server(tmp_path, ANSWER_TIMEOUT=60) as server, connect_unread(server) as connection:
        connection.sendall(ASSET * 10)
        time.sleep(2)

        # Each is over 1 MB: the app hands the first to the system whole, and none is begun before it has left.
        assert server.log.count("GET /docs/assets/") == 1


def test_unread_answers_use_up_no_calls(tmp_path: Path) -> None:
    with impatient_server(tmp_path, CALL_LIMIT=5, ANSWER_TIMEOUT=60) as server, ExitStack() as stack:
        for _ in range(10):
            # What is sent behind an answer that is not read counts no more than the answer.
            stack.enter_context(connect_unread(server)).sendall(ASSET * 2)
            time.sleep(0.1)
        with connect(server) as connection:
            connection.sendall(register("alice"))

            assert connection.recv(2000).startswith(b"HTTP/1.1 201 ")


def test_clients_that_leave_amid_their_answers_leave_no_traceback(tmp_path: Path) -> None:
    with impatient_server(tmp_path) as server:
        for pause in (0.05, 0.2, 4):  # In the last, ANSWER_TIMEOUT passes.
            for _ in range(10):
                with connect_unread(server) as connection:
                    connection.sendall(ASSET * 3)
                    time.sleep(pause)
                    if pause == 4:
                        break
        with ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(connect_unread(server)).sendall(ASSET * 3)
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(20)

        assert "Application shutdown complete" in server.log
        assert "Traceback" not in server.log


def test_those_who_send_byte_by_byte_hold_up_the_end_for_a_few_seconds(tmp_path: Path) -> None:
    with impatient_server(tmp_path, BODY_TIMEOUT=60) as server, ExitStack() as stack:
        drips = [stack.enter_context(connect(server)) for _ in range(3)]
        for drip in drips:
            drip.sendall(HALF_A_BODY)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while server.process.poll() is None and time.monotonic() - began < 20:
            for drip in drips:
                try:
                    drip.send(b"x")
                except OSError:
                    continue
            time.sleep(0.2)

        assert time.monotonic() - began < 6
        assert "Application shutdown complete" in server.log


def test_a_slow_request_is_told_that_the_server_ends(tmp_path: Path) -> None:
    with impatient_server(tmp_path, BODY_TIMEOUT=60) as server, connect(server) as connection:
        connection.sendall(HALF_A_BODY)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)

        assert read_to_the_end(connection).startswith(b"HTTP/1.1 503 ")
