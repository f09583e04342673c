"""Methods and paths as HTTP means them (RFC 9110): HEAD, Allow, and no redirect to a host that a caller names."""

import re
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from main import app
from tests.support.problems import assert_problem
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Server, serving

ELSEWHERE = "http://evil.example"


PATHS: dict[str, set[str]] = {}
"""Every path, as a template, with the methods that are declared for it."""


for context in iter_route_contexts(app.routes):
    if context.methods:
        PATHS.setdefault(str(context.path), set()).update(context.methods)


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")


# None of this depends on the database: SQLite alone, and one service for all tests.


@pytest.fixture(scope="module")
def folder(sqlite_template: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("methods")
    for name in ("here.db", "server.db"):
        shutil.copy(sqlite_template, folder / name)
    return folder


@pytest.fixture(scope="module")
def http(folder: Any) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", f"sqlite:///{folder}/here.db")
        patch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
        with TestClient(app, ELSEWHERE, raise_server_exceptions=False, follow_redirects=False) as client:
            yield client


@pytest.fixture(scope="module")
def server(folder: Any) -> Iterator[Server]:
    with serving(f"sqlite:///{folder}/server.db", folder) as server:
        yield server


def at(path: str) -> str:
    """An address that the template matches."""
    return path.replace("{id}", "1").replace("{token_id}", "1")


def test_head_is_answered_as_get_without_the_body(http: TestClient) -> None:
    readable = [at(path) for path, methods in PATHS.items() if "GET" in methods]
    assert len(readable) > 15
    for path in (*readable, "/nowhere", "/docs/assets/swagger-ui.css", "/docs/assets"):
        for headers in ({"X-Request-ID": "same"}, AS_OPERATOR | {"X-Request-ID": "same"}):
            get, head = (http.request(method, path, headers=headers) for method in ("GET", "HEAD"))
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert get.headers["content-length"] == str(len(get.content)), path
            if path != "/metrics":  # It counted one more in between.
                assert head.headers == get.headers, path


def test_head_is_counted_as_head(http: TestClient) -> None:
    http.head("/healthz")

    counted = http.get("/metrics", headers=AS_OPERATOR).text
    assert 'savepoint_requests_total{method="HEAD",route="/healthz",status="200"}' in counted


def test_a_real_server_answers_head_with_the_length_and_no_body(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as caller:
        for path in ("/healthz", "/me", "/nowhere", "/docs", "/docs/assets/swagger-ui.css", "/users"):
            # On one connection, where a body would be taken for the next answer.
            head, get = caller.head(path, headers=AS_OPERATOR), caller.get(path, headers=AS_OPERATOR)
            assert (head.status_code, head.content) == (get.status_code, b"")
            assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


def test_the_description_of_the_api_has_no_head() -> None:
    assert all("head" not in methods for methods in app.openapi()["paths"].values())


def test_a_method_that_a_path_does_not_take_is_405_and_allow_lists_those_it_takes(http: TestClient) -> None:
    for path, declared in PATHS.items():
        taken = declared | ({"HEAD"} if "GET" in declared else set())
        for method in set(METHODS) - taken:
            response = http.request(method, at(path), headers=AS_OPERATOR)
            assert (response.status_code, response.headers.get("Allow")) == (405, ", ".join(sorted(taken))), path
            if method != "HEAD":
                assert_problem(response, 405, "method-not-allowed")


def test_a_path_of_its_own_is_never_taken_for_an_id(http: TestClient) -> None:
    # All but the console's last route, which is for any other path.
    with_ids = [path for path in PATHS if "{" in path and ":path}" not in path]
    templates = [re.compile(re.sub(r"{\w+(:\w+)?}", "[^/]+", path)) for path in with_ids]
    shadowed = {path for path in PATHS for template in templates if "{" not in path and template.fullmatch(path)}

    assert shadowed == {"/users/batch", "/transfers/batch"}
    for path in shadowed:
        assert_problem(http.get(path, headers=AS_OPERATOR), 405, "method-not-allowed")
    assert_problem(http.get("/users/batches", headers=AS_OPERATOR), 422, "invalid-request")


@pytest.mark.parametrize(
    "path",
    [
        *("/me/", "/me//", "/me%2f", "/me%2F", "/me;x", "/Me", "/me%00", "/me%20"),
        *("/healthz/", "/healthz%2f", "/healthz;x", "/metrics/", "/readyz/", "/;x"),
        *("/users/", "/users/1/", "/users/batch/", "/users/1%2f", "/users//", "/transfers/1/reversal/"),
        *("/docs/", "/docs/assets", "/docs/assets/", "/docs/assets/%2e%2e/main.py", "/redoc/", "/openapi.json/"),
    ],
)
def test_a_path_that_is_not_quite_one_of_ours_is_404_and_never_a_redirect(http: TestClient, path: str) -> None:
    response = http.get(path, headers=AS_OPERATOR)

    assert_problem(response, 404, "not-found")
    assert "location" not in response.headers


def test_a_letter_that_was_encoded_without_need_is_that_letter(http: TestClient) -> None:
    # RFC 3986, section 6.2.2.2: both are the same resource.
    assert http.get("/%68ealthz").json() == {"status": "alive"}


@pytest.mark.parametrize("has_console", [True, False])
def test_the_root_says_what_this_is_and_where_to_go(http: TestClient, has_console: bool) -> None:
    app.state.console = has_console
    try:
        response = http.get("/")
        links = re.findall('<a href="(.*?)">', response.text)
        statuses = {http.get(link, follow_redirects=True).status_code for link in links}
    finally:
        app.state.console = True

    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert str(app.summary) in response.text
    assert ("/console" in links) == has_console
    assert "/docs" in links
    assert statuses == {200}
    assert "/" not in app.openapi()["paths"]


def test_paths_and_methods_are_the_same_behind_a_prefix(http: TestClient) -> None:
    behind = TestClient(app, ELSEWHERE, root_path="/bank", raise_server_exceptions=False, follow_redirects=False)

    assert 'href="/bank/docs"' in behind.get("/").text
    assert behind.get("/docs").status_code == 200
    assert behind.head("/healthz").status_code == 200
    assert behind.patch("/users/batch", headers=AS_OPERATOR).headers["Allow"] == "POST"
    assert_problem(behind.get("/me/"), 404, "not-found")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"{ELSEWHERE}/healthz", 200),
        (f"{ELSEWHERE}/me/", 404),
        ("//me", 404),
        ("//", 404),
        ("//evil.example/", 404),
        ("/%2e%2e/me", 404),
        ("/me/../healthz", 404),
        ("*", 404),
    ],
)
def test_a_target_in_another_form_is_answered_by_its_path(server: Server, target: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"location:" not in answer.lower()
