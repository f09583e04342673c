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

from migrations.left_over import temporary_path
from models import now

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""

PATIENCE = 3
"""For how many lock time-outs a load tries to get the tables for itself."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
SUFFIXES = {"sqlite": ".sqlite", "postgresql": ".dump"}
INCOMPLETE = ".*.incomplete"
NO_TABLES = "The database has no tables, so nothing was saved. Run: alembic upgrade head"
UNCHANGED = "The save was not loaded, and the database is as it was."


class SaveError(Exception):
    """What went wrong and what to do, as a paragraph for people; no database was changed unless it says so."""


class SaveRefused(SaveError):
    """What was not even tried, since it would be wrong."""


class Contents(pydantic.BaseModel):
    """What a database holds at an instant: its revisions, and how many rows each of its tables has."""

    model_config = pydantic.ConfigDict(frozen=True)

    engine: Literal["sqlite", "postgresql"]
    server_version: str
    schema_name: str | None
    """The schema of PostgreSQL in which the tables are."""
    revision: tuple[str, ...]
    created_at: pydantic.AwareDatetime
    rows: dict[str, int]


class Save(Contents):
    """What NAME.json says of the copy beside it."""

    name: str
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
    size: int
    """In bytes."""

    def copy_in(self, folder: Path) -> Path:
        """The copy itself."""
        return folder / f"{self.name}{SUFFIXES[self.engine]}"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the errors of files and engines into SaveError."""
    try:
        yield
    except (OSError, sqlite3.Error, psycopg.Error) as error:
        # The lines after the first may repeat what is in the rows.
        raise SaveError(f"{what}: {(str(error) or repr(error)).splitlines()[0]}") from error


Keep = Callable[[], Save]
"""Saves what a load replaces."""


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


# --- names and files --------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Refuse what is not a plain file name everywhere."""
    if NAME.fullmatch(name) is None:
        raise SaveRefused(
            f"{name!r} cannot be the name of a save. Use up to 100 letters (a to z), digits, dots, dashes and "
            "underscores, and begin with a letter, digit or underscore."
        )


def dated(what: str) -> str:
    """A name with the time in it, which sorts by time."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', what)}-{now():%Y%m%dT%H%M%S.%f}"[:-3] + "Z"


def refuse_taken(folder: Path, name: str) -> None:
    """Refuse the name of a save that exists, of either engine."""
    taken = [path for suffix in (".json", *SUFFIXES.values()) if (path := folder / f"{name}{suffix}").exists()]
    if taken:
        raise SaveRefused(f"{taken[0]} exists already. Nothing was saved. Choose another name, or remove it first.")


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A new file, only for its owner's eyes, that is gone in the end unless it was renamed."""

    def make() -> str:
        number, name = tempfile.mkstemp(prefix=".", suffix=".incomplete", dir=folder)
        os.close(number)
        return name

    with temporary_path(make) as path:
        yield path


def files_without_description(folder: Path) -> Iterator[Path]:
    """The copies in a folder that are not, or not yet, saves: incomplete ones, and those without a NAME.json."""
    yield from sorted(folder.glob(INCOMPLETE))
    for suffix in SUFFIXES.values():
        yield from (path for path in sorted(folder.glob(f"[!.]*{suffix}")) if not path.with_suffix(".json").exists())


def publish(copy: Path, folder: Path, name: str, contents: Contents, progress: Progress) -> Save:
    """Turn a finished copy into a save: give it its name, and last of all its description."""
    save = Save(**contents.model_dump(), name=name, sha256=checksum(copy, progress), size=copy.stat().st_size)
    with temporary(folder) as description:
        description.write_text(save.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for path in (copy, description):
            sync(path)
        try:
            # Of two that save under one name at the same moment, one makes this file.
            save.copy_in(folder).touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            refuse_taken(folder, name)
        copy.replace(save.copy_in(folder))
        description.replace(folder / f"{name}.json")
    # A load relies on the save of what it replaces, after a power cut too.
    sync(folder)
    return save


@contextmanager
def discarded_on_failure(replaced: list[Save], folder: Path) -> Iterator[None]:
    """Remove the save of what was to be replaced where nothing was: it is one more copy of what is still there."""
    try:
        yield
    except BaseException:
        for save in replaced:
            # The description first, so that no half of a save is listed.
            (folder / f"{save.name}.json").unlink(missing_ok=True)
            save.copy_in(folder).unlink(missing_ok=True)
        raise


def read(folder: Path, name: str) -> Save:
    """The save of this name, as its description says. Raises SaveRefused where one of its two files is not there."""
    check_name(name)
    path = folder / f"{name}.json"
    try:
        save = Save.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SaveRefused(f"There is no save {name} in {folder}. Those that are: python manage.py saves") from None
    except pydantic.ValidationError:
        raise SaveRefused(
            f"{path} is damaged: it is not what was written. Nothing was changed. "
            "Take another save: python manage.py saves"
        ) from None
    if save.name != name:
        raise SaveRefused(f"{path} describes save {save.name}. Nothing was changed. Give both files that name again.")
    if not save.copy_in(folder).is_file():
        raise SaveRefused(f"{save.copy_in(folder)} is missing, so save {name} cannot be loaded. Nothing was changed.")
    return save


def checksum(path: Path, progress: Progress) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            done += len(block)
            progress("Verifying", done, total)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_contents(save: Save, found: Contents) -> None:
    """Refuse a save that does not hold what its description says."""
    if (found.rows, found.revision) != (save.rows, save.revision):
        raise SaveRefused(
            f"Save {save.name} does not hold the rows and the revision that {save.name}.json says. Nothing was "
            "changed. Take another save: python manage.py saves"
        )
