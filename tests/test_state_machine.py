"""Whatever callers do, in whatever order: the service and a plain Python model of it say the same."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from httpx2 import Response
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from starlette.testclient import TestClient

from tests.support.accounts import Headers, cash, order, register, walk
from tests.support.service import AS_OPERATOR, Rows, empty

pytestmark = pytest.mark.slow

OPERATOR = 0


SYSTEM = None
"""Whose the system accounts are."""


@dataclass
class Account:
    """What the model knows of an account: its entries, oldest first, as (transfer, amount, balance)."""

    owner: int | None
    balance: int = 0
    credit: int = 0
    entries: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """A transfer that somebody wants; reverses is the id of the one that it sends back.

    With cap, less will do.
    """

    debit: int
    credit: int
    amount: int
    memo: str | None = None
    cap: bool = False
    reference: str | None = None
    reverses: int | None = None


@dataclass(frozen=True)
class Made:
    """A transfer that was made, its amount, and the balance that it left on the debit account."""

    id: int
    wanted: Wanted
    amount: int
    debit_balance_after: int


@dataclass
class Model:
    """All that is true, in plain Python: accounts by id, users' statuses, transfers by id and by key."""

    accounts: dict[int, Account] = field(default_factory=dict)
    status: dict[int, str] = field(default_factory=dict)
    made: dict[int, Made] = field(default_factory=dict)
    keys: dict[tuple[int, str | None], Made] = field(default_factory=dict)
    of_operator: set[int] = field(default_factory=set)

    def transfer(
        self, caller: int, wanted: Wanted, key: str | None, id: int, if_version: int | None = None
    ) -> str | Made:
        """Make the transfer under this id, or tell the problem that this must answer."""
        if (caller, key) in self.keys:
            earlier = self.keys[caller, key]
            return earlier if earlier.wanted == wanted else "idempotency-key-reused"
        debit = self.accounts[wanted.debit]
        problem = self.refuse(caller, wanted, if_version)
        if problem:
            return problem
        is_cut = wanted.cap and debit.owner is not SYSTEM
        moved = min(wanted.amount, debit.balance + debit.credit) if is_cut else wanted.amount
        for number, amount in ((wanted.debit, -moved), (wanted.credit, moved)):
            account = self.accounts[number]
            account.balance += amount
            account.entries.append((id, amount, account.balance))
        made = self.made[id] = Made(id, wanted, moved, debit.balance)
        self.of_operator |= {id} if caller == OPERATOR else set()
        if key:
            self.keys[caller, key] = made
        return made

    def refuse(self, caller: int, wanted: Wanted, if_version: int | None) -> str | None:
        debit, credit = self.accounts[wanted.debit], self.accounts[wanted.credit]
        if caller not in (OPERATOR, debit.owner):
            return "account-not-found"
        if wanted.debit == wanted.credit:
            return "same-account"
        if caller != OPERATOR and debit.owner is not SYSTEM and self.status[debit.owner or 0] != "active":
            return "account-not-active"
        if if_version not in (None, len(debit.entries)):
            return "version-mismatch"
        if wanted.reverses and any(each.wanted.reverses == wanted.reverses for each in self.made.values()):
            return "already-reversed"
        if debit.owner is not SYSTEM and debit.balance + debit.credit < (1 if wanted.cap else wanted.amount):
            return "insufficient-funds"
        owners = {debit.owner, credit.owner} - {SYSTEM}
        if credit.owner is SYSTEM:
            return None if caller == OPERATOR else "account-not-found"
        if any(self.status[owner] != "active" for owner in owners if owner is not None):
            return "account-not-active"
        return None

    def reversal(self, caller: int, id: int) -> str | Wanted:
        """What sends this transfer back, or why this caller cannot."""
        made = self.made[id]
        original = made.wanted
        sender, receiver = (self.accounts[each].owner for each in (original.debit, original.credit))
        if caller not in (OPERATOR, sender, receiver):
            return "transfer-not-found"
        if caller not in (OPERATOR, receiver):
            return "receiver-only"
        if id in self.of_operator and caller != OPERATOR:
            return "operator-transfer"
        if original.reverses:
            return "reversal-not-reversible"
        return Wanted(original.credit, original.debit, made.amount, reverses=id)


# 100 is all that each has in the beginning.
AMOUNTS = st.integers(1, 120) | st.just(100)


KEYS = st.sampled_from([None, None, "one", "two", "three"])


MEMOS = st.sampled_from([None, "rent"])


PAYMENTS = st.sampled_from(["/deposits", "/deposits", "/withdrawals"])


