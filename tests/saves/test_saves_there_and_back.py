"""Saves: there and back; while it is in use."""

import itertools
import json
import os
import sqlite3
import stat
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import httpx2
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import make_url

import audit
from alembic_savepoint.backup.saves import Save, SaveError, SaveRefused, list_saves
from schema import ALEMBIC_INI
from tests.support.accounts import order, register_all
from tests.support.migrations import REVISIONS, fill
from tests.support.project import load, save
from tests.support.registration import named
from tests.support.saves import HEAD, change, counted, files_in, half_way, only_sqlite, state, upgrade
from tests.support.service import AS_OPERATOR, new_database, query, serving, wait_until

pytestmark = pytest.mark.slow


def downgrade_to_base(url: str) -> None:
    """Run `alembic -x accept-loss=all downgrade base` in this process."""
    with patch.dict(os.environ, {"DATABASE_URL": url}):
        command.downgrade(Config(ALEMBIC_INI, cmd_opts=Namespace(x=["accept-loss=all"])), "base")


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


def faults(url: str) -> list[audit.Discrepancy]:
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
