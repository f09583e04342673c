"""Users from a CSV or NDJSON file of any size, checked like POST /register; nobody is imported twice."""

import asyncio
import csv
import gc
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO, FileIO, TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple, TextIO

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import event
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from alembic_savepoint.terminal import printable
from api.bodies import DECODER
from api.problems import InvalidFields, cause_of, describe, field_errors
from db.database import Database
from models import Registration
from private_files import keep_older, open_private
from refusals import Conflict, DatabaseUnavailable, Interruption, OutcomeUnknown, Refusal, SchemaBehind, SchemaDiffers
from schema import Schema, get_state
from settings import Settings

CHUNK = 20_000
"""The number of records that are in memory, and in one transaction, at a time."""

LIMIT = 4096
"""The number of characters kept of a record, one more than it may have: a file without line ends, or a quote that is
never closed, must not fill the memory."""

FIELDS = tuple(Registration.model_fields)
REQUIRED = {name for name in FIELDS if Registration.model_fields[name].is_required()}

NOTES = ("line", "field", "refusal")
"""The columns that a file of refusals adds; an import skips them, so that the fixed file can be imported."""

FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""The beginning of a cell that a spreadsheet would run as a formula, or that was escaped for that reason."""

OnError = Literal["rollback", "continue"]


class ImportRefused(Exception):
    """The reason why nothing of a file can be imported."""


class TokensNotKept(Interruption):
    """The file of tokens could not be written, so none were issued; the cause is an OSError."""


@dataclass(eq=False)
class LineRefused(Exception):
    """The reason why a record cannot be imported, and the fields with an error."""

    detail: str
    field: str = ""


# --- records ----------------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """A CSV record or a line of NDJSON, from its first line to its last; at most the first 2 * LIMIT characters."""

    line: int
    last: int
    text: str


class Csv:
    """Records of comma-separated values (RFC 4180), below one that names the columns."""

    suffix = ".csv"

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.unescape: Callable[[str], str] = str
        self.line = 0
        self.is_quoted = self.is_open = False
        self.is_at_start = True

    def ends(self, piece: str) -> bool:
        """Return whether a record ends with this piece, a line or a part of one: then no quote is open."""
        if self.is_open or '"' in piece or piece[-1] not in "\r\n":
            for mark in re.findall(r'[",]|[^",]+', piece):
                if mark == '"' and (self.is_at_start or self.is_quoted):
                    # A doubled quote closes and reopens.
                    self.is_quoted, self.is_open = True, not self.is_open
                elif mark == "," and not self.is_open:
                    self.is_quoted, self.is_at_start = False, True
                    continue
                self.is_at_start = False
            if self.is_open or piece[-1] not in "\r\n":
                return False
        self.is_quoted, self.is_at_start = False, True
        return True

    def read_header(self, record: Record) -> None:
        """Read the names of the columns. Raises ImportRefused where they are not the fields of a registration."""
        self.line = record.line
        try:
            self.columns = split(check_text(record))
        except LineRefused as refused:
            raise ImportRefused(f"Line {self.line}: {refused.detail}") from None
        unknown = set(self.columns) - {*FIELDS, *NOTES}
        if unknown or not set(self.columns) >= REQUIRED or len(set(self.columns)) < len(self.columns):
            raise ImportRefused(
                f"Line {self.line}: the columns are {printable(', '.join(self.columns)[:200])}. Name each of these "
                f"once, between commas: {', '.join(FIELDS)}. A line of NDJSON begins with {{."
            )
        if "refusal" in self.columns:
            self.unescape = _without_escape

    def parse(self, text: str) -> dict[str, Any]:
        """Return the fields of a record, without empty optional ones. Raises LineRefused."""
        cells = split(text)
        if len(cells) != len(self.columns):
            found = "is 1 column" if len(cells) == 1 else f"are {len(cells)} columns"
            raise LineRefused(f"There {found}, and line {self.line} names {len(self.columns)}.")
        named = zip(self.columns, map(self.unescape, cells), strict=True)
        return {name: cell for name, cell in named if name not in NOTES and (cell or name in REQUIRED)}

    def begin_refusals(self, file: TextIO) -> None:
        """Write the names of the columns."""
        csv.writer(file).writerow((*NOTES, *(name for name in self.columns if name not in NOTES)))

    def write_refused(self, file: TextIO, notes: Sequence[Any], text: str, is_whole: bool) -> None:
        """Write a record to fix: the notes, then its cells; what is not CSV is one cell, which is refused again."""
        try:
            cells = split(text) if is_whole else [text]
        except LineRefused:
            cells = [text]
        if len(cells) == len(self.columns):
            cells = [self.unescape(cell) for name, cell in zip(self.columns, cells, strict=True) if name not in NOTES]
        csv.writer(file).writerow(map(_with_escape, map(str, (*notes, *cells))))


class Ndjson:
    """Lines of one JSON object each. They end with a line feed: a carriage return alone is white space in JSON."""

    suffix = ".ndjson"

    def ends(self, piece: str) -> bool:
        """Return whether a line ends with this piece of it."""
        return piece[-1] == "\n"

    def parse(self, text: str) -> dict[str, Any]:
        """Return the fields of a line. Raises LineRefused."""
        try:
            found = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise LineRefused(f"This is not JSON: {str(error).replace('line 1 column', 'column')}.") from None
        if not isinstance(found, dict):
            raise LineRefused("A JSON object is expected.")
        # With as many colons as fields, none is there twice. With more, one may be, or a text has colons.
        if text.count(":") != len(found):
            try:
                DECODER.decode(text)
            except InvalidFields as error:
                raise LineRefused(f"{error.errors[0].detail}.") from None
        return {name: value for name, value in found.items() if name not in NOTES}

    def begin_refusals(self, file: TextIO) -> None:
        """Write nothing: NDJSON has no header."""

    def write_refused(self, file: TextIO, notes: Sequence[Any], text: str, is_whole: bool) -> None:
        """Write a line to fix: the notes, then its fields; what is not JSON is a text, which is refused again."""
        fields: dict[str, Any] = {"text": text}
        if is_whole:
            with suppress(LineRefused):
                fields = self.parse(text)
        named = dict(zip(NOTES, notes, strict=True))
        try:
            line = json.dumps(named | fields, allow_nan=False)
        except ValueError:  # A number such as 1e400, which Python takes for infinite.
            line = json.dumps(named | {"text": text})
        file.write(line + "\n")


def check_text(record: Record) -> str:
    """Return the text of a record. Raises LineRefused where it is too long, or not UTF-8."""
    text = record.text
    if len(text) >= LIMIT:
        lines = f" (lines {record.line} to {record.last})" if record.last > record.line else ""
        why = "Close the quote that is open in it." if lines else "No user needs as many."
        raise LineRefused(f"The record is longer than {LIMIT - 1:,} characters{lines}. {why}")
    try:
        _encode(text).decode()
    except UnicodeDecodeError as error:
        where = f"Byte {error.start + 1} of the record, 0x{error.object[error.start]:02x},"
        raise LineRefused(f"{where} is not UTF-8. Save the file as UTF-8.") from None
    return text


def _encode(text: str) -> bytes:
    # What was not UTF-8 was read as surrogates.
    return text.encode(errors="surrogateescape")


def split(text: str) -> list[str]:
    """Return the cells of one record. Raises LineRefused."""
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise LineRefused(f"This is not CSV: {error}. Put quotes in pairs.") from None


def _with_escape(cell: str) -> str:
    # No spreadsheet runs a formula with an apostrophe before it.
    return f"'{cell}" if FORMULA.match(cell) else cell


def _without_escape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def read_pieces(text: TextIO) -> Iterator[tuple[int, str]]:
    """Yield each line with its number, in pieces of LIMIT characters at most. Lines end with CR, LF or both."""
    number, before = 1, ""
    while piece := text.readline(LIMIT):
        yield number, piece
        # A CR and its LF may be in two pieces.
        number += piece[-1] in "\r\n" and (before, piece) != ("\r", "\n")
        before = piece[-1]


def read_records(pieces: Iterator[tuple[int, str]], form: Csv | Ndjson) -> Iterator[Record]:
    """Yield each record that is not blank. What a record has beyond 2 * LIMIT characters is skipped."""
    for line, piece in pieces:
        text, last = piece, line
        while not form.ends(piece) and (following := next(pieces, None)):
            last, piece = following  # noqa: PLW2901
            if len(text) < LIMIT:
                text += piece
        if len(text) >= LIMIT or not text.isspace():
            yield Record(line, last, text)


@dataclass(slots=True)
class Chunk:
    """Some records of a file: their registrations and refusals, by line number."""

    records: list[Record]
    position: int
    registrations: dict[int, Registration] = field(default_factory=dict)
    refused: dict[int, LineRefused] = field(default_factory=dict)


class Source:
    """A file or pipe of users, read a chunk at a time."""

    def __init__(self, source: FileIO | BytesIO) -> None:
        """Raises ImportRefused where it is empty or its first line is not that of a file of users."""
        self.source = source
        # What is not UTF-8 is read as surrogates, and refused with its record. Freed, it would close the file.
        self.text = TextIOWrapper(BufferedReader(source, 2**20), "utf-8-sig", "surrogateescape", newline="")
        pieces = read_pieces(self.text)
        first = next((each for each in pieces if not each[1].isspace()), None)
        if first is None:
            raise ImportRefused("There are no lines.")
        self.format: Csv | Ndjson = Ndjson() if first[1].lstrip().startswith("{") else Csv()
        self.records = read_records(chain([first], pieces), self.format)
        if isinstance(self.format, Csv):
            self.format.read_header(next(self.records))

    def chunks(self) -> Iterator[Chunk]:
        """Yield all records, checked, CHUNK at a time."""
        while records := list(islice(self.records, CHUNK)):
            chunk = Chunk(records, self.source.tell() if self.source.seekable() else 0)
            for record in records:
                try:
                    fields = self.format.parse(check_text(record))
                    chunk.registrations[record.line] = Registration.model_validate(fields)
                except LineRefused as refused:
                    chunk.refused[record.line] = refused
                except ValidationError as error:
                    found = field_errors(error)
                    details, names = (each.detail for each in found), (each.field for each in found)
                    chunk.refused[record.line] = LineRefused("; ".join(details), "; ".join(names))
            yield chunk


async def read_ahead(chunks: Iterator[Chunk]) -> AsyncIterator[Chunk]:
    """Check the next chunk while this one is written."""

    def start() -> Future[Chunk | None]:
        chunk: Future[Chunk | None] = Future()
        chunk.set_running_or_notify_cancel()

        def run() -> None:
            try:
                chunk.set_result(next(chunks, None))
            except Exception as error:
                chunk.set_exception(error)

        # A daemon, since nothing can end its wait for a pipe into which nothing is written.
        Thread(target=run, daemon=True).start()
        return chunk

    following = start()
    while chunk := await asyncio.wrap_future(following):
        following = start()
        yield chunk


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Summary:
    """The numbers of records, by outcome. A record is a line, unless a quoted cell holds line ends."""

    lines: int = 0
    imported: int = 0
    imported_before: int = 0
    refused: int = 0
    tokens: int = 0
    rolled_back: bool = False
    refusals: str | None = None


Progress = Callable[[int, Summary], None]
"""Called after each chunk with the number of bytes read, and the outcomes until then."""


class Refusals:
    """The file of refused records, created for the first of them."""

    def __init__(self, path: Path, form: Csv | Ndjson) -> None:
        """An older file of that name, perhaps half fixed, is kept: see keep_older."""
        self.path = path
        self.format = form
        self.files = ExitStack()
        self.file: TextIO | None = None
        keep_older(path)

    def write(self, record: Record, refused: LineRefused) -> None:
        """Add a record with its line number and the reason; of one that is too long, the beginning."""
        if self.file is None:
            self.file = self.files.enter_context(open_private(self.path, "x"))
            self.format.begin_refusals(self.file)
        text = _encode(record.text).decode(errors="replace").rstrip("\r\n")
        is_whole = len(record.text) < LIMIT
        notes = (record.line, refused.field, refused.detail)
        self.format.write_refused(self.file, notes, text if is_whole else f"{text[:100]}…", is_whole)


class Tokens:
    """The file of tokens. Each import appends to it: of a user who is in it twice, the later token is valid."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.count = 0

    def keep(self, tokens: Sequence[tuple[str, str]]) -> None:
        """Write the tokens to disk, before their hashes are committed. Raises TokensNotKept."""
        try:
            if self.file.tell() == 0:
                csv.writer(self.file).writerow(("username", "access_token"))
            csv.writer(self.file).writerows((_with_escape(username), token) for username, token in tokens)
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise TokensNotKept from error
        self.count += len(tokens)


