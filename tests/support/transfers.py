"""Helpers of the tests of transfers."""

from typing import Any

from httpx2 import Client, Response

from tests.support.accounts import (
    Headers,
    Holder,
    order,
)
from tests.support.service import AS_OPERATOR, Rows

MOST = 2**53 - 1
"""The largest amount: as far as JSON numbers are exact everywhere."""


def keyed(headers: Headers, key: str | bytes) -> Any:
    """The headers with an Idempotency-Key."""
    return {**headers, "Idempotency-Key": key}


def try_transfer(
    client: Client, headers: Headers, debit_account_id: Any, credit_account_id: Any, amount: Any, **fields: Any
) -> Response:
    body = order(debit_account_id, credit_account_id, amount, **fields)
    return client.post("/transfers", json=body, headers=headers)


def system_account(rows: Rows, currency: str = "EUR") -> int:
    [(id,)] = rows(f"SELECT id FROM accounts WHERE user_id IS NULL AND currency = '{currency}'")
    assert isinstance(id, int)
    return id


def set_balance(rows: Rows, account_id: int, amount: int) -> None:
    """Change a balance by hand."""
    rows(f"UPDATE accounts SET balance = {amount} WHERE id = {account_id}")


def set_status(client: Client, holder: Holder, status: str) -> None:
    changed = client.patch(f"/users/{holder.user_id}", json={"status": status}, headers=AS_OPERATOR)
    assert changed.json()["status"] == status


def reverse(client: Client, transfer: dict[str, Any], headers: Headers, key: str | None = None) -> Response:
    return client.post(f"/transfers/{transfer['id']}/reversal", headers=headers if key is None else keyed(headers, key))
