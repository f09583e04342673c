"""Whatever callers do, in whatever order: the service and a plain Python model of it say the same."""

from copy import deepcopy
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
    precondition,
    rule,
    run_state_machine_as_test,
)
from starlette.testclient import TestClient

from tests.support.accounts import Headers, cash, order, register, walk
from tests.support.holds import Clock, parsed
from tests.support.model import OPERATOR, SYSTEM, Account, Held, Made, Model, Refused, Wanted
from tests.support.service import AS_OPERATOR, Rows, audited, empty

pytestmark = pytest.mark.slow

# 100 is all that each has in the beginning.
AMOUNTS = st.integers(1, 120) | st.just(100)


KEYS = st.sampled_from([None, None, "one", "two", "three"])


MEMOS = st.sampled_from([None, "rent"])


PAYMENTS = st.sampled_from(["/deposits", "/deposits", "/withdrawals"])


REFERENCES = st.sampled_from([None, None, "order-1"])


# How many entries the sender has missed or, below 0, made up.
MISSED = st.sampled_from([None, None, None, 0, 1, -1])


CALLERS = st.sampled_from(["sender", "sender", "operator", "operator", "receiver"])


# Who may not end a hold, among those who may.
ENDERS = st.sampled_from(["receiver", "receiver", "operator", "sender", "stranger"])


LIFETIMES = st.sampled_from([1, 5, 60, 86400])


