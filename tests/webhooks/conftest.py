"""A receiver on the loopback interface, and a sender that may send to it."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.webhook_receiver import Names, Receiver
from webhooks.sending import Sender

ALL = "0.0.0.0"  # noqa: S104 so that a connection to any other loopback address would be seen


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    return names


@pytest.fixture
async def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def port(receiver: Receiver) -> AsyncIterator[int]:
    """The port on which the receiver speaks HTTP."""
    async with await asyncio.start_server(receiver.serve, ALL, 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def https_port(receiver: Receiver, certificate: Path) -> AsyncIterator[int]:
    """The port on which the receiver speaks HTTPS, as hooks.example."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with await asyncio.start_server(receiver.serve, ALL, 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture(scope="package")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for hooks.example."""
    path = tmp_path_factory.mktemp("certificate") / "hooks.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "-"]
    subject = ["-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example"]
    command = ["openssl", "req", "-x509", *key, *subject, "-out", "-"]
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.fixture
async def sender(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sender]:
    """A sender as in development."""
    # To read one certificate takes less time than to read all of the system.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with Sender(development=True, networks=[], user_agent="Savepoint/1") as sender:
        yield sender


@pytest.fixture
def target(port: int, names: Names) -> str:
    names.addresses["hooks.example"] = [["127.0.0.2"]]
    return f"http://hooks.example:{port}/savepoint"
