"""`python manage.py audit`: proves that no money was made or lost, and names what is wrong."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

import audit
import manage
from alembic_savepoint.terminal import plural
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, ROOT, Rows, query

EUR = ["EUR", "3", "5,000", "-5,000", "4", "7,500"]
"""The totals of the books below: currency, accounts, users hold, system holds, transfers, transferred."""


@pytest.fixture(autouse=True)
def books(client: TestClient) -> None:
    """Alice (account 1) got 5,000 and sent Bob (account 2) 1,000, and 750 that went back, as transfers 1 to 4."""
    alice, _ = (client.post("/register", json=named(name)).json() for name in ("alice", "bob"))
    as_alice = {"Authorization": f"Bearer {alice['access_token']}"}
    deposit = client.post("/deposits", json={"account_id": 1, "amount": 5000}, headers=AS_OPERATOR)
    sent = [
        client.post(
            "/transfers", json={"debit_account_id": 1, "credit_account_id": 2, "amount": amount}, headers=as_alice
        )
        for amount in (1000, 750)
    ]
    reversal = client.post("/transfers/3/reversal", headers=AS_OPERATOR)
    assert [response.status_code for response in (deposit, *sent, reversal)] == [201] * 4
    assert reversal.json()["id"] == 4


def hold(amount: int, status: str) -> str:
    """SQL that makes a hold of account 1."""
    return (
        "INSERT INTO holds "
        "(id, debit_account_id, credit_account_id, currency, amount, status, expires_at, initiator, created_at) VALUES "
        f"(1, 1, 2, 'EUR', {amount}, '{status}', '2026-11-29 00:00:00+00', 1, '2026-11-28 00:00:00+00')"
    )


def run_audit() -> Result:
    """Run the command in this process, on the database that the service uses."""
    return CliRunner().invoke(manage.app, ["audit"])


def corrupt(url: str, sql: str) -> None:
    """Change the books by hand, past the constraints, as a copy restored without them would let one."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(sql)
    else:
        with psycopg.connect(url, autocommit=True) as postgresql:
            postgresql.execute("ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance")
            # Foreign keys are triggers, which a replica does not run.
            postgresql.execute("SET session_replication_role = replica")
            postgresql.execute(sql.encode())


def test_right_books_are_proven(client: TestClient) -> None:
    result = run_audit()

    assert result.exit_code == 0
    assert "The books are right." in result.stderr
    assert [line.split() for line in result.stdout.splitlines() if "EUR" in line] == [EUR]


def test_a_database_without_transfers_is_proven(client: TestClient, rows: Rows) -> None:
    for table in ("entries", "transfers", "accounts"):
        rows(f"DELETE FROM {table}")

    assert run_audit().exit_code == 0


