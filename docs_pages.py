"""The pages /docs and /redoc, whose parts all come from an installed package: they need no internet."""

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

ASSETS = Path(fastapi_offline.__file__).with_name("static")

# ReDoc fetches it from its maker's site.
REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"

router = APIRouter(include_in_schema=False)
assets = StaticFiles(directory=ASSETS)


@router.get("/")
async def lead_to_docs(request: Request) -> Response:
    """The API, for whoever opens the server's address in a browser."""
    return RedirectResponse(f"{request.scope['root_path']}/docs")


@router.get("/docs")
async def get_docs(request: Request) -> Response:
    """The API, to try."""
    root = request.scope["root_path"]
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs/assets/favicon.png",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0, "persistAuthorization": True},
    )


@router.get("/redoc")
async def get_redoc(request: Request) -> Response:
    """The API, to read."""
    root = request.scope["root_path"]
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - ReDoc",
        redoc_js_url=f"{root}/redoc.js",
        redoc_favicon_url=f"{root}/docs/assets/favicon.png",
        with_google_fonts=False,
    )


@router.get("/redoc.js")
async def get_redoc_script() -> Response:
    """ReDoc without its logo."""
    return Response(read_redoc(), media_type="text/javascript")


@cache
def read_redoc() -> bytes:
    """ReDoc's script, from the package."""
    return (ASSETS / "redoc.standalone.js").read_bytes().replace(REDOC_LOGO, b"data:,")
