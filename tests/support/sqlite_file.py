"""Helpers of the tests of sqlite file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

import main
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, query


@contextmanager
def started(url: str) -> Iterator[TestClient]:
    """The service in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
        with TestClient(main.app, raise_server_exceptions=False) as client:
            yield client


def url_of(path: Path) -> str:
    return f"sqlite:///{quote(str(path))}"


def usernames(path: Path) -> list[str]:
    return [name for (name,) in query(url_of(path), "SELECT username FROM users ORDER BY id")]


def assert_unavailable(client: TestClient) -> None:
    """Reads, writes and /readyz are refused, whatever connections there are."""
    for response in (
        client.post("/register", json=named("carol")),
        client.get("/users", headers=AS_OPERATOR),
        client.get("/readyz"),
    ):
        assert (response.status_code, response.json()["type"]) == (503, "/problems/database-unavailable")
