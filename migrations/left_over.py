"""Files and folders that are locked while they are in use, so that what a killed process left can be removed."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # On Windows nothing is locked, and nothing removed.
    fcntl = None  # type: ignore[assignment]

SIDE_FILES = ("-journal", "-wal", "-shm")
"""What SQLite adds to the name of a database, for the files beside it."""

OWN: set[Path] = set()
"""What this process itself uses: to open and close that once more would end SQLite's own locks on it."""


@contextmanager
def temporary_path(make: Callable[[], str]) -> Iterator[Path]:
    """A new file or folder, as `make` makes and names it, that is gone in the end unless it was renamed."""
    descriptor, path = make_and_lock(make)
    OWN.add(path)
    try:
        yield path
    finally:
        OWN.discard(path)
        remove(path)
        # Not before: this ends the lock.
        os.close(descriptor)


def make_and_lock(make: Callable[[], str]) -> tuple[int, Path]:
    """Make a path and lock it, before somebody takes it for left over; the descriptor holds the lock."""
    while True:
        path = Path(make())
        try:
            descriptor = open_path(path)
        except FileNotFoundError:
            continue
        lock(descriptor, wait=True)
        if path.exists():
            return descriptor, path
        os.close(descriptor)


def is_left_over(path: Path) -> bool:
    """Whether no process that lives uses it."""
    with locked_if_left_over(path) as is_locked:
        return is_locked


def remove_left_over(folder: Path, pattern: str) -> None:
    """Remove what killed processes of this user left in a folder."""
    for path in folder.glob(pattern):
        with locked_if_left_over(path) as is_locked:
            if is_locked:
                remove(path)


@contextmanager
def locked_if_left_over(path: Path) -> Iterator[bool]:
    """Lock what nobody uses; False where somebody does, or that cannot be known."""
    try:
        descriptor = None if path in OWN else open_path(path)
    except OSError:
        descriptor = None
    if descriptor is None:
        yield False
        return
    try:
        yield os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


def open_path(path: Path) -> int:
    """A descriptor of a file or folder, but of no link."""
    # A network file system locks only what is open for writing, which a folder never is.
    access = os.O_RDONLY if path.is_dir() else os.O_RDWR
    return os.open(path, access | getattr(os, "O_NOFOLLOW", 0))


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock it until it is closed, or the process ends; whether that was possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file with those that SQLite has put beside it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    for each in (path, *(path.with_name(path.name + suffix) for suffix in SIDE_FILES)):
        each.unlink(missing_ok=True)
