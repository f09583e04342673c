"""Amounts as people write them: 12.50, exactly, with the decimals of their currency."""

import re
from dataclasses import dataclass

SPACE = "\u202f"
"""A narrow space that does not break, between groups of three digits; a comma is a decimal point elsewhere."""


@dataclass(frozen=True, slots=True)
class Money:
    """How amounts in a currency are shown and read; decimals are None where the settings no longer know it."""

    currency: str
    decimals: int | None

    def digits(self, amount: int) -> str:
        """Return an amount in minor units as 1 250.00, or with a minus sign, as −12.50."""
        places = self.decimals or 0
        whole, rest = divmod(abs(amount), 10**places)
        sign = "\u2212" if amount < 0 else ""
        return sign + f"{whole:,}".replace(",", SPACE) + (f".{rest:0{places}}" if places else "")

    def show(self, amount: int) -> str:
        """Return an amount in minor units with its currency: 12.50 EUR."""
        unit = self.currency if self.decimals is not None else f"minor units of {self.currency}"
        return f"{self.digits(amount)} {unit}"

    def field(self, amount: int) -> str:
        """Return an amount as it can be typed: 1250.00."""
        return self.digits(amount).replace(SPACE, "").replace("\u2212", "-")

    def read(self, text: str) -> int:
        """Return the minor units of an amount such as 12.50 or 1 250. Raises ValueError, in words."""
        match = re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?", re.sub(r"[\s\u202f]", "", text), re.ASCII)
        places = self.decimals or 0
        if match is None or len(match[1]) > 20:
            raise ValueError(f"Write a number such as {'12.' + '50'.ljust(places, '0')[:places] if places else '12'}")
        decimals = match[2] or ""
        if len(decimals) > places:
            raise ValueError(f"{self.currency} has {places or 'no'} decimal{'s' if places != 1 else ''}")
        return int(match[1] + decimals.ljust(places, "0"))
