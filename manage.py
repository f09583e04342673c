"""The operator's commands: `python manage.py --help`."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from io import FileIO
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import Annotated, NoReturn

import sqlalchemy.exc
import typer
from alembic.util import CommandError
from rich.box import SIMPLE
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url

import importing
from audit import Totals, open_books
from db.engines import create_migration_engine
from db.sqlite_file import is_part_of
from migrations import rehearsal_report, saves
from migrations.applied import Applied, read_applied
from migrations.comparison import Finding, check_schema
from migrations.diagnosis import EXIT_CODES, Diagnosis, Next
from migrations.doctor import diagnose
from migrations.graph import as_json, as_svg, as_text
from migrations.migrating import only_migrator
from migrations.rehearsal import rehearse
from migrations.repair import RepairRefused, accept, plan_repair, restamp
from migrations.revisions import read_history, versions_folder
from private_files import FileRefused, older_name
from refusals import Interruption
from schema import ALEMBIC_INI, as_typed, chosen_settings, url_setting
from settings import Settings, SettingsError
from terminal import Messages, Output, OutputLost, Terminal, plural, printable, url_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="What an operator does with a Savepoint database. DATABASE_URL says which one; with ALEMBIC_CONFIG set, the "
    "setting that this ini file names, as for `alembic`. Exit code 74: the output could not be written.",
)
# In a file or pipe, a table is as wide as its numbers.
output = Terminal(width=None if sys.stdout and sys.stdout.isatty() else 160)
messages = Terminal(stderr=True)


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
                text = Text.assemble((printable(finding.subject), "red"), f": {printable(finding.fault)}")
                output.print(text, soft_wrap=True)
    except (LookupError, sqlalchemy.exc.SQLAlchemyError) as error:
        fail(str(getattr(error, "orig", error)).splitlines()[0])
    output.print(totals_table(books.totals))
    if faults:
        messages.print_line(f"The books are wrong: {plural(faults, 'finding')}.", "bold red")
        raise typer.Exit(1)
    messages.print_line("The books are right.", "bold green")


@app.command()
def graph(
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this file as well.")] = None,
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Show which revisions are applied, pending, or unknown to these files.

    Newest first, with branches and merges, as `alembic history` lists them. It reads the files without executing them,
    so that broken ones are shown too, and the database without changing it; without a database it shows the files.

    Example: `python manage.py graph --svg revisions.svg`

    Exit code 0: shown. 2: there is no folder of revisions, or FILE cannot be written.
    """
    try:
        history, applied = read_history(versions_folder()), applied_if_reachable()
        if svg is not None:
            with suppress(SettingsError):
                keep_off_database(svg, chosen_settings().database_url)
            svg.write_text(as_svg(history, applied), encoding="utf-8")
    except OSError as error:
        fail(f"{os_error_text(error)} Name another file.")
    except (CommandError, FileRefused) as error:
        fail(str(error))
    if as_document:
        output.print_json(data=as_json(history, applied))
    else:
        text = Text(as_text(history, applied))
        text.highlight_regex(r"(?m)^[│ ]*(?:(?P<green>●)|(?P<blue>○)|(?P<red>[?]))")
        output.print(text, soft_wrap=True)


