"""What a transfer does, decided in memory: no money is made or lost, and who may not know learns nothing."""

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import (
    BALANCE_MAX,
    OPERATOR,
    AnyOrder,
    Holding,
    HoldOrder,
    HoldPosting,
    Ledger,
    LinkedOrders,
    LinkedPostings,
    Order,
    Posted,
    Posting,
    VoidOrder,
)
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

ALICE, BOB, EVE = 1, 2, 3


SYSTEM_ID, ALICES, BOBS, EVES, DOLLARS, MISSING = 10, 11, 12, 13, 14, 99


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def now_with_ids() -> dict[str, Any]:
    return {"moment": datetime.now(UTC), "ids": {kind: count(1) for kind in (Order, HoldOrder, LinkedOrders)}}


def open_ledger(inactive: frozenset[int] = frozenset({EVE}), reversed: tuple[int, ...] = (7,)) -> Ledger:
    """Alice holds 100 EUR, Bob 50 EUR and some dollars, Eve 30 EUR; Eve is not active."""
    holdings = [
        Holding(SYSTEM_ID, None, "EUR", -180, 3, LONG_AGO),
        Holding(ALICES, ALICE, "EUR", 100, 1, LONG_AGO),
        Holding(BOBS, BOB, "EUR", 50, 1, LONG_AGO),
        Holding(EVES, EVE, "EUR", 30, 1, LONG_AGO),
        Holding(DOLLARS, BOB, "USD", 5, 1, None),
    ]
    return Ledger(holdings, inactive, [], reversed, **now_with_ids())


def posting_of(outcome: Posted[Posting] | Refusal) -> Posting:
    """What was done now."""
    assert isinstance(outcome, Posted)
    assert not outcome.replayed
    return outcome.posting


@pytest.mark.parametrize(
    ("order", "refusal"),
    [
        (Order(ALICE, ALICES, MISSING, 1), AccountNotFound),
        (Order(ALICE, MISSING, ALICES, 1), AccountNotFound),
        # Whose account it is comes before all that the account would tell.
        (Order(ALICE, BOBS, BOBS, 1), AccountNotFound),
        (Order(ALICE, DOLLARS, ALICES, 1), AccountNotFound),
        (Order(ALICE, EVES, ALICES, 1), AccountNotFound),
        (Order(ALICE, BOBS, ALICES, 51), AccountNotFound),
        (Order(ALICE, ALICES, SYSTEM_ID, 1), AccountNotFound),
        (Order(ALICE, SYSTEM_ID, ALICES, 1), AccountNotFound),
        (Order(ALICE, ALICES, ALICES, 101), SameAccount),
        (Order(ALICE, ALICES, SYSTEM_ID, 1, reverses_id=8), AccountNotFound),
        (Order(ALICE, ALICES, DOLLARS, 100), CurrencyMismatch),
        (Order(ALICE, ALICES, EVES, 100), AccountNotActive),
        # The sender's own side comes before all that the other account would tell.
        *((Order(ALICE, ALICES, other, 101), InsufficientFunds) for other in (BOBS, MISSING, SYSTEM_ID, DOLLARS, EVES)),
        *((Order(EVE, EVES, other, 1), AccountNotActive) for other in (BOBS, MISSING, SYSTEM_ID, DOLLARS, ALICES)),
        (Order(ALICE, ALICES, BOBS, 101, reverses_id=7), AlreadyReversed),
        (Order(OPERATOR, EVES, ALICES, 1), AccountNotActive),
        (Order(OPERATOR, SYSTEM_ID, EVES, 1), AccountNotActive),
        (Order(OPERATOR, SYSTEM_ID, SYSTEM_ID, 1), SameAccount),
        (Order(OPERATOR, EVES, SYSTEM_ID, 31), InsufficientFunds),
    ],
)
def test_what_is_refused_changes_nothing(order: Order, refusal: type[Refusal]) -> None:
    ledger = open_ledger()
    before = open_ledger().holdings

    assert isinstance(ledger.post(order), refusal)

    assert ledger.holdings == before
    assert ledger.postings == []
    assert ledger.changed == []


