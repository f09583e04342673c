"""What a developer adds to the app as always (a middleware, an override, a router) works, on every route."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.security import APIKeyHeader, SecurityScopes
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient

from api.callers import current_user
from api.fast_path import FastPath, find_fast_routes
from api.fast_route import FAST, fast
from api.strict_route import StrictRoute
from main import app
from tests.support.registration import named
from tests.support.service import AS_OPERATOR

ROUTES = [("GET", "/me"), ("GET", "/healthz"), ("POST", "/register"), ("POST", "/transfers"), ("GET", "/users/1")]


@pytest.fixture
def changed_app() -> Iterator[FastAPI]:
    """The app, to which something is added for one test."""
    middleware, overrides = list(app.user_middleware), dict(app.dependency_overrides)
    app.middleware_stack = None
    yield app
    app.user_middleware[:], app.dependency_overrides = middleware, overrides
    app.middleware_stack = None


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_middleware_sees_every_request(
    changed_app: FastAPI, url: str, request: pytest.FixtureRequest, method: str, path: str
) -> None:
    async def forbid(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return Response(status_code=418)

    changed_app.middleware("http")(forbid)
    client: TestClient = request.getfixturevalue("client")
    assert client.request(method, path, json=named("alice"), headers=AS_OPERATOR).status_code == 418


@pytest.mark.parametrize("engine", ["sqlite"])
def test_cors_headers_are_on_every_answer(changed_app: FastAPI, url: str, request: pytest.FixtureRequest) -> None:
    changed_app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])
    client: TestClient = request.getfixturevalue("client")
    origin = {"Origin": "https://shop.example"}

    registered = client.post("/register", json=named("alice"), headers=origin)
    token = {"Authorization": f"Bearer {registered.json()['access_token']}"}
    answers = [registered, client.get("/me", headers=origin | token), client.get("/me", headers=origin)]

    assert [answer.status_code for answer in answers] == [201, 200, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_override_replaces_its_dependency(changed_app: FastAPI, url: str, request: pytest.FixtureRequest) -> None:
    client: TestClient = request.getfixturevalue("client")
    registered = client.post("/register", json=named("alice")).json()["user"]
    changed_app.dependency_overrides[current_user] = lambda: registered

    assert client.get("/me").json() == registered


def test_these_routes_and_no_others_take_the_fast_path() -> None:
    """A route that asks for it and cannot have it would only be slower, which no other test sees."""
    assert find_fast_routes(app).keys() == {
        ("GET", "/me"),
        ("POST", "/register"),
        ("POST", "/transfers"),
        ("POST", "/deposits"),
        ("POST", "/withdrawals"),
        ("GET", "/accounts"),
        ("GET", "/accounts/{id}"),
        ("GET", "/accounts/{id}/entries"),
        ("GET", "/transfers"),
        ("GET", "/transfers/{id:row}"),
        ("POST", "/transactions"),
        ("POST", "/holds"),
        ("GET", "/holds/{id}"),
        ("POST", "/holds/{id}/capture"),
        ("POST", "/holds/{id}/void"),
    }


class Sent(BaseModel):
    """A body."""

    number: int = 0


class Got(BaseModel):
    """An answer."""

    value: Any = None


async def from_cookie(basket: Annotated[str, Cookie()] = "") -> str:
    return basket


async def from_header(x_shop: Annotated[str, Header()] = "") -> str:
    return x_shop


async def closed_later(request: Request) -> AsyncIterator[str]:
    yield "open"


def in_a_thread(request: Request) -> str:
    return "thread"


async def shared(request: Request) -> list[str]:
    return []


async def first_of_two(names: Annotated[list[str], Depends(shared)]) -> list[str]:
    names.append("first")
    return names


async def second_of_two(names: Annotated[list[str], Depends(shared)]) -> list[str]:
    names.append("second")
    return names


async def scoped(scopes: SecurityScopes) -> str:
    return scopes.scope_str


async def sets_header(response: Response) -> None:
    response.headers["x-set"] = "yes"


async def plain() -> Got:
    return Got(value="plain")


async def with_key(key: Annotated[str | None, Depends(APIKeyHeader(name="X-Key", auto_error=False))]) -> Got:
    return Got(value=key)


async def with_alias(key: Annotated[str | None, Header(alias="Idempotency-Key")] = None) -> Got:
    return Got(value=key)


async def with_body(sent: Sent) -> Got:
    return Got(value=sent.number)


async def with_underscored_header(x_shop: Annotated[str, Header()] = "") -> Got:
    return Got(value=x_shop)


async def with_headers(x_shop: Annotated[list[str] | None, Header(alias="X-Shop")] = None) -> Got:
    return Got(value=x_shop)


async def with_cookie(basket: Annotated[str, Depends(from_cookie)]) -> Got:
    return Got(value=basket)


async def with_header_below(shop: Annotated[str, Depends(from_header)]) -> Got:
    return Got(value=shop)


async def with_yield(state: Annotated[str, Depends(closed_later)]) -> Got:
    return Got(value=state)


async def with_thread(place: Annotated[str, Depends(in_a_thread)]) -> Got:
    return Got(value=place)


async def with_shared(
    first: Annotated[list[str], Depends(first_of_two)], second: Annotated[list[str], Depends(second_of_two)]
) -> Got:
    return Got(value=second)


async def with_scopes(scopes: Annotated[str, Depends(scoped)]) -> Got:
    return Got(value=scopes)


async def with_response_below(nothing: Annotated[None, Depends(sets_header)]) -> Got:
    return Got()


async def with_tasks(tasks: BackgroundTasks) -> Got:
    tasks.add_task(DONE.append, "done")
    return Got()


async def with_embedded_body(sent: Annotated[Sent, Body(embed=True)]) -> Got:
    return Got(value=sent.number)


async def with_two_bodies(first: Sent, second: Sent) -> Got:
    return Got(value=second.number)


async def with_query(number: int = 0) -> Got:
    return Got(value=number)


async def with_queries(numbers: Annotated[list[int] | None, Query()] = None) -> Got:
    return Got(value=numbers)


async def with_response() -> Got:
    return Response(  # type: ignore[return-value] # as lists do
        '{"value": "written"}', 202, {"x-set": "yes"}, "application/json"
    )


async def with_parameters(
    id: Annotated[int, Path(ge=1)],
    until: datetime,
    limit: Annotated[int, Query(ge=1, alias="size")] = 50,
    *,
    after: Annotated[int, Query(default_factory=int)],
) -> Got:
    return Got(value=[id, until, limit, after])


def without_async() -> Got:
    return Got(value="thread")


DONE: list[str] = []


SERVED = [plain, with_key, with_alias, with_body, with_underscored_header, with_query, with_response]


NOT_SERVED = [
    *(with_headers, with_cookie, with_header_below, with_yield, with_thread, with_shared),
    *(with_scopes, with_response_below, with_tasks, with_embedded_body, with_two_bodies, without_async),
    with_queries,
]


def api_with(endpoint: Callable[..., Any], **options: Any) -> FastAPI:
    """An app with this endpoint at POST /shop/here, behind two routers, which asks for the fast path."""
    inner = APIRouter(route_class=StrictRoute)
    inner.add_api_route("/here", fast(endpoint), methods=["POST"], **options)
    outer = APIRouter(prefix="/shop")
    outer.include_router(inner)
    api = FastAPI()
    api.add_middleware(FastPath)
    api.include_router(outer)
    return api


def answer_of(api: FastAPI, query: str = "") -> tuple[int, Any, Any]:
    """What it answers to a request that has something of everything that the endpoints here read."""
    headers = {"X-Shop": "corner", "X-Key": "k", "Idempotency-Key": "order-4711", "Cookie": "basket=apples"}
    content = {"number": 5, "sent": {"number": 5}, "first": {"number": 4}, "second": {"number": 5}}
    with TestClient(api) as client:
        response = client.post(f"/shop/here{query}", json=content, headers=headers)
    return response.status_code, response.json(), {*response.headers.items()}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The endpoints here ask for the fast path in one test only."""
    known = set(FAST)
    yield
    FAST.clear()
    FAST.update(known)
    DONE.clear()


