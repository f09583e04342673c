"""What load balancers and monitoring see."""

from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.support.registration import named
from tests.support.service import AS_OPERATOR, serving


def test_healthz_answers_alive(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}


def test_readyz_names_the_revision_and_the_head(client: TestClient) -> None:
    response = client.get("/readyz")

    assert response.status_code == 200
    state = response.json()
    assert state["status"] == "ready"
    assert state["revision"] == state["head"]


def test_metrics_count_answers_by_route_and_never_by_id(client: TestClient) -> None:
    client.post("/register", json=named("alice"))
    client.get("/users/123456", headers=AS_OPERATOR)

    response = client.get("/metrics", headers=AS_OPERATOR)

    assert response.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    counted = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"])
        for sample in families["savepoint_requests"].samples
    }
    assert ("POST", "/register", "201") in counted
    assert ("GET", "/users/{id}", "404") in counted
    assert "123456" not in response.text
    assert {"savepoint_batch_size", "savepoint_queue_length", "savepoint_transactions_retried"} <= families.keys()


def test_metrics_are_read_from_the_folder_that_workers_share(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client.get("/healthz")
    (tmp_path / "metrics").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))

    # This process does not write there: it began without. Nor is anything of the database written there.
    text = client.get("/metrics", headers=AS_OPERATOR).text
    assert "savepoint_requests" not in text
    assert "savepoint_database_up 1.0" in text


def test_several_workers_are_counted_together(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    url = f"sqlite:///{tmp_path}/savepoint.db"
    with serving(url, tmp_path, workers=2, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        for _ in range(20):
            httpx2.get(f"{server.url}/readyz")

        counted = {
            httpx2.get(f"{server.url}/metrics", headers=AS_OPERATOR).text.partition('route="/readyz",status="200"} ')[
                2
            ][:4]
            for _ in range(8)
        }

    assert counted == {"20.0"}
