"""Saves: SQLite."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from alembic_savepoint.backup.saves import SaveError
from tests.support.project import load, save
from tests.support.saves import change, files_in, only_sqlite, state
from tests.support.service import query

pytestmark = pytest.mark.slow


@only_sqlite
def test_a_save_of_sqlite_is_one_file_that_sqlite_opens(full_url: str, folder: Path) -> None:
    copy = save(full_url, folder, "kept").copy_in(folder)

    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (2,)
    assert files_in(folder) == ["kept.json", "kept.sqlite"]


@only_sqlite
def test_connections_that_are_open_see_the_loaded_schema(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    query(full_url, "ALTER TABLE users ADD COLUMN birthstone")
    with closing(sqlite3.connect(str(make_url(full_url).database))) as connection:
        everything = "SELECT * FROM users ORDER BY id"
        width = len(connection.execute(everything).fetchone())

        load(full_url, folder, "kept")

        assert len(connection.execute(everything).fetchone()) == width - 1


@only_sqlite
def test_a_reader_in_the_middle_of_a_transaction_goes_on_reading_what_it_saw(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    query(full_url, "DELETE FROM profiles")
    with closing(sqlite3.connect(str(make_url(full_url).database), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM profiles").fetchone() == (0,)

        load(full_url, folder, "kept")

        assert reader.execute("SELECT count(*) FROM profiles").fetchone() == (0,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM profiles").fetchone() == (2,)


@only_sqlite
def test_a_database_with_pages_of_another_size_takes_the_save(full_url: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA page_size = 16384")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE notes (id INTEGER)")
    save(full_url, folder, "kept")

    load(f"sqlite:///{other}", folder, "kept")

    assert state(f"sqlite:///{other}") == state(full_url)


@only_sqlite
def test_a_database_that_is_not_in_wal_mode_takes_the_save(full_url: str, folder: Path) -> None:
    before = state(full_url)
    save(full_url, folder, "kept")
    change(full_url)
    assert query(full_url, "PRAGMA journal_mode = DELETE") == [("delete",)]

    load(full_url, folder, "kept", lock_timeout=0.1)

    assert state(full_url) == before


@only_sqlite
def test_a_load_makes_the_file_that_is_missing(full_url: str, folder: Path, tmp_path: Path) -> None:
    save(full_url, folder, "kept")

    assert load(f"sqlite:///{tmp_path}/new.db", folder, "kept") is None
    assert state(f"sqlite:///{tmp_path}/new.db") == state(full_url)


def overwrite_the_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)


def misplace_a_row_in_an_index(path: Path) -> None:
    """Damage that nobody notices who only reads the table."""
    ((page,),) = query(
        f"sqlite:///{path}", "SELECT rootpage FROM sqlite_master WHERE name = 'ix_access_tokens_user_id'"
    )
    with path.open("r+b") as file:
        # Its cells are at the end of the page: the last one is that of the first token.
        file.seek(page * 4096 - 1)
        file.write(b"\x7f")


@only_sqlite
@pytest.mark.parametrize("damage", [overwrite_the_header, misplace_a_row_in_an_index])
def test_a_damaged_database_says_how_a_save_takes_its_place(
    full_url: str, folder: Path, damage: Callable[[Path], None]
) -> None:
    before = state(full_url)
    save(full_url, folder, "kept")
    path = Path(str(make_url(full_url).database))
    damage(path)

    with pytest.raises(SaveError, match=f"mv {path} {path}.damaged"):
        load(full_url, folder, "kept")
    with pytest.raises(SaveError, match="is damaged"):
        save(full_url, folder, "damaged")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    load(full_url, folder, "kept")

    assert state(full_url) == before


@only_sqlite
def test_a_load_waits_for_who_writes_only_so_long(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    with closing(sqlite3.connect(str(make_url(full_url).database), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        with pytest.raises(SaveError, match=r"Another process has been writing to it for 0\.3 seconds"):
            load(full_url, folder, "kept", lock_timeout=0.1)

        writer.execute("DELETE FROM entries")
        writer.execute("COMMIT")
    assert query(full_url, "SELECT * FROM entries") == []
