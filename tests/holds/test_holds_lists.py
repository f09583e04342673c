"""GET /holds: why money is held, page by page."""

from typing import Any

import pytest
from starlette.testclient import TestClient

import crud
from tests.support.accounts import Headers, refusal_of, register_all, walk
from tests.support.holds import Clock, capture, hold, void
from tests.support.service import AS_OPERATOR, Rows


def ids(client: TestClient, headers: Headers, **query: Any) -> list[int]:
    """The ids of all that the list has, read two at a time, whether or not pages are short."""
    found: list[int] = []
    after: dict[str, Any] = {}
    while True:
        page = client.get("/holds", params={**query, "limit": 2, **after}, headers=headers)
        assert page.status_code == 200, page.text
        found += [each["id"] for each in page.json()["items"]]
        if page.json()["next"] is None:
            return found
        after = {"after": page.json()["next"]}


def test_both_parties_and_the_operator_see_what_is_held(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=100, carol=100)
    clock = Clock(monkeypatch)
    made = [
        hold(client, *pair, 5, expires_in=60) for pair in ((alice, bob), (bob, alice), (carol, bob), (alice, carol))
    ]
    made.append(hold(client, alice, bob, 5, expires_in=9000))
    captured, voided, others, expired, left = (each["id"] for each in made)
    capture(client, captured, bob.headers)
    void(client, voided, alice.headers)
    clock.advance(seconds=60)

    listed = walk(client, "/holds", alice.headers, limit=200)
    assert listed == [client.get(f"/holds/{each['id']}", headers=alice.headers).json() for each in listed]
    assert ids(client, alice.headers, account_id=alice.account_id) == [left, expired, voided, captured]
    assert ids(client, bob.headers, account_id=bob.account_id) == [left, others, voided, captured]
    assert ids(client, AS_OPERATOR) == [left, expired, others, voided, captured]
    for status, found in (("open", left), ("captured", captured), ("voided", voided), ("expired", expired)):
        assert ids(client, alice.headers, account_id=alice.account_id, status=status) == [found]
    assert ids(client, AS_OPERATOR, status="expired") == [expired, others]
    assert ids(client, bob.headers, account_id=bob.account_id, status="open") == [left]
    foreign = client.get(f"/holds?account_id={alice.account_id}", headers=carol.headers)
    assert refusal_of(foreign) == (404, "account-not-found")
    assert ids(client, bob.headers) == [left, others, voided, captured]
    dollars = client.post("/accounts", json={"currency": "USD"}, headers=carol.headers)
    assert (dollars.status_code, ids(client, carol.headers)) == (201, [expired, others])


@pytest.mark.parametrize("status", ["open", "captured"])
def test_a_page_looks_at_a_bounded_number(client: TestClient, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    made = [hold(client, alice, bob, 1)["id"] for _ in range(12)]
    # For bob, by the index of all that he may capture; what alice has open has an index of its own.
    for each in made[2:]:
        capture(client, each, bob.headers)
    expected = made[1::-1] if status == "open" else made[:1:-1]
    monkeypatch.setattr(crud, "LOOKED", 3)

    for holder in (alice, bob):
        assert ids(client, holder.headers, account_id=holder.account_id, status=status) == expected
    first = client.get(f"/holds?status=open&account_id={bob.account_id}", headers=bob.headers).json()
    assert first["items"] == []
    assert first["next"]


MANY = {
    "postgresql": "generate_series(1, 20000) AS n",
    "sqlite": "(WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000) SELECT n FROM n)",
}


def test_lists_and_decisions_find_holds_by_index(
    client: TestClient, rows: Rows, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    rows(f"""
        INSERT INTO holds
        (debit_account_id, credit_account_id, currency, amount, status, expires_at, initiator, created_at)
        SELECT {alice.account_id}, {bob.account_id}, 'EUR', 1, 'voided', '2026-11-28 00:00:00+00', 0,
               '2026-11-27 00:00:00+00' FROM {MANY[engine]}
    """)
    rows("ANALYZE")

    for condition, index in (
        (f"debit_account_id = {alice.account_id} AND id < 9 ORDER BY id DESC LIMIT 51", "ix_holds_debit_account_id"),
        (f"credit_account_id = {bob.account_id} AND id < 9 ORDER BY id DESC LIMIT 51", "ix_holds_credit_account_id"),
        (f"debit_account_id = {bob.account_id} AND status = 'open' AND expires_at <= '2026-11-28'", "ix_holds_open"),
    ):
        explain = "EXPLAIN" if engine == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = str(rows(f"{explain} SELECT id FROM holds WHERE {condition}"))
        # Where all holds are the account's, the primary key is as good.
        assert any(name in plan for name in (index, "pk_holds", "PRIMARY KEY")), plan
