"""The routes of the console: who may reach them, and refusals as pages."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from secrets import compare_digest
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from api.callers import ACTOR
from api.errors import report
from console.forms import is_from_elsewhere, read_form
from console.operators import SIGNED_IN, find_signed_in, read_cookie
from console.rendering import lead_to, page
from refusals import Refusal

FORM = "savepoint.console_form"
"""The key in a request's scope of the fields of a form that was sent."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

WORDS = {
    400: "This form could not be read. Go back, reload the page, and send it again.",
    403: "This was sent by another site, or by a page of an earlier session. Nothing was done: go back and reload.",
    404: "There is no such page, or nothing with this number.",
    413: "This form is too large. Shorten what you wrote.",
    415: "This form could not be read. Send it from the console's own pages.",
}
"""What each status means for who uses the console."""


class PublicRoute(APIRoute):
    """A page for anyone, where the console is on; a refusal is a page too."""

    def get_route_handler(self) -> Handler:
        """Return the function that answers a request."""
        ask_fastapi = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if not request.app.state.console or request.app.state.operator_token_hash is None:
                raise HTTPException(404)
            try:
                return await self.admit(request) or await ask_fastapi(request)
            except Refusal as refusal:
                return await refused(request, refusal)
            except RequestValidationError:
                return failed(request, 404)
            except HTTPException as error:
                return failed(request, error.status_code)

        return answer

    async def admit(self, request: Request) -> Response | None:
        """Return an answer to who may not have the page, or None."""
        return None


class SessionRoute(PublicRoute):
    """A page for who has signed in; its forms are accepted from pages of the same session only."""

    async def admit(self, request: Request) -> Response | None:
        """Lead to the sign-in page without a session; read the form that was sent, if one was."""
        is_form = request.method == "POST" and read_cookie(request) is not None
        # First, since a key may be revoked while it arrives.
        form = await read_form(request) if is_form else {}
        signed_in = await find_signed_in(request)
        if signed_in is None:
            # What was typed into a form is lost; the page that it stood on is found again.
            return lead_to(request, f"/sign-in?next={quote(request.url.path)}")
        request.scope[SIGNED_IN], request.scope[FORM], request.scope[ACTOR] = signed_in, form, signed_in.actor
        if is_form:
            sent, expected = form.pop("form_token", ""), signed_in.session.form_token
            if is_from_elsewhere(request) or not compare_digest(sent.encode(), expected.encode()):
                return failed(request, 403)
        return None


def form_of(request: Request) -> dict[str, str]:
    """Return the fields of the form that was sent."""
    form: dict[str, str] = request.scope[FORM]
    return form


def failed(request: Request, status: int) -> Response:
    """Return the page for a status."""
    detail = WORDS.get(status, f"{HTTPStatus(status).phrase}.")
    return page(
        request, "refused.html", status, title=HTTPStatus(status).phrase, detail=detail, path="", name="the dashboard"
    )


async def refused(request: Request, refusal: Refusal, path: str = "", name: str = "the dashboard") -> Response:
    """Return the page for a refusal, in the words of the API, with a link to where to go on."""
    problem = await report(request, refusal)
    return page(
        request, "refused.html", problem.status, title=problem.title, detail=problem.detail, path=path, name=name
    )
