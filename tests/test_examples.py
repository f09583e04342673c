"""The examples of /docs, sent as they stand in the order of the page to a new service."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.openapi import EXAMPLES
from main import app
from tests.support.service import AS_OPERATOR, Rows

pytestmark = pytest.mark.usefixtures("events")

REFUSED = {
    "close_me": "/problems/balance-not-zero",
    "erase_user": "/problems/user-not-closed",
    "void_hold": "/problems/hold-resolved",
}
"""What does not work, in the words of its documentation: who has money is not closed, who is active not erased …"""

RECEIVERS = ("reverse_transfer", "capture_hold", "void_hold")
"""What only the recipient, and the operator, can do."""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each operation, as the page shows them."""
    description = app.openapi()
    for tag in description["tags"]:
        for path, methods in description["paths"].items():
            for method, operation in methods.items():
                if operation["tags"] == [tag["name"]]:
                    yield method, path, operation


def examples_of(operation: dict[str, Any], where: str, filled_in_only: bool) -> dict[str, str]:
    """The examples of the parameters in the path, the query or the header, as they are sent."""
    return {
        parameter["name"]: str(parameter.get("example", parameter["schema"]["examples"][0]))
        for parameter in operation.get("parameters", ())
        if parameter["in"] == where and ("example" in parameter or not filled_in_only)
    }


@pytest.mark.parametrize("filled_in_only", [True, False])
@pytest.mark.parametrize("preferred", ["UserToken", "OperatorToken"])
def test_every_example_works_in_the_order_of_the_page(
    client: TestClient, rows: Rows, preferred: str, filled_in_only: bool
) -> None:
    refused = REFUSED | (dict.fromkeys(RECEIVERS, "/problems/receiver-only") if preferred == "UserToken" else {})
    tokens, done = {"OperatorToken": AS_OPERATOR}, []
    for method, path, operation in operations():
        schemes = [scheme for each in operation.get("security", ()) for scheme in each]
        headers = tokens[preferred if preferred in schemes else schemes[0]] if schemes else {}
        body = operation.get("requestBody", {"content": {"application/json": {"example": None}}})
        answer = client.request(
            method,
            path.format(**examples_of(operation, "path", filled_in_only)),
            params=examples_of(operation, "query", filled_in_only),
            headers=headers | examples_of(operation, "header", filled_in_only),
            json=body["content"]["application/json"]["example"],
        )
        name = operation["operationId"]
        if name in refused:
            assert answer.json()["type"] == refused[name]
            continue
        assert answer.status_code in (200, 201, 202, 204), f"{method} {path}: {answer.text}"
        done.append(name)
        if name == "register":
            tokens["UserToken"] = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    assert len(done) + len(refused) == sum(map(len, app.openapi()["paths"].values()))
    # Money left and reached the system as deposits and withdrawals only.
    assert rows("SELECT balance FROM accounts WHERE user_id IS NULL") == [(-4000,)]
    assert rows("SELECT status FROM profiles") == [("active",)] * 3


def test_every_parameter_and_body_has_an_example_and_there_are_no_others() -> None:
    taken: dict[str, set[str]] = {}
    for _, _, operation in operations():
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        taken[operation["operationId"]] = names | ({"body"} if "requestBody" in operation else set())

    assert {name: set(examples) for name, examples in EXAMPLES.items()} == {k: v for k, v in taken.items() if v}


def test_the_page_fills_in_only_what_is_required() -> None:
    for method, path, operation in operations():
        for parameter in operation.get("parameters", ()):
            assert ("example" in parameter) == parameter["required"], f"{method} {path}"