@pytest.mark.parametrize(
    "order",
    [
        Order(ALICE, ALICES, BOBS, 100),
        Order(OPERATOR, BOBS, ALICES, 50),
        Order(OPERATOR, SYSTEM_ID, ALICES, 1_000_000),
        # Who is not active can be paid out.
        Order(OPERATOR, EVES, SYSTEM_ID, 30),
    ],
)
def test_what_is_posted_moves_the_amount_between_two_accounts(order: Order) -> None:
    ledger = open_ledger()
    before = {id: holding.balance for id, holding in ledger.holdings.items()}

    posting = posting_of(ledger.post(order))

    moved = {order.debit_account_id: -order.amount, order.credit_account_id: order.amount}
    after = {id: holding.balance for id, holding in ledger.holdings.items()}
    assert after == {id: balance + moved.get(id, 0) for id, balance in before.items()}
    assert posting.debit_balance_after == after[order.debit_account_id]
    assert posting.credit_balance_after == after[order.credit_account_id]
    assert [holding.id for holding in ledger.changed] == sorted(moved)


def test_a_balance_goes_to_the_limit_and_no_further() -> None:
    ledger = open_ledger()
    ledger.holdings[SYSTEM_ID].balance = 10 - BALANCE_MAX
    ledger.holdings[ALICES].balance = BALANCE_MAX - 5

    assert isinstance(ledger.post(Order(OPERATOR, SYSTEM_ID, ALICES, 6)), BalanceLimit)
    assert isinstance(ledger.post(Order(OPERATOR, SYSTEM_ID, ALICES, 5)), Posted)
    assert isinstance(ledger.post(Order(OPERATOR, SYSTEM_ID, BOBS, 6)), BalanceLimit)
    assert isinstance(ledger.post(Order(OPERATOR, SYSTEM_ID, BOBS, 5)), Posted)
    assert (ledger.holdings[SYSTEM_ID].balance, ledger.holdings[ALICES].balance) == (-BALANCE_MAX, BALANCE_MAX)


def test_a_balance_past_the_limit_can_come_back_and_go_no_further() -> None:
    ledger = open_ledger()
    ledger.holdings[SYSTEM_ID].balance = -3 * BALANCE_MAX
    ledger.holdings[ALICES].balance = 3 * BALANCE_MAX

    assert isinstance(ledger.post(Order(OPERATOR, SYSTEM_ID, BOBS, 1)), BalanceLimit)
    assert isinstance(ledger.post(Order(BOB, BOBS, ALICES, 1)), BalanceLimit)
    assert isinstance(ledger.post(Order(OPERATOR, ALICES, SYSTEM_ID, BALANCE_MAX)), Posted)
    assert isinstance(ledger.post(Order(ALICE, ALICES, BOBS, 1)), Posted)


def test_what_is_held_goes_to_the_limit_and_no_further() -> None:
    ledger = open_ledger()

    def hold(amount: int) -> Posted[Any] | Refusal:
        return ledger.post(HoldOrder(OPERATOR, SYSTEM_ID, ALICES, amount))

    assert [type(hold(each)) for each in (BALANCE_MAX - 200, 201, 200, 1)] == [
        Posted,
        BalanceLimit,
        Posted,
        BalanceLimit,
    ]
    assert ledger.holdings[SYSTEM_ID].held == BALANCE_MAX


def test_a_key_answers_what_it_did_even_where_that_would_now_be_refused() -> None:
    order = Order(ALICE, ALICES, BOBS, 100, "rent", "key")
    first = posting_of(open_ledger().post(order))
    ledger = Ledger(open_ledger().holdings.values(), frozenset({ALICE, BOB}), [first], [], **now_with_ids())

    assert ledger.post(order) == Posted(first, replayed=True)
    assert isinstance(ledger.post(Order(ALICE, ALICES, BOBS, 99, "rent", "key")), IdempotencyKeyReused)
    assert isinstance(ledger.post(Order(ALICE, ALICES, BOBS, 100, "rent", "key", 5)), IdempotencyKeyReused)
    assert isinstance(ledger.post(Order(ALICE, MISSING, BOBS, 100, "rent", "key")), IdempotencyKeyReused)
    # Another caller's key is another key.
    assert isinstance(ledger.post(Order(OPERATOR, ALICES, BOBS, 100, "rent", "key")), AccountNotActive)
    assert ledger.postings == []


