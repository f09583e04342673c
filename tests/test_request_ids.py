"""X-Request-ID: the caller's, or a new one, with every answer."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from starlette.testclient import TestClient

import crud
from main import app
from tests.support.registration import named
from tests.support.service import OPERATOR_TOKEN


@pytest.fixture
def http(sqlite_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The service, on SQLite alone: none of this depends on the database."""
    path = shutil.copy(sqlite_template, tmp_path / "ids.db")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_every_answer_has_an_id_of_its_own(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.state.operations.single, crud.register_users, AsyncMock(side_effect=RuntimeError))
    answers = [
        http.get("/healthz"),
        http.get("/currencies"),
        http.head("/currencies"),
        http.get("/me"),
        http.get("/nowhere"),
        http.put("/me"),
        http.post("/register", json={}),
        http.post("/register", json=named("a" * 2**20)),
        http.post("/register", json=named("alice")),
    ]

    assert {each.status_code for each in answers} == {200, 401, 404, 405, 413, 422, 500}
    ids = [each.headers.get_list("x-request-id") for each in answers]
    assert all(re.fullmatch("[0-9a-f]{16}", only) for [only] in ids)
    assert len({only for [only] in ids}) == len(answers)


@pytest.mark.parametrize("sent", ["a", "01J.2_3-4", "Z" * 64])
def test_the_callers_own_id_comes_back(http: TestClient, sent: str) -> None:
    for path in ("/healthz", "/me", "/nowhere"):
        assert http.get(path, headers={"X-Request-ID": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "Z" * 65, "a b", "a/b", "ä", '"a"'])
def test_an_id_that_could_disturb_a_log_is_replaced(http: TestClient, sent: str) -> None:
    answer = http.get("/healthz", headers={b"X-Request-ID": sent.encode()})

    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
