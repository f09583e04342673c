"""The operator's commands: `python manage.py --help`."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from io import FileIO
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, NoReturn

import typer
from alembic.util import CommandError
from rich.box import SIMPLE
from rich.filesize import decimal
from rich.progress import Progress, TaskID
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError
from typer.core import TyperGroup

import importing
from audit import Totals, open_books
from db.engines import create_migration_engine
from db.sqlite_file import is_part_of
from migrations import rehearsal_report, saves
from migrations.applied import read_applied
from migrations.comparison import check_schema
from migrations.diagnosis import EXIT_CODES, Diagnosis
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


class Commands(TyperGroup):
    """The commands. An error that a command does not handle ends it with one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Exit code 1: a save was refused. 2: any other error."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            for line in str(error).splitlines():
                messages.print_line(line, "bold red")
            raise typer.Exit(2) from None
        except saves.SaveRefused as refusal:
            _fail(str(refusal), 1)
        except OSError as error:
            _fail(_os_error_text(error))
        except (KeyError, IndexError):  # Errors of this code, unlike other LookupErrors.
            raise
        except (CommandError, FileRefused, LookupError, saves.SaveError, SQLAlchemyError) as error:
            _fail(_first_line(error))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="Operate a Savepoint database: the one that DATABASE_URL names or, with ALEMBIC_CONFIG set, the setting that "
    "this ini file names, as for `alembic`. Exit code 74: the output could not be written.",
)
# In a file or pipe, a table is as wide as its numbers.
output = Terminal(width=None if sys.stdout and sys.stdout.isatty() else 160)
messages = Terminal(stderr=True)

AsDocument = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


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
    with open_books(_require_database().database_url) as books, _progress_bar() as progress:
        task = progress.add_task("Auditing", total=books.count_rows())
        for finding in books.run(lambda rows: progress.advance(task, rows)):
            findings += 1
            text = Text.assemble((printable(finding.subject), "red"), f": {printable(finding.fault)}")
            output.print(text, soft_wrap=True)
    output.print(_totals_table(books.totals))
    if findings:
        _fail(f"The books are wrong: {plural(findings, 'finding')}.", 1)
    messages.print_line("The books are right.", "bold green")


@app.command()
def graph(
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this file as well.")] = None,
    as_document: AsDocument = False,
) -> None:
    """Show which revisions are applied, pending, or unknown to these files.

    Newest first, with branches and merges, as `alembic history` lists them. It reads the files without executing them,
    so that broken ones are shown too, and the database without changing it; without a database it shows the files.

    Example: `python manage.py graph --svg revisions.svg`

    Exit code 0: shown. 2: there is no folder of revisions, or FILE cannot be written.
    """
    history, applied = read_history(versions_folder()), None
    try:
        applied = read_applied(chosen_settings().database_url)
    except (SettingsError, LookupError, CommandError, SQLAlchemyError) as error:
        reason = _first_line(error)
        messages.print_line(f"Only the files are shown, since the database cannot be read: {reason}", "yellow")
    if svg is not None:
        with suppress(SettingsError):
            _keep_off_database(svg, chosen_settings().database_url)
        try:
            svg.write_text(as_svg(history, applied), encoding="utf-8")
        except OSError as error:
            _fail(f"{_os_error_text(error)} Name another file.")
    if as_document:
        output.print_json(data=as_json(history, applied))
    else:
        text = Text(as_text(history, applied))
        text.highlight_regex(r"(?m)^[│ ]*(?:(?P<green>●)|(?P<blue>○)|(?P<red>[?]))")
        output.print(text, soft_wrap=True)


@app.command()
def check(as_document: AsDocument = False) -> None:
    """Find what is not as it should be in the schema, its revisions, and models.py.

    Compares the database with what its revisions make on an empty one, and that with models.py. It sees what `alembic
    check` sees, and what that does not: CHECK constraints and the values in them, conditions of indexes, constraints
    without a name, files edited after they were applied, several heads. Changes nothing, and blocks nobody.

    Example: `python manage.py check --json`

    Exit code 0: nothing found. 1: findings; each says what to do. 2: the database cannot be read.
    """
    findings = check_schema(_require_database().database_url)
    if as_document:
        output.print_json(data=[asdict(finding) for finding in findings])
    else:
        for advice, same in groupby(findings, key=attrgetter("advice")):
            for finding in same:
                output.print_line(f"{finding.kind}: {finding.text}", "red")
            output.print_line(f"  {advice}")
    if findings:
        _fail(f"Not as it should be: {plural(len(findings), 'finding')}.", 1)
    messages.print_line("The schema is as it should be.", "bold green")


