"""Middleware of every request: give it an id, count it, limit its body, answer unexpected errors."""

import logging
import time
from collections.abc import Sequence

from opentelemetry.trace import StatusCode
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import metrics
import tracing
from api import problems, request_ids
from api.bodies import MIB, exceeds
from api.callers import kind_of_caller
from api.request_ids import request_id_of
from api.request_log import LOG
from starting import in_words

logger = logging.getLogger("savepoint")


NOSNIFF = (b"x-content-type-options", b"nosniff")
NO_STORE = (b"cache-control", b"no-store")


def _completed(headers: Sequence[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    if b"cache-control" in dict(headers):
        return [*headers, NOSNIFF, (request_ids.HEADER, request_id.encode())]
    return [*headers, NOSNIFF, NO_STORE, (request_ids.HEADER, request_id.encode())]


def route_of(scope: Scope) -> str:
    """Return the template of the route that was found for a request: its path can hold ids, and anything at all."""
    return getattr(scope.get("route"), "path_format", "unknown")


class CountRequests:
    """Counts and logs each answer, and adds headers to it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, in_words(send))
            return
        began = time.perf_counter()
        request_id = request_id_of(scope)
        method = scope["method"]
        if method == "HEAD":
            # Answered as GET; the server leaves the body out.
            scope = {**scope, "method": "GET"}
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _completed(message.get("headers", ()), request_id)
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            seconds = time.perf_counter() - began
            route = route_of(scope)
            method = method if method in metrics.METHODS else "other"
            answers, durations = metrics.of_route("other" if status == 405 else method, route, status)
            answers.inc()
            durations.observe(seconds)
            if problems.NOTED in scope:
                metrics.of_problem(scope[problems.NOTED].type).inc()
            LOG.note(scope, method, route, status, seconds)


class TraceRequests:
    """Makes a span of each request, where traces are on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or tracing.tracer is None:
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracing.request(scope["method"], request_id_of(scope), headers) as span:

            async def note_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self.app(scope, receive, note_status)
            finally:
                # Neither path nor query, which can hold personal data.
                span.update_name(f"{scope['method']} {route_of(scope)}")
                span.set_attributes({"http.route": route_of(scope), "savepoint.caller": kind_of_caller(scope)})
                if problems.NOTED in scope:
                    span.set_attribute("savepoint.problem", scope[problems.NOTED].type)


class CatchUnexpected:
    """Answers an unexpected error with a 500 without details, and logs it without personal data."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            fields = {"request_id": request_id_of(scope), "method": scope["method"], "route": route_of(scope)}
            what = f"{fields['method']} {fields['route']} failed unexpectedly, request {fields['request_id']}"
            logger.error("%s: %s", what, problems.describe(error), extra={"fields": fields})
            await problems.respond(problems.INTERNAL_ERROR)(scope, receive, send)


class LimitBody:
    """Refuses a body over 1 MiB, or 16 MiB for a batch, by its Content-Length or once so much was received."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = 16 * MIB if scope["path"].endswith("/batch") else MIB
        if exceeds(dict(scope["headers"]).get(b"content-length", b""), limit):
            await problems.respond(problems.CONTENT_TOO_LARGE)(scope, receive, send)
            return
        received = 0

        async def count_bytes() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413)
            return message

        await self.app(scope, count_bytes, send)
