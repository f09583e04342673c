"""What fields, ids, cursors, keys and queries may be, and that a refusal says so in words."""

import base64
import json
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from api.idempotency import unquote_key
from api.pages import encode_cursor
from tests.support.accounts import answer_of, books, fields_of, order, register, register_all, walk
from tests.support.registration import count, named
from tests.support.service import AS_OPERATOR, Rows

UNSEEN = {
    "control": "a\x1bb",
    "line feed": "a\nb",
    "C1 control": "a\x85b",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "override": "a\u202eb",
    "embedding": "a\u202ab",
    "isolate": "a\u2066b",
    "end of isolate": "a\u2069b",
    "noncharacter": "a\ufdd0b",
    "byte order": "a\ufffeb",
    "astral noncharacter": "a\U0001fffeb",
    "last": "a\U0010ffffb",
    "half a pair": "a\ud800b",
}


SEEN = "عربي עברית A\u200e नमस्ते \U0001f468\u200d\U0001f469 e\u0301 房租 \u00a0"


@pytest.mark.parametrize("text", UNSEEN.values(), ids=UNSEEN)
def test_what_cannot_be_seen_is_refused_in_a_text(client: TestClient, rows: Rows, text: str) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = books(rows)
    transfer = order(alice.account_id, bob.account_id, 1, memo=text)

    for path, body, headers in (
        ("/transfers", transfer, alice.headers),
        ("/transfers/batch", {"transfers": [transfer]}, alice.headers),
        ("/deposits", {"account_id": 1, "amount": 1, "memo": text}, AS_OPERATOR),
        ("/withdrawals", {"account_id": 1, "amount": 1, "memo": text}, AS_OPERATOR),
        ("/tokens", {"name": text}, alice.headers),
    ):
        sent = client.post(path, content=json.dumps(body), headers=headers | {"Content-Type": "application/json"})
        [field] = fields_of(sent)
        assert field.rpartition(".")[2] in ("memo", "name")
    assert books(rows) == before


def test_letters_marks_and_emoji_of_every_script_are_texts(client: TestClient) -> None:
    alice, bob = register_all(client, alice=10, bob=0)

    moved = client.post("/transfers", json=order(alice.account_id, bob.account_id, 1, memo=SEEN), headers=alice.headers)

    assert answer_of(moved)["memo"] == SEEN
    assert answer_of(client.post("/tokens", json={"name": SEEN}, headers=alice.headers))["name"] == SEEN


def test_no_refusal_of_a_field_shows_a_regular_expression(client: TestClient) -> None:
    alice = register(client)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("/register", named("bob") | {"phone_number": "0151 2345678"}),
        ("/accounts", {"currency": "eur"}),
        ("/tokens", {"name": "\x00"}),
        ("/transfers", order(1, 2, 3, memo="\x00")),
    ]

    answers = [client.post(path, json=body, headers=alice.headers) for path, body in wrong]
    answers.append(client.post("/transfers", json=order(1, 2, 3), headers=alice.headers | {"Idempotency-Key": "\x7f"}))
    for answer in answers:
        [error] = answer.json()["errors"]
        assert not {*"^$[]{}\\"} & {*error["detail"]}, error
    assert "country code" in answers[0].json()["errors"][0]["detail"]


NO_NUMBERS = ["+1", "01", "1.0", "1_0", "1 ", " 1", "-1", "0x1", "1e0", "١", "１", "", "9" * 20, "9" * 5000]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
def test_a_number_in_a_path_or_query_is_written_in_one_way(client: TestClient, text: str) -> None:
    alice = register(client)

    for query in ("limit", "user_id"):
        path = f"/accounts?{query}={quote(text)}"
        assert fields_of(client.get(path, headers=AS_OPERATOR)) == [f"query.{query}"]
    if text:
        for method, path in (
            ("GET", f"/accounts/{quote(text)}"),
            ("GET", f"/users/{quote(text)}"),
            ("GET", f"/transfers/{quote(text)}"),
            ("POST", f"/transfers/{quote(text)}/reversal"),
        ):
            assert fields_of(client.request(method, path, headers=AS_OPERATOR)) == ["path.id"]
        assert fields_of(client.delete(f"/tokens/{quote(text)}", headers=alice.headers)) == ["path.id"]