# Otherwise -1 would be read as an option.
@app.command("rehearse", context_settings={"ignore_unknown_options": True})
def rehearse_migration(
    target: Annotated[str, typer.Argument(help="As for alembic: head, base, a revision, +1 or -1.")] = "head",
    copy: Annotated[bool, typer.Option("--copy", help="Try it on a copy of the database instead.")] = False,
    as_document: AsDocument = False,
) -> None:
    """Run a migration for real, watch it, and roll it back.

    Shows each statement with its time, the rows it touches and the locks it takes on PostgreSQL, what a downgrade
    loses, and what is unsafe: by [squawk's rules](https://squawkhq.com/docs/rules) on PostgreSQL, and on SQLite by what
    the rebuild of a table loses. It is one transaction on the database itself, and others wait for its locks as they
    will for the migration's; with `--copy` nobody waits. What cannot be rolled back is always tried on a copy. What a
    revision does outside the database is not undone.

    Example: `python manage.py rehearse -1 --copy`

    Exit code 0: it works, without warnings. 1: with warnings, or it fails. 2: it could not be tried. In each case, the
    database is unchanged.
    """
    settings = _require_database()
    if target.startswith("--"):
        raise typer.BadParameter(f"There is no option {target}.")
    try:
        # What a revision prints is not part of the report.
        with _steps() as progress, redirect_stdout(sys.stderr):
            rehearsal = rehearse(settings.database_url, target, settings=settings, copy=copy, progress=progress)
    except KeyboardInterrupt:
        _fail("Interrupted and rolled back: the database is as it was.")
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
    as_document: AsDocument = False,
) -> None:
    """Find out what is wrong with the revisions or the schema, and what to run next.

    Reads the revision files without executing them, the database and its record, and all branches in git, also where
    files are broken or the database is missing. It never writes. Only to compare schemas, and only where the files form
    a history, it runs them, on a scratch database that is removed afterwards.

    `--repair` may write: where alembic_version is empty, or names an unknown revision, or another one than the schema
    shows, and exactly one revision has that schema. It writes this one, after asking, and records what it replaced.
    `--accept REVISION` adds one row to the record: the checksum that the file of this revision has now, so that it is
    no longer an `edited-file`. Nothing else in the database is changed.

    Example: `python manage.py doctor --json`
    """
    settings, folder = chosen_settings(), versions_folder()
    if accepted is not None:
        _accept_edit(accepted, folder)
    found = diagnose(settings.database_url, folder, ALEMBIC_INI.parent)
    if not as_document:
        messages.print_line(f"Database: {url_text(settings.database_url)}", "dim")
        _print_diagnoses(found)
    if repair and _repair(settings, found, folder, yes):
        found = diagnose(settings.database_url, folder, ALEMBIC_INI.parent)
        if not as_document:
            _print_diagnoses(found)
    code = found[0].exit_code if found else 0
    if as_document:
        output.print_json(data={"exit_code": code, "diagnoses": [_diagnosis_as_json(each) for each in found]})
    raise typer.Exit(code)


def _accept_edit(revision: str, folder: Path) -> None:
    settings = _require_database()
    try:
        accept(settings.database_url, revision, folder, settings.migration_timeout)
    except RepairRefused as refusal:
        raise typer.BadParameter(printable(str(refusal))) from None
    messages.print_line(f"Accepted, and recorded: the file of {revision} as it is now.", "bold green")


