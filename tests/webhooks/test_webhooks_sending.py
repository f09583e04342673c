"""One delivery over HTTP: signed, to the address that was checked, bounded in time and size."""

import asyncio
import logging
import socket
import struct

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.webhook_receiver import BODY, NEW, OK, OLD, Names, Receiver, outgoing
from webhooks import sending
from webhooks.sending import Outgoing, Sender


async def test_a_delivery_is_signed_with_each_secret_the_newest_first(
    sender: Sender, receiver: Receiver, target: str
) -> None:
    sent = await sender.send(outgoing(f"{target}/ä;v=1?token=a"))

    assert (sent.status, sent.error, sent.is_delivered) == (200, None, True)
    [(request, headers, body)] = receiver.requests
    assert (request, body) == ("POST /savepoint/%C3%A4;v=1?token=a HTTP/1.1", BODY)
    assert headers["Host"] == target.split("/")[2]
    assert (headers["User-Agent"], headers["Content-Type"]) == ("Savepoint/1", "application/json")
    assert headers["webhook-id"] == "7"
    for secret, signature in zip((NEW, OLD), headers["webhook-signature"].split(" "), strict=True):
        assert Webhook(secret).verify(body, headers | {"webhook-signature": signature})["id"] == 7
        assert Webhook(secret).verify(body, headers)["id"] == 7


async def test_the_host_is_sent_as_the_url_has_it(sender: Sender, receiver: Receiver, port: int, names: Names) -> None:
    names.addresses["::1"] = [["127.0.0.2"]]

    assert (await sender.send(outgoing(f"http://[::1]:{port}/"))).is_delivered
    assert receiver.requests[0][1]["Host"] == f"[::1]:{port}"


async def test_a_connection_is_used_again(sender: Sender, receiver: Receiver, target: str, names: Names) -> None:
    for _ in range(3):
        assert (await sender.send(outgoing(target))).is_delivered

    assert (len(receiver.requests), receiver.connected, names.asked) == (3, ["127.0.0.2"], ["hooks.example"])


async def test_a_proxy_of_the_environment_is_not_used(
    receiver: Receiver, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async with Sender(development=True, networks=[], user_agent="Savepoint/1") as sender:
        assert (await sender.send(outgoing(target))).is_delivered


# Answers


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("302 Found\r\nLocation: http://127.0.0.1:{}/", "answered 302; redirects are not followed"),
        ("308 Found\r\nLocation: /other", "answered 308; redirects are not followed"),
        ("410 Gone", "answered 410"),
        ("500 whsec_", "answered 500"),
        ("204 No Content", None),
        ("299", None),
    ],
)
async def test_only_2xx_is_delivered(
    sender: Sender, receiver: Receiver, target: str, status: str, error: str | None
) -> None:
    receiver.answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()

    sent = await sender.send(outgoing(target))

    assert (sent.status, sent.error, sent.is_delivered) == (int(status[:3]), error, error is None)
    assert len(receiver.requests) == 1


async def repeat(writer: asyncio.StreamWriter, start: bytes, again: bytes) -> None:
    """Send without an end, until the connection is closed."""
    writer.write(start)
    while True:
        writer.write(again)
        await writer.drain()


@pytest.mark.parametrize(
    ("framing", "again"),
    [
        (b"", b"a" * 1000),
        (b"Content-Length: 999999\r\n", b"a" * 1000),
        (b"Transfer-Encoding: chunked\r\n", b"1;%b\r\na\r\n" % (b"a" * 990)),
    ],
)
async def test_of_an_endless_body_only_the_status_counts(
    sender: Sender, receiver: Receiver, target: str, framing: bytes, again: bytes
) -> None:
    receiver.answer = lambda writer: repeat(writer, b"HTTP/1.1 200 OK\r\n%b\r\n" % framing, again)

    sent = await sender.send(outgoing(target))

    assert (sent.status, sent.error) == (200, None)
    await asyncio.wait_for(receiver.ended.wait(), 10)


async def test_a_long_body_is_not_read_to_its_end(sender: Sender, receiver: Receiver, target: str) -> None:
    receiver.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n%b" % (b"a" * 20_000)

    for _ in range(2):
        assert (await sender.send(outgoing(target))).is_delivered

    assert len(receiver.connected) == 2


