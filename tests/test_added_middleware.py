"""What a developer adds to the app, a middleware or an override, holds on every route."""

from collections.abc import Awaitable, Callable, Iterator

import pytest
from conftest import AS_OPERATOR
from fastapi import Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient
from test_registration import named

import main
from api.fast_path import AnswerDirectly

ROUTES = [("GET", "/me"), ("GET", "/healthz"), ("POST", "/register"), ("POST", "/transfers"), ("GET", "/users/1")]


@pytest.fixture
def app_to_change() -> Iterator[main.API]:
    """The app, to which something is added for one test."""
    app = main.app
    middleware, overrides = list(app.user_middleware), dict(app.dependency_overrides)
    app.middleware_stack = None
    yield app
    app.user_middleware[:], app.dependency_overrides = middleware, overrides
    app.middleware_stack = None


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_middleware_sees_every_request(
    app_to_change: main.API, url: str, request: pytest.FixtureRequest, method: str, path: str
) -> None:
    @app_to_change.middleware("http")
    async def forbid(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return Response(status_code=418)

    client: TestClient = request.getfixturevalue("client")
    assert client.request(method, path, json=named("alice"), headers=AS_OPERATOR).status_code == 418


@pytest.mark.parametrize("engine", ["sqlite"])
def test_cors_headers_are_on_every_answer(app_to_change: main.API, url: str, request: pytest.FixtureRequest) -> None:
    app_to_change.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])
    client: TestClient = request.getfixturevalue("client")
    origin = {"Origin": "https://shop.example"}

    registered = client.post("/register", json=named("alice"), headers=origin)
    token = {"Authorization": f"Bearer {registered.json()['access_token']}"}
    answers = [registered, client.get("/me", headers=origin | token), client.get("/me", headers=origin)]

    assert [answer.status_code for answer in answers] == [201, 200, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_override_replaces_its_dependency(app_to_change: main.API, url: str, request: pytest.FixtureRequest) -> None:
    client: TestClient = request.getfixturevalue("client")
    registered = client.post("/register", json=named("alice")).json()["user"]
    app_to_change.dependency_overrides[main.current_user] = lambda: registered

    assert client.get("/me").json() == registered


def test_without_additions_valid_requests_are_answered_directly(app_to_change: main.API) -> None:
    stack = app_to_change.build_middleware_stack()

    assert isinstance(stack.app, AnswerDirectly)  # type: ignore[attr-defined]
    assert {("POST", "/transfers"), ("POST", "/register"), ("GET", "/me")} <= stack.app.routes.keys()  # type: ignore[attr-defined]
