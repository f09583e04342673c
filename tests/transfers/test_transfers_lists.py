"""Lists of transfers: filters, pages, and who sees what."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.accounts import (
    NO_ROW_HAS,
    Headers,
    Holder,
    deposit,
    fields_of,
    order,
    refusal_of,
    register_all,
    send,
    walk,
)
from tests.support.service import AS_OPERATOR, Rows


def listed(client: TestClient, headers: Headers, **query: Any) -> list[int]:
    """The ids on the first page of the list with these filters; "from" and names with dots are written as a dict."""
    response = client.get("/transfers", params=query.pop("query", {}) | query, headers=headers)
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["items"]]


def open_another(client: TestClient, holder: Holder, rows: Rows) -> Holder:
    """Another account of the holder in EUR."""
    rows(f"""
        INSERT INTO accounts (user_id, currency, label, balance, version) VALUES ({holder.user_id}, 'EUR', 'tips', 0, 0)
    """)
    [(account_id,)] = rows(f"SELECT id FROM accounts WHERE user_id = {holder.user_id} AND label = 'tips'")
    return holder._replace(account_id=account_id)


def test_the_newest_come_first_each_as_it_is_shown_alone(client: TestClient) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    sent = [
        send(client, alice, bob, 1),
        send(client, bob, alice, 1, memo="x", reference="order-1", metadata={"cart-no": "c 17", "1": 'ü"\\'}),
        send(client, alice, bob, 5000, on_short="cap"),
    ]

    for headers in (alice.headers, bob.headers, AS_OPERATOR):
        page = client.get("/transfers", headers=headers).json()
        alone = [client.get(f"/transfers/{each['id']}", headers=headers).json() for each in reversed(sent)]
        assert page["items"][:3] == alone
        assert page["next"] is None


def test_a_user_sees_its_own_transfers_only(client: TestClient) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=100, carol=0)
    funds = [*reversed(listed(client, AS_OPERATOR))]
    to_bob, to_carol = send(client, alice, bob, 1)["id"], send(client, bob, carol, 1, reference="order-1")["id"]

    assert listed(client, alice.headers) == [to_bob, funds[0]]
    assert listed(client, bob.headers) == [to_carol, to_bob, funds[1]]
    assert listed(client, carol.headers) == [to_carol]
    assert listed(client, AS_OPERATOR) == [to_carol, to_bob, *reversed(funds)]
    # Whatever finds them.
    assert listed(client, alice.headers, reference="order-1") == []
    assert listed(client, carol.headers, reference="order-1") == [to_carol]
    assert listed(client, carol.headers, user_id=carol.user_id) == [to_carol]


def test_accounts_of_others_and_other_users_are_refused(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    send(client, alice, bob, 1)

    for headers, account_id in ((alice.headers, bob.account_id), (alice.headers, 999), (AS_OPERATOR, 999)):
        refused = client.get("/transfers", params={"account_id": account_id}, headers=headers)
        assert refusal_of(refused) == (404, "account-not-found")
    refused = client.get("/transfers", params={"user_id": bob.user_id}, headers=alice.headers)
    assert refusal_of(refused) == (403, "operator-only")
    assert refusal_of(client.get("/transfers")) == (401, "unauthenticated")
    assert listed(client, AS_OPERATOR, user_id=999) == []


def test_the_operator_finds_the_transfers_of_an_account_or_a_user_or_between_both(
    client: TestClient, rows: Rows
) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=0, carol=0)
    [funds] = listed(client, AS_OPERATOR)
    tips = open_another(client, alice, rows)
    first, second = send(client, alice, bob, 10)["id"], send(client, bob, tips, 5)["id"]
    third, fourth = send(client, bob, carol, 1)["id"], send(client, alice, tips, 1)["id"]
    [(system,)] = rows("SELECT id FROM accounts WHERE user_id IS NULL")

    assert listed(client, AS_OPERATOR, account_id=alice.account_id) == [fourth, first, funds]
    assert listed(client, AS_OPERATOR, account_id=system) == [funds]
    # The one between two of her accounts once.
    assert listed(client, AS_OPERATOR, user_id=alice.user_id) == [fourth, second, first, funds]
    assert listed(client, alice.headers) == [fourth, second, first, funds]
    assert listed(client, alice.headers, limit=1) == [fourth]
    assert listed(client, alice.headers, account_id=tips.account_id) == [fourth, second]
    assert listed(client, AS_OPERATOR, account_id=bob.account_id, user_id=carol.user_id) == [third]
    assert listed(client, AS_OPERATOR, account_id=bob.account_id, user_id=alice.user_id) == [second, first]


def test_a_reference_and_metadata_find_transfers(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    first = send(client, alice, bob, 1, reference="order-1", metadata={"cart-no": "1", "2": "x", "from": 'ü"'})["id"]
    second = send(client, alice, bob, 1, reference="order-1", metadata={"cart-no": "2"})["id"]
    third = send(client, bob, alice, 1, reference="order-2", metadata={"cart-no": "1", "KEY": ""})["id"]
    send(client, alice, bob, 1)

    for headers in (alice.headers, AS_OPERATOR):
        for query, expected in (
            ({"reference": "order-1"}, [second, first]),
            ({"reference": "order-1", "metadata.cart-no": "1"}, [first]),
            ({"reference": "ORDER-1"}, []),
            ({"metadata.cart-no": "1"}, [third, first]),
            ({"metadata.cart-no": "1", "metadata.2": "x"}, [first]),
            ({"metadata.from": 'ü"'}, [first]),
            ({"metadata.KEY": ""}, [third]),
            ({"metadata.cart": "1"}, []),
            ({"account_id": alice.account_id, "metadata.cart-no": "1", "reference": "order-2"}, [third]),
        ):
            assert listed(client, headers, query=query) == expected, query


def test_a_transaction_and_a_hold_find_their_transfers(client: TestClient, rows: Rows) -> None:
    alice, bob, carol = register_all(client, alice=100, bob=100, carol=0)
    sent = [send(client, alice, bob, 1)["id"], send(client, bob, carol, 1)["id"]]
    rows("INSERT INTO transactions (id, initiator, created_at) SELECT 7, 0, created_at FROM transfers WHERE id = 1")
    rows(f"""
        INSERT INTO holds (id, debit_account_id, credit_account_id, currency, amount, status, expires_at, initiator,
            created_at)
        SELECT 8, debit_account_id, credit_account_id, currency, amount, 'captured', created_at, 0, created_at
        FROM transfers WHERE id = {sent[0]}
    """)
    rows(f"UPDATE transfers SET transaction_id = 7 WHERE id IN ({sent[0]}, {sent[1]})")
    rows(f"UPDATE transfers SET hold_id = 8 WHERE id = {sent[0]}")

    page = client.get("/transfers", params={"transaction_id": 7, "hold_id": 8}, headers=alice.headers).json()
    assert [(item["id"], item["transaction_id"], item["hold_id"]) for item in page["items"]] == [(sent[0], 7, 8)]
    assert listed(client, AS_OPERATOR, transaction_id=7) == sent[::-1]
    assert listed(client, alice.headers, transaction_id=7) == sent[:1]
    assert listed(client, carol.headers, transaction_id=7) == sent[1:]
    assert listed(client, bob.headers, hold_id=8) == sent[:1]
    assert listed(client, carol.headers, hold_id=8) == []
    assert listed(client, AS_OPERATOR, hold_id=9) == listed(client, AS_OPERATOR, transaction_id=9) == []


def test_from_is_inclusive_and_to_exclusive(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    sent = [send(client, alice, bob, 1, reference="order-1") for _ in range(4)]
    ids = [each["id"] for each in sent]
    second, third = sent[1]["created_at"], sent[2]["created_at"]
    after_third = (datetime.fromisoformat(third) + timedelta(microseconds=1)).isoformat()

    finders: list[dict[str, Any]] = [{}, {"account_id": alice.account_id}, {"reference": "order-1"}]
    for headers in (alice.headers, bob.headers, AS_OPERATOR):
        for finder in finders if headers is not bob.headers else [{}]:
            found = listed(client, headers, query={**finder, "from": second})
            assert found == ids[:0:-1]
            assert listed(client, headers, query={**finder, "from": second, "to": third}) == ids[1:2]
            assert listed(client, headers, query={**finder, "from": second, "to": after_third}) == ids[2:0:-1]
            assert listed(client, headers, query={**finder, "from": third, "to": second}) == []
            assert listed(client, headers, query={**finder, "to": "0001-01-01T00:00:00Z"}) == []
            assert listed(client, headers, query={**finder, "from": "9999-12-31T23:59:59Z"}) == []
            extremes = {"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T23:59:59Z"}
            assert listed(client, headers, query={**finder, **extremes})[:4] == ids[::-1]


def test_clocks_that_differ_by_half_a_minute_hide_nothing(client: TestClient, rows: Rows, engine: str) -> None:
    alice, bob, carol, dave = register_all(client, alice=100, bob=0, carol=100, dave=0)
    sent = [send(client, *pair, 1) for pair in [(alice, bob), (carol, dave)] * 3]
    late = datetime.fromisoformat(sent[0]["created_at"]) + timedelta(seconds=30)
    # Alice's and bob's machine is fast.
    for each in sent[::2]:
        instant = datetime.fromisoformat(each["created_at"]) + timedelta(seconds=30)
        text = instant.strftime("%Y-%m-%d %H:%M:%S.%f") + ("+00" if engine == "postgresql" else "")
        for table, id in (("transfers", "id"), ("entries", "transfer_id")):
            rows(f"UPDATE {table} SET created_at = '{text}' WHERE {id} = {each['id']}")

    fast, slow = [each["id"] for each in sent[::-2][0:]], [each["id"] for each in sent[::2]]
    assert listed(client, AS_OPERATOR, query={"from": late.isoformat()}) == slow[::-1]
    before = listed(client, AS_OPERATOR, query={"to": late.isoformat(), "from": sent[0]["created_at"]})
    assert before == [id for id in fast if id not in slow]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_have_each_transfer_once_also_while_others_arrive(client: TestClient, rows: Rows, limit: int) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    tips = open_another(client, alice, rows)
    pairs = [(alice, bob), (bob, alice), (alice, tips), (tips, bob)] * 2
    sent = [send(client, *pair, 2, metadata={"a": "b"})["id"] for pair in pairs]

    for headers, query in (
        (alice.headers, {}),
        (AS_OPERATOR, {"account_id": alice.account_id}),
        (AS_OPERATOR, {"user_id": bob.user_id}),
        (AS_OPERATOR, {"metadata.a": "b"}),
    ):
        seen: list[int] = []
        page: dict[str, Any] = {"next": ""}
        while page["next"] is not None:
            after = {"after": page["next"]} if page["next"] else {}
            page = client.get("/transfers", params={"limit": limit, **query, **after}, headers=headers).json()
            seen += [item["id"] for item in page["items"]]
            send(client, alice, bob, 1)
        assert seen == sorted({*seen}, reverse=True)
        expected = [each for each in walk(client, "/transfers", headers, limit=200) if each["id"] <= max(seen)]
        account_ids = {"account_id": {alice.account_id}, "user_id": {bob.account_id}}
        of = next((account_ids[name] for name in query if name in account_ids), None)
        assert seen == [
            each["id"]
            for each in expected
            if (of is None or of & {each["debit_account_id"], each["credit_account_id"]})
            and ("metadata.a" not in query or each["id"] in sent)
        ]


def test_parameters_that_mean_nothing_are_refused(client: TestClient) -> None:
    [alice] = register_all(client, alice=0)

    for name in ("account_id", "user_id", "transaction_id", "hold_id"):
        for id in NO_ROW_HAS:
            refused = client.get("/transfers", params={name: id}, headers=alice.headers)
            assert fields_of(refused) == [f"query.{name}"], id
    for query, field in (
        ("reference=", "reference"),
        (f"reference={'x' * 101}", "reference"),
        ("reference=a%00b", "reference"),
        ("from=yesterday", "from"),
        ("to=2026-01-01", "to"),
        ("since=2026-01-01T00:00:00Z", "since"),
        ("metadata=x", "metadata"),
        ("metadata.=x", "metadata."),
        ("metadata.a b=x", "metadata.a b"),
        ("metadata.a.b=x", "metadata.a.b"),
        (f"metadata.{'x' * 41}=x", f"metadata.{'x' * 41}"),
        ("metadata.a=1&metadata.a=1", "metadata.a"),
        ("metadata.a=%00", "metadata.KEY"),
        ("&".join(f"metadata.{n}=x" for n in range(21)), "metadata.KEY"),
        ("after=MA&metadata.a=%00", "metadata.KEY"),
    ):
        assert fields_of(client.get(f"/transfers?{query}", headers=alice.headers)) == [f"query.{field}"], query
    assert fields_of(client.get("/accounts?metadata.a=x", headers=alice.headers)) == ["query.metadata.a"]


def test_a_batch_is_listed_in_its_order(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    batch = {"transfers": [order(alice.account_id, bob.account_id, amount) for amount in (3, 1, 2)]}
    client.post("/transfers/batch", json=batch, headers=alice.headers)

    page = client.get("/transfers", headers=bob.headers).json()

    assert [item["amount"] for item in page["items"]] == [2, 1, 3]
    deposit(client, bob.account_id, 1)
    assert len(listed(client, bob.headers)) == 4
