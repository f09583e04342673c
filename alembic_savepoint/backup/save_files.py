"""The files of a save: a copy of a database, and its description beside it."""

import hashlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import psycopg
import pydantic

from alembic_savepoint.backup.left_over import locked, remove, remove_left_over, temporary_path
from alembic_savepoint.history.applied import VERSIONS, now

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""

PATIENCE = 3
"""The number of lock time-outs for which a load tries to lock the tables."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
SUFFIXES = {"sqlite": ".sqlite", "postgresql": ".dump"}
INCOMPLETE = ".*.incomplete"
NO_TABLES = "The database has no tables, so nothing was saved. Run: alembic upgrade head"
UNCHANGED = "The save was not loaded, and the database is as it was."


class SaveError(Exception):
    """An error and what to do, as a paragraph for people; no database was changed unless it says so."""


class SaveRefused(SaveError):
    """A save or load that was refused before anything was tried."""


class Extension(pydantic.BaseModel):
    """An extension of a PostgreSQL database."""

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    version: str
    schema_name: str


class Contents(pydantic.BaseModel):
    """The contents of a database at an instant: its revisions, and the number of rows of each table."""

    model_config = pydantic.ConfigDict(frozen=True)

    engine: Literal["sqlite", "postgresql"]
    server_version: str
    schema_name: str | None
    """PostgreSQL's current schema, which holds alembic_version."""
    schemas: tuple[str, ...] = ()
    """All of PostgreSQL's schemas that are saved; none in saves of earlier versions, which hold the current one."""
    search_path: tuple[str, ...] = ()
    extensions: tuple[Extension, ...] = ()
    """The extensions that the schemas may need, in the order in which to create them; they are not saved themselves."""
    left_out: tuple[str, ...] = ()
    """What is in the database and not in the save, in words."""
    version_table: str = VERSIONS.name
    """Alembic's table, as it is called in `rows`."""
    revision: tuple[str, ...]
    created_at: pydantic.AwareDatetime
    rows: dict[str, int]

    @property
    def saved_schemas(self) -> tuple[str, ...]:
        """PostgreSQL's schemas that a load replaces."""
        return self.schemas or (str(self.schema_name),)


class Save(Contents):
    """The description in NAME.json of the copy beside it."""

    name: str
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
    size: int
    """In bytes."""

    def copy_in(self, folder: Path) -> Path:
        """Return the path of the copy."""
        return folder / f"{self.name}{SUFFIXES[self.engine]}"


@contextmanager
def errors_as_save_error(what: str) -> Iterator[None]:
    """Turn the errors of files and engines into SaveError."""
    try:
        yield
    except (OSError, sqlite3.Error, psycopg.Error) as error:
        # The lines after the first may repeat what is in the rows.
        raise SaveError(f"{what}: {(str(error) or repr(error)).splitlines()[0]}") from error


Keep = Callable[[], Save]
"""Saves the data that a load replaces."""


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


# --- names and files --------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Raise SaveRefused for a name that is not a plain file name on all systems."""
    if NAME.fullmatch(name) is None:
        raise SaveRefused(
            f"{name!r} cannot be the name of a save. Use up to 100 letters (a to z), digits, dots, dashes and "
            "underscores, and begin with a letter, digit or underscore."
        )


