"""The fast path: fast routes (fast_route.py), unless their path has parameters, outside all of FastAPI's layers.

It is off if any middleware is added (DescribedAPI), which would not see its requests. It leaves to FastAPI each invalid
request, and all routes if a dependency is overridden.
"""

import logging

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

from api.fast_route import FAST, FastRoute, why_not
from api.strict_route import FAILURE, StrictRoute

logger = logging.getLogger("savepoint")


class FastPath:
    """Answers valid requests to fast routes, and leaves all others to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.routes: dict[tuple[str, str], FastRoute] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self.routes is None:
            self.routes = {key: each for key, each in find_fast_routes(scope["app"]).items() if not each.path_params}
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


def find_fast_routes(api: FastAPI) -> dict[tuple[str, str], FastRoute]:
    """The routes that can be served, by method and path; logs which others requested it, and why they are not."""
    found: dict[tuple[str, str], FastRoute] = {}
    for context in iter_route_contexts(api.routes):
        if context.endpoint not in FAST or context.path is None:
            continue
        reason = why_not(context) if isinstance(context.original_route, StrictRoute) else "it is no StrictRoute"
        if reason is None:
            found |= {(method, context.path): FastRoute(context) for method in context.methods or ()}
        else:
            logger.warning("%s takes FastAPI's own way, which is slower: %s.", context.path, reason)
    return found
