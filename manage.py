#!/usr/bin/env python3
"""The operator's commands: `python manage.py --help`."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

import importing
import logs
from alembic_savepoint.backup.saves import list_saves
from alembic_savepoint.commands.main import mount, run
from alembic_savepoint.commands.shared import (
    AsDocument,
    Commands,
    fail,
    first_line,
    make_table,
    messages,
    os_error_text,
    output,
    program,
    progress_bar,
)
from alembic_savepoint.terminal import plural, printable, url_text
from audit import Totals, open_books
from db.database import Database
from db.sqlite_file import is_part_of
from overview import look
from private_files import FileRefused, older_name
from refusals import Interruption
from schema import chosen_project, chosen_settings, spelling, url_setting
from settings import Settings, SettingsError
from webhooks import transactions
from webhooks.running import telling

PRUNED_TOGETHER = 1000
"""Events that are deleted in one transaction, with a delivery of each to each webhook."""


class OwnCommands(Commands):
    """The commands of migrations, and Savepoint's own, with the errors of its settings and files."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Exit code 2: an error."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            for line in str(error).splitlines():
                messages.print_line(line, "bold red")
            raise typer.Exit(2) from None
        except FileRefused as error:
            fail(str(error))
        except Interruption as stop:
            fail(importing.describe_interruption(stop))


app = program(
    OwnCommands,
    "Operate a Savepoint database: the one that DATABASE_URL names or, with ALEMBIC_CONFIG set, the setting that this "
    "ini file names, as for `alembic`.",
)


@app.callback(invoke_without_command=True, no_args_is_help=False)
def choose(context: typer.Context) -> None:
    """Tell the commands of migrations which project is meant; without a command, show how the database is."""
    context.obj = cache(chosen_project)
    if context.invoked_subcommand is None:
        _show_overview()


def _show_overview() -> None:
    settings = _require_database()
    try:
        found = look(settings.database_url)
    except SQLAlchemyError as error:
        fail(f"{url_text(settings.database_url)} cannot be read: {first_line(error)}")
    saved = next(iter(list_saves(settings.saves_dir)), None)
    schema, users = found.schema, sum(found.users.values())
    by_status = ", ".join(f"{count:,} {status}" for status, count in found.users.items())
    lines = {
        "database": url_text(settings.database_url),
        "revision": f"{schema.revision or 'none'} ({schema.status}; this code's head is {schema.head})",
        "users": f"{users:,}{by_status and f': {by_status}'}",
        "last save": f"{saved.created_at:%F %T} UTC, {saved.name}" if saved else f"none in {settings.saves_dir}",
    }
    if schema.status in ("behind", "differs"):
        del lines["users"]
    for name, value in lines.items():
        output.print_line(f"{name:<11}{printable(value)}")
    if found.totals:
        table = make_table("currency", numbers=("accounts", "balance", "held"), title="Users' money, in minor units")
        for each in found.totals:
            table.add_row(printable(each.currency), f"{each.accounts:,}", f"{each.balance:,}", f"{each.held:,}")
        output.print(table)
    output.print_line(f"Next: {_next_step(schema.status, is_saved=saved is not None)}")


def _next_step(status: str, *, is_saved: bool) -> str:
    spelled = spelling().of
    if status == "differs":
        return spelled("alembic-savepoint doctor") + ", which says what differs from the revision."
    if status == "behind":
        return spelled("alembic-savepoint rehearse, then alembic upgrade head") + "."
    if status == "ahead":
        return (
            "start newer code; this one serves meanwhile. " + spelled("alembic-savepoint doctor") + " looks for faults."
        )
    if not is_saved:
        return spelled("alembic-savepoint save") + ", and copy it to another machine."
    return "nothing. All commands: python manage.py --help"


