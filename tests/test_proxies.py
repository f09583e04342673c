"""Behind each proxy of deploy/, clients keep their addresses, large batches pass, and nobody meets an error."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx2
import pytest

from tests.support.registration import named
from tests.support.service import AS_OPERATOR, ROOT, Server, answers, free_port, serving, wait_until

pytestmark = pytest.mark.slow

COMMANDS = {"haproxy.cfg": "haproxy -db -q -f {}", "nginx.conf": "nginx -e stderr -g 'daemon off;' -c {}"}
# Debian's own file has all of this but the folder.
NGINX = """
user root;
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
{server}
}}
"""


@cache
def certificate() -> str:
    """A key and a certificate for localhost, in one file's text."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "-"]
    made = subprocess.run(
        ["openssl", "req", "-x509", *key, "-subj", "/CN=localhost", "-out", "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout


@contextmanager
def proxying(name: str, server: Server, folder: Path) -> Iterator[str]:
    """The proxy with the file of this name before this server; its URL."""
    port = free_port()
    (folder / "savepoint.pem").write_text(certificate())
    text = (ROOT / "deploy" / name).read_text()
    for written, used in {
        r"(listen|bind) :?443": rf"\1 127.0.0.1:{port}",
        r"127\.0\.0\.1:8000": server.url.removeprefix("http://"),
        r"/etc/ssl/savepoint\.(pem|key)": str(folder / "savepoint.pem"),
    }.items():
        text, count = re.subn(written, used, text)
        assert count, written
    file = folder / name
    file.write_text(NGINX.format(folder=folder, server=text) if name == "nginx.conf" else text)
    command = COMMANDS[name].format(file)
    program = command.partition(" ")[0]
    path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    if shutil.which(program, path=path) is None:
        pytest.skip(f"needs Debian's {program}")
    with subprocess.Popen(["sh", "-c", f"exec {command}"], env={**os.environ, "PATH": path}) as process:
        try:
            url = f"https://127.0.0.1:{port}"
            wait_until(lambda: answers(url), f"{program} to start")
            yield url
        finally:
            process.terminate()


@pytest.fixture(params=COMMANDS)
def proxy(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    database = f"sqlite:///{tmp_path}/savepoint.db"
    with (
        serving(database, tmp_path, REGISTRATIONS_PER_ADDRESS="50/day") as server,
        proxying(request.param, server, tmp_path) as url,
    ):
        yield url


def client_at(url: str, address: str) -> httpx2.Client:
    """A client that connects from this address."""
    return httpx2.Client(base_url=url, transport=httpx2.HTTPTransport(local_address=address, verify=False), timeout=30)


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


def test_a_batch_of_the_operator_passes_and_one_byte_more_is_refused_in_words(proxy: str) -> None:
    batch = b'{"users": [{"username": "dave", "email": "dave@example.com"}]}'
    headers = {**AS_OPERATOR, "Content-Type": "application/json"}
    with client_at(proxy, "127.0.0.1") as client:
        passed = client.post("/users/batch", content=batch.ljust(16 * 2**20), headers=headers)
        refused = client.post("/users/batch", content=batch.ljust(16 * 2**20 + 1), headers=headers)

    assert passed.status_code == 200, passed.text
    assert refused.json()["type"] == "/problems/content-too-large"
