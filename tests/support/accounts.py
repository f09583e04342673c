"""Helpers of the tests of accounts."""

from datetime import datetime
from typing import Any, NamedTuple

from httpx2 import Client, Response
from starlette.testclient import TestClient

from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows

Headers = dict[str, str]


NO_ROW_HAS = ["0", "-1", str(2**63), "x", "1.5"]
"""Ids that no row can have."""


class Holder(NamedTuple):
    """A user, its first account, and the header that speaks for it."""

    user_id: int
    account_id: int
    headers: Headers


def register(client: Client, username: str = "alice", funds: int = 0) -> Holder:
    """A new user, with this much in its account."""
    [holder] = register_all(client, **{username: funds})
    return holder


def register_all(client: Client, **funds: int) -> list[Holder]:
    """New users, each with this much in its account."""
    batch = {"users": [named(username) for username in funds]}
    results = client.post("/users/batch", json=batch, headers=AS_OPERATOR).json()["results"]
    accounts = walk(client, "/accounts", AS_OPERATOR, limit=200)
    account_ids = {account["user_id"]: account["id"] for account in accounts}
    holders = [
        Holder(user_id, account_ids[user_id], {"Authorization": f"Bearer {result['access_token']}"})
        for result in results
        for user_id in [result["user"]["id"]]
    ]
    for holder, amount in zip(holders, funds.values(), strict=True):
        if amount:
            deposit(client, holder.account_id, amount)
    return holders


def deposit(client: Client, account_id: int, amount: int, **fields: Any) -> dict[str, Any]:
    """Pay this much in, as the operator; the transfer that it was."""
    return answer_of(client.post("/deposits", json=cash(account_id, amount, **fields), headers=AS_OPERATOR))


def send(client: Client, sender: Holder, receiver: Holder, amount: int, **fields: Any) -> dict[str, Any]:
    """Transfer this much between first accounts, as the sender; the transfer that it was."""
    body = order(sender.account_id, receiver.account_id, amount, **fields)
    return answer_of(client.post("/transfers", json=body, headers=sender.headers))


def answer_of(response: Response) -> dict[str, Any]:
    """The body of a 201."""
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def cash(account_id: int, amount: Any, **fields: Any) -> dict[str, Any]:
    return {"account_id": account_id, "amount": amount, **fields}


def order(debit_account_id: int, credit_account_id: int, amount: Any, **fields: Any) -> dict[str, Any]:
    return {"debit_account_id": debit_account_id, "credit_account_id": credit_account_id, "amount": amount, **fields}


def refusal_of(response: Response) -> tuple[int, str]:
    """The status and type of a problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    return response.status_code, problem["type"].removeprefix("/problems/")


def fields_of(response: Response) -> list[str]:
    """The fields that a 422 names."""
    assert response.status_code == 422, response.text
    return [error["field"] for error in response.json()["errors"]]


def books(rows: Rows) -> list[list[tuple[Any, ...]]]:
    """All that the database knows of money."""
    return [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("accounts", "transfers", "entries")]


def balance(rows: Rows, account_id: int) -> int:
    [(balance,)] = rows(f"SELECT balance FROM accounts WHERE id = {account_id}")
    assert isinstance(balance, int)
    return balance


def walk(client: Client, path: str, headers: Headers, limit: int) -> list[Any]:
    """All items of a list, page by page."""
    seen: list[Any] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = client.get(path, params=query, headers=headers).json()
        assert len(page["items"]) == limit or page["next"] is None
        seen += page["items"]
        if page["next"] is None:
            return seen
        query["after"] = page["next"]


def statement(client: TestClient, holder: Holder, **query: Any) -> list[dict[str, Any]]:
    page = client.get(f"/accounts/{holder.account_id}/entries", params=query, headers=holder.headers).json()
    items: list[dict[str, Any]] = page["items"]
    return items


def at(client: TestClient, holder: Holder, instant: datetime | str) -> tuple[int, int]:
    """Balance and version of an account at an instant."""
    text = instant.isoformat() if isinstance(instant, datetime) else instant
    response = client.get(f"/accounts/{holder.account_id}", params={"at": text}, headers=holder.headers)
    assert response.status_code == 200, response.text
    account = response.json()
    assert (account["id"], account["user_id"], account["currency"]) == (holder.account_id, holder.user_id, "EUR")
    return account["balance"], account["version"]
