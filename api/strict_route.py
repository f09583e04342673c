"""Strict reading of requests: refuse what would count in part only, or what two readers could read differently.

The caller is checked first, then the body is read (bodies.py).
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from fastapi.security.base import SecurityBase
from starlette.routing import Match

from api.bodies import parse_body, read_body
from api.problems import FieldError, InvalidFields, shorten

FAILURE = "savepoint.failure"
"""The key in the scope of a request of the exception that its route is to raise."""

SENT_ONCE = ("Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key")
MAX_PARAMETERS = 100

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route of FastAPI's whose requests are read strictly."""

    def get_route_handler(self) -> Handler:
        """Return the function that answers a request: FastAPI's, once the request is read."""
        ask_fastapi = super().get_route_handler()
        inputs: tuple[dict[str, bool], Handler | None] | None = None

        async def answer(request: Request) -> Response:
            nonlocal inputs
            if FAILURE in request.scope:
                raise request.scope.pop(FAILURE)
            # At the first request, since FastAPI does not tell a handler which routers include its route.
            inputs = inputs or self._find_inputs(request)
            names, check_caller = inputs
            refuse_ambiguous(request, names)
            if check_caller is not None:
                # FastAPI would read the body first.
                await check_caller(request)
                body = await read_body(request, dict(request.scope["headers"]))
                request = _ReadRequest(request, body, await parse_body(body) if body else None)
            return await ask_fastapi(request)

        return answer

    def _find_inputs(self, request: Request) -> tuple[dict[str, bool], Handler | None]:
        """Return the names of the query parameters and, for a route with a body, a handler that checks the caller.

        The dependencies of routers that include the route count too.
        """
        included = (each for each in iter_route_contexts(request.app.routes) if each.original_route is self)
        matching = (each for each in included if each.matches(request.scope)[0] is Match.FULL)
        context = next(matching, RouteContext(self))
        names = _query_names(context.dependant)
        if context.body_field is None:
            return names, None
        callers = [
            Security(each.call, scopes=each.own_oauth_scopes, use_cache=each.use_cache)
            for each in context.dependant.dependencies
            if _is_security(each)
        ]
        check = APIRoute(
            context.path or "/",
            _let_pass,
            dependencies=callers,
            dependency_overrides_provider=context.dependency_overrides_provider,
        )
        return names, check.get_route_handler()


async def _let_pass() -> Response:
    return Response()


class _ReadRequest(Request):
    """A request whose body was read before, and is given to FastAPI as it was read."""

    def __init__(self, request: Request, body: bytes, content: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._was_read = body
        self._content = content

    async def body(self) -> bytes:
        return self._was_read

    async def json(self) -> Any:
        return self._content


def _query_names(dependant: Dependant) -> dict[str, bool]:
    """Return the names of the query parameters, each with True if it may be sent more than once."""
    names = {}
    for field in get_flat_params(Dependant(query_params=dependant.query_params)):
        annotation = field.field_info.annotation
        names[field.alias] = any(get_origin(each) is list for each in (annotation, *get_args(annotation)))
    for dependency in dependant.dependencies:
        names |= _query_names(dependency)
    return names


def _is_security(dependant: Dependant) -> bool:
    return isinstance(dependant.call, SecurityBase) or any(map(_is_security, dependant.dependencies))


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
