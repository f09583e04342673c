"""Strict reading of requests: refuse what would count in part only, or what two readers could read differently.

Who calls is asked first, then the body is read (bodies.py).
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_origin
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase

from api.bodies import parse_body, read_body
from api.problems import FieldError, InvalidFields, shorten

FAILURE = "savepoint.failure"
"""The key in the scope of a request of the exception that its route is to raise."""

SENT_ONCE = ("Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key")
MAX_PARAMETERS = 100


class StrictRoute(APIRoute):
    """A route of FastAPI's whose requests are read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request: FastAPI's, once the request is read."""
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
    """The request itself and what the dependencies return, by the names of their parameters."""
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
    """Call a dependency, and those that it depends on."""
    assert dependency.call is not None
    return await dependency.call(**await call_dependencies(dependency, request))
