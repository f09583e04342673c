"""One signed delivery over HTTP, to an address that was checked. Knows nothing of the database.

The headers are those of Standard Webhooks (https://www.standardwebhooks.com).
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import urlsplit

import httpcore2
from pydantic_core import PydanticCustomError
from standardwebhooks.webhooks import Webhook

from webhooks.urls import Network, check_url, is_allowed

logger = logging.getLogger(__name__)

SECONDS = 15
CONNECT_SECONDS = 4
ADDRESSES = 3
"""How many addresses of a name are tried: together they take less than SECONDS."""
# Node and uvicorn close a connection that was idle for 5 seconds; one that was about to be closed loses a delivery.
IDLE_SECONDS = 4
LONGEST_ANSWER = 16 * 1024
"""Bytes of an answer that are read: head, body and whatever frames them."""


class _Undeliverable(Exception):
    """The delivery failed; the text says why."""


@dataclass(frozen=True)
class Outgoing:
    """A delivery to send. `secrets` are `whsec_…`, the newest first; `body` is JSON."""

    # Receivers put tokens into queries.
    url: str = field(repr=False)
    secrets: Sequence[str] = field(repr=False)
    id: str
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Sent:
    """The outcome of one attempt: a status if there was an answer, an error unless it was 2xx."""

    status: int | None
    error: str | None
    milliseconds: int

    @property
    def is_delivered(self) -> bool:
        """True for an answer of 2xx."""
        return self.error is None


class Sender:
    """Sends deliveries; keeps connections open for the next ones.

    Outside development it sends over https, and to public addresses and those in `networks` only.
    """

    def __init__(self, *, development: bool, networks: Sequence[Network], user_agent: str) -> None:
        self._development = development
        self._networks = networks
        self._user_agent = user_agent
        # It takes no proxy from the environment, and follows no redirect.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpcore2.default_ssl_context(),
            # The deliverer bounds how many are under way to each receiver. A bound for all of them would let those that
            # hang use up the connections of the others.
            max_connections=None,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_CheckedNetwork(None if development else networks),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def send(self, delivery: Outgoing) -> Sent:
        """Send once, in at most SECONDS. Raises nothing but CancelledError."""
        started = time.monotonic()
        status, error = None, None
        try:
            async with asyncio.timeout(SECONDS):
                url = check_url(delivery.url, development=self._development, networks=self._networks)
                # httpcore2 would read the URL in a way of its own, and leave out what follows a semicolon.
                _, _, host, target = url.split("/", 3)
                parts = urlsplit(url)
                checked = httpcore2.URL(
                    scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target=f"/{target}"
                )
                headers = self._headers(delivery, host)
                async with self._pool.stream("POST", checked, headers=headers, content=delivery.body) as response:
                    status = response.status
                    # The connection can be used again once the answer was read.
                    async for _ in response.aiter_stream():
                        pass
        except Exception as failure:
            # The status was the answer, whatever became of its body.
            error = None if status else _explain(failure)
        if status and not 200 <= status < 300:
            error = f"answered {status}; redirects are not followed" if 300 <= status < 400 else f"answered {status}"
        return Sent(status, error, round((time.monotonic() - started) * 1000))

    def _headers(self, delivery: Outgoing, host: str) -> dict[str | bytes, str | bytes]:
        now, text = datetime.now(UTC), delivery.body.decode()
        return {
            "Host": host,
            "User-Agent": self._user_agent,
            "Content-Type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(Webhook(each).sign(delivery.id, now, text) for each in delivery.secrets),
        }


def _explain(failure: Exception) -> str:
    """Return what went wrong, without anything that the receiver sent."""
    match failure:
        case _Undeliverable():
            return str(failure)
        case PydanticCustomError():
            return f"the URL is refused: {failure.message()}"
        case TimeoutError():
            return f"no answer within {SECONDS} seconds"
        case httpcore2.ProtocolError():
            return "the answer is not valid HTTP/1.1, or was cut off"
        case httpcore2.NetworkError() | OSError():
            return "the connection broke before there was an answer"
    # Without its text, in which a library may have put what was sent.
    logger.error("a delivery failed unexpectedly: %s", type(failure).__name__)
    return f"unexpected error ({type(failure).__name__})"


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to a name if all of its addresses are allowed; resolves it once, so that no answer goes unchecked.

    It has no unix sockets: httpcore2's own method raises NotImplementedError.
    """

    def __init__(self, networks: Sequence[Network] | None) -> None:
        self._networks = networks
        """The networks that are allowed besides public ones; None allows everything."""
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2 calls it so
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that accepts."""
        addresses = await self._resolve(host, port)
        for address in addresses[:ADDRESSES]:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return _Stream(await self._network.connect_tcp(address, port, CONNECT_SECONDS), host)
        raise _Undeliverable(f"cannot connect to port {port} of {host} ({', '.join(addresses[:ADDRESSES])})")

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Return the host's addresses, each of which is allowed."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _Undeliverable(f"the name {host} cannot be resolved") from None
        addresses = [ip_address(sockaddr[0]) for *_, sockaddr in found]
        for address in addresses:
            if self._networks is not None and not is_allowed(address, self._networks):
                raise _Undeliverable(
                    f"the address {address} of {host} is not public; allow its network with WEBHOOK_NETWORKS"
                )
        return [str(address) for address in addresses]


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection that reads at most LONGEST_ANSWER for each request, and explains its failures."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._received = 0
        """Bytes since something was last sent."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read what has come; raises once the answer is too long."""
        left = LONGEST_ANSWER - self._received
        if left <= 0:
            raise _Undeliverable(f"the head of the answer is longer than {LONGEST_ANSWER} bytes")
        data = await self._stream.read(min(max_bytes, left), timeout)
        if not data and not self._received:
            raise _Undeliverable(f"{self._host} closed the connection without an answer")
        self._received += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write all of it."""
        self._received = 0
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        """Encrypt the connection, and verify the certificate for the name."""
        try:
            return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._host)
        except httpcore2.ConnectError as error:
            match error.__cause__:
                case ssl.SSLCertVerificationError(verify_message=reason):
                    raise _Undeliverable(f"the certificate is not valid for {self._host}: {reason}") from None
            raise _Undeliverable(f"the TLS handshake with {self._host} failed; it must speak TLS 1.2 or 1.3") from None
        except asyncio.CancelledError:
            # httpcore2 closes it on errors only.
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Return what the connection knows of itself."""
        return self._stream.get_extra_info(info)
