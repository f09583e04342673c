"""ALEMBIC_CONFIG chooses the database of manage.py as it chooses alembic's."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import manage
import schema
from settings import Settings
from tests.support.service import ROOT, alembic, query

pytestmark = pytest.mark.slow

PRODUCTION = str(ROOT / "prod_alembic.ini")


USERS = "username,email\nann,ann@example.com\n"


@pytest.fixture
def development(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL in DATABASE_URL, of a database that nothing here is about."""
    url = f"sqlite:///{tmp_path}/development.db"
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture(autouse=True)
def production(url: str, development: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL in PROD_DATABASE_URL, which prod_alembic.ini chooses."""
    monkeypatch.setenv("PROD_DATABASE_URL", url)
    monkeypatch.setenv("ALEMBIC_CONFIG", PRODUCTION)
    monkeypatch.setenv("SAVES_DIR", str(tmp_path / "saves"))
    return url


def run(*arguments: str) -> Result:
    return CliRunner().invoke(manage.app, arguments)


def test_every_command_works_on_the_database_that_the_file_chooses(production: str, tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text(USERS)

    for command in (
        ("import", str(users)),
        ("audit",),
        ("check",),
        ("doctor",),
        ("graph",),
        ("save", "kept"),
        ("load", "kept", "--yes"),
        ("rehearse",),
    ):
        result = run(*command)
        assert result.exit_code == 0, (command, result.stdout, result.stderr)
        assert "not known which" not in result.stdout

    assert query(production, "SELECT username FROM users") == [("ann",)]
    assert not (tmp_path / "development.db").exists()


def test_without_the_variable_it_is_database_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for named in ("", "pyproject.toml"):
        monkeypatch.setenv("ALEMBIC_CONFIG", named)
        assert run("audit").stderr == (
            f"There is no file {tmp_path}/development.db. DATABASE_URL says which database is meant.\n"
        )


def test_what_is_rehearsed_is_what_the_command_that_is_shown_migrates(production: str) -> None:
    rehearsed = run("rehearse", "base")

    assert rehearsed.stdout.splitlines()[-1] == (
        f"To do it for real: ALEMBIC_CONFIG={PRODUCTION} alembic downgrade base"
    )
    alembic(production, "downgrade", "base", ALEMBIC_CONFIG=PRODUCTION, SAVE_BEFORE_MIGRATIONS="false")
    assert query(production, "SELECT * FROM alembic_version") == []
    assert run("rehearse").stdout.splitlines()[-1] == (
        f"To do it for real: ALEMBIC_CONFIG={PRODUCTION} alembic upgrade head"
    )


def test_the_commands_that_are_shown_name_the_file(production: str) -> None:
    assert f"To go back to it: ALEMBIC_CONFIG={PRODUCTION} python manage.py load kept\n" in run("save", "kept").stderr
    alembic(production, "downgrade", "-1", ALEMBIC_CONFIG=PRODUCTION, SAVE_BEFORE_MIGRATIONS="false")
    assert f"ALEMBIC_CONFIG={PRODUCTION} alembic upgrade head" in run("doctor").stdout
    assert f'"ALEMBIC_CONFIG={PRODUCTION} alembic upgrade head"' in run("doctor", "--json").stdout


def test_each_call_in_a_command_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "git checkout x && alembic downgrade y && alembic-savepoint doctor"

    assert schema.spelling().of(command).count(f"ALEMBIC_CONFIG={PRODUCTION} ") == 2
    assert schema.spelling().of("ALTER TABLE users DROP x;") == "ALTER TABLE users DROP x;"
    monkeypatch.setenv("ALEMBIC_CONFIG", "my files/prod.ini")
    assert schema.spelling().of("alembic upgrade head") == "ALEMBIC_CONFIG='my files/prod.ini' alembic upgrade head"
    monkeypatch.delenv("ALEMBIC_CONFIG")
    assert schema.spelling().of(command) == "git checkout x && alembic downgrade y && python manage.py doctor"


def test_a_setting_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROD_DATABASE_URL")

    for command in (("audit",), ("doctor",), ("rehearse",), ("save",), ("load", "x"), ("saves",), ("import", "x")):
        result = run(*command)
        assert result.exit_code == 2, command
        assert result.stderr.startswith("PROD_DATABASE_URL is not set: "), command


def test_a_file_that_chooses_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ini = tmp_path / "own.ini"
    monkeypatch.setenv("ALEMBIC_CONFIG", str(ini))

    assert (missing := run("audit")).exit_code == 2
    assert "No config file" in missing.stderr
    for text, words in (
        ("[alembic]\n", "or it has no script_location in [alembic]."),
        ("[alembic]\nscript_location = x\nurl_setting = operator_token\n", "url_setting is operator_token; set it to"),
    ):
        ini.write_text(text)
        refused = run("audit")
        assert refused.exit_code == 2
        assert words in refused.stderr


def test_the_service_uses_database_url(development: str) -> None:
    assert Settings().database_url == development
