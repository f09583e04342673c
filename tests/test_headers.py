"""Headers that keep answers from being guessed at, stored, framed or sent elsewhere."""

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message

import crud
from api.middleware import CountRequests
from main import app
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN

ASSETS = (
    "/docs/assets/swagger-ui.css",
    "/docs/assets/swagger-ui-bundle.js",
    "/docs/assets/favicon.png",
    "/docs/assets/redoc.standalone.js",
)


@pytest.fixture
def http(sqlite_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The service, on SQLite alone: none of this depends on the database."""
    path = shutil.copy(sqlite_template, tmp_path / "headers.db")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def test_no_answer_is_stored_or_taken_for_another_type(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = http.post("/register", json=named("alice"))
    as_alice = {"Authorization": f"Bearer {registered.json()['access_token']}"}
    answers = [
        registered,  # answered directly
        http.get("/me", headers=as_alice),
        http.head("/me", headers=as_alice),
        http.get("/accounts/1", headers=as_alice),  # answered by FastAPI
        http.post("/tokens", json={"name": "x"}, headers=as_alice),
        http.delete("/tokens/2", headers=as_alice),  # 204
        http.post("/users/batch", json={"users": [named("bob")]}, headers=AS_OPERATOR),
        http.post("/register", json=named("alice")),  # 409
        http.get("/me"),  # 401
        http.get("/users", headers=as_alice),  # 403
        http.get("/nowhere"),
        http.put("/me"),
        http.post("/register", json=named("a" * 2**20)),  # 413
        http.post("/register", content=b"{", headers={"Content-Type": "application/json"}),
        http.post("/register", json={}),  # 422
        *map(http.get, ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/redoc")),
    ]
    monkeypatch.setitem(app.state.operations.single, crud.register_users, AsyncMock(side_effect=RuntimeError))
    answers.append(http.post("/register", json=named("bob")))

    assert {201, 200, 204, 400, 401, 403, 404, 405, 409, 413, 422, 500} <= {each.status_code for each in answers}
    for each in answers:
        kept = [(name, value) for name, value in each.headers.multi_items() if name in ("cache-control", "pragma")]
        assert kept == [("cache-control", "no-store")], each.request.url
        assert each.headers.get_list("x-content-type-options") == ["nosniff"], each.request.url


def test_the_scripts_of_the_docs_may_be_kept(http: TestClient) -> None:
    for path in ASSETS:
        answer = http.get(path)
        assert (answer.status_code, answer.headers.get_list("cache-control")) == (200, ["max-age=3600"])
        assert answer.headers["x-content-type-options"] == "nosniff"
    unchanged = http.get(ASSETS[0], headers={"If-None-Match": http.get(ASSETS[0]).headers["etag"]})
    assert (unchanged.status_code, unchanged.headers["cache-control"]) == (304, "max-age=3600")


async def test_a_response_that_is_sent_twice_has_each_header_once() -> None:
    ready_made = PlainTextResponse("busy", 503)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    for _ in range(2):
        sent.clear()
        await CountRequests(ready_made)({"type": "http", "method": "GET", "headers": []}, AsyncMock(), send)
    names = [name for name, _ in sent[0]["headers"]]
    assert len(names) == len(set(names)) == 5


def policy_of(page: Any) -> dict[str, list[str]]:
    """The directives of a page's Content-Security-Policy."""
    directives = (directive.split() for directive in page.headers["content-security-policy"].split(";"))
    return {name: sources for name, *sources in directives}


@pytest.mark.parametrize("root_path", ["", "/bank"])
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_docs_page_runs_its_own_scripts_only_and_is_in_no_frame(http: TestClient, path: str, root_path: str) -> None:
    page = TestClient(app, root_path=root_path).get(path)
    inline = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    policy = policy_of(page)

    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in inline]
    assert policy["script-src"] == ["'self'", *hashes]
    assert policy["default-src"] == ["'self'"]
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == ["'none'"]
    assert not re.search(r"https?:|\*|unsafe-eval", page.headers["content-security-policy"])
    assert (page.headers["x-frame-options"], page.headers["referrer-policy"]) == ("DENY", "no-referrer")


def test_the_docs_forget_the_tokens_that_they_were_given(http: TestClient) -> None:
    assert "persistAuthorization" not in http.get("/docs").text