@pytest.mark.parametrize("again", [b"a: b\r\n" * 99, b"a" * 1000, b"\r\n\r\nHTTP/1.1 103 Early Hints\r\na: b" * 99])
async def test_an_endless_head_is_not_read(sender: Sender, receiver: Receiver, target: str, again: bytes) -> None:
    receiver.answer = lambda writer: repeat(writer, b"HTTP/1.1 103 Early Hints\r\na: b", again)

    sent = await sender.send(outgoing(target))

    assert (sent.status, sent.error) == (None, "the head of the answer is longer than 16384 bytes")
    await asyncio.wait_for(receiver.ended.wait(), 10)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n", b"HTTP/1.1 101 OK\r\n\r\n"]
)
async def test_an_answer_that_is_not_http_is_refused(
    sender: Sender, receiver: Receiver, target: str, answer: bytes
) -> None:
    receiver.answer = answer

    sent = await sender.send(outgoing(target))

    assert (sent.status, sent.error) == (None, "the answer is not valid HTTP/1.1, or was cut off")


async def test_a_slow_answer_ends_the_delivery_and_its_connection(
    sender: Sender, receiver: Receiver, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SECONDS", 0.2)
    receiver.answer = b"HTTP/1.1 200 OK\r\n"

    sent = await sender.send(outgoing(target))

    assert (sent.status, sent.error) == (None, "no answer within 0.2 seconds")
    assert sent.milliseconds >= 200
    await asyncio.wait_for(receiver.ended.wait(), 10)


async def test_a_slow_body_ends_the_delivery_and_the_status_counts(
    sender: Sender, receiver: Receiver, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SECONDS", 0.2)
    receiver.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"

    assert (await sender.send(outgoing(target))).is_delivered
    await asyncio.wait_for(receiver.ended.wait(), 10)


async def test_a_slow_resolver_ends_the_delivery(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SECONDS", 0.2)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lambda *_, **__: asyncio.sleep(60))

    assert (await sender.send(outgoing("http://hooks.example/"))).error == "no answer within 0.2 seconds"


async def test_a_refused_and_a_broken_connection_are_told_apart(
    sender: Sender, receiver: Receiver, target: str, port: int
) -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        # Without a wait for what was sent, which resets the connection.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def close(writer: asyncio.StreamWriter) -> None:
        writer.close()

    receiver.answer = close
    assert (await sender.send(outgoing(target))).error == "hooks.example closed the connection without an answer"
    receiver.answer = reset
    assert (await sender.send(outgoing(target))).error == "the connection broke before there was an answer"
    assert (await sender.send(outgoing("http://hooks.example:1/"))).error == (
        "cannot connect to port 1 of hooks.example (127.0.0.2)"
    )


# What must not happen


async def test_a_delivery_can_be_cancelled(sender: Sender, receiver: Receiver, target: str) -> None:
    asked = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        asked.set()

    receiver.answer = never
    task = asyncio.create_task(sender.send(outgoing(target)))
    await asyncio.wait_for(asked.wait(), 10)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(receiver.ended.wait(), 10)


@pytest.mark.parametrize(
    ("secret", "body", "error"), [("whsec_a", BODY, "Error"), (NEW, b"\xff", "UnicodeDecodeError")]
)
async def test_an_unexpected_error_is_an_outcome_too(
    sender: Sender, caplog: pytest.LogCaptureFixture, secret: str, body: bytes, error: str
) -> None:
    sent = await sender.send(Outgoing("http://hooks.example/", [secret], "7", body))

    assert sent.error == f"unexpected error ({error})"
    assert caplog.messages == [f"a delivery failed unexpectedly: {error}"]


async def test_neither_logs_nor_errors_show_secrets_queries_and_bodies(
    sender: Sender, receiver: Receiver, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # Its level is higher once the service has started in this process.
    caplog.set_level(logging.DEBUG, logger="httpcore2")
    delivery = Outgoing(f"{target}?token=hidden", [NEW], "7", b'{"memo": "hidden"}')
    ways = [delivery, delivery, delivery]
    ways += [Outgoing(each, ["whsec_hidden"], "7", b"hidden") for each in ("ftp://a/?hidden", f"{target}?hidden")]
    answers = [
        OK,
        b"HTTP/1.1 500 theirs\r\nTheirs: theirs\r\nContent-Length: 6\r\n\r\ntheirs",
        b"theirs\r\n\r\n",
        OK,
        OK,
    ]

    told = []
    for each, receiver.answer in zip(ways, answers, strict=True):
        told += [repr(each), repr(await sender.send(each))]

    shown = "\n".join([*told, caplog.text])
    assert "hidden" not in shown
    assert NEW.removeprefix("whsec_") not in shown
    assert "theirs" not in "\n".join(told).lower()
    assert "httpcore2.http11" in {record.name for record in caplog.records}  # They do write at this level.
