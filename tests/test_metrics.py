"""/metrics: who may read it, and how little a caller can make it grow."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import metrics
from main import app
from tests.support.problems import assert_problem
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN

MONITORING = {"Authorization": "Bearer the-token-of-the-monitoring"}


@pytest.fixture
def http(sqlite_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The service, on SQLite alone: none of this depends on the database."""
    path = shutil.copy(sqlite_template, tmp_path / "metrics.db")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    monkeypatch.setenv("METRICS_TOKEN", "the-token-of-the-monitoring")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_without_tokens_nobody_reads_metrics(http: TestClient) -> None:
    app.state.metrics_token_hash = app.state.operator_token_hash = None

    assert_problem(http.get("/metrics", headers=MONITORING), 403, "operator-disabled")


def test_methods_that_callers_invent_are_one_label(http: TestClient) -> None:
    kept = metrics.of_route.cache_info().currsize
    for number in range(100):
        http.request(f"BREW{number}", "/me")

    text = http.get("/metrics", headers=AS_OPERATOR).text
    methods = {
        sample.labels["method"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "method" in sample.labels
    }
    assert 'method="other",route="/me",status="405"' in text
    assert methods <= metrics.METHODS | {"other"}
    assert metrics.of_route.cache_info().currsize <= kept + 3


def test_every_method_on_every_path_leaves_a_page_of_bounded_size(http: TestClient) -> None:
    for path in app.openapi()["paths"]:
        for method in (*metrics.METHODS, "BREW", "TRACE", "PROPFIND"):
            http.request(method, path.replace("{id}", "0"))

    assert len(http.get("/metrics", headers=AS_OPERATOR).content) < 200_000


def test_a_worker_that_was_killed_leaves_no_calls_waiting(tmp_path: Path) -> None:
    script = (
        "import os, signal, metrics\n"
        "metrics.QUEUE_LENGTH.labels('transfer').set(7)\n"
        "metrics.TRANSACTIONS_RETRIED.inc(3)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    root = Path(metrics.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=False)
    assert list(tmp_path.glob("gauge_livesum_*.db"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        text = metrics.exposition().decode()

    assert "savepoint_queue_length" not in text
    assert "savepoint_transactions_retried_total 3.0" in text