@app.command()
def audit() -> None:
    """Prove that no money was made or lost.

    Reads all accounts, entries and transfers as they are at one instant, while the service runs, and checks that

    * the balances of each currency add up to 0, those of the system included
    * each transfer has two entries, as much minus as plus, and a reversal is the mirror of what it reverses
    * each balance is what the account's entries add up to, and what the newest one left
    * entries are numbered and dated in order, without a gap, and no user's balance was ever below 0

    Exit code 0: proven. 1: not proven; each finding is listed. 2: the books cannot be read.
    """
    findings = 0
    with open_books(_require_database().database_url) as books, progress_bar() as progress:
        task = progress.add_task("Auditing", total=books.count_rows())
        for finding in books.run(lambda rows: progress.advance(task, rows)):
            findings += 1
            text = Text.assemble((printable(finding.subject), "red"), f": {printable(finding.fault)}")
            output.print(text, soft_wrap=True)
    output.print(_totals_table(books.totals))
    if findings:
        fail(f"The books are wrong: {plural(findings, 'finding')}.", 1)
    messages.print_line("The books are right.", "bold green")


mount(app, spelling())


@app.command("import")
def import_users(
    file: Annotated[str, typer.Argument(help="CSV or NDJSON; - is standard input.")],
    on_error: Annotated[
        importing.OnError, typer.Option(help="Where a line is refused, import nothing, or all the others.")
    ] = "rollback",
    refusals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where refused lines go: users.refused.csv for users.csv.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Issue a token to each user who never had one, into this file.")
    ] = None,
    as_document: AsDocument = False,
) -> None:
    """Register users from a file of any size, each as POST /register does.

    CSV (RFC 4180) begins with a line that names the columns: username, email and, optionally, phone_number. NDJSON is a
    JSON object with these fields in each line. Both are UTF-8. Each user gets a profile and an account in
    DEFAULT_CURRENCY, and a token only with `--tokens`: users without one cannot call the service themselves.

    An import that was interrupted, or killed, can be run again, also from standard input: the users of this file who
    were imported before are skipped. With `--tokens`, those of them without a token are issued one.

    * `--on-error rollback` is one transaction: all or nothing. On SQLite, others cannot write meanwhile.
    * `--on-error continue` commits 20,000 lines at a time, and keeps what it committed when it is interrupted.

    Refused lines go to a file of their own, with line number, field and reason. Fix and import that file. An older one
    is kept as FILE~. In the file of tokens, a user's last line counts. Only you can read these files. Against
    formulas in spreadsheets, values that begin with = + - @ are written with an apostrophe, which an import removes.

    Example: `python manage.py import users.csv --on-error continue --tokens tokens.csv`

    Exit code 0: all users are there. 1: lines were refused. 2: it failed, or was interrupted.
    """
    _print_summary(_import_users(file, on_error, refusals, tokens), bool(tokens), as_document)


def _import_users(
    file: str, on_error: importing.OnError, refusals: Path | None, tokens: Path | None
) -> importing.Summary:
    settings = _require_database()
    again = "Run it again: nobody is imported twice."
    try:
        # Without a buffer, whose lock would make closing a pipe wait for a thread that reads from it.
        with open(sys.stdin.fileno() if file == "-" else file, "rb", 0, closefd=file != "-") as raw:
            source = importing.Source(raw)
            default = Path("refused" if file == "-" else file).with_suffix(f".refused{source.format.suffix}")
            refusals = refusals or default
            if len({refusals.absolute(), Path(file).absolute(), tokens and tokens.absolute()}) < 3:
                raise FileRefused("Name different files for users, refusals and tokens.")
            for written in filter(None, (refusals, older_name(refusals), tokens)):
                _keep_off_database(written, settings.database_url)
            with _import_bar(raw) as progress:
                return importing.import_users(
                    source, settings, on_error=on_error, refusals=refusals, tokens=tokens, progress=progress
                )
    except KeyboardInterrupt:
        fail(f"Interrupted. {again}")
    except Interruption as stop:
        fail(f"{importing.describe_interruption(stop)} {again}")
    except OSError as error:
        fail(f"{os_error_text(error)} Name another file, or make room on the disk. {again}")
    except (importing.ImportRefused, FileRefused) as refused:
        fail(f"Nothing was imported. {refused}")


