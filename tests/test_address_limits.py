"""Each client address has its own limits, and the operator none."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from httpx2 import Client, Response
from pydantic import ValidationError
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

import main
from api import address_limits
from api.address_limits import AddressLimit
from refusals import TooManyRequests
from settings import Settings
from tests.support.problems import assert_problem
from tests.support.registration import count, named
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Rows, audited

Start = Callable[..., Client]


BAD_TOKEN = {"Authorization": "Bearer svp_this-is-nobodys"}


@pytest.fixture
def start(url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start the service with these settings, behind a proxy that names the client's address."""
    with audited(url, request), ExitStack() as stack:

        def start(**settings: str) -> Client:
            for name, value in {"database_url": url, "operator_token": OPERATOR_TOKEN, **settings}.items():
                monkeypatch.setenv(name.upper(), value)
            app: Any = ProxyHeadersMiddleware(main.app, trusted_hosts="testclient")  # type: ignore[arg-type]
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


def register_from(address: str, client: Client, username: str, **headers: str) -> Response:
    return client.post("/register", json=named(username), headers={"X-Forwarded-For": address, **headers})


def ask_from(address: str, client: Client, headers: dict[str, str]) -> Response:
    return client.get("/me", headers={"X-Forwarded-For": address, **headers})


def client_at(host: str | None) -> HTTPConnection:
    return HTTPConnection({"type": "http", "client": None if host is None else (host, 1)})


def are_one(*hosts: str | None) -> bool:
    """Whether a limit takes these addresses for one client."""
    return len({address_limits.client_network(client_at(host)) for host in hosts}) == 1


