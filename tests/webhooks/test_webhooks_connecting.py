"""To which address a delivery goes, and whose certificate it trusts."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.support.webhook_receiver import BODY, Names, Receiver, outgoing
from webhooks import sending
from webhooks.sending import Sender, Sent

LOOPBACK = ip_network("127.0.0.2/32")


@pytest.fixture
async def safe_sender(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sender]:
    """A sender as in production that trusts the certificate, and may send to 127.0.0.2."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with Sender(development=False, networks=[LOOPBACK], user_agent="Savepoint/1") as sender:
        yield sender


async def test_a_name_is_resolved_once_and_its_address_connected_to(
    safe_sender: Sender, receiver: Receiver, https_port: int, names: Names
) -> None:
    names.addresses["hooks.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    delivery = outgoing(f"https://hooks.example:{https_port}/")

    # The second one takes the open connection, to the address that was checked.
    for _ in range(2):
        sent = await safe_sender.send(delivery)
        assert (sent.status, sent.error) == (200, None)

    assert (receiver.connected, names.asked) == (["127.0.0.2"], ["hooks.example"])

    receiver.answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    assert (await safe_sender.send(delivery)).is_delivered
    sent = await safe_sender.send(delivery)

    assert sent.error == (
        "the address 127.0.0.1 of hooks.example is not public; allow its network with WEBHOOK_NETWORKS"
    )
    assert (sent.status, sent.is_delivered, receiver.connected) == (None, False, ["127.0.0.2"])


@pytest.mark.parametrize("addresses", [["127.0.0.2", "127.0.0.1"], ["8.8.8.8", "10.0.0.5"]])
async def test_a_name_with_one_forbidden_address_is_refused(
    safe_sender: Sender, receiver: Receiver, https_port: int, names: Names, addresses: list[str]
) -> None:
    names.addresses["hooks.example"] = [addresses]

    sent = await safe_sender.send(outgoing(f"https://hooks.example:{https_port}/"))

    assert sent.error is not None
    assert f"the address {addresses[1]} of hooks.example is not public" in sent.error
    assert receiver.connected == []


@pytest.mark.parametrize(
    "url", ["http://hooks.example/", "https://127.0.0.1/", "https://0x7f.1/", "https://user@hooks.example/", ""]
)
async def test_a_url_that_was_stored_is_checked_again(safe_sender: Sender, names: Names, url: str) -> None:
    sent = await safe_sender.send(outgoing(url))

    assert sent.error is not None
    assert sent.error.startswith("the URL is refused: ")
    assert names.asked == []


async def test_a_name_that_is_unknown_or_reserved_for_this_machine_is_refused(
    safe_sender: Sender, names: Names
) -> None:
    names.addresses["localhost"] = [["127.0.0.1"]]

    assert (await safe_sender.send(outgoing("https://unknown.example/"))).error == (
        "the name unknown.example cannot be resolved"
    )
    assert "127.0.0.1 of localhost is not public" in str((await safe_sender.send(outgoing("https://localhost/"))).error)


async def test_the_next_address_is_tried_if_one_does_not_accept(
    sender: Sender, receiver: Receiver, target: str, names: Names
) -> None:
    names.addresses["hooks.example"] = [["::1", "127.0.0.2"]]  # The receiver has no IPv6.

    assert (await sender.send(outgoing(target))).is_delivered


# Certificates


async def test_a_certificate_that_nobody_trusts_is_refused(receiver: Receiver, https_port: int, names: Names) -> None:
    names.addresses["hooks.example"] = [["127.0.0.2"]]

    async with Sender(development=False, networks=[LOOPBACK], user_agent="Savepoint/1") as sender:
        sent = await sender.send(outgoing(f"https://hooks.example:{https_port}/"))

    assert sent == Sent(
        None, "the certificate is not valid for hooks.example: self-signed certificate", sent.milliseconds
    )
    assert receiver.requests == []


async def test_a_certificate_of_another_name_is_refused(
    safe_sender: Sender, receiver: Receiver, https_port: int, names: Names
) -> None:
    names.addresses["other.example"] = [["127.0.0.2"]]

    sent = await safe_sender.send(outgoing(f"https://other.example:{https_port}/"))
    literal = await safe_sender.send(outgoing(f"https://127.0.0.2:{https_port}/"))

    assert str(sent.error).startswith("the certificate is not valid for other.example: Hostname mismatch")
    assert str(literal.error).startswith("the certificate is not valid for 127.0.0.2: IP address mismatch")
    assert receiver.requests == []


async def test_a_receiver_without_tls_is_refused(safe_sender: Sender, names: Names) -> None:
    names.addresses["hooks.example"] = [["127.0.0.2"]]

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.2", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sent = await safe_sender.send(outgoing(f"https://hooks.example:{port}/"))

    assert sent.error == "the TLS handshake with hooks.example failed; it must speak TLS 1.2 or 1.3"


async def test_a_slow_tls_handshake_ends_the_delivery_and_its_connection(
    safe_sender: Sender, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SECONDS", 0.2)
    names.addresses["hooks.example"] = [["127.0.0.2"]]
    received = asyncio.get_running_loop().create_future()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.2", 0) as server:
        silent = server.sockets[0].getsockname()[1]
        sent = await safe_sender.send(outgoing(f"https://hooks.example:{silent}/"))

        assert sent.error == "no answer within 0.2 seconds"
        assert BODY not in await asyncio.wait_for(received, 10)


async def test_only_a_long_answer_ends_its_connection(
    safe_sender: Sender, receiver: Receiver, https_port: int, names: Names
) -> None:
    names.addresses["hooks.example"] = [["127.0.0.2"]]

    for size in (10_000, 10_000, 20_000, 0):
        receiver.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, b"a" * size)
        assert (await safe_sender.send(outgoing(f"https://hooks.example:{https_port}/"))).is_delivered

    assert len(receiver.connected) == 2