def test_in_one_batch_each_caller_has_keys_of_its_own() -> None:
    ledger = open_ledger()

    first, second, third = (
        ledger.post(Order(caller, debit, credit, 1, idempotency_key="key"))
        for caller, debit, credit in ((OPERATOR, ALICES, BOBS), (ALICE, ALICES, BOBS), (BOB, BOBS, ALICES))
    )

    assert ledger.postings == [posting_of(first), posting_of(second), posting_of(third)]


def test_a_transfer_is_reversed_once_in_a_batch() -> None:
    ledger = open_ledger()
    reversal = Order(BOB, BOBS, ALICES, 5, reverses_id=8)

    assert isinstance(ledger.post(reversal), Posted)
    assert isinstance(ledger.post(reversal), AlreadyReversed)


def test_no_entry_is_older_than_the_newest_one_of_its_account() -> None:
    future = datetime.now(UTC) + timedelta(days=1)
    holdings = [Holding(ALICES, ALICE, "EUR", 100, 1, future), Holding(BOBS, BOB, "EUR", 0, 0, None)]
    ahead = Ledger(holdings, frozenset(), [], [], **now_with_ids()).post(Order(ALICE, ALICES, BOBS, 1))
    behind = open_ledger().post(Order(ALICE, ALICES, BOBS, 1))

    assert posting_of(ahead).created_at == future
    assert LONG_AGO < posting_of(behind).created_at <= datetime.now(UTC)


# Most often Alice's and Bob's, so that much is not refused.
ACCOUNTS = st.sampled_from([*[ALICES, BOBS] * 4, SYSTEM_ID, EVES, DOLLARS, MISSING])


CONTENT: dict[str, Any] = {
    "initiator": st.sampled_from([*[OPERATOR] * 4, ALICE, BOB, EVE]),
    "debit_account_id": ACCOUNTS,
    "credit_account_id": ACCOUNTS,
    "amount": st.sampled_from([*range(1, 61), 2**53 - 1]),
    "memo": st.sampled_from([None, "rent"]),
}


KEYS = st.sampled_from([None, None, "a", "b"])


def capped(order: Order) -> Order:
    """The same, where less will do."""
    return replace(order, asked_amount=order.amount)


def orders_of(kind: type[Order], **more: Any) -> st.SearchStrategy[Order]:
    orders = st.builds(kind, **CONTENT, **more)
    return orders | orders | orders.map(capped)


OPEN_HOLD = HoldPosting(5, HoldOrder(ALICE, ALICES, BOBS, 30), "EUR", LONG_AGO)


EXPIRED_HOLD = HoldPosting(6, HoldOrder(ALICE, ALICES, BOBS, 30), "EUR", LONG_AGO, "expired")


ENDS: st.SearchStrategy[AnyOrder] = st.builds(
    Order, st.just(BOB), st.just(ALICES), st.just(BOBS), st.integers(1, 40), st.none(), KEYS, hold_id=st.just(5)
) | st.sampled_from([VoidOrder(5, ALICES), VoidOrder(6, ALICES), Order(BOB, ALICES, BOBS, 30, hold_id=6)])


ORDERS: st.SearchStrategy[AnyOrder] = st.one_of(
    orders_of(Order, idempotency_key=KEYS, reverses_id=st.sampled_from([None, None, None, 7, 8])),
    orders_of(HoldOrder, idempotency_key=KEYS),
    st.builds(LinkedOrders, CONTENT["initiator"], st.lists(orders_of(Order), min_size=1, max_size=4), KEYS),
    ENDS,
)


