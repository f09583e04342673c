"""The decision what a transfer does to two accounts, made in memory. Knows nothing of SQL."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from typing import Any

from models import now
from refusals import (
    AccountNotActive,
    AccountNotFound,
    AlreadyReversed,
    BalanceLimit,
    CurrencyMismatch,
    IdempotencyKeyReused,
    InsufficientFunds,
    Locked,
    Refusal,
    SameAccount,
)

OPERATOR = 0
"""The operator, where a caller is the id of a user."""

BALANCE_MAX = 2**53 - 1
"""No transfer takes a balance further than this from 0: as far as JSON numbers are exact everywhere (RFC 8259).

It is kept here and not by a CHECK, since a balance that is outside, from before there was this limit, may come back.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """A transfer that its initiator (a user's id, or OPERATOR) wants; the fields are columns of transfers.

    Where its key is used again, all of it has to be the same.
    """

    initiator: int
    debit_account_id: int
    credit_account_id: int
    amount: int
    memo: str | None = None
    idempotency_key: str | None = None
    reverses_id: int | None = None


CONTENT = tuple(field.name for field in fields(Order))
"""The fields that tell the transfers of one batch apart. Transfers that are alike in all of them may swap ids."""

content_of: Callable[[Order], tuple[Any, ...]] = attrgetter(*CONTENT)


@dataclass(slots=True)
class Holding:
    """A locked account; user_id is None for a system account, whose balance may go below 0."""

    id: int
    user_id: int | None
    currency: str
    balance: int
    version: int
    updated_at: datetime | None


@dataclass(slots=True)
class Posting:
    """A transfer that was made, and what it left on both accounts; id is 0 until it is stored."""

    order: Order
    currency: str
    debit_balance_after: int
    credit_balance_after: int
    created_at: datetime
    debit_seq: int = 0
    credit_seq: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Posted:
    """A posting, for one who wanted it: replayed where its key was used before, which then did this."""

    posting: Posting
    replayed: bool = False


class Ledger:
    """The locked accounts of a batch, and what its transfers did to them so far.

    `inactive` are the users who are not active, `earlier` the postings whose keys come again, `reversed` the ids of
    transfers that were reversed, `locked` the accounts that other transactions hold.
    """

    def __init__(
        self,
        holdings: Iterable[Holding],
        inactive: Set[int],
        earlier: Iterable[Posting],
        reversed: Iterable[int | None],
        locked: Set[int] = frozenset(),
    ) -> None:
        self.holdings: Mapping[int, Holding] = {holding.id: holding for holding in holdings}
        self.inactive = inactive
        self.by_key = {(posting.order.initiator, posting.order.idempotency_key): posting for posting in earlier}
        self.reversed = set(reversed)
        self.locked = locked
        self.postings: list[Posting] = []
        # Never before an account's newest entry, even if that was written by a machine whose clock is ahead of ours:
        # so the balance at an instant is the last one written until then.
        self.moment = max([now(), *(each.updated_at for each in self.holdings.values() if each.updated_at)])

    @property
    def changed(self) -> list[Holding]:
        """The accounts that the postings changed."""
        ids = {id for each in self.postings for id in (each.order.debit_account_id, each.order.credit_account_id)}
        return [self.holdings[id] for id in sorted(ids)]

    def post(self, order: Order) -> Posted | Refusal:
        """Move the money, or say why not; a key that was used answers what it did then."""
        key = (order.initiator, order.idempotency_key)
        if key in self.by_key:
            earlier = self.by_key[key]
            return Posted(earlier, replayed=True) if earlier.order == order else IdempotencyKeyReused()
        if self.locked and not self.locked.isdisjoint((order.debit_account_id, order.credit_account_id)):
            return Locked()
        debit, credit = self.holdings.get(order.debit_account_id), self.holdings.get(order.credit_account_id)
        # The sender's own side first: whoever cannot send learns nothing of the account that was to receive.
        refusal = self.judge_debit(order, debit)
        if refusal is not None:
            return refusal
        if debit is None or credit is None:
            return AccountNotFound()
        refusal = self.judge_credit(order, debit, credit)
        if refusal is not None:
            return refusal
        debit.balance -= order.amount
        credit.balance += order.amount
        debit.version += 1
        credit.version += 1
        posting = Posting(
            order, debit.currency, debit.balance, credit.balance, self.moment, debit.version, credit.version
        )
        self.postings.append(posting)
        if order.idempotency_key is not None:
            self.by_key[key] = posting
        if order.reverses_id is not None:
            self.reversed.add(order.reverses_id)
        return Posted(posting)

    def judge_debit(self, order: Order, debit: Holding | None) -> Refusal | None:
        """Return why the caller cannot send this amount from this account, to whomever, or None."""
        if debit is None or order.initiator not in (OPERATOR, debit.user_id):
            return AccountNotFound()
        if order.debit_account_id == order.credit_account_id:
            return SameAccount()
        # The operator pays out those who are not active: see judge_credit.
        if order.initiator != OPERATOR and debit.user_id in self.inactive:
            return AccountNotActive()
        if order.reverses_id in self.reversed:
            return AlreadyReversed()
        if debit.user_id is not None and debit.balance < order.amount:
            return InsufficientFunds()
        return None

    def judge_credit(self, order: Order, debit: Holding, credit: Holding) -> Refusal | None:
        """Return why this account cannot receive what the other one can send, or None."""
        is_to_system = credit.user_id is None
        if is_to_system and order.initiator != OPERATOR:
            return AccountNotFound()
        if debit.currency != credit.currency:
            return CurrencyMismatch()
        if not is_to_system and not self.inactive.isdisjoint({debit.user_id, credit.user_id}):
            return AccountNotActive()
        if debit.balance - order.amount < -BALANCE_MAX or credit.balance + order.amount > BALANCE_MAX:
            return BalanceLimit()
        return None
