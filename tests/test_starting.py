"""A start with settings that cannot work: refused in words, by uvicorn, alembic and manage.py alike."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import main
import manage
from settings import SettingsError, settings_from_environment
from starting import StartRefused
from tests.support.service import ROOT, alembic, free_port

pytestmark = pytest.mark.slow

WRONG = {
    "OPERATOR_TOKEN": "short",
    "QUEUE_LIMIT": "many",
    "REQUEST_TIMEOUT": "inf",
    "CUSTOM_CURRENCIES": "points",
    "DEFAULT_CURRENCY": "POINTS",
    "ENVIRONMENT": "production",
}


LINES = [
    "DATABASE_URL: not set; in production it must name the database: postgresql://user:password@host/name, or a file "
    "by its full path: sqlite:////var/lib/savepoint/savepoint.db",
    "OPERATOR_TOKEN: must have at least 16 characters, so that nobody can guess it; make one: openssl rand -base64 32",
    "CUSTOM_CURRENCIES: 'points' is not a code of 3 to 12 capitals and digits; write POINTS or CREDITS:2",
    "QUEUE_LIMIT: must be a whole number",
    "REQUEST_TIMEOUT: must be a number of seconds, such as 2.5",
]


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WRONG.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("wrong")
def test_all_settings_that_are_wrong_or_missing_are_named_at_once_in_a_line_each(tmp_path: Path) -> None:
    with pytest.raises(StartRefused) as refusal, TestClient(main.app):
        pass
    command = CliRunner().invoke(manage.app, ["audit"])
    upgrade = alembic("", "upgrade", "head", cwd=ROOT, **WRONG)

    assert str(refusal.value).splitlines() == LINES
    assert (command.exit_code, command.stderr.splitlines()) == (2, LINES)
    assert (upgrade.returncode, upgrade.stderr.splitlines()) == (1, [f"FAILED: {LINES[0]}", *LINES[1:]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn_prints_them_without_a_traceback(tmp_path: Path, workers: int) -> None:
    arguments = ["--port", str(free_port()), *(["--workers", str(workers)] if workers > 1 else [])]
    server = subprocess.run(
        [sys.executable, "-m", "uvicorn", "--app-dir", ROOT, "main:app", *arguments],
        env=os.environ | WRONG,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    printed = server.stderr + server.stdout
    assert "\n".join([f"ERROR:    {LINES[0]}", *LINES[1:]]) in printed
    assert "Traceback" not in printed
    assert "Application startup failed. Exiting." in printed
    # With several workers, uvicorn's parent process ends with 0 all the same.
    assert workers > 1 or server.returncode == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{}, {"DATABASE_URL": ""}])
def test_production_without_a_database_url_is_refused(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as refusal:
        settings_from_environment()

    assert str(refusal.value) == LINES[0]


def test_the_file_of_settings_counts_as_the_environment_does(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ENVIRONMENT=production\n")
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: not set"):
        settings_from_environment()

    (tmp_path / ".env").write_text("ENVIRONMENT=production\nDATABASE_URL=postgresql://host/name\n")
    assert settings_from_environment().database_url == "postgresql://host/name"

    (tmp_path / ".env").write_bytes(b"ENVIRONMENT=\xff\n")
    with pytest.raises(SettingsError, match=r"^The file \.env cannot be read: "):
        settings_from_environment()


def test_a_migration_of_the_other_url_needs_no_database_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/production.db"
    upgrade = alembic(
        "",
        "upgrade",
        "head",
        ENVIRONMENT="production",
        PROD_DATABASE_URL=url,
        ALEMBIC_CONFIG=str(ROOT / "prod_alembic.ini"),
    )

    assert upgrade.returncode == 0, upgrade.stderr


def test_production_without_an_operator_token_starts_and_says_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/a.db")

    with TestClient(main.app) as client:
        assert client.get("/readyz").status_code == 200

    assert "OPERATOR_TOKEN is not set: the operator's calls are refused." in caplog.text


def test_a_development_token_that_cannot_be_kept_is_reported_as_that_setting(tmp_path: Path) -> None:
    (tmp_path / ".operator-token").mkdir()

    words = r"^OPERATOR_TOKEN: not set, and .*/\.operator-token cannot be used: "
    with pytest.raises(StartRefused, match=words), TestClient(main.app):
        pass


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DATABASE_URL", "sqlite://host/a.db", "a SQLite URL has three slashes, the file, and no options"),
        ("DATABASE_URL", "sqlite:///a.db?mode=ro", "a SQLite URL has three slashes, the file, and no options"),
        ("ENVIRONMENT", "prod", "must be 'development' or 'production'"),
        ("DATABASE_POOL_SIZE", "1", "must be 2 or more"),
        ("BATCH_LIMIT", "1.5", "must be a whole number"),
        # PostgreSQL would take 0 milliseconds for no limit.
        ("STATEMENT_TIMEOUT", "0.0001", "must be 0.001 or more"),
        ("LOCK_TIMEOUT", "1e300", "must be 86400 or less"),
        ("MIGRATION_TIMEOUT", "soon", "must be a number of seconds, such as 2.5"),
        ("SAVE_BEFORE_MIGRATIONS", "maybe", "must be true or false"),
    ],
)
def test_a_wrong_setting_is_explained_in_plain_words(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        settings_from_environment()

    assert str(refusal.value).startswith(f"{name}: {words}")
    assert "\n" not in str(refusal.value)


def test_make_run_names_the_docs_only_where_the_port_is_free() -> None:
    port = free_port()
    command = ["make", "-o", ".venv/run", "run", f"BIN={Path(sys.executable).parent}", f"PORT={port}"]
    with socket.create_server(("127.0.0.1", port)):
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert made.returncode != 0
    assert f"Port {port} is in use. Stop what listens there, or choose another: make run PORT=8001" in made.stderr
    assert "API docs" not in made.stdout
