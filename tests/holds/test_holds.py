"""Holds: money that cannot be spent, until it is captured, voided or expires."""

from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from tests.support.accounts import answer_of, books, deposit, fields_of, refusal_of, register_all, send, walk
from tests.support.holds import Clock, capture, hold, money_of, parsed, try_hold, void
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import reverse, set_status, try_transfer

WORDS = {"memo": "Room 7", "reference": "booking-1", "metadata": {"nights": "2"}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_what_is_held_stays_but_cannot_be_spent(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)

    made = hold(client, alice, bob, 70, **WORDS, expires_in=3600)

    assert made == {
        "id": 1,
        "debit_account_id": alice.account_id,
        "credit_account_id": bob.account_id,
        "currency": "EUR",
        "amount": 70,
        "asked_amount": None,
        **WORDS,
        "status": "open",
        "expires_at": made["expires_at"],
        "resolved_at": None,
        "created_at": made["created_at"],
    }
    assert parsed(made["expires_at"]) - parsed(made["created_at"]) == timedelta(hours=1)
    for headers in (alice.headers, bob.headers, AS_OPERATOR):
        assert client.get("/holds/1", headers=headers).json() == made
    assert (money_of(client, alice), money_of(client, bob)) == ((100, 70, 30), (0, 0, 0))
    [listed] = walk(client, "/accounts", alice.headers, limit=50)
    assert (listed["balance"], listed["held"], listed["available"]) == (100, 70, 30)
    refused = try_transfer(client, alice.headers, alice.account_id, bob.account_id, 31)
    assert refusal_of(refused) == (409, "insufficient-funds")
    assert refusal_of(try_hold(client, alice.headers, alice.account_id, bob.account_id, 31)) == (
        409,
        "insufficient-funds",
    )
    assert send(client, alice, bob, 31, on_short="cap")["amount"] == 30
    assert money_of(client, alice) == (70, 70, 0)


@pytest.mark.parametrize("amount", [None, 70, 1])
def test_a_capture_moves_the_amount_and_frees_the_rest(client: TestClient, amount: int | None) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    made = hold(client, alice, bob, 70, **WORDS)

    transfer = answer_of(capture(client, made["id"], bob.headers, amount))

    moved = amount or 70
    assert (transfer["amount"], transfer["hold_id"]) == (moved, made["id"])
    # What the sender has left is not the recipient's to know.
    assert not [name for name in transfer if "balance" in name]
    assert {name: transfer[name] for name in WORDS} == WORDS
    assert (money_of(client, alice), money_of(client, bob)) == ((100 - moved, 0, 100 - moved), (moved, 0, moved))
    shown = client.get(f"/holds/{made['id']}", headers=alice.headers).json()
    assert (shown["status"], shown["resolved_at"], shown["amount"]) == ("captured", transfer["created_at"], 70)
    seen = client.get(f"/transfers/{transfer['id']}", headers=alice.headers).json()
    assert (seen["hold_id"], seen["amount"]) == (made["id"], moved)
    assert answer_of(reverse(client, transfer, bob.headers))["amount"] == moved
    assert money_of(client, alice) == (100, 0, 100)


def test_a_void_frees_all(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    made = hold(client, alice, bob, 70)

    voided = void(client, made["id"], bob.headers).json()

    assert (voided["status"], voided["amount"]) == ("voided", 70)
    assert parsed(voided["resolved_at"]) >= parsed(voided["created_at"])
    assert client.get(f"/holds/{made['id']}", headers=alice.headers).json() == voided
    assert money_of(client, alice) == (100, 0, 100)
    assert send(client, alice, bob, 100)["debit_balance_after"] == 0


def test_a_hold_ends_once_and_the_answer_says_how(client: TestClient, clock: Clock, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    captured, voided, expired = (hold(client, alice, bob, 10, expires_in=each)["id"] for each in (9000, 9000, 3600))
    answer_of(capture(client, captured, bob.headers))
    assert void(client, voided, bob.headers).status_code == 200
    clock.advance(hours=1)
    send(client, alice, bob, 1)
    before = books(rows)

    for id, status in ((captured, "captured"), (voided, "voided"), (expired, "expired")):
        for response in (capture(client, id, bob.headers), void(client, id, AS_OPERATOR)):
            assert refusal_of(response) == (409, "hold-resolved")
            assert status in response.json()["detail"]
        assert client.get(f"/holds/{id}", headers=alice.headers).json()["status"] == status
    assert books(rows) == before
    assert money_of(client, alice) == (89, 0, 89)


def test_one_that_has_expired_counts_no_more_wherever_one_looks(client: TestClient, clock: Clock, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    made = hold(client, alice, bob, 100, expires_in=3600)
    clock.advance(minutes=50)
    assert money_of(client, alice) == (100, 100, 0)
    clock.advance(minutes=10)

    # Nothing has touched its row.
    assert rows("SELECT status FROM holds") == [("open",)]
    assert money_of(client, alice) == (100, 0, 100)
    shown = client.get(f"/holds/{made['id']}", headers=bob.headers).json()
    assert (shown["status"], shown["resolved_at"]) == ("expired", made["expires_at"])
    assert send(client, alice, bob, 100)["debit_balance_after"] == 0
    assert rows("SELECT status FROM holds") == [("expired",)]
    assert rows(f"SELECT held FROM accounts WHERE id = {alice.account_id}") == [(0,)]
    assert client.get(f"/holds/{made['id']}", headers=bob.headers).json() == shown


@pytest.mark.parametrize("call", ["hold", "capture", "cap", "credit", "close"])
def test_every_decision_knows_what_has_expired(client: TestClient, clock: Clock, call: str) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    hold(client, alice, bob, 60, expires_in=3600)
    kept = hold(client, alice, bob, 40, expires_in=90_000)
    if call == "credit":
        client.patch(f"/accounts/{alice.account_id}", json={"credit_limit": 50}, headers=AS_OPERATOR)
        send(client, alice, bob, 50)
    clock.advance(hours=1)

    if call == "hold":
        assert hold(client, alice, bob, 60)["amount"] == 60
    elif call == "capture":
        assert answer_of(capture(client, kept["id"], AS_OPERATOR))["debit_balance_after"] == 60
    elif call == "cap":
        assert send(client, alice, bob, 100, on_short="cap")["amount"] == 60
    elif call == "credit":
        # 50 are there and 40 held: no credit is in use.
        lowered = client.patch(f"/accounts/{alice.account_id}", json={"credit_limit": 0}, headers=AS_OPERATOR)
        assert (lowered.status_code, lowered.json()["held"], lowered.json()["available"]) == (200, 40, 10)
    else:
        assert refusal_of(client.delete("/me", headers=alice.headers)) == (409, "balance-not-zero")
        answer_of(capture(client, kept["id"], bob.headers))
        send(client, alice, bob, 60)
        assert client.delete("/me", headers=alice.headers).status_code == 204


def test_credit_that_is_held_keeps_limit_and_user(client: TestClient, clock: Clock) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    path = f"/accounts/{alice.account_id}"
    assert client.patch(path, json={"credit_limit": 50}, headers=AS_OPERATOR).status_code == 200
    hold(client, alice, bob, 30, expires_in=3600)

    assert money_of(client, alice) == (0, 30, 20)
    assert refusal_of(client.patch(path, json={"credit_limit": 29}, headers=AS_OPERATOR)) == (409, "credit-in-use")
    assert refusal_of(client.delete("/me", headers=alice.headers)) == (409, "balance-not-zero")
    clock.advance(hours=1)
    assert client.patch(path, json={"credit_limit": 0}, headers=AS_OPERATOR).json()["available"] == 0
    assert client.delete("/me", headers=alice.headers).status_code == 204


def test_who_may_do_what(client: TestClient) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=0)
    made = hold(client, alice, bob, 10)["id"]

    for end in (capture, void):
        assert refusal_of(end(client, made, alice.headers)) == (403, "receiver-only")
        assert refusal_of(end(client, made, carol.headers)) == (404, "hold-not-found")
        assert refusal_of(end(client, 99, AS_OPERATOR)) == (404, "hold-not-found")
    assert refusal_of(client.get(f"/holds/{made}", headers=carol.headers)) == (404, "hold-not-found")
    stolen = try_hold(client, carol.headers, alice.account_id, carol.account_id, 10)
    assert refusal_of(stolen) == (404, "account-not-found")
    assert answer_of(capture(client, made, AS_OPERATOR))["credit_balance_after"] == 10


def test_more_than_is_held_cannot_be_captured(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    made = hold(client, alice, bob, 10)["id"]
    before = books(rows)

    response = capture(client, made, bob.headers, 11)

    assert (refusal_of(response), fields_of(response)) == ((422, "hold-exceeded"), ["body.amount"])
    assert books(rows) == before


def test_keys_make_holds_and_captures_safe_to_send_again(client: TestClient, clock: Clock, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    headers = alice.headers | {"Idempotency-Key": "key"}
    ask = (alice.account_id, bob.account_id, 70)

    first, again = (try_hold(client, headers, *ask, expires_in=60, on_short="cap") for _ in range(2))
    taken = [capture(client, answer_of(first)["id"], bob.headers, 50, key="capture") for _ in range(2)]
    late = try_hold(client, headers, *ask, expires_in=60, on_short="cap")

    assert [each.json() for each in (again, late)] == [first.json()] * 2
    assert [each.headers["Idempotency-Replayed"] for each in (again, late, taken[1])] == ["true"] * 3
    assert taken[0].json() == taken[1].json()
    for other in ({"expires_in": 61, "on_short": "cap"}, {"expires_in": 60}):
        assert refusal_of(try_hold(client, headers, *ask, **other)) == (422, "idempotency-key-reused")
    other_amount = capture(client, first.json()["id"], bob.headers, 49, key="capture")
    assert refusal_of(other_amount) == (422, "idempotency-key-reused")
    # A transfer's keys are others.
    assert try_transfer(client, headers, *ask[:2], 1).status_code == 201
    assert rows("SELECT count(*) FROM holds") == [(1,)]


def test_a_hold_of_what_is_there(client: TestClient) -> None:
    alice, bob = register_all(client, alice=30, bob=0)

    made = hold(client, alice, bob, 100, on_short="cap")

    assert (made["amount"], made["asked_amount"]) == (30, 100)
    refused = try_hold(client, alice.headers, alice.account_id, bob.account_id, 100, on_short="cap")
    assert refusal_of(refused) == (409, "insufficient-funds")


def test_a_hold_at_a_version(client: TestClient) -> None:
    alice, bob = register_all(client, alice=30, bob=0)

    stale = try_hold(client, alice.headers, alice.account_id, bob.account_id, 1, if_version=0)

    assert refusal_of(stale) == (409, "version-mismatch")
    assert hold(client, alice, bob, 1, if_version=1)["status"] == "open"


@pytest.mark.parametrize(
    "wrong",
    [{"expires_in": 0}, {"expires_in": 90 * 86400 + 1}, {"expires_in": "60"}, {"expires_in": 1.5}, {"amount": 0}],
)
def test_invalid_holds_are_refused(client: TestClient, wrong: dict[str, object]) -> None:
    alice, bob = register_all(client, alice=30, bob=0)

    ask = {"debit": alice.account_id, "credit": bob.account_id, "amount": 1, **wrong}
    response = try_hold(client, alice.headers, **ask)  # type: ignore[arg-type]

    assert fields_of(response) == [f"body.{name}" for name in wrong]


def test_the_operator_holds_what_will_be_paid_out(client: TestClient, rows: Rows) -> None:
    [alice] = register_all(client, alice=100)
    [(system,)] = rows("SELECT id FROM accounts WHERE user_id IS NULL")

    made = answer_of(try_hold(client, AS_OPERATOR, alice.account_id, system, 40))

    assert refusal_of(try_hold(client, alice.headers, alice.account_id, system, 40)) == (404, "account-not-found")
    assert answer_of(capture(client, made["id"], AS_OPERATOR))["credit_balance_after"] == -60
    # The operator's own money has no limit.
    assert answer_of(try_hold(client, AS_OPERATOR, system, alice.account_id, 1000))["status"] == "open"


def test_who_is_not_active_pays_nothing_but_frees_it(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    first, second = (hold(client, alice, bob, 40)["id"] for _ in range(2))
    set_status(client, alice, "suspended")

    assert refusal_of(capture(client, first, bob.headers)) == (409, "account-not-active")
    assert void(client, second, bob.headers).json()["status"] == "voided"
    set_status(client, alice, "active")
    assert answer_of(capture(client, first, bob.headers))["amount"] == 40


def test_many_that_expire_are_freed_at_once(client: TestClient, clock: Clock) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    for number in range(1, 11):
        hold(client, alice, bob, 10, expires_in=number * 3600)
    assert money_of(client, alice) == (100, 100, 0)
    clock.advance(hours=5.5)

    assert money_of(client, alice) == (100, 50, 50)
    clock.advance(hours=10)
    deposit(client, alice.account_id, 1)
    assert send(client, alice, bob, 101)["debit_balance_after"] == 0