def _repair(settings: Settings, found: list[Diagnosis], folder: Path, yes: bool) -> bool:
    """Write the right revision into alembic_version, after asking; return whether that was done."""
    if all(each.kind == "behind" for each in found):
        messages.print_line("There is nothing to repair.")
        return False
    try:
        plan = plan_repair(found, settings.database_url)
        messages.print_line(f"To be written: {plan}.")
        if not yes and (reason := _why_not("Write it?")):
            raise RepairRefused(reason)
        restamp(settings.database_url, plan, folder, settings.migration_timeout)
    except RepairRefused as refusal:
        messages.print_line(f"Nothing was changed. {refusal}", "bold red")
        return False
    messages.print_line("Written, and recorded.", "bold green")
    return True


def _why_not(question: str) -> str | None:
    """Ask, and return why not to go on, or None for a yes."""
    if not is_interactive():
        return "Standard input is not a terminal, so nobody can be asked. To confirm in advance: --yes"
    return None if typer.confirm(question, err=True) else "Cancelled."


def is_interactive() -> bool:
    """Return whether a question can be answered."""
    return sys.stdin.isatty()


def _diagnosis_as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    steps = [{**asdict(step), "command": step.command and as_typed(step.command)} for step in diagnosis.next_commands]
    return {"kind": diagnosis.kind, "exit_code": diagnosis.exit_code, **asdict(diagnosis), "next_commands": steps}


def _print_diagnoses(found: list[Diagnosis]) -> None:
    for each in found:
        style = "bold red" if each.exit_code else "bold yellow"
        output.print(Text(printable(f"{each.kind}: {each.summary} (exit code {each.exit_code})"), style))
        evidence = [("•", text, None) for text in each.evidence]
        for mark, text, command in (*evidence, *(("→", step.what, step.command) for step in each.next_commands)):
            # A grid indents all lines of a long text.
            row = Table.grid(padding=(0, 1))
            row.add_row(f"  {mark}", printable(text))
            output.print(row)
            if command:
                output.print_line(f"      {as_typed(command)}", "bold cyan")
        output.print()
    if not found:
        output.print_line("Healthy: files, record, alembic_version and schema say the same.", "bold green")
    elif not any(each.exit_code for each in found):
        output.print_line("Otherwise healthy.", "bold green")


@app.command("save")
def save_database(
    name: Annotated[str | None, typer.Argument(help="Its name; by default, the revision and the time.")] = None,
) -> None:
    """Save a copy of the database as it is at one instant, while the service runs.

    Writes two files into SAVES_DIR that only you can read: the copy, and its description (revision, time, rows of each
    table, SHA-256). For PostgreSQL, `pg_dump` has to be installed, of the server's version or newer.

    Example: `python manage.py save before-the-sale`

    Exit code 0: saved. 1: refused, since there is a save of that name, or nothing to save. 2: it failed.
    """
    settings = _require_database()
    with _steps() as progress:
        save = saves.save(settings.database_url, settings.saves_dir, name, progress, settings.lock_timeout)
    path = save.copy_in(settings.saves_dir)
    output.print_line(f"Saved {plural(sum(save.rows.values()), 'row')} in {path}")
    for text in save.left_out:
        messages.print_line(f"Not in the save: {text}", "yellow")
    messages.print_line(f"To go back to it: {as_typed(f'python manage.py load {save.name}')}")


@app.command("load")
def load_save(
    name: Annotated[str, typer.Argument(help="A save, as `saves` lists it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before data is replaced.")] = False,
) -> None:
    """Replace the contents of the database with a save: whole, or not at all.

    Refuses a save that is damaged, of the other engine, or of a revision that this code does not have. Compares the
    contents with the save's, and asks. What is replaced is saved, up to its last change, as replaced-… and the time.
    The service may keep running: its requests wait, or are answered 503.

    Example: `python manage.py load before-the-sale`

    Exit code 0: loaded. 1: refused or cancelled. 2: it failed. Unless it is 0, the database is unchanged; only an
    interruption at the last moment may come too late, and then the save is loaded, whole.
    """
    settings = chosen_settings()
    url, folder, lock_timeout = settings.database_url, settings.saves_dir, settings.lock_timeout
    with _steps() as progress:
        save = saves.verify(url, folder, name, progress)
        there = saves.contents(url, lock_timeout)
    output.print(_comparison_table(there, save))
    if there and not yes and (reason := _why_not("Replace what is there?")):
        _fail(f"Nothing was changed. {reason}", 1)
    with _steps() as progress, only_migrator(create_migration_engine(url), settings.migration_timeout):
        replaced = saves.load(url, folder, name, progress, lock_timeout)
    output.print_line(f"Loaded {name}.")
    if replaced:
        messages.print_line(f"To go back: {as_typed(f'python manage.py load {replaced.name}')}")
    if set(save.revision) != set(read_history(versions_folder()).heads):
        messages.print_line(f"The save is older than this code. Next: {as_typed('alembic upgrade head')}")


