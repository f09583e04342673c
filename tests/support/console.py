"""Helpers of the tests of the console."""

import re
from html import unescape
from typing import Any

from httpx2 import Response
from starlette.testclient import TestClient

from operations import Operations
from refusals import OutcomeUnknown
from tests.support.service import OPERATOR_TOKEN

OTHER_SITE = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


class Console:
    """A browser without scripts, whose user has signed in as the operator."""

    def __init__(self, client: TestClient, token: str = OPERATOR_TOKEN) -> None:
        self.client = client
        answer = self.post("/sign-in", token=token)
        assert answer.status_code == 303, answer.text

    def get(self, path: str = "") -> Response:
        response: Response = self.client.get(f"/console{path}", follow_redirects=False)
        return response

    def post(self, path: str, headers: dict[str, str] | None = None, /, **fields: str) -> Response:
        response: Response = self.client.post(
            f"/console{path}", data=fields, headers=headers or {}, follow_redirects=False
        )
        return response

    def review(self, path: str, **typed: str) -> Response:
        """Fill in the form of an action, and go on to what it says will happen."""
        form = self.get(path)
        assert form.status_code == 200, form.text
        return self.post(path, **hidden(form), **typed, step="review") if typed else form

    def do(self, path: str, **typed: str) -> Response:
        """Fill in, and confirm."""
        return self.confirm(path, self.review(path, **typed))

    def confirm(self, path: str, page: Response) -> Response:
        """Press the first button of a page that says what will happen."""
        assert page.status_code == 200, page.text
        return self.post(path, **hidden(page), step="do")

    def confirm_anyway(self, path: str, page: Response) -> Response:
        """Press the first button of a page that says that something has changed."""
        return self.post(path, **hidden(page), step="do")


def hidden(page: Response) -> dict[str, str]:
    """The hidden fields of the form of a page, but for the one to sign out."""
    form = page.text.partition("<main")[2]
    return {unescape(name): unescape(value) for name, value in HIDDEN.findall(form)}


HIDDEN = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">')


def words(page: Response) -> str:
    """The text of a page, without its marks."""
    main = page.text.partition("<main")[2].partition("</main>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", "<" + main)).split())


def location(answer: Response) -> str:
    """Where an answer leads to."""
    assert answer.status_code == 303, answer.text
    where: str = answer.headers["location"]
    return where


def fail_after_writing() -> Any:
    """A write that is done, and whose outcome then stays unknown."""
    write = Operations.write

    async def write_and_fail(*args: Any) -> None:
        await write(*args)
        raise OutcomeUnknown

    return write_and_fail
