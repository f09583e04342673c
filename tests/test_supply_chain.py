"""What is installed: pinned with hashes, without known vulnerabilities, and under licences that allow its use."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import ROOT, free_port

pytestmark = pytest.mark.slow

VULNERABILITIES = ROOT / ".ci" / "vulnerabilities.py"
LISTS = ("requirements.txt", "requirements-dev.txt", "tests/clients/requirements.txt", "tests/cluster/requirements.txt")
FINDING = {"vulns": [{"id": "TEST-1", "summary": "Anyone gets in", "affected": []}]}


@contextmanager
def osv(answers: dict[str, Any], status: int = 200) -> Iterator[str]:
    """The URL of a service like osv.dev, with its answer about each package."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answers.get(query["package"]["name"], {})).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """A list with one package."""
    file = tmp_path / "requirements.txt"
    file.write_text(f"harmless==1.0 --hash=sha256:{'0' * 64}\n")
    return file


def look_up(url: str, pinned: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, VULNERABILITIES, pinned],
        env={"PIP_AUDIT_OSV_URL": url, "PATH": "", "HOME": str(pinned.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_package_with_a_known_vulnerability_fails_the_check(pinned: Path) -> None:
    with osv({"jinja2": FINDING, "harmless": FINDING}) as url:
        done = look_up(url, pinned)

    assert done.returncode == 1
    assert "TEST-1" in done.stdout


def test_packages_without_one_pass(pinned: Path) -> None:
    with osv({"jinja2": FINDING}) as url:
        done = look_up(url, pinned)

    assert (done.returncode, "No known vulnerabilities found" in done.stderr) == (0, True)


@pytest.mark.parametrize(("answers", "status"), [({}, 200), ({"jinja2": FINDING}, 403), ({"jinja2": FINDING}, 500)])
def test_a_service_that_knows_nothing_or_refuses_fails_the_check(
    pinned: Path, answers: dict[str, Any], status: int
) -> None:
    with osv(answers, status) as url:
        done = look_up(url, pinned)

    assert done.returncode == 1
    assert "does not know a vulnerability that is known" in done.stdout


def test_without_a_network_the_look_up_is_skipped_with_a_sentence(pinned: Path) -> None:
    done = look_up(f"http://127.0.0.1:{free_port()}/v1/query", pinned)

    assert done.returncode == 0
    assert done.stdout.startswith("Vulnerabilities were not looked up: ")


def test_every_package_is_pinned_with_hashes() -> None:
    for name in (*LISTS, "requirements-otel.txt"):
        text = re.sub(r" *#.*", "", (ROOT / name).read_text()).replace("\\\n", " ")
        pins = [line for line in text.splitlines() if line.strip()]
        assert len(pins) >= 10
        assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_what_installs_pins_asks_for_their_hashes() -> None:
    """All but .ci/newest, which installs what is not pinned yet, and nothing else uses."""
    recipes = [*(ROOT / "Makefile").read_text().splitlines(), *(ROOT / ".ci" / "run").read_text().splitlines()]
    installing = [line for line in recipes if "pip install" in line]

    assert len(installing) == len(LISTS)
    assert all("--require-hashes -r " in line for line in installing)
