"""Helpers of the tests of importing."""

import json
from collections.abc import Callable
from typing import Any

from typer.testing import Result

from tests.support.service import Rows

Import = Callable[..., Result]


HEADER = "username,email,phone_number\n"


COUNTS = ", ".join(f"(SELECT count(*) FROM {table})" for table in ("users", "profiles", "accounts", "access_tokens"))


def many(count: int, start: int = 0) -> str:
    return "".join(f"user{number},user{number}@example.com,\n" for number in range(start, start + count))


def summary(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def counts(rows: Rows) -> tuple[Any, ...]:
    """How many users, profiles, accounts and tokens there are."""
    return rows(f"SELECT {COUNTS}")[0]
