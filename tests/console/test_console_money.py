"""Amounts are read and shown exactly; the chart of a balance is drawn to scale."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.chart import HEIGHT, WIDTH, draw_balance
from console.money import Money

EUR, JPY, LOST = Money("EUR", 2), Money("JPY", 0), Money("POINTS", None)


@pytest.mark.parametrize(
    ("money", "text", "amount"),
    [
        (EUR, "12.50", 1250),
        (EUR, "12.5", 1250),
        (EUR, " 1 250 ", 125_000),
        (EUR, "90071992547409.91", 2**53 - 1),
        (EUR, "0.07", 7),
        (JPY, "1250", 1250),
        (Money("BHD", 3), "1.005", 1005),
        (LOST, "7", 7),
    ],
)
def test_an_amount_is_read_exactly(money: Money, text: str, amount: int) -> None:
    assert money.read(text) == amount


@pytest.mark.parametrize("text", ["", "1,5", "1.", ".5", "1e3", "+1", "-1", "1.005", "٣", "NaN", "1" * 5000, "1.5.5"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Write a number such as 12\.50|EUR has 2 decimals"):
        EUR.read(text)


@given(amount=st.integers(0, 2**63), decimals=st.integers(0, 18))
def test_an_amount_that_is_shown_can_be_typed(amount: int, decimals: int) -> None:
    money = Money("ANY", decimals)

    assert money.read(money.digits(amount)) == money.read(money.field(amount)) == amount


def test_an_amount_is_shown_with_the_decimals_of_its_currency() -> None:
    assert EUR.show(-123_456_789) == "\u22121\u202f234\u202f567.89 EUR"
    assert EUR.show(5) == "0.05 EUR"
    assert JPY.show(1000) == "1\u202f000 JPY"
    assert LOST.show(1250) == "1\u202f250 minor units of POINTS"


def test_a_chart_has_a_step_for_each_entry_from_the_lowest_balance_to_the_highest() -> None:
    chart = draw_balance([100, 0, -100, 300])

    assert chart is not None
    steps = [tuple(map(float, corner.split(","))) for corner in chart.line.split()]
    assert [y for _, y in steps] == [80, 80, 120, 120, 160, 160, 0, 0]
    assert [x for x, _ in steps] == [0, 180, 180, 360, 360, 540, 540, 720]
    assert (chart.zero, chart.lowest, chart.highest) == (120, -100, 300)
    assert chart.area == f"0,120.0 {chart.line} {WIDTH},120.0"


@pytest.mark.parametrize("balances", [[0, 0], [2**53 - 1, 1 - 2**53], [5, 5, 5]])
def test_a_chart_of_any_balances_stays_within_its_frame(balances: list[int]) -> None:
    chart = draw_balance(balances)

    assert chart is not None
    assert all(0 <= float(corner.split(",")[1]) <= HEIGHT for corner in chart.line.split())
    assert draw_balance(balances[:1]) is None
