"""Calls that a test makes of the service and of its model alike, and compares."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

from httpx2 import Response
from hypothesis.stateful import MultipleResults, multiple
from starlette.testclient import TestClient

from tests.support.accounts import Headers, order
from tests.support.holds import Clock, parsed
from tests.support.model import OPERATOR, SYSTEM, Held, Made, Model, Refused, Wanted
from tests.support.service import AS_OPERATOR, Rows, empty

K = TypeVar("K")
V = TypeVar("V")


class Both:
    """The service, with a database that is empty at first, and the model of it."""

    client: TestClient
    clock: Clock
    rows: Rows
    url: str
    audited: Callable[[], AbstractContextManager[None]]

    def __init__(self) -> None:
        super().__init__()
        empty(self.url)
        self.model = Model(moment=self.clock.tell())
        self.headers: dict[int, Headers] = {OPERATOR: AS_OPERATOR}
        self.without_token: set[int] = set()

    def caller(self, by: str, wanted: Wanted) -> int:
        """Who calls: the owner of one of the accounts, the operator, who speaks for the system, or somebody else."""
        accounts, parties = self.model.accounts, {wanted.debit, wanted.credit}
        if by == "stranger":
            strangers = (each.owner for id, each in accounts.items() if id not in parties and each.owner is not SYSTEM)
            return next(strangers, OPERATOR)
        account = accounts[wanted.debit if by == "sender" else wanted.credit]
        return OPERATOR if by == "operator" or account.owner is SYSTEM else account.owner

    def is_out(self, caller: int, response: Response) -> bool:
        """Whether the caller is not active, which must be all that the service tells it."""
        if caller == OPERATOR or self.model.status[caller] == "active":
            return False
        is_revoked = caller in self.without_token and self.model.status[caller] != "closed"
        assert problem_of(response) == ((401, "unauthenticated") if is_revoked else (403, "user-not-active"))
        return True

    def post(self, path: str, body: Any, caller: int, key: str | None) -> Response:
        headers = self.headers[caller] | ({"Idempotency-Key": key} if key else {})
        return self.client.post(path, json=body, headers=headers)

    def version(self, wanted: Wanted, missed: int | None) -> int | None:
        """The version of the debit account that a sender saw who missed so many entries."""
        return None if missed is None else max(0, len(self.model.accounts[wanted.debit].entries) - missed)

    def compare(
        self, response: Response, caller: int, wanted: Wanted, key: str | None, if_version: int | None = None
    ) -> MultipleResults[int]:
        """Expect of a transfer what the model says; its id, where it was made."""
        used = ("transfer", caller, key) in self.model.keys
        expected = self.model.transfer(caller, wanted, key, response.json().get("id"), if_version)
        if not is_made(response, expected, used):
            return multiple()
        if isinstance(expected, Made) and wanted.captures and caller != OPERATOR:
            # What is left on the sender's account is not told.
            expected = replace(expected, debit_balance_after=None)
        assert made_of(response.json()) == expected
        return multiple(response.json()["id"])

    def choose(self, things: Mapping[K, V], number: int) -> tuple[K, V]:
        """One of these, the newest first."""
        return list(things.items())[-1 - number % len(things)]

    def try_hold(self, caller: int, wanted: Wanted, key: str | None, version: int | None = None) -> None:
        body = body_of(wanted) | {"expires_in": wanted.lifetime, "if_version": version}
        response = self.post("/holds", body, caller, key)
        if self.is_out(caller, response):
            return
        used = ("hold", caller, key) in self.model.keys
        expected = self.model.hold(caller, wanted, key, response.json().get("id"), version)
        if is_made(response, expected, used):
            assert isinstance(expected, Held)
            self.compare_hold(response.json(), expected, "open")

    def compare_hold(self, shown: dict[str, Any], hold: Held, status: str) -> None:
        wanted = hold.wanted
        assert (shown["id"], shown["amount"], shown["status"]) == (hold.id, hold.amount, status)
        assert (shown["debit_account_id"], shown["credit_account_id"]) == (wanted.debit, wanted.credit)
        assert (shown["memo"], shown["reference"]) == (wanted.memo, wanted.reference)
        assert shown["asked_amount"] == (wanted.amount if wanted.cap else None)
        assert parsed(shown["expires_at"]) == hold.expires_at
        assert (shown["resolved_at"] is None) == (status == "open")

    def try_transaction(self, caller: int, legs: list[Wanted], key: str | None) -> MultipleResults[int]:
        body = {"transfers": [body_of(leg) for leg in legs], "reference": "linked"}
        response = self.post("/transactions", body, caller, key)
        if self.is_out(caller, response):
            return multiple()
        made = response.json().get("transfers", [{}] * len(legs))
        used = ("transaction", caller, key) in self.model.keys
        expected = self.model.transaction(caller, legs, key, [each.get("id") for each in made])
        if isinstance(expected, Refused):
            assert problem_of(response) == (409, "transaction-refused")
            [error] = response.json()["errors"]
            assert (error["index"], error["type"]) == (expected.index, f"/problems/{expected.problem}")
            return multiple()
        if not is_made(response, expected, used):
            return multiple()
        assert [made_of(each) for each in made] == expected
        assert {each["transaction_id"] for each in made} == {response.json()["id"]}
        return multiple(*(each["id"] for each in made))

    def note_status(self, owner: int, status: str) -> None:
        """Note the new status; a user who was closed has no token any more, and gets one when active again."""
        self.model.status[owner] = status
        if status == "closed":
            self.without_token.add(owner)
        elif status == "active" and owner in self.without_token:
            self.without_token.remove(owner)
            issued = self.client.post(f"/users/{owner}/tokens", json={}, headers=AS_OPERATOR)
            self.headers[owner] = {"Authorization": f"Bearer {issued.json()['access_token']}"}


def is_made(response: Response, expected: Any, used: bool) -> bool:
    """Whether the model says that this was made, as the service must say too; or else which problem it is."""
    if isinstance(expected, str):
        assert problem_of(response)[1] == expected
        return False
    assert response.status_code == 201, response.text
    assert (response.headers.get("Idempotency-Replayed") == "true") == used
    return True


def body_of(wanted: Wanted) -> dict[str, Any]:
    """The body of a call for this transfer."""
    more = {"on_short": "cap"} if wanted.cap else {}
    return order(wanted.debit, wanted.credit, wanted.amount, memo=wanted.memo, reference=wanted.reference, **more)


def made_of(transfer: dict[str, Any]) -> Made:
    """What the service says that it made."""
    asked = transfer["asked_amount"]
    wanted = Wanted(
        transfer["debit_account_id"],
        transfer["credit_account_id"],
        transfer["amount"] if asked is None else asked,
        transfer["memo"],
        cap=asked is not None,
        reference=transfer["reference"],
        reverses=transfer["reverses_id"],
        captures=transfer["hold_id"],
    )
    return Made(transfer["id"], wanted, transfer["amount"], transfer.get("debit_balance_after"))


def problem_of(response: Response) -> tuple[int, str]:
    """The status and type of a problem."""
    return response.status_code, str(response.json().get("type")).removeprefix("/problems/")
