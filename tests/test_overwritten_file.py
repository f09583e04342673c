"""A SQLite file that is copied over or emptied under the service: refused; what SQLite itself writes is not."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from db.sqlite_file import SQLiteFile
from refusals import DatabaseUnavailable
from tests.support.project import load, save
from tests.support.registration import named
from tests.support.service import AS_OPERATOR
from tests.support.sqlite_file import assert_unavailable, started, url_of, usernames


def register(client: TestClient, name: str) -> None:
    assert client.post("/register", json=named(name)).status_code == 201


def checkpoint(path: Path) -> None:
    """Bring all changes from the -wal into the file, and cut both to their size."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def fill(path: Path) -> None:
    """Have the file grow by a table of some 4 MB."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE filler AS SELECT randomblob(4000000) AS content")
        connection.commit()
    checkpoint(path)


def copy_over(path: Path) -> None:
    """As cp does: the file stays the same one."""
    path.write_bytes(path.with_name("backup.db").read_bytes())


def copy_save_over(path: Path) -> None:
    [save] = (path.parent / "saves").glob("*.sqlite*")
    path.write_bytes(save.read_bytes())


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_bytes(b"~" * path.stat().st_size)


@pytest.mark.parametrize("overwrite", [copy_over, copy_save_over, empty, write_text])
def test_a_database_that_is_overwritten_acknowledges_nothing_any_more(
    path: Path, overwrite: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(path, path.with_name("backup.db"))
    save(url_of(path), path.parent / "saves", "one")
    with started(url_of(path)) as client:
        register(client, "alice")
        fill(path)
        register(client, "bob")
        overwrite(path)

        assert_unavailable(client)

    assert f"{path} was emptied, or another file was copied over it" in caplog.text


def test_a_smaller_save_is_loaded_and_a_vacuum_shrinks_the_file_under_the_service(path: Path) -> None:
    with started(url_of(path)) as client:
        register(client, "alice")
        save(url_of(path), path.parent / "saves", "one")
        fill(path)
        register(client, "bob")
        large = path.stat().st_size
        load(url_of(path), path.parent / "saves", "one")
        checkpoint(path)
        assert path.stat().st_size < large - 1_000_000
        register(client, "carol")

        fill(path)
        register(client, "dave")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE filler")
            connection.execute("VACUUM")
        checkpoint(path)
        assert path.stat().st_size < large - 1_000_000
        register(client, "eve")
        assert len(client.get("/users", headers=AS_OPERATOR).json()["items"]) == 4

    assert usernames(path) == ["alice", "carol", "dave", "eve"]


def test_a_look_takes_no_lock_of_sqlites_with_it(path: Path) -> None:
    file = SQLiteFile(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        file.check()
        with (
            closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
    path.write_bytes(b"")
    with pytest.raises(DatabaseUnavailable):
        file.check()
    file.close()
