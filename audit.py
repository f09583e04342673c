"""The proof that no money was made or lost: balances, entries and transfers, each against the others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from db.engines import reading

CHUNK = 5000
"""Rows in memory at a time."""

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """An error in the books, and the account, transfer or currency that has it."""

    subject: str
    fault: str


@dataclass(slots=True)
class Totals:
    """The accounts and transfers of one currency; amounts in minor units."""

    accounts: int = 0
    held_by_users: int = 0
    held_by_system: int = 0
    transfers: int = 0
    transferred: int = 0

    @property
    def difference(self) -> int:
        """Money that was made or lost: 0 where the books are right."""
        return self.held_by_users + self.held_by_system


class Audit:
    """All books of a database, read once, at one instant, in constant memory."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.totals: dict[str, Totals] = {}

    def count_rows(self) -> int:
        """The number of rows that `run` reads where the books are right."""
        return self.connection.scalar(sa.text(ROWS)) or 0

    def run(self, advance: Advance) -> Iterator[Finding]:
        """Read everything; yield each fault as it is found, and tell `advance` how many rows were read."""
        for _, rows in groupby(self.stream(ACCOUNTS, advance), key=attrgetter("id")):
            yield from self.check_account(rows)
        for _, rows in groupby(self.stream(TRANSFERS, advance), key=attrgetter("id")):
            yield from self.check_transfer(list(rows))
        for query, fault in STRAYS.items():
            for account_id, seq in self.stream(query, advance):
                yield Finding(f"account {account_id}", f"entry {seq} {fault}")
        for currency, totals in sorted(self.totals.items()):
            if totals.difference:
                yield Finding(f"currency {currency}", f"all balances add up to {totals.difference:,}, not 0")

    def stream(self, query: str, advance: Advance) -> Iterator[Any]:
        """The rows of a query, a chunk at a time."""
        options = {"stream_results": True, "max_row_buffer": CHUNK}
        for rows in self.connection.execute(sa.text(query), execution_options=options).partitions(CHUNK):
            yield from rows
            advance(len(rows))

    def check_account(self, rows: Iterator[Any]) -> Iterator[Finding]:
        """One account: its rows hold an entry each, or none where it has no entry."""
        balance = seq = 0
        entered_at = None
        for row in rows:
            if row.seq is None:
                continue
            balance += row.amount
            subject = f"account {row.id}"
            if row.seq != seq + 1:
                yield Finding(subject, f"entry {row.seq} follows entry {seq}")
            if row.balance_after != balance:
                yield Finding(
                    subject,
                    f"entry {row.seq} says that it left {row.balance_after:,}; the entries add up to {balance:,}",
                )
            if row.user_id is not None and row.balance_after < 0:
                yield Finding(subject, f"entry {row.seq} left {row.balance_after:,}, less than 0")
            if entered_at is not None and row.created_at < entered_at:
                yield Finding(subject, f"entry {row.seq} is older than the one before it")
            # From what is written, so that one wrong entry is named once.
            balance, seq, entered_at = row.balance_after, row.seq, row.created_at
        yield from self.check_balance(row, balance, seq)

    def check_balance(self, account: Any, balance: int, seq: int) -> Iterator[Finding]:
        """Compare the account with its newest entry, and add it to the totals."""
        subject = f"account {account.id}"
        if account.balance != balance:
            yield Finding(subject, f"its balance is {account.balance:,}; its newest entry left {balance:,}")
        if account.version != seq:
            yield Finding(subject, f"its version is {account.version}; its newest entry is {seq}")
        if account.user_id is not None and account.balance < 0:
            yield Finding(subject, f"its balance is {account.balance:,}, less than 0")
        totals = self.totals.setdefault(account.currency, Totals())
        totals.accounts += 1
        if account.user_id is None:
            totals.held_by_system += account.balance
        else:
            totals.held_by_users += account.balance

    def check_transfer(self, rows: list[Any]) -> Iterator[Finding]:
        """One transfer: each of its rows holds an entry."""
        transfer = rows[0]
        entries = sorted((row.account_id, row.entered, row.account_currency) for row in rows if row.account_id)
        expected = sorted(
            (
                (transfer.debit_account_id, -transfer.amount, transfer.currency),
                (transfer.credit_account_id, transfer.amount, transfer.currency),
            )
        )
        if entries != expected:
            yield Finding(f"transfer {transfer.id}", f"its entries are {show(entries)}, not {show(expected)}")
        original = (transfer.reversed_debit, transfer.reversed_credit, transfer.reversed_amount)
        mirrored = (transfer.credit_account_id, transfer.debit_account_id, transfer.amount)
        if transfer.reverses_id is not None and original != mirrored:
            yield Finding(f"transfer {transfer.id}", f"it is not the mirror of transfer {transfer.reverses_id}")
        totals = self.totals.setdefault(transfer.currency, Totals())
        totals.transfers += 1
        totals.transferred += transfer.amount


def show(entries: list[Any]) -> str:
    """Entries in words."""
    return " and ".join(f"{amount:+,} {currency} on account {id}" for id, amount, currency in entries) or "none"


TABLES = ("accounts", "entries", "transfers")
# Each entry is read beside its account and beside its transfer.
ROWS = "SELECT 2 * (SELECT count(*) FROM entries) + (SELECT count(*) FROM accounts WHERE version = 0)"
ACCOUNTS = """
    SELECT accounts.id, accounts.user_id, accounts.currency, accounts.balance, accounts.version,
           entries.seq, entries.amount, entries.balance_after, entries.created_at
    FROM accounts LEFT JOIN entries ON entries.account_id = accounts.id
    ORDER BY accounts.id, entries.seq
"""
TRANSFERS = """
    SELECT transfers.id, transfers.debit_account_id, transfers.credit_account_id, transfers.amount, transfers.currency,
           transfers.reverses_id, entries.account_id, entries.amount AS entered, accounts.currency AS account_currency,
           original.debit_account_id AS reversed_debit, original.credit_account_id AS reversed_credit,
           original.amount AS reversed_amount
    FROM transfers
    LEFT JOIN entries ON entries.transfer_id = transfers.id
    LEFT JOIN accounts ON accounts.id = entries.account_id
    LEFT JOIN transfers AS original ON original.id = transfers.reverses_id
    ORDER BY transfers.id
"""
# Foreign keys forbid them, but a restored copy or a pragma can go past those.
STRAYS = {
    """
    SELECT account_id, seq FROM entries
    WHERE NOT EXISTS (SELECT 1 FROM transfers WHERE transfers.id = entries.transfer_id) ORDER BY account_id, seq
    """: "belongs to no transfer",
    """
    SELECT account_id, seq FROM entries
    WHERE NOT EXISTS (SELECT 1 FROM accounts WHERE accounts.id = entries.account_id) ORDER BY account_id, seq
    """: "belongs to no account",
}


@contextmanager
def open_books(url: str) -> Iterator[Audit]:
    """An audit of the database as it is at this instant; nobody waits for it. Raises LookupError without accounts."""
    with reading(url) as connection:
        if not all(sa.inspect(connection).has_table(table) for table in TABLES):
            raise LookupError("The database has no accounts yet. Run: alembic upgrade head")
        yield Audit(connection)
