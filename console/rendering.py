"""Pages: templates, which escape all that they show, and the headers that let a page do nothing but that."""

import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import to_json
from starlette.responses import HTMLResponse, RedirectResponse

from api.request_ids import request_id_of
from console.money import Money
from console.operators import signed_in_of

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    # With "no-referrer", browsers would send forms with the Origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def url(request: Request, path: str) -> str:
    """Return the address of a page of the console."""
    return f"{request.scope['root_path'].rstrip('/')}/console{path}"


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page; its template knows who is signed in, and the id of the request."""
    text = templates.get_template(template).render(
        **values,
        operator=signed_in_of(request),
        link=lambda path: url(request, path),
        here=request.url.path,
        request_id=request_id_of(request.scope),
    )
    return HTMLResponse(text, status, HEADERS)


def lead_to(request: Request, path: str) -> RedirectResponse:
    """Return a redirect to a page of the console, which is read with GET."""
    return RedirectResponse(url(request, path), 303, HEADERS)


def money_of(request: Request, currency: str) -> Money:
    """Return how amounts in this currency are shown."""
    decimals = {each.code: each.decimals for each in request.app.state.currencies}
    return Money(currency, decimals.get(currency))


def as_instant(moment: datetime | str | float) -> datetime:
    """Return a moment, which may be as JSON or seconds since 1970, in UTC."""
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment, UTC)
    return (datetime.fromisoformat(moment) if isinstance(moment, str) else moment).astimezone(UTC)


def _machine_time(moment: datetime | str | float) -> str:
    return f"{as_instant(moment):%Y-%m-%dT%H:%M:%SZ}"


def _people_time(moment: datetime | str | float) -> str:
    return f"{as_instant(moment):%d %b %Y, %H:%M:%S}".lstrip("0")


def _people_date(moment: datetime | str | float) -> str:
    return f"{as_instant(moment):%d %b %Y}".lstrip("0")


def _name_of(word: str) -> str:
    """Return "Register users" for register_users."""
    return re.sub(r"[_-]", " ", word).capitalize()


templates.filters |= {
    "machine_time": _machine_time,
    "people_time": _people_time,
    "people_date": _people_date,
    "words": _name_of,
    "as_json": lambda value: to_json(value, indent=2).decode(),
}


@cache
def read_asset(name: str) -> bytes:
    """Return the content of a file beside the templates."""
    return (FOLDER / name).read_bytes()
