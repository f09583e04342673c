"""Users from a CSV or NDJSON file of any size: checked like POST /register, imported once however often it is run."""

import asyncio
import csv
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO, FileIO, TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any, Literal, NamedTuple, TextIO

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import event
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from api.bodies import DECODER
from api.problems import InvalidFields, cause_of, describe, field_errors
from db.database import Database
from models import Registration
from private_files import FileRefused, keep_older, open_private
from refusals import Conflict, DatabaseUnavailable, Interruption, OutcomeUnknown, Refusal, SchemaBehind, SchemaDiffers
from schema import Schema, get_revision, has_columns
from settings import Settings
from terminal import printable

CHUNK = 20_000
"""How many records are in memory, and in one transaction, at a time."""

LIMIT = 4096
"""How many characters of a record are kept, one more than it may have: no user needs as many, and neither a file
without line ends nor a quote that is never closed may fill the memory."""

FIELDS = tuple(Registration.model_fields)
REQUIRED = {name for name in FIELDS if Registration.model_fields[name].is_required()}

NOTES = ("line", "field", "refusal")
"""What a file of refusals says beside each record; an import skips it, so that the fixed file can be imported."""

FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""How a cell begins that a spreadsheet would take for a formula, or that was escaped for that reason."""

OnError = Literal["rollback", "continue"]


Raw = FileIO | BytesIO
"""Without a buffer, whose lock would make closing a pipe wait for who still reads from it."""


class ImportRefused(Exception):
    """Nothing of the file can be imported; the text says why."""


class TokensNotKept(Interruption):
    """The file of tokens could not be written, so none were issued; the cause is an OSError."""


class LineRefused(Exception):
    """This record cannot be imported: which field is wrong, and why."""

    def __init__(self, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


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
        self.line = 0
        self.is_quoted = self.is_open = False
        self.is_at_start = True

    def ends(self, piece: str) -> bool:
        """Whether a record ends with this piece of it, which is a line or the part of one: no quote is open then."""
        if self.is_open or '"' in piece or piece[-1] not in "\r\n":
            for mark in re.findall(r'[",]|[^",]+', piece):
                if mark == '"' and (self.is_at_start or self.is_quoted):
                    # A doubled quote closes and opens again.
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
        """Learn the columns. Raises ImportRefused where they are not the fields of a registration."""
        self.line = record.line
        try:
            self.columns = split(checked(record))
        except LineRefused as refused:
            raise ImportRefused(f"Line {self.line}: {refused.detail}") from None
        unknown = set(self.columns) - {*FIELDS, *NOTES}
        if unknown or not set(self.columns) >= REQUIRED or len(set(self.columns)) < len(self.columns):
            raise ImportRefused(
                f"Line {self.line}: the columns are {printable(', '.join(self.columns)[:200])}. Name each of these "
                f"once, between commas: {', '.join(FIELDS)}. A line of NDJSON begins with {{."
            )

    def parse(self, text: str) -> dict[str, Any]:
        """The fields of a record; an empty cell of an optional one is none."""
        cells = split(text)
        if len(cells) != len(self.columns):
            found = "is 1 column" if len(cells) == 1 else f"are {len(cells)} columns"
            raise LineRefused(f"There {found}, and line {self.line} names {len(self.columns)}.")
        if "refusal" in self.columns:
            cells = list(map(without_escape, cells))
        named = zip(self.columns, cells, strict=True)
        return {name: cell for name, cell in named if name not in NOTES and (cell or name in REQUIRED)}

    def begin_refusals(self, file: TextIO) -> None:
        """The columns of a file of refusals."""
        csv.writer(file).writerow((*NOTES, *(name for name in self.columns if name not in NOTES)))

    def write_refused(self, file: TextIO, notes: Sequence[Any], text: str, is_whole: bool) -> None:
        """A record to fix: its own cells, after why it was refused; as one cell, which no user is, what is not CSV."""
        try:
            cells = split(text) if is_whole else [text]
        except LineRefused:
            cells = [text]
        if len(cells) == len(self.columns):
            named = zip(self.columns, cells, strict=True)
            is_escaped = "refusal" in self.columns
            cells = [without_escape(cell) if is_escaped else cell for name, cell in named if name not in NOTES]
        csv.writer(file).writerow(map(with_escape, map(str, (*notes, *cells))))


class Ndjson:
    """Lines of one JSON object each, which end with a line feed: a carriage return alone is white space in JSON."""

    suffix = ".ndjson"

    def ends(self, piece: str) -> bool:
        """Whether a line ends with this piece of it."""
        return piece[-1] == "\n"

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

    def write_refused(self, file: TextIO, notes: Sequence[Any], text: str, is_whole: bool) -> None:
        """A line to fix: its own fields, after why it was refused; as text, which no user is, what is not JSON."""
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


def checked(record: Record) -> str:
    """The text of a record that is short enough, and UTF-8."""
    text = record.text
    if len(text) >= LIMIT:
        lines = f" (lines {record.line} to {record.last})" if record.last > record.line else ""
        why = "Close the quote that is open in it." if lines else "No user needs as many."
        raise LineRefused(f"The record is longer than {LIMIT - 1:,} characters{lines}. {why}")
    if not text.isascii():
        try:
            encode(text).decode()
        except UnicodeDecodeError as error:
            byte = encode(text)[error.start]
            raise LineRefused(
                f"Byte {error.start + 1} of the record, 0x{byte:02x}, is not UTF-8. Save the file as UTF-8."
            ) from None
    return text


def encode(text: str) -> bytes:
    """The bytes of a text as they were read."""
    return text.encode(errors="surrogateescape")


def split(text: str) -> list[str]:
    """The cells of one record."""
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise LineRefused(f"This is not CSV: {error}. Put quotes in pairs.") from None


def with_escape(cell: str) -> str:
    """The cell so that no spreadsheet runs it: a formula has an apostrophe before it."""
    return f"'{cell}" if FORMULA.match(cell) else cell


def without_escape(cell: str) -> str:
    """The cell before with_escape."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def read_pieces(text: TextIO) -> Iterator[tuple[int, str]]:
    """Each line with its number, in pieces of LIMIT characters at most; lines end with CR, LF or both."""
    number, before = 1, ""
    while piece := text.readline(LIMIT):
        yield number, piece
        # A CR and its LF may be in two pieces.
        number += piece[-1] in "\r\n" and (before, piece) != ("\r", "\n")
        before = piece[-1]


