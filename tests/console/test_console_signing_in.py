"""Signing in to the console: who gets in, for how long, and what other sites can do with it."""

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from console import sessions
from console.forms import MOST_BYTES
from main import app
from tests.support.accounts import refusal_of
from tests.support.console import OTHER_SITE, Console, hidden, location, words
from tests.support.service import OPERATOR_TOKEN, Rows
from tokens import hash_secret

# None of this depends on the database.
pytestmark = pytest.mark.parametrize("engine", ["sqlite"])

FOR_ANYONE = {"/console/sign-in", "/console/assets/{name}"}
EVERYTHING = (
    "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM transfers), (SELECT count(*) FROM access_tokens)"
)


def pages() -> Iterator[tuple[str, str]]:
    """Method and path of every page of the console that is not for anyone."""
    for context in iter_route_contexts(app.routes):
        path = str(context.path)
        if path.startswith("/console") and path not in FOR_ANYONE:
            yield from ((method, re.sub("{.*?}", "1", path)) for method in context.methods or ())


def test_every_page_leads_who_has_no_session_to_the_sign_in_page(client: TestClient, rows: Rows) -> None:
    before = rows(EVERYTHING)
    sent = [*pages()]
    assert len(sent) == 59
    for method, path in (*sent, *(("HEAD", path) for method, path in sent if method == "GET")):
        answer = client.request(method, path, follow_redirects=False)
        assert location(answer) == f"/console/sign-in?next={path}", (method, path)
    assert rows(EVERYTHING) == before


