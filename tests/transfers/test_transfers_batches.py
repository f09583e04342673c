"""Transfers: batches."""

from typing import Any

from httpx2 import Response
from starlette.testclient import TestClient

from tests.support.accounts import (
    Headers,
    answer_of,
    balance,
    books,
    fields_of,
    order,
    refusal_of,
    register_all,
)
from tests.support.service import AS_OPERATOR, Rows, noting_statements
from tests.support.transfers import keyed

CURSED_TRANSFERS = {
    "sqlite": """
        CREATE TRIGGER curse BEFORE INSERT ON transfers WHEN NEW.memo = 'cursed'
        BEGIN SELECT RAISE(ABORT, 'cursed'); END
    """,
    "postgresql": """
        CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.memo = 'cursed' THEN RAISE EXCEPTION 'cursed'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER curse BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION curse()
    """,
}
"""By engine: a trigger that nobody foresees, which refuses transfers with the memo "cursed"."""


def send_batch(client: TestClient, headers: Headers, transfers: Any, on_error: str | None = None) -> Response:
    body = {"transfers": transfers} | ({"on_error": on_error} if on_error else {})
    return client.post("/transfers/batch", json=body, headers=headers)


def results_of(response: Response) -> list[dict[str, Any]]:
    """The results of a batch, which are in order."""
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    assert [result["index"] for result in results] == list(range(len(results)))
    return results


def outcomes_of(response: Response) -> list[str]:
    """What became of each item: created, or the type of its problem."""
    return [
        result["problem"]["type"].removeprefix("/problems/") if result["status"] == "refused" else "created"
        for result in results_of(response)
    ]


def test_in_a_batch_one_transfer_spends_what_another_before_it_brought(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=1000, bob=0, carol=0)
    there = order(alice.account_id, bob.account_id, 600)
    onward = order(bob.account_id, carol.account_id, 500)
    before = books(rows)

    refused = send_batch(client, AS_OPERATOR, [onward, there])

    assert refusal_of(refused) == (409, "batch-refused")
    [error] = refused.json()["errors"]
    assert (error["index"], error["type"]) == (0, "/problems/insufficient-funds")
    assert error.keys() == {"index", "type", "detail"}
    assert books(rows) == before

    first, second = (result["transfer"] for result in results_of(send_batch(client, AS_OPERATOR, [there, onward])))
    assert (first["debit_balance_after"], first["credit_balance_after"]) == (400, 600)
    assert (second["debit_balance_after"], second["credit_balance_after"]) == (100, 500)
    assert [balance(rows, holder.account_id) for holder in (alice, bob, carol)] == [400, 100, 500]
    assert rows(f"SELECT amount, balance_after FROM entries WHERE account_id = {bob.account_id} ORDER BY seq") == [
        (600, 600),
        (-500, 100),
    ]


def test_a_batch_rolls_back_whole_or_continues_without_what_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=1000)
    mine, others = alice.account_id, bob.account_id
    batch = [
        order(mine, others, 600),
        order(mine, others, 600),
        order(others, mine, 1),
        order(mine, mine, 1),
        order(mine, others, 400),
    ]
    refused = {1: "insufficient-funds", 2: "account-not-found", 3: "same-account"}
    before = books(rows)

    rolled_back = send_batch(client, alice.headers, batch, "rollback")

    assert refusal_of(rolled_back) == (409, "batch-refused")
    errors = rolled_back.json()["errors"]
    assert {error["index"]: error["type"] for error in errors} == {
        index: f"/problems/{problem}" for index, problem in refused.items()
    }
    assert books(rows) == before

    continued = send_batch(client, alice.headers, batch, "continue")
    assert outcomes_of(continued) == [refused.get(index, "created") for index in range(5)]
    results = results_of(continued)
    assert results[3]["problem"]["errors"][0]["field"] == "body.transfers.3.credit_account_id"
    assert "errors" not in results[1]["problem"]
    # Each caller is shown what it would be shown of a single transfer.
    assert [results[index]["transfer"]["debit_balance_after"] for index in (0, 4)] == [400, 0]
    assert "credit_balance_after" not in results[0]["transfer"]
    assert [client.get(f"/transfers/{results[index]['transfer']['id']}", headers=alice.headers).json()["amount"]
            for index in (0, 4)] == [600, 400]  # fmt: skip
    assert (balance(rows, mine), balance(rows, others)) == (0, 2000)


