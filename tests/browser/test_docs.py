"""The docs pages, used by a person whose browser cannot reach the internet."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect

from tests.support.browser import ELSEWHERE
from tests.support.service import OPERATOR_TOKEN, Server

LAST = "Metrics for Prometheus"
"""The summary that both pages show last."""

Operation = tuple[str, str, str]
"""Method, path and summary."""

expect.set_options(timeout=30_000)


@dataclass
class Visit:
    """One tab, and what went wrong in it."""

    page: Page
    refused: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        """The page, once it shows all there is."""
        self.page.goto(path)
        expect(self.page.locator("h2, .opblock-summary", has_text=LAST)).to_be_visible()
        return self.page

    def refuse(self, route: Route) -> None:
        self.refused.add(route.request.url)
        route.abort()

    def note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with browser.new_context(base_url=server.url) as context:
        visit = Visit(context.new_page())
        context.route(ELSEWHERE, visit.refuse)
        visit.page.on("console", visit.note)
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        yield visit


@pytest.fixture
def docs(visit: Visit) -> Page:
    return visit.open("/docs")


@pytest.fixture(scope="module")
def described(server: Server) -> dict[str, list[Operation]]:
    """The operations that /openapi.json describes, by tag."""
    by_tag: dict[str, list[Operation]] = {}
    for path, methods in httpx2.get(f"{server.url}/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            for tag in operation.get("tags", ["default"]):
                by_tag.setdefault(tag, []).append((method.upper(), path, operation["summary"]))
    return by_tag


def shown(operation: Locator) -> Operation:
    """The line of an operation as /docs shows it."""
    method, path, summary = (
        operation.locator(f".opblock-summary-{part}").inner_text() for part in ("method", "path", "description")
    )
    return method, path.replace("\u200b", ""), summary  # Zero-width spaces let a long path break.


def open_operation(docs: Page, method: str, path: str) -> Locator:
    """The operation, unfolded."""
    operation = docs.locator(f".opblock-{method.lower()}", has=docs.locator(f'[data-path="{path}"]'))
    operation.locator(".opblock-summary-control").click()
    return operation


def execute(operation: Locator) -> tuple[int, Any]:
    """Press Execute; status and body of the answer that the page then shows."""
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response")
    status = int(answer.locator(".response-col_status").inner_text())
    return status, json.loads(answer.locator(".highlight-code code").first.inner_text())


def register(docs: Page, username: str) -> tuple[int, Any]:
    """Send the example of POST /register under another name."""
    operation = open_operation(docs, "POST", "/register")
    operation.get_by_role("button", name="Try it out").click()
    body = operation.locator("textarea.body-param__text")
    body.fill(json.dumps({**json.loads(body.input_value()), "username": username}))
    return execute(operation)


def get(docs: Page, path: str) -> tuple[int, Any]:
    """Send GET with what the page puts into its parameters."""
    operation = open_operation(docs, "GET", path)
    operation.get_by_role("button", name="Try it out").click()
    return execute(operation)


def authorize(docs: Page, scheme: str, token: str) -> None:
    """Give the page a token for one of its security schemes."""
    docs.get_by_role("button", name="Authorize").click()
    dialog = docs.locator(".dialog-ux")
    choice = dialog.locator(".auth-container", has=docs.locator("h4", has_text=re.compile(scheme, re.IGNORECASE)))
    choice.locator("input").fill(token)
    choice.get_by_role("button", name="Apply credentials").click()
    dialog.locator(".close-modal").click()


def test_docs_show_every_operation_under_its_tag_with_its_summary(
    docs: Page, described: dict[str, list[Operation]]
) -> None:
    groups = docs.locator(".opblock-tag-section").all()

    by_tag = {
        group.locator(".opblock-tag").get_attribute("data-tag"): sorted(map(shown, group.locator(".opblock").all()))
        for group in groups
    }
    assert by_tag == {tag: sorted(operations) for tag, operations in described.items()}
    assert "default" not in by_tag  # where operations without a tag end up
    assert ("POST", "/register", "Register a user") in by_tag["registration"]


def test_a_person_registers_with_the_example_and_is_that_user_with_the_token_shown(docs: Page) -> None:
    username = f"alice-{uuid4().hex[:8]}"

    status, answer = register(docs, username)

    assert (status, answer["message"]) == (201, "Registration successful")
    authorize(docs, "user", answer["access_token"])
    assert get(docs, "/me") == (200, answer["user"])
    assert answer["user"]["username"] == username


def test_the_operator_lists_users_with_the_operator_token(docs: Page) -> None:
    username = f"bob-{uuid4().hex[:8]}"
    register(docs, username)

    authorize(docs, "operator", OPERATOR_TOKEN)

    status, page = get(docs, "/users")
    assert status == 200
    assert username in [user["username"] for user in page["items"]]


def test_register_documents_a_taken_name_as_a_409_problem(docs: Page) -> None:
    conflict = open_operation(docs, "POST", "/register").locator('.response[data-code="409"]')

    assert conflict.locator(".content-type").input_value() == "application/problem+json"
    example = json.loads(conflict.locator(".highlight-code code").inner_text())
    assert (example["type"], example["status"]) == ("/problems/username-taken", 409)


def test_redoc_shows_every_operation(visit: Visit, described: dict[str, list[Operation]]) -> None:
    headings = visit.open("/redoc").locator("h2").all_inner_texts()

    summaries = [summary for operations in described.values() for _, _, summary in operations]
    assert {*described, *summaries} <= set(headings)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_docs_page_needs_nothing_from_elsewhere_and_reports_no_error(visit: Visit, path: str) -> None:
    visit.open(path).wait_for_load_state("networkidle")

    assert visit.refused == set()
    assert visit.errors == []


def test_a_token_is_forgotten_with_the_page(docs: Page) -> None:
    authorize(docs, "operator", OPERATOR_TOKEN)
    assert get(docs, "/users")[0] == 200

    assert docs.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'


def test_a_path_is_filled_in_and_an_idempotency_key_is_not(docs: Page) -> None:
    for method, path, values in (("GET", "/users/{id}", ["1"]), ("POST", "/transfers", [""])):
        operation = open_operation(docs, method, path)
        operation.get_by_role("button", name="Try it out").click()
        assert [field.input_value() for field in operation.locator("tr[data-param-name] input").all()] == values


def test_a_docs_page_runs_no_script_that_is_not_its_own(visit: Visit) -> None:
    page = visit.open("/docs")

    page.evaluate(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script);"
    )

    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in error for error in visit.errors)