@pytest.mark.parametrize("environment", ["development", "production"])
def test_the_sign_in_page_says_where_the_token_is(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    monkeypatch.setattr(app.state.operations.settings, "environment", environment)

    assert ("printed at start-up" in client.get("/console/sign-in").text) == (environment == "development")


def test_a_wrong_token_begins_no_session_and_is_not_repeated(client: TestClient) -> None:
    for wrong in (
        "",
        "the-wrong-token-entirely",
        "svo_wrong",
        "svp_wrong",
        OPERATOR_TOKEN[:-1],
        hash_secret(OPERATOR_TOKEN),
    ):
        answer = client.post("/console/sign-in", data={"token": wrong})
        assert answer.status_code == 403
        assert "This is no token of the operator" in words(answer)
        assert "set-cookie" not in answer.headers
        assert not wrong or wrong not in answer.text


def test_wrong_tokens_count_for_the_address_that_sends_them(
    url: str, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    monkeypatch.setenv("FAILED_TOKENS_PER_ADDRESS", "2/hour")
    with TestClient(app) as limited:
        seen = [limited.post("/console/sign-in", data={"token": "wrong"}).status_code for _ in range(3)]
        assert seen == [403, 403, 429]
        # They are those of the API.
        assert refusal_of(limited.get("/me", headers={"Authorization": "Bearer wrong"})) == (429, "too-many-requests")
        Console(limited)


def test_the_cookie_is_for_the_console_alone_and_no_script_reads_it(client: TestClient) -> None:
    answer = client.post("/console/sign-in", data={"token": OPERATOR_TOKEN}, follow_redirects=False)

    cookie = answer.headers["set-cookie"]
    assert "HttpOnly; " in cookie
    assert "Path=/console; " in cookie
    assert "SameSite=strict" in cookie
    assert f"Max-Age={sessions.LIFETIME}; " in cookie
    assert OPERATOR_TOKEN not in str(answer.headers)
    # The API knows no cookie.
    assert refusal_of(client.get("/users")) == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("environment", "origin", "is_secure"),
    [
        ("development", "http://10.0.0.1", False),
        ("development", "https://10.0.0.1", True),
        ("production", "http://127.0.0.1:8000", False),
        ("production", "http://savepoint.example", True),
        ("production", "https://savepoint.example", True),
    ],
)
def test_the_cookie_is_secure_but_on_this_machine_and_in_development(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, environment: str, origin: str, *, is_secure: bool
) -> None:
    monkeypatch.setattr(app.state.operations.settings, "environment", environment)

    answer = client.post(f"{origin}/console/sign-in", data={"token": OPERATOR_TOKEN}, follow_redirects=False)

    assert ("Secure" in answer.headers["set-cookie"]) == is_secure


def test_a_session_ends_by_itself_and_when_the_operators_token_is_another_one(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(client)
    assert console.get().status_code == 200

    cookie, token_hash = client.cookies[sessions.COOKIE], app.state.operator_token_hash

    app.state.operator_token_hash = hash_secret("another token of the operator")
    assert console.get().status_code == 303
    app.state.operator_token_hash = token_hash
    assert console.get().status_code == 200
    end = int(cookie.split(".")[1])
    for now, is_over in ((end - 1, False), (end, True)):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda now=now: now)
            assert (sessions.read_session(token_hash, cookie) is None) == is_over


def test_a_cookie_that_was_changed_is_none(client: TestClient) -> None:
    Console(client)
    cookie = client.cookies[sessions.COOKIE]
    who, expires_at, nonce, signature = cookie.split(".")
    forged = [
        f"{who}.{int(expires_at) + 1}.{nonce}.{signature}",
        f"someone.{expires_at}.{nonce}.{signature}",
        f"{who}.{expires_at}.{nonce}.",
        f"{who}.{expires_at}.{nonce}.{'0' * len(signature)}",
        cookie[:-1],
        "",
        "....",
        "\u00e9.\u00e9",
    ]
    for each in forged:
        assert sessions.read_session(app.state.operator_token_hash, each) is None, each
    assert sessions.read_session(app.state.operator_token_hash, cookie) is not None


def test_who_signs_out_is_out(client: TestClient) -> None:
    console = Console(client)
    form_token = hidden_form_token(console)

    assert location(console.post("/sign-out", form_token=form_token)) == "/console/sign-in"
    assert console.get().status_code == 303


def hidden_form_token(console: Console) -> str:
    found = re.search('name="form_token" value="([0-9a-f]+)"', console.get().text)
    assert found is not None
    return found[1]


def test_a_form_is_accepted_from_a_page_of_the_same_session_only(client: TestClient, rows: Rows) -> None:
    client.post("/register", json={"username": "alice", "email": "alice@example.com"})
    first = Console(client)
    old = hidden(first.get("/users/1/suspend"))
    console = Console(client)
    path, sent = "/users/1/suspend", {**hidden(console.get("/users/1/suspend")), "step": "do"}

    for refused in (
        console.post(path, **{**sent, "form_token": ""}),
        console.post(path, **{**sent, "form_token": old["form_token"]}),
        console.post(path, OTHER_SITE, **sent),
        console.post(path, {"Origin": "https://evil.example"}, **sent),
        console.post(path, {"Origin": "null"}, **sent),
        console.post(path, {"Sec-Fetch-Site": "same-site"}, **sent),
        console.post("/sign-out", **{**sent, "form_token": ""}),
        console.post("/sign-in", OTHER_SITE, token=OPERATOR_TOKEN),
    ):
        assert refused.status_code == 403
        assert "Nothing was done" in words(refused)
    assert rows("SELECT status FROM profiles") == [("active",)]
    assert location(console.post(path, {"Origin": "http://testserver"}, **sent)) == "/console/users/1?done=suspend"


def test_a_body_that_is_no_form_is_refused(client: TestClient) -> None:
    Console(client)
    path, as_form = "/console/users/1/suspend", {"Content-Type": "application/x-www-form-urlencoded"}

    def status_of(body: bytes, headers: dict[str, str] = as_form) -> int:
        return client.post(path, content=body, headers=headers).status_code

    assert status_of(b"a=1&a=2") == 400
    assert status_of(b"a=%ff") == 400
    assert status_of(b"\xff=a") == 400
    assert status_of(b"&".join(b"a%d=1" % number for number in range(31))) == 400
    assert status_of(b"a=" + b"x" * MOST_BYTES) == 413
    assert status_of(b'{"a": 1}', {"Content-Type": "application/json"}) == 415
    assert status_of(b"", {}) == 415


@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [
        ("/console/users/1", "/console/users/1"),
        ("https://evil.example/console/users", "/console"),
        ("//evil.example/console/users", "/console"),
        ("/console/\\evil.example", "/console"),
        ("/docs", "/console"),
        ("/console/sign-out", "/console"),
        ("javascript:alert(1)", "/console"),
        ("", "/console"),
    ],
)
def test_signing_in_leads_back_within_the_console_only(client: TestClient, asked: str, leads_to: str) -> None:
    form = client.get("/console/sign-in", params={"next": asked})
    assert hidden(form) == {"next": leads_to}

    answer = client.post("/console/sign-in", data={"token": OPERATOR_TOKEN, "next": asked}, follow_redirects=False)

    assert location(answer) == leads_to
    assert location(client.get("/console/sign-in", params={"next": asked}, follow_redirects=False)) == leads_to


def test_no_page_runs_a_script_or_is_kept_or_framed(client: TestClient) -> None:
    console = Console(client)
    client.cookies.clear()
    for answer in (console.get("/sign-in"), console.get("/users"), Console(client).get("/users/1"), console.get()):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; ")
        assert "script" not in answer.headers["content-security-policy"] + answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "value"), [("CONSOLE", "false"), ("OPERATOR_TOKEN", "")], ids=["switched off", "without a token"]
)
def test_the_console_can_be_off(client: TestClient, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("ENVIRONMENT", "production")

    with TestClient(app) as off:
        for path in ("", "/sign-in", "/users/1", "/assets/style.css"):
            assert refusal_of(off.get(f"/console{path}")) == (404, "not-found")
        assert refusal_of(off.post("/console/sign-in", data={"token": OPERATOR_TOKEN})) == (404, "not-found")
