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
"""The suffixes of the files that SQLite creates beside a database."""

OWN: set[Path] = set()
"""The paths that this process itself uses: opening and closing them again would end SQLite's locks on them."""


@contextmanager
def temporary_path(make: Callable[[], str]) -> Iterator[Path]:
    """Create a file or folder with `make`, which returns its name, and remove it in the end unless it was renamed."""
    descriptor, path = make_and_lock(make)
    OWN.add(path)
    try:
        yield path
    finally:
        OWN.discard(path)
        remove(path)
        # Last, since this ends the lock.
        os.close(descriptor)


def make_and_lock(make: Callable[[], str]) -> tuple[int, Path]:
    """Create a path and lock it, before it is taken for left over; the descriptor holds the lock."""
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
    """Return whether no running process uses it."""
    with locked_if_left_over(path) as is_locked:
        return is_locked


def remove_left_over(folder: Path, pattern: str) -> None:
    """Remove files that killed processes of this user left in a folder."""
    alone = [(path, suffix) for suffix in SIDE_FILES for path in folder.glob(f"{pattern}{suffix}")]
    # A side file whose database is there goes with it.
    alone = [each for each in alone if not each[0].with_name(each[0].name.removesuffix(each[1])).exists()]
    for path in (*folder.glob(pattern), *(path for path, _ in alone)):
        with locked_if_left_over(path) as is_locked:
            if is_locked:
                remove(path)


@contextmanager
def locked_if_left_over(path: Path) -> Iterator[bool]:
    """Lock an unused path; yield False if it is in use, or that is not known."""
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


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Wait for the lock on a folder, and hold it; yield False where folders cannot be locked."""
    if folder in OWN:  # It holds the lock already.
        yield True
        return
    descriptor = open_path(folder)
    try:
        yield lock(descriptor, wait=True)
    finally:
        os.close(descriptor)


def open_path(path: Path) -> int:
    """Open a file or folder, but not a link, and return its descriptor."""
    # A network file system locks only what is open for writing, which a folder never is.
    access = os.O_RDONLY if path.is_dir() else os.O_RDWR
    return os.open(path, access | getattr(os, "O_NOFOLLOW", 0))


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock it until it is closed, or the process ends; return whether that was possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a folder with its contents, or a file with SQLite's files beside it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    for each in (path, *(path.with_name(path.name + suffix) for suffix in SIDE_FILES)):
        each.unlink(missing_ok=True)
