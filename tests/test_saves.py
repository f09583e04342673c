"""`python manage.py save`, `load` and `saves`: consistent copies, loaded whole or not at all."""

import itertools
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import httpx2
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from conftest import AS_OPERATOR, ENGINES, ROOT, new_database, query, serving, wait_until
from sqlalchemy import make_url
from test_accounts import order, register_all
from test_migrations import REVISIONS, Snapshot, fill, look
from test_registration import named
from typer.testing import CliRunner, Result

import audit
import manage
from db.engines import create_migration_engine
from migrations import saves, saves_postgresql
from migrations.migrating import only_migrator
from migrations.saves import Save, SaveError, SaveRefused, contents, list_saves, load, save
from schema import ALEMBIC_INI

HEAD = REVISIONS[-1]

only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])
only_postgresql = pytest.mark.parametrize("engine", ["postgresql"])

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the saves are; nobody has made it yet."""
    return tmp_path / "saves"


@pytest.fixture(scope="module")
def full_templates(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A database of each engine at head with rows in its tables, to copy."""
    with ExitStack() as stack:
        templates = {}
        for engine in ENGINES:
            template = request.getfixturevalue(f"{engine}_template")
            url = stack.enter_context(new_database(engine, tmp_path_factory.mktemp(engine), request, template))
            fill(url, *REVISIONS)
            templates[engine] = str(make_url(url).database)
        yield templates


@pytest.fixture
def full_url(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest, full_templates: dict[str, str]
) -> Iterator[str]:
    """A database at head with rows in its tables."""
    with new_database(engine, tmp_path, request, full_templates[engine]) as url:
        yield url


