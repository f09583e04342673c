"""What files and databases say reaches the terminal as text: no markup, no control codes, no passwords."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner, Result

import manage
from alembic_savepoint.terminal import PrintableFormatter, Terminal, plural, printable, url_text
from tests.support.service import Rows, alembic, query

HOSTILE = "[/red] \x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066 :smile: \nThe books are right.\r"
"""A name that closes a tag, clears the screen, turns the line around and writes one of its own."""


SHOWN = r"[/red] \u001b[2J\u001b]0;title\u0007\u009b31m\u202e\u2066 :smile: \nThe books are right.\r"


@pytest.fixture(autouse=True)
def at_the_database(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SAVES_DIR", str(tmp_path / "saves"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(manage.app, arguments)


def is_plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def name_a_table(rows: Rows) -> None:
    # PostgreSQL's names have 63 bytes at most.
    rows(f'CREATE TABLE "{HOSTILE[:30]}" (id INTEGER PRIMARY KEY)')


@pytest.mark.parametrize("command", [("check",), ("doctor",), ("check", "--json"), ("doctor", "--json")])
def test_a_table_is_named_as_it_is_called(command: tuple[str, ...], rows: Rows) -> None:
    name_a_table(rows)

    result = run(*command)

    assert printable(HOSTILE[:30]) in result.stdout
    assert is_plain(result.stdout + result.stderr)
    if "--json" in command:
        assert any(HOSTILE[:30] in text for text in texts_in(json.loads(result.stdout)))


def texts_in(document: Any) -> Iterator[str]:
    """Every text in a JSON document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, list | dict):
        for each in document.values() if isinstance(document, dict) else document:
            yield from texts_in(each)


def test_a_table_of_any_name_is_saved_and_loaded(rows: Rows) -> None:
    name_a_table(rows)

    assert run("save", "kept").exit_code == 0
    loaded = run("load", "kept", "--yes")

    assert loaded.exit_code == 0
    assert printable(HOSTILE[:30]) in loaded.stdout
    assert is_plain(loaded.stdout + loaded.stderr)


def test_a_currency_of_any_name_is_audited(rows: Rows, engine: str) -> None:
    if engine == "postgresql":
        rows("ALTER TABLE accounts ALTER COLUMN currency TYPE text")
    insert = "INSERT INTO accounts (id, currency, balance, version) VALUES (1, '{}', 5, 0)"
    rows(insert.format(HOSTILE))

    result = run("audit")

    assert result.exit_code == 1
    assert f"currency {SHOWN}: all balances add up to 5, not 0" in result.stdout
    assert is_plain(result.stdout + result.stderr)
    # It is not a line of the audit's own.
    assert "The books are right." not in (result.stdout + result.stderr).splitlines()
    assert result.stderr == "The books are wrong: 2 findings.\n"


@pytest.mark.parametrize("command", [("doctor",), ("graph",), ("check",), ("rehearse",)])
def test_a_revision_of_any_name_is_told(command: tuple[str, ...], rows: Rows) -> None:
    id = HOSTILE[4:24]
    rows(f"UPDATE alembic_version SET version_num = '{id}'")

    result = run(*command)

    assert result.exit_code != 0 or command == ("graph",)
    assert "2J" in result.stdout + result.stderr
    assert is_plain(result.stdout + result.stderr)


def test_alembic_tells_a_revision_of_any_name(url: str) -> None:
    query(url, f"UPDATE alembic_version SET version_num = '{HOSTILE[4:24]}'")

    result = alembic(url, "upgrade", "head")

    assert result.returncode == 1
    assert printable(HOSTILE[4:24]) in result.stderr
    assert is_plain(result.stderr)


def test_whatever_is_printed_is_text() -> None:
    printed = io.StringIO()
    terminal = Terminal(width=200)
    terminal.file = printed
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for each in (HOSTILE, Text(HOSTILE), table):
        terminal.print(each)
    terminal.print_line(HOSTILE)
    with Progress(TextColumn("{task.description}", markup=False), console=terminal) as bar:
        bar.add_task(HOSTILE)

    text = printed.getvalue()
    assert is_plain(text)
    assert ":smile:" in text
    assert text.count("[/red]") >= 6
    assert f"{SHOWN}\n" in text


def test_a_log_is_text() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "at %s", (HOSTILE,), None)
    assert is_plain(PrintableFormatter("%(message)s").format(record))


@given(st.text())
def test_what_is_printable_is_left_and_all_else_is_escaped_as_json_does(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if "\\" not in text and '"' not in text:
        assert json.loads(f'"{shown}"') == text


WITH_SECRETS = (
    "postgresql://user:secret-one@127.0.0.1:1/name?password=secret-two&sslpassword=secret-three"
    "&oauth_client_secret=secret-four&sslmode=disable&passfile=/home/me/.pgpass"
)


def test_a_url_is_shown_without_its_passwords() -> None:
    shown = url_text(WITH_SECRETS)

    assert "secret-" not in shown
    assert shown.startswith("postgresql://user:***@127.0.0.1:1/name?")
    assert "sslmode=disable" in shown


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> str:
    url = WITH_SECRETS.replace("&oauth_client_secret=secret-four", "")
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.mark.parametrize(
    "command",
    [("doctor",), ("doctor", "--json"), ("graph",), ("check",), ("audit",), ("rehearse",), ("save",), ("load", "x")],
)
def test_no_command_prints_a_password(command: tuple[str, ...], unreachable: str) -> None:
    result = run(*command)

    assert result.exit_code != 0 or command == ("graph",)
    assert "secret-" not in result.stdout + result.stderr + repr(result.exception)


def test_alembic_prints_no_password(unreachable: str) -> None:
    result = alembic(unreachable, "upgrade", "head")

    assert result.returncode == 1
    assert "cannot be used: connection failed" in result.stderr
    assert "secret-" not in result.stdout + result.stderr


def test_a_number_of_things_is_spelled_right() -> None:
    assert [plural(count, "line") for count in (0, 1, 2, 1000)] == ["0 lines", "1 line", "2 lines", "1,000 lines"]
