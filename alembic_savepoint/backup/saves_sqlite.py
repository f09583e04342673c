"""Saves of SQLite: its online backup, both ways."""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from alembic_savepoint.backup.save_files import (
    NO_TABLES,
    PATIENCE,
    UNCHANGED,
    Contents,
    Keep,
    Progress,
    Save,
    SaveError,
    SaveRefused,
    check_contents,
    discarded_on_failure,
    temporary,
)
from alembic_savepoint.connections import no_file, sqlite_path, sqlite_uri
from alembic_savepoint.history.applied import now, revision_text


def open_sqlite(path: Path, timeout: float) -> sqlite3.Connection:
    """Connect without the driver's own transactions, and without creating a file."""
    return sqlite3.connect(sqlite_uri(path), uri=True, isolation_level=None, timeout=timeout)


def copy_sqlite(url: str, copy: Path, progress: Progress, lock_timeout: float, versions: sa.TableClause) -> Contents:
    """Copy the database into an empty file, and return the copy's contents."""
    path = sqlite_path(url)
    if not path.exists():
        raise SaveRefused(f"{no_file(url)} Nothing was saved. savepoint_url says which database is meant.")
    with (
        sound(path),
        closing(open_sqlite(path, lock_timeout)) as source,
        closing(open_sqlite(copy, lock_timeout)) as target,
    ):
        # A transaction sees one state from its first read on. Without it, each write would restart the copy.
        source.execute("BEGIN")
        if not tables_of_sqlite(source):
            raise SaveRefused(NO_TABLES)
        moment = now()
        source.backup(
            target,
            pages=step_of(source),
            progress=lambda _, remaining, total: progress("Copying", total - remaining, total),
        )
        # A copy in WAL mode would have several files.
        target.execute("PRAGMA journal_mode=DELETE")
        check_integrity(target, path)
        return contents_of_sqlite(target, moment, versions.name)


def load_sqlite(
    url: str, chosen: Save, folder: Path, keep: Keep, progress: Progress, *, lock_timeout: float
) -> Save | None:
    """Write the save over the database in one transaction of SQLite, after checking it in a file of its own.

    `keep` saves the old data once nobody else can write; its result is returned.
    """
    path = sqlite_path(url)
    with temporary(folder) as scratch:
        shutil.copyfile(chosen.copy_in(folder), scratch)
        with closing(open_sqlite(scratch, lock_timeout)) as source:
            with sound(chosen.copy_in(folder)):
                check_integrity(source, chosen.copy_in(folder))
                found = contents_of_sqlite(source, chosen.created_at, chosen.version_table)
                check_contents(chosen, found.rows, found.revision)
            create_private(path)
            seconds = PATIENCE * lock_timeout
            with sound(path), closing(open_sqlite(path, 0)) as live, in_wal_mode(live, seconds):
                fit_pages(source, live)
                return replace_sqlite(source, live, folder, keep, progress, seconds=seconds)


@contextmanager
def in_wal_mode(live: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Let others read the old data until the transaction commits; afterwards the file has its own mode again.

    That needs a moment without others. If they use it all the time, it stays in WAL mode, which does no harm.
    """
    live.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}")
    (mode,) = live.execute("PRAGMA journal_mode").fetchone()
    live.execute("PRAGMA journal_mode=WAL")
    try:
        yield
    finally:
        if mode != "wal":
            with suppress(sqlite3.OperationalError):
                live.execute(f"PRAGMA journal_mode={mode}")


def create_private(path: Path) -> None:
    """Create the file, readable by its owner alone, if there is none; SQLite gives -wal and -shm the same mode.

    Raises SaveError for the -wal of a database that was moved away, which a new file would destroy.
    """
    file = path.resolve()
    log = file.with_name(f"{file.name}-wal")
    # A file that exists is not opened: closing it would release SQLite's locks on it.
    if file.exists():
        return
    if log.exists() and log.stat().st_size:
        raise SaveError(
            f"{UNCHANGED} {file} is missing, but {log} is there, with changes of a database that was moved away. A new "
            "file would destroy them: move the database back, or the -wal to where it is now."
        )
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def replace_sqlite(
    source: sqlite3.Connection,
    live: sqlite3.Connection,
    folder: Path,
    keep: Keep,
    progress: Progress,
    *,
    seconds: float,
) -> Save | None:
    """Copy all pages of `source` into `live`, and save the old data once nobody else can write."""
    replaced: list[Save] = []
    unneeded: list[Save] = []
    pages = step_of(source)
    occupied = bool(tables_of_sqlite(live))
    deadline = time.monotonic() + seconds

    def advance(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if time.monotonic() > deadline:
                raise SaveError(
                    f"{UNCHANGED} Another process has been writing to it for {seconds:g} seconds. Load again when that "
                    "has ended, or stop the service first."
                )
            return
        if occupied and not replaced:
            # The first page took the write lock, and all still read the old data.
            replaced.append(keep())
        # The last step commits, and an interruption of it is only noticed after that.
        unneeded[:] = replaced if remaining > pages else []
        progress("Loading", total - remaining, total)

    with discarded_on_failure(unneeded, folder):
        source.backup(live, pages=pages, progress=advance, sleep=0.01)
    return replaced[0] if replaced else None


def fit_pages(source: sqlite3.Connection, live: sqlite3.Connection) -> None:
    """Give `source` the page size of `live`, which a file in WAL mode cannot change."""
    (size,) = live.execute("PRAGMA page_size").fetchone()
    if source.execute("PRAGMA page_size").fetchone() != (size,):
        source.execute(f"PRAGMA page_size={size}")
        source.execute("VACUUM")


def step_of(source: sqlite3.Connection) -> int:
    """Return the number of pages to copy at a time: a hundredth, never all, since the first step only locks."""
    (count,) = source.execute("PRAGMA page_count").fetchone()
    return max(1, int(count) // 100)


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Raise SaveError with advice if SQLite finds that a file is damaged, or not a database."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        raise damaged(path, str(error)) from error


def check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    """Raise SaveError if a page, row or index of this copy of `path` is damaged."""
    ((fault,),) = connection.execute("PRAGMA integrity_check(1)")
    if fault != "ok":
        raise damaged(path, fault.splitlines()[-1])


def damaged(path: Path, fault: str) -> SaveError:
    """Return the error of a file that SQLite cannot read."""
    return SaveError(
        f"{path} is damaged ({fault}). Nothing was saved or loaded. If that is the database, move it away, with its "
        f"-wal and -shm, and load a save: mv {path} {path}.damaged"
    )


def tables_of_sqlite(connection: sqlite3.Connection) -> list[str]:
    """Return the tables, except SQLite's own."""
    return [
        table
        for (table,) in connection.execute(
            r"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
        )
    ]


def contents_of_sqlite(connection: sqlite3.Connection, moment: datetime, version_table: str) -> Contents:
    """Return the contents of a file."""

    def select(columns: str, table: str) -> list[Any]:
        quoted = table.replace('"', '""')
        rows = connection.execute(f'SELECT {columns} FROM "{quoted}"')  # noqa: S608 (it is quoted)  # nosec B608
        return [value for (value,) in rows]

    rows = {table: select("count(*)", table)[0] for table in sorted(tables_of_sqlite(connection))}
    versions = select("version_num", version_table) if version_table in rows else []
    return Contents(
        engine="sqlite",
        server_version=sqlite3.sqlite_version,
        schema_name=None,
        version_table=version_table,
        revision=tuple(sorted(map(revision_text, versions))),
        created_at=moment,
        rows=rows,
    )
