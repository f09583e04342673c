"""The doors of docs/cluster.md: a server that Patroni does not call the primary gets no more writes.

With a Patroni that says what it is told. `make cluster` runs the real one, and everything around it.
"""

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
from tests.support.service import ROOT, alembic, execute_on_server, free_port, postgresql_cluster, query

pytestmark = [pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs Debian's haproxy"), pytest.mark.slow]


class Node:
    """A PostgreSQL server at head, what Patroni says of it, and its door."""

    def __init__(self, url: str, *, is_primary: bool) -> None:
        self.url = url
        self.is_primary = is_primary
        self.door = f"127.0.0.1:{free_port()}"
        node = self

        class Patroni(BaseHTTPRequestHandler):
            """Answers health checks as Patroni's REST API does."""

            def do_OPTIONS(self) -> None:
                self.send_response(200 if self.path == "/primary" and node.is_primary else 503)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.patroni = ThreadingHTTPServer(("127.0.0.1", 0), Patroni)
        threading.Thread(target=self.patroni.serve_forever, daemon=True).start()

    def usernames(self) -> list[str]:
        return [name for (name,) in query(self.url, "SELECT username FROM users ORDER BY id")]

    @contextmanager
    def running_door(self, folder: Path) -> Iterator[Path]:
        """HAProxy as the document configures it, with the addresses of this server; its log."""
        [configuration] = re.findall(r"```haproxy\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
        socket = f"{make_url(self.url).query['host']}/.s.PGSQL.5432"
        addresses = {
            "bind :5000": f"bind {self.door}",
            "127.0.0.1:5432": f"unix@{socket} addr 127.0.0.1",
            "port 8008": f"port {self.patroni.server_address[1]}",
        }
        for written, real in addresses.items():
            assert written in configuration
            configuration = configuration.replace(written, real)
        folder.mkdir()
        path, log_path = folder / "haproxy.cfg", folder / "haproxy.log"
        path.write_text(configuration)
        with log_path.open("wb") as log:
            process = subprocess.Popen(["haproxy", "-db", "-f", path], stdout=log, stderr=log)
        try:
            yield log_path
        finally:
            process.terminate()
            process.wait(10)


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


async def test_after_patroni_withdraws_its_word_the_old_primary_gets_no_write(
    service: Service, nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    first, second = nodes
    url = f"postgresql://postgres@/own?host={first.door}&host={second.door}"
    with first.running_door(tmp_path / "1") as first_log, second.running_door(tmp_path / "2") as second_log:
        # HAProxy takes both servers for healthy until it has asked.
        await until(lambda: "here is DOWN" in second_log.read_text(), "the second door to close")
        async with service(url) as client:
            assert (await client.post("/register", json=named("alice"))).status_code == 201
            first.is_primary = False
            # Neither is the primary yet: nobody may be told that anything is stored.
            await until(lambda: "here is DOWN" in first_log.read_text(), "the first door to close")
            refused = await client.post("/register", json=named("bob"))
            second.is_primary = True
            await until(lambda: "here is UP" in second_log.read_text(), "the second door to open")
            registered = await client.post("/register", json=named("carol"))

    assert_refused_for_now(refused, "database-unavailable")
    assert registered.status_code == 201
    assert (first.usernames(), second.usernames()) == (["alice"], ["carol"])
