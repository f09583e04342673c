"""The proof that no money was made or lost: balances, entries and transfers, each against the others."""

from collections import defaultdict
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
class Discrepancy:
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


class Audit:
    """All books of a database, read once, at one instant, in constant memory."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.totals: dict[str, Totals] = defaultdict(Totals)

    def count_rows(self) -> int:
        """Return the number of rows that `run` reads where the books are right."""
        return self.connection.scalar(sa.text(ROWS)) or 0

    def run(self, advance: Advance) -> Iterator[Discrepancy]:
        """Read everything; yield each discrepancy, and call `advance` with the number of rows that were read."""
        for id, rows in groupby(self._stream(ACCOUNTS, advance), key=attrgetter("id")):
            for fault in self._check_account(rows):
                yield Discrepancy(f"account {id}", fault)
        for id, rows in groupby(self._stream(TRANSFERS, advance), key=attrgetter("id")):
            for fault in self._check_transfer(list(rows)):
                yield Discrepancy(f"transfer {id}", fault)
        for query in FAULTS:
            for subject, fault in self._stream(query, advance):
                yield Discrepancy(subject, fault)
        for currency, totals in sorted(self.totals.items()):
            difference = totals.held_by_users + totals.held_by_system
            if difference:
                yield Discrepancy(f"currency {currency}", f"all balances add up to {difference:,}, not 0")

    def _stream(self, query: str, advance: Advance) -> Iterator[Any]:
        options = {"stream_results": True, "max_row_buffer": CHUNK}
        for rows in self.connection.execute(sa.text(query), execution_options=options).partitions(CHUNK):
            yield from rows
            advance(len(rows))

    def _check_account(self, rows: Iterator[Any]) -> Iterator[str]:
        """Check one account: each of its rows holds an entry, or its only row none."""
        balance = seq = 0
        entered_at = None
        for row in rows:
            if row.seq is None:
                continue
            balance += row.amount
            if row.seq != seq + 1:
                yield f"entry {row.seq} follows entry {seq}"
            if row.balance_after != balance:
                yield f"entry {row.seq} says that it left {row.balance_after:,}; the entries add up to {balance:,}"
            if entered_at is not None and row.created_at < entered_at:
                yield f"entry {row.seq} is older than the one before it"
            # The stored values, so that one wrong entry is reported once.
            balance, seq, entered_at = row.balance_after, row.seq, row.created_at
        yield from self._check_balance(row, balance, seq)

    def _check_balance(self, account: Any, balance: int, seq: int) -> Iterator[str]:
        """Compare the account with its newest entry, and add it to the totals."""
        if account.balance != balance:
            yield f"its balance is {account.balance:,}; its newest entry left {balance:,}"
        if account.version != seq:
            yield f"its version is {account.version}; its newest entry is {seq}"
        if account.held != account.open_holds:
            yield f"it holds {account.held:,}; its open holds add up to {account.open_holds:,}"
        if account.user_id is not None and account.balance - account.held < -account.credit_limit:
            held = f" with {account.held:,} held" if account.held else ""
            yield f"its balance is {account.balance:,}{held}, past its credit limit of {account.credit_limit:,}"
        totals = self.totals[account.currency]
        totals.accounts += 1
        if account.user_id is None:
            totals.held_by_system += account.balance
        else:
            totals.held_by_users += account.balance

    def _check_transfer(self, rows: list[Any]) -> Iterator[str]:
        """Check one transfer, each of whose rows holds an entry, and add it to the totals."""
        transfer = rows[0]
        entries = sorted((row.account_id, row.entered, row.account_currency) for row in rows if row.account_id)
        debit = (transfer.debit_account_id, -transfer.amount, transfer.currency)
        credit = (transfer.credit_account_id, transfer.amount, transfer.currency)
        expected = sorted((debit, credit))
        if entries != expected:
            yield f"its entries are {_show(entries)}, not {_show(expected)}"
        original = (transfer.reversed_debit, transfer.reversed_credit, transfer.reversed_amount)
        mirrored = (transfer.credit_account_id, transfer.debit_account_id, transfer.amount)
        if transfer.reverses_id is not None and original != mirrored:
            yield f"it is not the mirror of transfer {transfer.reverses_id}"
        totals = self.totals[transfer.currency]
        totals.transfers += 1
        totals.transferred += transfer.amount


def _show(entries: list[Any]) -> str:
    return " and ".join(f"{amount:+,} {currency} on account {id}" for id, amount, currency in entries) or "none"


# Each entry is read beside its account and beside its transfer.
ROWS = "SELECT 2 * (SELECT count(*) FROM entries) + (SELECT count(*) FROM accounts WHERE version = 0)"
ACCOUNTS = """
    SELECT accounts.id, accounts.user_id, accounts.currency, accounts.balance, accounts.version, accounts.credit_limit,
           accounts.held, coalesce(open_holds.amount, 0) AS open_holds,
           entries.seq, entries.amount, entries.balance_after, entries.created_at
    FROM accounts LEFT JOIN entries ON entries.account_id = accounts.id
    LEFT JOIN (
        SELECT debit_account_id, sum(amount) AS amount FROM holds WHERE status = 'open' GROUP BY debit_account_id
    ) AS open_holds ON open_holds.debit_account_id = accounts.id
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
# Rows that should not be there, and why. Foreign keys forbid strays, but a pragma of SQLite or a dump can bypass those.
FAULTS = (
    # Of a hold and its transfer, only the amounts may differ.
    """
    SELECT 'hold ' || holds.id,
           CASE WHEN transfers.id IS NULL THEN 'it was captured by no transfer'
                WHEN holds.status <> 'captured' THEN 'a transfer captured it, and it is not marked so'
                ELSE 'it was captured by a transfer of more, or between other accounts' END
    FROM holds LEFT JOIN transfers ON transfers.hold_id = holds.id
    WHERE (holds.status = 'captured') <> (transfers.id IS NOT NULL) OR transfers.amount > holds.amount
       OR transfers.debit_account_id <> holds.debit_account_id OR transfers.credit_account_id <> holds.credit_account_id
    ORDER BY holds.id
    """,
    """
    SELECT 'transaction ' || id, 'it has no transfers' FROM transactions
    WHERE NOT EXISTS (SELECT 1 FROM transfers WHERE transfers.transaction_id = transactions.id) ORDER BY id
    """,
    """
    SELECT 'account ' || account_id, 'entry ' || seq || ' belongs to no transfer' FROM entries
    WHERE NOT EXISTS (SELECT 1 FROM transfers WHERE transfers.id = entries.transfer_id) ORDER BY account_id, seq
    """,
    """
    SELECT 'account ' || account_id, 'entry ' || seq || ' belongs to no account' FROM entries
    WHERE NOT EXISTS (SELECT 1 FROM accounts WHERE accounts.id = entries.account_id) ORDER BY account_id, seq
    """,
)


@contextmanager
def open_books(url: str) -> Iterator[Audit]:
    """Open an audit of the database as it is at this instant; it blocks no one. Raises LookupError without accounts."""
    with reading(url) as connection:
        if not all(sa.inspect(connection).has_table(table) for table in ("accounts", "entries", "transfers")):
            raise LookupError("The database has no accounts yet. Run: alembic upgrade head")
        if all(column["name"] != "held" for column in sa.inspect(connection).get_columns("accounts")):
            raise LookupError("The database's schema is older than this code. Run: alembic upgrade head")
        yield Audit(connection)
