"""The effect of transfers on accounts, decided in memory. Knows nothing of SQL."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Generic, TypeVar

from fields import HoldStatus
from refusals import (
    AccountNotActive,
    AccountNotFound,
    AlreadyReversed,
    BalanceLimit,
    CurrencyMismatch,
    HoldExceeded,
    HoldResolved,
    IdempotencyKeyReused,
    InsufficientFunds,
    Locked,
    Refusal,
    SameAccount,
    TransactionRefused,
    VersionMismatch,
)

OPERATOR = 0
"""The operator as a caller or initiator, which otherwise is a user's id."""

BALANCE_MAX = 2**53 - 1
"""The limit of a balance in both directions: up to here, JSON numbers are exact everywhere (RFC 8259).

It is no CHECK constraint, so that a balance from before this limit may still be reduced.
"""


@dataclass(frozen=True, slots=True)
class Actor:
    """The operator as it made a call: with a key or, with None, with OPERATOR_TOKEN."""

    key_id: int | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Order:
    """A transfer that its initiator (a user's id, or OPERATOR) asks for; all fields but the last two are columns.

    Where its key is used again, these must be the same. With asked_amount, the amount may be cut to what is
    available; in an order that was not judged yet, both are the same. With hold_id, it captures this hold.
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
    hold_id: int | None = None
    if_version: int | None = field(default=None, compare=False)
    actor: Actor | None = field(default=None, compare=False)

    def as_asked(self) -> "Order":
        """Return it as it was before its amount was cut."""
        return self if self.asked_amount is None else replace(self, amount=self.asked_amount)


CONTENT = tuple(each.name for each in fields(Order) if each.compare)
"""The names of the columns."""

PLAIN = CONTENT.index("reference")
"""The number of those that every transfer has; the others come after them."""

content_of: Callable[[Order], tuple[Any, ...]] = attrgetter(*CONTENT)


@dataclass(frozen=True, slots=True)
class HoldOrder(Order):
    """A transfer that may be captured until the hold expires: until then, its amount is held."""

    lifetime: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class VoidOrder:
    """A hold that its recipient, or the operator, wants to end without a transfer."""

    hold_id: int
    debit_account_id: int
    actor: Actor | None = None


@dataclass(frozen=True, slots=True)
class LinkedOrders:
    """Transfers that their initiator wants together or not at all."""

    initiator: int
    legs: Sequence[Order]
    idempotency_key: str | None = None
    reference: str | None = None
    metadata: dict[str, str] | None = None

    def as_asked(self) -> "LinkedOrders":
        """Return them as they were before their amounts were cut."""
        return replace(self, legs=[leg.as_asked() for leg in self.legs])


AnyOrder = Order | VoidOrder | LinkedOrders


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
    held: int = 0

    @property
    def available(self) -> int:
        """What may leave the account, if it is a user's."""
        return self.balance - self.held + self.credit_limit


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
    transaction_id: int | None = None


@dataclass(slots=True)
class HoldPosting:
    """A hold, as it is in its row, or is to be."""

    id: int
    order: HoldOrder
    currency: str
    created_at: datetime
    status: HoldStatus = "open"
    resolved_at: datetime | None = None
    voided_by: Actor | None = None

    @property
    def expires_at(self) -> datetime:
        """The instant from which it counts no more."""
        return self.created_at + self.order.lifetime


@dataclass(slots=True)
class LinkedPostings:
    """A transaction: transfers that were made together."""

    id: int
    order: LinkedOrders
    postings: Sequence[Posting]
    created_at: datetime


MadeT = TypeVar("MadeT")


@dataclass(frozen=True, slots=True)
class Posted(Generic[MadeT]):
    """The outcome of an order that was not refused; replayed means that an earlier order with its key was posted."""

    posting: MadeT
    replayed: bool = False


