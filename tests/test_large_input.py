"""Nobody holds up the others, or fills the memory, with what they send."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from precis_i18n import get_profile
from pydantic import BaseModel, field_validator
from starlette.testclient import TestClient

import fields
import main
import models
import operations
from api import bodies
from ledger import OPERATOR
from refusals import Overloaded
from tests.support.accounts import books, fields_of, order, refusal_of, register_all
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows

JSON = {"Content-Type": "application/json"}


class Checked(BaseModel):
    """A body with a check of its own, as a developer may add it."""

    number: int

    @field_validator("number")
    @classmethod
    def refuse(cls, number: int) -> int:
        """Refuse each."""
        raise ValueError("not this one")


@pytest.fixture(autouse=True)
def checked_route() -> Iterator[None]:
    """POST /checked, added to the app for one test."""

    async def check(checked: Checked) -> None: ...

    known = list(main.app.router.routes)
    main.app.add_api_route("/checked", check, methods=["POST"])
    yield
    main.app.router.routes[:] = known


@pytest.mark.parametrize("marks", [125, 8_000, 120_000])
def test_a_long_email_is_refused_before_it_is_looked_into(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, marks: int
) -> None:
    email = "a" + "\u0315" * marks + "\u0300" * marks + "@x.com"
    [alice] = register_all(client, alice=0)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a check that takes long")

    monkeypatch.setattr(fields, "validate_email", fail)

    for method, path, body, headers in (
        ("POST", "/register", named("bob") | {"email": email}, {}),
        ("PATCH", "/me", {"email": email}, alice.headers),
    ):
        refused = client.request(method, path, json=body, headers=headers)
        assert fields_of(refused) == ["body.email"]
        assert refused.json()["errors"][0]["detail"] == "An email address has at most 100 characters"


@pytest.mark.parametrize(
    "username", ["ü" * 51, "a" + "\u0315\u0300" * 100, "\u0628" * 200, "ü" * 1_000_000], ids=range(4)
)
def test_a_long_username_is_refused_before_it_is_looked_into(monkeypatch: pytest.MonkeyPatch, username: str) -> None:
    def fail(_: str) -> str:
        raise AssertionError("a check that takes long")

    monkeypatch.setattr(fields.USERNAME_PROFILE, "enforce", fail)

    with pytest.raises(ValueError, match=r"at most 50|too_long"):
        models.Registration.model_validate(named(username))


@given(st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=120))
def test_a_username_that_gets_short_enough_is_taken(username: str) -> None:
    try:
        normalised = get_profile("UsernameCaseMapped").enforce(username)
    except UnicodeEncodeError:
        return

    if len(normalised) <= 50:
        assert models.Registration.model_validate(named(username)).username == normalised


@pytest.mark.parametrize("field", ["username", "email", "phone_number", "x" * 1000, "\\ud800"], ids=range(5))
@pytest.mark.parametrize("value", ["x", "\\u00fc", "1"])
def test_a_field_of_a_mebibyte_is_answered_with_a_few_words(client: TestClient, field: str, value: str) -> None:
    content = f'{{"{field}": "{value * (2**20 // len(value) - 10_000)}"}}'

    refused = client.post("/register", content=content, headers=JSON)

    assert refused.status_code == 422
    assert len(refused.content) < 2_000


def assert_bounded(answer: Any, listed: int, unlisted: int) -> None:
    """The 422 lists so many errors, and says that there are so many more."""
    assert len(fields_of(answer)) == listed
    assert answer.json()["detail"].endswith(f" There are {unlisted:,} more errors.")


async def ask_app(method: str, path: str, content: bytes, secret: str = "") -> tuple[int, bytes]:
    """Status and body of an answer, without a client that may keep what it sent."""
    answer: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content}

    async def send(message: Any) -> None:
        answer.append(message)

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    await main.app(scope, receive, send)
    return answer[0]["status"], answer[1]["body"]


REFUSED = [
    ("POST", "/register", named("bob") | {"email": "bob"}),
    ("POST", "/register", named("\u202e")),
    ("PATCH", "/me", {"email": "bob"}),
    ("POST", "/tokens", {"name": "\u202e"}),
    ("POST", "/transfers", order(1, 2, 5) | {"memo": "\u202e"}),
    ("POST", "/transfers/batch", {"transfers": [order(1, 2, 5) | {"memo": "\u202e"}]}),
    ("POST", "/checked", {"number": 1}),
]


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["sqlite"])
async def test_what_was_refused_is_not_kept_in_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    async with main.lifespan(main.app):
        _, registered = await ask_app("POST", "/register", json.dumps(named("alice")).encode())
        secret = json.loads(registered)["access_token"]
        for method, path, body in REFUSED:
            content = json.dumps(body | {"unknown": "a" * 500_000}).encode()
            await ask_app(method, path, content, secret)
            gc.disable()
            tracemalloc.start()
            try:
                for _ in range(8):
                    status, _ = await ask_app(method, path, content, secret)
                    assert status == 422
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
                gc.enable()
            assert kept < 1_500_000, path  # of 4 MB


def test_a_call_lists_at_most_100_errors(client: TestClient) -> None:
    unknown = {f"field{number}": 1 for number in range(100)}

    assert_bounded(client.post("/register", json=unknown), listed=100, unlisted=2)


def test_an_object_has_at_most_100_fields(client: TestClient) -> None:
    unknown = {f"field{number}": 1 for number in range(101)}

    for path, body in (("/register", unknown), ("/users/batch", {"users": [unknown]}), ("/users/batch", unknown)):
        refused = client.post(path, json=body, headers=AS_OPERATOR)
        assert fields_of(refused) == ["body"]
        assert "at most 100" in refused.json()["errors"][0]["detail"]


@pytest.mark.parametrize("on_error", ["rollback", "continue"])
def test_10_000_items_of_130_unknown_fields_are_answered_with_a_few_words(client: TestClient, on_error: str) -> None:
    item = json.dumps({f"f{number}": 1 for number in range(130)}, separators=(",", ":"))
    content = f'{{"on_error": "{on_error}", "users": [{",".join([item] * 10_000)}]}}'

    refused = client.post("/users/batch", content=content, headers=JSON | AS_OPERATOR)

    assert refusal_of(refused) == (400, "invalid-body")
    assert len(refused.content) < 1_000


def test_a_batch_that_is_rolled_back_lists_at_most_100_errors(client: TestClient) -> None:
    users = [{"username": f"user{number}", "x": 1, "y": 2} for number in range(300)]

    assert_bounded(client.post("/users/batch", json={"users": users}, headers=AS_OPERATOR), listed=100, unlisted=800)


def test_a_batch_that_goes_on_lists_100_errors_and_then_one_for_each_item(client: TestClient) -> None:
    users: list[Any] = [{f"x{number}": 1 for number in range(30)} for _ in range(20)]
    users += [named("alice")]

    answer = client.post("/users/batch", json={"users": users, "on_error": "continue"}, headers=AS_OPERATOR)

    results = answer.json()["results"]
    assert [len(result["problem"]["errors"]) for result in results[:-1]] == [32, 32, 32, 4] + [1] * 16
    assert results[3]["problem"]["detail"].endswith(" There are 28 more errors.")
    assert results[-1]["status"] == "created"


def test_a_batch_that_is_refused_lists_at_most_100_items(client: TestClient) -> None:
    client.post("/register", json=named("alice"))

    refused = client.post("/users/batch", json={"users": [named("alice")] * 150}, headers=AS_OPERATOR)

    assert refusal_of(refused) == (409, "batch-refused")
    assert [error["index"] for error in refused.json()["errors"]] == list(range(100))
    assert refused.json()["detail"].endswith(" There are 50 more errors.")


def test_a_query_of_many_parameters_is_answered_with_a_few_words(client: TestClient) -> None:
    refused = client.get(f"/users?{'a=1&' * 10_000}", headers=AS_OPERATOR)

    assert fields_of(refused) == ["query"]


def test_a_user_sends_1000_transfers_at_once_and_the_operator_10_000(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = books(rows)
    # With every field, and as many texts as there may be.
    texts = {"memo": "rent", "reference": "order-1", "metadata": {f"key-{number}": "text" for number in range(20)}}
    others = {"if_version": None, "on_short": "refuse", "idempotency_key": None}
    transfer = order(alice.account_id, bob.account_id, 1, **texts, **others)

    for headers, most in ((alice.headers, 1_000), (AS_OPERATOR, 10_000)):
        refused = client.post("/transfers/batch", json={"transfers": [transfer] * (most + 1)}, headers=headers)
        assert fields_of(refused) == ["body.transfers"]
        assert f"{most:,}" in refused.json()["errors"][0]["detail"]
        # As many as that are tried: there is too little money.
        tried = client.post("/transfers/batch", json={"transfers": [transfer] * most}, headers=headers)
        assert refusal_of(tried) == (409, "batch-refused")
    assert books(rows) == before


def test_a_users_batch_is_at_most_2_mib(client: TestClient) -> None:
    [alice] = register_all(client, alice=0)
    content = b'{"transfers": [' + b" " * 2 * 2**20 + b"]}"

    for sent in (content, iter([content[: 2**20], content[2**20 :]])):
        refused = client.post("/transfers/batch", content=sent, headers=JSON | alice.headers)
        assert refusal_of(refused) == (413, "content-too-large")
    assert fields_of(client.post("/transfers/batch", content=content, headers=JSON | AS_OPERATOR)) == ["body.transfers"]


async def test_few_batches_are_in_memory_at_once_and_users_do_not_keep_the_operator_waiting() -> None:
    turns = operations.Turns(wait=0.05)
    users = [turns.take(caller) for caller in range(1, 6)]
    for turn in users[:4]:
        await turn.__aenter__()

    with pytest.raises(Overloaded):
        await users[4].__aenter__()
    async with turns.take(OPERATOR), turns.take(OPERATOR):
        with pytest.raises(Overloaded):
            await turns.take(OPERATOR).__aenter__()

    await users[0].__aexit__(None, None, None)
    async with turns.take(7):
        pass


def test_a_batch_takes_its_turn_before_its_body_is_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = operations.Turns(wait=0.05)
    turns.of_operator = asyncio.Semaphore(0)
    monkeypatch.setattr(main.app.state.operations, "turns", turns)

    # Not even JSON.
    refused = client.post("/users/batch", content=b"{", headers=JSON | AS_OPERATOR)

    assert refusal_of(refused) == (503, "overloaded")


def test_a_large_body_is_read_in_a_thread(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    in_threads = []

    async def note(call: Any, *arguments: Any) -> Any:
        in_threads.append(call)
        return call(*arguments)

    monkeypatch.setattr(bodies, "in_thread", note)
    client.post("/register", json=named("x" * 2**18))

    assert in_threads == [bodies.parse_json]
