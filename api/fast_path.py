"""Routes whose valid requests are answered at once, and all others as FastAPI does.

A valid request to a DirectRoute passes through CountRequests alone. What is wrong with any other is raised inside
FastAPI, which answers it. Who calls is asked first, then the body is read (api/bodies.py), on either way.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, get_origin
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from api.bodies import SMALL, parse_body, parse_json, read_body
from api.middleware import CatchUnexpected, CountRequests, LimitBody
from api.problems import FieldError, InvalidFields, shorten

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
        names = query_names(self.dependant)
        callers = [each for each in self.dependant.dependencies if is_security(each)]

        async def answer(request: Request) -> Response:
            if FAILURE in request.scope:
                raise request.scope.pop(FAILURE)
            headers = dict(request.scope["headers"])
            refuse_ambiguous(request, names)
            if self.dependant.body_params:
                # FastAPI would read the body first.
                for caller in callers:
                    await call_dependency(caller, request)
                body = await read_body(request, headers)
                content = await parse_body(body) if body else None
                request = ReadRequest(request, body, content)
            return await ask_fastapi(request)

        return answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As FastAPI's, except that a path that is declared as it stands is not taken for one with a parameter.

        Otherwise the methods of /users/{id} would seem to be those of /users/batch too.
        """
        match, child_scope = super().matches(scope)
        if match is not Match.NONE and self.param_convertors:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path in getattr(scope["app"], "paths_without_parameters", ()):
                return Match.NONE, {}
        return match, child_scope

    async def respond(self, request: Request) -> Response:
        """Call dependencies, read the request, and call the endpoint."""
        assert self.response_field is not None
        headers = dict(request.scope["headers"])
        if request.scope.get("query_string") or len(headers) < len(request.scope["headers"]):
            refuse_ambiguous(request, {})
        arguments = await call_dependencies(self.dependant, request)
        arguments |= await self.read(request, headers)
        response = Response(status_code=self.status_code or 200, media_type="application/json")
        if self.dependant.response_param_name is not None:
            arguments[self.dependant.response_param_name] = response
        response.body = self.response_field.serialize_json(await self.endpoint(**arguments))
        response.headers["content-length"] = str(len(response.body))
        return response

    async def read(self, request: Request, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """The body and the headers that the endpoint asks for. Raises RequestValidationError, and as api/bodies.py does."""
        arguments: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for field in self.dependant.header_params:
            value = headers.get(field.alias.lower().encode())
            if value is not None:
                arguments[field.name], wrong = field.validate(value.decode("latin-1"), loc=("header", field.alias))
                errors += wrong
        for field in self.dependant.body_params:
            arguments[field.name], wrong = await read_model(field, await read_body(request, headers))
            errors += wrong
        if errors:
            raise RequestValidationError(errors)
        return arguments


async def read_model(field: Any, body: bytes) -> tuple[Any, list[dict[str, Any]]]:
    """The model in a body, and what is wrong with it."""
    if not body and field.field_info.is_required():
        return None, [{"type": "missing", "loc": ("body",), "msg": "Field required"}]
    if not body:
        return field.get_default(), []
    model: type[BaseModel] = field.field_info.annotation
    if len(body) <= SMALL:
        try:
            found = model.model_validate_json(body)
        except ValidationError:
            # Read once more below, which finds every error.
            pass
        else:
            # With as many colons as fields, none is there twice; otherwise one may be, or a text has colons.
            if body.count(b":") != len(found.model_fields_set):
                parse_json(body)
            return found, []
    validated: tuple[Any, list[dict[str, Any]]] = field.validate(await parse_body(body), loc=("body",))
    return validated


class ReadRequest(Request):
    """A request whose body was read before, and is given to FastAPI as it was read."""

    def __init__(self, request: Request, body: bytes, content: Any) -> None:
        super().__init__(request.scope, request.receive)
        self.was_read = body
        self.content = content

    async def body(self) -> bytes:
        """The bytes."""
        return self.was_read

    async def json(self) -> Any:
        """The value."""
        return self.content


def query_names(dependant: Dependant) -> dict[str, bool]:
    """The names of the query parameters that a route takes, and whether each may be there more than once."""
    names = {field.alias: get_origin(field.field_info.annotation) is list for field in dependant.query_params}
    for dependency in dependant.dependencies:
        names |= query_names(dependency)
    return names


def is_security(dependant: Dependant) -> bool:
    """Return True if a dependency asks for credentials."""
    return isinstance(dependant.call, SecurityBase) or any(map(is_security, dependant.dependencies))


SENT_ONCE = ("Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key")
MAX_PARAMETERS = 100


def refuse_ambiguous(request: Request, names: Mapping[str, bool]) -> None:
    """Refuse what would count in part only: unknown or repeated query parameters, and repeated headers."""
    query = request.scope.get("query_string", b"")
    if query.count(b"&") >= MAX_PARAMETERS:
        raise InvalidFields([FieldError(field="query", detail=f"Send at most {MAX_PARAMETERS} parameters")])
    errors = []
    for name, sent in Counter(name for name, _ in parse_qsl(query.decode("latin-1"), True)).items():
        if name not in names:
            errors.append(FieldError(field=f"query.{shorten(name)}", detail="There is no such parameter"))
        elif sent > 1 and not names[name]:
            errors.append(FieldError(field=f"query.{name}", detail="Send this parameter once"))
    sent_headers = Counter(name for name, _ in request.scope["headers"])
    errors += [
        FieldError(field=f"header.{name}", detail="Send this header once")
        for name in SENT_ONCE
        if sent_headers[name.lower().encode()] > 1
    ]
    if errors:
        raise InvalidFields(errors)


async def call_dependencies(dependant: Dependant, request: Request) -> dict[str, Any]:
    """The request itself and what the dependencies answer, by the names of their parameters."""
    arguments: dict[str, Any] = {}
    for name in (dependant.request_param_name, dependant.http_connection_param_name):
        if name is not None:
            arguments[name] = request
    for dependency in dependant.dependencies:
        outcome = await call_dependency(dependency, request)
        if dependency.name is not None:
            arguments[dependency.name] = outcome
    return arguments


async def call_dependency(dependency: Dependant, request: Request) -> Any:
    """What a dependency answers."""
    assert dependency.call is not None
    return await dependency.call(**await call_dependencies(dependency, request))


class AnswerDirectly:
    """Answers the valid requests to direct routes, and leaves the others to `app`."""

    def __init__(self, app: ASGIApp, api: FastAPI) -> None:
        self.app = app
        self.api = api
        self.routes = {
            (method, route.path): route
            for route in api.routes
            if isinstance(route, DirectRoute) and route.is_direct
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None or self.api.dependency_overrides:
            await self.app(scope, receive, send)
            return
        try:
            response = await route.respond(Request(scope, receive))
        except Exception as failure:
            scope[FAILURE] = failure
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        await response(scope, receive, send)


class DirectAPI(FastAPI):
    """FastAPI with direct routes, and with a description of the `bodies` that routes read themselves."""

    def __init__(self, *, bodies: Sequence[type[BaseModel]], **options: Any) -> None:
        self.bodies = bodies
        super().__init__(**options)
        self.router.route_class = DirectRoute

    def openapi(self) -> dict[str, Any]:
        """The description of the API."""
        known = self.openapi_schema
        description = super().openapi()
        # FastAPI describes anew when routes were added.
        if description is not known:
            _, described = models_json_schema(
                [(body, "validation") for body in self.bodies], ref_template="#/components/schemas/{model}"
            )
            description["components"]["schemas"] |= described["$defs"]
        return description

    def build_middleware_stack(self) -> ASGIApp:
        """Count the requests that are answered directly, too; with any other middleware, answer none directly."""
        paths = (route.path or "" for route in iter_route_contexts(self.routes))
        self.paths_without_parameters = {path for path in paths if "{" not in path}
        stack = super().build_middleware_stack()
        if {each.cls for each in self.user_middleware} <= {CatchUnexpected, LimitBody}:
            stack = AnswerDirectly(stack, self)
        return CountRequests(stack)
