"""Migrations: environments."""

from configparser import ConfigParser
from pathlib import Path

import pytest

from schema import ALEMBIC_INI
from tests.support.migrations import HEAD, look, only_postgresql, only_sqlite, run_script
from tests.support.service import ROOT, alembic, query

pytestmark = pytest.mark.slow

PROD_INI = str(ROOT / "prod_alembic.ini")


def test_prod_alembic_ini_migrates_the_production_database_and_no_other(empty_url: str, tmp_path: Path) -> None:
    other = tmp_path / "other.db"

    result = alembic(
        f"sqlite:///{other}", "upgrade", "head", ALEMBIC_CONFIG="prod_alembic.ini", PROD_DATABASE_URL=empty_url
    )

    assert result.returncode == 0, result.stderr
    assert query(empty_url, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert not other.exists()


def test_prod_alembic_ini_without_its_url_says_in_one_line_which_is_missing(tmp_path: Path) -> None:
    database = tmp_path / "development.db"

    # Not from the root, where a developer's .env may name the real one.
    result = alembic(f"sqlite:///{database}", "upgrade", "head", cwd=tmp_path, ALEMBIC_CONFIG=PROD_INI)

    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert "PROD_DATABASE_URL" in line
    assert not database.exists()


@pytest.mark.parametrize(
    ("ini", "setting"), [("alembic.ini", "DATABASE_URL"), ("prod_alembic.ini", "PROD_DATABASE_URL")]
)
def test_a_malformed_url_is_named_in_one_line_without_its_password(ini: str, setting: str, tmp_path: Path) -> None:
    malformed = "postgresql://savepoint:swordfish@host:port/name"
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/other.db", "ALEMBIC_CONFIG": ini, setting: malformed}

    result = alembic(environment.pop("DATABASE_URL"), "upgrade", "head", cwd=ROOT, **environment)

    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(f"FAILED: {setting}: ")
    assert "swordfish" not in line


@pytest.mark.parametrize(("setting", "value"), [("DEFAULT_CURRENCY", "XAU"), ("CUSTOM_CURRENCIES", "x")])
def test_a_currency_that_there_cannot_be_is_named_in_one_line(setting: str, value: str, tmp_path: Path) -> None:
    database = tmp_path / "untouched.db"

    result = alembic(f"sqlite:///{database}", "upgrade", "head", cwd=ROOT, **{setting: value})

    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(f"FAILED: {setting}: ")
    assert repr(value) in line
    assert not database.exists()


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.ini")), ids=lambda path: path.name)
def test_an_ini_file_holds_no_url_and_no_password(path: Path) -> None:
    ini = ConfigParser(interpolation=None)
    ini.read(path)

    options = {option: value for section in ini.sections() for option, value in ini.items(section)}
    assert [value for value in options.values() if "://" in value] == []
    assert [option for option in options if option == "sqlalchemy.url" or "password" in option] == []


@only_sqlite
def test_alembic_works_from_any_folder(empty_url: str, tmp_path: Path) -> None:
    result = alembic(empty_url, "-c", str(ALEMBIC_INI), "upgrade", "head", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert query(empty_url, "SELECT version_num FROM alembic_version") == [(HEAD,)]


@only_postgresql
def test_printed_sql_makes_the_schema_that_a_migration_makes(url: str, empty_url: str) -> None:
    result = alembic("postgresql://savepoint@nowhere.invalid/name", "upgrade", "head", "--sql")

    run_script(empty_url, result.stdout)
    assert look(empty_url) == look(url)