def ledger_with_holds() -> Ledger:
    """The same accounts, all users active; 30 of Alice's 100 are held for Bob, and 30 were until they expired."""
    holdings = list(open_ledger().holdings.values())
    holds = [replace(OPEN_HOLD), replace(EXPIRED_HOLD)]
    ledger = Ledger(holdings, frozenset(), [], (7,), holds=holds, **now_with_ids())
    ledger.holdings[ALICES].held = 30
    return ledger


def known_to(ledger: Ledger) -> Any:
    """All that orders change."""
    holds = (*ledger.holds.values(), *ledger.new_holds)
    return deepcopy(
        (ledger.holdings, ledger.postings, ledger.transactions, ledger.reversed, ledger.resolved, ledger.by_key, *holds)
    )


@settings(deadline=None)
@given(st.lists(ORDERS, max_size=30))
def test_whatever_is_asked_no_money_is_made_or_lost(orders: list[AnyOrder]) -> None:
    ledger = ledger_with_holds()
    start = {id: (holding.balance, holding.version) for id, holding in ledger.holdings.items()}

    new: list[Any] = []
    for order in orders:
        before = known_to(ledger)
        outcome = ledger.post(order)
        if isinstance(outcome, Posted) and not outcome.replayed:
            new.append(outcome.posting)
        else:
            assert known_to(ledger) == before
        assert_right(ledger)

    linked = [each for each in new if isinstance(each, LinkedPostings)]
    assert linked == ledger.transactions
    assert [each for each in new if isinstance(each, HoldPosting) and each.id not in ledger.holds] == ledger.new_holds
    made = [leg for each in new for leg in (each.postings if isinstance(each, LinkedPostings) else [each])]
    assert [each for each in made if isinstance(each, Posting)] == ledger.postings
    assert all(leg.transaction_id == each.id for each in linked for leg in each.postings)
    assert_entries_follow(ledger, start)
    for kind in (Order, HoldOrder, LinkedOrders):
        of_kind = [each.order for each in new if type(each.order) is kind and each.order.idempotency_key]
        used = [(each.initiator, each.idempotency_key) for each in of_kind]
        assert len(used) == len(set(used))


def assert_right(ledger: Ledger) -> None:
    """No money was made or lost, none is spent that is not there, and what is held is what open holds keep."""
    totals: dict[str, int] = {}
    held = dict.fromkeys(ledger.holdings, 0)
    for hold in (*ledger.holds.values(), *ledger.new_holds):
        held[hold.order.debit_account_id] += hold.order.amount if hold.status == "open" else 0
    for holding in ledger.holdings.values():
        totals[holding.currency] = totals.get(holding.currency, 0) + holding.balance
        assert holding.user_id is None or holding.balance >= holding.held
        assert holding.held == held[holding.id] <= BALANCE_MAX
    assert totals == {"EUR": 0, "USD": 5}
    captures = [each.order for each in ledger.postings if each.order.hold_id is not None]
    assert all(each.amount <= ledger.holds[each.hold_id or 0].order.amount for each in captures)


def assert_entries_follow(ledger: Ledger, start: dict[int, tuple[int, int]]) -> None:
    """Each account's entries follow one another, and each leaves what it says."""
    for posting in ledger.postings:
        for id, seq, amount, balance_after in (
            (posting.order.debit_account_id, posting.debit_seq, -posting.order.amount, posting.debit_balance_after),
            (posting.order.credit_account_id, posting.credit_seq, posting.order.amount, posting.credit_balance_after),
        ):
            balance, version = start[id]
            assert (seq, balance_after) == (version + 1, balance + amount)
            start[id] = balance_after, seq
    assert start == {id: (holding.balance, holding.version) for id, holding in ledger.holdings.items()}


def test_a_transaction_that_needs_a_locked_account_leaves_nothing_of_its_other_legs() -> None:
    ledger = open_ledger()
    ledger.locked = {EVES}
    before = deepcopy(ledger.holdings)

    outcome = ledger.post(LinkedOrders(ALICE, [Order(ALICE, ALICES, BOBS, 1), Order(ALICE, ALICES, EVES, 1)]))

    assert isinstance(outcome, Locked)
    assert (ledger.holdings, ledger.postings, ledger.changed) == (before, [], [])