def test_a_cursor_is_taken_as_it_was_given_only(client: TestClient) -> None:
    register_all(client, **{f"user{number}": 0 for number in range(5)})
    assert [user["id"] for user in walk(client, "/users", AS_OPERATOR, limit=2)] == [1, 2, 3, 4, 5]

    def encoded(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    assert encoded("2") == encode_cursor(2)
    wrong = [encoded(text) for text in ("+2", "02", "2_0", " 2", "2 ", "-2", "٢", "9" * 20, "1" * 5000)]
    for cursor in (*wrong, "Mg==", "Mh", "M g", "Mg\n", "Mg!", "!", "2"):
        answer = client.get("/users", params={"after": cursor}, headers=AS_OPERATOR)
        assert fields_of(answer) == ["query.after"], cursor


@pytest.mark.parametrize("path", ["/users", "/accounts", "/accounts/1", "/accounts/1/entries", "/currencies", "/me"])
def test_an_unknown_query_parameter_is_refused(client: TestClient, path: str) -> None:
    alice = register(client)
    headers = alice.headers if path == "/me" else AS_OPERATOR

    answer = client.get(f"{path}?usernme_prefix=a", headers=headers)

    assert fields_of(answer) == ["query.usernme_prefix"]
    assert answer.json()["errors"][0]["detail"] == "There is no such parameter"


def test_a_query_parameter_that_is_there_twice_is_refused(client: TestClient) -> None:
    register(client)

    assert fields_of(client.get("/users?limit=1&limit=2", headers=AS_OPERATOR)) == ["query.limit"]
    assert fields_of(client.get("/users?limit=1&limit=1", headers=AS_OPERATOR)) == ["query.limit"]
    assert fields_of(client.get("/users?limit=1&limit=", headers=AS_OPERATOR)) == ["query.limit"]


def test_a_parameter_that_a_call_without_parameters_is_given_stores_nothing(client: TestClient, rows: Rows) -> None:
    assert fields_of(client.post("/register?dry_run=true", json=named("alice"))) == ["query.dry_run"]
    assert count(rows) == (0, 0, 0)


def test_an_instants_plus_need_not_be_encoded(client: TestClient) -> None:
    alice = register(client, funds=5)
    path = f"/accounts/{alice.account_id}"
    [entry] = client.get(f"{path}/entries", headers=alice.headers).json()["items"]
    entered = entry["created_at"].removesuffix("Z")

    for offset in ("%2B00:00", "+00:00", "Z", "-00:00"):
        assert client.get(f"{path}?at={entered}{offset}", headers=alice.headers).json()["balance"] == 5
    for offset in ("+01:00", "%2B01:00"):
        assert client.get(f"{path}?at={entered}{offset}", headers=alice.headers).json()["balance"] == 0
    assert client.get(f"{path}?at={entered}-01:00", headers=alice.headers).json()["balance"] == 5


def test_a_key_in_quotes_is_the_same_key(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    transfer = order(alice.account_id, bob.account_id, 1)

    def send(key: str) -> Any:
        return client.post("/transfers", json=transfer, headers=alice.headers | {"Idempotency-Key": key})

    first = answer_of(send('"order-4711"'))
    for key in ("order-4711", '"order-4711"'):
        again = send(key)
        assert (answer_of(again), again.headers["Idempotency-Replayed"]) == (first, "true")
    batch = client.post(
        "/transfers/batch", json={"transfers": [transfer | {"idempotency_key": "order-4711"}]}, headers=alice.headers
    )
    assert batch.json()["results"][0]["transfer"]["id"] == first["id"]
    assert rows("SELECT idempotency_key FROM transfers WHERE memo IS NULL AND initiator > 0") == [("order-4711",)]


def test_a_registrations_key_may_be_in_quotes(client: TestClient) -> None:
    key = str(uuid4())

    first = client.post("/register", json=named("alice"), headers={"Idempotency-Key": f'"{key}"'})
    again = client.post("/register", json=named("alice"), headers={"Idempotency-Key": key})

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("key", ['"', '"a', '"a"b', '"a" "b"', '"a";b=1', '"\\x"', '""', '"' + "x" * 256 + '"'])
def test_quotes_around_a_key_that_do_not_match_are_refused(client: TestClient, key: str) -> None:
    answer = client.post("/transfers/1/reversal", headers=AS_OPERATOR | {"Idempotency-Key": key})

    assert fields_of(answer) == ["header.Idempotency-Key"]
    answer = client.post(
        "/deposits", json={"account_id": 1, "amount": 1}, headers=AS_OPERATOR | {"Idempotency-Key": key}
    )
    assert fields_of(answer) == ["header.Idempotency-Key"]


def test_a_key_is_unquoted_as_a_structured_field_says() -> None:
    assert unquote_key(r'"a \"b\" \\ c"') == r'a "b" \ c'
    assert unquote_key('a"b') == 'a"b'


@pytest.mark.parametrize("path", ["/transfers", "/transfers/1/reversal", "/deposits"])
def test_two_keys_are_refused(client: TestClient, rows: Rows, path: str) -> None:
    alice, bob = register_all(client, alice=10, bob=0)
    before = books(rows)
    transfer = order(alice.account_id, bob.account_id, 1)
    body = {"account_id": 2, "amount": 1} if path == "/deposits" else transfer

    answer = client.post(
        path, json=body, headers=[*AS_OPERATOR.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    )

    assert fields_of(answer) == ["header.Idempotency-Key"]
    assert books(rows) == before


@pytest.mark.parametrize("path", ["/me", "/accounts"])
def test_two_tokens_are_refused(client: TestClient, path: str) -> None:
    alice, bob = register_all(client, alice=0, bob=0)

    answer = client.get(path, headers=[*alice.headers.items(), *bob.headers.items()])

    assert fields_of(answer) == ["header.Authorization"]
