"""Traces: which spans a call has, how those of a batch belong together, and what no span has."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext
from starlette.testclient import TestClient

import tracing
from db.batching import Batcher
from main import app
from refusals import OutcomeUnknown
from starting import StartRefused
from tests.support.accounts import order, register_all
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, ROOT, batcher_of

Spans = InMemorySpanExporter

OF_TRANSFERS = ("POST /transfers", "wait for make_transfers", "batch make_transfers")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """The spans that end."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(tracing, "start", lambda _: lambda: None)
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer("test"))
    monkeypatch.setattr(app, "middleware_stack", None)
    return exporter


@pytest.fixture
def http(url: str, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def named_spans(spans: Spans) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def test_one_trace_has_the_request_its_wait_the_batch_and_its_sql(http: TestClient, spans: Spans) -> None:
    alice, bob = register_all(http, alice=100, bob=0)
    spans.clear()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = alice.headers | {"traceparent": parent, "X-Request-ID": "call-17"}
    http.post("/transfers", json=order(alice.account_id, bob.account_id, 5), headers=headers)

    found = named_spans(spans)
    [request], [wait], [batch] = (found[name] for name in OF_TRANSFERS)
    assert {f"{context_of(each).trace_id:032x}" for each in spans.get_finished_spans()} == {parent[3:35]}
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == parent[36:52]
    assert wait.parent == batch.parent == context_of(request)
    assert {**(request.attributes or {})} == {
        "http.request.method": "POST",
        "http.route": "/transfers",
        "http.response.status_code": 201,
        "savepoint.request_id": "call-17",
        "savepoint.caller": "user",
    }
    sql = [each for each in found["SQL"] if each.parent == context_of(batch)]
    text = "\n".join(str((each.attributes or {})["db.query.text"]) for each in sql)
    assert "INSERT INTO transfers" in text
    assert "UPDATE accounts" in text


async def test_a_batch_is_in_its_first_calls_trace_and_linked_with_the_others(spans: Spans) -> None:
    assert tracing.tracer is not None
    ends = [asyncio.Event(), asyncio.Event()]
    batches = iter(ends)

    async def run(items: Sequence[str]) -> Sequence[str]:
        await next(batches).wait()
        return items

    batcher = Batcher("test", run, tasks=1, batch_limit=9, queue_limit=9, deadline=9, too_late=OutcomeUnknown)

    async def call(name: str) -> None:
        with tracing.request(name, name, {}):
            await batcher(name)

    calls = []
    for name in "abcd":
        # All but the first wait for its batch to end.
        calls.append(asyncio.create_task(call(name)))
        await asyncio.sleep(0.01)
    for end in ends:
        end.set()
    await asyncio.gather(*calls)

    found = named_spans(spans)
    first, second = found["batch test"]
    [a], [b] = found["a"], found["b"]
    assert (first.parent, second.parent) == (context_of(a), context_of(b))
    waits = {each.parent.span_id: each for each in found["wait for test"] if each.parent}
    others = [waits[context_of(found[name][0]).span_id] for name in "cd"]
    assert [link.context for link in second.links] == [context_of(each) for each in others]
    assert [[link.context for link in each.links] for each in others] == [[context_of(second)]] * 2
    assert [(each.attributes or {})["savepoint.calls"] for each in (first, second)] == [1, 3]


def test_no_span_has_personal_data_ids_or_what_an_error_says(http: TestClient, spans: Spans) -> None:
    token = http.post("/register", json=named("alice")).json()["access_token"]
    http.get("/users?email=alice@example.com", headers=AS_OPERATOR)
    http.get("/accounts/4711", headers={"Authorization": f"Bearer {token}"})
    http.get("/alice/4711?email=alice@example.com")
    http.post("/register", json=named("alice"))
    batcher = batcher_of(app.state.operations, "update_users")
    run = batcher.run

    async def fail(items: object) -> object:
        raise RuntimeError("alice")

    batcher.run = fail  # type: ignore[assignment]
    assert http.patch("/me", json={}, headers={"Authorization": f"Bearer {token}"}).status_code == 500
    batcher.run = run

    text = "\n".join(each.to_json() for each in spans.get_finished_spans())
    for private in ("alice", "4711", token, OPERATOR_TOKEN):
        assert private not in text
    [failed] = named_spans(spans)["PATCH /me"]
    assert (failed.status.is_ok, (failed.attributes or {})["savepoint.problem"]) == (False, "/problems/internal-error")
    assert any("username" in str((each.attributes or {})["db.query.text"]) for each in named_spans(spans)["SQL"])


def test_without_an_address_the_sdk_is_not_even_imported() -> None:
    script = "import sys, tracing; tracing.start('1.0'); print([each for each in sys.modules if '.sdk' in each])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"


def test_an_address_without_the_sdk_is_refused_with_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(StartRefused, match=r"pip install --require-hashes -r requirements-otel\.txt"):
        tracing.start("1.0")
