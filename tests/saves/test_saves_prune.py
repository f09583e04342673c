"""Saves: `saves --prune`, and what killed saves and loads leave."""

import json
import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from alembic_savepoint.backup.left_over import locked
from alembic_savepoint.backup.save_files import temporary
from alembic_savepoint.backup.saves import Save, SaveRefused, list_saves
from tests.support.project import load, save
from tests.support.saves import Run, change, files_in, only_sqlite, run_until_killed, state

pytestmark = pytest.mark.slow


@pytest.fixture
def saved(url: str, folder: Path) -> list[str]:
    """Five saves, oldest first: of 40, 30, 20, 10 and 0 days ago."""
    made = save(url, folder, "day-0")
    for days in (40, 30, 20, 10):
        earlier = made.model_copy(
            update={"name": f"day-{days}", "created_at": datetime.now(UTC) - timedelta(days=days, minutes=1)}
        )
        shutil.copy(made.copy_in(folder), earlier.copy_in(folder))
        (folder / f"{earlier.name}.json").write_text(earlier.model_dump_json())
    return [each.name for each in reversed(list_saves(folder))]


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ((), []),
        (("--keep", "3"), ["day-40", "day-30"]),
        (("--keep", "9"), []),
        (("--older-than", "20"), ["day-40", "day-30", "day-20"]),
        (("--older-than", "0"), ["day-40", "day-30", "day-20", "day-10"]),
        (("--keep", "4", "--older-than", "20"), ["day-40"]),
        (("--keep", "1", "--older-than", "35"), ["day-40"]),
    ],
)
@only_sqlite
def test_prune_removes_what_neither_number_nor_age_keeps_oldest_first(
    run: Run, saved: list[str], folder: Path, options: tuple[str, ...], removed: list[str]
) -> None:
    result = run("saves", "--prune", "--yes", *options)

    assert result.exit_code == 0
    told = [line for line in result.stderr.splitlines() if line.startswith("Removed")]
    assert told == [f"Removed {folder}/{name}.sqlite" for name in removed]
    left = [name for name in saved if name not in removed]
    assert files_in(folder) == sorted(f"{name}{suffix}" for name in left for suffix in (".json", ".sqlite"))
    assert all(name in result.stdout for name in left)


@only_sqlite
def test_nothing_is_removed_without_a_yes(run: Run, saved: list[str], folder: Path) -> None:
    before = files_in(folder)

    for options, code in ((("--prune", "--keep", "1"), 1), (("--keep", "1"), 2), (("--prune", "--keep", "0"), 2)):
        assert run("saves", *options).exit_code == code
        assert files_in(folder) == before


@only_sqlite
def test_the_newest_of_each_engine_stays(run: Run, saved: list[str], folder: Path) -> None:
    other = Save.model_validate_json((folder / "day-30.json").read_text()).model_copy(update={"engine": "postgresql"})
    (folder / "day-30.json").write_text(other.model_dump_json())
    (folder / "day-30.sqlite").rename(other.copy_in(folder))

    run("saves", "--prune", "--keep", "1", "--yes")

    assert [each.name for each in list_saves(folder)] == ["day-0", "day-30"]


def test_prune_removes_what_killed_runs_left_and_nothing_that_is_being_written(
    run: Run, url: str, folder: Path
) -> None:
    made = save(url, folder, "kept")
    copy = save(url, folder, "undescribed").copy_in(folder)
    (folder / "undescribed.json").unlink()
    (folder / ".killed.incomplete").write_text("personal data")
    (folder / ".killed.incomplete-journal").touch()
    (folder / ".gone.incomplete-wal").touch()
    with temporary(folder) as writing:
        result = run("saves", "--prune", "--yes")

        assert result.exit_code == 0
        assert files_in(folder) == sorted([writing.name, "kept.json", made.copy_in(folder).name])
    assert {f"Removed {path}" for path in (folder / ".killed.incomplete", copy)} <= set(result.stderr.splitlines())


def test_a_save_killed_between_its_two_files_is_removed_by_the_next_one(
    run: Run, full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def act(url: str, folder: Path, name: str, progress: object) -> None:
        def rename_the_first(path: Path, target: Path) -> Path:
            monkeypatch.setattr(Path, "replace", lambda path, target: os.kill(os.getpid(), 9))
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", rename_the_first)
        save(url, folder, name)

    run_until_killed(act, full_url, folder, "", 0)

    kept = [name for name in files_in(folder) if not name.startswith(".")]
    assert len(kept) == 2
    assert "was left by a save or load that was killed" in run("saves").stderr
    save(full_url, folder, "next")
    assert [name for name in files_in(folder) if name not in ("next.json", "next.sqlite", "next.dump")] == []


def test_a_description_that_is_about_to_be_written_is_waited_for(url: str, folder: Path) -> None:
    made = save(url, folder, "kept")
    description = (folder / "kept.json").read_bytes()
    (folder / "kept.json").write_bytes(b"")
    beside = threading.Thread(target=save, args=(url, folder, "beside"))
    with locked(folder):
        beside.start()
        beside.join(0.5)
        (folder / "kept.json").write_bytes(description)
    beside.join()

    assert {each.name for each in list_saves(folder)} == {"kept", "beside"}
    assert made.copy_in(folder).exists()


def test_the_copy_of_a_killed_load_is_removed_by_the_next_run(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)
    run_until_killed(load, full_url, folder, "Loading", 0)

    before = state(full_url)
    save(full_url, folder, "next")

    assert state(full_url) == before
    assert [name for name in files_in(folder) if name.startswith(".")] == []


def test_a_name_that_is_taken_stays_taken(url: str, folder: Path) -> None:
    save(url, folder, "kept")
    before = json.loads((folder / "kept.json").read_text())

    with pytest.raises(SaveRefused, match="exists already"):
        save(url, folder, "kept")

    assert json.loads((folder / "kept.json").read_text()) == before
