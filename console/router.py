"""The console as one router, for main.py."""

from fastapi import APIRouter, Request, Response

from console import acting, pages, signing_in
from console.routes import SessionRoute, failed

router = APIRouter()
for each in (signing_in.router, signing_in.signed_in, pages.router, acting.router):
    router.include_router(each)

unknown = APIRouter(prefix="/console", route_class=SessionRoute, include_in_schema=False)


@unknown.get("/{path:path}")
async def show_unknown(request: Request) -> Response:
    """The page for every other path."""
    return failed(request, 404)


# The last, since the first route with the path answers.
router.include_router(unknown)