INCOMPLETE = {
    "being written": "is being written by a save or load.",
    "left over": "was left by a save or load that was killed. The next one removes it.",
    "without description": "has no description beside it, so it cannot be loaded. `saves --prune` removes it.",
}
"""The explanation of each state of an incomplete copy."""


@app.command("saves")
def list_saves(
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove incomplete copies, and old saves, before that.")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --prune: keep at least the N newest saves.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="With --prune: keep at least the saves of these days.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before anything is removed.")] = False,
    as_document: AsDocument = False,
) -> None:
    """List the saves in SAVES_DIR, newest first, and incomplete copies.

    `--prune` removes copies without a description. With `--keep` or `--older-than` it also removes, after asking, the
    saves that neither of them keeps, oldest first; never the newest of an engine, or what is being written.

    Example: `python manage.py saves --prune --keep 5 --older-than 30`

    Exit code 0: listed, also if there are none. 1: it was not confirmed what to remove. 2: it failed.
    """
    folder = chosen_settings().saves_dir
    if prune:
        _prune_saves(folder, keep, older_than, yes)
    elif keep is not None or older_than is not None:
        raise typer.BadParameter("--keep and --older-than say what --prune keeps. Nothing was removed.")
    found = saves.list_saves(folder)
    for path, size, moment, state in saves.list_incomplete(folder):
        messages.print_line(f"{path} ({decimal(size)}, {moment:%F %T} UTC) {INCOMPLETE[state]}", "yellow")
    if as_document:
        output.print_json(data=[save.model_dump(mode="json") for save in found])
    elif found:
        table = _make_table("name", "engine", "revision", "time (UTC)", numbers=("size", "rows"))
        for save in found:
            revision, rows = printable(", ".join(save.revision)), f"{sum(save.rows.values()):,}"
            table.add_row(save.name, save.engine, revision, f"{save.created_at:%F %T}", decimal(save.size), rows)
        output.print(table)
    else:
        messages.print_line(f"There are no saves in {folder}. To make one: {as_typed('python manage.py save')}")


def _prune_saves(folder: Path, keep: int | None, older_than: float | None, yes: bool) -> None:
    old = saves.list_prunable(folder, keep, older_than)
    incomplete = [each for each in saves.list_incomplete(folder) if each.state != "being written"]
    for save in old:
        messages.print_line(f"{save.name} ({decimal(save.size)}, {save.created_at:%F %T} UTC)")
    for each in incomplete:
        messages.print_line(f"{each.path.name} ({decimal(each.size)}, {each.modified_at:%F %T} UTC), {each.state}")
    if not old and not incomplete:
        messages.print_line("There is nothing to remove.")
    elif not yes and (reason := _why_not("Remove them?")):
        _fail(f"Nothing was removed. {reason}", 1)
    for path in saves.prune(folder, old, incomplete):
        messages.print_line(f"Removed {path}")


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
        _fail(f"Interrupted. {again}")
    except Interruption as stop:
        _fail(f"{importing.describe_interruption(stop)} {again}")
    except OSError as error:
        _fail(f"{_os_error_text(error)} Name another file, or make room on the disk. {again}")
    except (importing.ImportRefused, FileRefused) as refused:
        _fail(f"Nothing was imported. {refused}")


