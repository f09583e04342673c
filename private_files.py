"""Files for personal data and secrets: readable only by their owner, and never written through a link."""

import errno
import os
import stat
from pathlib import Path
from typing import Literal, TextIO


class FileRefused(Exception):
    """The reason why a file is not written to."""


def open_private(path: Path, mode: Literal["a", "x"]) -> TextIO:
    """Open a text file of mode 0600: a new one ("x"), or also an existing one to append to ("a").

    Raises OSError, and FileRefused for anything but this user's regular file without other names.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_EXCL)
    try:
        # Without O_NONBLOCK, a pipe would wait for a reader.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise refused(path) from None
        raise
    try:
        refuse_foreign(os.fstat(descriptor), path)
        os.fchmod(descriptor, 0o600)
        return open(descriptor, mode, encoding="utf-8", newline="")
    except BaseException:
        os.close(descriptor)
        raise


def keep_older(path: Path) -> None:
    """Rename a file, if it exists, to its name with a ~ at the end, and make it readable only by its owner.

    Raises FileRefused as open_private does, and OSError.
    """
    try:
        refuse_foreign(path.lstat(), path)
    except FileNotFoundError:
        return
    older = older_name(path)
    path.replace(older)
    older.chmod(0o600)


def older_name(path: Path) -> Path:
    """Return the name under which keep_older keeps a file."""
    return Path(f"{path}~")


def refuse_foreign(found: os.stat_result, path: Path) -> None:
    """Raise FileRefused for what is not a plain file of this user's."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid != os.geteuid():
        raise refused(path)


def refused(path: Path) -> FileRefused:
    """Return the error of such a file."""
    return FileRefused(
        f"{path} is a link, no regular file, or another user's, so nothing private is written to it. Name another file."
    )
