"""Migrations: every step there and back with rows in the tables, generated scripts, failures, and where they run."""

import ast
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeVar
from unittest.mock import patch

import psycopg
import pytest
from alembic.config import Config
from alembic.config import main as run_command_line
from alembic.script import ScriptDirectory
from conftest import ENGINES, ROOT, alembic, new_database, query, wait_until
from sqlalchemy import Engine, NullPool, create_engine, inspect, text
from sqlmodel import SQLModel

from db.engines import driver_url
from schema import ALEMBIC_INI

SCRIPTS = ScriptDirectory.from_config(Config(ALEMBIC_INI))
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]
"""From the oldest to the head."""

ROWS = {
    "4f1c7a9d2b60": [
        "INSERT INTO users (username, email, created_at)"
        " VALUES ('alice', 'a@example.com', '2026-01-01 00:00+00'), ('bob', 'b@example.com', '2026-01-02 00:00+00')",
        "INSERT INTO profiles (user_id, status) VALUES (1, 'active'), (2, 'suspended')",
    ],
    "9b3e5d8a1c74": ["UPDATE users SET phone_number = '+4915112345678' WHERE username = 'alice'"],
    "d27f60b8e913": [
        "INSERT INTO access_tokens (user_id, token_hash, created_at) VALUES (1, 'a hash', '2026-01-01 00:00:00+00')"
    ],
    "e8a4c05b7d31": [
        # Alice was paid in 12.50.
        "INSERT INTO accounts (id, user_id, currency, balance, version, updated_at)"
        " VALUES (11, NULL, 'CHF', -1250, 1, '2026-01-03 00:00+00'), (12, 1, 'CHF', 1250, 1, '2026-01-03 00:00+00')",
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, currency, amount, initiator, created_at)"
        " VALUES (21, 11, 12, 'CHF', 1250, 0, '2026-01-03 00:00+00')",
        "INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at) VALUES"
        " (11, 1, 21, -1250, -1250, '2026-01-03 00:00+00'), (12, 1, 21, 1250, 1250, '2026-01-03 00:00+00')",
    ],
}
"""What is stored once a revision is reached, as its tables then are. A revision with a new table adds rows here."""

ACCOUNTS = "e8a4c05b7d31"
BEFORE_ACCOUNTS = "d27f60b8e913"
HEAD = REVISIONS[-1]

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
only_postgresql = pytest.mark.parametrize("engine", ["postgresql"])

