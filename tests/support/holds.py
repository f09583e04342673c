"""Helpers of the tests of holds."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from httpx2 import Client, Response

from models import now
from tests.support.accounts import Headers, Holder, answer_of, order
from tests.support.service import AS_OPERATOR


class Clock:
    """The clock of the service, ahead of the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = timedelta()
        self.stopped: datetime | None = None
        monkeypatch.setattr("crud.now", self.tell)

    def tell(self) -> datetime:
        return (self.stopped or now()) + self.ahead

    def stop(self) -> None:
        """From now on, it is only advanced."""
        self.stopped = now()

    def advance(self, **time: float) -> None:
        self.ahead += timedelta(**time)


def hold(client: Client, sender: Holder, receiver: Holder, amount: int, **fields: Any) -> dict[str, Any]:
    """Hold this much, as the sender; the hold."""
    return answer_of(try_hold(client, sender.headers, sender.account_id, receiver.account_id, amount, **fields))


def try_hold(client: Client, headers: Headers, debit: int, credit: int, amount: int, **fields: Any) -> Response:
    response: Response = client.post("/holds", json=order(debit, credit, amount, **fields), headers=headers)
    return response


def capture(client: Client, hold_id: int, headers: Headers, amount: int | None = None, key: str = "") -> Response:
    headers = headers | ({"Idempotency-Key": key} if key else {})
    body = {"amount": amount} if amount else None
    response: Response = client.post(f"/holds/{hold_id}/capture", json=body, headers=headers)
    return response


def void(client: Client, hold_id: int, headers: Headers) -> Response:
    response: Response = client.post(f"/holds/{hold_id}/void", headers=headers)
    return response


def money_of(client: Client, holder: Holder) -> tuple[int, int, int]:
    """What the account has, what of it is held, and what is available."""
    account = client.get(f"/accounts/{holder.account_id}", headers=AS_OPERATOR).json()
    return account["balance"], account["held"], account["available"]


def parsed(instant: str) -> datetime:
    return datetime.fromisoformat(instant)
