"""Every body is read by one rule: JSON in UTF-8, each name once (RFC 8259, RFC 7493)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

import importing
from api import bodies
from api.problems import BadBody, InvalidFields
from models import TransferRequest
from tests.support.accounts import Headers, books, fields_of, order, refusal_of, register_all
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows

JSON = {"Content-Type": "application/json"}


USER = b'{"username": "alice", "email": "alice@example.com"}'


# One route for each way of reading a body: at once, as FastAPI, and by the route itself.
ROUTES = [
    ("POST", "/register", USER),
    ("PATCH", "/users/1", b'{"status": "active"}'),
    ("POST", "/users/batch", b'{"users": [' + USER + b"]}"),
]


@pytest.fixture
def asked(client: TestClient) -> Any:
    """Send a body to each of these routes, as the operator; what each answered."""
    client.post("/register", json=named("first"))

    def ask(change: Any = lambda body: body, **headers: str) -> list[Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return [
            client.request(method, path, content=change(body), headers=JSON | AS_OPERATOR | sent)
            for method, path, body in ROUTES
        ]

    return ask


@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON", "application/json;charset=utf-8", "application/json ; a=b"]
)
def test_json_is_read_whatever_the_parameters_of_its_media_type(asked: Any, media_type: str) -> None:
    assert [answer.status_code for answer in asked(Content_Type=media_type)] == [201, 200, 409]


@pytest.mark.parametrize(
    "media_type",
    ["text/json", "text/plain", "application/jsonl", "application/problem+json", "application/x-json", "json", ""],
)
def test_other_media_types_are_415(asked: Any, media_type: str) -> None:
    for answer in asked(Content_Type=media_type):
        assert refusal_of(answer) == (415, "unsupported-media-type")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity"])
def test_a_compressed_body_is_415_and_told_what_is_accepted(asked: Any, coding: str) -> None:
    for answer in asked(Content_Encoding=coding):
        assert refusal_of(answer) == (415, "unsupported-media-type")
        assert answer.headers["Accept-Encoding"] == "identity"  # RFC 9110, section 15.5.16
        assert "Content-Encoding" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda body: b"\xef\xbb\xbf" + body, (400, "invalid-json")),
        (lambda body: body + b"x", (400, "invalid-json")),
        (lambda body: body + body, (400, "invalid-json")),
        (lambda body: b" ", (400, "invalid-json")),
        (lambda body: b"\x0c" + body, (400, "invalid-json")),
        (lambda body: body.replace(b'"}', b'\x01"}', 1), (400, "invalid-json")),
        (lambda body: body.replace(b"{", b'{"x": NaN, ', 1), (400, "invalid-json")),
        (lambda body: body.replace(b"{", b'{"x": -Infinity, ', 1), (400, "invalid-json")),
        (lambda body: body.decode().encode("utf-16"), (400, "invalid-body")),
        (lambda body: body.decode().encode("utf-16-le"), (400, "invalid-json")),
        (lambda body: body.replace(b'"}', b'\xff"}', 1), (400, "invalid-body")),
        (lambda body: body.replace(b"{", b'{"x": ' + b"9" * 5000 + b", ", 1), (400, "invalid-body")),
        (lambda body: body.replace(b"{", b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b", ", 1), (400, "invalid-body")),
        (lambda body: b"", (422, "invalid-request")),
    ],
)
def test_every_route_refuses_the_same_bodies(asked: Any, change: Any, refusal: tuple[int, str]) -> None:
    assert [refusal_of(answer) for answer in asked(change)] == [refusal] * len(ROUTES)


@pytest.mark.parametrize(
    "repeated", ['"amount": 2', '"amount":1', '"\\u0061mount": 2', '"amount" : 2', '"x": {"amount": 1, "amount": 2}']
)
def test_a_name_that_is_there_twice_moves_nothing(client: TestClient, rows: Rows, repeated: str) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    before = books(rows)
    transfer = json.dumps(order(alice.account_id, bob.account_id, 1))[:-1] + f", {repeated}}}"

    single = client.post("/transfers", content=transfer, headers=JSON | alice.headers)
    batch = client.post("/transfers/batch", content=f'{{"transfers": [{transfer}]}}', headers=JSON | alice.headers)

    for answer in (single, batch):
        assert fields_of(answer) == ["body"]
        assert '"amount" is there twice' in answer.json()["errors"][0]["detail"]
    assert books(rows) == before


def test_a_batch_with_two_lists_of_transfers_moves_nothing(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    before = books(rows)
    transfers = json.dumps([order(alice.account_id, bob.account_id, 1)])

    content = f'{{"transfers": {transfers}, "on_error": "continue", "transfers": {transfers}}}'

    assert fields_of(client.post("/transfers/batch", content=content, headers=JSON | alice.headers)) == ["body"]
    assert books(rows) == before


def test_a_memo_may_look_like_fields(client: TestClient) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    memo = 'at 12:30: "amount": 2, "amount": 3'

    moved = client.post("/transfers", json=order(alice.account_id, bob.account_id, 1, memo=memo), headers=alice.headers)

    assert (moved.status_code, moved.json()["memo"]) == (201, memo)


class Members(list[tuple[str, Any]]):
    """The members of an object, in which a name may be there twice."""


NAMES = st.sampled_from(["a", "b", "\u0061", "debit_account_id", ":", '"', "\\"])


VALUES = st.recursive(
    st.none() | st.integers() | st.text(':"\\a,{[', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=3).map(Members),
    max_leaves=6,
)


def written(value: Any) -> str:
    """The value as JSON."""
    if isinstance(value, Members):
        return "{" + ", ".join(f"{json.dumps(name)} : {written(each)}" for name, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def has_repeated(value: Any) -> bool:
    """Whether an object in this value has a name twice."""
    if isinstance(value, Members):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(has_repeated(each) for _, each in value)
    return isinstance(value, list) and any(map(has_repeated, value))


@given(VALUES)
def test_exactly_the_repeated_names_are_found(value: Any) -> None:
    content = written(value).encode()

    if has_repeated(value):
        with pytest.raises(InvalidFields):
            bodies.parse_json(content)
    else:
        assert bodies.parse_json(content) == json.loads(content)


@given(
    st.lists(st.tuples(st.sampled_from(["amount", "memo"]), st.integers(1, 9)), max_size=3), st.text(':"\\', max_size=4)
)
def test_a_model_that_has_as_many_fields_as_its_body_has_colons_has_none_twice(
    more: list[tuple[str, int]], memo: str
) -> None:
    members = Members([*order(1, 2, 3, memo=memo).items(), *((n, memo if n == "memo" else i) for n, i in more)])
    content = written(members).encode()

    found = TransferRequest.model_validate_json(content)

    if content.count(b":") == len(found.model_fields_set):
        assert not has_repeated(members)


def test_a_line_of_an_import_has_each_name_once() -> None:
    line = '{"username": "alice", "email": "a@example.com", "username": "bob"}'
    with pytest.raises(importing.LineRefused) as refused:
        importing.Ndjson().parse(line)

    assert refused.value.detail == 'The field "username" is there twice in one object; send it once.'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PATCH", "/me"),
        ("POST", "/tokens"),
        ("POST", "/accounts"),
        ("POST", "/transfers"),
        ("POST", "/transfers/batch"),
        ("POST", "/deposits"),
        ("PATCH", "/users/1"),
        ("POST", "/users/batch"),
    ],
)
def test_a_stranger_has_no_body_read(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the body was read")

    monkeypatch.setattr(bodies, "parse_json", fail)
    headers: Headers = JSON | {"Authorization": "Bearer svp_unknown"}
    for each in (headers, JSON):
        for content in (b'{"email": "a@example.com"}', b"{", b"x" * 2**17):
            answer = client.request(method, path, content=content, headers=each)
            assert refusal_of(answer) == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("announced", "is_too_long"),
    [
        (b"", False),
        (b"0" * 5000, False),
        (b"0" * 5000 + b"5", False),
        (b"1048576", False),
        (b"1048577", True),
        (b"0" * 5000 + b"1048577", True),
        (b"9" * 5000, True),
        ("²".encode("latin-1"), False),
        (b"-1", False),
        (b"x", False),
    ],
)
def test_a_content_length_of_any_length_is_read(announced: bytes, is_too_long: bool) -> None:
    assert bodies.exceeds(announced, 2**20) is is_too_long


@pytest.mark.parametrize("path", ["/register", "/me", "/nowhere", "/users/batch"])
def test_a_content_length_of_5000_zeros_is_no_server_error(client: TestClient, path: str) -> None:
    answer = client.post(path, content=iter([b"{}"]), headers=JSON | {"Content-Length": "0" * 5000})

    assert answer.status_code < 500


def test_a_body_of_too_many_values_is_not_read(client: TestClient) -> None:
    for content in (b"[" + b"[]," * 20_000 + b"1]", b"[" + b"1," * 30_000 + b"1]", b'{"a":{},' * 20_000):
        with pytest.raises(BadBody):
            bodies.parse_json(content)
        answer = client.post("/register", content=content, headers=JSON)
        assert refusal_of(answer) == (400, "invalid-body")
        assert "values" in answer.json()["detail"]


def test_what_stands_in_a_text_is_no_value() -> None:
    texts = [",[{" * 10_000, '\\"' * 20_000 + "," * 30_000, "[" * 30_000 + "\\"]

    assert bodies.parse_json(json.dumps(texts).encode()) == texts
    # A text without an end is read once, however many quotes are in it.
    with pytest.raises(BadBody):
        bodies.parse_json(b'["' + b'\\",' * 300_000)
