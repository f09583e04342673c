"""Migrations: there and back; accounts for the users who are there."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlmodel import SQLModel

from tests.support.migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    LATER_ROWS,
    REVISIONS,
    ROWS,
    SCRIPTS,
    Snapshot,
    common,
    fill,
    look,
    make_older,
    migrate,
    on_both_engines,
    only_postgresql,
    quick_alembic,
    run_script,
    wait_for_a_lock,
)
from tests.support.service import alembic, new_database, query

pytestmark = pytest.mark.slow


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
        for sql in LATER_ROWS.get(revision, ()):
            query(url, sql)
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
    assert [step.revision for step in journey.down if step.refused] == [*reversed([*ROWS, *LATER_ROWS])]


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


MANY_USERS = """
INSERT INTO users (id, username, email, created_at)
WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 100000)
SELECT 3 * number, 'user' || number, 'user@example.com', '2026-01-01 00:00+00' FROM numbers
"""


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
