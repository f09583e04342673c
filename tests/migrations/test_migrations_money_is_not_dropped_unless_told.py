"""Migrations: money is not dropped unless told; the chain; the models."""

import re
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlmodel import SQLModel

from tests.support.migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    REVISIONS,
    ROWS,
    SCRIPTS,
    complaints,
    downgrade,
    fill,
    look,
    migrate,
    only_postgresql,
    schema_of,
    wait_for_a_lock,
)
from tests.support.service import alembic, query

pytestmark = pytest.mark.slow

PAYMENT_BACK = [
    "INSERT INTO transfers"
    " (id, debit_account_id, credit_account_id, currency, amount, reverses_id, initiator, created_at)"
    " VALUES (22, 12, 11, 'CHF', 1250, 21, 0, '2026-01-04 00:00+00')",
    "INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at)"
    " VALUES (12, 2, 22, -1250, 0, '2026-01-04 00:00+00'), (11, 2, 22, 1250, 0, '2026-01-04 00:00+00')",
    "UPDATE accounts SET balance = 0, version = 2 WHERE id IN (11, 12)",
]


def is_before_accounts(url: str) -> bool:
    """Whether nothing is left of the accounts."""
    tables = schema_of(url).keys()
    version = query(url, "SELECT version_num FROM alembic_version")
    return version == [(BEFORE_ACCOUNTS,)] and tables.isdisjoint({"accounts", "transfers", "entries"})


def test_a_downgrade_that_would_drop_money_says_in_one_line_how_much_and_what_to_do(full_url: str) -> None:
    result = downgrade(full_url)

    assert result.returncode == 1
    (line,) = complaints(result)
    assert line.startswith("FAILED: ")
    assert "(transfers: 1 row, accounts: 1 row)" in line
    assert "alembic -x accept-loss=transfers,accounts downgrade" in line


@pytest.mark.parametrize("to", [BEFORE_ACCOUNTS, "base"])
def test_a_refused_downgrade_changes_nothing(full_url: str, to: str) -> None:
    before = look(full_url)

    assert downgrade(full_url, to=to).returncode == 1
    assert look(full_url) == before


def test_nothing_is_accepted_that_was_not_named_exactly(full_url: str) -> None:
    before = look(full_url)

    for option in (
        "accept-loss=accounts",
        "accept-loss=transfers",
        "accept-loss=account,transfer",
        "accept-loss=accounts.balance,transfers",
        "accept-loss=ALL",
        "accept-loss=al",
        "accept-loss=",
        "accept-loss",
        "accept_loss=all",
        "acceptloss=all",
        "all",
    ):
        assert downgrade(full_url, option).returncode == 1, option
    assert look(full_url) == before


@pytest.mark.parametrize("accepted", ["accounts,transfers", "transfers,accounts", "all"])
def test_a_loss_that_was_accepted_is_no_obstacle(full_url: str, accepted: str) -> None:
    assert downgrade(full_url, f"accept-loss={accepted}").returncode == 0
    assert is_before_accounts(full_url)


def test_the_option_that_a_refusal_names_is_enough_also_where_a_part_was_accepted(full_url: str) -> None:
    (line,) = complaints(downgrade(full_url, "accept-loss=transfers"))

    (option,) = re.findall(r"-x (\S+)", line)
    assert downgrade(full_url, option).returncode == 0
    assert is_before_accounts(full_url)


def test_balances_without_transfers_are_accepted_by_their_name(full_url: str) -> None:
    query(full_url, "DELETE FROM entries")
    query(full_url, "DELETE FROM transfers")

    (line,) = complaints(downgrade(full_url))
    assert "(accounts: 1 row)" in line
    assert downgrade(full_url, "accept-loss=accounts").returncode == 0


def test_transfers_that_left_no_balance_are_accepted_by_their_name(full_url: str) -> None:
    for sql in PAYMENT_BACK:
        query(full_url, sql)

    (line,) = complaints(downgrade(full_url))
    assert "(transfers: 2 rows)" in line
    assert downgrade(full_url, "accept-loss=transfers").returncode == 0


def test_where_no_money_ever_moved_a_downgrade_needs_no_option(older_url: str) -> None:
    before = look(older_url)
    assert len(migrate(older_url, "upgrade", ACCOUNTS).rows["accounts"]) == 4

    assert migrate(older_url, "downgrade", BEFORE_ACCOUNTS) == before


def test_the_balance_of_a_system_account_is_nobodys_money(full_url: str) -> None:
    for sql in ("DELETE FROM entries", "DELETE FROM transfers", "DELETE FROM accounts WHERE user_id IS NOT NULL"):
        query(full_url, sql)
    assert query(full_url, "SELECT balance FROM accounts") == [(-1250,)]

    assert downgrade(full_url).returncode == 0


@only_postgresql  # On SQLite there is one writer at a time.
def test_a_transfer_that_is_under_way_is_not_dropped_unseen(url: str) -> None:
    migrate(url, "downgrade", ACCOUNTS)
    fill(url, *REVISIONS[: REVISIONS.index(ACCOUNTS)])
    with ThreadPoolExecutor() as threads, psycopg.connect(url) as transfer:
        for sql in ROWS[ACCOUNTS]:
            transfer.execute(sql.encode())
        undoing = threads.submit(downgrade, url)
        wait_for_a_lock(url, undoing)
        transfer.commit()

    assert undoing.result().returncode == 1
    assert query(url, "SELECT count(*) FROM transfers") == [(1,)]


def test_there_is_exactly_one_head() -> None:
    assert SCRIPTS.get_heads() == [HEAD]


def test_each_revision_says_what_it_does() -> None:
    # What follows the message in a script starts so.
    messages = [script.doc.partition("Revision ID:")[0] for script in SCRIPTS.walk_revisions()]

    assert "" not in messages


def test_revision_ids_fit_into_the_version_table() -> None:
    # A longer one passes on SQLite and fails on PostgreSQL.
    assert [revision for revision in REVISIONS if len(revision) > 32] == []


def test_alembic_check_finds_nothing_to_do_at_head(url: str) -> None:
    result = alembic(url, "check")

    assert (result.returncode, result.stdout) == (0, "No new upgrade operations detected.\n")


@only_postgresql
def test_each_table_has_the_storage_parameters_that_its_model_names(url: str) -> None:
    # Alembic's comparison does not look at them.
    named = {
        name: [f"{key}={value}" for key, value in (table.dialect_options["postgresql"]["with"] or {}).items()]
        for name, table in SQLModel.metadata.tables.items()
    }

    stored = dict(query(url, "SELECT relname, coalesce(reloptions, '{}') FROM pg_class WHERE relkind = 'r'"))
    assert {table: stored[table] for table in named} == named


def test_each_constraint_has_a_name(url: str) -> None:
    # Without one it cannot be dropped on SQLite.
    unnamed = [
        (table, kind, constraint)
        for table, parts in schema_of(url).items()
        for kind in parts.keys() - {"columns"}
        for constraint in parts[kind]
        if not constraint["name"]
    ]

    assert unnamed == []
