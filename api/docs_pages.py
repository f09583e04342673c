"""The start page, and /docs and /redoc from files of an installed package: they need no internet."""

import hashlib
import re
from base64 import b64encode
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse

FOLDER = Path(fastapi_offline.__file__).with_name("static")
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
"""The media types of the files that the pages load."""

# ReDoc loads it from its vendor's site.
REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"

router = APIRouter(include_in_schema=False)


START = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Savepoint</title>
<link rel="icon" href="{root}/docs/assets/favicon.png">
<style>
:root {{ color-scheme: light dark; font: 1.1rem/1.6 system-ui, sans-serif; }}
body {{ max-width: 36rem; margin: 12vh auto; padding: 0 1.25rem; }}
h1 {{ margin: 0; }}
dt {{ margin-top: 1rem; font-weight: 600; }}
dd {{ margin: 0; }}
</style>
<h1>Savepoint</h1>
<p>{summary}</p>
<p>This is version {version}, and it is running. Programs call it over HTTP:</p>
<dl>
{links}
</dl>
</html>
"""
LINKS = {
    "/docs": "every call, to try out in the browser",
    "/redoc": "the same, to read",
    "/openapi.json": "the same, for programs that generate clients",
    "/readyz": "the state of the service, and of its database",
    "/console": "for operators: users, accounts and transfers",
}


@router.get("/")
async def get_start(request: Request) -> Response:
    """A page for a browser at the server's address: what this is, and where to go."""
    root = escape(request.scope["root_path"])
    # As console/routes.py serves it.
    has_console = request.app.state.console and request.app.state.operator_token_hash is not None
    links = "\n".join(
        f'<dt><a href="{root}{path}">{path}</a></dt><dd>{words}</dd>'
        for path, words in LINKS.items()
        if path != "/console" or has_console
    )
    app = request.app
    return _confined(HTMLResponse(START.format(root=root, summary=app.summary, version=app.version, links=links)))


rendered: dict[str, tuple[dict[str, Any], bytes]] = {}
"""The description and its JSON, by the root path of the API."""


@router.get("/openapi.json")
async def get_description(request: Request) -> Response:
    """The OpenAPI description, serialized once: that takes as long as a hundred calls."""
    description = request.app.openapi()
    root = request.scope["root_path"].rstrip("/")
    known, content = rendered.get(root, (None, b""))
    if known is not description:
        servers = {"servers": [{"url": root}, *description.get("servers", [])]} if root else {}
        content = bytes(JSONResponse(description | servers).body)
        rendered[root] = description, content
    return Response(content, media_type="application/json")


@router.get("/docs")
async def get_docs(request: Request) -> Response:
    """Swagger UI."""
    root = request.scope["root_path"]
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs/assets/favicon.png",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )
    return _confined(page)


@router.get("/redoc")
async def get_redoc(request: Request) -> Response:
    """ReDoc."""
    root = request.scope["root_path"]
    page = get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - ReDoc",
        redoc_js_url=f"{root}/docs/assets/redoc.standalone.js",
        redoc_favicon_url=f"{root}/docs/assets/favicon.png",
        with_google_fonts=False,
    )
    return _confined(page)


def _confined(page: Response) -> Response:
    """The page, which may run its own scripts, request this server only, and be in no frame.

    All have inline styles; ReDoc creates its search worker from a blob.
    """
    inline = re.findall(rb"<script>(.*?)</script>", page.body, re.DOTALL)
    hashes = "".join(f" 'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" for script in inline)
    page.headers["Content-Security-Policy"] = (
        f"default-src 'self'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "worker-src blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page.headers["X-Frame-Options"] = "DENY"
    page.headers["Referrer-Policy"] = "no-referrer"
    return page


@router.get("/docs/assets/{name}")
async def get_asset(name: str, request: Request) -> Response:
    """A script, style or icon of the pages, which browsers may cache for an hour."""
    if name not in ASSETS:
        raise HTTPException(404)
    content, tag = _read_asset(name)
    headers = {"Cache-Control": "max-age=3600", "ETag": tag}
    if request.headers.get("If-None-Match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=ASSETS[name], headers=headers)


@cache
def _read_asset(name: str) -> tuple[bytes, str]:
    """A file and its entity tag, in memory once for all clients, of which some read slowly."""
    content = (FOLDER / name).read_bytes().replace(REDOC_LOGO, b"data:,")
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
