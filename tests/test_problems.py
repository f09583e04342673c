"""Every error is problem+json that says what to do, and tells nobody's secrets."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

import crud
import main
import refusals
from api import errors, problems
from operations import Operations
from refusals import Overloaded, Refusal
from tests.support.problems import assert_problem
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, batcher_of

JSON = {"Content-Type": "application/json"}


def kinds(base: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    """Every refusal there is."""
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/users/1/nowhere", 404, "not-found"),
        ("PUT", "/register", 405, "method-not-allowed"),
        ("DELETE", "/users", 405, "method-not-allowed"),
    ],
)
def test_a_path_or_method_that_does_not_exist(
    client: TestClient, method: str, path: str, status: int, slug: str
) -> None:
    assert_problem(client.request(method, path, headers=AS_OPERATOR), status, slug)


def test_405_says_which_methods_there_are(client: TestClient) -> None:
    assert client.put("/register").headers["Allow"] == "POST"
    assert client.put("/me").headers["Allow"] == "DELETE, GET, HEAD, PATCH"


@pytest.mark.parametrize("path", ["/register", "/users/batch"])
@pytest.mark.parametrize("body", [b"{", b'{"username": "a",}', b"username=a", b'"\\x"'])
def test_a_body_that_is_not_json(client: TestClient, path: str, body: bytes) -> None:
    assert_problem(client.post(path, content=body, headers=JSON | AS_OPERATOR), 400, "invalid-json")


@pytest.mark.parametrize("body", [b'{"username": "\xff"}', b"[" * 100_000])
def test_a_body_that_cannot_be_read(client: TestClient, body: bytes) -> None:
    assert_problem(client.post("/register", content=body, headers=JSON), 400, "invalid-body")


def test_a_body_that_is_missing(client: TestClient) -> None:
    assert_problem(client.post("/register", headers=JSON), 422, "invalid-request")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_media_type(client: TestClient, media_type: str) -> None:
    for path in ("/register", "/users/batch"):
        response = client.post(path, content=b"{}", headers={"Content-Type": media_type} | AS_OPERATOR)
        assert_problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize("body", [b"3", b"null", b"[]", b'"text"', b"true"])
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    assert_problem(client.post("/register", content=body, headers=JSON), 422, "invalid-request")


def test_a_body_over_1_mib_is_refused(client: TestClient) -> None:
    assert_problem(client.post("/register", json=named("a" * 2**20)), 413, "content-too-large")


def test_a_body_over_1_mib_without_a_length_is_refused(client: TestClient) -> None:
    chunks = (b"x" * 2**16 for _ in range(17))

    assert_problem(client.post("/register", content=chunks, headers=JSON), 413, "content-too-large")


def test_a_batch_may_be_larger_but_not_over_16_mib(client: TestClient) -> None:
    users = [named(f"user{number}") for number in range(10)]
    # Insignificant spaces: the content is fine, only its size counts.
    fits, too_large = (b'{"users": [' + b" " * size + b"]}" for size in (2 * 2**20, 16 * 2**20))

    assert_problem(
        client.post("/users/batch", content=fits, headers=JSON | AS_OPERATOR), 422, "invalid-request"
    )  # it was read: no user is in it
    assert_problem(client.post("/users/batch", content=too_large, headers=JSON | AS_OPERATOR), 413, "content-too-large")
    assert client.post("/users/batch", json={"users": users}, headers=AS_OPERATOR).status_code == 200


def test_any_other_status_of_the_framework_is_a_problem_too(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise HTTPException(418)

    monkeypatch.setitem(main.app.state.operations.single, crud.register_users, refuse)

    assert_problem(client.post("/register", json=named("alice")), 418, "im-a-teapot")


def test_the_unforeseen_is_a_500_without_details(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    private = "alice" + "@example.com"

    async def fail(*_: Any) -> None:
        raise RuntimeError(private)

    monkeypatch.setitem(main.app.state.operations.single, crud.register_users, fail)

    response = client.post("/register", json=named("alice"))

    assert_problem(response, 500, "internal-error")
    assert "RuntimeError" in caplog.text
    assert "in fail" in caplog.text
    assert private not in caplog.text + response.text


def test_overload_is_answered_at_once_with_retry_after(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    operations: Operations = main.app.state.operations
    monkeypatch.setattr(batcher_of(operations, "register_users"), "queue_limit", 0)

    response = client.post("/register", json=named("alice"))

    assert_problem(response, 503, "overloaded")
    assert response.headers["Retry-After"] == "1"


def test_every_refusal_has_a_status_and_says_what_to_do() -> None:
    for kind in kinds():
        # What no request meets has no status: the base class, and importing's own.
        if kind is refusals.Interruption or kind.__module__ != "refusals":
            continue
        problem = errors.problem_of(kind())
        assert problem.detail == " ".join(str(kind.__doc__).split())
        assert problem.detail.count(".") + problem.detail.count(":") >= 1
        assert re.fullmatch(r"/problems/[a-z]+(-[a-z]+)*", problem.type)


def test_a_slug_is_the_name_of_its_class() -> None:
    assert problems.slug("UsernameTaken") == "username-taken"
    assert errors.problem_of(Overloaded()).type == "/problems/overloaded"


def test_every_operation_documents_its_errors_and_itself() -> None:
    for path, methods in main.app.openapi()["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert re.fullmatch(r"[a-z_]+", operation["operationId"]), where
            assert operation["tags"], where
            assert operation["summary"], where
            assert operation["description"], where
            for status, response in operation["responses"].items():
                if status < "400" or path == "/readyz":
                    continue
                content = response["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, where
                for example in content["examples"].values():
                    assert str(example["value"]["status"]) == status, where


def test_operation_ids_are_unique() -> None:
    ids = [
        operation["operationId"] for methods in main.app.openapi()["paths"].values() for operation in methods.values()
    ]

    assert len(ids) == len(set(ids))


def test_docs_need_no_internet(client: TestClient) -> None:
    for page in ("/docs", "/redoc"):
        html = client.get(page).text
        addresses = re.findall(r'(?:src|href)="([^"]+)"', html)
        assert addresses
        for address in addresses:
            assert address.startswith("/"), f"{page} loads {address}"
            assert client.get(address).status_code == 200
