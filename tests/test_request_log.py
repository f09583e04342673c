"""A line of log for each request: what it has, what it has not, and how many there are."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from starlette.testclient import TestClient
from uvicorn.logging import DefaultFormatter

import crud
import logs
from api import request_log
from main import app
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, batcher_of

ID = {"X-Request-ID": "call-17"}
MONITORING = {"Authorization": "Bearer the-token-of-the-monitoring"}


@pytest.fixture
def http(sqlite_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The service, on SQLite alone: none of this depends on the database."""
    path = shutil.copy(sqlite_template, tmp_path / "log.db")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
    monkeypatch.setenv("METRICS_TOKEN", "the-token-of-the-monitoring")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "savepoint.requests"):
        yield caplog


def test_a_line_says_who_called_what_and_how_it_ended(http: TestClient, lines: pytest.LogCaptureFixture) -> None:
    token = http.post("/register", json=named("alice"), headers=ID).json()["access_token"]
    as_alice = ID | {"Authorization": f"Bearer {token}"}
    http.get("/accounts/1?at=2026-11-23T09:00:00Z", headers=as_alice)
    http.head("/me", headers=as_alice)
    http.get("/accounts/999", headers=as_alice)
    http.get("/users?email=alice@example.com", headers=ID | AS_OPERATOR)
    http.get("/metrics", headers=ID | MONITORING)
    http.get("/alice@example.com", headers=ID)
    http.request("BREW\nERROR", "/me", headers=ID)

    shown = [message.replace(message.split()[-4], "1.0") for message in lines.messages]
    assert shown == [
        "POST /register 201 1.0 ms anonymous call-17",
        "GET /accounts/{id} 200 1.0 ms user call-17",
        "HEAD /me 200 1.0 ms user call-17",
        "GET /accounts/{id} 404 account-not-found 1.0 ms user call-17",
        "GET /users 200 1.0 ms operator call-17",
        "GET /metrics 200 1.0 ms monitoring call-17",
        "GET unknown 404 not-found 1.0 ms anonymous call-17",
        "other /me 405 method-not-allowed 1.0 ms anonymous call-17",
    ]
    for secret in ("alice", "at=", token, OPERATOR_TOKEN):
        assert secret not in lines.text


def test_what_is_above_the_limit_is_counted_in_the_next_line(
    http: TestClient, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 7.0
    monkeypatch.setattr(request_log, "monotonic", lambda: now)
    request_log.LOG.limit = 2
    for _ in range(5):
        http.get("/healthz")
        http.get("/me")
    now = 8.0
    http.get("/healthz")

    assert [message.split()[2] for message in lines.messages] == ["200", "401", "200", "401", "200"]
    assert lines.messages[-1].endswith(" (3 more since the last line)")


def test_an_outage_is_a_line_a_second_for_each_of_its_problems(
    http: TestClient, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "monotonic", lambda: 7.0)
    batcher_of(app.state.operations, "register_users").closed = True
    batcher_of(app.state.operations, "query").queue_limit = 0
    for number in range(20):
        http.post("/register", json=named(f"user{number}"))
        http.get("/users/1", headers=AS_OPERATOR)

    assert [message.split()[:4] for message in lines.messages] == [
        ["POST", "/register", "503", "shutting-down"],
        ["GET", "/users/{id}", "503", "overloaded"],
    ]


def test_a_500_is_found_by_the_id_that_its_caller_was_given(
    http: TestClient, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.state.operations.single, crud.register_users, AsyncMock(side_effect=RuntimeError("alice")))
    request_log.LOG.limit = 0

    ids = {http.post("/register", json=named("alice")).json()["request_id"] for _ in range(3)}

    assert len(ids) == 3
    for request_id in ids:
        error, line = (message for message in lines.messages if request_id in message)
        assert error.startswith(f"POST /register failed unexpectedly, request {request_id}: RuntimeError\n  File")
        assert line.startswith("POST /register 500 internal-error ")
    assert "alice" not in lines.text


def test_a_program_reads_a_line_as_json(http: TestClient, lines: pytest.LogCaptureFixture) -> None:
    http.get("/me", headers=ID)
    logging.getLogger("savepoint").warning("ä\n%s", "\x1b")

    request, other = (json.loads(logs.JSONFormatter().format(record)) for record in lines.records)

    assert request.pop("message").startswith("GET /me 401 ")
    assert (request.pop("time")[10], request.pop("ms") > 0) == ("T", True)
    assert request == {
        "level": "info",
        "logger": "savepoint.requests",
        "method": "GET",
        "route": "/me",
        "status": 401,
        "caller": "anonymous",
        "request_id": "call-17",
        "problem": "unauthenticated",
    }
    assert (other["level"], other["message"]) == ("warning", "ä\n\x1b")


def test_an_exception_is_in_its_line() -> None:
    try:
        raise RuntimeError("why")
    except RuntimeError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception", None, sys.exc_info())

    assert json.loads(logs.JSONFormatter().format(record))["exception"].endswith("RuntimeError: why")
    assert logs.TextFormatter().format(record).endswith("RuntimeError: why")


@pytest.fixture
def of_uvicorn(monkeypatch: pytest.MonkeyPatch) -> logging.StreamHandler[StringIO]:
    """The handler of uvicorn's messages."""
    handler = logging.StreamHandler(StringIO())
    monkeypatch.setattr(logging.getLogger("uvicorn"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)
    return handler


def test_what_uvicorn_says_has_the_time_too(
    of_uvicorn: logging.StreamHandler[StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    of_uvicorn.setFormatter(DefaultFormatter("%(levelprefix)s %(message)s"))
    record = logging.LogRecord("uvicorn.error", logging.INFO, "", 0, "Finished", None, None)

    logs.configure("text")
    assert of_uvicorn.format(record)[10:] == f"{logs.TextFormatter().formatTime(record)[10:]} INFO     Finished"
    logs.configure("json")
    assert json.loads(of_uvicorn.format(record))["message"] == "Finished"
    # It has queries.
    assert not logging.getLogger("uvicorn.access").hasHandlers()


def test_a_developers_own_handlers_and_formats_stay(of_uvicorn: logging.StreamHandler[StringIO]) -> None:
    own = DefaultFormatter("%(asctime)s mine %(message)s")
    of_uvicorn.setFormatter(own)
    root = logging.getLogger()
    before = [(handler, handler.formatter) for handler in root.handlers]

    logs.configure("json")

    assert of_uvicorn.formatter is own
    assert [(handler, handler.formatter) for handler in root.handlers] == before != []