def _print_summary(summary: importing.Summary, with_tokens: bool, as_document: bool) -> None:
    if as_document:
        output.print_json(data=asdict(summary))
    else:
        counts = f"{plural(summary.lines, 'line')}: {plural(summary.imported, 'user')} imported"
        issued = f" {plural(summary.tokens, 'token')} issued." if with_tokens else ""
        output.print_line(f"{counts}, {summary.imported_before:,} before, {summary.refused:,} refused.{issued}")
    lines = f"{plural(summary.refused, 'line')} {'was' if summary.refused == 1 else 'were'} refused"
    if summary.rolled_back:
        _fail(f"Nothing was imported, since {lines}; {summary.refusals} says why. Fix that, and import all again.", 1)
    if summary.refused:
        _fail(f"{lines}. Fix what is in {summary.refusals}, and import that file.", 1)


def _first_line(error: Exception) -> str:
    # The lines after the first may repeat what is in the rows.
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def _os_error_text(error: OSError) -> str:
    return f"{error.filename or 'A file'}: {error.strerror or error}."


def _keep_off_database(path: Path, url: str) -> None:
    """Raise FileRefused for a file of the SQLite database, which nothing else may be written into."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and is_part_of(path, str(parsed.database)):
        raise FileRefused(f"{path} is a file of the database, and nothing was written to it. Name another file.")


@contextmanager
def _import_bar(source: FileIO) -> Iterator[importing.Progress]:
    with _progress_bar() as bar:
        # The size of a pipe is not known.
        task = bar.add_task("Importing", total=os.fstat(source.fileno()).st_size or None)
        started = monotonic()

        def show(position: int, summary: importing.Summary) -> None:
            rate = summary.lines / (monotonic() - started)
            text = f"Importing, {summary.lines:,} lines, {rate:,.0f} a second"
            bar.update(task, completed=position, description=text)

        yield show


@contextmanager
def _steps() -> Iterator[saves.Progress]:
    """Show a bar for each step."""
    with _progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show


def _require_database() -> Settings:
    """Return the settings, of a database that exists: SQLite would create an empty one."""
    settings = chosen_settings()
    parsed = make_url(settings.database_url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        _fail(f"There is no file {parsed.database}. {url_setting().upper()} says which database is meant.")
    return settings


def _fail(message: str, code: int = 2) -> NoReturn:
    messages.print_line(message, "bold red")
    raise typer.Exit(code)


def _progress_bar() -> Progress:
    return Progress(console=messages, transient=True, disable=not messages.is_terminal)


def _make_table(*texts: str, numbers: Sequence[str], title: str | None = None) -> Table:
    columns = [Column(name, overflow="fold") for name in texts]
    columns += [Column(name, justify="right", overflow="fold") for name in numbers]
    return Table(*columns, title=title, title_justify="left", box=SIMPLE)


def _totals_table(totals: dict[str, Totals]) -> Table:
    names = ("accounts", "users hold", "system holds", "transfers", "transferred")
    table = _make_table("currency", numbers=names, title="Totals, in minor units")
    for currency, each in sorted(totals.items()):
        numbers = (each.accounts, each.held_by_users, each.held_by_system, each.transfers, each.transferred)
        table.add_row(printable(currency), *(f"{number:,}" for number in numbers))
    return table


def _comparison_table(there: saves.Contents | None, save: saves.Save) -> Table:
    table = _make_table("", numbers=("there", "save"), title="What is there, and what the save holds")
    both = (there, save)
    table.add_row("revision", *(printable(", ".join(each.revision)) or "none" if each else "" for each in both))
    table.add_row("time (UTC)", *(f"{each.created_at:%F %T}" if each else "" for each in both))
    for name in sorted({name for each in both if each for name in each.rows}):
        table.add_row(printable(name), *(f"{each.rows[name]:,}" if each and name in each.rows else "" for each in both))
    return table


def main() -> None:
    """Run a command."""
    if sys.stderr:
        sys.stderr = Messages(sys.stderr)
    try:
        if sys.stdout is None:
            raise OutputLost("is closed, so nothing was done. To run without output: >/dev/null")
        sys.stdout = Output(sys.stdout)
        app()
    except OutputLost as lost:
        messages.print_line(f"Standard output {lost}", "bold red")
        sys.exit(os.EX_IOERR)


if __name__ == "__main__":
    main()
