"""The service's rules of money, in plain Python, one call after the other."""

from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

MadeT = TypeVar("MadeT")

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
    """A transfer that somebody wants; reverses is the id of the one that it sends back, captures that of its hold.

    With cap, less will do. With a lifetime, in seconds, it is a hold.
    """

    debit: int
    credit: int
    amount: int
    memo: str | None = None
    cap: bool = False
    reference: str | None = None
    reverses: int | None = None
    captures: int | None = None
    lifetime: int | None = None

    @property
    def least(self) -> int:
        """The amount that must be there."""
        return 1 if self.cap else self.amount


@dataclass(frozen=True)
class Made:
    """A transfer that was made, its amount, and the balance that it left on the debit account."""

    id: int
    wanted: Wanted
    amount: int
    debit_balance_after: int | None


@dataclass
class Held:
    """A hold, and how it ended, if somebody ended it."""

    id: int
    wanted: Wanted
    amount: int
    expires_at: datetime
    ended: str | None = None


@dataclass(frozen=True)
class Refused:
    """The leg of a transaction that was refused, and why."""

    index: int
    problem: str


@dataclass
class Model:
    """All that is true: accounts by id, users' statuses, transfers and holds by id, what was made with which key."""

    accounts: dict[int, Account] = field(default_factory=dict)
    status: dict[int, str] = field(default_factory=dict)
    made: dict[int, Made] = field(default_factory=dict)
    holds: dict[int, Held] = field(default_factory=dict)
    keys: dict[tuple[str, int, str], tuple[Any, Any]] = field(default_factory=dict)
    """By kind, caller and key: what was wanted, and what was made."""
    of_operator: set[int] = field(default_factory=set)
    moment: datetime = datetime(2000, 1, 1, tzinfo=UTC)

    # --- what there is ------------------------------------------------------------------------------------------------

    def status_of(self, hold: Held) -> str:
        return hold.ended or ("expired" if hold.expires_at <= self.moment else "open")

    def held(self, id: int) -> int:
        """What of this account is held now."""
        open_holds = (each for each in self.holds.values() if self.status_of(each) == "open")
        return sum(each.amount for each in open_holds if each.wanted.debit == id)

    def available(self, id: int) -> int | None:
        account = self.accounts[id]
        return None if account.owner is SYSTEM else account.balance - self.held(id) + account.credit

    # --- what callers want --------------------------------------------------------------------------------------------

    def transfer(
        self, caller: int, wanted: Wanted, key: str | None, id: int, if_version: int | None = None
    ) -> str | Made:
        """Make the transfer under this id, or tell the problem that this must answer."""
        known: str | Made | None = self.replay("transfer", caller, key, wanted)
        return known or self.keep("transfer", caller, key, wanted, self.move(caller, wanted, id, if_version))

    def hold(self, caller: int, wanted: Wanted, key: str | None, id: int, if_version: int | None) -> str | Held:
        """Make the hold under this id, or tell the problem."""
        known: str | Held | None = self.replay("hold", caller, key, wanted)
        if known:
            return known
        problem = self.refuse(caller, wanted, if_version)
        if problem:
            return problem
        expires_at = self.moment + timedelta(seconds=wanted.lifetime or 0)
        held = self.holds[id] = Held(id, wanted, self.cut(wanted), expires_at)
        return self.keep("hold", caller, key, wanted, held)

    def transaction(
        self, caller: int, legs: list[Wanted], key: str | None, ids: list[int]
    ) -> str | Refused | list[Made]:
        """Make these transfers under these ids, or none, and tell which was refused."""
        known: str | list[Made] | None = self.replay("transaction", caller, key, legs)
        if known:
            return known
        before = deepcopy(self.__dict__)
        made = []
        for index, (leg, id) in enumerate(zip(legs, ids, strict=True)):
            outcome = self.move(caller, leg, id, None)
            if isinstance(outcome, str):
                self.__dict__ = before
                return Refused(index, outcome)
            made.append(outcome)
        return self.keep("transaction", caller, key, legs, made)

    def replay(self, kind: str, caller: int, key: str | None, wanted: Any) -> Any:
        """What was made with this key, the problem if that was something else, or None."""
        earlier = self.keys.get((kind, caller, key or ""))
        return earlier and (earlier[1] if earlier[0] == wanted else "idempotency-key-reused")

    def keep(self, kind: str, caller: int, key: str | None, wanted: Any, made: MadeT) -> MadeT:
        """Remember what was made with this key; a problem is forgotten."""
        if key and not isinstance(made, str):
            self.keys[kind, caller, key] = wanted, made
        return made

    def move(self, caller: int, wanted: Wanted, id: int, if_version: int | None) -> str | Made:
        problem = self.refuse(caller, wanted, if_version)
        if problem:
            return problem
        moved = self.cut(wanted)
        for number, amount in ((wanted.debit, -moved), (wanted.credit, moved)):
            account = self.accounts[number]
            account.balance += amount
            account.entries.append((id, amount, account.balance))
        if wanted.captures:
            self.holds[wanted.captures].ended = "captured"
        made = self.made[id] = Made(id, wanted, moved, self.accounts[wanted.debit].balance)
        self.of_operator |= {id} if caller == OPERATOR else set()
        return made

    def cut(self, wanted: Wanted) -> int:
        """The amount, or what of it is there, if that will do."""
        available = self.available(wanted.debit)
        return min(wanted.amount, available) if wanted.cap and available is not None else wanted.amount

    # --- what is refused ----------------------------------------------------------------------------------------------

    def refuse(self, caller: int, wanted: Wanted, if_version: int | None) -> str | None:
        if wanted.captures:
            return self.refuse_capture(wanted) or self.refuse_credit(caller, wanted)
        return self.refuse_debit(caller, wanted, if_version) or self.refuse_credit(caller, wanted)

    def refuse_capture(self, wanted: Wanted) -> str | None:
        hold = self.holds[wanted.captures or 0]
        if self.status_of(hold) != "open":
            return "hold-resolved"
        return "hold-exceeded" if wanted.amount > hold.amount else None

    def refuse_debit(self, caller: int, wanted: Wanted, if_version: int | None) -> str | None:
        debit, available = self.accounts[wanted.debit], self.available(wanted.debit)
        if caller not in (OPERATOR, debit.owner):
            return "account-not-found"
        if wanted.debit == wanted.credit:
            return "same-account"
        if caller != OPERATOR and debit.owner is not SYSTEM and self.status[debit.owner] != "active":
            return "account-not-active"
        if if_version not in (None, len(debit.entries)):
            return "version-mismatch"
        if wanted.reverses and any(each.wanted.reverses == wanted.reverses for each in self.made.values()):
            return "already-reversed"
        return "insufficient-funds" if available is not None and available < wanted.least else None

    def refuse_credit(self, caller: int, wanted: Wanted) -> str | None:
        debit, credit = self.accounts[wanted.debit], self.accounts[wanted.credit]
        if credit.owner is SYSTEM:
            return None if caller == OPERATOR else "account-not-found"
        if any(self.status[owner] != "active" for owner in (debit.owner, credit.owner) if owner is not SYSTEM):
            return "account-not-active"
        return None

    def reversal(self, caller: int, id: int) -> str | Wanted:
        """What sends this transfer back, or why this caller cannot."""
        made = self.made[id]
        original = made.wanted
        sender, recipient = (self.accounts[each].owner for each in (original.debit, original.credit))
        if caller not in (OPERATOR, sender, recipient):
            return "transfer-not-found"
        if caller not in (OPERATOR, recipient):
            return "receiver-only"
        if id in self.of_operator and caller != OPERATOR:
            return "operator-transfer"
        if original.reverses:
            return "reversal-not-reversible"
        return Wanted(original.credit, original.debit, made.amount, reverses=id)

    def capture(self, caller: int, id: int, amount: int | None) -> str | Wanted:
        """What takes so much of this hold, or why this caller cannot."""
        hold = self.holds[id]
        wanted = hold.wanted
        sender, recipient = (self.accounts[each].owner for each in (wanted.debit, wanted.credit))
        if caller not in (OPERATOR, sender, recipient):
            return "hold-not-found"
        if caller not in (OPERATOR, recipient):
            return "receiver-only"
        taken = amount or hold.amount
        return Wanted(wanted.debit, wanted.credit, taken, wanted.memo, reference=wanted.reference, captures=id)

    def void(self, caller: int, id: int) -> str | Held:
        """End this hold, or tell why this caller cannot."""
        wanted = self.capture(caller, id, None)
        if isinstance(wanted, str):
            return wanted
        hold = self.holds[id]
        if self.status_of(hold) != "open":
            return "hold-resolved"
        hold.ended = "voided"
        return hold
