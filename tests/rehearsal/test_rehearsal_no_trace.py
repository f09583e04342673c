"""Rehearsal: no trace; where to."""

import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from alembic.util import CommandError
from sqlalchemy import make_url

import manage
from alembic_savepoint.rehearsal import rehearsal
from alembic_savepoint.rehearsal.copies import LABEL, scratch_database
from tests.support.migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    REVISIONS,
    add_revision,
    only_postgresql,
    only_sqlite,
    run_alembic,
)
from tests.support.rehearsal import (
    ADD_COLUMN,
    ALL_EMAILS,
    NEW,
    databases,
    everything,
    findings,
    others,
    rehearsed,
    rules,
    run,
    statement,
    tried,
)
from tests.support.service import execute_on_server, query, wait_until

REPLACING = {
    "ban-drop-constraint": 3,
    "constraint-missing-not-valid": 7,
    "adding-foreign-key-constraint": 2,
    "require-concurrent-index-creation": 6,
    "disallowed-unique-constraint": 1,
}
"""The rules of squawk that revisions from d1c83f5a7b46 on do not keep, and how often."""
LOSING = "-x accept-loss=transfers,accounts"


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
    assert (result.failure, again.failure) == (None, None)
    # Constraints had to give way to others, in one revision.
    expected = {} if empty_url.startswith("sqlite") else REPLACING
    assert [Counter(rules(findings(each))) for each in (result, again)] == [expected, expected]
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


@pytest.mark.parametrize("copy", [False, True], ids=["in place", "on a copy"])
@pytest.mark.parametrize(
    "end",
    [
        "op.get_bind().commit()",
        'op.execute("COMMIT")',
        'op.execute("UPDATE users SET email = 1; COMMIT; SELECT 1")',
        "op.get_bind().rollback()",
    ],
)
def test_a_revision_that_ends_its_transaction_fails_as_it_would_for_real(
    full_url: str, folder: Path, end: str, copy: bool
) -> None:
    before = everything(full_url)
    add_revision(folder, NEW, HEAD, f"{ALL_EMAILS}    {end}")

    failure = rehearsed(full_url, copy=copy).failure

    assert failure is not None
    assert f"Upgrade {NEW} " in failure.error
    assert "by itself" in failure.error
    assert everything(full_url) == before


@only_postgresql  # On SQLite it waits for the rehearsal, and fails.
def test_another_connection_of_a_revision_cannot_make_it_last_either(full_url: str, folder: Path) -> None:
    result = tried(
        full_url,
        """
    with op.get_bind().engine.begin() as other:
        other.execute(sa.text("DELETE FROM access_tokens"))
""",
        folder,
    )

    assert result.failure is not None
    assert "writes through a second connection" in result.failure.error
    assert query(full_url, "SELECT count(*) FROM access_tokens") == [(1,)]


def test_what_no_rollback_takes_back_is_not_done_in_place(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its text is enough for a copy; here it is taken for harmless.
    monkeypatch.setattr(rehearsal, "why_not_in_one_transaction", lambda *_: None)
    before = everything(full_url)

    with pytest.raises(CommandError, match=r"cannot be rolled back.*rehearse --copy"):
        tried(full_url, "    op.execute(\"SELECT setval('users_id_seq', 99)\")", folder)

    assert everything(full_url) == before


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
    assert f"The database is at {NEW}, and no revision file has that id" in result.stderr


def test_a_broken_history_is_refused(full_url: str, folder: Path) -> None:
    add_revision(folder, NEW, "eeeeeeeeeeee", "    pass")

    with pytest.raises(CommandError, match=r"needs eeeeeeeeeeee, which no file has.*doctor"):
        rehearsed(full_url)


def test_a_misspelt_option_is_no_target(full_url: str) -> None:
    result = run("--jsn")

    assert result.exit_code == 2
    assert "There is no option --jsn" in result.stderr
