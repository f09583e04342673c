"""The files of the database are none that a command writes anything else into, whatever they are called."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import manage
from tests.support.service import query

Run = Callable[..., Result]


SUFFIXES = ["", "-wal", "-shm", "-journal", "-migrating", "-next", "-turn"]
NAMES = [*(f"a.db{suffix}" for suffix in SUFFIXES), "symlink", "hard link", "../data/a.db"]


@pytest.fixture
def folder(sqlite_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a database in it, users to import, and other names of the database."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(sqlite_template, folder / "a.db")
    (folder / "symlink").symlink_to("a.db")
    (folder / "hard link").hardlink_to(folder / "a.db")
    (folder / "users.csv").write_text("username,email\nann,ann@example.com\nann,\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///./a.db")
    return folder


COMMANDS = [
    ["import", "users.csv", "--on-error", "continue", "--refusals"],
    ["import", "users.csv", "--on-error", "continue", "--tokens"],
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_no_command_writes_into_a_file_of_the_database(folder: Path, command: list[str], name: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    result = CliRunner().invoke(manage.app, [*command, name])

    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{name} is a file of the database" in result.stderr
    assert "Name another file." in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_nor_by_another_name_of_the_database_in_its_url(
    folder: Path, link: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    link(folder / "current.db", folder / "a.db")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///./current.db")

    for name in ("a.db", "current.db", "current.db-wal"):
        assert CliRunner().invoke(manage.app, [*COMMANDS[0], name]).exit_code == 2

    assert query("sqlite:///./current.db", "SELECT count(*) FROM users") == [(0,)]


def test_an_older_file_is_not_kept_under_the_name_of_the_database(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "hard link").unlink()
    (folder / "a.db").rename(folder / "users.refused.csv~")
    (folder / "users.refused.csv").touch()
    monkeypatch.setenv("DATABASE_URL", "sqlite:///./users.refused.csv~")

    result = CliRunner().invoke(manage.app, ["import", "users.csv", "--on-error", "continue"])

    assert result.exit_code == 2
    assert query("sqlite:///./users.refused.csv~", "SELECT count(*) FROM users") == [(0,)]


def test_files_beside_the_database_are_written(folder: Path) -> None:
    for command, name in zip(COMMANDS, ("refused.csv", "tokens.csv"), strict=True):
        CliRunner().invoke(manage.app, [*command, name])
        assert (folder / name).stat().st_size > 0
