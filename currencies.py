"""The currencies: those of ISO 4217 and the operator's own."""

import re

import iso4217

from models import CurrencyPublic

# Without gold, test codes and the like, which have no minor unit.
ISO_4217 = {currency.code: currency.exponent for currency in iso4217.Currency if currency.exponent is not None}
CUSTOM = re.compile(r"([A-Z0-9]{3,12})(?::([0-9]|1[0-8]))?")


def parse_custom_currencies(text: str) -> dict[str, int]:
    """Return the decimals of each code in "POINTS,CREDITS:2"; the default is 0. Raises ValueError."""
    custom: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = CUSTOM.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a code of 3 to 12 capitals and digits; write POINTS or CREDITS:2")
        code, decimals = match[1], int(match[2] or 0)
        if code in ISO_4217:
            raise ValueError(f"{code} is a currency of ISO 4217; choose another code")
        if custom.setdefault(code, decimals) != decimals:
            raise ValueError(f"{code} is listed twice")
    return custom


def list_currencies(custom_currencies: str) -> list[CurrencyPublic]:
    """Return all currencies that an account can have, in order of code."""
    decimals = ISO_4217 | parse_custom_currencies(custom_currencies)
    return [CurrencyPublic(code=code, decimals=decimals[code]) for code in sorted(decimals)]
