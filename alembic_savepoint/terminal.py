"""Text on a terminal: what comes from files and databases is shown, and cannot style, move or hide anything."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from sqlalchemy import make_url

SECRET = re.compile(r"password|secret|scram_\w+_key")
"""The names of a database URL's parameters that hold a secret."""


def printable(text: str, keep: str = "") -> str:
    """Return the text with control, format and separator characters escaped as in JSON, except those to keep."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else json.dumps(each)[1:-1] for each in text)


def url_text(url: str) -> str:
    """Return a database URL to print, without the passwords in its authority and parameters."""
    parsed = make_url(url)
    query = {name: "hidden" if SECRET.search(name) else value for name, value in parsed.query.items()}
    return str(parsed.set(query=query))


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: 1 line, 2 lines."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Terminal(Console):
    """A console that takes no text for markup, and sends no control characters but its own."""

    def __init__(self, *, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)
        self.spelled: Callable[[str], str] = str
        """Returns a text with commands and settings as the reader types them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape everything that is printed, also in tables and progress bars."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, keep="\n"), style, control)

    def print_line(self, text: str, style: str = "") -> None:
        """Print any text in one line, however narrow the terminal is."""
        self.print(printable(self.spelled(text)), style=style, soft_wrap=True)


class OutputLost(Exception):
    """An error of standard output. Not an OSError, which commands expect of other files."""


class Output(TextIOWrapper):
    """Standard output or error, for characters of any encoding. Raises OutputLost, once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=bool(stream.line_buffering))

    def write(self, text: str) -> int:
        """Write a text."""
        with self.reporting_loss():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write out the buffer."""
        with self.reporting_loss():
            super().flush()

    @contextmanager
    def reporting_loss(self) -> Iterator[None]:
        """Turn an OSError into OutputLost, and discard all further output."""
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self.report(error)

    def report(self, error: OSError) -> None:
        """Raise OutputLost."""
        raise OutputLost(
            f"cannot be written: {error.strerror}. What was done until then stays; its report is lost."
        ) from None


class Messages(Output):
    """Standard error. Its loss is ignored, since exit codes say the same."""

    def report(self, error: OSError) -> None:
        """Ignore the error."""


class PrintableFormatter(logging.Formatter):
    """A formatter that keeps each message, except tracebacks, in one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (it is logging's name)
        """Return the line of a record."""
        return printable(super().formatMessage(record))
