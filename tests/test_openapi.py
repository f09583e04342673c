"""The description of the API, as those read it who generate clients from it."""

from typing import Any

import main
from problems import ItemError, Problem

SCHEMAS: dict[str, Any] = main.app.openapi()["components"]["schemas"]


def test_a_problems_type_is_one_of_those_that_there_are() -> None:
    types = SCHEMAS["Problem"]["properties"]["type"]["enum"]

    assert types == sorted(set(types))
    assert {f"/problems/{slug}" for slug in ("username-taken", "not-found", "internal-error", "invalid-json")} <= {
        *types
    }
    assert SCHEMAS["ItemError"]["properties"]["type"]["enum"] == types
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


def references(schema: Any) -> set[str]:
    """The names of the schemas that this one refers to."""
    if isinstance(schema, dict):
        found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return found.union(*map(references, schema.values()))
    return set().union(*map(references, schema)) if isinstance(schema, list) else set()


def test_every_schema_that_is_referred_to_is_there() -> None:
    assert {name.removeprefix("#/components/schemas/") for name in references(main.app.openapi())} <= {*SCHEMAS}
