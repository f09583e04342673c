"""Forms of HTTP that servers could read differently: refused once, or one request, and the next is another one."""

import socket
from collections.abc import Iterator

import pytest

from tests.support.http_edges import HEALTHZ, connect
from tests.support.service import Server, serving
from tests.support.slow_clients import read_to_the_end

LAST = HEALTHZ.replace(b"Host: a", b"Host: a\r\nConnection: close")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("forms")
    with serving(f"sqlite:///{folder}/savepoint.db", folder) as server:
        yield server


def statuses(server: Server, form: bytes) -> list[int]:
    """The answers to this and to a request after it, until the server closes the connection."""
    with connect(server) as connection:
        try:
            connection.sendall(form)
            connection.sendall(LAST)
        except OSError:
            pass  # The server has seen enough.
        return [int(answer[:3]) for answer in read_to_the_end(connection).split(b"HTTP/1.1 ")[1:]]


def get(head: bytes, line: bytes = b"GET /healthz HTTP/1.1") -> bytes:
    return b"%b\r\n%b\r\n\r\n" % (line, head)


def post(head: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    line = b"POST /register HTTP/%b\r\nHost: a\r\nContent-Type: application/json\r\n" % version
    return b"%b%b\r\n\r\n%b" % (line, head, body)


def chunked(body: bytes, coding: bytes = b"chunked") -> bytes:
    return post(b"Transfer-Encoding: " + coding, body)


WHOLE = b"2\r\n{}\r\n0\r\n\r\n"

REFUSED = {
    "a fragment": get(b"Host: a", b"GET /healthz#x HTTP/1.1"),
    **{f"Content-Length: {value!r}": post(b"Content-Length:" + value, b"{}") for value in (
        *(b" 2, 2", b" 2, 3", b" 2 2", b"", b" 0x2", b" -2", b" 1_0", b" 2.0", b"\x0b2", b" 18446744073709551618"),
        *(" ٢".encode(), b" 2;", b' "2"'),
    )},
    **{f"Transfer-Encoding: {value!r}": chunked(WHOLE, value) for value in (
        *(b"chunked, chunked", b"chunked;q=1", b'"chunked"', b"\x0bchunked", b"chunked\x0c", b"chunked,", b""),
        *(b"identity", b"identity, chunked", b"chunked, identity", b"chunked\r\nTransfer-Encoding: chunked"),
        *(b"chunked\r\nContent-Length: 2", b"chunked\r\n ", b"chunked\n"),
    )},
    "Transfer-Encoding and a space": post(b"Transfer-Encoding : chunked", WHOLE),
    "Transfer-Encoding and a NUL": post(b"Transfer-Encoding\0: chunked", WHOLE),
    "Transfer-Encoding behind a bare LF": post(b"X: y\nTransfer-Encoding: chunked", WHOLE),
    "both in HTTP/1.0": post(b"Transfer-Encoding: chunked\r\nContent-Length: 2", WHOLE, b"1.0"),
    **{f"chunk {size!r}": chunked(size + b"{}\r\n0\r\n\r\n") for size in (
        *(b"10000000000000002\r\n", b"0x2\r\n", b"+2\r\n", b" 2\r\n", b"\r\n", b"2g\r\n", b"0_2\r\n", b"2\n", b"2\r"),
        *(b"2;a\rb\r\n", b"2;a\nb\r\n", b"2;a\0\r\n", b'2;a="\r\n', b"-2\r\n", b"2 ;a\r\n", b"2,2\r\n"),
    )},
    **{f"chunk's end {end!r}": chunked(b"2\r\n{}" + end) for end in (
        *(b"x\r\n0\r\n\r\n", b"\n0\r\n\r\n", b"0\r\n\r\n", b"xx0\r\n\r\n", b"\r\n0\r\n\n", b"\r\n0\n\r\n"),
    )},
    **{f"trailer {trailer!r}": chunked(b"2\r\n{}\r\n0\r\n%b\r\n\r\n" % trailer) for trailer in (
        *(b"Content-Length: 50", b"Transfer-Encoding: chunked", b"no colon", b"a: b\r\n c", b"a: b\n", b": b"),
    )},
    **{f"line {line!r}": get(b"Host: a", line) for line in (
        *(b" GET /healthz HTTP/1.1", b"get /healthz HTTP/1.1", b"BREW /healthz HTTP/1.1", b"G@T /healthz HTTP/1.1"),
        *(b"GET /healthz HTTP/1.2", b"GET /healthz HTTP/2.0", b"GET /healthz HTTP/0.9", b"GET /healthz HTTP/11"),
        *(b"GET /healthz HTTP/1.10", b"GET /healthz", b"GET /healthzHTTP/1.1", b"GET /healthz http/1.1"),
        *(b"GET\t/healthz\tHTTP/1.1", b"GET /healthz HTTP/1.1 ", b"GET /health z HTTP/1.1", b"GET  HTTP/1.1"),
        *(b"GET /healthz\0 HTTP/1.1", b"GET /healthz\x01 HTTP/1.1", b"GET /healthz\xff HTTP/1.1", b"GET /a\r HTTP/1.1"),
        *(b"GET healthz HTTP/1.1", b"GET a:80 HTTP/1.1", b"GET http:///healthz HTTP/1.1", b"\x16\x03\x01\x02\0\x01"),
        *(b"CONNECT a:80 HTTP/1.1", b"GET javascript:alert(1) HTTP/1.1", b"HTTP/1.1 200 OK", b"QUERY"),
    )},
    **{f"Host: {host!r}": get(b"Host: " + host) for host in (b"a b", b"a, b", b"u@a", b"a/b", b"a\\b", b"\xe9")},
    **{f"head {head!r}": get(b"Host: a\r\n" + head) for head in (
        *(b": x", b"a\x01: x", b"a\xe9: x", b"a(: x", b"nocolon", b"X: y\r\n z", b"X: y\r\n\tz", b"X: \x7f"),
        *(b"X: \x01", b"X: \0", b"X: a\rb", b"X: a\r", b"X : y", b" X: y"),
    )},
    "a fold first": get(b" X: y\r\nHost: a"),
    "lines that end with LF": HEALTHZ.replace(b"\r\n", b"\n"),
    "a head that ends with LF": HEALTHZ[:-2] + b"\n",
}  # fmt: skip
"""What is no HTTP/1.1 as RFC 9112 has it, or could be read in two ways."""

READ = {
    "a length with a zero": (post(b"Content-Length: 02", b"{}"), 422),
    "a length and a tab": (post(b"Content-Length: 2\t", b"{}"), 422),
    "an underscore in a name": (post(b"Transfer_Encoding: chunked\r\nContent-Length: 2", b"{}"), 422),
    "a coding in capitals": (chunked(WHOLE, b"CHUNKED"), 422),
    "a size with zeros": (chunked(b"0000002\r\n{}\r\n000\r\n\r\n"), 422),
    "extensions": (chunked(b'2;a=b;c="d;e"\r\n{}\r\n0;f\r\n\r\n'), 422),
    "a trailer that is a header elsewhere": (chunked(b"2\r\n{}\r\n0\r\nHost: b\r\nExpect: 100-continue\r\n\r\n"), 422),
    "an empty line before": (b"\r\n\r\n" + HEALTHZ, 200),
    "a body of GET that looks like a request": (get(b"Host: a\r\nContent-Length: %d" % len(HEALTHZ)) + HEALTHZ, 200),
    "a body of DELETE": (get(b"Host: a\r\nContent-Length: 5", b"DELETE /me HTTP/1.1") + b"GET /", 401),
    "another expectation": (post(b"Expect: 200-ok\r\nContent-Length: 2", b"{}"), 422),
    "an offer to upgrade with chunks": (chunked(WHOLE, b"chunked\r\nConnection: upgrade\r\nUpgrade: h2c"), 422),
    "TRACE": (get(b"Host: a", b"TRACE /healthz HTTP/1.1"), 405),
    "a method of WebDAV": (get(b"Host: a", b"MKCOL /healthz HTTP/1.1"), 405),
    "OPTIONS *": (get(b"Host: a", b"OPTIONS * HTTP/1.1"), 404),
    "another host in the target": (get(b"Host: a", b"GET http://u:p@b/healthz HTTP/1.1"), 200),
    "an address as host": (get(b"Host: [::1]:80"), 200),
    "an empty host": (get(b"Host:"), 200),
    "letters of Latin-1 in a value": (get(b"Host: a\r\nX: \xe9\xff"), 200),
    "two thousand headers": (get(b"Host: a" + b"\r\na: b" * 2000), 200),
}  # fmt: skip
"""What is one request, with the status of its answer."""

CLOSING = {
    "HTTP/1.0": (get(b"X: y", b"GET /healthz HTTP/1.0"), 200),
    "HTTP/1.0 with chunks": (chunked(WHOLE).replace(b"HTTP/1.1", b"HTTP/1.0"), 422),
    "HTTP/1.0 without a length": (post(b"X: y", b"", b"1.0"), 422),
    "Connection: close, and what else it names": (get(b"Host: a\r\nConnection: close, Transfer-Encoding"), 200),
    "Connection: close and Upgrade": (get(b"Host: a\r\nConnection: upgrade, close\r\nUpgrade: h2c"), 200),
    "Connection: close in a trailer": (chunked(b"2\r\n{}\r\n0\r\nConnection: close\r\n\r\n"), 422),
}  # fmt: skip
"""What is one request, the last of its connection."""


@pytest.mark.parametrize("form", REFUSED.values(), ids=REFUSED)
def test_what_is_no_http_is_refused_once_and_nothing_after_it_is_read(server: Server, form: bytes) -> None:
    assert statuses(server, form) == [400]


@pytest.mark.parametrize(("form", "status"), READ.values(), ids=READ)
def test_what_is_one_request_is_answered_once_and_the_next_after_it(server: Server, form: bytes, status: int) -> None:
    assert statuses(server, form) == [status, 200]


@pytest.mark.parametrize(("form", "status"), CLOSING.values(), ids=CLOSING)
def test_what_ends_its_connection_is_answered_and_nothing_after_it_is_read(
    server: Server, form: bytes, status: int
) -> None:
    assert statuses(server, form) == [status]


def test_a_trailer_that_comes_after_the_answer_ends_the_connection_too(server: Server) -> None:
    head = b"POST /deposits HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head)
        assert connection.recv(2000).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"0\r\nConnection: close\r\n\r\n" + LAST)

        assert read_to_the_end(connection) == b""


def test_a_size_that_no_number_holds_is_no_request_and_no_answer_of_another(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(chunked(b"ffffffffffffffff\r\n{}\r\n0\r\n\r\n") + LAST)
        connection.shutdown(socket.SHUT_WR)

        assert read_to_the_end(connection).count(b"HTTP/1.1 ") <= 1
