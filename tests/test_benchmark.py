"""The benchmark's targets, and its check of the books."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bench import ceiling
from bench.contenders import PGBENCH, SAVEPOINT_2, Contender
from bench.load import Measurement
from bench.measure import names_of
from bench.results import Case, Results
from bench.targets import Target, targets
from bench.workloads import HOT, ME, REGISTRATION, SPREAD, Workload
from tests.support.service import AS_OPERATOR, Rows

BOOKS = Path("bench/books.sql").read_text()


def add(results: Results, contender: Contender, workload: Workload, connections: int, rate: float) -> None:
    results.add(Case("PostgreSQL", contender, workload, connections), Measurement(1, rate, p50=1, p99=1))


def target(results: Results, words: str) -> Target:
    return next(each for each in targets(results) if words in each.words)


@pytest.mark.parametrize(("rate", "is_met"), [(1699, False), (1701, True)])
def test_a_target_is_met_where_the_worst_value_reaches_it(rate: float, is_met: bool) -> None:
    results = Results()
    for workload in (SPREAD, REGISTRATION):
        add(results, PGBENCH, workload, 8, 1000)
        add(results, PGBENCH, workload, 128, 500)
    add(results, SAVEPOINT_2, SPREAD, 128, 5000)
    add(results, SAVEPOINT_2, REGISTRATION, 128, rate)

    assert target(results, "1.7 × pgbench").met is is_met


def test_a_target_has_no_value_for_what_was_not_measured() -> None:
    results = Results()
    add(results, SAVEPOINT_2, HOT, 8, 1000)

    assert not any(each.values for each in targets(results) if "pgbench" in each.words)


@pytest.mark.wrong_books
@pytest.mark.parametrize(
    ("corruption", "found"),
    [
        ("UPDATE accounts SET balance = balance + 1 WHERE id = 1", ("account", 1)),
        ("UPDATE entries SET balance_after = 1 WHERE account_id = 1 AND seq = 1", ("entry of account", 1)),
        ("UPDATE transfers SET amount = 499 WHERE id = 1", ("transfer", 1)),
    ],
)
def test_only_wrong_books_have_errors(client: TestClient, rows: Rows, corruption: str, found: tuple[str, int]) -> None:
    client.post("/register", json={"username": "alice", "email": "alice@example.com"})
    client.post("/deposits", json={"account_id": 1, "amount": 500}, headers=AS_OPERATOR)
    assert rows(BOOKS) == []

    rows(corruption)

    assert rows(BOOKS) == [found]


def test_the_ceiling_answers_what_savepoint_answers() -> None:
    with TestClient(ceiling.app) as client:
        answers = {SPREAD: client.post("/transfers", json=SPREAD.body), ME: client.get("/me")}

    assert {each: answer.json().keys() for each, answer in answers.items()} == {
        each: names_of(each.answer) for each in answers
    }