@pytest.mark.parametrize("endpoint", [*SERVED, *NOT_SERVED], ids=lambda each: each.__name__)
def test_an_endpoint_answers_the_same_on_the_fast_path_or_beside_it(endpoint: Callable[..., Any]) -> None:
    api = api_with(endpoint)
    assert bool(find_fast_routes(api)) == (endpoint in SERVED)
    query = "?number=6" if endpoint is with_query else ""
    answer = answer_of(api, query)

    FAST.clear()

    assert answer == answer_of(api_with_none(endpoint), query)
    assert answer[0] == (202 if endpoint is with_response else 200)
    assert (["done", "done"] if endpoint is with_tasks else []) == DONE


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/shop/here/7?until=2026-01-01T00:00:00Z&size=3&after=9", 200),
        ("/shop/here/7?until=2026-01-01T00:00:00Z", 200),
        ("/shop/here/%37?until=2026-01-01T00:00:00%2B01:00", 200),
        ("/shop/here/7", 422),
        ("/shop/here/0?until=2026-01-01T00:00:00Z", 422),
        ("/shop/here/x?until=never&size=0&after=", 422),
    ],
)
def test_parameters_are_the_same_on_the_fast_path_or_beside_it(path: str, status: int) -> None:
    def answers() -> list[Any]:
        inner = APIRouter(route_class=StrictRoute)
        inner.add_api_route("/here/{id}", fast(with_parameters) if is_fast else with_parameters)
        api = FastAPI()
        api.include_router(inner, prefix="/shop")
        assert bool(find_fast_routes(api)) == is_fast
        with TestClient(api) as client:
            response = client.get(path)
        return [response.status_code, response.json(), {*response.headers.items()}]

    is_fast = True
    served = answers()
    FAST.clear()
    is_fast = False

    assert served == answers()
    assert served[0] == status


