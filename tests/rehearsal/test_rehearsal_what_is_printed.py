"""Rehearsal: what is printed."""

import json
from pathlib import Path

import pytest

from tests.support.migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    add_revision,
)
from tests.support.rehearsal import NEW, only, printed, run, tried


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