def read_records(pieces: Iterator[tuple[int, str]], form: Csv | Ndjson) -> Iterator[Record]:
    """Each record that is not blank. Of a longer one than LIMIT the rest is skipped, to its end, wherever that is."""
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
    """Some records of a file: their registrations, by line number, and those refused already."""

    records: list[Record]
    position: int
    registrations: dict[int, Registration] = field(default_factory=dict)
    refused: dict[int, LineRefused] = field(default_factory=dict)


class Source:
    """A file or pipe of users, read a chunk at a time."""

    def __init__(self, source: Raw) -> None:
        """Raises ImportRefused where it is empty or its first line is not that of a file of users."""
        self.source = source
        # What is not UTF-8 is read as surrogates, and refused with its record.
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
        """Every record, checked."""
        while records := list(islice(self.records, CHUNK)):
            chunk = Chunk(records, self.source.tell() if self.source.seekable() else 0)
            for record in records:
                try:
                    chunk.registrations[record.line] = self.check(record)
                except LineRefused as refused:
                    chunk.refused[record.line] = refused
            yield chunk

    def check(self, record: Record) -> Registration:
        """The registration in a record. Raises LineRefused."""
        fields = self.format.parse(checked(record))
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
    """What became of the records: a line each, unless a quoted cell holds line ends."""

    lines: int = 0
    imported: int = 0
    imported_before: int = 0
    refused: int = 0
    tokens: int = 0
    rolled_back: bool = False
    refusals: str | None = None


Progress = Callable[[int, Summary], None]
"""Told after each chunk how many bytes are done, and what became of them."""


class Refusals:
    """The file of records that were refused, made at the first of them."""

    def __init__(self, path: Path, form: Csv | Ndjson) -> None:
        """What an earlier import left there, perhaps half fixed, is kept under a name with a ~ at its end."""
        self.path = path
        self.format = form
        self.files = ExitStack()
        self.file: TextIO | None = None
        keep_older(path)

    def write(self, record: Record, refused: LineRefused) -> None:
        """Add a record, with its line number and why it was refused; of one that is too long, its beginning."""
        if self.file is None:
            self.file = self.files.enter_context(open_private(self.path, "x"))
            self.format.begin_refusals(self.file)
        text = encode(record.text).decode(errors="replace").rstrip("\r\n")
        is_whole = len(record.text) < LIMIT
        notes = (record.line, refused.field, refused.detail)
        self.format.write_refused(self.file, notes, text if is_whole else f"{text[:100]}…", is_whole)


class Tokens:
    """The file of tokens, which grows with each import: a user that is listed twice has the later token."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.count = 0

    def keep(self, tokens: Sequence[tuple[str, str]]) -> None:
        """Have the tokens on disk before their hashes are. Raises TokensNotKept."""
        try:
            if self.file.tell() == 0:
                csv.writer(self.file).writerow(("username", "access_token"))
            csv.writer(self.file).writerows((with_escape(username), token) for username, token in tokens)
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise TokensNotKept from error
        self.count += len(tokens)


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

        Raises SchemaBehind, SchemaDiffers and what Database.write does. What was committed until then stays.
        """
        database = Database(settings)
        if database.is_sqlite:
            event.listen(database.engine.sync_engine, "connect", prepare_for_many_rows)
        try:
            if Schema().compare(await database.read(get_revision)).status == "behind":
                raise SchemaBehind
            if not await database.read(has_columns):
                raise SchemaDiffers
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
        for record in chunk.records if chunk.refused else ():
            if record.line in chunk.refused:
                self.refusals.write(record, chunk.refused[record.line])
        self.summary.lines += len(chunk.records)
        self.summary.refused += len(chunk.refused)
        self.progress(chunk.position, self.summary)


def explain_stop(stop: Interruption) -> str:
    """Why an import was stopped."""
    if isinstance(stop, SchemaBehind | SchemaDiffers):
        return stop.detail
    if isinstance(stop, TokensNotKept):
        return f"The file of tokens cannot be written{cause_of(stop)}."
    if isinstance(stop, OutcomeUnknown):
        return "The connection broke during a COMMIT."
    return f"The database cannot be reached, or is too busy{cause_of(stop)}."


def explain(error: Exception) -> LineRefused:
    """Why a registration was refused by what is in the database."""
    if isinstance(error, Refusal):
        return LineRefused(error.detail, error.field or "username")
    return LineRefused(f"Unexpected error of the database: {describe(error).splitlines()[0]}")


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
        try:
            issued = Tokens(files.enter_context(open_private(tokens, "a"))) if tokens else None
            refused = Refusals(kept_in, users.format)
        except FileRefused as error:
            raise ImportRefused(str(error)) from None
        files.enter_context(refused.files)
        run = Import(users, refused, issued.keep if issued else None, progress)
        asyncio.run(run.run(settings, on_error))
        run.summary.tokens = issued.count if issued and not run.summary.rolled_back else 0
        if run.summary.refused:
            run.summary.refusals = str(kept_in)
    return run.summary
