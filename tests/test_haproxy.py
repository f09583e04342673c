"""Behind HAProxy, set up as the README says, clients keep their addresses and nobody meets an error."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.registration import named
from tests.support.service import ROOT, Server, answers, free_port, serving, wait_until

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


pytestmark = [pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed"), pytest.mark.slow]


CONFIGURATION = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend public
    bind 127.0.0.1:{port}
    {forwarding}
    default_backend savepoint
backend savepoint
    server one {server}
"""


def forwarding() -> str:
    """The line that the README asks for."""
    [line] = re.findall(r"HAProxy: `(.+?)`", (ROOT / "README.md").read_text())
    return str(line)


@contextmanager
def proxying(server: Server, folder: Path) -> Iterator[str]:
    """HAProxy before this server; its URL."""
    port = free_port()
    file = folder / "haproxy.cfg"
    backend = server.url.removeprefix("http://")
    file.write_text(CONFIGURATION.format(port=port, forwarding=forwarding(), server=backend))
    with subprocess.Popen([str(HAPROXY), "-db", "-q", "-f", file]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(url), "HAProxy to start")
            yield url
        finally:
            process.kill()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    database = f"sqlite:///{tmp_path}/savepoint.db"
    with (
        serving(database, tmp_path, REGISTRATIONS_PER_ADDRESS="50/day") as server,
        proxying(server, tmp_path) as url,
    ):
        yield url


def client_at(url: str, address: str) -> httpx2.Client:
    """A client that connects from this address."""
    return httpx2.Client(base_url=url, transport=httpx2.HTTPTransport(local_address=address), timeout=30)


def test_each_client_has_its_own_limit_whatever_it_forges(proxy: str) -> None:
    def register(client: httpx2.Client, number: int) -> int:
        forged = {"X-Forwarded-For": f"198.51.100.{number}"}
        return client.post("/register", json=named(f"user{number}"), headers=forged).status_code

    with client_at(proxy, "127.0.0.2") as one, client_at(proxy, "127.0.0.3") as other:
        assert [register(one, number) for number in range(51)] == [201] * 50 + [429]
        assert register(other, 51) == 201


def test_ten_clients_at_once_meet_no_error(proxy: str) -> None:
    def use(number: int) -> set[int]:
        with client_at(proxy, f"127.0.0.{10 + number}") as client:
            registered = client.post("/register", json=named(f"user{number}"))
            token = {"Authorization": f"Bearer {registered.json()['access_token']}"}
            statuses = {client.get("/me", headers=token).status_code for _ in range(50)}
            return {*statuses, *(client.post("/tokens", json={}, headers=token).status_code for _ in range(20))}

    with ThreadPoolExecutor(10) as threads:
        assert set().union(*threads.map(use, range(10))) == {200, 201}
