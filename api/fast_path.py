"""The fast path: valid requests to a few routes, answered as FastAPI answers them, in half of its CPU time.

A route requests it with `@fast`. It is off if any middleware is added (DescribedAPI), which would not see its requests.
It leaves to FastAPI each invalid request, each route that it cannot serve (`_why_not`), and all routes if a dependency
is overridden. docs/decisions/0003-the-fast-path.md gives the reasons.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from inspect import iscoroutinefunction
from typing import Any, TypeVar, get_args
from uuid import UUID

from fastapi import FastAPI, Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from api.bodies import SMALL, parse_body, parse_json, read_body
from api.strict_route import FAILURE, StrictRoute, refuse_ambiguous

logger = logging.getLogger("savepoint")

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

FAST: set[Callable[..., Any]] = set()
"""The endpoints that request the fast path."""


def fast(endpoint: EndpointT) -> EndpointT:
    """Request the fast path for the endpoint of a StrictRoute."""
    FAST.add(endpoint)
    return endpoint


class FastPath:
    """Answers valid requests to fast routes, and leaves all others to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.routes: dict[tuple[str, str], FastRoute] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self.routes is None:
            self.routes = find_fast_routes(scope["app"])
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None or scope["app"].dependency_overrides:
            await self.app(scope, receive, send)
            return
        try:
            response = await route.respond(Request(scope, receive))
        except Exception as failure:
            # Raised again by the route, so that FastAPI answers it as any other.
            scope[FAILURE] = failure
            await self.app(scope, receive, send)
            return
        scope["route"] = route.original
        await response(scope, receive, send)


def find_fast_routes(api: FastAPI) -> dict[tuple[str, str], "FastRoute"]:
    """The routes that can be served, by method and path; logs which others requested it, and why they are not."""
    found: dict[tuple[str, str], FastRoute] = {}
    for context in iter_route_contexts(api.routes):
        if context.endpoint not in FAST or context.path is None:
            continue
        reason = _why_not(context)
        if reason is None:
            found |= {(method, context.path): FastRoute(context) for method in context.methods or ()}
        else:
            logger.warning("%s takes FastAPI's own way, which is slower: %s.", context.path, reason)
    return found


def _why_not(context: RouteContext) -> str | None:
    """Return the reason why the fast path cannot serve a route as FastAPI would; None if it can."""
    top: Dependant = context.dependant
    below = [each for dependency in top.dependencies for each in _walk(dependency)]
    calls = [each.call for each in below]
    methods = (type(each).__call__ if isinstance(each, SecurityBase) else each for each in calls)
    functions: tuple[Any, ...] = (context.endpoint, *methods)
    inputs = ("path_params", "query_params", "cookie_params")
    injected = ("background_tasks_param_name", "security_scopes_param_name")
    of_dependencies = ("header_params", "body_params", "response_param_name", "websocket_param_name")
    answers = ("include", "exclude", "exclude_unset", "exclude_defaults", "exclude_none")
    changed = ("max_body_size", "is_sse_stream", "is_json_stream", *(f"response_model_{each}" for each in answers))
    has_model = context.response_field is not None and isinstance(context.response_class, DefaultPlaceholder)
    serves = {
        "it is no StrictRoute": isinstance(context.original_route, StrictRoute),
        "it, or a dependency, has parameters in path, query or cookies, background tasks or security scopes": not any(
            getattr(each, name) for each in (top, *below) for name in (*inputs, *injected)
        ),
        "a dependency reads headers or the body, or changes the response": not any(
            getattr(each, name) for each in below for name in of_dependencies
        ),
        "a header is more than one text": all(map(_is_plain_header, top.header_params)),
        "its body is not one model in JSON": len(top.body_params) <= 1 and all(map(_is_plain_body, top.body_params)),
        "it, or a dependency, is not an async function without yield": all(map(iscoroutinefunction, functions)),
        "two of its dependencies share a third": len(set(map(id, calls))) == len(calls),
        "it does not answer with its model as it is": has_model and not any(getattr(context, each) for each in changed),
    }
    return next((reason for reason, is_served in serves.items() if not is_served), None)


def _walk(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _walk(each)


def _is_plain_header(field: Any) -> bool:
    annotation = field.field_info.annotation
    kinds = {getattr(kind, "__origin__", kind) for kind in get_args(annotation) or (annotation,)}
    return kinds <= {str, int, UUID, type(None)}


def _is_plain_body(field: Any) -> bool:
    info = field.field_info
    is_model = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    return is_model and not info.embed and info.media_type == "application/json"


class FastRoute:
    """A route that the fast path serves."""

    def __init__(self, context: RouteContext) -> None:
        self.original = context.original_route
        self.dependant: Dependant = context.dependant
        self.endpoint: Callable[..., Any] = context.endpoint  # type: ignore[assignment] # see _why_not
        self.response_field = context.response_field
        self.status_code: int = context.status_code or 200

    async def respond(self, request: Request) -> Response:
        """Call dependencies, read the request, and call the endpoint."""
        headers = dict(request.scope["headers"])
        if request.scope.get("query_string") or len(headers) < len(request.scope["headers"]):
            refuse_ambiguous(request, {})
        arguments = await _call_dependencies(self.dependant, request)
        arguments |= await self._read(request, headers)
        response = Response(status_code=self.status_code, media_type="application/json")
        if self.dependant.response_param_name is not None:
            arguments[self.dependant.response_param_name] = response
        response.body = self.response_field.serialize_json(await self.endpoint(**arguments))
        response.headers["content-length"] = str(len(response.body))
        return response

    async def _read(self, request: Request, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """The body and the headers that the endpoint takes. Raises RequestValidationError, and as bodies.py does."""
        arguments: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for field in self.dependant.header_params:
            value = headers.get(field.alias.lower().encode())
            if value is not None:
                arguments[field.name], wrong = field.validate(value.decode("latin-1"), loc=("header", field.alias))
                errors += wrong
        for field in self.dependant.body_params:
            arguments[field.name], wrong = await _read_model(field, await read_body(request, headers))
            errors += wrong
        if errors:
            raise RequestValidationError(errors)
        return arguments


async def _call_dependencies(dependant: Dependant, request: Request) -> dict[str, Any]:
    """Call the dependencies; return what they return and the request itself, by the names of the parameters."""
    arguments: dict[str, Any] = {}
    for name in (dependant.request_param_name, dependant.http_connection_param_name):
        if name is not None:
            arguments[name] = request
    for dependency in dependant.dependencies:
        assert dependency.call is not None
        outcome = await dependency.call(**await _call_dependencies(dependency, request))
        if dependency.name is not None:
            arguments[dependency.name] = outcome
    return arguments


async def _read_model(field: Any, body: bytes) -> tuple[Any, list[dict[str, Any]]]:
    """The model in a body, and its errors."""
    if not body and field.field_info.is_required():
        return None, [{"type": "missing", "loc": ("body",), "msg": "Field required"}]
    if not body:
        return field.get_default(), []
    model: type[BaseModel] = field.field_info.annotation
    if len(body) <= SMALL:
        try:
            found = model.model_validate_json(body)
        except ValidationError:
            # Read again below, which finds every error.
            pass
        else:
            # With as many colons as fields, no field is repeated; otherwise one may be, or a text has colons.
            if body.count(b":") != len(found.model_fields_set):
                parse_json(body)
            return found, []
    validated: tuple[Any, list[dict[str, Any]]] = field.validate(await parse_body(body), loc=("body",))
    return validated