@pytest.mark.wrong_books
@pytest.mark.parametrize(
    ("corruption", "found"),
    [
        # a balance
        ("UPDATE accounts SET balance = balance + 1 WHERE id = 2",
         ["account 2: its balance is 1,001; its newest entry left 1,000",
          "currency EUR: all balances add up to 1, not 0"]),
        # two balances that still add up
        ("UPDATE accounts SET balance = CASE id WHEN 1 THEN 4001 ELSE 999 END WHERE id IN (1, 2)",
         ["account 1: its balance is 4,001; its newest entry left 4,000",
          "account 2: its balance is 999; its newest entry left 1,000"]),
        ("UPDATE accounts SET version = 7 WHERE id = 2", ["account 2: its version is 7; its newest entry is 3"]),
        # an entry
        ("UPDATE entries SET amount = 1001 WHERE account_id = 2 AND seq = 1",
         ["account 2: entry 1 says that it left 1,000; the entries add up to 1,001",
          "transfer 2: its entries are -1,000 EUR on account 1 and +1,001 EUR on account 2,"
          " not -1,000 EUR on account 1 and +1,000 EUR on account 2"]),
        ("UPDATE entries SET balance_after = -1 WHERE account_id = 2 AND seq = 1",
         ["account 2: entry 1 says that it left -1; the entries add up to 1,000",
          "account 2: entry 2 says that it left 1,750; the entries add up to 749"]),
        ("DELETE FROM entries WHERE account_id = 2 AND seq = 2",
         ["account 2: entry 3 follows entry 1",
          "account 2: entry 3 says that it left 1,000; the entries add up to 250",
          "transfer 3: its entries are -750 EUR on account 1, not -750 EUR on account 1 and +750 EUR on account 2"]),
        ("UPDATE entries SET created_at = '2020-01-01 00:00:00+00' WHERE account_id = 2 AND seq = 2",
         ["account 2: entry 2 is older than the one before it"]),
        # a transfer
        ("UPDATE transfers SET amount = 999 WHERE id = 2",
         ["transfer 2: its entries are -1,000 EUR on account 1 and +1,000 EUR on account 2,"
          " not -999 EUR on account 1 and +999 EUR on account 2"]),
        ("UPDATE transfers SET debit_account_id = 2, credit_account_id = 1 WHERE id = 2",
         ["transfer 2: its entries are -1,000 EUR on account 1 and +1,000 EUR on account 2,"
          " not +1,000 EUR on account 1 and -1,000 EUR on account 2"]),
        ("UPDATE transfers SET reverses_id = 2 WHERE id = 4", ["transfer 4: it is not the mirror of transfer 2"]),
        # a hold, a transaction
        ("UPDATE accounts SET held = 5 WHERE id = 2", ["account 2: it holds 5; its open holds add up to 0"]),
        (hold(5, "open"), ["account 1: it holds 0; its open holds add up to 5"]),
        (hold(5, "captured"), ["hold 1: it was captured by no transfer"]),
        ("INSERT INTO transactions (id, initiator, created_at) VALUES (1, 0, '2026-11-28 00:00:00+00')",
         ["transaction 1: it has no transfers"]),
        # what constraints forbid
        ("UPDATE accounts SET balance = -5 WHERE id = 2",
         ["account 2: its balance is -5; its newest entry left 1,000",
          "account 2: its balance is -5, past its credit limit of 0",
          "currency EUR: all balances add up to -1,005, not 0"]),
        ("DELETE FROM transfers WHERE id = 2",
         ["account 1: entry 2 belongs to no transfer", "account 2: entry 1 belongs to no transfer"]),
        ("DELETE FROM accounts WHERE id = 3",
         ["transfer 1: its entries are +5,000 EUR on account 1 and -5,000 None on account 3,"
          " not +5,000 EUR on account 1 and -5,000 EUR on account 3",
          "account 3: entry 1 belongs to no account",
          "currency EUR: all balances add up to 5,000, not 0"]),
        ("UPDATE accounts SET currency = 'USD' WHERE id = 3",
         ["transfer 1: its entries are +5,000 EUR on account 1 and -5,000 USD on account 3,"
          " not +5,000 EUR on account 1 and -5,000 EUR on account 3",
          "currency EUR: all balances add up to 5,000, not 0",
          "currency USD: all balances add up to -5,000, not 0"]),
    ],
)  # fmt: skip
def test_what_was_changed_by_hand_is_named(url: str, corruption: str, found: list[str]) -> None:
    corrupt(url, corruption)

    result = run_audit()

    assert [line for line in result.stdout.splitlines() if ":" in line] == found
    assert result.exit_code == 1
    assert f"The books are wrong: {plural(len(found), 'finding')}." in result.stderr


def test_an_audit_sees_one_instant_and_holds_up_nobody(client: TestClient, url: str) -> None:
    with audit.open_books(url) as books:
        assert books.count_rows() == 16
        deposit = client.post("/deposits", json={"account_id": 1, "amount": 1}, headers=AS_OPERATOR)

        assert deposit.status_code == 201
        assert list(books.run(lambda rows: None)) == []
        assert books.totals["EUR"].transfers == 4


def test_a_long_audit_holds_a_few_rows_at_a_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CHUNK", 3)
    read: list[int] = []

    with audit.open_books(url) as books:
        findings = list(books.run(read.append))

    assert findings == []
    assert max(read) == 3
    assert sum(read) == 16


def test_books_that_cannot_be_read_are_exit_code_2(
    url: str, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = f"sqlite:///{tmp_path}/missing.db"
    query(empty_url, "CREATE TABLE something_else (id INTEGER)")
    cases = {
        empty_url: "Run: alembic upgrade head",
        missing: "There is no file",
        "postgresql://localhost:1/x": "Connection refused",
        "mysql://localhost/x": "DATABASE_URL: mysql is not supported",
    }
    for database_url, words in cases.items():
        monkeypatch.setenv("DATABASE_URL", database_url)
        result = run_audit()
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    assert not (tmp_path / "missing.db").exists()


def test_the_command_explains_itself() -> None:
    shown = subprocess.run(
        [sys.executable, ROOT / "manage.py", "--help"], capture_output=True, text=True, check=True, timeout=60
    )

    assert "audit" in shown.stdout