class Clock:
    """A time that passes when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**15
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * 10**9)


def test_an_address_over_its_limit_registers_nobody_and_others_go_on(start: Start, rows: Rows) -> None:
    client = start(registrations_per_address="3/hour")

    answers = [register_from("203.0.113.1", client, f"user{number}") for number in range(4)]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert_problem(answers[-1], 429, "too-many-requests")
    assert 1190 <= int(answers[-1].headers["Retry-After"]) <= 1200  # a third of an hour
    assert register_from("203.0.113.2", client, "other").status_code == 201
    assert count(rows) == (4, 4, 4)


def test_registrations_that_are_refused_count_too(start: Start) -> None:
    client = start(registrations_per_address="2/hour")

    # Else anybody could try which names are taken.
    answers = [register_from("203.0.113.1", client, name) for name in ("alice", "ALICE", "alice", "not a name")]

    assert [answer.status_code for answer in answers] == [201, 409, 429, 429]


def test_the_operator_registers_without_limit(start: Start) -> None:
    client = start(registrations_per_address="1/day")

    answers = [register_from("203.0.113.1", client, f"user{number}", **AS_OPERATOR) for number in range(3)]
    batch = {"users": [named(f"many{number}") for number in range(3)]}

    assert [answer.status_code for answer in answers] == [201] * 3
    assert client.post("/users/batch", json=batch, headers=AS_OPERATOR).status_code == 200
    assert register_from("203.0.113.1", client, "stranger").status_code == 201  # the first that counts
    assert register_from("203.0.113.1", client, "stranger2", **BAD_TOKEN).status_code == 429


def test_without_settings_anybody_registers_without_limit(start: Start) -> None:
    client = start()

    assert {register_from("203.0.113.1", client, f"user{number}").status_code for number in range(40)} == {201}
    assert {ask_from("203.0.113.1", client, BAD_TOKEN).status_code for _ in range(40)} == {401}


def test_where_only_the_operator_registers_everybody_else_is_refused(start: Start, rows: Rows) -> None:
    client = start(registration="operator")
    mine = register_from("203.0.113.1", client, "alice", **AS_OPERATOR)
    assert mine.status_code == 201
    token = {"Authorization": f"Bearer {mine.json()['access_token']}"}

    assert_problem(register_from("203.0.113.1", client, "bob"), 401, "unauthenticated")
    assert_problem(register_from("203.0.113.1", client, "bob", **BAD_TOKEN), 401, "unauthenticated")
    assert_problem(register_from("203.0.113.1", client, "bob", **token), 403, "operator-only")
    # Strangers are not told what is wrong with what they may not send.
    assert_problem(register_from("203.0.113.1", client, "not a name"), 401, "unauthenticated")
    assert count(rows) == (1, 1, 1)


def test_an_address_over_its_limit_of_failed_tokens_is_told_to_wait(start: Start) -> None:
    client = start(failed_tokens_per_address="3/minute")

    answers = [ask_from("203.0.113.1", client, BAD_TOKEN) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert_problem(answers[-1], 429, "too-many-requests")
    assert 15 <= int(answers[-1].headers["Retry-After"]) <= 20
    assert ask_from("203.0.113.2", client, BAD_TOKEN).status_code == 401


def test_invalid_tokens_count_together_on_users_and_operators_calls(start: Start) -> None:
    client = start(failed_tokens_per_address="3/minute", registration="operator")
    calls = [("GET", "/me"), ("GET", "/users"), ("GET", "/accounts"), ("POST", "/register"), ("POST", "/deposits")]

    answers = [client.request(method, path, json=named("alice"), headers=BAD_TOKEN) for method, path in calls]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]


def test_valid_tokens_work_from_an_address_over_its_limit(start: Start) -> None:
    client = start(failed_tokens_per_address="1/day")
    token = {"Authorization": f"Bearer {register_from('203.0.113.1', client, 'alice').json()['access_token']}"}
    assert [ask_from("203.0.113.1", client, BAD_TOKEN).status_code for _ in range(3)] == [401, 429, 429]

    assert ask_from("203.0.113.1", client, token).status_code == 200
    assert client.get("/users", headers={"X-Forwarded-For": "203.0.113.1", **AS_OPERATOR}).status_code == 200


def test_a_call_without_a_token_is_no_failed_token(start: Start) -> None:
    client = start(failed_tokens_per_address="1/day")

    assert {ask_from("203.0.113.1", client, {}).status_code for _ in range(5)} == {401}
    assert ask_from("203.0.113.1", client, BAD_TOKEN).status_code == 401


@pytest.mark.parametrize("rate", ["3/second", "3/minute", "7/hour", "1000/day"])
def test_a_limit_lets_its_number_pass_at_once_and_then_one_at_a_time(
    rate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, seconds = address_limits.parse_rate(rate)
    clock, limit, client = Clock(monkeypatch), AddressLimit(rate), client_at("203.0.113.1")
    for _ in range(number):
        limit.count(client)

    for _ in range(3):
        with pytest.raises(TooManyRequests) as refusal:
            limit.count(client)
        assert refusal.value.retry_after == -(-seconds // number)
        clock.pass_seconds(seconds / number)
        limit.count(client)
    clock.pass_seconds(seconds)
    for _ in range(number):
        limit.count(client)
    with pytest.raises(TooManyRequests):
        limit.count(client)


def test_who_waits_as_long_as_told_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, limit, client = Clock(monkeypatch), AddressLimit("1/hour"), client_at("203.0.113.1")
    limit.count(client)
    clock.pass_seconds(1.5)

    with pytest.raises(TooManyRequests) as refusal:
        limit.count(client)
    clock.pass_seconds(refusal.value.retry_after)

    limit.count(client)


def test_memory_is_bounded_and_whoever_comes_back_most_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_limits, "MOST_ADDRESSES", 100)
    limit, insistent = AddressLimit("1/day"), client_at("203.0.113.1")
    limit.count(insistent)

    for number in range(1000):
        limit.count(client_at(f"10.0.{number // 256}.{number % 256}"))
        if number % 50 == 0:
            with pytest.raises(TooManyRequests):
                limit.count(insistent)

    assert len(limit.empty_at) == 100


def test_a_client_is_its_ipv4_address_or_its_ipv6_network() -> None:
    assert are_one("203.0.113.1", "::ffff:203.0.113.1", "::ffff:cb00:7101")
    assert not are_one("203.0.113.1", "203.0.113.2")
    assert are_one("2001:db8::1", "2001:DB8::ffff:ffff:ffff:ffff", "2001:db8:0:0:1::%eth0")
    assert not are_one("2001:db8::1", "2001:db8:0:1::1")
    assert not are_one("1.2.3.4", "::1.2.3.4", "102:304::")
    # Whatever is no address is one client, so that inventing such names gains nothing.
    assert are_one(
        None, "", "unknown", "1.2.3", "1.2.3.4.5", "01.2.3.4", "a" * 100_000, "1.2.3.4, 5.6.7.8", "\u0661.2.3.4"
    )


@pytest.mark.parametrize(
    "rate",
    ["20", "20/week", "0/hour", "-1/hour", "1.5/hour", "20/hours", "20/hour/day", "/hour", "1e3/day", "\u0662/hour"],
)
def test_a_limit_that_cannot_be_read_is_refused_with_an_example(rate: str) -> None:
    for name in ("registrations_per_address", "failed_tokens_per_address"):
        with pytest.raises(ValidationError, match="as in 20/hour"):
            Settings.model_validate({name: rate})


def test_the_description_tells_of_limits_and_that_the_operator_may_be_asked_for() -> None:
    paths = main.app.openapi()["paths"]
    register = paths["/register"]["post"]

    assert register["security"] == [{}, {"OperatorToken": ["users"]}]
    assert {"401", "403", "429"} <= register["responses"].keys()
    for path in paths.values():
        for call in path.values():
            if "security" in call:
                assert call["responses"]["429"]["headers"]["Retry-After"]["schema"] == {"type": "string"}
