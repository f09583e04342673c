"""Whatever callers do, in whatever order: the service and a plain Python model of it say the same."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
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

from tests.support.accounts import cash, register, walk
from tests.support.both import Both, body_of, made_of, problem_of
from tests.support.holds import Clock
from tests.support.model import OPERATOR, SYSTEM, Account, Wanted
from tests.support.service import AS_OPERATOR, Rows, audited

pytestmark = pytest.mark.slow

# 100 is all that each has in the beginning.
AMOUNTS = st.integers(1, 120) | st.just(100)


KEYS = st.sampled_from([None, None, None, None, "one", "two", "three", "four"])


MEMOS = st.sampled_from([None, "rent"])


PAYMENTS = st.sampled_from(["/deposits", "/deposits", "/withdrawals"])


REFERENCES = st.sampled_from([None, None, "order-1"])


# How many entries the sender has missed or, below 0, made up.
MISSED = st.sampled_from([None, None, None, 0, 1, -1])


CALLERS = st.sampled_from(["sender", "sender", "operator", "operator", "receiver"])


# Who may not end a hold, among those who may.
ENDERS = st.sampled_from([*["receiver"] * 5, *["operator"] * 3, "sender", "stranger"])


NOTHING = st.none()


# Of holds, or keys, so far; the newest first.
NUMBERS = st.integers(0, 9)


# Of a hold, none is "all".
PARTS = st.sampled_from([None, None, 0.5, 1, 2])


LIFETIMES = st.sampled_from([1, 5, 60, 60, 86400])


def between(
    pairs: st.SearchStrategy[Any], references: Any = NOTHING, lifetimes: Any = NOTHING, amounts: Any = AMOUNTS
) -> st.SearchStrategy[Wanted]:
    """Transfers, or holds with these lifetimes, between accounts that mostly differ."""
    fields = st.fixed_dictionaries({"amount": amounts, "memo": MEMOS, "cap": st.booleans(), "reference": references})
    return st.builds(
        lambda pair, fields, lifetime: Wanted(pair[0], pair[1], **fields, lifetime=lifetime), pairs, fields, lifetimes
    )


class Callers(Both, RuleBasedStateMachine):
    """All that callers may do, in any order."""

    accounts = Bundle("accounts")
    transfers = Bundle("transfers")
    pairs = st.lists(accounts, min_size=2, max_size=2, unique=True) | st.tuples(accounts, accounts)

    @initialize(target=accounts)
    def begin(self) -> MultipleResults[Any]:
        """Three users who have something, and for whom some of it is held."""
        accounts: list[Any] = [self.register() for _ in range(3)]
        for account in accounts:
            self.pay(account, 100, None, None, "/deposits")
        for debit, credit, lifetime in zip(accounts, [*accounts[1:], accounts[0]], (5, 60, 86400), strict=True):
            self.try_hold(OPERATOR, Wanted(debit, credit, 40, lifetime=lifetime), None)
        return multiple(*accounts)

    @rule(target=accounts)
    def register(self) -> int:
        holder = register(self.client, f"user{len(self.headers)}")
        self.model.status[holder.user_id] = "active"
        self.headers[holder.user_id] = holder.headers
        self.model.accounts[holder.account_id] = Account(holder.user_id)
        return holder.account_id

    @rule(target=transfers, account=accounts, amount=AMOUNTS, memo=MEMOS, key=KEYS, path=PAYMENTS)
    def pay(self, account: int, amount: int, memo: str | None, key: str | None, path: str) -> MultipleResults[int]:
        response = self.post(path, cash(account, amount, memo=memo), OPERATOR, key)
        [(system,)] = self.rows("SELECT id FROM accounts WHERE user_id IS NULL")
        self.model.accounts.setdefault(system, Account(SYSTEM))
        debit, credit = (system, account) if path == "/deposits" else (account, system)
        return self.compare(response, OPERATOR, Wanted(debit, credit, amount, memo), key)

    @rule(
        target=transfers,
        wanted=between(pairs, REFERENCES),
        key=KEYS,
        by=CALLERS,
        missed=MISSED,
    )
    def transfer(self, wanted: Wanted, key: str | None, by: str, missed: int | None) -> MultipleResults[int]:
        caller = self.caller(by, wanted)
        version = self.version(wanted, missed)
        response = self.post("/transfers", body_of(wanted) | {"if_version": version}, caller, key)
        return multiple() if self.is_out(caller, response) else self.compare(response, caller, wanted, key, version)

    @rule(wanted=between(pairs, REFERENCES, LIFETIMES), key=KEYS, by=CALLERS, missed=MISSED)
    def hold(self, wanted: Wanted, key: str | None, by: str, missed: int | None) -> None:
        self.try_hold(self.caller(by, wanted), wanted, key, self.version(wanted, missed))

    @precondition(lambda self: self.model.holds)
    @rule(target=transfers, number=NUMBERS, part=PARTS, key=KEYS, by=ENDERS)
    def capture(self, number: int, part: float | None, key: str | None, by: str) -> MultipleResults[int]:
        id, hold = self.choose(self.model.holds, number)
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

    @precondition(lambda self: self.model.holds)
    @rule(number=NUMBERS, by=ENDERS)
    def void(self, number: int, by: str) -> None:
        id, hold = self.choose(self.model.holds, number)
        caller = self.caller(by, hold.wanted)
        response = self.post(f"/holds/{id}/void", None, caller, None)
        if self.is_out(caller, response):
            return
        expected = self.model.void(caller, id)
        if isinstance(expected, str):
            assert problem_of(response)[1] == expected
        else:
            assert response.status_code == 200
            self.compare_hold(response.json(), expected, "voided")

    @rule(seconds=st.sampled_from([0.999999, 1, 1, 4, 5, 55, 86400]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds=seconds)
        self.model.moment = self.clock.tell()

    @rule(
        legs=st.lists(between(pairs, REFERENCES, amounts=st.integers(1, 40)), min_size=1, max_size=4),
        key=KEYS,
        by=st.sampled_from(["operator", "operator", "sender"]),
        target=transfers,
    )
    def transaction(self, legs: list[Wanted], key: str | None, by: str) -> MultipleResults[int]:
        return self.try_transaction(self.caller(by, legs[0]), legs, key)

    @precondition(lambda self: self.model.keys)
    @rule(number=NUMBERS, is_other=st.booleans())
    def send_again(self, number: int, *, is_other: bool) -> None:
        """Ask for what was made with a key, or for something else; a reversal or capture is asked for elsewhere."""
        (kind, caller, key), (wanted, _) = self.choose(self.model.keys, number)
        if kind == "hold":
            self.try_hold(caller, replace(wanted, lifetime=wanted.lifetime + is_other), key)
        elif kind == "transaction":
            self.try_transaction(caller, [*wanted, wanted[0]] if is_other else wanted, key)
        elif not wanted.reverses and not wanted.captures:
            wanted = replace(wanted, cap=wanted.cap != is_other)
            response = self.post("/transfers", body_of(wanted), caller, key)
            if not self.is_out(caller, response):
                self.compare(response, caller, wanted, key)

    @rule(target=transfers, id=transfers, key=KEYS, by=CALLERS)
    def reverse(self, id: int, key: str | None, by: str) -> MultipleResults[int]:
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
            st.tuples(between(pairs), KEYS),
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
        with self.audited():
            pass


def test_the_service_and_the_model_agree(
    client: TestClient, rows: Rows, url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    class CallersOfThisDatabase(Callers):
        audited = staticmethod(partial(audited, url, request))

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
            max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
