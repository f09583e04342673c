"""`python manage.py rehearse`: a migration run for real, watched, and rolled back."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from conftest import ROOT, execute_on_server, new_database, query, wait_until
from rich.console import Console
from sqlalchemy import create_engine, make_url
from test_migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    REVISIONS,
    add_revision,
    fill,
    only_postgresql,
    only_sqlite,
    run_alembic,
    run_script,
)
from typer.testing import CliRunner, Result

import manage
from db.engines import create_migration_engine
from migrations import rehearsal, unsafe
from migrations.copies import LABEL, scratch_database
from migrations.migrating import only_migrator
from migrations.rebuild_losses import Rebuilds
from migrations.rehearsal import rehearse
from migrations.rehearsal_report import as_json, as_text
from migrations.revisions import read_history
from migrations.trial import Rehearsal, Trial
from migrations.unsafe import ask_squawk
from migrations.watching import Finding, Statement, Watch
from schema import ALEMBIC_INI
from settings import Settings

NEW = "ffffffffffff"
"""A revision that a test adds to a copy of the migrations."""
ADD_COLUMN = '    op.add_column("users", sa.Column("nickname", sa.String(length=30), nullable=True))\n'
ALL_EMAILS = "    op.execute(\"UPDATE users SET email = 'nobody@example.com'\")\n"
CONCURRENTLY = """
    with op.get_context().autocommit_block():
        op.create_index("ix_users_email", "users", ["email"], postgresql_concurrently=True)
"""
LOSING = "-x accept-loss=transfers,accounts"
REBUILD = """
    with op.batch_alter_table("users", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("nickname", sa.String(length=30), nullable=True))
"""


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Databases with rows, by engine and revision. Rehearsals are run on them, and they are the same in the end."""
    folder = tmp_path_factory.mktemp("filled")
    before = {}
    with ExitStack() as stack:

        @cache
        def make(engine: str, revision: str) -> str:
            url = stack.enter_context(new_database(engine, folder, request))
            with patch.dict(os.environ, {"DATABASE_URL": url}):
                command.upgrade(Config(ALEMBIC_INI), revision)
            fill(url, *REVISIONS[: REVISIONS.index(revision) + 1])
            before[url] = everything(url)
            return url

        yield make
        assert {url: everything(url) for url in before} == before