@pytest.fixture
def run(url: str, request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one of the operator's commands in this process, with nobody at the terminal."""
    if "full_url" in request.fixturenames:
        url = request.getfixturevalue("full_url")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SAVES_DIR", str(folder))
    return lambda *arguments: CliRunner().invoke(manage.app, arguments)


def upgrade(url: str, revision: str) -> None:
    """Run `alembic upgrade` in this process."""
    with patch.dict(os.environ, {"DATABASE_URL": url}):
        command.upgrade(Config(ALEMBIC_INI), revision)


def downgrade_to_base(url: str) -> None:
    """Run `alembic -x accept-loss=all downgrade base` in this process."""
    with patch.dict(os.environ, {"DATABASE_URL": url}):
        command.downgrade(Config(ALEMBIC_INI, cmd_opts=Namespace(x=["accept-loss=all"])), "base")


def state(url: str) -> Snapshot:
    """All that the database holds, its record of revisions included."""
    found = look(url)
    for table in found.schema.values():
        for check in table["checks"]:
            # PostgreSQL writes casts anew when it reads them back from a dump.
            check["sqltext"] = re.sub(r"::[a-z ]+(\[\])?|[()]", "", check["sqltext"])
    found.rows["applied_revisions"] = [
        {"row": row} for row in query(url, "SELECT * FROM applied_revisions ORDER BY id")
    ]
    return found


def change(url: str) -> None:
    """Change rows, so that a load has something to undo."""
    query(url, "DELETE FROM profiles WHERE user_id = 2")
    query(url, "UPDATE users SET email = 'changed@example.com'")
    query(url, "CREATE TABLE notes (id INTEGER PRIMARY KEY)")


def counted(url: str, made: Save) -> dict[str, int]:
    """How many rows each table of the save has in this database."""
    return {table: query(url, f"SELECT count(*) FROM {table}")[0][0] for table in made.rows}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def half_way(act: Callable[[], None]) -> saves.Progress:
    """Do this once, when half of a save has been written over the database, uncommitted."""

    def progress(what: str, done: int, total: int) -> None:
        # On PostgreSQL a report comes each 1,000 lines; the first is made when the tables have been dropped.
        if what == "Loading" and (done * 2 >= total or (done == 0 and total < 1000)):
            act()

    return progress


def fail() -> None:
    raise RuntimeError("The power is gone")


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_load_brings_back_every_row_and_the_schema(full_url: str, folder: Path) -> None:
    before = state(full_url)
    save(full_url, folder, "kept")
    change(full_url)

    load(full_url, folder, "kept")

    assert state(full_url) == before


def test_a_load_undoes_an_upgrade(empty_url: str, folder: Path) -> None:
    older = REVISIONS[1]
    upgrade(empty_url, older)
    fill(empty_url, *REVISIONS[:2])
    before = state(empty_url)
    assert save(empty_url, folder, "kept").revision == (older,)
    upgrade(empty_url, "head")
    assert state(empty_url).schema != before.schema

    load(empty_url, folder, "kept")

    assert state(empty_url) == before


def test_a_load_undoes_a_downgrade(full_url: str, folder: Path) -> None:
    before = state(full_url)
    save(full_url, folder, "kept")
    downgrade_to_base(full_url)
    assert state(full_url).schema.keys() == {"alembic_version"}

    load(full_url, folder, "kept")

    assert state(full_url) == before


def test_what_a_load_replaced_is_kept_and_can_be_loaded(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)
    changed = state(full_url)

    replaced = load(full_url, folder, "kept")

    assert replaced is not None
    assert replaced.name.startswith("replaced-20")
    load(full_url, folder, replaced.name)
    assert state(full_url) == changed


def test_a_save_is_loaded_where_nothing_is_yet(full_url: str, empty_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")

    assert load(empty_url, folder, "kept") is None
    assert state(empty_url) == state(full_url)
    assert len(list_saves(folder)) == 1


def test_a_save_says_when_and_what_was_saved(full_url: str, folder: Path) -> None:
    made = save(full_url, folder, "kept")

    described = json.loads((folder / "kept.json").read_text())
    copy = made.copy_in(folder)
    assert Save.model_validate(described) == made
    assert described["revision"] == [HEAD]
    assert described["created_at"].endswith("Z")
    assert (described["size"], described["sha256"]) == (copy.stat().st_size, sha256(copy.read_bytes()).hexdigest())
    assert described["rows"] == counted(full_url, made)
    assert described["rows"]["users"] == 2


def test_a_save_without_a_name_is_called_by_its_revision_and_the_time(url: str, folder: Path) -> None:
    first, second = save(url, folder), save(url, folder)

    assert first.name < second.name
    assert first.name.startswith(f"{HEAD}-20")
    assert files_in(folder) == sorted(
        name for each in (first, second) for name in (each.copy_in(folder).name, f"{each.name}.json")
    )


def test_only_their_owner_can_read_saves(url: str, folder: Path) -> None:
    save(url, folder)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600, 0o600]


def test_saves_are_listed_newest_first_and_halves_are_not(url: str, folder: Path) -> None:
    names = ["b", "a", "c"]
    for name in names:
        save(url, folder, name)
    half = save(url, folder, "half")
    half.copy_in(folder).unlink()
    (folder / "broken.json").write_text("{")
    (folder / "other.json").write_bytes((folder / "a.json").read_bytes())

    assert [each.name for each in list_saves(folder)] == ["c", "a", "b"]


@pytest.mark.parametrize("name", ["", ".", "../up", "a/b", ".hidden", "-x", "ä", "a b", "a\n", "x" * 101])
def test_names_that_are_no_plain_file_names_are_refused(tmp_path: Path, folder: Path, name: str) -> None:
    with pytest.raises(SaveRefused, match="cannot be the name of a save"):
        save(f"sqlite:///{tmp_path}/x.db", folder, name)
    with pytest.raises(SaveRefused, match="cannot be the name of a save"):
        load(f"sqlite:///{tmp_path}/x.db", folder, name)


def test_a_save_is_never_overwritten(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    before = {path: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(SaveRefused, match="exists already"):
        save(full_url, folder, "kept")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_of_two_who_save_under_one_name_at_once_the_second_is_refused(url: str, folder: Path) -> None:
    def save_meanwhile(what: str, done: int, total: int) -> None:
        if what in ("Copying", "Dumping") and not files_in(folder)[1:]:
            save(url, folder, "kept")

    with pytest.raises(SaveRefused, match="exists already"):
        save(url, folder, "kept", save_meanwhile)
    load(url, folder, "kept")


def test_a_database_without_tables_is_not_saved(empty_url: str, folder: Path) -> None:
    with pytest.raises(SaveError):
        save(empty_url, folder)
    assert files_in(folder) == []


# --- while it is in use -----------------------------------------------------------------------------------------------


@contextmanager
def busy(url: str, tmp_path: Path) -> Iterator[tuple[httpx2.Client, list[str], list[int]]]:
    """A service that registers and transfers all the time.

    Its client, the names of those who were registered, and the status of every answer that is not 201.
    """
    registered: list[str] = []
    refused: list[int] = []
    ended = threading.Event()

    def work(prefix: str, base_url: str, accounts: list[int]) -> None:
        with httpx2.Client(base_url=base_url, timeout=60) as client:
            for number in itertools.count():
                if ended.is_set():
                    return
                body = order(accounts[number % 2], accounts[1 - number % 2], 1)
                name = f"{prefix}x{number}"
                answers = [
                    client.post("/transfers", json=body, headers=AS_OPERATOR),
                    client.post("/register", json=named(name)),
                ]
                refused.extend(answer.status_code for answer in answers if answer.status_code != 201)
                if answers[1].status_code == 201:
                    registered.append(name)

    with serving(url, tmp_path) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        accounts = [holder.account_id for holder in register_all(client, alice=100_000, bob=100_000)]
        threads = [
            threading.Thread(target=work, args=(f"{prefix}", server.url, accounts)) for prefix in ("c", "d", "e", "f")
        ]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(registered) > 20, "the first registrations")
            yield client, registered, refused
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def faults(url: str) -> list[audit.Finding]:
    with audit.open_books(url) as books:
        return list(books.run(lambda rows: None))


def usernames(url: str) -> set[str]:
    return {username for (username,) in query(url, "SELECT username FROM users")}


def test_a_service_in_use_is_saved_and_loaded_and_loses_nothing_that_it_acknowledged(
    url: str, engine: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with busy(url, tmp_path) as (client, registered, refused):
        kept = save(url, folder, "kept")
        seen = len(registered)
        wait_until(lambda: len(registered) > seen + 20, "more registrations")
        replaced = load(url, folder, "kept")
        seen = len(registered)
        wait_until(lambda: len(registered) > seen + 20, "registrations after the load")
        assert client.get("/readyz").json()["status"] == "ready"

    assert replaced is not None
    assert faults(url) == []
    assert set(refused) <= {503}
    # Each copy is what was there at one instant, and its description counts what it holds.
    found: dict[str, set[str]] = {}
    for each in (kept, replaced):
        with new_database(engine, tmp_path, request) as copy:
            load(copy, folder, each.name)
            assert faults(copy) == []
            assert each.rows == counted(copy, each)
            found[each.name] = usernames(copy)
    assert len(found["kept"]) < len(found[replaced.name])
    assert found["kept"] <= usernames(url)
    # Whoever was acknowledged is in what was replaced, or came after that.
    assert set(registered) <= found[replaced.name] | usernames(url)


def test_a_save_holds_nothing_that_was_written_after_it_began(full_url: str, empty_url: str, folder: Path) -> None:
    before = state(full_url)
    numbers = itertools.count()

    def write(what: str, done: int, total: int) -> None:
        if what in ("Copying", "Dumping"):
            # Were the copy begun anew after each, it would never end.
            assert next(numbers) < 1000
            query(full_url, "UPDATE users SET email = email || 'x'")

    save(full_url, folder, "kept", write)

    load(empty_url, folder, "kept")
    assert state(empty_url) == before
    assert next(numbers) > 1


def test_nothing_is_added_between_the_save_of_what_is_replaced_and_its_end(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    tried: list[str] = []

    def write() -> None:
        if not tried:
            with pytest.raises((sqlite3.OperationalError, psycopg.errors.LockNotAvailable)) as refusal:
                write_at_once(full_url)
            tried.append(str(refusal.value))

    def progress(what: str, done: int, total: int) -> None:
        if what in ("Copying", "Dumping", "Verifying") and len(files_in(folder)) > 2:
            write()

    change(full_url)
    load(full_url, folder, "kept", progress)

    assert len(tried) == 1


def write_at_once(url: str) -> None:
    """Change a row, unless that would have to wait."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(str(make_url(url).database), timeout=0)) as connection:
            connection.execute("UPDATE users SET email = 'late@example.com'")
    else:
        with psycopg.connect(url) as postgresql:
            postgresql.execute("SET lock_timeout = 1")
            postgresql.execute("UPDATE users SET email = 'late@example.com'")


@only_sqlite  # On PostgreSQL, who reads has to wait.
def test_who_reads_meanwhile_sees_what_was_there_until_all_of_the_save_is(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    query(full_url, "DELETE FROM profiles")
    seen: list[int] = []

    load(full_url, folder, "kept", half_way(lambda: seen.append(len(query(full_url, "SELECT * FROM profiles")))))

    assert seen == [0] * (len(seen) - 1) + [2]
    assert len(seen) > 1


# --- what is refused --------------------------------------------------------------------------------------------------


class Saved(NamedTuple):
    """A database that was saved as "kept" and changed since; it is not to be changed by any test."""

    url: str
    folder: Path
    save: Save
    state: Snapshot


@pytest.fixture(scope="module")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, full_templates: dict[str, str]
) -> Iterator[dict[str, Saved]]:
    """One of each engine."""
    with ExitStack() as stack:
        databases = {}
        for engine in ENGINES:
            path = tmp_path_factory.mktemp(engine)
            url = stack.enter_context(new_database(engine, path, request, full_templates[engine]))
            made = save(url, path / "saves", "kept")
            change(url)
            databases[engine] = Saved(url, path / "saves", made, state(url))
        yield databases


@pytest.fixture
def saved(engine: str, databases: dict[str, Saved]) -> Saved:
    return databases[engine]


def truncate(made: Save, folder: Path) -> None:
    path = made.copy_in(folder)
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(made: Save, folder: Path) -> None:
    path = made.copy_in(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_the_copy(made: Save, folder: Path) -> None:
    made.copy_in(folder).unlink()


def remove_the_description(made: Save, folder: Path) -> None:
    (folder / f"{made.name}.json").unlink()


def describe(made: Save, folder: Path, **fields: Any) -> None:
    """Write other things into the description."""
    path = folder / f"{made.name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut_the_description(made: Save, folder: Path) -> None:
    path = folder / f"{made.name}.json"
    path.write_text(path.read_text()[:100])


def swap_the_checksum(made: Save, folder: Path) -> None:
    describe(made, folder, sha256="0" * 64)


def rename(made: Save, folder: Path) -> None:
    describe(made, folder, name="another")


def come_from_the_other_engine(made: Save, folder: Path) -> None:
    other = next(engine for engine in ENGINES if engine != made.engine)
    describe(made, folder, engine=other)
    made.copy_in(folder).rename(made.model_copy(update={"engine": other}).copy_in(folder))


def be_of_an_unknown_revision(made: Save, folder: Path) -> None:
    describe(made, folder, revision=["ffffffffffff"])


def miscount(made: Save, folder: Path) -> None:
    describe(made, folder, rows={**made.rows, "users": 3})


def leave_out_a_table(made: Save, folder: Path) -> None:
    describe(made, folder, rows={table: count for table, count in made.rows.items() if table != "users"})


def be_of_an_older_revision(made: Save, folder: Path) -> None:
    describe(made, folder, revision=[REVISIONS[0]])


def hold_nonsense(made: Save, folder: Path) -> None:
    nonsense = b"nonsense" * 1000
    made.copy_in(folder).write_bytes(nonsense)
    describe(made, folder, size=len(nonsense), sha256=sha256(nonsense).hexdigest())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "is damaged"),
        (flip_a_bit, "is damaged"),
        (remove_the_copy, "is missing"),
        (remove_the_description, "There is no save kept"),
        (cut_the_description, "is damaged"),
        (swap_the_checksum, "is damaged"),
        (rename, "describes save another"),
        (come_from_the_other_engine, "names another engine"),
        (be_of_an_unknown_revision, "Check out the code that has it"),
        (miscount, "does not hold the rows and the revision"),
        (leave_out_a_table, "does not hold the rows and the revision"),
        (be_of_an_older_revision, "does not hold the rows and the revision"),
        (hold_nonsense, "is damaged|pg_restore says"),
    ],
)
def test_a_save_that_is_not_what_was_saved_is_refused_and_changes_nothing(
    saved: Saved, folder: Path, damage: Callable[[Save, Path], None], words: str
) -> None:
    shutil.copytree(saved.folder, folder)
    damage(saved.save, folder)

    with pytest.raises(SaveError, match=words):
        load(saved.url, folder, "kept")

    assert state(saved.url) == saved.state


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_load_that_fails_half_way_leaves_everything_as_it_was(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    files = files_in(folder)

    with pytest.raises(RuntimeError, match="The power is gone"):
        load(full_url, folder, "kept", half_way(fail))

    assert state(full_url) == before
    assert files_in(folder) == files
    load(full_url, folder, "kept")


@only_sqlite
def test_what_was_replaced_is_kept_when_the_interruption_came_too_late(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    new = state(full_url)
    change(full_url)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "Loading" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(full_url, folder, "kept", interrupt)

    assert state(full_url) == new
    assert len(list_saves(folder)) == 2


def run_until_killed(act: Callable[..., object], url: str, folder: Path, what: str, share: float) -> None:
    """Save or load in a process that is killed when this much of something is done."""

    def progress(said: str, done: int, total: int) -> None:
        if said == what and done >= total * share:
            os.kill(os.getpid(), signal.SIGKILL)

    # A fork has imported everything already.
    child = os.fork()
    if not child:
        try:
            act(url, folder, "kept", progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@only_postgresql
def test_a_load_that_is_killed_leaves_postgresql_as_it_was(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    run_until_killed(load, full_url, folder, "Loading", 0)

    assert state(full_url) == before


@only_sqlite
@pytest.mark.parametrize(("share", "old"), [(0.5, True), (1, False)])
def test_a_load_that_is_killed_leaves_sqlite_with_the_old_or_the_new_whole(
    full_url: str, folder: Path, share: float, old: bool
) -> None:
    new = state(full_url)
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    run_until_killed(load, full_url, folder, "Loading", share)

    assert state(full_url) == (before if old else new)
    assert query(full_url, "PRAGMA integrity_check") == [("ok",)]


def test_a_save_that_is_killed_leaves_nothing_that_is_listed(full_url: str, engine: str, folder: Path) -> None:
    run_until_killed(save, full_url, folder, "Copying" if engine == "sqlite" else "Dumping", 0.5)

    assert list_saves(folder) == []
    assert save(full_url, folder, "kept").name == "kept"


def test_a_save_that_ends_between_its_two_files_is_not_listed(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def rename_the_first(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", lambda path, target: fail())
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", rename_the_first)
    with pytest.raises(RuntimeError):
        save(full_url, folder, "kept")

    assert len(files_in(folder)) == 1
    assert list_saves(folder) == []


def test_a_save_that_fails_leaves_no_file(full_url: str, folder: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        fail()

    with pytest.raises(RuntimeError):
        save(full_url, folder, "kept", progress)

    assert files_in(folder) == []


@only_postgresql
def test_a_dump_that_cannot_be_restored_leaves_everything_as_it_was(full_url: str, folder: Path) -> None:
    # A restore runs with an empty search_path, so that this body finds no table.
    query(
        full_url, "CREATE FUNCTION known() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN 0 < max(id) FROM users; END'"
    )
    query(full_url, "ALTER TABLE transfers ADD CONSTRAINT doomed CHECK (known())")
    save(full_url, folder, "doomed")
    change(full_url)
    before = state(full_url)

    with pytest.raises(SaveError, match='relation "users" does not exist'):
        load(full_url, folder, "doomed")

    assert state(full_url) == before


# --- SQLite -----------------------------------------------------------------------------------------------------------


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
    query(full_url, "ALTER TABLE users ADD COLUMN nickname")
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


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@only_postgresql
@pytest.mark.parametrize("statement", ["DELETE FROM entries", "SELECT count(*) FROM entries"])
def test_a_load_names_who_holds_the_tables(full_url: str, folder: Path, statement: str) -> None:
    save(full_url, folder, "kept")
    with psycopg.connect(full_url) as holder:
        holder.execute(statement.encode())

        with pytest.raises(SaveError, match=rf"Process {holder.info.backend_pid}, for \d+ seconds: {statement[:6]}"):
            load(full_url, folder, "kept", lock_timeout=0.05)

    assert files_in(folder) == ["kept.dump", "kept.json"]
    load(full_url, folder, "kept")


@only_postgresql
def test_a_load_comes_to_its_turn_although_who_reads_goes_on_to_write(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)

    def read_then_write() -> None:
        # It waits for the load's lock, and the load for its.
        with psycopg.connect(full_url) as connection:
            connection.execute("SET LOCAL lock_timeout = 500")
            connection.execute("SELECT count(*) FROM users")
            reading.set()
            wait_until(lambda: files_in(folder)[-1].startswith("replaced-"), "the load to lock and to save")
            with pytest.raises((psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)):
                connection.execute("UPDATE users SET email = 'late@example.com'")

    reading = threading.Event()
    thread = threading.Thread(target=read_then_write)
    thread.start()
    reading.wait(10)
    load(full_url, folder, "kept")
    thread.join()

    assert query(full_url, "SELECT count(*) FROM profiles") == [(2,)]


@only_postgresql
def test_all_kinds_of_objects_are_replaced(url: str, folder: Path) -> None:
    query(
        url,
        """
        CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE TYPE pair AS (a integer, b text);
        CREATE TYPE span AS RANGE (subtype = float8);
        CREATE FUNCTION next(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
        CREATE AGGREGATE total(integer) (sfunc = int4pl, stype = integer);
        CREATE TABLE "odd "" name" (id serial PRIMARY KEY, n integer GENERATED ALWAYS AS IDENTITY, m mood, p positive);
        CREATE TABLE parts (id integer, s span, p pair, words text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
        CREATE INDEX ON parts (next(id));
        CREATE VIEW odd AS SELECT * FROM "odd "" name";
        CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM odd;
        CREATE SEQUENCE numbers;
        INSERT INTO "odd "" name" (m, p) VALUES ('glad', 1), ('sad', 2);
        INSERT INTO parts VALUES (5, '[1,2]', (1, 'x'), E'tab\\tline\\nCOMMIT;\\n\\\\.')
        """,
    )
    before = plain_dump(url)
    save(url, folder, "kept")
    query(url, "DROP VIEW odd CASCADE; CREATE TABLE more (id integer); UPDATE parts SET id = 6")

    load(url, folder, "kept")

    assert plain_dump(url) == before


def plain_dump(url: str) -> list[str]:
    """All that the database holds, as SQL."""
    dump = subprocess.run(["pg_dump", url], capture_output=True, text=True, check=True).stdout
    # But for keys that are new each time, and casts that PostgreSQL writes anew when it reads them back.
    return [line for line in dump.splitlines() if "restrict" not in line and "::character varying" not in line]


@only_postgresql
@pytest.mark.parametrize(
    "dependent",
    ["CREATE VIEW other.names AS SELECT username FROM users", "CREATE TABLE other.t (id bigint REFERENCES users (id))"],
)
def test_what_is_in_another_schema_is_never_dropped(full_url: str, folder: Path, dependent: str) -> None:
    save(full_url, folder, "kept")
    query(full_url, f"CREATE SCHEMA other; {dependent}")
    before = plain_dump(full_url)

    with pytest.raises(SaveError, match=r"other\.\w+.* would go with what the save replaces"):
        load(full_url, folder, "kept")

    assert plain_dump(full_url) == before


@only_postgresql
def test_a_role_that_owns_only_the_tables_can_save_and_load_and_the_grants_stay(
    empty_url: str, folder: Path, postgresql_url: str
) -> None:
    role, database = (f"role_{time.time_ns()}", make_url(empty_url).database)
    query(empty_url, f"CREATE ROLE {role} LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO {role}")
    query(empty_url, "GRANT USAGE ON SCHEMA public TO pg_monitor; CREATE FUNCTION mine() RETURNS integer RETURN 1")
    limited = postgresql_url.format(database).replace("postgres@", f"{role}@")
    try:
        upgrade(limited, "head")
        query(limited, "GRANT SELECT ON users TO pg_monitor")
        fill(limited, *REVISIONS)
        query(empty_url, "DROP FUNCTION mine()")
        before = plain_dump(empty_url)
        save(limited, folder, "kept")
        change(limited)
        query(empty_url, "CREATE FUNCTION mine() RETURNS integer RETURN 1")

        load(limited, folder, "kept")

        assert query(empty_url, "SELECT mine()") == [(1,)]
        query(empty_url, "DROP FUNCTION mine()")
        assert plain_dump(empty_url) == before
    finally:
        query(empty_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
def role(full_url: str) -> Iterator[str]:
    """A role, in quotes that its name needs; a test may drop it."""
    name = f'"reader {time.time_ns()}"'
    query(full_url, f"CREATE ROLE {name}")
    yield name
    if query(full_url, f"SELECT rolname FROM pg_roles WHERE quote_ident(rolname) = '{name}'"):
        query(full_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


@only_postgresql
def test_a_save_is_loaded_without_what_it_grants_to_roles_that_are_not_there(
    full_url: str, role: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    query(full_url, "GRANT SELECT ON users TO pg_monitor; GRANT SELECT (user_id) ON profiles TO pg_monitor")
    before = plain_dump(full_url)
    query(full_url, f"GRANT SELECT ON users TO {role} WITH GRANT OPTION; GRANT SELECT (id) ON transfers TO {role}")
    query(full_url, f"SET ROLE {role}; GRANT SELECT ON users TO pg_read_all_data")
    save(full_url, folder, "kept")
    query(full_url, f"DROP OWNED BY {role}; DROP ROLE {role}")

    load(full_url, folder, "kept")

    query(full_url, "REVOKE SELECT ON users FROM pg_read_all_data")
    assert plain_dump(full_url) == before
    assert [record.getMessage() for record in caplog.records if role in record.getMessage()] == [
        f"The server has no role {role}, so nothing was granted to it. To have the grants too: create it (CREATE ROLE "
        f"{role}), and load kept again."
    ]


@only_postgresql
def test_a_policy_for_a_role_that_is_not_there_says_what_to_create(full_url: str, role: str, folder: Path) -> None:
    query(full_url, f"CREATE POLICY own ON users TO {role}")
    save(full_url, folder, "kept")
    query(full_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
    before = state(full_url)

    with pytest.raises(SaveError, match=f"Create it, and load again: CREATE ROLE {role}"):
        load(full_url, folder, "kept")

    assert state(full_url) == before
    assert files_in(folder) == ["kept.dump", "kept.json"]


@only_postgresql
def test_no_table_can_be_altered_from_before_a_save_sees_it_until_it_is_dumped(url: str) -> None:
    # A table that is rewritten seems to be empty to whoever saw the database before.
    with saves_postgresql.connect_postgresql(url, 1), psycopg.connect(url) as migration:
        migration.execute("SET lock_timeout = 1")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            migration.execute("ALTER TABLE users ALTER COLUMN email TYPE varchar(90)")


@only_postgresql
def test_a_script_sets_nothing_that_servers_before_17_do_not_know(full_url: str, folder: Path) -> None:
    copy = save(full_url, folder, "kept").copy_in(folder)

    with saves_postgresql.script_of(
        copy, saves_postgresql.entries_of(copy, full_url, "15.0")[0], full_url, "15.0"
    ) as lines:
        script = b"".join(lines)

    assert b"transaction_timeout" in subprocess.run(["pg_restore", "-f-", copy], check=True, capture_output=True).stdout
    assert b"\nSET transaction_timeout" not in script


@only_postgresql
def test_another_schema_than_public_is_saved_and_loaded_and_keeps_what_is_granted_on_it(
    empty_url: str, folder: Path
) -> None:
    query(empty_url, "CREATE SCHEMA other; COMMENT ON SCHEMA other IS 'x'; GRANT USAGE ON SCHEMA other TO pg_monitor")
    query(empty_url, "CREATE TABLE bystander (id integer); INSERT INTO bystander VALUES (1)")
    url = f"{empty_url}&options=-csearch_path%3Dother"
    upgrade(url, "head")
    fill(url, *REVISIONS)
    before = plain_dump(empty_url)
    save(url, folder, "kept")
    change(url)

    load(url, folder, "kept")

    assert plain_dump(empty_url) == before


@only_postgresql
def test_a_save_of_another_schema_is_refused(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    query(full_url, "CREATE SCHEMA other")

    with pytest.raises(SaveRefused, match="is of the schema public, and the current one is other"):
        load(f"{full_url}&options=-csearch_path%3Dother", folder, "kept")


@only_postgresql
def test_a_url_with_several_hosts_works(full_url: str, folder: Path) -> None:
    socket = make_url(full_url).query["host"]
    several = full_url.replace(f"host={socket}", f"host={socket}:1&host={socket}:5432")
    before = state(full_url)

    save(several, folder, "kept")
    change(full_url)
    load(several, folder, "kept")

    assert state(full_url) == before


def fake(program: str, folder: Path, script: str, version: int = 99) -> None:
    """Put another program before PostgreSQL's own."""
    folder.mkdir()
    path = folder / program
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{program} (PostgreSQL) {version}.1" && exit\n{script}\n')
    path.chmod(0o755)


@only_postgresql
def test_a_commit_whose_answer_does_not_arrive_is_not_taken_for_a_failure(
    full_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(full_url, folder, "kept")
    psql = shutil.which("psql")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    fake("psql", tmp_path / "bin", f"sed -u '/^COMMIT;$/Q' | {psql} \"$@\"; exit 2")

    with pytest.raises(SaveError, match="it is not known whether the save was loaded"):
        load(full_url, folder, "kept")
    assert len(list_saves(folder)) == 2


@only_postgresql
def test_a_password_is_never_on_a_command_line(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    fake("pg_dump", tmp_path / "bin", f'echo "$PGPASSWORD" "$@" > {tmp_path}/said; exit 1')

    with pytest.raises(SaveError):
        save(url.replace("postgres@", "postgres:hunter%402@"), folder)

    password, _, arguments = (tmp_path / "said").read_text().partition(" ")
    assert password == "hunter@2"
    assert "dbname" in arguments
    assert "hunter" not in arguments


@only_postgresql
def test_a_pg_dump_that_is_missing_or_too_old_says_what_to_install(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    missing = run("save")
    fake("pg_dump", tmp_path / "bin", "", version=9)
    too_old = run("save")

    for result, words in ((missing, "pg_dump is not on the PATH"), (too_old, "too old for the server")):
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
        assert "apt install postgresql-client-18" in result.stderr
    assert files_in(folder) == []


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_commands_save_list_and_load(run: Run, full_url: str, folder: Path) -> None:
    before = state(full_url)

    made = run("save", "kept")
    change(full_url)
    listed = run("saves")
    loaded = run("load", "kept", "--yes")

    assert [each.exit_code for each in (made, listed, loaded)] == [0, 0, 0]
    assert "python manage.py load kept" in made.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines() if "kept" in line] == ["kept"]
    cells = {tuple(line.split()) for line in loaded.stdout.splitlines()}
    assert {("revision", HEAD, HEAD), ("profiles", "1", "2"), ("notes", "0")} <= cells
    assert "python manage.py load replaced-20" in loaded.stderr
    assert state(full_url) == before


def test_saves_are_listed_as_json(run: Run, url: str, folder: Path) -> None:
    assert json.loads(run("saves", "--json").stdout) == []
    made = save(url, folder, "kept")

    assert json.loads(run("saves", "--json").stdout) == [made.model_dump(mode="json")]


def test_where_there_are_no_saves_it_is_said_how_to_make_one(run: Run) -> None:
    result = run("saves")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "python manage.py save" in result.stderr


def test_nothing_is_replaced_when_there_is_nobody_to_ask(run: Run, full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    result = run("load", "kept")

    assert result.exit_code == 1
    assert "--yes" in result.stderr
    assert state(full_url) == before


@only_sqlite
@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_who_sits_at_the_terminal_is_asked(full_url: str, folder: Path, answer: bytes, code: int) -> None:
    old = state(full_url)
    save(full_url, folder, "kept")
    change(full_url)
    new = state(full_url)
    ours, theirs = pty.openpty()
    os.write(ours, answer)

    result = subprocess.run(
        [sys.executable, ROOT / "manage.py", "load", "kept"],
        stdin=theirs,
        env={**os.environ, "DATABASE_URL": full_url, "SAVES_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    for end in (ours, theirs):
        os.close(end)

    assert result.returncode == code, result.stderr
    assert "Replace what is there?" in result.stdout
    assert state(full_url) == (old if answer == b"y\n" else new)


def test_a_refusal_is_exit_code_1(run: Run, url: str, folder: Path) -> None:
    made = save(url, folder, "kept")
    flip_a_bit(made, folder)

    for arguments, words in (
        (("save", "kept"), "exists already"),
        (("save", "not a name"), "cannot be the name"),
        (("load", "kept", "--yes"), "is damaged"),
        (("load", "unknown", "--yes"), "There is no save unknown"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr


def test_an_older_save_says_what_comes_next(run: Run, empty_url: str, folder: Path) -> None:
    upgrade(empty_url, REVISIONS[0])
    save(empty_url, folder, "older")

    result = run("load", "older", "--yes")

    assert result.exit_code == 0
    assert "alembic upgrade head" in result.stderr


def test_a_load_waits_for_a_migration(run: Run, full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_TIMEOUT", "0.2")
    save(full_url, folder, "kept")
    change(full_url)
    before = state(full_url)

    with only_migrator(create_migration_engine(full_url), 1):
        result = run("load", "kept", "--yes")

    assert result.exit_code == 2
    assert "Another process migrates this database" in result.stderr
    assert state(full_url) == before


def test_a_database_that_cannot_be_reached_is_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, words in (
        ("postgresql://localhost:1/x", "Connection refused"),
        (f"sqlite:///{tmp_path}/missing.db", "There is no file"),
    ):
        monkeypatch.setenv("DATABASE_URL", url)
        result = run("save")
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr


def test_progress_never_passes_its_total(full_url: str, folder: Path) -> None:
    reports: list[tuple[str, int, int]] = []

    def progress(*report: Any) -> None:
        reports.append(report)

    save(full_url, folder, "kept", progress)
    load(full_url, folder, "kept", progress)

    assert all(0 <= done <= total for _, done, total in reports)
    assert {"Verifying", "Loading"} < {what for what, _, _ in reports}


def test_what_is_there_is_counted(full_url: str, empty_url: str) -> None:
    there = contents(full_url)

    assert there is not None
    assert there.rows["users"] == 2
    assert there.revision == (HEAD,)
    assert contents(empty_url) is None
