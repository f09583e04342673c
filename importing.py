"""Users from a CSV or NDJSON file of any size: checked like POST /register, imported once however often it is run."""

import asyncio
import csv
import json
import os
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO, FileIO
from itertools import count, islice
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any, BinaryIO, Literal, TextIO

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import event
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from bodies import DECODER
from database import Database
from models import Registration
from problems import InvalidFields, cause_of, describe, field_errors
from refusals import Conflict, DatabaseUnavailable, Interruption, OutcomeUnknown, Refusal, SchemaBehind
from schema import Schema, get_revision
from settings import Settings

CHUNK = 20_000
"""How many lines are in memory, and in one transaction, at a time."""

LINE_LIMIT = 4096
"""How many bytes of a line are read: no user needs as many, and a file without line ends must not fill the memory."""

FIELDS = tuple(Registration.model_fields)
REQUIRED = {name for name in FIELDS if Registration.model_fields[name].is_required()}

NOTES = ("line", "field", "refusal")
"""What a file of refusals says beside each line; an import passes over it, so that a mended file can be imported."""

OnError = Literal["rollback", "continue"]


Raw = FileIO | BytesIO
"""Without a buffer, whose lock would make closing a pipe wait for who still reads from it."""


class ImportRefused(Exception):
    """Nothing of the file can be imported; the text says why."""