class Callers(RuleBasedStateMachine):
    """Calls the service and the model alike."""

    accounts = Bundle("accounts")
    transfers = Bundle("transfers")
    holds = Bundle("holds")
    client: TestClient
    clock: Clock
    rows: Rows
    url: str

    def audit(self) -> None:
        """Prove that the books are right."""
        raise NotImplementedError

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
    ) -> int | MultipleResults[int]:
        """Expect of a transfer what the model says; its id, where it was made."""
        used = ("transfer", caller, key) in self.model.keys
        expected = self.model.transfer(caller, wanted, key, response.json().get("id"), if_version)
        if not is_made(response, expected, used):
            return multiple()
        assert made_of(response.json()) == expected
        return int(response.json()["id"])

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
        version = self.version(wanted, missed)
        response = self.post("/transfers", body_of(wanted) | {"if_version": version}, caller, key)
        return multiple() if self.is_out(caller, response) else self.compare(response, caller, wanted, key, version)

    @rule(
        target=holds,
        wanted=st.builds(Wanted, accounts, accounts, AMOUNTS, MEMOS, st.booleans(), REFERENCES, lifetime=LIFETIMES),
        key=KEYS,
        by=CALLERS,
        missed=MISSED,
    )
    def hold(self, wanted: Wanted, key: str | None, by: str, missed: int | None) -> int | MultipleResults[int]:
        return self.try_hold(self.caller(by, wanted), wanted, key, self.version(wanted, missed))

    def try_hold(
        self, caller: int, wanted: Wanted, key: str | None, version: int | None = None
    ) -> int | MultipleResults[int]:
        body = body_of(wanted) | {"expires_in": wanted.lifetime, "if_version": version}
        response = self.post("/holds", body, caller, key)
        if self.is_out(caller, response):
            return multiple()
        used = ("hold", caller, key) in self.model.keys
        expected = self.model.hold(caller, wanted, key, response.json().get("id"), version)
        if not is_made(response, expected, used):
            return multiple()
        assert isinstance(expected, Held)
        self.compare_hold(response.json(), expected, "open")
        return multiple() if used else expected.id

    def compare_hold(self, shown: dict[str, Any], hold: Held, status: str) -> None:
        wanted = hold.wanted
        assert (shown["id"], shown["amount"], shown["status"]) == (hold.id, hold.amount, status)
        assert (shown["debit_account_id"], shown["credit_account_id"]) == (wanted.debit, wanted.credit)
        assert (shown["memo"], shown["reference"]) == (wanted.memo, wanted.reference)
        assert shown["asked_amount"] == (wanted.amount if wanted.cap else None)
        assert parsed(shown["expires_at"]) == hold.expires_at
        assert (shown["resolved_at"] is None) == (status == "open")

    @rule(
        target=transfers,
        id=holds,
        part=st.sampled_from([None, None, 0.5, 1, 2]),
        key=KEYS,
        by=ENDERS,
    )
    def capture(self, id: int, part: float | None, key: str | None, by: str) -> int | MultipleResults[int]:
        hold = self.model.holds[id]
        caller = self.caller(by, hold.wanted)
        amount = None if part is None else max(1, int(part * hold.amount))
        response = self.post(f"/holds/{id}/capture", amount and {"amount": amount}, caller, key)
        if self.is_out(caller, response):
            return multiple()
        wanted = self.model.capture(caller, id, amount)
        if isinstance(wanted, str):
            assert problem_of(response)[1] == wanted
            return multiple()
        return self.compare(response, caller, wanted, key)

    @rule(id=holds, by=ENDERS)
    def void(self, id: int, by: str) -> None:
        caller = self.caller(by, self.model.holds[id].wanted)
        response = self.post(f"/holds/{id}/void", None, caller, None)
        if self.is_out(caller, response):
            return
        expected = self.model.void(caller, id)
        if isinstance(expected, str):
            assert problem_of(response)[1] == expected
        else:
            assert response.status_code == 200
            self.compare_hold(response.json(), expected, "voided")

    @rule(seconds=st.sampled_from([0.999999, 1, 4, 5, 60, 86400]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds=seconds)
        self.model.moment = self.clock.tell()

    @rule(
        legs=st.lists(
            st.builds(Wanted, accounts, accounts, AMOUNTS, MEMOS, st.booleans(), REFERENCES), min_size=1, max_size=4
        ),
        key=KEYS,
        by=CALLERS,
        target=transfers,
    )
    def transaction(self, legs: list[Wanted], key: str | None, by: str) -> MultipleResults[int]:
        return self.try_transaction(self.caller(by, legs[0]), legs, key)

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

    @precondition(lambda self: self.model.keys)
    @rule(number=st.integers(0, 20))
    def send_again(self, number: int) -> None:
        """Ask again for something that was made with a key; a reversal or capture is asked for elsewhere."""
        keys = list(self.model.keys)
        kind, caller, key = keys[number % len(keys)]
        wanted, _ = self.model.keys[kind, caller, key]
        if kind == "hold":
            self.try_hold(caller, wanted, key)
        elif kind == "transaction":
            self.try_transaction(caller, wanted, key)
        elif not wanted.reverses and not wanted.captures:
            response = self.post("/transfers", body_of(wanted), caller, key)
            if not self.is_out(caller, response):
                self.compare(response, caller, wanted, key)

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
        known, held = self.model.accounts[account], self.model.held(account)
        if known.balance - held < -credit:
            assert problem_of(response) == (409, "credit-in-use")
            return
        known.credit = credit
        shown = response.json()
        assert (response.status_code, shown["held"], shown["available"]) == (200, held, known.balance - held + credit)

    @rule(account=accounts)
    def close(self, account: int) -> None:
        owner = self.model.accounts[account].owner
        assert owner is not SYSTEM
        response = self.client.delete("/me", headers=self.headers[owner])
        if self.is_out(owner, response):
            return
        if self.model.accounts[account].balance or self.model.held(account):
            assert problem_of(response) == (409, "balance-not-zero")
        else:
            assert response.status_code == 204
            self.note_status(owner, "closed")

    @invariant()
    def accounts_are_the_models(self) -> None:
        model = self.model
        assert [
            (each["id"], each["balance"], each["version"], each["held"], each["available"])
            for each in walk(self.client, "/accounts", AS_OPERATOR, limit=200)
        ] == [
            (id, account.balance, len(account.entries), model.held(id), model.available(id))
            for id, account in sorted(model.accounts.items())
        ]

    def teardown(self) -> None:
        """Compare all holds and statements in the end, and audit the books."""
        for id, hold in self.model.holds.items():
            shown = self.client.get(f"/holds/{id}", headers=AS_OPERATOR).json()
            self.compare_hold(shown, hold, self.model.status_of(hold))
        for id, account in self.model.accounts.items():
            statement = walk(self.client, f"/accounts/{id}/entries", AS_OPERATOR, limit=200)
            told = [(each["transfer_id"], each["amount"], each["balance_after"]) for each in statement]
            assert told == account.entries[::-1]
        self.audit()


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
    return Made(transfer["id"], wanted, transfer["amount"], transfer["debit_balance_after"])


def problem_of(response: Response) -> tuple[int, str]:
    """The status and type of a problem."""
    return response.status_code, str(response.json().get("type")).removeprefix("/problems/")


def test_the_service_and_the_model_agree(
    client: TestClient, rows: Rows, url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    class CallersOfThisDatabase(Callers):
        def audit(self) -> None:
            with audited(url, request):
                pass

    CallersOfThisDatabase.client, CallersOfThisDatabase.rows, CallersOfThisDatabase.url = (
        client,
        staticmethod(rows),
        url,
    )
    CallersOfThisDatabase.clock = Clock(monkeypatch)
    CallersOfThisDatabase.clock.stop()
    run_state_machine_as_test(
        CallersOfThisDatabase,
        settings=settings(
            max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