# --- import -----------------------------------------------------------------------------------------------------------


@dataclass
class Import:
    """One run over a source, with the files that it writes."""

    source: Source
    refusals: Refusals
    keep_tokens: crud.KeepTokens | None
    progress: Progress
    summary: Summary = field(default_factory=Summary)

    async def run(self, settings: Settings, on_error: OnError) -> None:
        """Import everything that is not refused, chunk by chunk, or with "rollback" all or nothing.

        Raises SchemaBehind, SchemaDiffers and what Database.write raises. What was committed until then stays.
        """
        database = Database(settings)
        if database.is_sqlite:
            event.listen(database.engine.sync_engine, "connect", _prepare_for_many_rows)
        try:
            state = await database.read(get_state, Schema())
            if state.status == "behind":
                raise SchemaBehind
            if state.status == "differs":
                raise SchemaDiffers
            if on_error == "rollback":
                await database.write(self.write_all, settings.default_currency)
            else:
                await self.write_each(database, settings.default_currency)
        finally:
            await database.close()

    async def write_each(self, database: Database, currency: str) -> None:
        """Write each chunk in its own transaction."""
        async for chunk in read_ahead(self.source.chunks()):
            registrations = list(chunk.registrations.values())
            self.note(chunk, await database.write(crud.import_users, registrations, currency, self.keep_tokens))

    async def write_all(self, session: AsyncSession, currency: str) -> None:
        """Write all chunks in one transaction, and roll it back if a line was refused."""
        async with session.begin() as transaction:
            # The writer's turn on SQLite: until here, another try is possible.
            await session.connection()
            try:
                async for chunk in read_ahead(self.source.chunks()):
                    registrations = list(chunk.registrations.values())
                    self.note(chunk, await crud.import_users(session, registrations, currency, self.keep_tokens))
            except Conflict as error:
                # A pipe cannot be read again.
                raise DatabaseUnavailable from error
            if self.summary.refused:
                await transaction.rollback()
                self.summary.rolled_back = True
                self.summary.imported = 0

    def note(self, chunk: Chunk, outcomes: Sequence[bool | Exception]) -> None:
        """Count the outcomes of a chunk, and write its refused records."""
        for line, outcome in zip(chunk.registrations, outcomes, strict=True):
            if isinstance(outcome, bool):
                self.summary.imported += outcome
                self.summary.imported_before += not outcome
            elif isinstance(outcome, Refusal):
                chunk.refused[line] = LineRefused(outcome.detail, outcome.field or "username")
            else:
                what = describe(outcome).splitlines()[0]
                chunk.refused[line] = LineRefused(f"Unexpected error of the database: {what}")
        for record in chunk.records if chunk.refused else ():
            if record.line in chunk.refused:
                self.refusals.write(record, chunk.refused[record.line])
        self.summary.lines += len(chunk.records)
        self.summary.refused += len(chunk.refused)
        self.progress(chunk.position, self.summary)