class LineRefused(Exception):
    """This line cannot be imported: which field is at fault, and why."""

    def __init__(self, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


# --- lines ------------------------------------------------------------------------------------------------------------


class Csv:
    """Lines of comma-separated values (RFC 4180), below one that names the columns."""

    suffix = ".csv"

    def __init__(self, header: bytes) -> None:
        """Raises ImportRefused where the header does not name the fields of a registration."""
        try:
            self.columns = split(decode(header))
        except LineRefused as refused:
            raise ImportRefused(f"Line 1: {refused.detail}") from None
        unknown = set(self.columns) - {*FIELDS, *NOTES}
        if unknown or not set(self.columns) >= REQUIRED or len(set(self.columns)) < len(self.columns):
            raise ImportRefused(
                f"Line 1: the columns are {', '.join(self.columns)[:200]}. Name each of these once, between commas: "
                f"{', '.join(FIELDS)}. A line of NDJSON begins with {{."
            )

    def parse(self, text: str) -> dict[str, Any]:
        """The fields of a line; an empty cell of an optional one is none."""
        cells = split(text)
        if len(cells) != len(self.columns):
            raise LineRefused(f"There are {len(cells)} columns, and line 1 names {len(self.columns)}.")
        named = zip(self.columns, cells, strict=True)
        return {name: cell for name, cell in named if name not in NOTES and (cell or name in REQUIRED)}

    def begin_refusals(self, file: TextIO) -> None:
        """The columns of a file of refusals."""
        csv.writer(file).writerow((*NOTES, *(name for name in self.columns if name not in NOTES)))

    def write_refused(self, file: TextIO, notes: Sequence[Any], text: str) -> None:
        """A line to mend: its own cells, after why it was refused."""
        try:
            cells = split(text)
        except LineRefused:
            cells = text.split(",")
        if len(cells) == len(self.columns):
            cells = [cell for name, cell in zip(self.columns, cells, strict=True) if name not in NOTES]
        csv.writer(file).writerow((*notes, *cells))


class Ndjson:
    """Lines of one JSON object each."""

    suffix = ".ndjson"

    def parse(self, text: str) -> dict[str, Any]:
        """The fields of a line."""
        try:
            found = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise LineRefused(f"This is not JSON: {str(error).replace('line 1 column', 'column')}.") from None
        if not isinstance(found, dict):
            raise LineRefused("A JSON object is expected.")
        # With as many colons as fields, none is there twice; otherwise one may be, or a text has colons.
        if text.count(":") != len(found):
            try:
                DECODER.decode(text)
            except InvalidFields as error:
                raise LineRefused(f"{error.errors[0].detail}.") from None
        return {name: value for name, value in found.items() if name not in NOTES}

    def begin_refusals(self, file: TextIO) -> None:
        """NDJSON begins with nothing."""

    def write_refused(self, file: TextIO, notes: Sequence[Any], text: str) -> None:
        """A line to mend: its own fields, after why it was refused; what is no JSON object, as text."""
        try:
            fields = self.parse(text)
        except LineRefused:
            fields = {"text": text}
        file.write(json.dumps(dict(zip(NOTES, notes, strict=True)) | fields) + "\n")


def decode(line: bytes) -> str:
    """The text of a line, without its end."""
    if len(line) >= LINE_LIMIT:
        raise LineRefused(f"The line is longer than {LINE_LIMIT - 1:,} bytes.")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise LineRefused(
            f"Byte {error.start + 1} of the line, 0x{byte:02x}, is not UTF-8. Save the file as UTF-8."
        ) from None


def split(text: str) -> list[str]:
    """The cells of one line: no field of a user holds a line break, so no cell may go on in the next line."""
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise LineRefused(f"This is not CSV: {error}. Put quotes in pairs.") from None


def read_lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line with its number; empty ones are left out, and long ones are cut at LINE_LIMIT."""
    for number in count(1):
        line = rest = source.readline(LINE_LIMIT)
        if not line:
            return
        while len(rest) == LINE_LIMIT and not rest.endswith(b"\n"):
            rest = source.readline(LINE_LIMIT)
        if number == 1:
            line = line.removeprefix(BOM_UTF8)
        if line.strip():
            yield number, line


@dataclass(slots=True)
class Chunk:
    """Some lines of a file: their registrations, by line number, and those refused already."""

    lines: list[tuple[int, bytes]]
    position: int
    registrations: dict[int, Registration] = field(default_factory=dict)
    refused: dict[int, LineRefused] = field(default_factory=dict)


class Source:
    """A file or pipe of users, read a chunk at a time."""

    def __init__(self, source: Raw) -> None:
        """Raises ImportRefused where it is empty or its first line is none of a file of users."""
        self.buffer = BufferedReader(source, 2**20)
        self.lines = read_lines(self.buffer)
        first = next(self.lines, None)
        if first is None:
            raise ImportRefused("There are no lines.")
        number, line = first
        self.format: Csv | Ndjson
        if line.lstrip().startswith(b"{"):
            self.format = Ndjson()
            self.first = [(number, line)]
        else:
            self.format = Csv(line)
            self.first = []

    def chunks(self) -> Iterator[Chunk]:
        """Every line, checked."""
        position = 0
        while lines := [*self.first, *islice(self.lines, CHUNK - len(self.first))]:
            self.first = []
            position += sum(len(line) for _, line in lines)
            chunk = Chunk(lines, position)
            for number, line in lines:
                try:
                    chunk.registrations[number] = self.check(line)
                except LineRefused as refused:
                    chunk.refused[number] = refused
            yield chunk

    def check(self, line: bytes) -> Registration:
        """The registration in a line. Raises LineRefused."""
        fields = self.format.parse(decode(line))
        try:
            return Registration.model_validate(fields)
        except ValidationError as error:
            found = field_errors(error)
            raise LineRefused(
                "; ".join(each.detail for each in found), "; ".join(each.field for each in found)
            ) from None


async def read_ahead(chunks: Iterator[Chunk]) -> AsyncIterator[Chunk]:
    """Check the next chunk while this one is written."""
    waiting: Queue[Chunk | Exception | None] = Queue(1)

    def feed() -> None:
        try:
            for chunk in chunks:
                waiting.put(chunk)
        except Exception as error:
            waiting.put(error)
        else:
            waiting.put(None)

    # A daemon, since nobody can end the wait for a pipe in which nothing comes.
    Thread(target=feed, daemon=True).start()
    try:
        while chunk := await asyncio.to_thread(waiting.get):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk
    finally:
        # End the thread that may still wait for a chunk.
        with suppress(Full):
            waiting.put_nowait(None)


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Summary:
    """What became of the lines."""

    lines: int = 0
    imported: int = 0
    imported_before: int = 0
    refused: int = 0
    rolled_back: bool = False
    refusals: str | None = None


Progress = Callable[[int, Summary], None]
"""Told after each chunk how many bytes are done, and what became of them."""


class Refusals:
    """The file of lines that were refused, made at the first of them."""

    def __init__(self, path: Path, form: Csv | Ndjson) -> None:
        """What an earlier import left there, perhaps half mended, is kept under a name with a ~ at its end."""
        self.path = path
        self.format = form
        self.files = ExitStack()
        self.file: TextIO | None = None
        if path.exists():
            path.replace(f"{path}~")

    def write(self, number: int, line: bytes, refused: LineRefused) -> None:
        """Add a line, with its number and why it was refused."""
        if self.file is None:
            self.file = self.files.enter_context(open_private(self.path, "w"))
            self.format.begin_refusals(self.file)
        text = line.decode(errors="replace").rstrip("\r\n")
        self.format.write_refused(self.file, (number, refused.field, refused.detail), text)


class Tokens:
    """The file of tokens, which grows with each import: a user that is listed twice has the later token."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def keep(self, tokens: Sequence[tuple[str, str]]) -> None:
        """Have the tokens on disk before their hashes are."""
        if self.file.tell() == 0:
            csv.writer(self.file).writerow(("username", "access_token"))
        csv.writer(self.file).writerows(tokens)
        self.file.flush()
        os.fsync(self.file.fileno())


def open_private(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """A text file that only its owner reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC), 0o600)
    return open(descriptor, mode, encoding="utf-8", newline="")


# --- import -----------------------------------------------------------------------------------------------------------


class Import:
    """One run over a source: what it found, and where it puts what it refuses and issues."""

    def __init__(
        self,
        source: Source,
        refusals: Refusals,
        keep_tokens: crud.KeepTokens | None,
        progress: Progress,
    ) -> None:
        self.source = source
        self.refusals = refusals
        self.keep_tokens = keep_tokens
        self.progress = progress
        self.summary = Summary()

    async def run(self, settings: Settings, on_error: OnError) -> None:
        """Import everything that is not refused, chunk by chunk, or with "rollback" all or nothing.

        Raises SchemaBehind and what Database.write does. What was committed until then stays.
        """
        database = Database(settings)
        if database.is_sqlite:
            event.listen(database.engine.sync_engine, "connect", prepare_for_many_rows)
        try:
            if Schema().compare(await database.read(get_revision)).status == "behind":
                raise SchemaBehind
            if on_error == "rollback":
                await database.write(self.write_all, settings.default_currency)
            else:
                await self.write_each(database, settings.default_currency)
        finally:
            await database.close()

    async def write_each(self, database: Database, currency: str) -> None:
        """Each chunk in a transaction of its own."""
        async for chunk in read_ahead(self.source.chunks()):
            registrations = list(chunk.registrations.values())
            outcomes = await database.write(crud.import_users, registrations, currency, self.keep_tokens)
            self.note(chunk, outcomes)

    async def write_all(self, session: AsyncSession, currency: str) -> None:
        """All chunks in one transaction, which is rolled back in the end where a line was refused."""
        async with session.begin() as transaction:
            # The writer's turn on SQLite: until here, another try is possible.
            await session.connection()
            try:
                async for chunk in read_ahead(self.source.chunks()):
                    registrations = list(chunk.registrations.values())
                    outcomes = await crud.import_users(session, registrations, currency, self.keep_tokens)
                    self.note(chunk, outcomes)
            except Conflict as error:
                # What was read cannot be read again from a pipe.
                raise DatabaseUnavailable from error
            if self.summary.refused:
                await transaction.rollback()
                self.summary.rolled_back = True
                self.summary.imported = 0

    def note(self, chunk: Chunk, outcomes: Sequence[bool | Exception]) -> None:
        """Count what became of a chunk, and write down what was refused."""
        for number, outcome in zip(chunk.registrations, outcomes, strict=True):
            if outcome is True:
                self.summary.imported += 1
            elif outcome is False:
                self.summary.imported_before += 1
            else:
                chunk.refused[number] = explain(outcome)
        for number, line in chunk.lines if chunk.refused else ():
            if number in chunk.refused:
                self.refusals.write(number, line, chunk.refused[number])
        self.summary.lines += len(chunk.lines)
        self.summary.refused += len(chunk.refused)
        self.progress(chunk.position, self.summary)


def explain_stop(stop: Interruption) -> str:
    """Why the database stopped an import."""
    if isinstance(stop, SchemaBehind):
        return stop.detail
    if isinstance(stop, OutcomeUnknown):
        return "The connection broke during a COMMIT."
    return f"The database cannot be reached, or is too busy{cause_of(stop)}."


def explain(error: Exception) -> LineRefused:
    """Why a registration was refused by what is in the database."""
    if isinstance(error, Refusal):
        return LineRefused(error.detail, error.field or "username")
    return LineRefused(f"The database failed unforeseen: {describe(error).splitlines()[0]}")


def prepare_for_many_rows(dbapi_connection: Any, _: Any) -> None:
    """Keep more of the indexes in memory, and write less often what changed in them twice."""
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA cache_size = -65536")
    cursor.execute("PRAGMA wal_autocheckpoint = 50000")
    cursor.close()


def import_users(
    source: Raw,
    settings: Settings,
    *,
    on_error: OnError,
    refusals: Callable[[str], Path],
    tokens: Path | None,
    progress: Progress,
) -> Summary:
    """Import the users in a file or pipe, which is closed then; `refusals` names the file of refusals, by its suffix.

    Raises ImportRefused, an Interruption where the database stops it, and OSError. Then, unless all was to be rolled
    back, the chunks until there stay, and the same import can be run again.
    """
    with source, ExitStack() as files:
        users = Source(source)
        kept_in = refusals(users.format.suffix)
        refused = Refusals(kept_in, users.format)
        files.enter_context(refused.files)
        keep_tokens = Tokens(files.enter_context(open_private(tokens, "a"))).keep if tokens else None
        run = Import(users, refused, keep_tokens, progress)
        asyncio.run(run.run(settings, on_error))
        if run.summary.refused:
            run.summary.refusals = str(kept_in)
    return run.summary
