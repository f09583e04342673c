"""The client's address is the connection's, or what a trusted proxy says, and nothing else that a client writes."""

from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.service import Server, serving

pytestmark = pytest.mark.slow

BAD_TOKEN = ("Authorization", "Bearer svp_this-is-nobodys")


CLIENT = "203.0.113.1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that lets each client send one invalid token."""
    folder = tmp_path_factory.mktemp("server")
    with serving(f"sqlite:///{folder}/savepoint.db", folder, FAILED_TOKENS_PER_ADDRESS="1/day") as server:
        assert is_new(server, ("X-Forwarded-For", CLIENT))
        yield server


def is_new(server: Server, *headers: tuple[str, str], peer: str = "127.0.0.1") -> bool:
    """Whether the server takes this for a client that it has not met, by connecting from the address `peer`."""
    with closing(
        HTTPConnection(server.url.removeprefix("http://"), source_address=(peer, 0), timeout=30)
    ) as connection:
        connection.putrequest("GET", "/me")
        for name, value in (BAD_TOKEN, *headers):
            connection.putheader(name, value)
        connection.endheaders()
        status = connection.getresponse().status
    assert status in (401, 429)
    return status == 401


@pytest.mark.parametrize(
    "forwarded",
    [
        [CLIENT],
        [f"192.0.2.1, {CLIENT}"],
        [f"127.0.0.1, ::1, unknown, <script>, {CLIENT}"],
        ["192.0.2.2", CLIENT],
        [f"{CLIENT}:5678"],
        [f"::ffff:{CLIENT}"],
        [f"[::ffff:{CLIENT}]:80"],
        [f"192.0.2.3,{CLIENT}, 127.0.0.1"],  # through two proxies that are trusted
        ["192.0.2.4, " * 1000 + CLIENT],
    ],
)
def test_what_a_client_writes_before_the_proxy_s_word_does_not_count(server: Server, forwarded: list[str]) -> None:
    assert not is_new(server, *(("X-Forwarded-For", value) for value in forwarded))


def test_clients_of_a_proxy_are_told_apart(server: Server) -> None:
    assert is_new(server, ("X-Forwarded-For", "203.0.113.2"))
    assert is_new(server, ("X-Forwarded-For", "[2001:db8:0:1::1]:443"))
    assert is_new(server, ("X-Forwarded-For", "2001:db8:0:2::1"))
    assert not is_new(server, ("X-Forwarded-For", "2001:db8:0:1:ffff::2"))


def test_who_is_no_trusted_proxy_has_the_address_of_its_connection(server: Server) -> None:
    assert is_new(server, peer="127.0.0.2")
    for number in range(3):
        assert not is_new(server, ("X-Forwarded-For", f"198.51.100.{number}"), peer="127.0.0.2")
    assert not is_new(server, ("X-Forwarded-For", "127.0.0.1"), peer="127.0.0.2")


def test_other_headers_and_empty_ones_say_nothing(server: Server) -> None:
    is_new(server)  # the proxy's own address

    for name in ("Forwarded", "X-Real-IP", "X_Forwarded_For", "Client-IP", "True-Client-IP"):
        assert not is_new(server, (name, "for=198.51.100.9" if name == "Forwarded" else "198.51.100.9")), name
    for empty in ("", ",", f"{CLIENT},", ", ,"):
        assert not is_new(server, ("X-Forwarded-For", empty))


def test_names_that_are_no_address_are_one_client(server: Server) -> None:
    is_new(server, ("X-Forwarded-For", "unknown"))

    for name in ("_hidden", "999.1.1.1", "localhost", "[::1", "1.2.3.4:5:6"):
        assert not is_new(server, ("X-Forwarded-For", name)), name


def test_a_server_told_to_trust_nobody_or_a_network_does_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/savepoint.db"

    with serving(url, tmp_path, FAILED_TOKENS_PER_ADDRESS="1/day", FORWARDED_ALLOW_IPS="") as server:
        assert is_new(server)
        assert not is_new(server, ("X-Forwarded-For", CLIENT))
    with serving(url, tmp_path, FAILED_TOKENS_PER_ADDRESS="1/day", FORWARDED_ALLOW_IPS="127.0.0.0/30") as server:
        assert is_new(server, ("X-Forwarded-For", CLIENT), peer="127.0.0.2")
        assert not is_new(server, ("X-Forwarded-For", f"{CLIENT}, 127.0.0.3"))
        assert is_new(server, ("X-Forwarded-For", CLIENT), peer="127.0.0.5")
