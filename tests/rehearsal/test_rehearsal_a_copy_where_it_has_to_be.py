"""Rehearsal: a copy where it has to be; as if it were committed; locks and rows; losses."""

import json
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError

from alembic_savepoint.history.revisions import read_history
from alembic_savepoint.rehearsal import rehearsal
from alembic_savepoint.rehearsal.copies import scratch_database
from alembic_savepoint.rehearsal.rehearsal_report import as_json
from alembic_savepoint.rehearsal.trial import Rehearsal, Trial
from tests.support.migrations import (
    ACCOUNTS,
    HEAD,
    REVISIONS,
    add_revision,
    only_postgresql,
)
from tests.support.rehearsal import (
    ADD_COLUMN,
    ALL_EMAILS,
    NEW,
    config_of,
    everything,
    findings,
    only,
    printed,
    rehearsed,
    rules,
    statement,
    tried,
)
from tests.support.service import execute_on_server

pytestmark = pytest.mark.slow

CONCURRENTLY = """
    with op.get_context().autocommit_block():
        op.create_index("ix_users_mail", "users", ["email"], postgresql_concurrently=True)
"""


def test_what_cannot_be_tried_in_a_transaction_is_tried_on_a_copy(full_url: str, folder: Path) -> None:
    before = everything(full_url)

    result = tried(full_url, CONCURRENTLY, folder)

    assert result.failure is None
    assert result.place == "copy"
    assert result.reason == f"revision {NEW} has autocommit_block, which cannot be tried in one transaction"
    assert everything(full_url) == before


@only_postgresql
def test_the_locks_of_what_runs_outside_of_transactions_are_not_made_up(full_url: str, folder: Path) -> None:
    result = tried(full_url, CONCURRENTLY, folder)

    index = statement(result, "CREATE INDEX CONCURRENTLY")
    assert (index.in_transaction, index.locks) == (False, [])
    assert "require-concurrent-index-creation" not in rules(findings(result))


def reason_for_a_copy(upgrade: str, downgrade: str, folder: Path) -> str | None:
    add_revision(folder, NEW, HEAD, upgrade, downgrade)
    planned = Rehearsal("postgresql", "head", (), "upgrade", [Trial(NEW, "", {})])
    return rehearsal.why_not_in_one_transaction(planned, read_history(folder / "migrations/versions"))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("op.execute('VACUUM')", "VACUUM"),
        ("op.execute(sa.select(sa.func.setval('users_id_seq', 99)))", "setval"),
        ("op.execute('ALTER TYPE mood ADD  VALUE \\'calm\\'')", "ADD VALUE"),
    ],
)
def test_the_reason_for_a_copy_is_found_in_the_text(code: str, found: str, folder: Path) -> None:
    reason = reason_for_a_copy(f"    {code}", "    pass", folder)

    assert reason == f"revision {NEW} has {found}, which cannot be tried in one transaction"


@pytest.mark.parametrize(
    ("upgrade", "downgrade"),
    [
        ('    """VACUUM and COMMIT."""  # CREATE INDEX CONCURRENTLY', "    pass"),
        ("    pass", CONCURRENTLY),
        ('    op.execute("CREATE TEMPORARY TABLE t (id INTEGER) ON COMMIT DROP")', "    pass"),
        ('    op.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY v")', "    pass"),
    ],
    ids=["only mentioned", "the other direction", "temporary", "a view"],
)
def test_what_can_be_tried_in_a_transaction_needs_no_copy(upgrade: str, downgrade: str, folder: Path) -> None:
    assert reason_for_a_copy(upgrade, downgrade, folder) is None


@only_postgresql
def test_who_may_not_make_a_database_is_told_how(full_url: str) -> None:
    execute_on_server(full_url, "DROP ROLE IF EXISTS limited")
    execute_on_server(full_url, "CREATE ROLE limited LOGIN")

    with (
        pytest.raises(CommandError, match=r"limited may not make one.*ALTER ROLE limited CREATEDB"),
        scratch_database(full_url.replace("postgres@", "limited@")),
    ):
        pass


DEFERRED = '    op.execute("ALTER TABLE users ADD UNIQUE (email) DEFERRABLE INITIALLY DEFERRED")\n'


@only_postgresql
@pytest.mark.parametrize("copy", [False, True], ids=["in place", "on a copy"])
def test_what_the_commit_would_refuse_is_a_failure(full_url: str, folder: Path, copy: bool) -> None:
    add_revision(folder, NEW, HEAD, f"{DEFERRED}{ALL_EMAILS}")

    failure = rehearsed(full_url, copy=copy).failure

    assert failure is not None
    assert failure.error == 'duplicate key value violates unique constraint "users_email_key"'


@only_postgresql
def test_what_a_commit_would_have_checked_is_not_in_the_way_of_the_next_revision(full_url: str, folder: Path) -> None:
    wrong_for_a_while = f'{ALL_EMAILS}    op.execute("UPDATE users SET email = username")'
    add_revision(folder, NEW, HEAD, f"{DEFERRED}{wrong_for_a_while}")
    add_revision(folder, "f" * 13, NEW, f"{ADD_COLUMN}{wrong_for_a_while}")

    assert rehearsed(full_url).failure is None


@only_postgresql
@pytest.mark.parametrize(
    ("code", "beginning", "lock"),
    [
        (ADD_COLUMN, "ALTER TABLE users", ("AccessExclusiveLock", "reads and writes")),
        ('    op.create_index("i", "users", ["email"])', "CREATE INDEX", ("ShareLock", "writes")),
        (ALL_EMAILS, "UPDATE users", ("RowExclusiveLock", "nobody but migrations")),
    ],
)
def test_the_lock_of_a_statement_is_named(
    full_url: str, folder: Path, code: str, beginning: str, lock: tuple[str, str]
) -> None:
    result = tried(full_url, code, folder)

    (taken,) = statement(result, beginning).locks
    assert (taken.table, taken.mode, taken.blocks) == ("users", *lock)
    assert 0 < taken.milliseconds <= result.milliseconds
    assert result.locks == [taken]


