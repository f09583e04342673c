"""The effect of transfers on accounts, decided in memory. Knows nothing of SQL."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
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
    VersionMismatch,
)

OPERATOR = 0
"""The operator as a caller or initiator, which otherwise is a user's id."""

BALANCE_MAX = 2**53 - 1
"""The limit of a balance in both directions: up to here, JSON numbers are exact everywhere (RFC 8259).

It is no CHECK constraint, so that a balance from before this limit may still be reduced.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """A transfer that its initiator (a user's id, or OPERATOR) asks for; all fields but if_version are columns.

    Where its key is used again, these must be the same. With asked_amount, the amount may be cut to what is
    available; in an order that was not judged yet, both are the same.
    """

    initiator: int
    debit_account_id: int
    credit_account_id: int
    amount: int
    memo: str | None = None
    idempotency_key: str | None = None
    reverses_id: int | None = None
    reference: str | None = None
    metadata: dict[str, str] | None = None
    asked_amount: int | None = None
    if_version: int | None = field(default=None, compare=False)

    def as_asked(self) -> "Order":
        """Return it as it was before its amount was cut."""
        return self if self.asked_amount is None else replace(self, amount=self.asked_amount)


CONTENT = tuple(each.name for each in fields(Order) if each.compare)
"""The names of the columns."""

PLAIN = CONTENT.index("reference")
"""The number of those that every transfer has; the others come after them."""

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
    credit_limit: int = 0

    @property
    def available(self) -> int:
        """What may leave the account, if it is a user's."""
        return self.balance + self.credit_limit


@dataclass(slots=True)
class Posting:
    """A transfer that was made, with the balances after it."""

    id: int
    order: Order
    currency: str
    debit_balance_after: int
    credit_balance_after: int
    created_at: datetime
    debit_seq: int = 0
    credit_seq: int = 0


@dataclass(frozen=True, slots=True)
class Posted:
    """The outcome of an order that was not refused; replayed means that an earlier order with its key was posted."""

    posting: Posting
    replayed: bool = False


class Ledger:
    """The locked accounts of a batch, changed by one order after the other.

    `inactive` are the users who are not active, `earlier` the postings whose keys are used again, `reversed` the ids of
    transfers that were reversed, `locked` the accounts that other transactions hold, `ids` those for new transfers.
    """

    def __init__(
        self,
        holdings: Iterable[Holding],
        inactive: Set[int],
        earlier: Iterable[Posting],
        reversed: Iterable[int | None],
        locked: Set[int] = frozenset(),
        *,
        ids: Iterable[int],
    ) -> None:
        self.holdings: Mapping[int, Holding] = {holding.id: holding for holding in holdings}
        self.inactive = inactive
        self.by_key = {(posting.order.initiator, posting.order.idempotency_key): posting for posting in earlier}
        self.reversed = set(reversed)
        self.locked = locked
        self.ids = iter(ids)
        self.postings: list[Posting] = []
        # Never before an account's newest entry, even if the clock of the machine that wrote it is ahead: so the
        # balance at an instant is the last one written until then.
        self.moment = max([now(), *(each.updated_at for each in self.holdings.values() if each.updated_at)])

    @property
    def changed(self) -> list[Holding]:
        """The accounts that the postings changed, in order of id."""
        ids = {id for each in self.postings for id in (each.order.debit_account_id, each.order.credit_account_id)}
        return [self.holdings[id] for id in sorted(ids)]

    def post(self, order: Order) -> Posted | Refusal:
        """Move the money, or return why not; a key that was used before is replayed."""
        key = (order.initiator, order.idempotency_key)
        if key in self.by_key:
            earlier = self.by_key[key]
            return Posted(earlier, replayed=True) if earlier.order.as_asked() == order else IdempotencyKeyReused()
        if self.locked and not self.locked.isdisjoint((order.debit_account_id, order.credit_account_id)):
            return Locked()
        debit, credit = self.holdings.get(order.debit_account_id), self.holdings.get(order.credit_account_id)
        if debit is None:
            return AccountNotFound()
        if order.asked_amount is not None and debit.user_id is not None:
            # Where there is nothing at all, 1 is refused.
            order = replace(order, amount=max(1, min(order.asked_amount, debit.available)))
        # The debit account first: a caller who cannot send learns nothing about the credit account.
        refusal = self._judge_debit(order, debit) or self._judge_credit(order, debit, credit)
        if refusal is not None:
            return refusal
        assert credit is not None
        debit.balance -= order.amount
        credit.balance += order.amount
        debit.version += 1
        credit.version += 1
        posting = Posting(
            next(self.ids),
            order,
            debit.currency,
            debit.balance,
            credit.balance,
            self.moment,
            debit.version,
            credit.version,
        )
        self.postings.append(posting)
        if order.idempotency_key is not None:
            self.by_key[key] = posting
        if order.reverses_id is not None:
            self.reversed.add(order.reverses_id)
        return Posted(posting)

    def _judge_debit(self, order: Order, debit: Holding) -> Refusal | None:
        """Return why the caller cannot send this amount from this account, whatever the credit account, or None."""
        if order.initiator not in (OPERATOR, debit.user_id):
            return AccountNotFound()
        if order.debit_account_id == order.credit_account_id:
            return SameAccount()
        # The operator may pay out users who are not active: see _judge_credit.
        if order.initiator != OPERATOR and debit.user_id in self.inactive:
            return AccountNotActive()
        if order.if_version not in (None, debit.version):
            return VersionMismatch()
        if order.reverses_id in self.reversed:
            return AlreadyReversed()
        if debit.user_id is not None and debit.available < order.amount:
            return InsufficientFunds()
        return None

    def _judge_credit(self, order: Order, debit: Holding, credit: Holding | None) -> Refusal | None:
        """Return why the credit account cannot receive the amount, or None."""
        if credit is None or (credit.user_id is None and order.initiator != OPERATOR):
            return AccountNotFound()
        if debit.currency != credit.currency:
            return CurrencyMismatch()
        if credit.user_id is not None and not self.inactive.isdisjoint({debit.user_id, credit.user_id}):
            return AccountNotActive()
        if debit.balance - order.amount < -BALANCE_MAX or credit.balance + order.amount > BALANCE_MAX:
            return BalanceLimit()
        return None