@app.command()
def deliver() -> None:
    """Send webhooks from a process of its own, until it is stopped; any number of them may run.

    With DELIVERER=false, the service sends none itself. It also gives events their numbers, as the service does. Killed
    at any instant, it loses nothing: what it had begun is sent again after a minute.

    Example: `python manage.py deliver`
    """
    settings = _require_events()
    logs.configure(settings.log_format)
    messages.print_line("Delivering events. Stop it with Ctrl-C.")
    asyncio.run(_deliver(settings))


async def _deliver(settings: Settings) -> None:
    database = Database(settings)
    stopped = asyncio.Event()
    # Windows has no handlers; Ctrl-C cancels this there.
    with suppress(NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        async with telling(database, settings, delivers=True):
            await stopped.wait()
    finally:
        await database.close()


@app.command()
def prune() -> None:
    """Delete events that are older than EVENTS_DAYS, with their deliveries, while the service runs.

    A reader that has not read them is told so by GET /events. Run it each night, as saves are.
    """
    settings = _require_database()
    before = datetime.now(UTC) - timedelta(days=settings.events_days)
    deleted = asyncio.run(_prune(settings, before))
    output.print_line(f"{plural(deleted, 'event')} from before {before:%F %T} UTC deleted.")


async def _prune(settings: Settings, before: datetime) -> int:
    database, deleted = Database(settings), 0
    try:
        while part := await database.write(transactions.prune_events, before, PRUNED_TOGETHER):
            deleted += part
    finally:
        await database.close()
    return deleted


def _require_events() -> Settings:
    settings = _require_database()
    if not settings.events:
        fail("EVENTS is not set, so there are no events. Set EVENTS=true, for the service as well.")
    return settings


def _print_summary(summary: importing.Summary, with_tokens: bool, as_document: bool) -> None:
    if as_document:
        output.print_json(data=asdict(summary))
    else:
        counts = f"{plural(summary.lines, 'line')}: {plural(summary.imported, 'user')} imported"
        issued = f" {plural(summary.tokens, 'token')} issued." if with_tokens else ""
        output.print_line(f"{counts}, {summary.imported_before:,} before, {summary.refused:,} refused.{issued}")
    lines = f"{plural(summary.refused, 'line')} {'was' if summary.refused == 1 else 'were'} refused"
    if summary.rolled_back:
        fail(f"Nothing was imported, since {lines}; {summary.refusals} says why. Fix that, and import all again.", 1)
    if summary.refused:
        fail(f"{lines}. Fix what is in {summary.refusals}, and import that file.", 1)


def _keep_off_database(path: Path, url: str) -> None:
    """Raise FileRefused for a file of the SQLite database, which nothing else may be written into."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and is_part_of(path, str(parsed.database)):
        raise FileRefused(f"{path} is a file of the database, and nothing was written to it. Name another file.")


@contextmanager
def _import_bar(source: FileIO) -> Iterator[importing.Progress]:
    with progress_bar() as bar:
        # The size of a pipe is not known.
        task = bar.add_task("Importing", total=os.fstat(source.fileno()).st_size or None)
        started = monotonic()

        def show(position: int, summary: importing.Summary) -> None:
            rate = summary.lines / (monotonic() - started)
            text = f"Importing, {summary.lines:,} lines, {rate:,.0f} a second"
            bar.update(task, completed=position, description=text)

        yield show


def _require_database() -> Settings:
    """Return the settings, of a database that exists: SQLite would create an empty one."""
    settings = chosen_settings()
    parsed = make_url(settings.database_url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        fail(f"There is no file {parsed.database}. {url_setting().upper()} says which database is meant.")
    return settings


def _totals_table(totals: dict[str, Totals]) -> Table:
    names = ("accounts", "users hold", "system holds", "transfers", "transferred")
    table = make_table("currency", numbers=names, title="Totals, in minor units")
    for currency, each in sorted(totals.items()):
        numbers = (each.accounts, each.held_by_users, each.held_by_system, each.transfers, each.transferred)
        table.add_row(printable(currency), *(f"{number:,}" for number in numbers))
    return table


def main() -> None:
    """Run a command."""
    run(app)


if __name__ == "__main__":
    main()
