"""The operator's commands: `python manage.py --help`."""

import sys
from pathlib import Path
from typing import NoReturn

import sqlalchemy.exc
import typer
from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import make_url

from audit import Totals, open_books
from settings import Settings, first_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="What an operator does with a Savepoint database. DATABASE_URL says which one.",
)
# In a file or pipe, a table is as wide as its numbers.
output = Console(width=None if sys.stdout.isatty() else 160)
messages = Console(stderr=True)


@app.callback()
def manage() -> None:
    """Have subcommands, even where there is only one."""


@app.command()
def audit() -> None:
    """Prove that no money was made or lost.

    Reads all accounts, entries and transfers as they are at one instant, while the service goes on, and checks that

    * the balances of each currency add up to 0, those of the system included
    * each transfer has two entries, as much minus as plus, and a reversal is the mirror of what it reverses
    * each balance is what the account's entries add up to, and what the newest one left
    * entries are numbered and dated in order, without a gap, and no user's balance was ever below 0

    Exit code 0: proven. 1: not so; each account, transfer or currency at fault is named. 2: the books cannot be read.
    """
    faults = 0
    try:
        with open_books(existing_database()) as books, progress_bar() as progress:
            task = progress.add_task("Auditing", total=books.count_rows())
            for finding in books.run(lambda rows: progress.advance(task, rows)):
                faults += 1
                output.print(f"[red]{finding.subject}[/]: {finding.fault}", highlight=False, soft_wrap=True)
    except (LookupError, sqlalchemy.exc.SQLAlchemyError) as error:
        fail(str(getattr(error, "orig", error)).splitlines()[0])
    output.print(totals_table(books.totals))
    if faults:
        messages.print(f"[bold red]The books are wrong: {faults:,} faults.[/]")
        raise typer.Exit(1)
    messages.print("[bold green]The books are right.[/]")


def existing_database() -> str:
    """The URL of the database, which must be there: SQLite would make an empty one."""
    try:
        url = Settings().database_url
    except ValidationError as error:
        fail(first_error(error))
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        fail(f"There is no file {parsed.database}. DATABASE_URL says which database is meant.")
    return url


def fail(message: str) -> NoReturn:
    """End with exit code 2, in one line."""
    messages.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def progress_bar() -> Progress:
    """A bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
    )


def totals_table(totals: dict[str, Totals]) -> Table:
    """What the audit added up, by currency."""
    table = Table(title="Totals, in minor units", title_justify="left", box=SIMPLE)
    table.add_column("currency")
    for name in ("accounts", "users hold", "system holds", "transfers", "transferred"):
        table.add_column(name, justify="right", overflow="fold")
    for currency, each in sorted(totals.items()):
        numbers = (each.accounts, each.held_by_users, each.held_by_system, each.transfers, each.transferred)
        table.add_row(currency, *(f"{number:,}" for number in numbers))
    return table


if __name__ == "__main__":
    app()
