"""The chart of a balance: its points as SVG wants them, and the words for who does not see it."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 160


@dataclass(frozen=True, slots=True)
class Chart:
    """A line of steps, the area below it, where 0 is, and the ends of the scale in minor units."""

    line: str
    area: str
    zero: float
    lowest: int
    highest: int
    width: int = WIDTH
    height: int = HEIGHT


def draw_balance(balances: Sequence[int]) -> Chart | None:
    """Return the chart of the balances after each of an account's entries, oldest first; None of fewer than two."""
    if len(balances) < 2:
        return None
    lowest, highest = min(0, *balances), max(0, *balances)
    # Integers until the last step: a balance can be larger than a float is exact.
    span = max(1, highest - lowest)

    def height(balance: int) -> float:
        return round(HEIGHT - HEIGHT * (balance - lowest) / span, 1)

    step = WIDTH / len(balances)
    corners = [
        f"{round(x, 1)},{height(balance)}"
        for place, balance in enumerate(balances)
        for x in (place * step, (place + 1) * step)
    ]
    line = " ".join(corners)
    zero = height(0)
    return Chart(line, f"0,{zero} {line} {WIDTH},{zero}", zero, lowest, highest)
