"""What a transfer does, decided in memory: no money is made or lost, and who may not know learns nothing."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import BALANCE_MAX, OPERATOR, Holding, HoldOrder, Ledger, LinkedOrders, Order, Posted, Posting
from refusals import (
    AccountNotActive,
    AccountNotFound,
    AlreadyReversed,
    BalanceLimit,
    CurrencyMismatch,
    IdempotencyKeyReused,
    InsufficientFunds,
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


ORDERS = st.builds(
    Order,
    initiator=st.sampled_from([OPERATOR, ALICE, BOB, EVE]),
    debit_account_id=st.sampled_from([SYSTEM_ID, ALICES, BOBS, EVES, DOLLARS, MISSING]),
    credit_account_id=st.sampled_from([SYSTEM_ID, ALICES, BOBS, EVES, DOLLARS, MISSING]),
    amount=st.integers(1, 60) | st.just(2**53 - 1),
    memo=st.sampled_from([None, "rent"]),
    idempotency_key=st.sampled_from([None, None, "a", "b"]),
    reverses_id=st.sampled_from([None, None, None, 7, 8]),
)


@settings(deadline=None)
@given(st.lists(ORDERS, max_size=30))
def test_whatever_is_asked_no_money_is_made_or_lost(orders: list[Order]) -> None:
    ledger = open_ledger(inactive=frozenset())
    start = {id: (holding.balance, holding.version) for id, holding in ledger.holdings.items()}

    outcomes = [ledger.post(order) for order in orders]

    new = [outcome.posting for outcome in outcomes if isinstance(outcome, Posted) and not outcome.replayed]
    assert new == ledger.postings
    totals: dict[str, int] = {}
    for holding in ledger.holdings.values():
        totals[holding.currency] = totals.get(holding.currency, 0) + holding.balance
        assert holding.user_id is None or holding.balance >= 0
    assert totals == {"EUR": 0, "USD": 5}
    # Each account's entries follow one another, and each leaves what it says.
    for posting in ledger.postings:
        for id, seq, amount, balance_after in (
            (posting.order.debit_account_id, posting.debit_seq, -posting.order.amount, posting.debit_balance_after),
            (posting.order.credit_account_id, posting.credit_seq, posting.order.amount, posting.credit_balance_after),
        ):
            balance, version = start[id]
            assert (seq, balance_after) == (version + 1, balance + amount)
            start[id] = balance_after, seq
    assert start == {id: (holding.balance, holding.version) for id, holding in ledger.holdings.items()}
    used = [
        (each.order.initiator, each.order.idempotency_key) for each in ledger.postings if each.order.idempotency_key
    ]
    assert len(used) == len(set(used))