def test_items_that_are_not_valid_are_named_by_their_place(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    good = order(alice.account_id, bob.account_id, 1)
    batch = [good, good | {"amount": 0}, good | {"amount": "1", "memo": "a\x00"}, good | {"currency": "EUR"}, 7, good]
    named = ["1.amount", "2.amount", "2.memo", "3.currency", "4"]
    before = books(rows)

    refused = send_batch(client, alice.headers, batch)

    assert refusal_of(refused) == (422, "invalid-request")
    assert fields_of(refused) == [f"body.transfers.{place}" for place in named]
    assert books(rows) == before

    continued = send_batch(client, alice.headers, batch, "continue")
    assert outcomes_of(continued) == ["created", *["invalid-request"] * 4, "created"]
    problems = [result["problem"] for result in results_of(continued) if result["status"] == "refused"]
    assert [error["field"] for problem in problems for error in problem["errors"]] == fields_of(refused)
    assert balance(rows, bob.account_id) == 2


def test_a_batch_that_is_none_is_refused(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    good = order(alice.account_id, bob.account_id, 1)
    before = books(rows)
    wrong: list[Any] = [[], [good] * 1_001, {}, None, "x"]

    for transfers in wrong:
        assert fields_of(send_batch(client, alice.headers, transfers)) == ["body.transfers"]
    assert fields_of(send_batch(client, alice.headers, [good], "retry")) == ["body.on_error"]
    assert refusal_of(send_batch(client, {}, [good])) == (401, "unauthenticated")
    assert books(rows) == before


def test_a_transfer_that_fails_unforeseen_fails_alone_or_takes_all_back(
    client: TestClient, rows: Rows, engine: str
) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    rows(CURSED_TRANSFERS[engine])
    batch = [order(alice.account_id, bob.account_id, 10) for _ in range(9)]
    batch[6]["memo"] = "cursed"
    before = books(rows)

    rolled_back = send_batch(client, alice.headers, batch, "rollback")
    assert refusal_of(rolled_back) == (500, "internal-error")
    assert books(rows) == before

    continued = send_batch(client, alice.headers, batch, "continue")
    assert outcomes_of(continued) == ["created"] * 6 + ["internal-error"] + ["created"] * 2
    assert "cursed" not in continued.text.replace('"memo":"cursed"', "")
    assert (balance(rows, alice.account_id), balance(rows, bob.account_id)) == (920, 80)
    assert rows(f"SELECT seq, balance_after FROM entries WHERE account_id = {bob.account_id} ORDER BY seq") == [
        (seq, 10 * seq) for seq in range(1, 9)
    ]


def test_a_key_in_a_batch_and_in_a_single_call_is_the_same_key(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    body = order(alice.account_id, bob.account_id, 100)
    single = answer_of(client.post("/transfers", json=body, headers=keyed(alice.headers, "one")))
    one, two = body | {"idempotency_key": "one"}, body | {"idempotency_key": "two"}
    changed = two | {"amount": 101}

    results = results_of(send_batch(client, alice.headers, [one, two, two, changed, one], "continue"))

    assert [results[index]["transfer"] for index in (0, 4)] == [single] * 2
    assert results[1]["transfer"] == results[2]["transfer"]
    assert results[1]["transfer"]["debit_balance_after"] == 800
    assert results[3]["problem"]["type"] == "/problems/idempotency-key-reused"
    assert results[3]["problem"]["errors"][0]["field"] == "body.transfers.3.idempotency_key"
    assert rows("SELECT idempotency_key FROM transfers WHERE initiator > 0 ORDER BY id") == [("one",), ("two",)]
    assert balance(rows, bob.account_id) == 200

    again = client.post("/transfers", json=body, headers=keyed(alice.headers, "two"))
    assert again.headers["Idempotency-Replayed"] == "true"
    assert answer_of(again) == results[1]["transfer"]
    assert results_of(send_batch(client, alice.headers, [one, two])) == [
        {**result, "index": index} for index, result in enumerate(results[:2])
    ]
    assert balance(rows, bob.account_id) == 200


def test_transfers_that_are_alike_each_count(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)

    results = results_of(send_batch(client, alice.headers, [order(alice.account_id, bob.account_id, 10)] * 50))

    ids = [result["transfer"]["id"] for result in results]
    assert ids == sorted(set(ids))
    assert [result["transfer"]["debit_balance_after"] for result in results] == list(range(990, 490, -10))
    assert rows(
        f"SELECT transfer_id, balance_after FROM entries WHERE account_id = {alice.account_id} AND seq > 1 ORDER BY seq"
    ) == [(result["transfer"]["id"], result["transfer"]["debit_balance_after"]) for result in results]


def test_a_batch_of_500_costs_as_many_statements_as_one_of_10_and_10000_three_more_for_each_500(
    client: TestClient, rows: Rows
) -> None:
    alice, *others = register_all(client, alice=1000, **{f"user{number}": 0 for number in range(100)})

    def sent(size: int) -> int:
        """How many statements a batch of this size costs, that sends all of alice's money to others and back."""
        transfers: list[dict[str, Any]] = []
        for number in range(size // 2):
            other = others[number % 100]
            there, back = (alice.account_id, other.account_id), (other.account_id, alice.account_id)
            transfers += [
                order(*accounts, 1000, memo=f"{number}", idempotency_key=f"{size} {number} {accounts}")
                for accounts in (there, back)
            ]
        with noting_statements() as statements:
            results = results_of(send_batch(client, AS_OPERATOR, transfers))
        assert [result["transfer"]["memo"] for result in results] == [transfer["memo"] for transfer in transfers]
        return len(statements)

    few = sent(10)
    assert 0 < few < 12
    assert sent(500) == few
    # Transfers, entries and the record of what the operator did; accounts are locked and balances written once.
    assert sent(10_000) == few + 3 * (10_000 // 500 - 1)
    assert rows(f"SELECT balance, version FROM accounts WHERE id = {alice.account_id}") == [(1000, 10_511)]
    assert rows("SELECT count(*), sum(amount) FROM entries") == [(21_022, 0)]
