"""What killed saves, loads and rehearsals leave: it is named, and removed once nobody uses it any more."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import manage
from alembic_savepoint.backup import saves
from alembic_savepoint.backup.left_over import is_left_over, remove_left_over, temporary_path
from alembic_savepoint.backup.save_files import INCOMPLETE, temporary
from tests.support.project import load, save
from tests.support.service import ROOT

HELD = """
import sys
sys.path.insert(0, {root!r})
import alembic_savepoint.backup.saves as saves
from pathlib import Path

def stop(*_):
    print("stopped", flush=True)
    sys.stdin.read()

saves.{place} = stop
from tests.support.project import save
save({url!r}, Path({folder!r}), "killed")
"""
"""A save that stops for ever at a function."""


@contextmanager
def stopped_save(url: str, folder: Path, place: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun a save."""
    script = HELD.format(root=str(ROOT), place=place, url=url, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"stopped\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "saves"


def listed() -> Result:
    """What `saves` says."""
    return CliRunner().invoke(manage.app, ["saves"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_save_that_was_killed_is_named_and_the_next_one_removes_it(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVES_DIR", str(folder))
    with stopped_save(url, folder, "publish") as process:
        [name] = names(folder)
        assert "is being written by a save or load." in listed().stderr
        save(url, folder, "beside")
        assert name in names(folder)
        process.send_signal(signal.SIGKILL)
        process.wait()

    result = listed()
    assert result.exit_code == 0
    assert f"{folder}/{name} (" in result.stderr
    assert result.stderr.endswith("was left by a save or load that was killed. The next one removes it.\n")
    assert "beside" in result.stdout
    load(url, folder, "beside")
    assert not list(folder.glob(INCOMPLETE))
    assert listed().stderr == ""


def test_files_beside_a_copy_go_with_it(folder: Path) -> None:
    folder.mkdir()
    for suffix in ("", "-journal", "-wal", "-shm"):
        (folder / f".x.incomplete{suffix}").touch()
    (folder / "kept.sqlite").touch()

    remove_left_over(folder, INCOMPLETE)

    assert names(folder) == ["kept.sqlite"]


def test_a_copy_without_its_description_is_named_and_kept(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVES_DIR", str(folder))
    made = save(url, folder, "half")
    (folder / "half.json").unlink()
    save(url, folder, "whole")

    assert made.copy_in(folder).exists()
    assert "has no description beside it, so it cannot be loaded. `saves --prune` removes it." in listed().stderr
    assert "whole" not in listed().stderr


def test_what_is_in_use_is_never_left_over(folder: Path) -> None:
    folder.mkdir()
    with temporary(folder) as path:
        assert not is_left_over(path)
        remove_left_over(folder, INCOMPLETE)
        assert path.exists()
        renamed = path.replace(folder / "renamed")
        assert not is_left_over(renamed)
    assert is_left_over(renamed)
    assert names(folder) == ["renamed"]


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(folder: Path) -> None:
    folder.mkdir()
    made: list[Path] = []

    def make() -> str:
        path = folder / f".{len(made)}.incomplete"
        path.touch()
        made.append(path)
        if len(made) == 1:
            remove_left_over(folder, INCOMPLETE)
        return str(path)

    with temporary_path(make) as path:
        assert path == made[1]
        assert path.exists()


def test_neither_links_nor_others_files_are_removed(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    (folder / ".link.incomplete").symlink_to(theirs)
    if os.geteuid() == 0:
        (folder / ".theirs.incomplete").touch()
        os.chown(folder / ".theirs.incomplete", 12345, 12345)
    before = names(folder)

    remove_left_over(folder, INCOMPLETE)

    assert names(folder) == before
    assert names(theirs) == ["file"]


def test_the_copy_of_a_killed_rehearsal_is_removed_by_the_next_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", url)
    left = tmp_path / "savepoint-copy-killed"
    left.mkdir()
    (left / "copy.sqlite").write_text("personal data")

    result = CliRunner().invoke(manage.app, ["rehearse", "-1", "--copy"])

    assert result.exit_code in {0, 1}, result.stderr
    assert list(tmp_path.glob("savepoint-copy-*")) == []


def test_a_database_that_a_load_makes_is_private(tmp_path: Path, folder: Path, sqlite_template: str) -> None:
    save(f"sqlite:///{sqlite_template}", folder, "kept")

    load(f"sqlite:///{tmp_path}/new.db", folder, "kept")

    assert stat.S_IMODE((tmp_path / "new.db").stat().st_mode) == 0o600


def test_all_names_of_saves_tell_the_time_in_one_way(url: str, folder: Path) -> None:
    made = save(url, folder)
    replaced = load(url, folder, made.name)

    assert replaced
    for name in (made.name, replaced.name, saves.dated("before-0a1b2c3d4e5f")):
        day, _, time = name.rpartition("-")[2].partition("T")
        assert (len(day), len(time), time[-1]) == (8, 11, "Z"), name