class Ledger:
    """The locked accounts of a batch, changed by one order after the other at one moment, not before the given one.

    At the given moment, no hold counts as open, and in its account's held, that has expired. `inactive` are the users
    who are not active, `earlier` that which was made with keys that are used again, `reversed` the ids of transfers
    that were reversed, `locked` the accounts that other transactions hold, `holds` those that orders name, `freed` the
    accounts that have them no more since they expired, and `ids` those for new rows of each kind of order.
    """

    def __init__(
        self,
        holdings: Iterable[Holding],
        inactive: Set[int],
        earlier: Iterable[Posting | HoldPosting | LinkedPostings],
        reversed: Iterable[int | None],
        locked: Set[int] = frozenset(),
        *,
        holds: Iterable[HoldPosting] = (),
        freed: Set[int] = frozenset(),
        moment: datetime,
        ids: Mapping[type, Iterable[int]],
    ) -> None:
        self.holdings: Mapping[int, Holding] = {holding.id: holding for holding in holdings}
        self.inactive = inactive
        self.by_key: dict[Any, Posting | HoldPosting | LinkedPostings] = {
            (type(made.order), made.order.initiator, made.order.idempotency_key): made for made in earlier
        }
        self.reversed = set(reversed)
        self.locked = locked
        self.freed = freed
        self.holds = {hold.id: hold for hold in holds}
        # Never before an account's newest entry, even if the clock of the machine that wrote it is ahead: so the
        # balance at an instant is the last one written until then.
        self.moment = max([moment, *(each.updated_at for each in self.holdings.values() if each.updated_at)])
        self.ids = {kind: iter(each) for kind, each in ids.items()}
        self.postings: list[Posting] = []
        self.transactions: list[LinkedPostings] = []
        self.new_holds: list[HoldPosting] = []
        self.resolved: list[HoldPosting] = []

    @property
    def holds_changed(self) -> bool:
        """Whether any account holds more or less than before."""
        return bool(self.new_holds or self.resolved or self.freed)

    @property
    def changed(self) -> list[Holding]:
        """The accounts that the orders changed, and those where holds had expired, in order of id."""
        ids = {id for each in self.postings for id in (each.order.debit_account_id, each.order.credit_account_id)}
        ids |= {each.order.debit_account_id for each in (*self.new_holds, *self.resolved)}
        return [self.holdings[id] for id in sorted(ids | self.freed)]

    def post(self, order: AnyOrder) -> Posted[Any] | Refusal:
        """Do what is ordered, or return why not; a key that was used before is replayed."""
        if isinstance(order, VoidOrder):
            return self._void(order)
        key = (type(order), order.initiator, order.idempotency_key)
        if key in self.by_key:
            earlier = self.by_key[key]
            return Posted(earlier, replayed=True) if earlier.order.as_asked() == order else IdempotencyKeyReused()
        made = self._post_legs(order) if isinstance(order, LinkedOrders) else self._post(order)
        if isinstance(made, Refusal):
            return made
        if order.idempotency_key is not None:
            self.by_key[key] = made
        return Posted(made)

    def _post(self, order: Order) -> Posting | HoldPosting | Refusal:
        """Make one transfer or hold."""
        if self.locked and not self.locked.isdisjoint((order.debit_account_id, order.credit_account_id)):
            return Locked()
        debit, credit = self.holdings.get(order.debit_account_id), self.holdings.get(order.credit_account_id)
        if debit is None:
            return AccountNotFound()
        if order.asked_amount is not None and debit.user_id is not None:
            # Where there is nothing at all, 1 is refused.
            order = replace(order, amount=max(1, min(order.asked_amount, debit.available)))
        # The debit account first: a caller who cannot send learns nothing about the credit account.
        judge_debit = self._judge_debit if order.hold_id is None else self._judge_capture
        refusal = judge_debit(order, debit) or self._judge_credit(order, debit, credit)
        if refusal is not None:
            return refusal
        assert credit is not None
        return self._hold(order, debit) if isinstance(order, HoldOrder) else self._move(order, debit, credit)

    def _move(self, order: Order, debit: Holding, credit: Holding) -> Posting:
        debit.balance -= order.amount
        credit.balance += order.amount
        debit.version += 1
        credit.version += 1
        posting = Posting(
            next(self.ids[Order]),
            order,
            debit.currency,
            debit.balance,
            credit.balance,
            self.moment,
            debit.version,
            credit.version,
        )
        self.postings.append(posting)
        if order.reverses_id is not None:
            self.reversed.add(order.reverses_id)
        if order.hold_id is not None:
            self._resolve(self.holds[order.hold_id], "captured")
        return posting

    def _hold(self, order: HoldOrder, debit: Holding) -> HoldPosting:
        debit.held += order.amount
        hold = HoldPosting(next(self.ids[HoldOrder]), order, debit.currency, self.moment)
        self.new_holds.append(hold)
        return hold

    def _resolve(self, hold: HoldPosting, status: HoldStatus) -> None:
        hold.status, hold.resolved_at = status, self.moment
        self.holdings[hold.order.debit_account_id].held -= hold.order.amount
        self.resolved.append(hold)

    def _void(self, order: VoidOrder) -> Posted[HoldPosting] | Refusal:
        if order.debit_account_id in self.locked:
            return Locked()
        hold = self.holds[order.hold_id]
        if hold.status != "open":
            return HoldResolved(hold.status)
        self._resolve(hold, "voided")
        hold.voided_by = order.actor
        return Posted(hold)

    def _post_legs(self, order: LinkedOrders) -> LinkedPostings | Refusal:
        """Make the transfers one after the other; where one is refused, take those before it back."""
        made: list[Posting] = []
        for index, leg in enumerate(order.legs):
            outcome = self._post(leg)
            if isinstance(outcome, Posting):
                made.append(outcome)
            elif isinstance(outcome, Refusal):
                self._take_back(made)
                return outcome if isinstance(outcome, Locked) else TransactionRefused([(index, outcome)])
        id = next(self.ids[LinkedOrders])
        for each in made:
            each.transaction_id = id
        done = replace(order, legs=[each.order for each in made])
        self.transactions.append(LinkedPostings(id, done, made, self.moment))
        return self.transactions[-1]

    def _take_back(self, newest: Sequence[Posting]) -> None:
        for order in (posting.order for posting in newest):
            for id, amount in ((order.debit_account_id, order.amount), (order.credit_account_id, -order.amount)):
                self.holdings[id].balance += amount
                self.holdings[id].version -= 1
        del self.postings[len(self.postings) - len(newest) :]

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

    def _judge_capture(self, order: Order, debit: Holding) -> Refusal | None:
        """Return why this hold cannot be captured, or None. That its initiator may, was judged before."""
        hold = self.holds[order.hold_id or 0]
        if hold.status != "open":
            return HoldResolved(hold.status)
        return HoldExceeded() if order.amount > hold.order.amount else None

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
        if isinstance(order, HoldOrder) and debit.held + order.amount > BALANCE_MAX:
            return BalanceLimit()
        return None
