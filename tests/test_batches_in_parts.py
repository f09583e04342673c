"""A batch that continues lands in parts: in order, and with an answer that says what is stored where one part fails."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
import operations as operations_module
from db.database import Database
from models import KeyedRegistration
from operations import Bulk, Operations
from refusals import DatabaseUnavailable, Interruption, Locked, OutcomeUnknown
from tests.support.registration import named
from tests.support.service import AS_OPERATOR


@pytest.fixture(autouse=True)
def parts_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations_module, "PART", 2)


def registrations(count: int) -> list[KeyedRegistration]:
    return [KeyedRegistration.model_validate(named(f"user{index}")) for index in range(count)]


class Failing:
    """Stands before Database.write, and raises an error at one of its calls."""

    def __init__(self, write: Any, at: int, error: Exception) -> None:
        self.write, self.at, self.until, self.error, self.calls = write, at, at, error, 0

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.at <= self.calls <= self.until:
            raise self.error
        return await self.write(*args, **kwargs)


async def written(operations: Operations, count: int) -> Sequence[Any]:
    return await operations.write_many(crud.register_users, Bulk(registrations(count), all_or_nothing=False))


@pytest.mark.parametrize("error", [DatabaseUnavailable(), OutcomeUnknown()], ids=lambda each: type(each).__name__)
async def test_what_was_stored_before_a_part_failed_is_reported(
    operations: Operations, database: Database, monkeypatch: pytest.MonkeyPatch, error: Interruption
) -> None:
    write = Failing(operations.database.write, 2, error)
    monkeypatch.setattr(operations.database, "write", write)

    outcomes = await written(operations, 7)

    # Only of the part that failed may anything be stored.
    assert [type(each) for each in outcomes] == [crud.Registered] * 2 + [type(error)] * 2 + [DatabaseUnavailable] * 3
    assert write.calls == 2
    stored = await database.read(crud.list_users, status=None, username_prefix=None, after=0, limit=10)
    assert stored.items.count('"username"') == 2


@pytest.mark.parametrize("place", range(3))
async def test_a_part_that_meets_a_locked_row_holds_up_no_other(
    operations: Operations, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    operations.settings.lock_timeout = 0.01
    write = Failing(operations.database.write, place + 1, Locked())
    write.until = place + 2  # It is tried twice.
    monkeypatch.setattr(operations.database, "write", write)

    outcomes = await written(operations, 6)

    kinds: list[type] = [crud.Registered] * 6
    kinds[2 * place : 2 * place + 2] = [Locked] * 2
    assert [type(each) for each in outcomes] == kinds


async def test_a_batch_of_which_all_parts_are_locked_is_refused_whole(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations.settings.lock_timeout = 0.01
    write = Failing(operations.database.write, 1, Locked())
    write.until = 99
    monkeypatch.setattr(operations.database, "write", write)

    with pytest.raises(Locked):
        await written(operations, 6)


async def test_nothing_is_reported_where_the_first_part_fails(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations.database, "write", Failing(operations.database.write, 1, DatabaseUnavailable()))

    with pytest.raises(DatabaseUnavailable):
        await written(operations, 7)


async def test_no_part_begins_after_the_deadline(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 20
            return self.now

    monkeypatch.setattr(operations_module, "time", Clock())

    outcomes = await written(operations, 6)

    stored = [each for each in outcomes if isinstance(each, crud.Registered)]
    assert 0 < len(stored) < 6
    assert outcomes[: len(stored)] == stored


def test_a_part_spends_what_an_earlier_one_brought(client: TestClient) -> None:
    users = {"users": [named(name) for name in ("alice", "bob")]}
    made = client.post("/users/batch", json=users, headers=AS_OPERATOR).json()["results"]
    assert [each["status"] for each in made] == ["created"] * 2
    alice, bob = (each["id"] for each in client.get("/accounts", headers=AS_OPERATOR).json()["items"])
    client.post("/deposits", json={"account_id": alice, "amount": 5}, headers=AS_OPERATOR)
    ways = [(alice, bob), (bob, alice)] * 3
    transfers = [{"debit_account_id": debit, "credit_account_id": credit, "amount": 5} for debit, credit in ways]

    answer = client.post(
        "/transfers/batch", json={"transfers": [*transfers, transfers[1]], "on_error": "continue"}, headers=AS_OPERATOR
    ).json()

    assert [each["status"] for each in answer["results"]] == ["created"] * 6 + ["refused"]
    assert [each["transfer"]["debit_balance_after"] for each in answer["results"][:6]] == [0] * 6


def test_the_answer_names_the_problem_of_each_item_that_is_not_stored(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = client.app.state.operations.database  # type: ignore[attr-defined]
    monkeypatch.setattr(database, "write", Failing(database.write, 2, OutcomeUnknown()))
    body = {"users": [named(f"user{index}") for index in range(3)], "on_error": "continue"}

    with caplog.at_level(logging.ERROR):
        response = client.post("/users/batch", json=body, headers=AS_OPERATOR)

    assert response.status_code == 200
    results = response.json()["results"]
    assert [each["status"] for each in results] == ["created", "created", "refused"]
    assert results[2]["problem"]["type"] == "/problems/outcome-unknown"
    assert results[2]["problem"]["status"] == 503
    assert not caplog.messages