def applied_if_reachable() -> Applied | None:
    """What the database says was applied to it; None, and why, where it says nothing."""
    try:
        return read_applied(chosen_settings().database_url)
    except SettingsError as error:
        reason = str(error)
    except (LookupError, CommandError, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    messages.print_line(f"Only the files are shown, since the database cannot be read: {reason}", "yellow")
    return None


@app.command()
def check(
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Find what is not as it should be in the schema, its revisions, and models.py.

    Compares the database with what its revisions make on an empty one, and that with models.py. It sees what `alembic
    check` sees, and what that does not: CHECK constraints and the values in them, conditions of indexes, constraints
    without a name, files edited after they were applied, several heads. Changes nothing, and nobody waits for it.

    Example: `python manage.py check --json`

    Exit code 0: nothing found. 1: something was; each is named, with what to do. 2: the database cannot be read.
    """
    try:
        findings = check_schema(existing_database())
    except (LookupError, CommandError, sqlalchemy.exc.SQLAlchemyError) as error:
        fail(str(getattr(error, "orig", None) or error).splitlines()[0])
    if as_document:
        output.print_json(data=[asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if findings:
        messages.print_line(f"Not as it should be: {plural(len(findings), 'finding')}.", "bold red")
        raise typer.Exit(1)
    messages.print_line("The schema is as it should be.", "bold green")


def print_findings(findings: list[Finding]) -> None:
    """Each finding in a line, and what to do once for all of a kind."""
    for advice, same in groupby(findings, key=attrgetter("advice")):
        for finding in same:
            output.print_line(f"{finding.kind}: {finding.text}", "red")
        output.print_line(f"  {advice}")


# -1 is a target, and no option.
@app.command("rehearse", context_settings={"ignore_unknown_options": True})
def rehearse_migration(
    target: Annotated[str, typer.Argument(help="As for alembic: head, base, a revision, +1 or -1.")] = "head",
    copy: Annotated[bool, typer.Option("--copy", help="Try it on a copy of the database instead.")] = False,
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Run a migration for real, watch it, and roll it back.

    Shows each statement with its time, the rows it touches and the locks it takes on PostgreSQL, what a downgrade
    loses, and what is unsafe: by [squawk's rules](https://squawkhq.com/docs/rules) on PostgreSQL, and on SQLite by what
    the rebuild of a table loses. It is one transaction on the database itself, and others wait for it as they will for
    the migration; on a copy nobody does. What no transaction takes back is tried on a copy anyway. What a revision does
    outside of the database is done.

    Example: `python manage.py rehearse -1 --copy`

    Exit code 0: it works, without warnings. 1: with warnings, or it fails. 2: it could not be tried. The database is as
    it was, always.
    """
    url, settings = existing_database(), read_settings()
    if target.startswith("--"):
        raise typer.BadParameter(f"There is no option {target}.")
    try:
        # What a revision prints is for people.
        with steps() as progress, redirect_stdout(sys.stderr):
            rehearsal = rehearse(url, target, settings=settings, copy=copy, progress=progress)
    except KeyboardInterrupt:
        fail("Interrupted and rolled back: the database is as it was.")
    if as_document:
        output.print_json(data=rehearsal_report.as_json(rehearsal))
    else:
        output.print(rehearsal_report.as_text(rehearsal))
        if rehearsal.revisions and not rehearsal.failure:
            output.print_line(f"To do it for real: {rehearsal.command}")
    if rehearsal.warnings or rehearsal.failure:
        raise typer.Exit(1)


@app.command("doctor", epilog=EXIT_CODES)
def doctor_command(
    repair: Annotated[bool, typer.Option("--repair", help="Write the right revision into alembic_version.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before that.")] = False,
    accepted: Annotated[
        str | None, typer.Option("--accept", metavar="REVISION", help="Record its file as it is: the edit was meant.")
    ] = None,
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Find out what is wrong with the revisions or the schema, and what to run next.

    Reads the revision files without executing them, the database and its record, and git, all branches of it; broken
    files and a database that is not there are no hindrance. It never writes. Only to compare schemas, and where the
    files make a history, does it run them, on a scratch database that is gone afterwards.

    `--repair` may write: where alembic_version is empty, or names a revision of which nothing is known, or another one
    than the schema shows, and exactly one revision makes the schema that is there. It writes that one, after asking,
    and records what it replaced. `--accept REVISION` adds one row to the record: the checksum that the file of this
    revision has now, so that it is `edited-file` no more. Nothing else in the database is touched.

    Example: `python manage.py doctor --json`
    """
    settings = read_settings()
    url, root = settings.database_url, ALEMBIC_INI.parent
    try:
        folder = versions_folder()
        if accepted is not None:
            accept_edit(existing_database(), accepted, folder, settings.migration_timeout)
        found = diagnose(url, folder, root)
        if not as_document:
            messages.print_line(f"Database: {url_text(url)}", "dim")
            print_diagnoses(found)
        if repair and mend(url, found, folder, settings.migration_timeout, yes):
            found = diagnose(url, folder, root)
            if not as_document:
                print_diagnoses(found)
    except (CommandError, sqlalchemy.exc.SQLAlchemyError) as error:
        fail(str(getattr(error, "orig", None) or error).splitlines()[0])
    code = found[0].exit_code if found else 0
    if as_document:
        diagnoses = [{"kind": each.kind, "exit_code": each.exit_code, **asdict(each)} for each in found]
        for step in (step for each in diagnoses for step in each["next_commands"]):
            step["command"] = step["command"] and as_typed(step["command"])
        output.print_json(data={"exit_code": code, "diagnoses": diagnoses})
    raise typer.Exit(code)


def accept_edit(url: str, revision: str, folder: Path, patience: float) -> None:
    """Take the file of a revision, as it is, for what was applied; ends the command where it is not an edited one."""
    try:
        accept(url, revision, folder, patience)
    except RepairRefused as refusal:
        raise typer.BadParameter(printable(str(refusal))) from None
    messages.print_line(f"Accepted, and recorded: the file of {revision} as it is now.", "bold green")


def mend(url: str, found: list[Diagnosis], folder: Path, patience: float, yes: bool) -> bool:
    """Restamp the database, if that is what helps and somebody wants it; whether it was done."""
    if all(each.kind == "behind" for each in found):
        messages.print_line("There is nothing to repair.")
        return False
    try:
        plan = plan_repair(found, url)
        messages.print_line(f"To be written: {plan}.")
        if not yes and not is_asked():
            raise RepairRefused("There is nobody to ask. To write it without a question: --yes")
        if not yes and not typer.confirm("Write it?", err=True):
            raise RepairRefused("It was not wanted.")
        restamp(url, plan, folder, patience)
    except RepairRefused as refusal:
        messages.print_line(f"Nothing was changed. {refusal}", "bold red")
        return False
    messages.print_line("Written, and recorded.", "bold green")
    return True


def is_asked() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def print_diagnoses(found: list[Diagnosis]) -> None:
    """Each one: what it is, why we say so, and what to run, in lines of their own that can be copied."""
    for each in found:
        style = "bold red" if each.exit_code else "bold yellow"
        output.print(Text(printable(f"{each.kind}: {each.summary} (exit code {each.exit_code})"), style))
        for mark, lines in (("•", each.evidence), ("→", each.next_commands)):
            for line in lines:
                row = Table.grid(padding=(0, 1))
                row.add_row(f"  {mark}", printable(line.what if isinstance(line, Next) else line))
                output.print(row)
                if isinstance(line, Next) and line.command:
                    output.print_line(f"      {as_typed(line.command)}", "bold cyan")
        output.print()
    if not found:
        output.print_line("Healthy: files, record, alembic_version and schema say the same.", "bold green")
    elif not any(each.exit_code for each in found):
        output.print_line("Otherwise healthy.", "bold green")


@app.command("save")
def save_database(
    name: Annotated[str | None, typer.Argument(help="What to call it: the revision and the time, if left out.")] = None,
) -> None:
    """Save a copy of the database as it is at one instant, while the service goes on.

    In SAVES_DIR it is two files that only you can read: the copy, and its description (revision, time, rows of each
    table, SHA-256). PostgreSQL's `pg_dump` has to be installed, of the server's version or newer.

    Example: `python manage.py save before-the-sale`

    Exit code 0: saved. 1: refused, since there is a save of that name, or nothing to save. 2: it could not be done.
    """
    url, settings = existing_database(), read_settings()
    with steps() as progress:
        save = saves.save(url, settings.saves_dir, name, progress, settings.lock_timeout)
    path = save.copy_in(settings.saves_dir)
    output.print_line(f"Saved {plural(sum(save.rows.values()), 'row')} in {path}")
    messages.print_line(f"To go back to it: {as_typed(f'python manage.py load {save.name}')}")


@app.command("load")
def load_save(
    name: Annotated[str, typer.Argument(help="A save, as `saves` lists it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before data is replaced.")] = False,
) -> None:
    """Replace all that the database holds by a save: whole, or not at all.

    Refuses a save that is damaged, of the other engine, or of a revision that this code does not have. Shows what is
    there beside what the save holds, and asks. What is replaced is saved, up to its last change, as replaced-… and the
    time. The service may go on: its requests wait, or are told to come again (503).

    Example: `python manage.py load before-the-sale`

    Exit code 0: loaded. 1: refused, or not wanted. 2: it could not be done. But for 0, the database is as it was; only
    an interruption in the last moment may come too late, and then the save is there, whole.
    """
    settings = read_settings()
    url, folder, lock_timeout = settings.database_url, settings.saves_dir, settings.lock_timeout
    with steps() as progress:
        save = saves.verify(url, folder, name, progress)
        there = saves.contents(url, lock_timeout)
    output.print(comparison_table(there, save))
    if there and not yes:
        if not sys.stdin.isatty():
            fail("Nothing was changed: there is nobody to ask. To replace what is there without a question: --yes", 1)
        if not typer.confirm("Replace what is there?"):
            fail("Nothing was changed.", 1)
    with steps() as progress, only_migrator(create_migration_engine(url), settings.migration_timeout):
        replaced = saves.load(url, folder, name, progress, lock_timeout)
    output.print_line(f"Loaded {name}.")
    if replaced:
        messages.print_line(f"To go back: {as_typed(f'python manage.py load {replaced.name}')}")
    if set(save.revision) != set(read_history(versions_folder()).heads):
        messages.print_line(f"The save is older than this code. What comes next: {as_typed('alembic upgrade head')}")


INCOMPLETE = {
    "being written": "is being written by a save or load.",
    "left over": "was left by a save or load that was killed. The next one removes it.",
    "without description": "has no description beside it, so it cannot be loaded: its save was killed. Remove it.",
}
"""What to say of a copy that is no save."""


@app.command("saves")
def list_saves(
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """List the saves in SAVES_DIR, newest first, and name the copies there that are none.

    Example: `python manage.py saves --json`

    Exit code 0: listed, also where there are none.
    """
    folder = read_settings().saves_dir
    found = saves.list_saves(folder)
    for path, size, moment, state in saves.list_incomplete(folder):
        messages.print_line(f"{path} ({decimal(size)}, {moment:%F %T} UTC) {INCOMPLETE[state]}", "yellow")
    if as_document:
        output.print_json(data=[save.model_dump(mode="json") for save in found])
    elif found:
        output.print(saves_table(found))
    else:
        messages.print_line(f"There are no saves in {folder}. To make one: {as_typed('python manage.py save')}")


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
        Path | None,
        typer.Option(metavar="FILE", help="Issue a token to each user who never had one, and add it to this file."),
    ] = None,
    as_document: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Register users from a file, as many as there are, each as POST /register does.

    CSV begins with a line that names the columns: username, email, and phone_number, where there are any. A cell in
    quotes may hold commas and line ends (RFC 4180). NDJSON is a JSON object with these fields in each line. Both are
    UTF-8. Each user gets a profile and an account in DEFAULT_CURRENCY, and a token only with `--tokens`: users without
    one cannot call the service themselves.

    It can be interrupted, even killed, and run again, also from standard input: each user's key in the database is made
    of its fields, so what was imported before is skipped, and not taken for a name that somebody else has. Run again
    with `--tokens`, it issues tokens to the users of this file who were imported without.

    * `--on-error rollback` is one transaction: all or nothing. On SQLite, others cannot write meanwhile.
    * `--on-error continue` commits 20,000 lines at a time, and keeps what it committed when it is interrupted.

    Refused lines go to a file of their own, with line number, field and reason. Fix it, and import it as it is. An
    older file of that name is kept as FILE~. In the file of tokens, the last line of a user counts. Only you can read
    these files. In both, an apostrophe stands before a value that a spreadsheet would run as a formula (= + - @); an
    import of refused lines takes it away again.

    Example: `python manage.py import users.csv --on-error continue --tokens tokens.csv`

    Exit code 0: all users are there. 1: lines were refused. 2: it could not be done, or not to its end.
    """
    settings = read_settings()
    named = refusals_of(file, refusals, tokens, existing_database())
    again = "Run it again: nobody is imported twice."
    with open_source(file) as source:
        try:
            with import_bar(source) as progress:
                summary = importing.import_users(
                    source, settings, on_error=on_error, refusals=named, tokens=tokens, progress=progress
                )
        except KeyboardInterrupt:
            fail(f"Interrupted. {again}")
        except Interruption as stop:
            fail(f"{importing.explain_stop(stop)} {again}")
        except OSError as error:
            fail(f"{os_error_text(error)} Fix that, and run it again: nobody is imported twice.")
        except importing.ImportRefused as refused:
            fail(f"Nothing was imported. {refused}")
    if as_document:
        output.print_json(data=asdict(summary))
    else:
        counts = f"{plural(summary.lines, 'line')}: {plural(summary.imported, 'user')} imported"
        issued = f" {plural(summary.tokens, 'token')} issued." if tokens else ""
        output.print_line(f"{counts}, {summary.imported_before:,} before, {summary.refused:,} refused.{issued}")
    if summary.refused:
        lines = f"{plural(summary.refused, 'line')} {'was' if summary.refused == 1 else 'were'} refused"
        if summary.rolled_back:
            fail(
                f"Nothing was imported, since {lines}; {summary.refusals} says why. Fix that, and import all again.", 1
            )
        fail(f"{lines}. Fix what is in {summary.refusals}, and import that file.", 1)


def open_source(file: str) -> FileIO:
    """The file, or standard input; ends the command where it cannot be read."""
    try:
        return open(sys.stdin.fileno() if file == "-" else file, "rb", 0, closefd=file != "-")
    except FileNotFoundError:
        fail(f"There is no file {file}. Nothing was imported.")
    except OSError as error:
        fail(f"{os_error_text(error)} Nothing was imported.")


def os_error_text(error: OSError) -> str:
    """What the operating system says, and of which file."""
    return f"{error.filename or 'A file'}: {error.strerror or error}."


def refusals_of(file: str, refusals: Path | None, tokens: Path | None, url: str) -> Callable[[str], Path]:
    """Where the lines that are refused go, once it is known of which format they are."""

    def named(suffix: str) -> Path:
        path = refusals or Path("refused" if file == "-" else file).with_suffix(f".refused{suffix}")
        if len({path.absolute(), Path(file).absolute(), tokens and tokens.absolute()}) < 3:
            raise importing.ImportRefused("Name different files for users, refusals and tokens.")
        try:
            for written in filter(None, (path, older_name(path), tokens)):
                keep_off_database(written, url)
        except FileRefused as refused:
            raise importing.ImportRefused(str(refused)) from None
        return path

    return named


def keep_off_database(path: Path, url: str) -> None:
    """Raise FileRefused for a file of the SQLite database, which nothing else may be written into."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and is_part_of(path, str(parsed.database)):
        raise FileRefused(f"{path} is a file of the database, and nothing was written to it. Name another file.")


@contextmanager
def import_bar(source: FileIO) -> Iterator[importing.Progress]:
    """A bar with rate and time left; there is no telling how much is left in a pipe."""
    size = os.fstat(source.fileno()).st_size or None
    columns = ("{task.fields[summary].lines:,} lines", "{task.fields[rate]:,.0f} a second")
    with Progress(
        TextColumn("Importing"),
        BarColumn(),
        TaskProgressColumn(),
        *map(TextColumn, columns),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    ) as bar:
        task = bar.add_task("", total=size, summary=importing.Summary(), rate=0)
        started = monotonic()

        def show(position: int, summary: importing.Summary) -> None:
            rate = summary.lines / (monotonic() - started)
            bar.update(task, completed=position, summary=summary, rate=rate)

        yield show


@contextmanager
def steps() -> Iterator[saves.Progress]:
    """Show a bar for each thing that is done; end the command where it cannot be."""
    try:
        with progress_bar() as bar:
            tasks: dict[str, TaskID] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(printable(what), total=total)
                bar.update(tasks[what], completed=done, total=total)

            yield show
    except saves.SaveRefused as refusal:
        fail(str(refusal), 1)
    except (saves.SaveError, CommandError) as error:
        fail(str(error))
    except sqlalchemy.exc.DBAPIError as error:
        fail(str(error.orig).splitlines()[0])


def read_settings() -> Settings:
    """The settings, of the database that alembic would migrate; ends the command where they cannot work."""
    try:
        return chosen_settings()
    except CommandError as error:
        fail(str(error))
    except SettingsError as error:
        *others, last = str(error).splitlines()
        for line in others:
            messages.print_line(line, "bold red")
        fail(last)


def existing_database() -> str:
    """The URL of the database, which must be there: SQLite would make an empty one."""
    url = read_settings().database_url
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        fail(f"There is no file {parsed.database}. {url_setting().upper()} says which database is meant.")
    return url


def fail(message: str, code: int = 2) -> NoReturn:
    """End with this exit code, in one line."""
    messages.print_line(message, "bold red")
    raise typer.Exit(code)


def progress_bar() -> Progress:
    """A bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    )


def totals_table(totals: dict[str, Totals]) -> Table:
    """What the audit added up, by currency."""
    table = Table(title="Totals, in minor units", title_justify="left", box=SIMPLE)
    table.add_column("currency")
    for name in ("accounts", "users hold", "system holds", "transfers", "transferred"):
        table.add_column(name, justify="right", overflow="fold")
    for currency, each in sorted(totals.items()):
        numbers = (each.accounts, each.held_by_users, each.held_by_system, each.transfers, each.transferred)
        table.add_row(printable(currency), *(f"{number:,}" for number in numbers))
    return table


def comparison_table(there: saves.Contents | None, save: saves.Save) -> Table:
    """What the database holds, beside what is to replace it."""
    table = Table(title="What is there, and what the save holds", title_justify="left", box=SIMPLE)
    for name in ("", "there", "save"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    both = (there, save)
    table.add_row("revision", *(printable(", ".join(each.revision)) or "none" if each else "" for each in both))
    table.add_row("time (UTC)", *(f"{each.created_at:%F %T}" if each else "" for each in both))
    for name in sorted({name for each in both if each for name in each.rows}):
        table.add_row(printable(name), *(f"{each.rows[name]:,}" if each and name in each.rows else "" for each in both))
    return table


def saves_table(found: list[saves.Save]) -> Table:
    """The saves, one a line."""
    table = Table(box=SIMPLE)
    for name in ("name", "engine", "revision", "time (UTC)", "size", "rows"):
        table.add_column(name, justify="right" if name in ("size", "rows") else "left", overflow="fold")
    for save in found:
        size, rows = decimal(save.size), f"{sum(save.rows.values()):,}"
        revision = printable(", ".join(save.revision))
        table.add_row(save.name, save.engine, revision, f"{save.created_at:%F %T}", size, rows)
    return table


OUTPUT_LOST = os.EX_IOERR
"""The exit code of any command whose output cannot be written; no command has it for something else."""


def main() -> None:
    """Run a command."""
    if sys.stderr:
        sys.stderr = Messages(sys.stderr)
    try:
        if sys.stdout is None:
            raise OutputLost("is closed, so nothing was done. To do without it: >/dev/null")
        sys.stdout = Output(sys.stdout)
        app()
    except OutputLost as lost:
        messages.print_line(f"Standard output {lost}", "bold red")
        sys.exit(OUTPUT_LOST)
    except OSError as error:
        messages.print_line(os_error_text(error), "bold red")
        sys.exit(2)


if __name__ == "__main__":
    main()