@pytest.fixture
def full_url(engine: str, filled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database at head with rows in its tables, which only rehearsals use."""
    url = filled(engine, HEAD)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def accounts_url(engine: str, filled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with rows where accounts, transfers and entries came last, which only rehearsals use."""
    url = filled(engine, ACCOUNTS)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def older_url(engine: str, filled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with two users, where there are no accounts yet, which only rehearsals use."""
    url = filled(engine, BEFORE_ACCOUNTS)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def own_url(
    engine: str, full_url: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A copy of the database at head, to change."""
    with new_database(engine, tmp_path, request, make_url(full_url).database) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the migrations, to change; they are what is rehearsed."""
    shutil.copytree(ROOT / "migrations/versions", tmp_path / "migrations/versions")
    shutil.copy(ROOT / "migrations/env.py", tmp_path / "migrations")
    monkeypatch.setattr(rehearsal, "Config", lambda _: config_of(tmp_path))
    return tmp_path


def config_of(folder: Path) -> Config:
    """Alembic's configuration for the copy."""
    config = Config(ALEMBIC_INI)
    config.set_main_option("script_location", str(folder / "migrations"))
    return config


def settings(url: str) -> Settings:
    return Settings(database_url=url, migration_lock_timeout=0.3, lock_timeout=0.3)


def rehearsed(url: str, target: str = "head", *, copy: bool = False) -> Rehearsal:
    return rehearse(url, target, settings=settings(url), copy=copy)


def tried(url: str, upgrade: str, folder: Path) -> Rehearsal:
    """The rehearsal of one revision that a test adds."""
    add_revision(folder, NEW, HEAD, upgrade)
    return rehearsed(url)


def only(rehearsal: Rehearsal) -> Trial:
    (trial,) = rehearsal.revisions
    return trial


def statement(rehearsal: Rehearsal, beginning: str) -> Statement:
    """The statement of the last revision that begins so."""
    (found,) = (each for each in rehearsal.revisions[-1].statements if each.sql.startswith(beginning))
    return found


def findings(rehearsal: Rehearsal) -> list[Finding]:
    found = []
    for trial in rehearsal.revisions:
        for each in trial.statements:
            found += each.findings
        found += trial.findings
    return found


def rules(findings: list[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(manage.app, ["rehearse", *arguments])


# --- no trace ---------------------------------------------------------------------------------------------------------


def everything(url: str) -> list[str]:
    """All that a database holds, as a script that makes it anew; on PostgreSQL also which databases there are."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return list(connection.iterdump())
    dump = subprocess.run(["pg_dump", f"--dbname={url}"], capture_output=True, text=True, check=True, timeout=60)
    # pg_dump 18 frames a script with a word that is new each time.
    script = [line for line in dump.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    return script + [name for (name,) in databases(url)]


def databases(url: str) -> list[tuple[str]]:
    """The databases on the server that are this one or a copy of it."""
    return query(url, "SELECT datname FROM pg_database WHERE starts_with(datname, current_database()) ORDER BY 1")


@pytest.mark.parametrize("copy", [False, True], ids=["in place", "on a copy"])
def test_an_upgrade_with_rows_leaves_no_trace(older_url: str, copy: bool) -> None:
    before = everything(older_url)

    result = rehearsed(older_url, ACCOUNTS, copy=copy)

    assert [trial.id for trial in result.revisions] == [ACCOUNTS]
    assert (result.failure, result.warnings, result.notes) == (None, 0, [])
    assert result.place == ("copy" if copy else "database")
    assert everything(older_url) == before


@pytest.mark.parametrize("copy", [False, True], ids=["in place", "on a copy"])
def test_a_downgrade_with_rows_leaves_no_trace(full_url: str, copy: bool) -> None:
    before = everything(full_url)

    result = rehearsed(full_url, "base", copy=copy)

    assert [trial.id for trial in result.revisions] == REVISIONS[::-1]
    assert (result.failure, result.notes) == (None, [])
    assert everything(full_url) == before


def test_all_revisions_on_an_empty_database_leave_no_trace(empty_url: str) -> None:
    before = everything(empty_url)

    result = rehearsed(empty_url)
    again = rehearsed(empty_url, copy=True)

    assert [trial.id for trial in result.revisions] == [trial.id for trial in again.revisions] == REVISIONS
    assert (result.failure, again.failure, result.warnings, again.warnings) == (None, None, 0, 0)
    assert everything(empty_url) == before


def test_a_revision_that_fails_leaves_no_trace(full_url: str, folder: Path) -> None:
    before = everything(full_url)

    result = tried(full_url, f'{ADD_COLUMN}{ALL_EMAILS}    op.execute("SELECT nonsense")', folder)

    assert result.failure is not None
    assert (result.failure.revision, result.failure.sql) == (NEW, "SELECT nonsense")
    assert "nonsense" in result.failure.error
    assert (result.failure.where or "").endswith(f"{NEW}_added.py, line 12")
    assert statement(result, "SELECT nonsense").milliseconds is None
    assert everything(full_url) == before


def test_what_a_failure_says_repeats_no_row(full_url: str, folder: Path) -> None:
    result = tried(full_url, "    op.execute(\"UPDATE users SET username = 'alice'\")", folder)

    assert result.failure is not None
    assert "username" in result.failure.error
    assert "alice" not in result.failure.error


@pytest.mark.parametrize(
    "end",
    [
        "op.get_bind().commit()",
        'op.execute("COMMIT")',
        'op.execute("UPDATE users SET email = 1; COMMIT; SELECT 1")',
        "op.execute(\"SELECT setval('users_id_seq', 99)\")",
    ],
)
def test_a_revision_cannot_make_a_rehearsal_last(
    full_url: str, folder: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its text is enough for a copy; here it is taken for harmless.
    monkeypatch.setattr(rehearsal, "why_not_in_one_transaction", lambda *_: None)
    before = everything(full_url)

    with pytest.raises(CommandError, match=r"ends the transaction itself.*rehearse --copy"):
        tried(full_url, f"{ALL_EMAILS}    {end}", folder)

    assert everything(full_url) == before


@only_postgresql  # On SQLite it waits for the rehearsal, and fails.
def test_another_connection_of_a_revision_cannot_make_it_last_either(full_url: str, folder: Path) -> None:
    other = """
    with op.get_bind().engine.begin() as other:
        other.execute(sa.text("DELETE FROM access_tokens"))
"""
    with pytest.raises(CommandError, match="cannot be rehearsed in one"):
        tried(full_url, other, folder)

    assert query(full_url, "SELECT count(*) FROM access_tokens") == [(1,)]


@pytest.mark.parametrize(("name", "copy"), [("SIGINT", False), ("SIGKILL", False), ("SIGTERM", True)])
def test_who_is_interrupted_or_killed_leaves_no_trace(
    own_url: str, folder: Path, name: str, copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(own_url)
    half_way = folder / "half way"
    wait = f"    open({str(half_way)!r}, 'w').close(); import time; time.sleep(60)"
    add_revision(folder, NEW, HEAD, f"{ALL_EMAILS}{wait}")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    with started(lambda: manage.app(["rehearse", *(["--copy"] if copy else [])])) as process:
        wait_until(half_way.exists, "the revision to be half-way")
        assert bool(list(folder.glob("savepoint-copy-*"))) == copy
        os.kill(process.pid or 0, signal.Signals[name])

    assert process.exitcode == (-signal.SIGKILL if name == "SIGKILL" else 2)
    wait_until(lambda: not others(own_url), "the server to notice")
    assert everything(own_url) == before
    assert not list(folder.glob("savepoint-copy-*"))


@contextmanager
def started(run: Callable[[], object]) -> Iterator[BaseProcess]:
    """A process of its own, which need not import anything; afterwards it has ended."""

    def interruptible() -> None:
        # Where these tests run in the background, Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run()

    process = get_context("fork").Process(target=interruptible)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Python 3.12 warns of threads.
        process.start()
    try:
        yield process
        process.join(30)
    finally:
        process.kill()
        process.join()


def others(url: str) -> bool:
    """Whether somebody else is connected."""
    return url.startswith("postgresql") and (
        query(url, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        != []
    )


@only_postgresql
def test_the_copy_of_one_who_was_killed_is_dropped_by_the_next(older_url: str) -> None:
    name = f"{make_url(older_url).database}_rehearsal_deadbeef"
    query_alone(older_url, f"CREATE DATABASE {name}")
    query_alone(older_url, f"CREATE DATABASE {name}_of_somebody")
    query_alone(older_url, f"COMMENT ON DATABASE {name} IS '{LABEL}'")
    try:
        with scratch_database(older_url):
            there = {each for (each,) in databases(older_url)}
    finally:
        query_alone(older_url, f"DROP DATABASE {name}_of_somebody")

    assert name not in there
    assert f"{name}_of_somebody" in there
    assert len(databases(older_url)) == 1


def query_alone(url: str, sql: str) -> None:
    """Run a statement that no transaction may be around."""
    execute_on_server(url.replace("{", "{{").replace("}", "}}"), sql)


# --- where to ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "target", "real", "revisions"),
    [
        (BEFORE_ACCOUNTS, "head", "alembic upgrade head", REVISIONS[REVISIONS.index(ACCOUNTS) :]),
        (BEFORE_ACCOUNTS, "+1", "alembic upgrade +1", [ACCOUNTS]),
        (BEFORE_ACCOUNTS, ACCOUNTS[:5], f"alembic upgrade {ACCOUNTS[:5]}", [ACCOUNTS]),
        (BEFORE_ACCOUNTS, "-1", "alembic -x accept-loss=access_tokens downgrade -1", [BEFORE_ACCOUNTS]),
        (ACCOUNTS, BEFORE_ACCOUNTS, f"alembic {LOSING} downgrade {BEFORE_ACCOUNTS}", [ACCOUNTS]),
        (ACCOUNTS, f"{ACCOUNTS}-1", f"alembic {LOSING} downgrade {ACCOUNTS}-1", [ACCOUNTS]),
        (HEAD, "head", "alembic upgrade head", []),
    ],
)
def test_the_direction_follows_from_the_target(
    engine: str, filled: Callable[..., str], *, at: str, target: str, real: str, revisions: list[str]
) -> None:
    result = rehearsed(filled(engine, at), target)

    assert [trial.id for trial in result.revisions] == revisions
    assert result.command == real


@only_sqlite  # Neither engine changes the command.
def test_what_is_named_as_the_real_command_does_it(own_url: str) -> None:
    result = rehearsed(own_url, "base")

    with started(lambda: sys.exit(run_alembic(own_url, tuple(result.command.split()[1:]), {}).returncode)) as process:
        pass

    assert process.exitcode == 0
    assert query(own_url, "SELECT * FROM alembic_version") == []


def test_without_anything_to_do_nothing_is_done(full_url: str) -> None:
    result = run()

    assert (result.exit_code, result.stdout) == (0, f"There is nothing to do: the database is at {HEAD}.\n")


@pytest.mark.parametrize("target", ["nonsense", "+1", "head@nowhere"])
def test_a_target_that_there_is_not_is_exit_code_2(full_url: str, target: str) -> None:
    result = run(target)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Nothing was changed. Run: python manage.py doctor" in result.stderr


def test_a_database_ahead_of_the_files_is_exit_code_2(own_url: str) -> None:
    query(own_url, f"UPDATE alembic_version SET version_num = '{NEW}'")

    result = run()

    assert result.exit_code == 2
    assert f"The database is at {NEW}, and no file" in result.stderr


def test_a_broken_history_is_refused(full_url: str, folder: Path) -> None:
    add_revision(folder, NEW, "eeeeeeeeeeee", "    pass")

    with pytest.raises(CommandError, match=r"needs eeeeeeeeeeee, which no file has.*doctor"):
        rehearsed(full_url)


def test_a_misspelt_option_is_no_target(full_url: str) -> None:
    result = run("--jsn")

    assert result.exit_code == 2
    assert "There is no option --jsn" in result.stderr


# --- a copy where it has to be ----------------------------------------------------------------------------------------


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
        ("op.get_bind().commit()", "commit"),
        ("op.execute('UPDATE users SET email = 1; commit')", "commit"),
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


# --- as if it were committed ------------------------------------------------------------------------------------------

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


# --- locks and rows ---------------------------------------------------------------------------------------------------


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


def printed(rehearsal: Rehearsal, width: int = 100) -> str:
    """What people read."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(as_text(rehearsal), highlight=False)
    return capture.get()


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


# --- losses -----------------------------------------------------------------------------------------------------------


def test_what_a_downgrade_loses_is_counted_and_is_a_warning(accounts_url: str) -> None:
    result = rehearsed(accounts_url, REVISIONS[0])

    assert [trial.losses for trial in result.revisions] == [
        {"transfers": 1, "accounts": 1},
        {"access_tokens": 1},
        {"users.phone_number": 1},
    ]
    assert result.warnings == 3
    assert "! It loses data (users.phone_number: 1 value)." in printed(result)
    assert "-x accept-loss=users.phone_number" in " ".join(printed(result).split())


def test_a_loss_that_the_file_does_not_tell_is_not_counted(own_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, "    pass", "    for table in ():\n        op.drop_table(table)")
    command.upgrade(config_of(folder), NEW)

    assert "! It loses data (what it drops cannot be told from its file)." in printed(rehearsed(own_url, "-1"))


def test_what_an_earlier_revision_would_take_away_has_to_be_accepted_too(own_url: str, folder: Path) -> None:
    # The real command counts everything before it begins.
    add_revision(folder, NEW, HEAD, "    pass", '    op.execute("DELETE FROM access_tokens")')
    command.upgrade(config_of(folder), NEW)

    result = rehearsed(own_url, REVISIONS[1])

    assert result.revisions[-1].losses == {"access_tokens": 1}
    assert result.command == f"alembic -x accept-loss=transfers,accounts,access_tokens downgrade {REVISIONS[1]}"


@only_postgresql
def test_a_downgrade_locks_what_it_counts_as_the_real_one_does(accounts_url: str) -> None:
    locked = statement(rehearsed(accounts_url, "-1"), "LOCK TABLE")

    assert {(lock.table, lock.mode) for lock in locked.locks} == {
        (table, "AccessExclusiveLock") for table in ("accounts", "transfers", "entries")
    }


# --- what is unsafe on PostgreSQL -------------------------------------------------------------------------------------

VOLATILE = '    op.execute("ALTER TABLE users ADD COLUMN word UUID NOT NULL DEFAULT gen_random_uuid()")'


@only_postgresql
def test_squawk_is_asked_and_its_findings_are_at_their_statements(full_url: str, folder: Path) -> None:
    code = f"""
    op.create_table("gifts", sa.Column("id", sa.BigInteger(), primary_key=True))
    op.create_index("ix_gifts_id", "gifts", ["id"])
    op.create_index("ix_users_email", "users", ["email"])
{VOLATILE}
"""
    result = tried(full_url, code, folder)

    found = {each.sql[:30]: rules(each.findings) for each in only(result).statements if each.findings}
    assert found == {
        "CREATE INDEX ix_users_email ON": ["require-concurrent-index-creation"],
        "ALTER TABLE users ADD COLUMN w": ["table-rewrite", "adding-field-with-default"],
    }
    lines = printed(result, 200).splitlines()
    (at,) = (number for number, line in enumerate(lines) if "CREATE INDEX ix_users_email" in line)
    assert "users: ShareLock, blocks writes" in lines[at + 1]
    assert "! During normal index creation" in lines[at + 2]


@only_postgresql
def test_a_table_that_is_written_anew_is_named(full_url: str, folder: Path) -> None:
    result = tried(
        full_url, '    op.execute("ALTER TABLE users ALTER COLUMN email TYPE INTEGER USING length(email)")', folder
    )

    (finding,) = (finding for finding in statement(result, "ALTER").findings if finding.rule == "table-rewrite")
    assert "all of users anew" in finding.message


@only_postgresql
def test_an_emptied_table_is_not_written_anew(full_url: str, folder: Path) -> None:
    assert statement(tried(full_url, '    op.execute("TRUNCATE access_tokens")', folder), "TRUNCATE").findings == []


def said(sql: str, **more: Any) -> Statement:
    return Statement(sql, "revision", has_parameters=False, began=0.0, milliseconds=1.0, **more)


def test_a_statement_that_squawk_cannot_read_does_not_hide_the_others() -> None:
    statements = [
        said("SELECT FROM FROM"),
        said("-- a comment\nCREATE INDEX i\nON users (email) -- why"),
        said("UPDATE t SET x = %(x)s"),
    ]

    assert ask_squawk([[], statements], "upgrade", "18.0") is None

    assert [rules(each.findings) for each in statements] == [[], ["require-concurrent-index-creation"], []]


def test_a_downgrade_may_drop_what_its_upgrade_made() -> None:
    up, down = (said("ALTER TABLE users DROP COLUMN phone_number") for _ in range(2))
    ask_squawk([[up]], "upgrade", "18.0")
    ask_squawk([[down]], "downgrade", "18.0")

    assert (rules(up.findings), rules(down.findings)) == (["ban-drop-column"], [])


@only_postgresql
def test_without_squawk_it_is_said_that_its_rules_were_not_applied(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    assert tried(full_url, ADD_COLUMN, folder).notes == [
        "squawk is not installed (pip install -r requirements.txt), so its rules were not applied."
    ]


# --- what is unsafe on both -------------------------------------------------------------------------------------------


def test_a_column_with_rows_that_becomes_not_null_is_named(full_url: str, folder: Path) -> None:
    required = """
    op.execute("UPDATE users SET phone_number = '+4915112345678'")
    with op.batch_alter_table("users") as batch_op:
        batch_op.alter_column("phone_number", nullable=False)
"""
    (finding,) = (each for each in findings(tried(full_url, required, folder)) if each.rule == "newly-required")

    assert finding.message.startswith("users.phone_number becomes NOT NULL in a table that has rows")


def test_a_column_without_rows_may_become_not_null(own_url: str, folder: Path) -> None:
    query(own_url, "DELETE FROM access_tokens")
    required = """
    with op.batch_alter_table("access_tokens") as batch_op:
        batch_op.alter_column("name", nullable=False)
"""
    assert "newly-required" not in rules(findings(tried(own_url, required, folder)))


def test_a_statement_that_touches_many_rows_is_named(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsafe, "MANY_ROWS", 1)

    result = tried(full_url, f"{ALL_EMAILS}    op.execute('DELETE FROM access_tokens')", folder)

    (finding,) = findings(result)
    assert statement(result, "UPDATE users").findings == [finding]
    assert finding.message.startswith("It touches 2 rows at once")


def test_what_is_slow_is_named(full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsafe, "SLOW", 0)

    result = tried(full_url, ADD_COLUMN, folder)

    assert "slow-statement" in rules(statement(result, "ALTER TABLE").findings)
    assert ("long-lock" in rules(only(result).findings)) == (result.engine == "postgresql")


@only_postgresql
def test_dropping_an_index_is_unsafe_where_others_wait_long_for_its_table(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsafe, "SLOW", 100)
    drop = '    op.drop_index("ix_access_tokens_user_id", "access_tokens")\n'

    result = tried(full_url, f'{drop}    op.execute("SELECT pg_sleep(0.2)")', folder)

    messages = [each.message for each in only(result).findings if each.rule == "long-lock"]
    assert [message for message in messages if "of access_tokens wait for" in message] == messages != []


# --- rebuilds on SQLite -----------------------------------------------------------------------------------------------

THINGS = """
CREATE TABLE things (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT COLLATE NOCASE,
    code TEXT,
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    CHECK (length(name) > 0),
    CONSTRAINT ck_code CHECK (code <> '')
);
INSERT INTO things (name, code, user_id) VALUES ('one', '007', 1), ('two', 'x', 1);
CREATE INDEX ix_things_name ON things (name);
CREATE INDEX ix_things_lower ON things (lower(code));
CREATE TRIGGER no_two AFTER INSERT ON things BEGIN DELETE FROM things WHERE name = 'no'; END;
CREATE TABLE plain (id INTEGER PRIMARY KEY, code TEXT) STRICT;
INSERT INTO plain VALUES (1, '007'), (2, 'x');
"""


@pytest.fixture
def things_url(own_url: str) -> str:
    """A database with tables that a rebuild does not bring back whole."""
    run_script(own_url, THINGS)
    return own_url


def rebuilt(code: str) -> str:
    """A rebuild of that table by Alembic, which warns of some of what it leaves out."""
    return f"""
    import warnings
    with warnings.catch_warnings(action="ignore"), op.batch_alter_table("things", recreate="always") as batch_op:
        {code}
"""


def by_hand(columns: str, rows: str = "SELECT * FROM plain", *more: str) -> str:
    """A rebuild of the other table in SQL."""
    statements = (
        f"CREATE TABLE new ({columns})",
        f"INSERT INTO new {rows}",
        "DROP TABLE plain",
        "ALTER TABLE new RENAME TO plain",
        *more,
    )
    return "".join(f"    op.execute({sql!r})\n" for sql in statements)


def lost(rehearsal: Rehearsal) -> list[str]:
    assert rehearsal.failure is None
    return sorted(
        finding.message.removeprefix("The rebuild loses ").rstrip(".")
        for finding in findings(rehearsal)
        if finding.rule.startswith("rebuild")
    )


@only_sqlite
def test_what_a_rebuild_by_alembic_loses_is_named(things_url: str, folder: Path) -> None:
    result = tried(things_url, rebuilt("batch_op.add_column(sa.Column('more', sa.Text()))"), folder)

    assert lost(result) == [
        "CHECK without a name on things: length(name) > 0",
        "foreign key without a name on things: FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE",
        "index ix_things_lower on things: (lower(code))",
        "primary key without a name on things: PRIMARY KEY (id) AUTOINCREMENT",
        "the trigger no_two on things",
        "what things.name is: TEXT COLLATE NOCASE; it becomes TEXT",
    ]


@only_sqlite
def test_what_a_revision_drops_itself_is_not_lost(things_url: str, folder: Path) -> None:
    code = rebuilt("batch_op.drop_constraint(op.f('ck_code'), type_='check'); batch_op.drop_index('ix_things_name')")

    assert not [each for each in lost(tried(things_url, code, folder)) if "ck_code" in each or "ix_things_name" in each]


@only_sqlite
@pytest.mark.parametrize("name", ["'status'", "op.f('ck_profiles_status')"])
def test_a_check_that_a_revision_drops_by_its_short_name_is_not_lost(full_url: str, folder: Path, name: str) -> None:
    code = f"""
    with op.batch_alter_table("profiles") as batch_op:
        batch_op.drop_constraint({name}, type_="check")
"""
    assert lost(tried(full_url, code, folder)) == []


@only_sqlite
def test_what_hangs_on_a_dropped_column_is_not_lost(things_url: str, folder: Path) -> None:
    result = tried(
        things_url, rebuilt("batch_op.drop_constraint(op.f('ck_code')); batch_op.drop_column('code')"), folder
    )

    assert not [each for each in lost(result) if "code" in each]


@only_sqlite
def test_what_a_revision_makes_again_is_not_lost(things_url: str, folder: Path) -> None:
    trigger = "CREATE TRIGGER no_two AFTER INSERT ON things BEGIN DELETE FROM things WHERE name = 'no'; END"
    code = rebuilt("batch_op.add_column(sa.Column('more', sa.Text()))") + f"    op.execute({trigger!r})\n"

    assert not [each for each in lost(tried(things_url, code, folder)) if "no_two" in each]


PLAIN = "id INTEGER PRIMARY KEY, code TEXT) STRICT --"


@only_sqlite
@pytest.mark.parametrize(
    ("columns", "rows", "losses"),
    [
        (PLAIN, "SELECT * FROM plain", []),
        (PLAIN, "SELECT * FROM plain WHERE id = 1", ["1 of the 2 rows of plain"]),
        ("id INTEGER PRIMARY KEY) STRICT --", "SELECT id FROM plain", ["the column plain.code with its values"]),
        ("id INTEGER PRIMARY KEY, code TEXT", "SELECT * FROM plain", ["STRICT of plain"]),
        (
            "id INTEGER PRIMARY KEY, code NUMERIC",
            "SELECT * FROM plain",
            [
                "STRICT of plain",
                "The rebuild changes the type of values in plain.code: 0 integer are now 1, 2 text are now 1",
            ],
        ),
    ],
    ids=["nothing", "rows", "a column", "strictness", "types of values"],
)
def test_what_a_rebuild_by_hand_loses_is_named(
    things_url: str, folder: Path, columns: str, rows: str, losses: list[str]
) -> None:
    assert lost(tried(things_url, by_hand(columns, rows), folder)) == losses


@only_sqlite
def test_what_is_deleted_after_a_rebuild_is_not_lost_by_it(things_url: str, folder: Path) -> None:
    code = by_hand(PLAIN, "SELECT * FROM plain", "DELETE FROM plain", "DROP TABLE plain")

    assert lost(tried(things_url, code, folder)) == []


@only_sqlite
def test_each_of_several_rebuilds_counts(things_url: str, folder: Path) -> None:
    again = rebuilt("batch_op.add_column(sa.Column('more', sa.Text()))")
    code = rebuilt("batch_op.alter_column('code', type_=sa.Integer())") + again

    losses = lost(tried(things_url, code, folder))
    assert "The rebuild changes the type of values in things.code: 0 integer are now 2, 2 text are now 0" in losses
    assert "the trigger no_two on things" in losses


@only_sqlite
def test_a_table_that_is_only_dropped_is_not_looked_at(things_url: str, folder: Path) -> None:
    assert lost(tried(things_url, '    op.drop_table("things")', folder)) == []


@only_sqlite
@pytest.mark.parametrize(
    "reader",
    [
        "CREATE VIEW names AS SELECT username FROM users",
        "CREATE TRIGGER names AFTER INSERT ON profiles BEGIN DELETE FROM users WHERE id = 0; END",
    ],
)
def test_what_stands_in_the_way_of_a_rebuild_is_named(own_url: str, folder: Path, reader: str) -> None:
    query(own_url, reader)

    result = tried(own_url, REBUILD, folder)

    assert result.failure is not None
    assert "names" in result.failure.error
    (finding,) = findings(result)
    assert (
        finding.message == f"The {reader.split()[1].lower()} names reads users, and SQLite rebuilds no table under it."
    )


@only_sqlite
def test_rows_that_a_rebuild_would_orphan_are_a_failure(full_url: str, folder: Path) -> None:
    result = tried(full_url, '    op.execute("DELETE FROM users")', folder)

    assert result.failure is not None
    assert result.failure.error.startswith("4 rows would refer to rows that do not exist")


def test_rows_that_go_with_a_rebuilt_parent_are_lost() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        for sql in (
            "PRAGMA foreign_keys = ON",
            "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
            "CREATE TABLE children (parent_id INTEGER REFERENCES parents (id) ON DELETE CASCADE)",
            "INSERT INTO parents VALUES (1), (2)",
            "INSERT INTO children VALUES (1), (1), (2)",
        ):
            connection.exec_driver_sql(sql)
        rebuilds = Rebuilds("")
        watch = Watch(connection, lambda sql: rebuilds.look(watch, sql))
        for sql in (
            "CREATE TABLE new (id INTEGER PRIMARY KEY)",
            "INSERT INTO new SELECT * FROM parents",
            "DROP TABLE parents",
            "ALTER TABLE new RENAME TO parents",
        ):
            connection.exec_driver_sql(sql)
        with watch.aside():
            (finding,) = rebuilds.losses(watch)

    assert "3 of the 3 rows of children, which refer to parents" in finding.message


# --- others at work ---------------------------------------------------------------------------------------------------


@contextmanager
def somebody_at_work(url: str) -> Iterator[None]:
    """A transaction of somebody else that has locked what the migration needs; in the end who waits for it gets it."""
    connection: sqlite3.Connection | psycopg.Connection
    if url.startswith("sqlite"):
        connection = sqlite3.connect(
            url.removeprefix("sqlite:///"), isolation_level="IMMEDIATE", check_same_thread=False
        )
    else:
        connection = psycopg.connect(url, application_name="a report")
    end = threading.Timer(20, connection.rollback)
    with closing(connection):
        connection.execute("UPDATE users SET email = 'mine@example.com'")
        end.start()
        yield
        end.cancel()
        connection.rollback()


def test_a_lock_that_somebody_holds_ends_the_rehearsal_in_time(full_url: str, folder: Path) -> None:
    before = everything(full_url)

    with somebody_at_work(full_url), pytest.raises(CommandError) as raised:
        tried(full_url, ADD_COLUMN, folder)

    words = "Another process has been writing for 0.3 seconds"
    if full_url.startswith("postgresql"):
        words = "“ALTER TABLE users ADD COLUMN nickname VARCHAR(30)” needs a lock, and did not get it in 0.3 seconds"
        assert "(a report, idle in transaction since" in str(raised.value)
    assert str(raised.value).startswith(words)
    assert str(raised.value).endswith("Let that end, or rehearse on a copy: python manage.py rehearse head --copy")
    assert everything(full_url) == before


def test_on_a_copy_nobody_is_in_the_way(full_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, ADD_COLUMN)

    with somebody_at_work(full_url):
        result = rehearsed(full_url, copy=True)

    assert (result.failure, [trial.id for trial in result.revisions]) == (None, [NEW])


def test_while_somebody_migrates_nothing_is_rehearsed(full_url: str) -> None:
    patient = Settings(database_url=full_url, migration_timeout=0.1)

    with (
        only_migrator(create_migration_engine(full_url), 0),
        pytest.raises(CommandError, match="Another process migrates this database"),
    ):
        rehearse(full_url, "-1", settings=patient)


def test_a_file_that_is_no_database_is_exit_code_2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{folder / 'migrations/env.py'}")

    result = run()

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "The database cannot be used: file is not a database. Nothing was changed.\n"


@only_postgresql
def test_a_server_that_does_not_answer_is_exit_code_2(full_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")

    result = run()

    assert (result.exit_code, result.stdout) == (2, "")
    assert "The database cannot be used: " in result.stderr


# --- what is printed --------------------------------------------------------------------------------------------------


def test_a_rehearsal_without_warnings_is_exit_code_0_and_says_what_to_do(older_url: str) -> None:
    result = run(ACCOUNTS)

    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert f"↑ {ACCOUNTS}  accounts, transfers and entries" in result.stdout
    assert any("2 rows  INSERT INTO accounts (user_id, currency, balance, version)" in line for line in lines)
    assert ("users: ShareRowExclusiveLock, blocks writes for" in result.stdout) == older_url.startswith("postgresql")
    assert lines[-3:] == [
        "No warnings.",
        "Rolled back: the database is as it was.",
        f"To do it for real: alembic upgrade {ACCOUNTS}",
    ]


def test_a_rehearsal_with_warnings_is_exit_code_1_and_says_what_to_do(accounts_url: str) -> None:
    result = run("-1")

    assert result.exit_code == 1
    assert [line.strip() for line in result.stdout.splitlines()][-3:] == [
        "1 warning, marked ! above.",
        "Rolled back: the database is as it was.",
        "To do it for real: alembic -x accept-loss=transfers,accounts downgrade -1",
    ]


def test_a_migration_that_fails_is_exit_code_1_and_is_not_recommended(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(folder, NEW, HEAD, '    op.execute("SELECT nonsense")')
    add_revision(folder, "f" * 13, NEW, "    pass")

    result = run()

    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert f"FAILED in {NEW} (" in result.stdout
    assert f"↑ {'f' * 13}  added  upgrade, not reached" in result.stdout
    assert result.stdout.endswith("Rolled back: the database is as it was.\n")


def test_the_document_has_the_same_facts(older_url: str) -> None:
    result = run(ACCOUNTS, "--json", "--copy")

    document = json.loads(result.stdout)
    assert (result.exit_code, document["warnings"], document["failure"]) == (0, 0, None)
    assert (document["place"], document["heads"], document["target"]) == ("copy", [BEFORE_ACCOUNTS], ACCOUNTS)
    assert document["command"] == f"alembic upgrade {ACCOUNTS}"
    (revision,) = document["revisions"]
    (insert,) = (each for each in revision["statements"] if each["sql"].startswith("INSERT INTO accounts"))
    assert (insert["rows"], insert["kind"], insert["findings"]) == (2, "revision", [])
    assert {each["kind"] for each in revision["statements"]} == {"revision", "around"}
    locks = [(lock["table"], lock["mode"], lock["blocks"]) for lock in document["locks"]]
    assert locks == ([("users", "ShareRowExclusiveLock", "writes")] if document["engine"] == "postgresql" else [])


def test_the_document_of_a_failure_names_the_statement(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(folder, NEW, HEAD, '    op.execute("SELECT nonsense")')

    result = run("--json")

    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (document["failure"]["revision"], document["failure"]["sql"]) == (NEW, "SELECT nonsense")


def test_what_a_revision_prints_is_not_in_the_document(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(folder, NEW, HEAD, "    print('half way')")

    result = run("--json")

    assert json.loads(result.stdout)["failure"] is None
    assert "half way" in result.stderr


def test_a_statement_that_is_sent_often_is_one_line(full_url: str, folder: Path) -> None:
    loop = """
    for _ in range(100):
        op.execute("UPDATE users SET email = email")
"""
    result = tried(full_url, loop, folder)

    (line,) = (line for line in printed(result).splitlines() if "UPDATE users" in line)
    assert line.split()[2:] == ["200", "rows", "100", "×", "UPDATE", "users", "SET", "email", "=", "email"]
    assert len([each for each in only(result).statements if each.kind == "revision"]) == 100


def test_the_command_explains_itself() -> None:
    result = run("--help")

    assert result.exit_code == 0
    assert "Exit code 0" in result.stdout
