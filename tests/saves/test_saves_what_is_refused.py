"""Saves: what is refused; whole or not at all."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alembic_savepoint.backup.saves import Save, SaveError, list_saves
from tests.support.migrations import REVISIONS, Snapshot
from tests.support.project import load, save
from tests.support.saves import (
    change,
    files_in,
    flip_a_bit,
    half_way,
    only_postgresql,
    only_sqlite,
    run_until_killed,
    state,
)
from tests.support.service import ENGINES, new_database, query

pytestmark = pytest.mark.slow


def fail() -> None:
    raise RuntimeError("The power is gone")


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

    assert len(files_in(folder)) == 2
    assert list_saves(folder) == []


def test_a_save_that_fails_leaves_no_file(full_url: str, folder: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        fail()

    with pytest.raises(RuntimeError):
        save(full_url, folder, "kept", progress)

    assert files_in(folder) == []


@only_postgresql
def test_a_dump_that_cannot_be_restored_leaves_everything_as_it_was(full_url: str, folder: Path) -> None:
    # Rows are restored table by table, so that this body finds none in the last one.
    query(
        full_url,
        "CREATE FUNCTION known() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN 0 < count(*) FROM users; END'",
    )
    query(full_url, "ALTER TABLE transfers ADD CONSTRAINT doomed CHECK (known())")
    save(full_url, folder, "doomed")
    change(full_url)
    before = state(full_url)

    with pytest.raises(SaveError, match='violates check constraint "doomed"'):
        load(full_url, folder, "doomed")

    assert state(full_url) == before
