"""Rehearsal: what is unsafe on PostgreSQL; what is unsafe on both."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from alembic import command

from alembic_savepoint.rehearsal import unsafe
from alembic_savepoint.rehearsal.unsafe import ask_squawk
from alembic_savepoint.rehearsal.watching import Statement
from tests.support.migrations import HEAD, add_revision, only_postgresql
from tests.support.rehearsal import (
    ADD_COLUMN,
    ALL_EMAILS,
    NEW,
    config_of,
    findings,
    only,
    printed,
    rehearsed,
    rules,
    statement,
    tried,
)
from tests.support.service import query

VOLATILE = '    op.execute("ALTER TABLE users ADD COLUMN word UUID NOT NULL DEFAULT gen_random_uuid()")'


@only_postgresql
def test_squawk_is_asked_and_its_findings_are_at_their_statements(full_url: str, folder: Path) -> None:
    code = f"""
    op.create_table("gifts", sa.Column("id", sa.BigInteger(), primary_key=True))
    op.create_index("ix_gifts_id", "gifts", ["id"])
    op.create_index("ix_users_mail", "users", ["email"])
{VOLATILE}
"""
    result = tried(full_url, code, folder)

    found = {each.sql[:30]: rules(each.unsafe_steps) for each in only(result).statements if each.unsafe_steps}
    assert found == {
        "CREATE INDEX ix_users_mail ON ": ["require-concurrent-index-creation"],
        "ALTER TABLE users ADD COLUMN w": ["table-rewrite", "adding-field-with-default"],
    }
    lines = printed(result, 200).splitlines()
    (at,) = (number for number, line in enumerate(lines) if "CREATE INDEX ix_users_mail" in line)
    assert "users: ShareLock, blocks writes" in lines[at + 1]
    assert "! During normal index creation" in lines[at + 2]


@only_postgresql
def test_a_table_that_is_written_anew_is_named(full_url: str, folder: Path) -> None:
    result = tried(
        full_url, '    op.execute("ALTER TABLE users ALTER COLUMN email TYPE INTEGER USING length(email)")', folder
    )

    (finding,) = (finding for finding in statement(result, "ALTER").unsafe_steps if finding.rule == "table-rewrite")
    assert "rewrites all of users" in finding.message


@only_postgresql
def test_an_emptied_table_is_not_written_anew(full_url: str, folder: Path) -> None:
    assert statement(tried(full_url, '    op.execute("TRUNCATE access_tokens")', folder), "TRUNCATE").unsafe_steps == []


def said(sql: str, **more: Any) -> Statement:
    return Statement(sql, "revision", has_parameters=False, began=0.0, milliseconds=1.0, **more)


def test_a_statement_that_squawk_cannot_read_does_not_hide_the_others() -> None:
    statements = [
        said("SELECT FROM FROM"),
        said("-- a comment\nCREATE INDEX i\nON users (email) -- why"),
        said("UPDATE t SET x = %(x)s"),
    ]

    assert ask_squawk([[], statements], "upgrade", "18.0") is None

    assert [rules(each.unsafe_steps) for each in statements] == [[], ["require-concurrent-index-creation"], []]


def test_a_downgrade_may_drop_what_its_upgrade_made() -> None:
    up, down = (said("ALTER TABLE users DROP COLUMN phone_number") for _ in range(2))
    ask_squawk([[up]], "upgrade", "18.0")
    ask_squawk([[down]], "downgrade", "18.0")

    assert (rules(up.unsafe_steps), rules(down.unsafe_steps)) == (["ban-drop-column"], [])


@only_postgresql
def test_without_squawk_it_is_said_that_its_rules_were_not_applied(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    assert tried(full_url, ADD_COLUMN, folder).notes == [
        "squawk is not installed (pip install -r requirements.txt), so its rules were not applied."
    ]


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
    assert statement(result, "UPDATE users").unsafe_steps == [finding]
    assert finding.message.startswith("It touches 2 rows at once")


def test_what_is_slow_is_named(full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsafe, "SLOW", 0)

    result = tried(full_url, ADD_COLUMN, folder)

    assert "slow-statement" in rules(statement(result, "ALTER TABLE").unsafe_steps)
    assert ("long-lock" in rules(only(result).unsafe_steps)) == (result.engine == "postgresql")


@only_postgresql
def test_dropping_an_index_is_unsafe_where_others_wait_long_for_its_table(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsafe, "SLOW", 100)
    drop = '    op.drop_index("ix_access_tokens_user_id", "access_tokens")\n'

    result = tried(full_url, f'{drop}    op.execute("SELECT pg_sleep(0.2)")', folder)

    messages = [each.message for each in only(result).unsafe_steps if each.rule == "long-lock"]
    assert [message for message in messages if "of access_tokens wait for" in message] == messages != []


MOOD = """
    op.execute("CREATE TYPE mood AS ENUM ('calm')")
    op.execute("ALTER TABLE users ADD COLUMN mood mood")
"""
DROP_MOOD = '    op.execute("ALTER TABLE users DROP COLUMN mood")\n'


def left_behind(url: str, target: str = "head") -> list[str]:
    return [each.help for each in findings(rehearsed(url, target)) if each.rule == "enum-left-behind"]


@only_postgresql
def test_an_enum_that_the_downgrade_leaves_behind_is_a_warning_both_ways(own_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, MOOD, DROP_MOOD)
    up = left_behind(own_url)
    command.upgrade(config_of(folder), NEW)

    down = left_behind(own_url, "-1")

    assert up == down == ['Write in downgrade(), in the end: op.execute("DROP TYPE mood")']


@only_postgresql
def test_an_enum_that_the_downgrade_drops_is_none(own_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, MOOD, f'{DROP_MOOD}    op.execute("DROP TYPE mood")')
    up = left_behind(own_url)
    command.upgrade(config_of(folder), NEW)

    assert up == left_behind(own_url, "-1") == []
