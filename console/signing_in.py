"""Signing in with the operator's token, and out; the stylesheet and the icon, which are for anyone."""

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from api.callers import count_failed_token, operations_of
from api.errors import report
from console.forms import is_from_elsewhere, read_form
from console.operators import find_signed_in, identify
from console.rendering import HEADERS, lead_to, page, read_asset, url
from console.routes import PublicRoute, SessionRoute, failed
from console.sessions import COOKIE, LIFETIME, start_session
from refusals import ScopeMissing, TooManyRequests, Unauthenticated

router = APIRouter(prefix="/console", route_class=PublicRoute, include_in_schema=False)
signed_in = APIRouter(prefix="/console", route_class=SessionRoute, include_in_schema=False)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ASSETS = {"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}


def _next_path(request: Request, asked: str) -> str:
    """Return the path within the console that was asked for before signing in; its start for any other address."""
    root = url(request, "")
    parts = urlsplit(asked)
    is_ours = not parts.scheme and not parts.netloc and parts.path.startswith(f"{root}/") and "\\" not in asked
    path = parts.path.removeprefix(root) if is_ours else ""
    return "" if path.startswith("/sign-") else path


@router.get("/sign-in")
async def show_sign_in(request: Request) -> Response:
    """The form for the operator's token."""
    path = _next_path(request, request.query_params.get("next", ""))
    if await find_signed_in(request) is not None:
        return lead_to(request, path)
    return _sign_in_page(request, path)


def _sign_in_page(request: Request, path: str, error: str = "", status: int = 200) -> Response:
    # A cookie with SameSite=Strict does not come with a link from another site; it does with a link from this page.
    comes_from_elsewhere = is_from_elsewhere(request)
    return page(
        request,
        "sign_in.html",
        status,
        path=path,
        error=error,
        comes_from_elsewhere=comes_from_elsewhere,
        in_development=operations_of(request).settings.environment == "development",
    )


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Begin a session. Wrong tokens count for the address that sends them, as in the API."""
    form = await read_form(request)
    if is_from_elsewhere(request):
        return failed(request, 403)
    path = _next_path(request, form.get("next", ""))
    try:
        who = await identify(request, form.get("token", "").strip())
    except Unauthenticated:
        try:
            count_failed_token(request)
        except TooManyRequests as limited:
            return _sign_in_page(request, path, (await report(request, limited)).detail, 429)
        return _sign_in_page(request, path, "This is no token of the operator, or it is no longer valid.", 403)
    except ScopeMissing:
        return _sign_in_page(request, path, "This key cannot use the console: it needs the scope “read”.", 403)
    answer = lead_to(request, path)
    is_secure = not (request.url.scheme == "http" and _may_be_plain(request))
    cookie_path = url(request, "")
    answer.set_cookie(
        COOKIE,
        start_session(request.app.state.operator_token_hash, who),
        max_age=LIFETIME,
        path=cookie_path,
        secure=is_secure,
        httponly=True,
        samesite="strict",
    )
    return answer


def _may_be_plain(request: Request) -> bool:
    """Return True where the connection need not be encrypted: on this machine, and in development."""
    return request.url.hostname in LOOPBACK or operations_of(request).settings.environment == "development"


@signed_in.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """End the session of this browser."""
    answer = lead_to(request, "/sign-in")
    answer.delete_cookie(COOKIE, path=url(request, ""))
    return answer


@signed_in.get("/sign-out")
async def show_sign_out(request: Request) -> Response:
    """A redirect to the dashboard: an address that was typed or reloaded ends no session."""
    return lead_to(request, "")


@router.get("/assets/{name}")
async def get_asset(name: str, request: Request) -> Response:
    """The stylesheet or the icon."""
    if name not in ASSETS:
        return failed(request, 404)
    headers = {**HEADERS, "Cache-Control": "max-age=3600"}
    return Response(read_asset(name), headers=headers, media_type=ASSETS[name])