Rows = dict[str, list[dict[str, Any]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """All that a database holds: its tables with the names and texts of their constraints, and every row."""

    schema: dict[str, dict[str, Any]]
    rows: Rows


def create_plain_engine(url: str) -> Engine:
    """An engine that owes nothing to the product's events and pragmas."""
    return create_engine(driver_url(url, is_async=False), poolclass=NullPool)


def schema_of(url: str) -> dict[str, dict[str, Any]]:
    """Each table as the database tells it; the order of its columns does not count."""
    inspector = inspect(create_plain_engine(url))

    def sort(constraints: Any) -> list[dict[str, Any]]:
        return sorted(constraints, key=lambda constraint: constraint["name"] or "")

    def indexes(table: str) -> list[dict[str, Any]]:
        # As text, since two expressions of the same text are not equal: sqlite_where is one.
        return [
            {**index, "dialect_options": {name: str(value) for name, value in index["dialect_options"].items()}}
            for index in sort(inspector.get_indexes(table))
        ]

    return {
        table: {
            # As repr, for the lengths and time zones.
            "columns": {
                column["name"]: {**column, "type": repr(column["type"])} for column in inspector.get_columns(table)
            },
            "primary key": [inspector.get_pk_constraint(table)],
            "unique": sort(inspector.get_unique_constraints(table)),
            "foreign keys": sort(inspector.get_foreign_keys(table)),
            "checks": sort(inspector.get_check_constraints(table)),
            "indexes": indexes(table),
        }
        for table in inspector.get_table_names()
        if table != "applied_revisions"
    }


def look(url: str) -> Snapshot:
    """What the database holds now."""
    schema = schema_of(url)
    with create_plain_engine(url).connect() as connection:
        rows = {
            table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1")).mappings()]
            for table in schema
        }
    return Snapshot(schema, rows)


def common(before: Snapshot, after: Snapshot) -> tuple[Rows, Rows]:
    """The rows of both, in the tables and columns that both have."""

    def part(snapshot: Snapshot) -> Rows:
        return {
            table: [{name: row[name] for name in row if name in columns[table]} for row in snapshot.rows[table]]
            for table in columns
        }

    columns = {
        table: before.schema[table]["columns"].keys() & after.schema[table]["columns"].keys()
        for table in before.schema.keys() & after.schema.keys() - {"alembic_version"}
    }
    return part(before), part(after)


@cache
def alembic_processes() -> ProcessPoolExecutor:
    """Processes that have imported what alembic needs: that takes ten times as long as most commands do."""
    return ProcessPoolExecutor(len(ENGINES), get_context("spawn"))


@pytest.fixture(scope="module", autouse=True)
def _stop_alembic_processes() -> Iterator[None]:
    yield
    alembic_processes().shutdown()
    alembic_processes.cache_clear()


def run_alembic(url: str, arguments: tuple[str, ...], environment: dict[str, str]) -> CompletedProcess[str]:
    """Run the alembic command in this process."""
    code: Any = 0
    with (
        patch.dict(os.environ, {"DATABASE_URL": url, **environment}),
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        try:
            run_command_line(("-c", str(ALEMBIC_INI), *arguments))
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
    return CompletedProcess(arguments, code & 0xFF, stdout.getvalue(), stderr.getvalue())


def quick_alembic(url: str, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """Run the alembic command in a process that has started already."""
    return alembic_processes().submit(run_alembic, url, arguments, environment).result(timeout=60)


def migrate(url: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> Snapshot:
    """Run an alembic command that must succeed; what the database holds then."""
    if cwd == ROOT:
        result = quick_alembic(url, *arguments, **environment)
    else:
        result = alembic(url, *arguments, cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    return look(url)


def complaints(result: CompletedProcess[str]) -> list[str]:
    """What a command printed besides its progress."""
    return [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("INFO")]


def fill(url: str, *revisions: str) -> None:
    """Store what belongs to the revisions."""
    for revision in revisions:
        for sql in ROWS.get(revision, ()):
            query(url, sql)


def run_script(url: str, sql: str) -> None:
    """Run statements that open and end their transactions themselves."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as sqlite:
            sqlite.executescript(sql)
    else:
        with psycopg.connect(url, autocommit=True) as postgresql:
            postgresql.execute(sql.encode())


def on_both_engines(run: Callable[[str], T]) -> dict[str, T]:
    """Run for both engines at once, since most of an alembic command's time goes into starting Python."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(ENGINES, threads.map(run, ENGINES), strict=True))


def copy_of_the_repository(folder: Path) -> Path:
    """What alembic uses of the repository, for a test to change."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*alembic.ini")]:
        shutil.copy2(path, folder)
    for package in ("api", "db", "migrations"):
        shutil.copytree(ROOT / package, folder / package)
    return folder


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """A copy of the repository."""
    folder = tmp_path / "fork"
    folder.mkdir()
    return copy_of_the_repository(folder)


@pytest.fixture
def full_url(url: str) -> str:
    """A database at head with rows in its tables."""
    fill(url, *REVISIONS)
    return url


# --- there and back ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One revision up or down, with what the database held before and after it."""

    revision: str
    before: Snapshot
    after: Snapshot
    refused: bool = False
    """Whether it had to be told that something may be lost."""


@dataclass(frozen=True)
class Journey:
    """From nothing to head step by step, storing rows on the way, back to base, and to head again."""

    up: list[Step]
    down: list[Step]
    again: Snapshot


def travel(url: str) -> Journey:
    """Make the journey."""
    up, down = [], []
    for revision in REVISIONS:
        before = look(url)
        up.append(Step(revision, before, migrate(url, "upgrade", "+1")))
        fill(url, revision)
    for revision in reversed(REVISIONS):
        before = look(url)
        refused = quick_alembic(url, "downgrade", "-1").returncode != 0
        after = migrate(url, "-x", "accept-loss=all", "downgrade", "-1") if refused else look(url)
        down.append(Step(revision, before, after, refused))
    return Journey(up, down, migrate(url, "upgrade", "head"))


@pytest.fixture(scope="module")
def journeys(
    request: pytest.FixtureRequest, postgresql_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Journey]:
    folder = tmp_path_factory.mktemp("journeys")

    def run(engine: str) -> Journey:
        with new_database(engine, folder, request) as url:
            return travel(url)

    return on_both_engines(run)


@pytest.fixture
def journey(engine: str, journeys: dict[str, Journey]) -> Journey:
    return journeys[engine]


def test_each_upgrade_goes_one_revision_up(journey: Journey) -> None:
    assert [step.after.rows["alembic_version"] for step in journey.up] == [
        [{"version_num": revision}] for revision in REVISIONS
    ]


def test_each_upgrade_keeps_every_row(journey: Journey) -> None:
    for step in journey.up:
        before, after = common(step.before, step.after)
        assert after == before, step.revision


def test_the_way_back_begins_with_rows_in_every_table(journey: Journey) -> None:
    assert [table for table in SQLModel.metadata.tables if not journey.down[0].before.rows[table]] == []


def test_each_downgrade_that_drops_rows_or_values_has_to_be_told(journey: Journey) -> None:
    assert [step.revision for step in journey.down if step.refused] == [*reversed(ROWS)]


def test_each_downgrade_keeps_every_row_that_it_does_not_drop(journey: Journey) -> None:
    for step in journey.down:
        before, after = common(step.before, step.after)
        assert after == before, step.revision


def test_users_and_profiles_survive_the_drop_of_phone_number(journey: Journey) -> None:
    step = next(step for step in journey.down if step.revision == "9b3e5d8a1c74")

    assert [user["username"] for user in step.after.rows["users"]] == ["alice", "bob"]
    assert "phone_number" not in step.after.rows["users"][0]
    assert [profile["status"] for profile in step.after.rows["profiles"]] == ["active", "suspended"]


def test_each_downgrade_restores_the_schema_that_its_upgrade_found(journey: Journey) -> None:
    for up, down in zip(journey.up[1:], reversed(journey.down[:-1]), strict=True):
        assert down.after.schema == up.before.schema, down.revision


def test_base_has_no_tables_left(journey: Journey) -> None:
    assert journey.down[-1].after.rows == {"alembic_version": []}


def test_after_base_the_schema_at_head_is_the_same_again(journey: Journey) -> None:
    assert journey.again.schema == journey.up[-1].after.schema


# --- accounts for the users who are there -----------------------------------------------------------------------------

MANY_USERS = """
INSERT INTO users (id, username, email, created_at)
WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 100000)
SELECT 3 * number, 'user' || number, 'user@example.com', '2026-01-01 00:00+00' FROM numbers
"""
MORE_USERS = """
INSERT INTO users (id, username, email, created_at)
VALUES (30, 'carol', 'c@example.com', '2026-01-03 00:00+00'), (1000000, 'dave', 'd@example.com', '2026-01-04 00:00+00')
"""


def make_older(url: str) -> str:
    """Bring an empty database to where there are no accounts yet, with users: 1, 2, 30 and 1000000."""
    assert quick_alembic(url, "upgrade", BEFORE_ACCOUNTS).returncode == 0
    fill(url, *REVISIONS[: REVISIONS.index(ACCOUNTS)])
    query(url, MORE_USERS)
    return url


@pytest.fixture
def older_url(empty_url: str) -> str:
    """A database with users who have no accounts yet."""
    return make_older(empty_url)


@pytest.fixture
def twin_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Another database with the same rows as `older_url`."""
    with new_database(engine, tmp_path, request) as url:
        yield make_older(url)


@dataclass(frozen=True)
class Opening:
    """What an upgrade told of the accounts that it opened for 100,000 users, and the accounts."""

    progress: list[str]
    accounts: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def openings(
    request: pytest.FixtureRequest, postgresql_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Opening]:
    folder = tmp_path_factory.mktemp("openings")

    def run(engine: str) -> Opening:
        with new_database(engine, folder, request) as url:
            quick_alembic(url, "upgrade", BEFORE_ACCOUNTS)
            query(url, MANY_USERS)
            result = quick_alembic(url, "upgrade", "head")
            return Opening(
                progress=[line.partition("] ")[2] for line in result.stderr.splitlines() if "Opened" in line],
                accounts=query(url, "SELECT user_id, currency, balance, version FROM accounts ORDER BY user_id"),
            )

    return on_both_engines(run)


@pytest.fixture
def opening(engine: str, openings: dict[str, Opening]) -> Opening:
    return openings[engine]


def test_each_of_100_000_users_gets_one_account_with_nothing_on_it(opening: Opening) -> None:
    assert opening.accounts == [(3 * number, "EUR", 0, 0) for number in range(1, 100_001)]


def test_the_progress_is_shown_after_each_10_000_accounts(opening: Opening) -> None:
    assert opening.progress == [
        f"Opened EUR accounts for {done:,} of 100,000 users" for done in range(10_000, 100_001, 10_000)
    ]


def test_without_users_there_is_nothing_to_open(empty_url: str) -> None:
    result = quick_alembic(empty_url, "upgrade", "head")

    assert result.returncode == 0
    assert "Opened" not in result.stderr
    assert query(empty_url, "SELECT * FROM accounts") == []


def test_the_accounts_are_in_the_default_currency_that_is_set(older_url: str) -> None:
    after = migrate(older_url, "upgrade", "head", DEFAULT_CURRENCY="POINTS", CUSTOM_CURRENCIES="POINTS")

    assert [(account["user_id"], account["currency"]) for account in after.rows["accounts"]] == [
        (user["id"], "POINTS") for user in after.rows["users"]
    ]


def test_an_upgrade_that_fails_after_some_accounts_leaves_everything_as_it_was(older_url: str, fork: Path) -> None:
    script = fork / "migrations" / "versions" / Path(SCRIPTS.get_revision(ACCOUNTS).path).name
    next_chunk = "        first = last\n"
    doomed = f'{next_chunk}        if done == 3:\n            raise RuntimeError("The power is gone")\n'
    script.write_text(script.read_text().replace("CHUNK = 10_000", "CHUNK = 1").replace(next_chunk, doomed))
    before = look(older_url)

    result = alembic(older_url, "upgrade", "head", cwd=fork)

    assert "Opened EUR accounts for 3 of 4 users" in result.stderr
    assert result.stderr.endswith("RuntimeError: The power is gone\n")
    assert look(older_url) == before


def test_printed_sql_opens_all_accounts_with_one_statement_and_leaves_what_the_upgrade_leaves(
    older_url: str, twin_url: str
) -> None:
    result = alembic(older_url, "upgrade", f"{BEFORE_ACCOUNTS}:{ACCOUNTS}", "--sql", DEFAULT_CURRENCY="CHF")

    assert result.stdout.count("INSERT INTO accounts") == 1
    run_script(twin_url, result.stdout)
    assert look(twin_url) == migrate(older_url, "upgrade", ACCOUNTS, DEFAULT_CURRENCY="CHF")


def wait_for_a_lock(url: str, running: Future[Any]) -> None:
    """Wait until the command that runs waits for somebody's transaction, or has ended without."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: running.done() or query(url, waiting) != [], "a lock to be waited for")


@only_postgresql  # On SQLite there is one writer at a time.
def test_a_user_whose_registration_is_under_way_gets_an_account_too(older_url: str) -> None:
    with ThreadPoolExecutor() as threads, psycopg.connect(older_url) as registration:
        registration.execute("INSERT INTO users (username, email, created_at) VALUES ('eve', 'e@example.com', now())")
        upgrade = threads.submit(quick_alembic, older_url, "upgrade", "head")
        wait_for_a_lock(older_url, upgrade)
        registration.commit()

    assert upgrade.result().returncode == 0
    assert (
        query(older_url, "SELECT username FROM users LEFT JOIN accounts ON user_id = users.id WHERE balance IS NULL")
        == []
    )


# --- money is not dropped unless told ---------------------------------------------------------------------------------

PAYMENT_BACK = [
    "INSERT INTO transfers"
    " (id, debit_account_id, credit_account_id, currency, amount, reverses_id, initiator, created_at)"
    " VALUES (22, 12, 11, 'CHF', 1250, 21, 0, '2026-01-04 00:00+00')",
    "INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at)"
    " VALUES (12, 2, 22, -1250, 0, '2026-01-04 00:00+00'), (11, 2, 22, 1250, 0, '2026-01-04 00:00+00')",
    "UPDATE accounts SET balance = 0, version = 2 WHERE id IN (11, 12)",
]


def downgrade(url: str, *options: str, to: str = BEFORE_ACCOUNTS) -> CompletedProcess[str]:
    """Go back to where there were no accounts."""
    return quick_alembic(url, *(part for option in options for part in ("-x", option)), "downgrade", to)


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


# --- the chain --------------------------------------------------------------------------------------------------------


def test_there_is_exactly_one_head() -> None:
    assert SCRIPTS.get_heads() == [HEAD]


def test_each_revision_says_what_it_does() -> None:
    # What follows the message in a script starts so.
    messages = [script.doc.partition("Revision ID:")[0] for script in SCRIPTS.walk_revisions()]

    assert "" not in messages


def test_revision_ids_fit_into_the_version_table() -> None:
    # A longer one passes on SQLite and fails on PostgreSQL.
    assert [revision for revision in REVISIONS if len(revision) > 32] == []


# --- the models -------------------------------------------------------------------------------------------------------


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


# --- generated scripts ------------------------------------------------------------------------------------------------

NEW_FIELDS = {
    "    registration_key_hash:": """\
    nickname: str | None = Field(default=None, max_length=30, index=True)
    invited_by: int | None = Field(default=None, foreign_key="users.id", sa_type=Id)
    is_curious: bool = Field(default=False, sa_column_kwargs={"server_default": sqlalchemy.false()})
""",
    "    status: Status = Field(": """\
    note: str | None = Field(default=None, max_length=30)
    sponsor_id: int | None = Field(default=None, foreign_key="users.id", index=True, sa_type=Id)
""",
}
"""Fields, by what they are written in front of in models.py."""

NEW_MODEL = '''

class Gift(SQLModel, table=True):
    """A column of every kind, with every kind of constraint."""

    __tablename__ = "gifts"
    __table_args__ = (CheckConstraint("amount > 0", name="amount"), UniqueConstraint("user_id", "code"))

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    user_id: int = Field(foreign_key="users.id", sa_type=Id)
    code: str = Field(max_length=12, unique=True)
    amount: int = Field(sa_type=BigInteger)
    wrapped: bool = Field(default=True, sa_column_kwargs={"server_default": sqlalchemy.true()})
    given_at: datetime = Field(index=True)
    stored_at: datetime = Field(sa_column_kwargs={"server_default": sqlalchemy.func.now()})
    memo: str | None = Field(default=None, sa_type=sqlalchemy.Text)
'''


@dataclass(frozen=True)
class Generation:
    """A script generated from changed models, run up and down unedited on a database with rows."""

    script: str
    before: Snapshot
    up: Snapshot
    check: str
    down: Snapshot


def change_models(folder: Path) -> None:
    """Add a table, and columns to tables that exist."""
    path = folder / "models.py"
    source = path.read_text().replace("\nimport pydantic\n", "\nimport pydantic\nimport sqlalchemy\n", 1)
    for place, fields in NEW_FIELDS.items():
        assert place in source
        source = source.replace(place, fields + place, 1)
    path.write_text(source + NEW_MODEL)


def generate(url: str, folder: Path) -> str:
    """Run `alembic revision --autogenerate`; the script that it wrote."""
    scripts = folder / "migrations" / "versions"
    before = set(scripts.glob("*.py"))
    migrate(url, "revision", "--autogenerate", "-m", 'what "the models" say', cwd=folder)
    (script,) = set(scripts.glob("*.py")) - before
    return script.read_text()


@pytest.fixture(scope="module")
def generations(
    request: pytest.FixtureRequest,
    sqlite_template: str,
    postgresql_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Generation]:
    templates = {"sqlite": sqlite_template, "postgresql": postgresql_template}

    def run(engine: str) -> Generation:
        fork = copy_of_the_repository(tmp_path_factory.mktemp(engine))
        change_models(fork)
        with new_database(engine, fork, request, templates[engine]) as url:
            fill(url, *REVISIONS)
            before = look(url)
            return Generation(
                script=generate(url, fork),
                before=before,
                up=migrate(url, "upgrade", "head", cwd=fork),
                check=alembic(url, "check", cwd=fork).stdout,
                down=migrate(url, "-x", "accept-loss=users.is_curious", "downgrade", "-1", cwd=fork),
            )

    return on_both_engines(run)


@pytest.fixture
def generation(engine: str, generations: dict[str, Generation]) -> Generation:
    return generations[engine]


def test_unchanged_models_generate_an_empty_script(url: str, fork: Path) -> None:
    functions = {
        node.name: [ast.unparse(statement) for statement in node.body[1:]]
        for node in ast.parse(generate(url, fork)).body
        if isinstance(node, ast.FunctionDef)
    }

    assert functions == {"upgrade": ["pass"], "downgrade": ["pass"]}


def test_a_generated_script_is_the_same_whichever_engine_it_was_generated_on(
    generations: dict[str, Generation],
) -> None:
    sqlite, postgresql = (generation.script.partition("def upgrade")[2] for generation in generations.values())

    assert sqlite == postgresql


def test_a_generated_script_needs_no_sqlmodel(generation: Generation) -> None:
    assert "sqlmodel" not in generation.script.lower()


def test_a_generated_script_leaves_nothing_to_generate(generation: Generation) -> None:
    assert generation.check == "No new upgrade operations detected.\n"


def test_a_generated_script_makes_the_columns_and_constraints_of_a_new_model(generation: Generation) -> None:
    gifts = generation.up.schema["gifts"]

    assert list(gifts["columns"]) == ["id", "user_id", "code", "amount", "wrapped", "given_at", "stored_at", "memo"]
    assert gifts["columns"]["code"]["type"] == "VARCHAR(length=12)"
    assert [name for name, column in gifts["columns"].items() if column["nullable"]] == ["memo"]
    assert [name for name, column in gifts["columns"].items() if name != "id" and column["default"]] == [
        "wrapped",
        "stored_at",
    ]
    assert {
        constraint["name"] for kind in gifts.keys() - {"columns"} for constraint in gifts[kind] if constraint["name"]
    } >= {
        "pk_gifts",
        "ck_gifts_amount",
        "fk_gifts_user_id_users",
        "uq_gifts_code",
        "uq_gifts_user_id_code",
        "ix_gifts_given_at",
    }


def test_a_generated_script_adds_columns_to_a_table_with_rows(generation: Generation) -> None:
    before, after = common(generation.before, generation.up)

    assert after == before
    assert {"nickname", "invited_by", "is_curious"} <= generation.up.rows["users"][0].keys()


def test_a_generated_script_keeps_the_constraints_of_the_tables_that_it_changes(generation: Generation) -> None:
    for table in ("users", "profiles"):
        before, after = generation.before.schema[table], generation.up.schema[table]
        for kind in ("unique", "foreign keys", "checks"):
            assert [constraint for constraint in before[kind] if constraint not in after[kind]] == []


def test_a_generated_script_undone_leaves_the_database_as_it_was(generation: Generation) -> None:
    assert generation.down == generation.before


@only_sqlite  # PostgreSQL changes a table in place.
def test_a_rebuild_of_accounts_keeps_its_rows_its_constraints_and_the_condition_of_its_partial_index(
    full_url: str, fork: Path
) -> None:
    add_revision(fork, "ffffffffffff", HEAD, REBUILD)
    before = look(full_url)

    after = migrate(full_url, "upgrade", "head", cwd=fork)

    assert after.schema["accounts"]["columns"].pop("note")
    assert after.schema == before.schema
    kept = {"sqlite_where": "user_id IS NULL"}
    assert kept in [index["dialect_options"] for index in after.schema["accounts"]["indexes"]]
    assert common(before, after)[1] == common(before, after)[0]


# --- failures ---------------------------------------------------------------------------------------------------------


def add_revision(folder: Path, revision: str, down_revision: str, upgrade: str, downgrade: str = "    pass") -> None:
    """Add a revision that does `upgrade`."""
    (folder / "migrations" / "versions" / f"{revision}_added.py").write_text(
        '"""added"""\nimport sqlalchemy as sa\nfrom alembic import op\n\n'
        f'revision = "{revision}"\ndown_revision = "{down_revision}"\n\n\n'
        f"def upgrade():\n{upgrade}\n\n\ndef downgrade():\n{downgrade}\n"
    )


REBUILD = """
    with op.batch_alter_table("accounts", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("note", sa.String(length=30), nullable=True))
"""
BLESSED = """
    op.create_table("gifts", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("INSERT INTO gifts (id) VALUES (1)")
"""
DOOMED = """
    op.create_table("wishes", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("UPDATE users SET username = email")
    with op.batch_alter_table("users") as batch_op:
        batch_op.drop_column("email")
    op.execute("SELECT nonsense")
"""


def test_a_revision_that_fails_half_way_takes_back_all_that_it_did_and_none_before_it(
    full_url: str, fork: Path
) -> None:
    add_revision(fork, "eeeeeeeeeeee", HEAD, BLESSED, '    op.drop_table("gifts")')
    blessed = migrate(full_url, "upgrade", "head", cwd=fork)
    assert query(full_url, "SELECT id FROM gifts") == [(1,)]
    migrate(full_url, "-x", "accept-loss=gifts", "downgrade", "-1", cwd=fork)
    add_revision(fork, "ffffffffffff", "eeeeeeeeeeee", DOOMED)

    result = alembic(full_url, "upgrade", "head", cwd=fork)

    assert "eeeeeeeeeeee -> ffffffffffff" in result.stderr
    assert result.returncode != 0
    assert look(full_url) == blessed


def test_a_downgrade_that_fails_takes_back_all_that_it_did_and_none_before_it(full_url: str, fork: Path) -> None:
    oldest = fork / "migrations" / "versions" / Path(SCRIPTS.get_revision(REVISIONS[0]).path).name
    oldest.write_text(oldest.read_text() + '    op.execute("SELECT nonsense")\n')  # Its downgrade comes last.
    before = migrate(full_url, "-x", "accept-loss=all", "downgrade", REVISIONS[1])

    result = alembic(full_url, "-x", "accept-loss=all", "downgrade", "base", cwd=fork)

    assert f"{REVISIONS[0]} -> " in result.stderr
    assert result.returncode != 0
    after = look(full_url)
    assert after.rows["alembic_version"] == [{"version_num": REVISIONS[0]}]
    assert common(before, after)[1] == common(before, after)[0]


@only_sqlite  # PostgreSQL refuses the statement itself.
def test_a_migration_that_would_leave_orphans_is_refused_in_one_line(full_url: str, fork: Path) -> None:
    add_revision(fork, "ffffffffffff", HEAD, '    op.execute("DELETE FROM users")')
    before = look(full_url)

    result = alembic(full_url, "upgrade", "head", cwd=fork)

    assert complaints(result) == [
        "FAILED: 4 rows would refer to rows that do not exist (access_tokens → users, accounts → users,"
        " profiles → users). Nothing was changed."
    ]
    assert look(full_url) == before


# --- environments -----------------------------------------------------------------------------------------------------

PROD_INI = str(ROOT / "prod_alembic.ini")


def test_prod_alembic_ini_migrates_the_production_database_and_no_other(empty_url: str, tmp_path: Path) -> None:
    other = tmp_path / "other.db"

    result = alembic(
        f"sqlite:///{other}", "upgrade", "head", ALEMBIC_CONFIG="prod_alembic.ini", PROD_DATABASE_URL=empty_url
    )

    assert result.returncode == 0, result.stderr
    assert query(empty_url, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert not other.exists()


def test_prod_alembic_ini_without_its_url_says_in_one_line_which_is_missing(tmp_path: Path) -> None:
    database = tmp_path / "development.db"

    # Not from the root, where a developer's .env may name the real one.
    result = alembic(f"sqlite:///{database}", "upgrade", "head", cwd=tmp_path, ALEMBIC_CONFIG=PROD_INI)

    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert "PROD_DATABASE_URL" in line
    assert not database.exists()


@pytest.mark.parametrize(
    ("ini", "setting"), [("alembic.ini", "DATABASE_URL"), ("prod_alembic.ini", "PROD_DATABASE_URL")]
)
def test_a_malformed_url_is_named_in_one_line_without_its_password(ini: str, setting: str, tmp_path: Path) -> None:
    malformed = "postgresql://savepoint:swordfish@host:port/name"
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/other.db", "ALEMBIC_CONFIG": ini, setting: malformed}

    result = alembic(environment.pop("DATABASE_URL"), "upgrade", "head", cwd=ROOT, **environment)

    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(f"FAILED: {setting}: ")
    assert "swordfish" not in line


@pytest.mark.parametrize(("setting", "value"), [("DEFAULT_CURRENCY", "XAU"), ("CUSTOM_CURRENCIES", "x")])
def test_a_currency_that_there_cannot_be_is_named_in_one_line(setting: str, value: str, tmp_path: Path) -> None:
    database = tmp_path / "untouched.db"

    result = alembic(f"sqlite:///{database}", "upgrade", "head", cwd=ROOT, **{setting: value})

    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(f"FAILED: {setting}: ")
    assert repr(value) in line
    assert not database.exists()


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.ini")), ids=lambda path: path.name)
def test_an_ini_file_holds_no_url_and_no_password(path: Path) -> None:
    ini = ConfigParser(interpolation=None)
    ini.read(path)

    options = {option: value for section in ini.sections() for option, value in ini.items(section)}
    assert [value for value in options.values() if "://" in value] == []
    assert [option for option in options if option == "sqlalchemy.url" or "password" in option] == []


@only_sqlite
def test_alembic_works_from_any_folder(empty_url: str, tmp_path: Path) -> None:
    result = alembic(empty_url, "-c", str(ALEMBIC_INI), "upgrade", "head", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert query(empty_url, "SELECT version_num FROM alembic_version") == [(HEAD,)]


@only_postgresql
def test_printed_sql_makes_the_schema_that_a_migration_makes(url: str, empty_url: str) -> None:
    result = alembic("postgresql://savepoint@nowhere.invalid/name", "upgrade", "head", "--sql")

    run_script(empty_url, result.stdout)
    assert look(empty_url) == look(url)
