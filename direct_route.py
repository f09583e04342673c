"""Routes whose valid requests are answered at once, and all others as FastAPI does.

A valid request to a DirectRoute passes through CountRequests alone. Whatever else comes, or comes of it,
passes through all of FastAPI, which tells what is wrong.
"""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from middleware import CountRequests

SMALL = 2**16
"""Bytes of a body that is read at once."""

EXPECTS = (b"expect", b"100-continue")
"""The header of a client that sends its body once it is asked to."""

FAILURE = "savepoint.failure"
"""Where the scope of a request has the exception that its route is to raise."""


class DirectRoute(APIRoute):
    """Declared, documented and answered as FastAPI's own.

    What FastAPI does beyond that is for features that this application does not use. A route with parameters in its
    path or query stays FastAPI's.
    """

    @property
    def is_direct(self) -> bool:
        """Whether a request can be answered at once."""
        has_parameters = self.dependant.path_params or self.dependant.query_params
        return not has_parameters and self.response_field is not None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers the requests that were not answered at once."""
        ask_fastapi = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if FAILURE in request.scope:
                raise request.scope.pop(FAILURE)
            if EXPECTS in request.scope["headers"]:
                # FastAPI asks for the body first; a caller who is refused anyway need not send it.
                await call_dependencies(self.dependant, request)
            return await ask_fastapi(request)

        return answer

    def read(self, request: Request, body: bytes) -> dict[str, Any] | None:
        """The body and the headers that the endpoint asks for; None unless they are what it describes."""
        arguments: dict[str, Any] = {}
        for field in self.dependant.header_params:
            value = request.headers.get(field.alias)
            if value is not None:
                arguments[field.name], errors = field.validate(value)
                if errors:
                    return None
        for field in self.dependant.body_params:
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return None
            model: Any = field.field_info.annotation
            try:
                arguments[field.name] = model.model_validate_json(body)
            except ValidationError:
                return None
        return arguments

    async def respond(self, request: Request, arguments: dict[str, Any]) -> Response:
        """Call dependencies and endpoint."""
        assert self.response_field is not None
        arguments |= await call_dependencies(self.dependant, request)
        response = Response(status_code=self.status_code or 200, media_type="application/json")
        if self.dependant.response_param_name is not None:
            arguments[self.dependant.response_param_name] = response
        response.body = self.response_field.serialize_json(await self.endpoint(**arguments))
        response.headers["content-length"] = str(len(response.body))
        return response


async def call_dependencies(dependant: Dependant, request: Request) -> dict[str, Any]:
    """The request itself and what the dependencies answer, by the names of their parameters."""
    arguments: dict[str, Any] = {}
    for name in (dependant.request_param_name, dependant.http_connection_param_name):
        if name is not None:
            arguments[name] = request
    for dependency in dependant.dependencies:
        assert dependency.call is not None
        outcome = await dependency.call(**await call_dependencies(dependency, request))
        if dependency.name is not None:
            arguments[dependency.name] = outcome
    return arguments


class AnswerDirectly:
    """Answers the valid requests to direct routes, and leaves the others to `app`."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self.routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, DirectRoute) and route.is_direct
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        message: Message = {"type": "http.request"}
        if route.dependant.body_params:
            if EXPECTS in scope["headers"]:
                await self.app(scope, receive, send)
                return
            message = await receive()
            receive = again(message, receive)
        body = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body") and len(body) <= SMALL:
            request = Request(scope, receive)
            arguments = route.read(request, body)
            if arguments is not None:
                try:
                    response = await route.respond(request, arguments)
                except Exception as failure:
                    scope[FAILURE] = failure
                else:
                    scope["route"] = route
                    await response(scope, receive, send)
                    return
        await self.app(scope, receive, send)


def again(message: Message, receive: Receive) -> Receive:
    """What gives this message first."""
    messages = iter([message])

    async def receive_again() -> Message:
        return next(messages, None) or await receive()

    return receive_again


class DirectAPI(FastAPI):
    """FastAPI with direct routes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.router.route_class = DirectRoute

    def build_middleware_stack(self) -> ASGIApp:
        """Count the requests that are answered directly, too."""
        return CountRequests(AnswerDirectly(super().build_middleware_stack(), self.routes))