def describe_interruption(stop: Interruption) -> str:
    """Return why an import was stopped, as a sentence for the operator."""
    if isinstance(stop, SchemaBehind | SchemaDiffers):
        return stop.detail
    if isinstance(stop, TokensNotKept):
        return f"The file of tokens cannot be written{cause_of(stop)}."
    if isinstance(stop, OutcomeUnknown):
        return "The connection broke during a COMMIT."
    return f"The database cannot be reached, or is too busy{cause_of(stop)}."


def _prepare_for_many_rows(dbapi_connection: Any, _: Any) -> None:
    # Keep more of the indexes in memory, and write pages that change often less often.
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA cache_size = -65536")
    cursor.execute("PRAGMA wal_autocheckpoint = 50000")
    cursor.close()


def import_users(
    source: Source, settings: Settings, *, on_error: OnError, refusals: Path, tokens: Path | None, progress: Progress
) -> Summary:
    """Import users; refused records and new tokens are written into these files.

    Raises FileRefused, an Interruption where the database stops it, and OSError. Unless everything was to be rolled
    back, the chunks until then stay, and the same import can be run again.
    """
    with ExitStack() as files:
        issued = Tokens(files.enter_context(open_private(tokens, "a"))) if tokens else None
        refused = Refusals(refusals, source.format)
        files.enter_context(refused.files)
        run = Import(source, refused, issued.keep if issued else None, progress)
        # The garbage collector need not search again what is loaded by now: that took a third of the time.
        gc.freeze()
        asyncio.run(run.run(settings, on_error))
        run.summary.tokens = issued.count if issued and not run.summary.rolled_back else 0
        if run.summary.refused:
            run.summary.refusals = str(refusals)
    return run.summary