def dated(what: str) -> str:
    """Return a name with the time at its end, so that names sort by time."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', what)}-{now():%Y%m%dT%H%M%S.%f}"[:-3] + "Z"


def refuse_taken(folder: Path, name: str) -> None:
    """Raise SaveRefused for the name of an existing save, of either engine."""
    taken = [path for suffix in (".json", *SUFFIXES.values()) if (path := folder / f"{name}{suffix}").exists()]
    if taken:
        raise SaveRefused(f"{taken[0]} exists already. Nothing was saved. Choose another name, or remove it first.")


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """Create a file readable only by its owner, and remove it in the end unless it was renamed."""

    def make() -> str:
        number, name = tempfile.mkstemp(prefix=".", suffix=".incomplete", dir=folder)
        os.close(number)
        return name

    with temporary_path(make) as path:
        yield path


def files_without_description(folder: Path) -> Iterator[Path]:
    """Yield the copies in a folder that are not saves, or not yet: incomplete, or without a NAME.json."""
    yield from sorted(folder.glob(INCOMPLETE))
    for suffix in SUFFIXES.values():
        yield from (path for path in sorted(folder.glob(f"[!.]*{suffix}")) if not has_description(path))


def has_description(copy: Path) -> bool:
    """Return whether a copy has its NAME.json, which is empty until the save is complete."""
    try:
        return copy.with_suffix(".json").stat().st_size > 0
    except FileNotFoundError:
        return False


def remove_killed(folder: Path) -> None:
    """Remove what killed saves and loads left in a folder: incomplete copies, and those whose description is empty."""
    if not folder.is_dir():
        return
    remove_left_over(folder, INCOMPLETE)
    with locked(folder) as is_locked:
        # While it is locked, nobody is about to complete a description.
        for description in folder.glob("[!.]*.json") if is_locked else ():
            if not has_description(description):
                # The copy first: a kill in between leaves the description, which says that there is more to remove.
                for suffix in SUFFIXES.values():
                    remove(description.with_suffix(suffix))
                description.unlink(missing_ok=True)


def remove_save(save: Save, folder: Path) -> None:
    """Remove both files of a save."""
    # The description first, so that no half of a save is listed.
    (folder / f"{save.name}.json").unlink(missing_ok=True)
    remove(save.copy_in(folder))


def publish(copy: Path, folder: Path, name: str, contents: Contents, progress: Progress) -> Save:
    """Turn a finished copy into a save: give it its name, and last of all its description."""
    save = Save(**contents.model_dump(), name=name, sha256=checksum(copy, progress), size=copy.stat().st_size)
    with temporary(folder) as description:
        description.write_text(save.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for path in (copy, description):
            sync(path)
        with locked(folder):
            refuse_taken(folder, name)
            # Of two simultaneous saves of one name, one creates this file. While it is empty, the save is not complete.
            (folder / f"{name}.json").touch(mode=0o600, exist_ok=False)
            copy.replace(save.copy_in(folder))
            description.replace(folder / f"{name}.json")
    # A load relies on the save of what it replaces, after a power cut too.
    sync(folder)
    return save


@contextmanager
def discarded_on_failure(replaced: list[Save], folder: Path) -> Iterator[None]:
    """After a failure, remove the save of the data to be replaced, which still exists."""
    try:
        yield
    except BaseException:
        for save in replaced:
            remove_save(save, folder)
        raise


def read(folder: Path, name: str) -> Save:
    """Return the save of this name, from its description. Raises SaveRefused if one of its two files is missing."""
    check_name(name)
    path = folder / f"{name}.json"
    try:
        save = Save.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SaveRefused(f"There is no save {name} in {folder}. Those that are: alembic-savepoint saves") from None
    except pydantic.ValidationError:
        raise SaveRefused(
            f"{path} is damaged: it is not what was written. Nothing was changed. "
            "Take another save: alembic-savepoint saves"
        ) from None
    if save.name != name:
        raise SaveRefused(f"{path} describes save {save.name}. Nothing was changed. Give both files that name again.")
    if not save.copy_in(folder).is_file():
        raise SaveRefused(f"{save.copy_in(folder)} is missing, so save {name} cannot be loaded. Nothing was changed.")
    return save


def checksum(path: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            done += len(block)
            progress("Verifying", done, total)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_contents(save: Save, rows: dict[str, int], revision: tuple[str, ...]) -> None:
    """Raise SaveRefused for a save whose contents differ from its description."""
    if (rows, revision) != (save.rows, save.revision):
        raise SaveRefused(
            f"Save {save.name} does not hold the rows and the revision that {save.name}.json says. Nothing was "
            "changed. Take another save: alembic-savepoint saves"
        )
