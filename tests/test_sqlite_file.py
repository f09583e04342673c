"""The file of a SQLite database: who creates it, who may read it, and that a running service keeps to it."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import crud
from db.database import Database
from db.engines import reading
from db.sqlite_file import make_private
from refusals import DatabaseUnavailable
from settings import Settings
from starting import StartRefused
from tests.support.project import load, save
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, alembic
from tests.support.sqlite_file import assert_unavailable, started, url_of, usernames


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_database_that_is_moved_away_is_not_created_anew_and_loses_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(url_of(path)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        path.rename(path.with_name("b.db"))

        assert_unavailable(client)
        assert not path.exists()
        assert f"{path}: No such file or directory; move the database back to its place" in caplog.text

    path.with_name("b.db").rename(path)
    assert usernames(path) == ["alice"]


def test_a_database_that_is_moved_back_is_used_again_without_a_restart(path: Path) -> None:
    with started(url_of(path)) as client:
        path.rename(path.with_name("b.db"))
        assert_unavailable(client)

        path.with_name("b.db").rename(path)
        assert client.get("/readyz").status_code == 200
        assert client.post("/register", json=named("alice")).status_code == 201

    assert usernames(path) == ["alice"]


@pytest.mark.parametrize("content", ["a database", "no database", "a folder"])
def test_what_takes_the_place_of_the_database_is_neither_read_nor_written(
    path: Path, content: str, sqlite_template: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = path.with_name("other")
    if content == "a folder":
        other.mkdir()
    else:
        other.write_bytes(Path(sqlite_template).read_bytes() if content == "a database" else b"notes")
    before = other.read_bytes() if other.is_file() else None
    with started(url_of(path)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        path.rename(path.with_name("b.db"))
        other.rename(path)

        assert_unavailable(client)

    assert f"{path} is not the file that it was at start-up" in caplog.text
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("fate", ["deleted", "moved", "replaced"])
def test_without_the_files_beside_the_database_nothing_is_read_or_written(
    path: Path, suffix: str, fate: str, caplog: pytest.LogCaptureFixture
) -> None:
    beside = path.with_name(path.name + suffix)
    with started(url_of(path)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        if fate == "deleted":
            beside.unlink()
        else:
            beside.rename(path.with_name("elsewhere"))
        if fate == "replaced":
            beside.write_bytes(path.with_name("elsewhere").read_bytes())

        assert_unavailable(client)
        assert f"{beside} was deleted or replaced while the service ran. Move it back." in caplog.text
        if fate != "deleted":
            path.with_name("elsewhere").rename(beside)
            assert client.get("/readyz").status_code == 200
            assert client.post("/register", json=named("bob")).status_code == 201

    # The end of the service writes to the database what only a deleted -wal held.
    assert usernames(path) == (["alice"] if fate == "deleted" else ["alice", "bob"])


def test_a_database_that_is_moved_back_without_its_wal_is_not_written(path: Path, tmp_path: Path) -> None:
    with started(url_of(path)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        for each in path.parent.glob("a.db*"):
            each.rename(tmp_path / each.name)
        assert_unavailable(client)
        (tmp_path / "a.db").rename(path)

        assert_unavailable(client)
        for each in tmp_path.glob("a.db*"):
            each.rename(path.parent / each.name)
        assert client.post("/register", json=named("bob")).status_code == 201

    assert usernames(path) == ["alice", "bob"]


def test_other_connections_come_and_go_beside_the_service(path: Path) -> None:
    with started(url_of(path)) as client:
        for name in ("alice", "bob"):
            assert client.post("/register", json=named(name)).status_code == 201
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                assert connection.execute("SELECT count(*) FROM users").fetchone()[0] > 0
        assert alembic(url_of(path), "current").returncode == 0
        assert client.post("/register", json=named("carol")).status_code == 201

    assert usernames(path) == ["alice", "bob", "carol"]


async def test_the_files_beside_the_database_may_be_others_once_no_connection_is_open(path: Path) -> None:
    database = Database(Settings(database_url=url_of(path)))
    await database.read(crud.authenticate, ["none"])
    await database.engine.dispose()
    assert not path.with_name("a.db-wal").exists()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)
        await database.read(crud.authenticate, ["none"])
    await database.read(crud.authenticate, ["none"])
    await database.close()


def test_a_symbolic_link_that_is_pointed_elsewhere_is_another_file(path: Path, sqlite_template: str) -> None:
    other = Path(shutil.copy(sqlite_template, path.with_name("b.db")))
    link = path.with_name("current.db")
    link.symlink_to(path)
    with started(url_of(link)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        link.unlink()
        link.symlink_to(other)

        assert_unavailable(client)

    assert (usernames(path), usernames(other)) == (["alice"], [])


def test_a_save_is_loaded_under_the_running_service(path: Path, tmp_path: Path) -> None:
    with started(url_of(path)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        save(url_of(path), tmp_path / "saves", "one")
        assert client.post("/register", json=named("bob")).status_code == 201
        load(url_of(path), tmp_path / "saves", "one")

        users = client.get("/users", headers=AS_OPERATOR).json()["items"]
        assert [user["username"] for user in users] == ["alice"]
        assert client.post("/register", json=named("carol")).status_code == 201


@pytest.mark.parametrize("name", ["with space.db", "100%41#.db", "what?mode=memory.db", "émile.db"])
def test_any_name_of_a_file_is_taken_as_it_is(path: Path, name: str) -> None:
    file = path.rename(path.with_name(name))
    with started(url_of(file)) as client:
        assert client.post("/register", json=named("alice")).status_code == 201

    assert usernames(file) == ["alice"]
    assert [each.name for each in path.parent.glob("*.db")] == [name]
    assert alembic(url_of(file), "current").returncode == 0


def test_a_relative_path_is_one_of_the_working_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with started("sqlite:///./a.db") as client:
        assert client.post("/register", json=named("alice")).status_code == 201
        monkeypatch.chdir("/")
        assert client.post("/register", json=named("bob")).status_code == 201

    assert usernames(path) == ["alice", "bob"]


async def test_neither_the_services_connections_nor_a_look_create_a_file(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    database = Database(Settings(database_url=url_of(path)))

    async def ask(_: object) -> None:
        raise AssertionError("There is nothing to ask.")

    with pytest.raises(DatabaseUnavailable):
        await database.read(ask)
    with pytest.raises(DatabaseUnavailable):
        await database.write(ask)
    with pytest.raises(Exception, match="unable to open database file"), reading(url_of(path)):
        pass

    assert not path.exists()


@contextmanager
def permissive_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def load_into(path: Path, source: Path) -> None:
    save(url_of(source), path.parent / "saves", "one")
    load(url_of(path), path.parent / "saves", "one")


def start_at(path: Path, _: Path) -> None:
    with started(url_of(path)):
        pass


@pytest.mark.parametrize("create", [start_at, load_into])
def test_only_its_owner_reads_a_database(path: Path, tmp_path: Path, create: Callable[[Path, Path], None]) -> None:
    new = tmp_path / "new.db"
    with permissive_umask():
        create(new, path)
        with started(url_of(new)) as client:
            assert client.post("/register", json=named("alice")).status_code == 201
            modes = {each.name: mode_of(each) for each in tmp_path.glob("new.db*")}

    assert modes.keys() >= {"new.db", "new.db-wal", "new.db-shm", "new.db-next", "new.db-turn"}
    assert set(modes.values()) == {0o600}


def test_a_database_that_exists_keeps_its_mode(path: Path) -> None:
    path.chmod(0o640)
    start_at(path, path)

    assert mode_of(path) == 0o640


def test_alembic_creates_the_target_of_a_symbolic_link_for_its_owner(tmp_path: Path) -> None:
    link, target = tmp_path / "link.db", tmp_path / "target.db"
    link.symlink_to(target)

    assert alembic(url_of(link), "upgrade", "head").returncode == 0
    assert mode_of(target) == 0o600
    assert link.is_symlink()


def test_many_that_create_one_file_at_once_create_it_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: make_private(path), range(200)))

    assert mode_of(path) == 0o600


def test_no_database_is_created_over_the_changes_of_one_that_was_moved_away(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO users (username, email, created_at) VALUES ('a', 'a@example.com', '2026-01-01')"
        )
        connection.commit()
        path.rename(path.with_name("b.db"))
        upgrade = alembic(url_of(path), "upgrade", "head")
        with pytest.raises(StartRefused, match="with changes of a database that was moved away"), started(url_of(path)):
            pass
        path.with_name("b.db").rename(path)

    assert upgrade.returncode == 1
    assert upgrade.stderr.count("\n") == 1
    assert "a.db-wal is there, with changes of a database that was moved away" in upgrade.stderr
    assert usernames(path) == ["a"]


@pytest.mark.parametrize("kind", ["a folder", "no database", "in no folder"])
def test_the_service_and_alembic_say_which_file_cannot_be_a_database(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.db"
    if kind == "a folder":
        path.mkdir()
    elif kind == "no database":
        path.write_text("notes " * 1000)
    else:
        path = tmp_path / "none" / "a.db"

    with pytest.raises(StartRefused, match=str(path)), started(url_of(path)):
        pass
    upgrade = alembic(url_of(path), "upgrade", "head")

    assert upgrade.returncode == 1
    assert upgrade.stderr.startswith(f"FAILED: The database {path} cannot be used: ")
    assert upgrade.stderr.count("\n") == 1
