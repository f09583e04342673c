"""The description of the API, as those read it who generate clients from it."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

import main
from api import docs_pages, openapi
from api.openapi import DescribedAPI
from api.problems import ItemError, Problem
from models import UsersBatch

SCHEMAS: dict[str, Any] = main.app.openapi()["components"]["schemas"]


def test_a_problems_type_is_one_of_those_that_there_are() -> None:
    types = SCHEMAS["ProblemType"]["enum"]

    assert types == sorted(set(types))
    assert (
        dict(zip(types, SCHEMAS["ProblemType"]["x-enum-varnames"], strict=True))["/problems/not-found"] == "NOT_FOUND"
    )
    assert {
        f"/problems/{slug}"
        for slug in ("username-taken", "not-found", "internal-error", "invalid-json", "request-timeout")
    } <= {*types}
    for schema in ("Problem", "ItemError"):
        assert SCHEMAS[schema]["properties"]["type"]["$ref"] == "#/components/schemas/ProblemType"
    for methods in main.app.openapi()["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    assert {*content.get("examples", {})} <= {*types}


def test_a_problem_of_another_type_can_still_be_made() -> None:
    assert Problem(type="/problems/im-a-teapot", title="", status=418, detail="").type == "/problems/im-a-teapot"
    assert ItemError(index=0, type="/problems/im-a-teapot", detail="").index == 0


def test_the_bodies_of_batches_have_names() -> None:
    for path, name, items, item in (
        ("/users/batch", "UsersBatch", "users", "KeyedRegistration"),
        ("/transfers/batch", "TransfersBatch", "transfers", "KeyedTransfer"),
    ):
        body = main.app.openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"] == {"$ref": f"#/components/schemas/{name}"}
        assert SCHEMAS[name]["properties"][items]["items"] == {"$ref": f"#/components/schemas/{item}"}
        assert SCHEMAS[name]["properties"][items]["maxItems"] == 10_000
        assert "idempotency_key" in SCHEMAS[item]["properties"]


def unnamed(schema: Any, place: str) -> Iterator[str]:
    """The places of enums, objects and maps that have no name, of which generators make one from the place."""
    if isinstance(schema, dict):
        if "enum" in schema or schema.get("type") == "object":
            yield place
        for key, part in schema.items():
            yield from unnamed(part, f"{place}.{key}")
    elif isinstance(schema, list):
        for part in schema:
            yield from unnamed(part, place)


def test_every_enum_object_and_map_has_a_name_of_letters() -> None:
    described = [*unnamed(main.app.openapi()["paths"], "paths")]
    described += [
        each
        for name, schema in SCHEMAS.items()
        for key, part in schema.items()
        for each in unnamed(part, f"{name}.{key}")
    ]

    assert described == [], "Add it to SHARED in api/openapi.py"
    assert [name for name in SCHEMAS if not name.isalnum()] == []


def references(schema: Any) -> set[str]:
    """The names of the schemas that this one refers to."""
    if isinstance(schema, dict):
        found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return found.union(*map(references, schema.values()))
    return set().union(*map(references, schema)) if isinstance(schema, list) else set()


def test_every_schema_that_is_referred_to_is_there() -> None:
    assert {name.removeprefix("#/components/schemas/") for name in references(main.app.openapi())} <= {*SCHEMAS}


def test_the_description_is_made_into_json_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(main.app)
    first = client.get("/openapi.json")
    # Whoever makes it again fails.
    monkeypatch.setattr(docs_pages, "JSONResponse", None)
    monkeypatch.setattr(openapi, "with_examples", None)

    assert client.get("/openapi.json").content == first.content
    assert client.head("/openapi.json").status_code == 200
    assert first.headers["Content-Type"] == "application/json"
    assert first.json() == main.app.openapi()


def test_the_description_names_the_path_that_a_proxy_puts_the_api_under() -> None:
    below = TestClient(main.app, root_path="/bank")

    assert below.get("/bank/openapi.json").json() == main.app.openapi() | {"servers": [{"url": "/bank"}]}
    assert "servers" not in TestClient(main.app).get("/openapi.json").json()


def test_a_route_added_to_the_api_is_described_beside_the_others() -> None:
    def find(number: int) -> int:
        return number

    api = DescribedAPI(bodies=[UsersBatch], openapi_url=None)
    api.include_router(docs_pages.router)
    api.add_api_route("/first", find)
    client = TestClient(api)
    assert {*client.get("/openapi.json").json()["paths"]} == {"/first"}

    api.add_api_route("/second", find)

    description = client.get("/openapi.json").json()
    assert {*description["paths"]} == {"/first", "/second"}
    assert "UsersBatch" in description["components"]["schemas"]