REFERENCES = st.sampled_from([None, None, "order-1"])


# How many entries the sender has missed or, below 0, made up.
MISSED = st.sampled_from([None, None, None, 0, 1, -1])


CALLERS = st.sampled_from(["sender", "sender", "operator", "operator", "receiver"])


class Callers(RuleBasedStateMachine):
    """Calls the service and the model alike."""

    accounts = Bundle("accounts")
    transfers = Bundle("transfers")
    client: TestClient
    rows: Rows
    url: str

    def __init__(self) -> None:
        super().__init__()
        empty(self.url)
        self.model = Model()
        self.headers: dict[int, Headers] = {OPERATOR: AS_OPERATOR}
        self.without_token: set[int] = set()

    def caller(self, by: str, wanted: Wanted) -> int:
        """Who calls: the owner of one of the accounts, or the operator, who speaks for the system."""
        account = self.model.accounts[wanted.debit if by == "sender" else wanted.credit]
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

    def compare(
        self, response: Response, caller: int, wanted: Wanted, key: str | None, if_version: int | None = None
    ) -> int | MultipleResults[int]:
        """Expect of a transfer what the model says; its id, where it was made."""
        used = (caller, key) in self.model.keys
        expected = self.model.transfer(caller, wanted, key, response.json().get("id"), if_version)
        if isinstance(expected, str):
            assert problem_of(response)[1] == expected
            return multiple()
        assert response.status_code == 201, response.text
        assert (response.headers.get("Idempotency-Replayed") == "true") == used
        assert made_of(response.json()) == expected
        return expected.id

    @initialize(target=accounts)
    def begin(self) -> MultipleResults[Any]:
        """Three users who hold something."""
        accounts: list[Any] = [self.register() for _ in range(3)]
        for account in accounts:
            self.pay(account, 100, None, None, "/deposits")
        return multiple(*accounts)

    @rule(target=accounts)
    def register(self) -> int:
        holder = register(self.client, f"user{len(self.headers)}")
        self.model.status[holder.user_id] = "active"
        self.headers[holder.user_id] = holder.headers
        self.model.accounts[holder.account_id] = Account(holder.user_id)
        return holder.account_id

    @rule(target=transfers, account=accounts, amount=AMOUNTS, memo=MEMOS, key=KEYS, path=PAYMENTS)
    def pay(
        self, account: int, amount: int, memo: str | None, key: str | None, path: str
    ) -> int | MultipleResults[int]:
        response = self.post(path, cash(account, amount, memo=memo), OPERATOR, key)
        [(system,)] = self.rows("SELECT id FROM accounts WHERE user_id IS NULL")
        self.model.accounts.setdefault(system, Account(SYSTEM))
        debit, credit = (system, account) if path == "/deposits" else (account, system)
        return self.compare(response, OPERATOR, Wanted(debit, credit, amount, memo), key)

    @rule(
        target=transfers,
        wanted=st.builds(Wanted, accounts, accounts, AMOUNTS, MEMOS, st.booleans(), REFERENCES),
        key=KEYS,
        by=CALLERS,
        missed=MISSED,
    )
    def transfer(self, wanted: Wanted, key: str | None, by: str, missed: int | None) -> int | MultipleResults[int]:
        caller = self.caller(by, wanted)
        version = None if missed is None else max(0, len(self.model.accounts[wanted.debit].entries) - missed)
        response = self.post("/transfers", body_of(wanted) | {"if_version": version}, caller, key)
        return multiple() if self.is_out(caller, response) else self.compare(response, caller, wanted, key, version)

    @rule(id=transfers)
    def send_again(self, id: int) -> None:
        for (caller, key), made in self.model.keys.items():
            if made.id == id and made.wanted.reverses is None:
                response = self.post("/transfers", body_of(made.wanted), caller, key)
                if not self.is_out(caller, response):
                    self.compare(response, caller, made.wanted, key)

    @rule(target=transfers, id=transfers, key=KEYS, by=CALLERS)
    def reverse(self, id: int, key: str | None, by: str) -> int | MultipleResults[int]:
        caller = self.caller(by, self.model.made[id].wanted)
        response = self.post(f"/transfers/{id}/reversal", None, caller, key)
        if self.is_out(caller, response):
            return multiple()
        wanted = self.model.reversal(caller, id)
        if isinstance(wanted, str):
            assert problem_of(response)[1] == wanted
            return multiple()
        return self.compare(response, caller, wanted, key)

    @rule(
        items=st.lists(
            st.tuples(st.builds(Wanted, accounts, accounts, AMOUNTS, MEMOS, st.booleans()), KEYS),
            min_size=1,
            max_size=6,
        ),
        on_error=st.sampled_from(["rollback", "continue"]),
        by=CALLERS,
    )
    def batch(self, items: list[tuple[Wanted, str | None]], on_error: str, by: str) -> None:
        caller = self.caller(by, items[0][0])
        transfers = [body_of(wanted) | {"idempotency_key": key} for wanted, key in items]
        response = self.post("/transfers/batch", {"transfers": transfers, "on_error": on_error}, caller, None)
        if self.is_out(caller, response):
            return
        before = deepcopy(self.model)
        results = response.json().get("results", [{}] * len(items))
        expected = [
            self.model.transfer(caller, wanted, key, result.get("transfer", {}).get("id"))
            for (wanted, key), result in zip(items, results, strict=True)
        ]
        problems = {index: f"/problems/{each}" for index, each in enumerate(expected) if isinstance(each, str)}
        if on_error == "rollback" and problems:
            self.model = before
            assert problem_of(response) == (409, "batch-refused")
            assert {error["index"]: error["type"] for error in response.json()["errors"]} == problems
            return
        assert response.status_code == 200, response.text
        assert [
            made_of(result["transfer"]) if result["status"] == "created" else result["problem"]["type"]
            for result in results
        ] == [problems.get(index, each) for index, each in enumerate(expected)]

    @rule(account=accounts, status=st.sampled_from(["active", "active", "suspended", "closed"]))
    def set_status(self, account: int, status: str) -> None:
        owner = self.model.accounts[account].owner
        assert owner is not SYSTEM
        self.client.patch(f"/users/{owner}", json={"status": status}, headers=AS_OPERATOR)
        self.note_status(owner, status)

    def note_status(self, owner: int, status: str) -> None:
        """Note the new status; a user who was closed has no token any more, and gets one when active again."""
        self.model.status[owner] = status
        if status == "closed":
            self.without_token.add(owner)
        elif status == "active" and owner in self.without_token:
            self.without_token.remove(owner)
            issued = self.client.post(f"/users/{owner}/tokens", json={}, headers=AS_OPERATOR)
            self.headers[owner] = {"Authorization": f"Bearer {issued.json()['access_token']}"}

    @rule(account=accounts, credit=st.sampled_from([0, 0, 30, 100]))
    def set_credit(self, account: int, credit: int) -> None:
        response = self.client.patch(f"/accounts/{account}", json={"credit_limit": credit}, headers=AS_OPERATOR)
        known = self.model.accounts[account]
        if known.balance < -credit:
            assert problem_of(response) == (409, "credit-in-use")
            return
        known.credit = credit
        assert (response.status_code, response.json()["available"]) == (200, known.balance + credit)

    @rule(account=accounts)
    def close(self, account: int) -> None:
        owner = self.model.accounts[account].owner
        assert owner is not SYSTEM
        response = self.client.delete("/me", headers=self.headers[owner])
        if self.is_out(owner, response):
            return
        if self.model.accounts[account].balance:
            assert problem_of(response) == (409, "balance-not-zero")
        else:
            assert response.status_code == 204
            self.note_status(owner, "closed")

    @invariant()
    def balances_are_the_models(self) -> None:
        stored = self.rows("SELECT id, balance, version FROM accounts WHERE version > 0 ORDER BY id")
        expected = {id: account for id, account in sorted(self.model.accounts.items()) if account.entries}
        assert stored == [(id, account.balance, len(account.entries)) for id, account in expected.items()]

    def teardown(self) -> None:
        """Compare all statements in the end."""
        for id, account in self.model.accounts.items():
            statement = walk(self.client, f"/accounts/{id}/entries", AS_OPERATOR, limit=200)
            told = [(each["transfer_id"], each["amount"], each["balance_after"]) for each in statement]
            assert told == account.entries[::-1]


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
    )
    return Made(transfer["id"], wanted, transfer["amount"], transfer["debit_balance_after"])


def problem_of(response: Response) -> tuple[int, str]:
    """The status and type of a problem."""
    return response.status_code, str(response.json().get("type")).removeprefix("/problems/")


def test_the_service_and_the_model_agree(client: TestClient, rows: Rows, url: str) -> None:
    class CallersOfThisDatabase(Callers):
        pass

    CallersOfThisDatabase.client, CallersOfThisDatabase.rows, CallersOfThisDatabase.url = (
        client,
        staticmethod(rows),
        url,
    )
    run_state_machine_as_test(
        CallersOfThisDatabase,
        settings=settings(
            max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
