"""Strict reading of requests: refuse what would count in part only, or what two readers could read differently.

The caller is checked first, then the body is read (bodies.py).
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from fastapi.security.base import SecurityBase
from starlette.routing import Match

from api.ambiguity import query_names, refuse_ambiguous
from api.bodies import parse_body, read_body
from api.fast_route import FAST, FastRoute, why_not

FAILURE = "savepoint.failure"
"""The key in the scope of a request of the exception that its route is to raise."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route of FastAPI's whose requests are read strictly."""

    def get_route_handler(self) -> Handler:
        """Return the function that answers a request: FastAPI's, once the request is read."""
        ask_fastapi = super().get_route_handler()
        inputs: tuple[FastRoute | None, dict[str, bool], Handler | None] | None = None

        async def answer(request: Request) -> Response:
            nonlocal inputs
            if FAILURE in request.scope:
                raise request.scope.pop(FAILURE)
            # At the first request, since FastAPI does not tell a handler which routers include its route.
            inputs = inputs or self._find_inputs(request)
            fast, names, check_caller = inputs
            if fast is not None and not request.app.dependency_overrides:
                return await fast.respond(request)
            refuse_ambiguous(request, names)
            if check_caller is not None:
                # FastAPI would read the body first.
                await check_caller(request)
                body = await read_body(request, dict(request.scope["headers"]))
                request = _ReadRequest(request, body, await parse_body(body) if body else None)
            return await ask_fastapi(request)

        return answer

    def _find_inputs(self, request: Request) -> tuple[FastRoute | None, dict[str, bool], Handler | None]:
        """Return the fast route, if it is one, the names of the query parameters, and a check of the caller.

        The caller is checked first if there is a body. The dependencies of routers that include the route count too.
        """
        included = (each for each in iter_route_contexts(request.app.routes) if each.original_route is self)
        matching = (each for each in included if each.matches(request.scope)[0] is Match.FULL)
        context = next(matching, RouteContext(self))
        names = query_names(context.dependant)
        fast = FastRoute(context) if context.endpoint in FAST and why_not(context) is None else None
        if context.body_field is None:
            return fast, names, None
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
        return fast, names, check.get_route_handler()


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


def _is_security(dependant: Dependant) -> bool:
    return isinstance(dependant.call, SecurityBase) or any(map(_is_security, dependant.dependencies))
