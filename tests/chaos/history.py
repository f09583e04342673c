"""What must be true of the clients' answers and the database, whatever happened meanwhile."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import audit
from tests.chaos.actors import HOLDERS, Party
from tests.chaos.calls import Call
from tests.support.service import query
from tokens import hash_secret


class Violation(NamedTuple):
    """A promise that was broken, and what shows it."""

    kind: str
    detail: str


class Row(NamedTuple):
    """A row that a call with a key makes: a transfer, a hold, a transaction or a user."""

    id: int
    key: str | None
    debit_account_id: int | None
    credit_account_id: int | None
    amount: int | None
    status: str | None


ROWS = {
    "transfers": "SELECT id, idempotency_key, debit_account_id, credit_account_id, amount, NULL FROM transfers",
    "holds": "SELECT id, idempotency_key, debit_account_id, credit_account_id, amount, status FROM holds",
    "transactions": "SELECT id, idempotency_key, NULL, NULL, NULL, NULL FROM transactions",
    "users": "SELECT id, registration_key_hash, NULL, NULL, NULL, NULL FROM users",
}

TABLE_OF = {"registration": "users", "hold": "holds", "transaction": "transactions"}
"""Where a call is stored, if not in transfers."""

ENTRIES = "SELECT account_id, seq, transfer_id, balance_after FROM entries ORDER BY account_id, seq"

WRONG_ROWS = {
    "a user without a profile": "SELECT id FROM users WHERE id NOT IN (SELECT user_id FROM profiles)",
    "a user without an account": """
        SELECT id FROM users WHERE NOT EXISTS (SELECT 1 FROM accounts WHERE user_id = users.id)
    """,
    "a user without a token": "SELECT id FROM users WHERE id NOT IN (SELECT user_id FROM access_tokens)",
    "a transfer without its two entries": """
        SELECT id FROM transfers WHERE (SELECT count(*) FROM entries WHERE transfer_id = transfers.id) <> 2
    """,
    "an entry from before the one before it, in account": """
        SELECT later.account_id FROM entries AS later
        JOIN entries AS earlier ON earlier.account_id = later.account_id AND earlier.seq = later.seq - 1
        WHERE later.created_at < earlier.created_at
    """,
}


@dataclass
class Books:
    """What the database has in the end."""

    rows: dict[str, list[Row]]
    entries: dict[int, list[tuple[int, int]]]
    """By account: transfer and balance of each entry, in order of seq, which begins at 1."""
    legs: Counter[int]
    """How many transfers each transaction has."""
    token_hashes: set[str]
    wrong_rows: list[str]
    discrepancies: list[str]


def read_books(url: str) -> Books:
    entries: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for account_id, seq, transfer_id, balance_after in query(url, ENTRIES):
        entries[account_id].append((transfer_id, balance_after))
        assert len(entries[account_id]) == seq
    with audit.open_books(url) as opened:
        discrepancies = [f"{each.subject}: {each.fault}" for each in opened.run(lambda rows: None)]
    legs = query(url, "SELECT transaction_id FROM transfers WHERE transaction_id IS NOT NULL")
    return Books(
        rows={table: [Row(*row) for row in query(url, sql)] for table, sql in ROWS.items()},
        entries=entries,
        legs=Counter(id for (id,) in legs),
        token_hashes={hash for (hash,) in query(url, "SELECT token_hash FROM access_tokens")},
        wrong_rows=[f"{what}: {id}" for what, sql in WRONG_ROWS.items() for (id,) in query(url, sql)],
        discrepancies=discrepancies,
    )


def newest_ids(url: str) -> dict[str, int]:
    """Return the newest id of each table; rows up to there are no client's."""
    return {table: query(url, f"SELECT coalesce(max(id), 0) FROM {table}")[0][0] for table in ROWS}


