"""The file of a SQLite database: only a migration or a load makes it, for its owner alone, and a server keeps to it."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from refusals import DatabaseUnavailable


def uri(path: str | Path) -> str:
    """The name of a file as SQLite opens it: one that exists, and no new one."""
    return f"{Path(path).absolute().as_uri()}?mode=rw"


def is_part_of(path: str | Path, database: str | Path) -> bool:
    """Return whether a path, or a link of this name, leads to the file of a database or one that belongs to it."""
    # SQLite names these after the target of a symbolic link, a migration its lock after the link.
    for name in {os.path.abspath(database), os.path.realpath(database)}:
        for suffix in ("", "-wal", "-shm", "-journal", "-migrating"):
            own = name + suffix
            if os.path.realpath(own) == os.path.realpath(path):
                return True
            with suppress(FileNotFoundError):
                if os.path.samefile(own, path):
                    return True
    return False


def make_private(path: str | Path) -> None:
    """Create the file, readable by its owner alone, where there is none; SQLite gives -wal and -shm the same mode.

    Raises sqlite3.OperationalError where it cannot be created, or where a database was here and its -wal still is.
    """
    # The target of a symbolic link. A file that exists is not opened: closing it would release SQLite's locks on it.
    file = os.path.realpath(path)
    log = f"{file}-wal"
    try:
        # Before the look at the file: another process may be making both.
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
    """Have SQLite open the file only where there is one; for SQLAlchemy's event "do_connect"."""
    arguments[0] = uri(arguments[0])
    options["uri"] = True


class FileGone(Exception):
    """The path names another file than at start-up, or none, or something else has written to the file."""


class SQLiteFile:
    """The file that a path names at first; where it names another one later, nothing is read or written any more.

    SQLite would go on with the old file, and new connections with the new one and the old one's -wal. The same holds
    for a file that was copied over or emptied: what SQLite writes, a load and VACUUM included, only ever raises the
    change counter in the file's header.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()
        # The files that every connection shares, and their identities while there is a connection.
        self.shared: dict[str, tuple[int, int]] = {}
        self.connections = 0
        # Kept open: SQLite would lose its locks on the file, were another descriptor of it closed.
        self.descriptor: int | None = None
        self.identity: tuple[int, int] | None = None
        self.written: tuple[int, int] | None = None
        self.version = (-1, -1)

    def check(self) -> None:
        """Raise DatabaseUnavailable unless the path names the same file as the first time, and only SQLite wrote it."""
        try:
            found = os.stat(self.path)
            if self.descriptor is None:
                self.descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
                self.identity = (found.st_dev, found.st_ino)
            if self.identity == (found.st_dev, found.st_ino):
                self.check_version((found.st_size, found.st_mtime_ns))
                self.check_shared()
                return
        except OSError as error:
            words = f"{self.path}: {error.strerror}; move the database back to its place"
            raise DatabaseUnavailable from FileGone(words)
        raise DatabaseUnavailable from FileGone(
            f"{self.path} is not the file that it was at start-up; move that back. To use this one, stop the "
            f"service, move {self.path.name}-wal and -shm away, which belong to the old file, and start it again"
        )

    def check_version(self, written: tuple[int, int]) -> None:
        """Raise DatabaseUnavailable where the file was written to, and its header is older than before."""
        if written == self.written or self.descriptor is None:
            return
        version = header_version(os.pread(self.descriptor, 28, 0))
        if version < self.version:
            raise DatabaseUnavailable from FileGone(
                f"{self.path} was emptied, or another file was copied over it, while the service ran. Stop the "
                f"service, move {self.path.name} away with its -wal and -shm, and load a save: python manage.py saves"
            )
        self.written, self.version = written, version

    def check_shared(self) -> None:
        """Raise DatabaseUnavailable where -wal or -shm is gone, or another file: what is written now would be lost."""
        for name, identity in self.shared.items():
            if identity_of(name) != identity:
                raise DatabaseUnavailable from FileGone(
                    f"{name} was deleted or replaced while the service ran. Move it back. If it is lost, stop the "
                    "service with SIGTERM, and with nothing else open on the database: it then writes the changes in "
                    f"it to {self.path.name}; start it again"
                )

    def opened(self, connection: object, record: object) -> None:
        """Note which -wal and -shm the first connection has; for SQLAlchemy's event "connect", in WAL mode."""
        self.connections += 1
        if self.connections == 1:
            # SQLite names these after the target of a symbolic link.
            names = (f"{os.path.realpath(self.path)}{suffix}" for suffix in ("-wal", "-shm"))
            self.shared = {name: found for name in names if (found := identity_of(name))}

    def closing(self, connection: object, record: object) -> None:
        """Forget -wal and -shm with the last connection, which deletes them; for SQLAlchemy's event "close"."""
        self.connections -= 1
        if self.connections == 0:
            self.shared = {}

    def open(self, dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
        """Have SQLite open this file and no other; for SQLAlchemy's event "do_connect"."""
        self.check()
        open_existing(dialect, record, arguments, options)

    def close(self) -> None:
        """Close the file, once no connection to it is open any more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def identity_of(path: str) -> tuple[int, int] | None:
    """The device and the inode that a path names; None where it names nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def header_version(header: bytes) -> tuple[int, int]:
    """The journal mode (2: WAL) and the change counter in the first bytes of a file; less for what is no database.

    See sqlite.org/fileformat.html.
    """
    if len(header) < 28 or not header.startswith(b"SQLite format 3\0"):
        return (-1, -1)
    return header[18], int.from_bytes(header[24:28])