def test_a_route_found_before_a_fast_one_is_served() -> None:
    async def about() -> Got:
        return Got(value="about")

    inner = APIRouter(route_class=StrictRoute)
    inner.add_api_route("/here/about", about)
    inner.add_api_route("/here/{id}", fast(with_parameters))
    api = FastAPI()
    api.add_middleware(FastPath)
    api.include_router(inner)

    with TestClient(api) as client:
        assert client.get("/here/about").json() == {"value": "about"}
        assert client.get("/here/{id}").status_code == 422


def api_with_none(endpoint: Callable[..., Any]) -> FastAPI:
    """The same app, without the fast path."""
    api = api_with(endpoint)
    api.user_middleware.clear()
    return api


@pytest.mark.parametrize(
    "options",
    [
        {"response_model_exclude_none": True},
        {"response_model_include": {"value"}},
        {"response_model": None},
        {"response_class": Response},
        {"dependencies": [Depends(in_a_thread)]},
    ],
    ids=",".join,
)
def test_a_route_whose_answer_is_changed_takes_fastapis_way(options: dict[str, Any]) -> None:
    assert not find_fast_routes(api_with(plain, **options))


def test_a_dependency_of_a_router_is_called_on_the_fast_path_too() -> None:
    async def refuse(request: Request) -> None:
        raise PermissionError

    inner = APIRouter(route_class=StrictRoute)
    inner.add_api_route("/here", fast(plain), methods=["POST"])
    api = FastAPI(dependencies=[Depends(refuse)])
    api.add_middleware(FastPath)
    api.include_router(inner)

    assert find_fast_routes(api)
    with TestClient(api) as client, pytest.raises(PermissionError):
        client.post("/here")


def test_the_log_says_why_a_route_does_not_take_the_fast_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        find_fast_routes(api_with(with_yield))

    assert caplog.messages == [
        "/shop/here takes FastAPI's own way, which is slower: it, or a dependency, is not an async function without "
        "yield."
    ]
