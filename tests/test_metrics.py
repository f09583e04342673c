"""/metrics: who may read it, and how little a caller can make it grow."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event
from starlette.testclient import TestClient

import metrics
from api import database_metrics, problems
from api.errors import PROBLEMS
from db.database import connect
from main import VERSION, app
from tests.support.problems import assert_problem
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Rows

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

    # Tests before this one may have asked for each page of the console.
    assert len(http.get("/metrics", headers=AS_OPERATOR).content) < 650_000


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


def samples(http: TestClient) -> dict[str, float]:
    """Each sample of /metrics, by its name and its labels' values."""
    text = http.get("/metrics", headers=AS_OPERATOR).text
    families = text_string_to_metric_families(text)
    return {" ".join([each.name, *each.labels.values()]): each.value for family in families for each in family.samples}


def test_problems_are_counted_by_type_from_the_start(http: TestClient) -> None:
    before = samples(http)
    for path in ("/me", "/accounts/1", "/nowhere"):
        http.get(path)
    after = samples(http)

    grown = {name.split()[1]: value - before[name] for name, value in after.items() if "problems_total" in name}
    assert {type_: growth for type_, growth in grown.items() if growth} == {"unauthenticated": 2, "not-found": 1}
    # What the server refuses before the app sees it is in savepoint_refused, by reason.
    answered = {problem.type for problem in PROBLEMS.values()} | {problems.INTERNAL_ERROR.type}
    assert {f"/problems/{type_}" for type_ in grown} >= answered


def test_what_users_hold_is_shown_by_currency(http: TestClient) -> None:
    for name in ("alice", "bob"):
        http.post("/register", json=named(name))
    http.post("/accounts", json={"user_id": 1, "currency": "USD"}, headers=AS_OPERATOR)
    for account_id, amount in ((1, 500), (2, 70), (3, 9)):
        http.post("/deposits", json={"account_id": account_id, "amount": amount}, headers=AS_OPERATOR)

    shown = {name: value for name, value in samples(http).items() if "users_balance" in name}
    assert shown == {
        "savepoint_users_balance_minor_units EUR": 570,
        "savepoint_users_balance_minor_units USD": 9,
    }


def test_webhooks_show_how_many_there_are_and_how_long_the_latest_has_waited(
    events: None, client: TestClient, rows: Rows
) -> None:
    def shown() -> list[float]:
        names = ("webhooks active", "webhooks paused", "webhook_deliveries_waiting", "webhook_wait_seconds")
        found = samples(client)
        return [found[f"savepoint_{name}"] for name in names]

    assert shown() == [0, 0, 0, 0]
    for number in (1, 2):
        body = {"url": f"https://{number}.example", "types": ["user.erased"]}
        client.post("/webhooks", json=body, headers=AS_OPERATOR)
    client.post("/webhooks/1/test", headers=AS_OPERATOR)
    assert client.get("/events?after=0&wait=5&types=webhook.test", headers=AS_OPERATOR).json()["items"]
    assert shown()[:3] == [2, 0, 1]

    rows("UPDATE webhooks SET failing_since = '2026-01-01 00:00:00+00:00' WHERE id = 1")
    assert shown()[3] > 86_400
    client.patch("/webhooks/1", json={"status": "paused"}, headers=AS_OPERATOR)
    assert shown() == [1, 1, 1, 0]
    rows("UPDATE webhook_deliveries SET webhook_id = 2, due_at = '2026-01-01 00:00:00+00:00'")
    assert shown()[3] > 86_400


@contextmanager
def noting_executions() -> Iterator[list[str]]:
    """The statements that SQLAlchemy executes."""
    executed: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        executed.append(statement)

    engine = app.state.operations.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_sums_look_system_accounts_up_in_an_index(http: TestClient, tmp_path: Path) -> None:
    with noting_executions() as executed:
        samples(http)

    [query] = [each for each in executed if "accounts.balance" in each and "EXISTS" not in each]
    with closing(sqlite3.connect(tmp_path / "metrics.db")) as database:
        [(_, _, _, plan)] = database.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
    assert plan.startswith("SEARCH accounts USING INDEX")
    assert "(user_id=?)" in plan


def test_version_and_schema_are_shown(http: TestClient) -> None:
    head = app.state.schema.head

    shown = samples(http)

    assert shown[f"savepoint_info {VERSION}"] == 1
    assert shown[f"savepoint_schema_info {head} {head} ready"] == 1
    assert shown["savepoint_database_up"] == 1


def test_a_database_that_does_not_answer_is_down_and_the_other_metrics_are_shown(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(database_metrics, "PATIENCE", 0.01)
    monkeypatch.setattr(app.state.operations, "read", hang)

    shown = samples(http)

    assert shown["savepoint_database_up"] == 0
    assert not any(name.startswith("savepoint_schema_info") for name in shown)
    assert "savepoint_transactions_retried_total" in shown


def test_connections_in_use_are_shown(http: TestClient) -> None:
    assert http.portal is not None
    assert samples(http)["savepoint_database_connections_limit"] == 10

    async def hold_one() -> float | None:
        database = app.state.operations.database
        async with connect(database.reader, asyncio.get_running_loop().time() + 5, database.file):
            return REGISTRY.get_sample_value("savepoint_database_connections_used")

    before = samples(http)["savepoint_database_connections_used"]
    assert http.portal.call(hold_one) == before + 1
    assert samples(http)["savepoint_database_connections_used"] == before
