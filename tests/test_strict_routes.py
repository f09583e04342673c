"""What a developer puts around or into a StrictRoute works as with FastAPI's own routes, and is asked once."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.security import APIKeyHeader
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient

from api.callers import current_user
from api.problems import InvalidFields
from api.strict_route import StrictRoute
from main import app
from operations import Operations
from tests.support.accounts import order, register_all
from tests.support.registration import named

JSON = "application/json"


class Sent(BaseModel):
    """A body."""

    number: int = 0


class Filters(BaseModel):
    """Query parameters."""

    color: str = ""


async def language(lang: str = "en", tag: Annotated[list[str] | None, Query()] = None) -> str:
    return lang


async def here(sent: Sent | None = None) -> str:
    return "here"


async def with_filters(filters: Annotated[Filters, Query()]) -> str:
    return filters.color


def route_with(endpoint: Callable[..., object] = here, method: str = "GET") -> APIRouter:
    router = APIRouter(route_class=StrictRoute)
    router.add_api_route("/here", endpoint, methods=[method])
    return router


def included_by_the_app() -> FastAPI:
    api = FastAPI()
    api.include_router(route_with(), dependencies=[Depends(language)])
    return api


def in_an_app_of_its_own() -> FastAPI:
    api = FastAPI(dependencies=[Depends(language)])
    api.include_router(route_with())
    return api


def in_a_router_in_a_router() -> FastAPI:
    api, outer = FastAPI(), APIRouter(dependencies=[Depends(language)])
    outer.include_router(route_with())
    api.include_router(outer)
    return api


def in_a_mounted_app() -> FastAPI:
    api = FastAPI()
    api.mount("/inner", included_by_the_app())
    return api


PLACES = [included_by_the_app, in_an_app_of_its_own, in_a_router_in_a_router, in_a_mounted_app]


@pytest.mark.parametrize("place", PLACES, ids=lambda each: each.__name__)
def test_the_query_parameters_of_a_routers_dependencies_are_known(place: Callable[[], FastAPI]) -> None:
    path = "/inner/here" if place is in_a_mounted_app else "/here"
    with TestClient(place()) as client:
        assert client.get(f"{path}?lang=de&tag=a&tag=b").status_code == 200
        for query in ("unknown=1", "lang=de&lang=en"):
            with pytest.raises(InvalidFields):
                client.get(f"{path}?{query}")


def test_a_router_that_is_included_twice_knows_the_parameters_of_each_place() -> None:
    api, router = FastAPI(), route_with()
    api.include_router(router, prefix="/with", dependencies=[Depends(language)])
    api.include_router(router, prefix="/without")

    with TestClient(api) as client:
        assert client.get("/with/here?lang=de").status_code == 200
        with pytest.raises(InvalidFields):
            client.get("/without/here?lang=de")


def test_the_fields_of_a_query_model_are_known() -> None:
    api = FastAPI()
    api.include_router(route_with(with_filters))

    with TestClient(api) as client:
        assert client.get("/here?color=red").json() == "red"
        with pytest.raises(InvalidFields):
            client.get("/here?unknown=1")


CALLS: list[str] = []


class NoKey(Exception):
    """No key was sent."""


async def from_pool() -> AsyncIterator[str]:
    yield "connection"


def in_a_thread(
    key: Annotated[str | None, Depends(APIKeyHeader(name="X-Key", auto_error=False))],
    connection: Annotated[str, Depends(from_pool)],
) -> None:
    if key is None:
        raise NoKey


def test_a_caller_is_checked_before_the_body_by_any_kind_of_dependency_of_a_router() -> None:
    api = FastAPI()
    api.include_router(route_with(method="POST"), dependencies=[Depends(in_a_thread)])
    as_json = {"Content-Type": "application/json"}

    with TestClient(api) as client:
        assert client.post("/here", json={"number": 1}, headers={"X-Key": "k"}).status_code == 200
        with pytest.raises(NoKey):
            client.post("/here", content=b"{", headers=as_json)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_override_replaces_the_caller_of_a_route_with_a_body_too(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: TestClient = request.getfixturevalue("client")
    [alice] = register_all(client, alice=0)
    user = client.get("/me", headers=alice.headers).json()

    async def alice_always() -> object:
        return type("User", (), user)

    monkeypatch.setitem(app.dependency_overrides, current_user, alice_always)

    assert client.patch("/me", json={"email": "other@example.com"}).json()["email"] == "other@example.com"


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_override_leaves_the_bodies_of_fast_routes_as_strictly_read(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: TestClient = request.getfixturevalue("client")
    alice, bob = register_all(client, alice=100, bob=0)
    body = json.dumps(order(alice.account_id, bob.account_id, 1)).encode()
    twice = body[:-1] + b', "amount": 2}'
    monkeypatch.setitem(app.dependency_overrides, language, language)

    for content, media_type, status in ((twice, JSON, 422), (body, "application/problem+json", 415), (body, JSON, 201)):
        headers = {"Content-Type": media_type}
        assert client.post("/transfers", content=content, headers=headers).status_code == 401
        answer = client.post("/transfers", content=content, headers=alice.headers | headers)
        assert answer.status_code == status, (content, media_type)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_token_is_looked_up_once_on_fastapis_own_way_too(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "user_middleware", list(app.user_middleware))
    monkeypatch.setattr(app, "middleware_stack", None)
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    client: TestClient = request.getfixturevalue("client")
    alice, bob = register_all(client, alice=100, bob=0)
    operations: Operations = app.state.operations
    look_up = operations.authenticate
    asked: list[str] = []

    async def count(token_hash: str) -> object:
        asked.append(token_hash)
        return await look_up(token_hash)

    monkeypatch.setattr(operations, "authenticate", count)
    bodies = [
        ("PATCH", "/me", {"email": "alice@example.org"}),
        ("POST", "/tokens", {"name": "laptop"}),
        ("POST", "/transfers", order(alice.account_id, bob.account_id, 5)),
    ]
    for method, path, body in bodies:
        asked.clear()
        assert client.request(method, path, json=body, headers=alice.headers).is_success
        assert len(asked) == 1, path
    assert client.post("/tokens", json=named("x"), headers={"Authorization": "Bearer x"}).status_code == 401
