"""One user cannot fill the queue of batches, nor the server's time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio.from_thread
import pytest
from starlette.testclient import TestClient

import main
from operations import Operations
from tests.support.accounts import Holder, order, refusal_of, register_all
from tests.support.service import AS_OPERATOR, Rows


@contextmanager
def under_way(operations: Operations, caller: int) -> Iterator[None]:
    """A batch of this caller has its turn."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(operations.turns.take(caller)),
    ):
        yield


def batch_of(sender: Holder, receiver: Holder, amount: int = 1) -> dict[str, Any]:
    return {"transfers": [order(sender.account_id, receiver.account_id, amount)], "on_error": "rollback"}


def test_a_user_sends_one_batch_at_a_time_and_the_operator_more(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=100)
    operations: Operations = main.app.state.operations

    # While a batch of Alice's is under way, and one of the operator's.
    with under_way(operations, alice.user_id), under_way(operations, 0):
        refused = client.post("/transfers/batch", json=batch_of(alice, bob), headers=alice.headers)
        assert refusal_of(refused) == (503, "batch-under-way")
        assert refused.headers["retry-after"] == "1"
        for sender, headers in ((bob, bob.headers), (alice, AS_OPERATOR)):
            body = batch_of(sender, alice if sender is bob else bob)
            assert client.post("/transfers/batch", json=body, headers=headers).status_code == 200

    assert client.post("/transfers/batch", json=batch_of(alice, bob), headers=alice.headers).status_code == 200


@pytest.mark.parametrize("amount", [0, 1000])
def test_a_batch_that_was_refused_does_not_count_any_more(client: TestClient, amount: int) -> None:
    alice, bob = register_all(client, alice=100, bob=0)

    for _ in range(2):
        refused = client.post("/transfers/batch", json=batch_of(alice, bob, amount), headers=alice.headers)
        assert refused.status_code in {409, 422}
    assert client.post("/transfers/batch", json={"transfers": 5}, headers=alice.headers).status_code == 422
    assert client.post("/transfers/batch", json=batch_of(alice, bob), headers=alice.headers).status_code == 200


def test_each_refused_item_of_a_batch_has_the_problem_of_its_own(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    transfers = [
        order(alice.account_id, alice.account_id, 1),
        order(alice.account_id, bob.account_id, 101),
        order(alice.account_id, alice.account_id, 1),
        order(bob.account_id, alice.account_id, 1),
    ]

    batch = {"transfers": transfers, "on_error": "continue"}
    results = client.post("/transfers/batch", json=batch, headers=alice.headers).json()["results"]

    assert [result["problem"]["type"].removeprefix("/problems/") for result in results] == [
        "same-account",
        "insufficient-funds",
        "same-account",
        "account-not-found",
    ]
    assert [result["problem"].get("errors", [{}])[0].get("field") for result in results] == [
        "body.transfers.0.credit_account_id",
        None,
        "body.transfers.2.credit_account_id",
        None,
    ]
