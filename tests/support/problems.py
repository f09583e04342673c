"""Helpers of the tests of problems."""

from typing import Any


def assert_problem(response: Any, status: int, slug: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)
    assert problem["title"]
    assert problem["detail"].endswith(".")
    assert problem["request_id"] == response.headers["x-request-id"]


def without_id(response: Any) -> Any:
    """The problem, but for what tells two answers apart."""
    return {name: value for name, value in response.json().items() if name != "request_id"}
