"""The file of a SQLite database: created by a migration or a load only, for its owner alone; a server uses no other."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from db import turns
from refusals import DatabaseUnavailable


def uri(path: str | Path) -> str:
    """The URI with which SQLite opens a file that exists, and creates none."""
    return f"{Path(path).absolute().as_uri()}?mode=rw"


def is_part_of(path: str | Path, database: str | Path) -> bool:
    """Return True if a path, or a link, leads to the file of a database or to one that belongs to it."""
    # SQLite and writers name these after the target of a symbolic link, a migration its lock after the link.
    for name in {os.path.abspath(database), os.path.realpath(database)}:
        for suffix in ("", "-wal", "-shm", "-journal", "-migrating", *turns.SUFFIXES):
            own = name + suffix
            if os.path.realpath(own) == os.path.realpath(path):
                return True
            with suppress(FileNotFoundError):
                if os.path.samefile(own, path):
                    return True
    return False


def make_private(path: str | Path) -> None:
    """Create the file, readable by its owner alone, if there is none; SQLite gives -wal and -shm the same mode.

    Raises sqlite3.OperationalError if it cannot be created, or if the -wal of a missing database is there.
    """
    # The target of a symbolic link. A file that exists is not opened: closing it would release SQLite's locks on it.
    file = os.path.realpath(path)
    log = f"{file}-wal"
    try:
        # Before the check for the file: another process may be creating both.
        has_log = os.path.exists(log) and os.path.getsize(log) > 0
        if os.path.exists(file):
            return
        if has_log:
            raise sqlite3.OperationalError(
                f"{file} is missing, but {log} is there, with changes of a database that was moved away. A new file "
                "would destroy them: move the database back, or the -wal to where it is now"
            )
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise sqlite3.OperationalError(f"{file} cannot be created: {error.strerror}") from error


def open_private(dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """Create the file before SQLite opens it; for SQLAlchemy's event "do_connect"."""
    if arguments[0] != ":memory:":
        make_private(arguments[0])


def open_existing(dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """Open the file, and create none; for SQLAlchemy's event "do_connect"."""
    arguments[0] = uri(arguments[0])
    options["uri"] = True


class FileGone(Exception):
    """The path names another file than at start-up, or none, or the file was overwritten."""


class SQLiteFile:
    """The file that a path names at first; if it names another one later, nothing is read or written any more.

    Otherwise open connections would use the old file, and new ones the new file with the old one's -wal. A file that
    was overwritten or emptied is found by the change counter in its header, which SQLite only ever raises.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()
        # -wal and -shm, and their identities while there is a connection.
        self.shared: dict[str, tuple[int, int]] = {}
        self.connections = 0
        # Kept open: closing any descriptor of the file would release SQLite's locks on it.
        self.descriptor: int | None = None
        self.identity: tuple[int, int] | None = None
        self.written: tuple[int, int] | None = None
        self.version = (-1, -1)

    def check(self) -> None:
        """Raise DatabaseUnavailable if the path names another file than at first, or the file was overwritten."""
        try:
            found = os.stat(self.path)
            if self.descriptor is None:
                self.descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
                self.identity = (found.st_dev, found.st_ino)
            if self.identity == (found.st_dev, found.st_ino):
                self._check_version((found.st_size, found.st_mtime_ns))
                self._check_shared()
                return
        except OSError as error:
            words = f"{self.path}: {error.strerror}; move the database back to its place"
            raise DatabaseUnavailable from FileGone(words)
        raise DatabaseUnavailable from FileGone(
            f"{self.path} is not the file that it was at start-up; move that back. To use this one, stop the "
            f"service, move {self.path.name}-wal and -shm away, which belong to the old file, and start it again"
        )

    def _check_version(self, written: tuple[int, int]) -> None:
        if written == self.written or self.descriptor is None:
            return
        # The journal mode (2: WAL) and the change counter; less if it is no database. See sqlite.org/fileformat.html.
        header = os.pread(self.descriptor, 28, 0)
        version = (-1, -1)
        if len(header) == 28 and header.startswith(b"SQLite format 3\0"):
            version = header[18], int.from_bytes(header[24:])
        if version < self.version:
            raise DatabaseUnavailable from FileGone(
                f"{self.path} was emptied, or another file was copied over it, while the service ran. Stop the "
                f"service, move {self.path.name} away with its -wal and -shm, and load a save: python manage.py saves"
            )
        self.written, self.version = written, version

    def _check_shared(self) -> None:
        """Raise DatabaseUnavailable if -wal or -shm is missing or another file: commits would be lost."""
        for name, identity in self.shared.items():
            if identity_of(name) != identity:
                raise DatabaseUnavailable from FileGone(
                    f"{name} was deleted or replaced while the service ran. Move it back. If it is lost, stop the "
                    "service with SIGTERM, and with nothing else open on the database: it then writes the changes in "
                    f"it to {self.path.name}; start it again"
                )

    def opened(self, connection: object, record: object) -> None:
        """Remember the first connection's -wal and -shm; for SQLAlchemy's event "connect", in WAL mode."""
        self.connections += 1
        if self.connections == 1:
            # SQLite names these after the target of a symbolic link.
            names = (f"{os.path.realpath(self.path)}{suffix}" for suffix in ("-wal", "-shm"))
            self.shared = {name: found for name in names if (found := identity_of(name))}

    def closing(self, connection: object, record: object) -> None:
        """Forget -wal and -shm, which the last connection deletes; for SQLAlchemy's event "close"."""
        self.connections -= 1
        if self.connections == 0:
            self.shared = {}

    def open(self, dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
        """Check the file before SQLite opens it; for SQLAlchemy's event "do_connect"."""
        self.check()
        open_existing(dialect, record, arguments, options)

    def close(self) -> None:
        """Close the file, after the last connection."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def identity_of(path: str) -> tuple[int, int] | None:
    """The device and the inode of a path; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
