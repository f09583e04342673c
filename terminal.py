"""Text on a terminal: what files and databases say is shown, and can neither style, move nor hide anything."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from sqlalchemy import make_url

SECRET = re.compile(r"password|secret|scram_\w+_key")
"""What a parameter of a database URL is called that holds one."""


def printable(text: str, keep: str = "") -> str:
    """The text with each control, format and separator character escaped as JSON does, but for those to keep."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else json.dumps(each)[1:-1] for each in text)


def url_text(url: str) -> str:
    """A database URL for people, without passwords, wherever they stand in it."""
    parsed = make_url(url)
    query = {name: "hidden" if SECRET.search(name) else value for name, value in parsed.query.items()}
    return str(parsed.set(query=query))


def plural(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Terminal(Console):
    """A console to which a text is never markup, and that sends no control characters but its own."""

    def __init__(self, *, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of whatever is printed, tables and progress bars included."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, keep="\n"), style, control)

    def print_line(self, text: str, style: str = "") -> None:
        """Print a text in one line, however narrow the terminal is, and whatever is in it."""
        self.print(printable(text), style=style, soft_wrap=True)


class OutputLost(Exception):
    """What is wrong with standard output. No OSError, which commands expect of other files."""


class Output(TextIOWrapper):
    """Standard output or error, of which no character is refused for its encoding. Raises OutputLost, once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=bool(stream.line_buffering))

    def write(self, text: str) -> int:
        """Write a text."""
        with self.reporting_loss():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with self.reporting_loss():
            super().flush()

    @contextmanager
    def reporting_loss(self) -> Iterator[None]:
        """Turn an OSError into OutputLost; what is left, and what comes, goes nowhere."""
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
            f"cannot be written: {error.strerror}. What was done until then stays, and the report of it is lost."
        ) from None


class Messages(Output):
    """Standard error, which may be lost: exit codes say the same."""

    def report(self, error: OSError) -> None:
        """Do without."""


class PrintableFormatter(logging.Formatter):
    """A log whose messages are one line each, but for tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (it is logging's name)
        """The line of a record."""
        return printable(super().formatMessage(record))
