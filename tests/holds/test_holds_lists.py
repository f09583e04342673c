"""GET /holds: why money is held, page by page."""

from typing import Any

import pytest
from sqlalchemy import make_url
from starlette.testclient import TestClient

import crud
import queries
from db.trips import execute
from ledger import OPERATOR
from models import now
from tests.support.accounts import Headers, refusal_of, register_all, send, walk
from tests.support.holds import Clock, capture, hold, void
from tests.support.service import AS_OPERATOR, Rows
from tests.support.work import AT_MOST, work_of


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
    "postgresql": "generate_series(1, 10000) AS numbers (n)",
    "sqlite": "(WITH RECURSIVE a (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a WHERE n < 10000) SELECT n FROM a)",
}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ANALYZE", "VACUUM", "SELECT 1"])
async def test_no_page_and_no_decision_reads_much_more_than_it_may_look_at(
    client: TestClient, rows: Rows, url: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_url(url).get_backend_name()
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=0)
    for recipient in (bob, carol):
        rows(f"""
            INSERT INTO holds
            (debit_account_id, credit_account_id, currency, amount, status, expires_at, initiator, created_at)
            SELECT {alice.account_id}, {recipient.account_id}, 'EUR', 1, 'voided', '2026-11-28 00:00:00+00', 0,
                   '2026-11-27 00:00:00+00' FROM {MANY[engine]}
        """)
    hold(client, alice, bob, 1)
    # What the planner knows: all; what autovacuum knows before it analyses; nothing.
    rows(first)
    monkeypatch.setattr(crud, "LOOKED", 100)
    newest = {"after": 2**63 - 1, "limit": 50}

    for caller, account_id in (
        (OPERATOR, None),
        (alice.user_id, None),
        (alice.user_id, alice.account_id),
        (bob.user_id, bob.account_id),
    ):
        for status in (None, "open", "captured", "expired"):
            work = await work_of(url, crud.list_holds, caller, account_id, status, **newest)
            assert work < AT_MOST[engine], (caller, account_id, status)
    assert await work_of(url, crud.get_account, alice.account_id, OPERATOR) < AT_MOST[engine]
    query = queries.select_expired(engine)
    assert await work_of(url, execute, query, ids=[alice.account_id], moment=now()) < AT_MOST[engine]


def test_a_user_with_as_many_accounts_as_can_be_lists_all_holds(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    for number in range(99):
        body = {"currency": "EUR", "label": f"{number}"}
        assert client.post("/accounts", json=body, headers=alice.headers).status_code == 201
    made = [hold(client, alice, bob, 1)["id"] for _ in range(5)]

    for status in ({}, {"status": "open"}):
        assert ids(client, alice.headers, **status) == made[::-1]


def test_the_database_itself_lets_a_hold_be_captured_once(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    made = hold(client, alice, bob, 1)["id"]
    capture(client, made, bob.headers)
    send(client, alice, bob, 1)

    with pytest.raises(Exception, match=r"(?i)unique"):
        rows(f"UPDATE transfers SET hold_id = {made} WHERE hold_id IS NULL AND initiator = {alice.user_id}")
