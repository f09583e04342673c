"""Transfers: a reference and metadata of the caller's own; only at a version; cut to what is there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from tests.support.accounts import (
    answer_of,
    balance,
    books,
    cash,
    fields_of,
    order,
    refusal_of,
    register_all,
    send,
)
from tests.support.service import AS_OPERATOR, Rows, serving
from tests.support.transfers import keyed, reverse, set_status, try_transfer

WORDS = {"reference": "order-4711", "metadata": {"cart": "c-17", "note": "房租 🏠 \"quoted\" 'twice' \\ {}"}}


def test_a_reference_and_metadata_are_shown_to_both_parties_wherever_the_transfer_is(
    client: TestClient, rows: Rows
) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)

    sent = send(client, alice, bob, 300, **WORDS)
    paid = answer_of(client.post("/deposits", json=cash(bob.account_id, 5, **WORDS), headers=AS_OPERATOR))
    items = [order(alice.account_id, bob.account_id, 1, **WORDS), order(alice.account_id, bob.account_id, 1)]
    batch = client.post("/transfers/batch", json={"transfers": items}, headers=alice.headers).json()["results"]

    for made in (sent, paid, batch[0]["transfer"]):
        assert {name: made[name] for name in WORDS} == WORDS
        seen = client.get(f"/transfers/{made['id']}", headers=bob.headers).json()
        assert {name: seen[name] for name in WORDS} == WORDS
    assert (batch[1]["transfer"]["reference"], batch[1]["transfer"]["metadata"]) == (None, None)
    # What nobody sent is NULL, and no JSON null.
    assert rows("SELECT count(*) FROM transfers WHERE metadata IS NULL AND reference IS NULL") == [(2,)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"reference": ""},
        {"reference": "x" * 101},
        {"reference": "two\nlines"},
        {"reference": 4711},
        {"metadata": {str(number): "x" for number in range(21)}},
        {"metadata": {"key": "x" * 4094}},
        {"metadata": {"key": "ü" * 2047}},
        {"metadata": {"": "x"}},
        {"metadata": {"a key": "x"}},
        {"metadata": {"k" * 41: "x"}},
        {"metadata": {"key": "two\nlines"}},
        {"metadata": {"key": 1}},
        {"metadata": {"key": None}},
        {"metadata": {"key": {"nested": "x"}}},
        {"metadata": ["x"]},
        {"metadata": "x"},
        {"details": {"key": "x"}},
        {"if_version": -1},
        {"if_version": 2**63},
        {"if_version": "1"},
        {"if_version": True},
        {"on_short": "more"},
        {"on_short": None},
        {"asked_amount": 5},
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_its_name(client: TestClient, rows: Rows, wrong: dict[str, Any]) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    before = books(rows)

    [field] = fields_of(try_transfer(client, alice.headers, alice.account_id, bob.account_id, 1, **wrong))

    assert field.startswith(f"body.{next(iter(wrong))}")
    assert books(rows) == before


@pytest.mark.parametrize(
    "right",
    [
        {"reference": "x" * 100},
        {"metadata": {}},
        {"metadata": {f"key-{number}_": "" for number in range(20)}},
        {"metadata": {"key": "x" * 4093}},
        {"metadata": None, "reference": None, "if_version": None},
    ],
    ids=["longest reference", "no texts", "most texts", "longest text", "null"],
)
def test_the_limits_themselves_are_allowed(client: TestClient, right: dict[str, Any]) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)

    sent = send(client, alice, bob, 1, **right)

    shown = client.get(f"/transfers/{sent['id']}", headers=alice.headers).json()
    for name in ("reference", "metadata"):
        assert sent[name] == shown[name] == right.get(name)


def test_a_retry_must_say_the_same(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    version = client.get(f"/accounts/{alice.account_id}", headers=alice.headers).json()["version"]

    def pay(**fields: Any) -> httpx2.Response:
        return try_transfer(client, keyed(alice.headers, "k"), alice.account_id, bob.account_id, 1, **fields)

    first = answer_of(pay(**WORDS, if_version=version))
    before = books(rows)
    # In any order of names; what it was conditional on was true when it was made.
    for condition in ({}, {"if_version": version}, {"if_version": 0}):
        again = pay(metadata=dict(reversed(WORDS["metadata"].items())), reference="order-4711", **condition)  # type: ignore[attr-defined]
        assert again.headers["Idempotency-Replayed"] == "true"
        assert answer_of(again) == first
    others: list[dict[str, Any]] = [
        {},
        {"reference": "order-4711"},
        {**WORDS, "metadata": {}},
        {**WORDS, "reference": "order-4712"},
        {**WORDS, "on_short": "cap"},
    ]
    for other in others:
        assert refusal_of(pay(**other)) == (422, "idempotency-key-reused")
    assert books(rows) == before


def test_a_payment_s_retry_must_say_the_same(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=1000)
    for path in ("/deposits", "/withdrawals"):
        headers = keyed(AS_OPERATOR, path)
        first = answer_of(client.post(path, json=cash(alice.account_id, 1, **WORDS), headers=headers))
        assert answer_of(client.post(path, json=cash(alice.account_id, 1, **WORDS), headers=headers)) == first
        other = client.post(path, json=cash(alice.account_id, 1, reference="order-4711"), headers=headers)
        assert refusal_of(other) == (422, "idempotency-key-reused")
    assert balance(rows, alice.account_id) == 1000


# --- if_version -------------------------------------------------------------------------------------------------------


def test_a_transfer_is_made_only_at_the_version_that_its_sender_saw(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    seen = client.get(f"/accounts/{alice.account_id}", headers=alice.headers).json()["version"]

    send(client, alice, bob, 10, if_version=seen)

    before = books(rows)
    for version in (seen, seen + 2, 0):
        late = try_transfer(client, alice.headers, alice.account_id, bob.account_id, 10, if_version=version)
        assert refusal_of(late) == (409, "version-mismatch")
    # The credit account's version is nobody's condition, and who may not send learns nothing.
    stranger = try_transfer(client, bob.headers, alice.account_id, bob.account_id, 10, if_version=0)
    assert refusal_of(stranger) == (404, "account-not-found")
    assert books(rows) == before
    send(client, alice, bob, 10, if_version=seen + 1)


def test_in_a_batch_each_transfer_sees_the_version_that_the_one_before_it_left(client: TestClient) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    items = [order(alice.account_id, bob.account_id, 1, if_version=version) for version in (1, 1, 2, 4)]

    body = {"transfers": items, "on_error": "continue"}
    results = client.post("/transfers/batch", json=body, headers=alice.headers).json()["results"]

    assert [result["status"] for result in results] == ["created", "refused", "created", "refused"]


@pytest.mark.slow
def test_of_many_at_once_one_finds_its_version(url: str, tmp_path: Path) -> None:
    with serving(url, tmp_path, workers=2) as server, httpx2.Client(base_url=server.url) as client:
        alice, bob = register_all(client, alice=1000, bob=0)

        def pay(_: int) -> int:
            body = order(alice.account_id, bob.account_id, 1, if_version=1)
            return httpx2.post(f"{server.url}/transfers", json=body, headers=alice.headers).status_code

        with ThreadPoolExecutor(16) as pool:
            codes = list(pool.map(pay, range(32)))

    assert sorted(codes) == [201] + [409] * 31


# --- on_short ---------------------------------------------------------------------------------------------------------


def test_a_transfer_takes_what_is_there_at_least_1(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=70, bob=0)

    whole = send(client, alice, bob, 30, on_short="cap")
    cut = send(client, alice, bob, 100, on_short="cap")

    assert (whole["amount"], whole["asked_amount"], whole["debit_balance_after"]) == (30, 30, 40)
    assert (cut["amount"], cut["asked_amount"], cut["debit_balance_after"]) == (40, 100, 0)
    shown = client.get(f"/transfers/{cut['id']}", headers=bob.headers).json()
    assert (shown["amount"], shown["asked_amount"]) == (40, 100)
    nothing = try_transfer(client, alice.headers, alice.account_id, bob.account_id, 5, on_short="cap")
    assert refusal_of(nothing) == (409, "insufficient-funds")
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (0, 70)
    # What came is what goes back.
    assert answer_of(reverse(client, cut, bob.headers))["amount"] == 40


def test_the_retry_of_a_cut_transfer_asks_for_as_much_and_gets_the_first_answer(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=70, bob=0)

    def pay(amount: int, **fields: Any) -> httpx2.Response:
        headers = keyed(alice.headers, "k")
        return try_transfer(client, headers, alice.account_id, bob.account_id, amount, **fields)

    first = answer_of(pay(100, on_short="cap"))
    client.post("/deposits", json=cash(alice.account_id, 500), headers=AS_OPERATOR)

    assert answer_of(pay(100, on_short="cap")) == first
    for other in (pay(70), pay(100), pay(70, on_short="cap")):
        assert refusal_of(other) == (422, "idempotency-key-reused")
    assert balance(rows, bob.account_id) == 70


def test_a_batch_spends_what_it_brought_and_cuts_the_rest(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=50, bob=0, carol=0)
    there = order(alice.account_id, bob.account_id, 60, on_short="cap")
    on = order(bob.account_id, carol.account_id, 60, on_short="cap")
    plain = order(bob.account_id, carol.account_id, 1)

    body = {"transfers": [on, there, on, plain], "on_error": "continue"}
    results = client.post("/transfers/batch", json=body, headers=AS_OPERATOR).json()["results"]

    assert [result["status"] for result in results] == ["refused", "created", "created", "refused"]
    assert [balance(rows, each.account_id) for each in (alice, bob, carol)] == [0, 0, 50]


def test_the_system_account_has_always_enough(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=1)
    [(system,)] = rows("SELECT id FROM accounts WHERE user_id IS NULL")

    paid = answer_of(try_transfer(client, AS_OPERATOR, system, alice.account_id, 500, on_short="cap"))

    assert (paid["amount"], paid["asked_amount"]) == (500, 500)


def test_a_cap_is_judged_like_every_transfer(client: TestClient, rows: Rows) -> None:
    alice, bob, eve = register_all(client, alice=70, bob=0, eve=10)
    set_status(client, eve, "suspended")
    before = books(rows)

    def pay(debit: int, credit: int) -> httpx2.Response:
        return try_transfer(client, alice.headers, debit, credit, 100, on_short="cap")

    assert refusal_of(pay(bob.account_id, alice.account_id)) == (404, "account-not-found")
    assert refusal_of(pay(alice.account_id, eve.account_id)) == (409, "account-not-active")
    assert refusal_of(pay(alice.account_id, alice.account_id)) == (422, "same-account")
    assert books(rows) == before


@pytest.mark.slow
def test_what_many_take_at_once_is_what_was_there(url: str, tmp_path: Path, rows: Rows) -> None:
    with serving(url, tmp_path, workers=2) as server, httpx2.Client(base_url=server.url) as client:
        alice, bob = register_all(client, alice=100, bob=0)

        def pay(_: int) -> httpx2.Response:
            body = order(alice.account_id, bob.account_id, 7, on_short="cap")
            return httpx2.post(f"{server.url}/transfers", json=body, headers=alice.headers)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(pay, range(40)))

    taken = [answer.json()["amount"] for answer in answers if answer.status_code == 201]
    assert sorted(taken) == [2] + [7] * 14
    assert {answer.status_code for answer in answers} == {201, 409}
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (0, 100)