@only_postgresql
def test_a_lock_is_told_where_it_is_taken_and_only_on_tables_that_were_there(older_url: str) -> None:
    result = rehearsed(older_url, ACCOUNTS)

    told = [(each.sql.split("(")[0].strip(), each.locks) for each in only(result).statements if each.locks]
    assert [(sql, lock.table, lock.mode) for sql, locks in told for lock in locks if lock.is_felt] == [
        ("CREATE TABLE accounts", "users", "ShareRowExclusiveLock")
    ]


@only_postgresql
def test_a_lock_is_on_the_name_that_others_know(full_url: str, folder: Path) -> None:
    result = tried(full_url, '    op.rename_table("users", "people"); op.execute("DELETE FROM people")', folder)

    assert [(lock.table, lock.mode) for lock in only(result).locks] == [("users", "AccessExclusiveLock")]


@only_postgresql
def test_locks_that_an_earlier_revision_hides_are_seen_on_a_copy(accounts_url: str) -> None:
    in_place = rehearsed(accounts_url, "base")
    on_a_copy = rehearsed(accounts_url, "base", copy=True)

    assert [trial.locked_before for trial in in_place.revisions] == [[], ["users"], ["users"], ["users"]]
    assert [trial.locked_before for trial in on_a_copy.revisions] == [[], [], [], []]
    assert ["users" in {lock.table for lock in trial.locks} for trial in on_a_copy.revisions] == [True] * 4


def test_the_rows_that_a_statement_touches_are_counted(full_url: str, folder: Path) -> None:
    code = f"""
{ADD_COLUMN}{ALL_EMAILS}
    op.get_bind().execute(sa.text("SELECT * FROM users"))
    op.bulk_insert(sa.table("profiles", sa.column("user_id"), sa.column("status")), [])
    op.execute("DELETE FROM profiles WHERE user_id = 1")
"""
    result = tried(full_url, code, folder)

    beginnings = ("ALTER TABLE", "UPDATE users", "SELECT *", "DELETE")
    assert [statement(result, beginning).rows for beginning in beginnings] == [None, 2, None, 1]


def test_the_record_is_kept_as_the_real_one_keeps_it(full_url: str, folder: Path) -> None:
    result = tried(full_url, "    pass", folder)

    around = [each.sql for each in only(result).statements if each.kind == "around"]
    assert [sql.split(" (")[0] for sql in around if sql.startswith(("INSERT", "UPDATE"))] == [
        f"UPDATE alembic_version SET version_num='{NEW}' WHERE alembic_version.version_num = '{HEAD}'",
        "INSERT INTO applied_revisions",
    ]


def test_values_are_not_shown(full_url: str, folder: Path) -> None:
    result = tried(full_url, "    op.get_bind().execute(sa.text('SELECT :word'), {'word': 'swordfish'})", folder)

    assert "swordfish" not in json.dumps(as_json(result))
    assert "swordfish" not in printed(result)


@only_postgresql
def test_numbers_that_a_revision_took_from_a_sequence_are_told(own_url: str, folder: Path) -> None:
    insert = "INSERT INTO users (username, email, created_at) VALUES ('eve', 'e@example.com', now())"

    result = tried(own_url, f'    op.execute("{insert}")', folder)

    (note,) = result.notes
    assert "numbers from public.users_id_seq" in note


@only_postgresql
def test_numbers_that_others_took_meanwhile_are_not_told(own_url: str, folder: Path) -> None:
    others = f"""
    import psycopg
    with psycopg.connect({own_url!r}) as other:
        other.execute("SELECT nextval('users_id_seq')")
"""
    assert tried(own_url, others, folder).notes == []


def test_what_a_downgrade_loses_is_counted_and_is_a_warning(accounts_url: str) -> None:
    result = rehearsed(accounts_url, REVISIONS[0])

    assert [trial.losses for trial in result.revisions] == [
        {"transfers": 1, "accounts": 1},
        {"access_tokens": 1},
        {"users.phone_number": 1},
    ]
    assert result.warnings == 3
    assert "! It loses data (users.phone_number: 1 value)." in printed(result)
    assert "-x accept-loss=transfers,accounts,access_tokens,users.phone_number" in result.command


def test_a_loss_that_the_file_does_not_tell_is_counted(own_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, "    for table in ('access_tokens',):\n        op.drop_table(table)")

    assert "! It loses data (access_tokens: 1 row)." in printed(rehearsed(own_url))


def test_what_an_earlier_revision_would_take_away_has_to_be_accepted_too(own_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, "    pass", '    op.execute("DELETE FROM access_tokens")')
    command.upgrade(config_of(folder), NEW)

    result = rehearsed(own_url, REVISIONS[1])

    assert result.revisions[0].losses == {"access_tokens": 1}
    assert result.command == f"alembic -x accept-loss=access_tokens,transfers,accounts downgrade {REVISIONS[1]}"


@only_postgresql
def test_a_downgrade_locks_what_the_dropped_table_refers_to_as_the_real_one_does(accounts_url: str) -> None:
    # Also what it refers to, in the order in which writers lock, so that neither waits for the other.
    locked = statement(rehearsed(accounts_url, "-1"), "DROP TABLE entries")

    assert {(lock.table, lock.mode) for lock in locked.locks} == {
        (table, "AccessExclusiveLock") for table in ("accounts", "transfers")
    }
