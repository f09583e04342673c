"""Fast routes: valid requests answered as FastAPI answers them, without the layers that take most of its CPU time.

A route requests it with `@fast`. docs/decisions/0003-the-fast-path.md gives the reasons.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from inspect import iscoroutinefunction
from typing import Any, TypeVar, get_args
from uuid import UUID

from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import RouteContext
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ValidationError

from api.ambiguity import query_names, refuse_ambiguous
from api.bodies import SMALL, parse_body, parse_json, read_body

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

FAST: set[Callable[..., Any]] = set()
"""The endpoints that request the fast path."""


def fast(endpoint: EndpointT) -> EndpointT:
    """Request the fast path for the endpoint of a StrictRoute."""
    FAST.add(endpoint)
    return endpoint


def why_not(context: RouteContext) -> str | None:
    """Return the reason why the fast path cannot serve a route as FastAPI would; None if it can."""
    top: Dependant = context.dependant
    below = [each for dependency in top.dependencies for each in _walk(dependency)]
    calls = [each.call for each in below]
    methods = (type(each).__call__ if isinstance(each, SecurityBase) else each for each in calls)
    functions: tuple[Any, ...] = (context.endpoint, *methods)
    injected = ("cookie_params", "background_tasks_param_name", "security_scopes_param_name")
    inputs = ("path_params", "query_params", "header_params", "body_params")
    of_dependencies = (*inputs, "response_param_name", "websocket_param_name")
    answers = ("include", "exclude", "exclude_unset", "exclude_defaults", "exclude_none")
    changed = ("max_body_size", "is_sse_stream", "is_json_stream", *(f"response_model_{each}" for each in answers))
    has_model = context.response_field is not None and isinstance(context.response_class, DefaultPlaceholder)
    serves = {
        "it, or a dependency, has parameters in cookies, background tasks or security scopes": not any(
            getattr(each, name) for each in (top, *below) for name in injected
        ),
        "a dependency has parameters in path, query, headers or body, or changes the response": not any(
            getattr(each, name) for each in below for name in of_dependencies
        ),
        "a parameter in path, query or headers is more than one value": all(
            map(_is_plain, (*top.path_params, *top.query_params, *top.header_params))
        ),
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


def _is_plain(field: Any) -> bool:
    annotation = field.field_info.annotation
    kinds = {getattr(kind, "__origin__", kind) for kind in get_args(annotation) or (annotation,)}
    return kinds <= {str, int, UUID, datetime, type(None)}


def _is_plain_body(field: Any) -> bool:
    info = field.field_info
    is_model = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    return is_model and not info.embed and info.media_type == "application/json"


class FastRoute:
    """A route that is served without FastAPI's layers."""

    def __init__(self, context: RouteContext) -> None:
        self.original = context.original_route
        self.path_params = context.dependant.path_params
        self.query_names = query_names(context.dependant)
        self.dependant: Dependant = context.dependant
        self.endpoint: Callable[..., Any] = context.endpoint  # type: ignore[assignment] # see why_not
        self.response_field = context.response_field
        self.status_code: int = context.status_code or 200

    async def respond(self, request: Request) -> Response:
        """Call dependencies, read the request, and call the endpoint."""
        headers = dict(request.scope["headers"])
        if request.scope.get("query_string") or len(headers) < len(request.scope["headers"]):
            refuse_ambiguous(request, self.query_names)
        arguments = await _call_dependencies(self.dependant, request)
        arguments |= await self._read(request, headers)
        response = Response(status_code=self.status_code, media_type="application/json")
        if self.dependant.response_param_name is not None:
            arguments[self.dependant.response_param_name] = response
        answer = await self.endpoint(**arguments)
        if isinstance(answer, Response):
            return answer
        response.body = self.response_field.serialize_json(answer)
        response.headers["content-length"] = str(len(response.body))
        return response

    async def _read(self, request: Request, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """The inputs that the endpoint takes. Raises RequestValidationError, with the errors in FastAPI's order.

        Raises as bodies.py does too.
        """
        arguments: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for place, fields, sent in (
            ("path", self.path_params, request.path_params),
            ("query", self.dependant.query_params, request.query_params),
        ):
            for field in fields:
                text = sent.get(field.alias)
                arguments[field.name], wrong = _read_parameter(field, text, (place, field.alias))
                errors += wrong
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


def _read_parameter(field: Any, text: str | None, location: tuple[str, str]) -> tuple[Any, list[dict[str, Any]]]:
    """The value of a parameter in path or query, and its errors."""
    if text is None and field.field_info.is_required():
        return None, [{"type": "missing", "loc": location, "msg": "Field required", "input": None}]
    if text is None:
        return field.get_default(), []
    validated: tuple[Any, list[dict[str, Any]]] = field.validate(text, loc=location)
    return validated


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
