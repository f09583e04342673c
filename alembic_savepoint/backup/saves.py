"""Saves: checksummed copies of a database, taken while it is in use, and loaded whole or not at all."""

import glob
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from alembic_savepoint.backup.left_over import is_left_over, remove_left_over
from alembic_savepoint.backup.postgresql_contents import contents_of_postgresql
from alembic_savepoint.backup.save_files import (
    SUFFIXES,
    UNCHANGED,
    Contents,
    Progress,
    Save,
    SaveError,
    SaveRefused,
    check_name,
    checksum,
    dated,
    errors_as_save_error,
    files_without_description,
    has_description,
    publish,
    read,
    refuse_taken,
    remove_killed,
    remove_save,
    silent,
    temporary,
)
from alembic_savepoint.backup.saves_postgresql import connect_postgresql, dump_postgresql, load_postgresql
from alembic_savepoint.backup.saves_sqlite import (
    contents_of_sqlite,
    copy_sqlite,
    load_sqlite,
    open_sqlite,
    sound,
)
from alembic_savepoint.connections import sqlite_path
from alembic_savepoint.history.applied import now
from alembic_savepoint.project import Project

__all__ = [
    "Contents",
    "Incomplete",
    "Progress",
    "Save",
    "SaveError",
    "SaveRefused",
    "contents",
    "dated",
    "list_incomplete",
    "list_prunable",
    "list_saves",
    "load",
    "prune",
    "save",
    "silent",
    "verify",
]


@errors_as_save_error("The save could not be made")
def save(project: Project, name: str | None = None, progress: Progress = silent) -> Save:
    """Save the database as it is at one instant, while it is in use.

    The default name is its revision and the time. Raises SaveRefused for a name that is taken or invalid, and if there
    are no tables; SaveError if the copy cannot be made. Files of killed saves and loads are removed.
    """
    folder = project.options.saves_dir
    if name is not None:
        check_name(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_killed(folder)
    if name is not None:
        refuse_taken(folder, name)
    return make_save(project, name, progress)


def make_save(project: Project, name: str | None, progress: Progress) -> Save:
    """Copy the database, and turn the copy into a save."""
    take, folder = copy_sqlite if project.is_sqlite else dump_postgresql, project.options.saves_dir
    with temporary(folder) as copy:
        contents = take(project.url, copy, progress, project.options.lock_timeout, project.versions)
        return publish(copy, folder, name or dated("-".join(contents.revision) or "base"), contents, progress)


@errors_as_save_error(UNCHANGED.rstrip("."))
def load(project: Project, name: str, progress: Progress = silent) -> Save | None:
    """Replace the contents of the database with those of the save, or change nothing.

    Return the save of what was replaced, which is complete up to the last change; None if the database was empty.
    Raises SaveRefused as `verify` does, and SaveError. Files of killed saves and loads are removed.
    """
    chosen, folder = verify(project, name, progress), project.options.saves_dir
    remove_killed(folder)
    replace = load_sqlite if project.is_sqlite else load_postgresql

    def keep() -> Save:
        return make_save(project, dated("replaced"), progress)

    return replace(project.url, chosen, folder, keep, progress, lock_timeout=project.options.lock_timeout)


@errors_as_save_error("The save cannot be read")
def verify(project: Project, name: str, progress: Progress = silent) -> Save:
    """Return the save of this name, after checking that its files are whole and fit this database and code.

    Raises SaveRefused.
    """
    folder = project.options.saves_dir
    save = read(folder, name)
    if (save.engine == "sqlite") is not project.is_sqlite:
        raise SaveRefused(
            f"Save {name} is of {save.engine}, and savepoint_url names another engine. Nothing was changed. "
            "A save is loaded into the engine that it comes from."
        )
    unknown = set(save.revision) - project.history.by_id.keys()
    if unknown:
        raise SaveRefused(
            f"Save {name} is at revision {', '.join(sorted(unknown))}, which no revision file has. "
            f"Nothing was changed. Check out the code that has it, and load again: "
            f"git log --all --oneline -- '*{min(unknown)}*'"
        )
    copy = save.copy_in(folder)
    if copy.stat().st_size != save.size or checksum(copy, progress) != save.sha256:
        raise SaveRefused(
            f"{copy} is damaged: it is not what was saved. Nothing was changed. "
            "Take another one: alembic-savepoint saves"
        )
    return save


def list_saves(folder: Path) -> list[Save]:
    """Return the saves in a folder, newest first, without incomplete ones."""
    saves = []
    for description in folder.glob("*.json"):
        with suppress(SaveRefused, OSError):
            saves.append(read(folder, description.stem))
    return sorted(saves, key=lambda save: save.created_at, reverse=True)


State = Literal["being written", "left over", "without description"]


class Incomplete(NamedTuple):
    """A copy that is not a save; its size is in bytes."""

    path: Path
    size: int
    modified_at: datetime
    state: State


def list_incomplete(folder: Path) -> list[Incomplete]:
    """Return the copies that a save or load is writing into a folder, or left there when it was killed."""
    found = []
    for path in files_without_description(folder):
        with suppress(FileNotFoundError):  # It has just become a save, or has been removed.
            about = path.stat()
            moment = datetime.fromtimestamp(about.st_mtime, UTC)
            killed = path.suffix == ".incomplete" or path.with_suffix(".json").exists()
            state: State = "left over" if killed else "without description"
            found.append(Incomplete(path, about.st_size, moment, state if is_left_over(path) else "being written"))
    return found


def list_prunable(folder: Path, keep: int | None, older_than: float | None) -> list[Save]:
    """Return the saves, oldest first, that are neither among the `keep` newest nor younger than `older_than` days.

    The newest save of each engine is never among them; without a number and an age, none is.
    """
    if keep is None and older_than is None:
        return []
    limit = now() - timedelta(days=older_than or 0)
    newest_first = list_saves(folder)
    found = [
        save
        for engine in SUFFIXES
        for save in [each for each in newest_first if each.engine == engine][max(keep or 1, 1) :]
        if save.created_at <= limit
    ]
    return sorted(found, key=lambda save: save.created_at)


def prune(folder: Path, saves: Iterable[Save], incomplete: Iterable[Incomplete]) -> Iterator[Path]:
    """Remove these saves, and copies that nobody is writing; yield the path of each copy once it is gone."""
    with errors_as_save_error("Not all was removed"):
        for save in saves:
            remove_save(save, folder)
            yield save.copy_in(folder)
        remove_killed(folder)
        for each in incomplete:
            if not has_description(each.path):
                remove_left_over(folder, glob.escape(each.path.name))
            if not each.path.exists():
                yield each.path


@errors_as_save_error("The database cannot be read")
def contents(project: Project) -> Contents | None:
    """Return the contents of the database now; None if there is no file or no table. Raises SaveError."""
    url, lock_timeout = project.url, project.options.lock_timeout
    if not project.is_sqlite:
        with connect_postgresql(url, lock_timeout) as postgresql:
            found = contents_of_postgresql(postgresql, project.versions)
    elif (path := sqlite_path(url)).exists():
        with sound(path), closing(open_sqlite(path, lock_timeout)) as sqlite:
            sqlite.execute("BEGIN")
            found = contents_of_sqlite(sqlite, now(), project.versions.name)
    else:
        return None
    return found if found.rows else None
