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
    assert "drift" not in result.stdout
    assert "not-compared: The schema could not be compared.\n" in result.stdout
    assert f"ALTER ROLE reader_of_{sa.make_url(url).database} CREATEDB" in result.stdout
    assert "savepoint_scratch_url" in result.stdout


def run_check(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(manage.app, ["check", *arguments])


def test_the_command_says_that_nothing_was_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    result = run_check()

    healthy = "Healthy: files, record, alembic_version and schema say the same.\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, healthy, "")
    assert json.loads(run_check("--json").stdout) == {"exit_code": 0, "diagnoses": []}


@pytest.mark.usefixtures("_made_once")
def test_the_command_names_each_difference_and_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    query(url, "ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)")
    query(url, "DROP INDEX ix_access_tokens_user_id")

    result = run_check()

    assert result.exit_code == 1
    summary, at, first, second, *steps = result.stdout.splitlines()
    assert summary.endswith("makes: 2 differences.")
    assert first == "  • access_tokens: index ix_access_tokens_user_id is missing"
    assert second == "  • users: column birthstone is there and should not be"
    assert any(step.startswith("      CREATE INDEX ix_access_tokens_user_id ON access_tokens ") for step in steps)
    assert "      python manage.py doctor" in steps
    document = json.loads(run_check("--json").stdout)
    assert document["exit_code"] == 1
    [drift] = document["diagnoses"]
    assert (drift["kind"], drift["summary"]) == ("drift", summary.removeprefix("drift: "))
    assert [f"  • {line}" for line in drift["evidence"]] == [at, first, second]


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
        assert result.exit_code == 2
        assert words in result.output
    assert not (tmp_path / "missing.db").exists()
