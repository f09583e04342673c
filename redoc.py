"""The page /redoc, without the logo that ReDoc fetches from its maker's site: it needs no internet."""

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html

SCRIPT = Path(fastapi_offline.__file__).with_name("static") / "redoc.standalone.js"
LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"

router = APIRouter(include_in_schema=False)


@cache
def read_script() -> bytes:
    """ReDoc itself, from the installed package."""
    return SCRIPT.read_bytes().replace(LOGO, b"data:,")


@router.get("/redoc.js")
async def get_redoc_script() -> Response:
    """The script of the page."""
    return Response(read_script(), media_type="text/javascript")


@router.get("/redoc")
async def get_redoc(request: Request) -> Response:
    """The description of the API, to read."""
    root = request.scope["root_path"]
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - ReDoc",
        redoc_js_url=f"{root}/redoc.js",
        redoc_favicon_url=f"{root}/static-offline-docs/favicon.png",
        with_google_fonts=False,
    )
