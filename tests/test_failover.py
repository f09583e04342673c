"""The proxy of docs/failover.md: a server that Patroni does not call the primary gets no more writes."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.support.database import Service, assert_refused_for_now, until
from tests.support.registration import named
from tests.support.service import ROOT, alembic, execute_on_server, free_port, postgresql_cluster, query, wait_until

pytestmark = [pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs Debian's haproxy"), pytest.mark.slow]


class Node:
    """A PostgreSQL server at head, and what Patroni says of it."""

    def __init__(self, url: str, *, is_primary: bool) -> None:
        self.url = url
        self.is_primary = is_primary
        node = self

        class Patroni(BaseHTTPRequestHandler):
            """Answers health checks as Patroni's REST API does."""

            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/primary" and node.is_primary else 503)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.patroni = ThreadingHTTPServer(("127.0.0.1", 0), Patroni)
        threading.Thread(target=self.patroni.serve_forever, daemon=True).start()

    @property
    def server_line(self) -> str:
        """Where HAProxy reaches it."""
        socket = f"{make_url(self.url).query['host']}/.s.PGSQL.5432"
        return f"unix@{socket} addr 127.0.0.1 port {self.patroni.server_address[1]}"

    def usernames(self) -> list[str]:
        return [name for (name,) in query(self.url, "SELECT username FROM users ORDER BY id")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with ExitStack() as stack:
        urls = [stack.enter_context(postgresql_cluster()) for _ in range(2)]
        for url in urls:
            execute_on_server(url, "CREATE DATABASE own")
            assert alembic(url.format("own"), "upgrade", "head").returncode == 0
        first, second = (Node(url.format("own"), is_primary=url is urls[0]) for url in urls)
        yield first, second
        for node in (first, second):
            node.patroni.shutdown()
            node.patroni.server_close()


@contextmanager
def proxying(nodes: tuple[Node, Node], folder: Path) -> Iterator[str]:
    """HAProxy as the document configures it, with the addresses of these servers; the URL through it."""
    [configuration] = re.findall(r"```haproxy\n(.*?)```", (ROOT / "docs" / "failover.md").read_text(), re.DOTALL)
    port = free_port()
    addresses = {"127.0.0.1:5000": f"127.0.0.1:{port}", " port 8008": ""}
    addresses |= {f"10.0.0.{number}:5432": node.server_line for number, node in enumerate(nodes, 1)}
    for written, real in addresses.items():
        assert written in configuration
        configuration = configuration.replace(written, real)
    path = folder / "haproxy.cfg"
    path.write_text(configuration)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", path], stdout=log, stderr=log)
    url = f"postgresql://postgres@127.0.0.1:{port}/own"

    def is_up() -> bool:
        log = (folder / "haproxy.log").read_text()
        assert process.poll() is None, log
        # HAProxy takes both for healthy until it has asked.
        is_asked = "node2 is DOWN" in log
        return is_asked and subprocess.run(["pg_isready", "-q", "-d", url], check=False).returncode == 0

    try:
        wait_until(is_up, "HAProxy to reach the primary alone")
        yield url
    finally:
        process.terminate()
        process.wait(10)


async def test_after_patroni_withdraws_its_word_the_old_primary_gets_no_write(
    service: Service, nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    first, second = nodes
    with proxying(nodes, tmp_path) as url:
        async with service(url) as client:
            assert (await client.post("/register", json=named("alice"))).status_code == 201
            first.is_primary = False
            # Neither is the primary yet: nobody may be told that anything is stored.
            await until(lambda: "node1 is DOWN" in (tmp_path / "haproxy.log").read_text(), "HAProxy to notice")
            refused = await client.post("/register", json=named("bob"))
            second.is_primary = True
            await until(
                lambda: "node2 is UP" in (tmp_path / "haproxy.log").read_text(), "HAProxy to find the new primary"
            )
            registered = await client.post("/register", json=named("carol"))

    assert_refused_for_now(refused, "database-unavailable")
    assert registered.status_code == 201
    assert (first.usernames(), second.usernames()) == (["alice"], ["carol"])
