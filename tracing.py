"""OpenTelemetry traces, off unless an exporter's address is set: a request, its wait for a batch, the batch, its SQL.

A batch has many requests, and a span one parent: the batch and its SQL are in the trace of its first request. The
waits of the others have a link to it, and it to them. No span has an error's text, which can hold personal data.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from starting import StartRefused

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_SPAN = "savepoint_span"
"""The key in a connection's `info` of the span of the statement that runs."""


tracer: trace.Tracer | None = None
"""Makes the spans; None while traces are off."""


def is_requested() -> bool:
    """Return True if the environment names where traces go."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def start(version: str) -> Callable[[], None]:
    """Send traces to OTEL_EXPORTER_OTLP_ENDPOINT, if set; return what sends the last of them. Raises StartRefused."""
    global tracer  # noqa: PLW0603 (a process has one, and each call of a batcher asks for it)
    if not is_requested():
        return lambda: None
    try:
        # Not installed with the service.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise StartRefused(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry's SDK is not installed. Install it: "
            "pip install --require-hashes -r requirements-otel.txt"
        ) from None
    os.environ.setdefault("OTEL_SERVICE_NAME", "savepoint")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("savepoint", version)

    def stop() -> None:
        global tracer  # noqa: PLW0603
        tracer = None
        provider.shutdown()

    return stop


def request(method: str, request_id: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
    """Return the span of a request, in the trace that its header `traceparent` names."""
    assert tracer is not None
    parent = TraceContextTextMapPropagator().extract(headers)
    attributes = {"http.request.method": method, "savepoint.request_id": request_id}
    return _current(tracer.start_span(method, parent, SpanKind.SERVER, attributes))


def _current(span: Span) -> AbstractContextManager[Span]:
    return trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)


@dataclass(frozen=True, slots=True)
class Wait:
    """The span of a call's wait for its batch, and the context that the call has."""

    span: Span
    of_call: context.Context

    def end(self) -> None:
        """End it, if it has not ended."""
        if self.span.is_recording():
            self.span.end()


def wait(operation: str) -> Wait | None:
    """Begin the span of a call that waits for a batch of this operation."""
    return None if tracer is None else Wait(tracer.start_span(f"wait for {operation}"), context.get_current())


def batch(operation: str, waits: Sequence[Wait]) -> AbstractContextManager[object]:
    """Return the span of a batch of these calls, which wait no longer."""
    recording = [each for each in waits if each.span.is_recording()]
    if tracer is None or not recording:
        return nullcontext()
    first, *others = recording
    links = [Link(each.span.get_span_context()) for each in others]
    attributes = {"savepoint.calls": len(waits)}
    span = tracer.start_span(f"batch {operation}", first.of_call, links=links, attributes=attributes)
    for each in others:
        each.span.add_link(span.get_span_context())
    for each in recording:
        each.end()
    return _current(span)


class Statement(Protocol):
    """A statement, with places for its parameters."""

    @property
    def text(self) -> str:
        """The SQL."""


def trip(statements: Sequence[Statement]) -> AbstractContextManager[object]:
    """Return the span of statements that are sent together, without their parameters."""
    if tracer is None:
        return nullcontext()
    attributes = {"db.query.text": ";\n".join(each.text for each in statements)}
    return _current(tracer.start_span("SQL", kind=SpanKind.CLIENT, attributes=attributes))


def listen(engine: Engine) -> None:
    """Make a span of each statement that SQLAlchemy executes, if traces are on."""
    if tracer is None:
        return
    event.listen(engine, "before_cursor_execute", _begin_statement)
    event.listen(engine, "after_cursor_execute", _end_statement)
    event.listen(engine, "handle_error", _fail_statement)


def _begin_statement(connection: Connection, _: Any, statement: str, *__: Any) -> None:
    assert tracer is not None
    connection.info[_SPAN] = tracer.start_span("SQL", kind=SpanKind.CLIENT, attributes={"db.query.text": statement})


def _end_statement(connection: Connection, *_: Any) -> None:
    if span := connection.info.pop(_SPAN, None):
        span.end()


def _fail_statement(failure: ExceptionContext) -> None:
    if failure.connection is not None and not failure.connection.invalidated:
        span: Span | None = failure.connection.info.pop(_SPAN, None)
        if span is not None:
            span.set_status(Status(StatusCode.ERROR))
            span.end()
