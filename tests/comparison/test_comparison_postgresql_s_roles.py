"""Comparison: PostgreSQL's roles; the command."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

import manage
from tests.support.comparison import execute, found
from tests.support.migrations import only_postgresql
from tests.support.service import query


@pytest.fixture
def reader_url(url: str) -> Iterator[str]:
    """The database as a role sees it that may read it, and create none."""
    name = sa.make_url(url).database
    execute(url, f"CREATE ROLE reader_of_{name} LOGIN")
    execute(url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_of_{name}")
    yield url.replace("postgres@", f"reader_of_{name}@")
    execute(url, f"DROP OWNED BY reader_of_{name}; DROP ROLE reader_of_{name}")


@only_postgresql
def test_a_role_that_may_read_and_create_a_database_needs_no_more(url: str, reader_url: str) -> None:
    execute(url, f"ALTER ROLE reader_of_{sa.make_url(url).database} CREATEDB")

    assert found(reader_url) == []


@only_postgresql
def test_a_role_that_may_create_no_database_is_told_what_it_needs(
    url: str, reader_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(url, "ALTER TABLE users ADD COLUMN birthstone text")
    monkeypatch.setenv("DATABASE_URL", reader_url)

    result = run_check()

    assert result.exit_code == 1
    assert "drift" not in result.stdout.partition("Nothing is known of drift")[0]
    assert "not-compared: The schema was not compared: " in result.stdout
    assert f"ALTER ROLE reader_of_{sa.make_url(url).database} CREATEDB" in result.stdout
    assert "savepoint_scratch_url" in result.stdout


def run_check(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(manage.app, ["check", *arguments])


def test_the_command_says_that_nothing_was_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    result = run_check()

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "The schema is as it should be.\n"
    assert run_check("--json").stdout == "[]\n"


@pytest.mark.usefixtures("_made_once")
def test_the_command_names_each_finding_and_what_to_do_once_for_all_of_a_kind(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    query(url, "ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)")
    query(url, "DROP INDEX ix_access_tokens_user_id")

    result = run_check()

    assert result.exit_code == 1
    first, second, advice = result.stdout.splitlines()
    assert first == "drift: access_tokens: index ix_access_tokens_user_id is missing"
    assert second == "drift: users: column birthstone is there and should not be"
    assert "python manage.py doctor" in advice
    assert "2 findings" in result.stderr
    assert json.loads(run_check("--json").stdout) == [
        {"kind": "drift", "text": line.removeprefix("drift: "), "advice": advice.strip()} for line in (first, second)
    ]


def test_a_database_that_cannot_be_read_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.db").write_text("This is no database, but a text that is long enough to be taken for one." * 10)
    cases = {
        f"sqlite:///{tmp_path}/missing.db": "There is no file",
        f"sqlite:///{tmp_path}/text.db": "file is not a database",
        "postgresql://localhost:1/x": "Connection refused",
        "mysql://localhost/x": "DATABASE_URL: mysql is not supported",
    }
    for database_url, words in cases.items():
        monkeypatch.setenv("DATABASE_URL", database_url)
        result = run_check()
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    assert not (tmp_path / "missing.db").exists()