class History:
    """All calls, and the books that they left."""

    def __init__(self, calls: Sequence[Call], books: Books, before: dict[str, int], parties: Sequence[Party]) -> None:
        self.calls, self.books = calls, books
        self.plain = {party.account_id for party in parties[HOLDERS:]}
        """Accounts of which nothing is ever held."""
        self.new = {table: [row for row in rows if row.id > before[table]] for table, rows in books.rows.items()}
        self.by_key = {table: {row.key: row for row in rows} for table, rows in self.new.items()}
        self.writes = [call for call in calls if call.kind not in ("read", "void")]

    def violations(self) -> Iterator[Violation]:
        yield from self.find_no_answers()
        yield from self.find_lost()
        yield from self.find_doubled()
        yield from self.find_done_before()
        yield from self.find_refused_but_stored()
        yield from self.find_halves()
        yield from self.find_out_of_order()
        yield from self.find_wrong_refusals()

    def row_of(self, call: Call) -> Row | None:
        return self.by_key[TABLE_OF.get(call.kind, "transfers")].get(stored_key(call))

    def find_no_answers(self) -> Iterator[Violation]:
        for call in self.calls:
            if call.status is None:
                yield Violation("no answer", f"{call}")
            if call.internal_errors:
                yield Violation("internal error", f"{call}")

    def find_lost(self) -> Iterator[Violation]:
        """Each 2xx is there, with the content of its answer."""
        for call in self.writes:
            row = self.row_of(call)
            if call.is_done and (row is None or not self.is_as_answered(call, row)):
                yield Violation("lost", f"{row} of {call}")
        holds = {row.id: row for row in self.new["holds"]}
        for call in self.calls:
            if call.kind == "void" and call.is_done and holds[call.about].status != "voided":
                yield Violation("lost", f"{holds[call.about]} of {call}")

    def is_as_answered(self, call: Call, row: Row) -> bool:
        if call.kind == "registration":
            return (
                row.id == call.answer["user"]["id"]
                and call.answer["user"]["username"] == call.about
                and hash_secret(call.answer["access_token"]) in self.books.token_hashes
            )
        if call.kind == "transaction":
            return row.id == call.answer["id"] and self.books.legs[row.id] == len(call.answer["transfers"])
        return all(
            getattr(row, name) == call.answer[name]
            for name in ("id", "debit_account_id", "credit_account_id", "amount")
        )

    def find_doubled(self) -> Iterator[Violation]:
        """No key is there twice, and no row that nobody asked for."""
        sent: dict[str, set[str]] = defaultdict(set)
        for call in self.writes:
            sent[TABLE_OF.get(call.kind, "transfers")].add(stored_key(call))
        linked = sum(self.books.legs.values())
        for table, rows in self.new.items():
            keyless = 0
            for key, times in Counter(row.key for row in rows).items():
                if key is None:
                    keyless = times
                elif times > 1 or key not in sent[table]:
                    yield Violation("doubled", f"{times} rows of {table} with the key {key}")
            # The transfers of a transaction have no keys.
            if keyless != (linked if table == "transfers" else 0):
                yield Violation("doubled", f"{keyless} rows of {table} without a key, {linked} in transactions")
        reversed_ids = Counter(call.about for call in self.writes if call.kind == "reversal" and call.is_done)
        captured = Counter(call.about for call in self.writes if call.kind == "capture" and call.is_done)
        for id, times in [*reversed_ids.items(), *captured.items()]:
            if times > 1:
                yield Violation("doubled", f"{id} was reversed, or captured, {times} times")

    def find_done_before(self) -> Iterator[Violation]:
        """No call is a replay unless an attempt before was unknown: the others were answered that nothing was done.

        So the service itself ran nothing again that was done; without a key, that would be done twice.
        """
        for call in self.writes:
            if call.is_replayed and not call.is_unknown:
                yield Violation("done before", f"{call}")

    def find_refused_but_stored(self) -> Iterator[Violation]:
        """A refusal stores nothing; an earlier attempt whose outcome was unknown may still have."""
        for call in self.writes:
            if call.is_refused and not call.is_unknown and self.row_of(call) is not None:
                yield Violation("refused but stored", f"{self.row_of(call)} of {call}")

    def find_halves(self) -> Iterator[Violation]:
        for wrong in self.books.wrong_rows:
            yield Violation("half", wrong)
        for discrepancy in self.books.discrepancies:
            yield Violation("audit", discrepancy)
        for call in self.writes:
            row = self.row_of(call) if call.kind == "transaction" else None
            if row is not None and self.books.legs[row.id] != call.about:
                yield Violation("half", f"{self.books.legs[row.id]} transfers of {call}")
        batches: dict[str, list[Call]] = defaultdict(list)
        for call in self.writes:
            if call.kind == "batch item" and call.about:
                batches[call.about].append(call)
        for batch, items in batches.items():
            stored = sum(self.row_of(item) is not None for item in items)
            if stored not in (0, len(items)):
                yield Violation("half", f"{stored} of {len(items)} items of the batch {batch}")

    def find_out_of_order(self) -> Iterator[Violation]:
        """What was answered before another call was sent comes first in the account's entries, and reads see it.

        So each account's history is linearizable: an order of all its calls that agrees with their answers, and with
        real time. The balances of entries follow from each other, as the audit has proved.
        """
        for account_id, calls in self.calls_by_account().items():
            answered: list[tuple[float, int]] = []
            newest = 0
            for call, seq in sorted(calls, key=lambda each: each[0].sent):
                while answered and answered[0][0] < call.sent:
                    newest = max(newest, heapq.heappop(answered)[1])
                is_read = call.kind == "read"
                if seq < newest + (not is_read):
                    kind = "stale read" if is_read else "out of order"
                    yield Violation(kind, f"account {account_id} had entry {newest} before entry {seq} of {call}")
                heapq.heappush(answered, (call.answered, seq))
                if is_read and call.answer["balance"] != self.balance(account_id, seq):
                    yield Violation("wrong balance", f"{self.balance(account_id, seq)} at {call}")

    def calls_by_account(self) -> dict[int, list[tuple[Call, int]]]:
        """Return the calls that were done, by account, each with the entry that it made there, or saw."""
        entries_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for account_id, entries in self.books.entries.items():
            for seq, (transfer_id, _) in enumerate(entries, 1):
                entries_of[transfer_id].append((account_id, seq))
        found: dict[int, list[tuple[Call, int]]] = defaultdict(list)
        for call in self.calls:
            if not call.is_done:
                continue
            if call.kind == "read":
                found[call.answer["id"]].append((call, call.answer["version"]))
            elif TABLE_OF.get(call.kind, "transfers") == "transfers" and call.kind != "void":
                for account_id, seq in entries_of[call.answer["id"]]:
                    found[account_id].append((call, seq))
        return found

    def balance(self, account_id: int, seq: int) -> int | None:
        """Return the balance after this entry, 0 before the first; None where there is no such entry."""
        if seq == 0:
            return 0
        entries = self.books.entries[account_id]
        return entries[seq - 1][1] if seq <= len(entries) else None

    def find_wrong_refusals(self) -> Iterator[Violation]:
        """Who was refused for want of money had too little at some instant of the call."""
        by_account = self.calls_by_account()
        for call in self.calls:
            if call.kind != "transfer" or call.problem != "insufficient-funds" or call.account_id not in self.plain:
                continue
            others = by_account[call.account_id]
            first = max([0, *(seq for other, seq in others if other.answered < call.sent)])
            later = [seq - (other.kind != "read") for other, seq in others if other.sent > call.answered]
            last = min([len(self.books.entries[call.account_id]), *later])
            balances = [self.balance(call.account_id, seq) for seq in range(first, last + 1)]
            if all(balance is not None and balance >= call.about for balance in balances):
                yield Violation("wrong refusal", f"the account had {balances} during {call}")


def stored_key(call: Call) -> str:
    """Return the key as the database has it."""
    return hash_secret(call.key) if call.kind == "registration" else call.key


def count(calls: Iterable[Call]) -> dict[str, int]:
    """Return how many calls were acknowledged, of each kind."""
    return dict(Counter(call.kind for call in calls if call.is_done))


def example_of(violations: Sequence[Violation]) -> dict[str, Any]:
    """Return how many violations there are of each kind, with the first of it."""
    return {
        kind: (total, next(each.detail for each in violations if each.kind == kind))
        for kind, total in Counter(each.kind for each in violations).items()
    }
