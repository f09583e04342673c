"""The commands that look at migrations: graph, check, rehearse, doctor."""

import sys
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from typing import Annotated

import typer
from alembic.util import CommandError
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from alembic_savepoint.commands.shared import (
    AsDocument,
    fail,
    first_line,
    messages,
    output,
    print_document,
    steps,
    use,
    use_existing,
    why_not,
)
from alembic_savepoint.doctor.diagnosis import EXIT_CODES, Diagnosis, exit_code
from alembic_savepoint.doctor.doctor import diagnose
from alembic_savepoint.doctor.repair import RepairRefused, accept, plan_repair, restamp
from alembic_savepoint.environment import env_py_of
from alembic_savepoint.history.applied import read_applied
from alembic_savepoint.history.graph import as_json, as_mermaid, as_text
from alembic_savepoint.project import Project
from alembic_savepoint.rehearsal import rehearsal_report
from alembic_savepoint.rehearsal.rehearsal import rehearse
from alembic_savepoint.terminal import printable, url_text

app = typer.Typer()


@app.command()
def graph(
    context: typer.Context,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart instead.")] = False,
    as_document: AsDocument = False,
) -> None:
    """Show which revisions are applied, pending, or unknown to these files.

    Newest first, with branches and merges, as `alembic history` lists them. It reads the files without executing them,
    so that broken ones are shown too, and the database without changing it; without a database it shows the files.

    Example: `alembic-savepoint graph --mermaid`

    Exit code 0: shown. 2: there is no folder of revisions.
    """
    project = use(context)
    applied = None
    try:
        applied = read_applied(project)
    except (LookupError, CommandError, SQLAlchemyError) as error:
        reason = first_line(error)
        messages.print_line(f"Only the files are shown, since the database cannot be read: {reason}", "yellow")
    history = project.history
    if mermaid:
        output.print(Text(as_mermaid(history, applied)), soft_wrap=True)
    elif as_document:
        print_document(as_json(history, applied))
    else:
        text = Text(as_text(history, applied))
        text.highlight_regex(r"(?m)^[│ ]*(?:(?P<green>●)|(?P<blue>○)|(?P<red>[?]))")
        output.print(text, soft_wrap=True)


@app.command()
def check(context: typer.Context, as_document: AsDocument = False) -> None:
    """Find all that doctor finds, and what the models say otherwise: for a pipeline.

    Compares the database with what its revisions make on an empty one, and that with the models. It sees what `alembic
    check` sees, and what that does not: CHECK constraints and the values in them, conditions of indexes, constraints
    without a name, files edited after they were applied, several heads, and views, triggers and functions that were
    changed by hand. Changes nothing, and blocks nobody.

    The revisions run in a scratch database that is removed afterwards: on PostgreSQL a new one on the same server, for
    which the role needs CREATEDB, or the empty one that savepoint_scratch_url names.

    Example: `alembic-savepoint check --json`

    Exit code 0: nothing found. 1: something, also pending revisions; each says what to do. 2: the database cannot be
    read.
    """
    project = use_existing(context)
    found = diagnose(project, models=True)
    code = 2 if any(each.kind == "database-unreadable" for each in found) else min(len(found), 1)
    if code < 2 and not project.environment.metadata:
        messages.print_line(f"Not compared with models: {env_py_of(project.script)} names no metadata.", "yellow")
    _print_diagnoses(found, code, as_document)
    raise typer.Exit(code)


# Otherwise -1 would be read as an option.
@app.command("rehearse", context_settings={"ignore_unknown_options": True})
def rehearse_migration(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="As for alembic: head, base, a revision, +1 or -1.")] = "head",
    copy: Annotated[bool, typer.Option("--copy", help="Try it on a copy of the database instead.")] = False,
    as_document: AsDocument = False,
) -> None:
    """Run a migration for real, watch it, and roll it back.

    Shows each statement with its time, the rows it touches and the locks it takes on PostgreSQL, what a downgrade
    loses, and what is unsafe: by [squawk's rules](https://squawkhq.com/docs/rules) on PostgreSQL, and on SQLite by what
    the rebuild of a table loses. It is one transaction on the database itself, and others wait for its locks as they
    will for the migration's; with `--copy` nobody waits. What cannot be rolled back is always tried on a copy. What a
    revision does outside the database, or commits past SQLAlchemy, is not undone.

    Example: `alembic-savepoint rehearse -1 --copy`

    Exit code 0: it works, without warnings. 1: with warnings, or it fails. 2: it could not be tried. Otherwise the
    database is unchanged.
    """
    project = use_existing(context)
    if target.startswith("--"):
        raise typer.BadParameter(f"There is no option {target}.")
    try:
        # What a revision prints is not part of the report.
        with steps() as progress, redirect_stdout(sys.stderr):
            rehearsal = rehearse(project, target, copy=copy, progress=progress)
    except KeyboardInterrupt:
        fail("Interrupted and rolled back: the database is as it was.")
    if as_document:
        print_document(rehearsal_report.as_json(rehearsal))
    else:
        output.print(rehearsal_report.as_text(rehearsal))
        if rehearsal.revisions and not rehearsal.failure:
            output.print_line(f"To do it for real: {rehearsal.command}")
    if rehearsal.warnings or rehearsal.failure:
        raise typer.Exit(1)


@app.command("doctor", epilog=EXIT_CODES)
def doctor_command(
    context: typer.Context,
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
    a history, it runs them, in a scratch database as `check` does.

    `--repair` may write: where alembic_version is empty, or names an unknown revision, or another one than the schema
    shows, and exactly one revision has that schema. It writes this one, after asking, and records what it replaced.
    `--accept REVISION` adds one row to the record: the checksum that the file of this revision has now, so that it is
    no longer an `edited-file`. Nothing else in the database is changed.

    Example: `alembic-savepoint doctor --json`
    """
    project = use(context)
    if accepted is not None:
        _accept_edit(use_existing(context), accepted)
    found = diagnose(project)
    if not as_document:
        with suppress(CommandError, SQLAlchemyError):  # It is diagnosed.
            messages.print_line(f"Database: {url_text(project.url)}", "dim")
    if not (repair and as_document):
        _print_diagnoses(found, exit_code(found), as_document)
    if repair and (_repair(project, found, yes) or as_document):
        found = diagnose(project)
        _print_diagnoses(found, exit_code(found), as_document)
    raise typer.Exit(exit_code(found))


def _accept_edit(project: Project, revision: str) -> None:
    try:
        accept(project, revision)
    except RepairRefused as refusal:
        raise typer.BadParameter(printable(str(refusal))) from None
    messages.print_line(f"Accepted, and recorded: the file of {revision} as it is now.", "bold green")


def _repair(project: Project, found: list[Diagnosis], yes: bool) -> bool:
    """Write the right revision into alembic_version, after asking; return whether that was done."""
    if all(each.kind == "behind" for each in found):
        messages.print_line("There is nothing to repair.")
        return False
    try:
        plan = plan_repair(found, project)
        messages.print_line(f"To be written: {plan}.")
        if not yes and (reason := why_not("Write it?")):
            raise RepairRefused(reason)
        restamp(project, plan)
    except RepairRefused as refusal:
        messages.print_line(f"Nothing was changed. {refusal}", "bold red")
        return False
    messages.print_line("Written, and recorded.", "bold green")
    return True


def _print_diagnoses(found: list[Diagnosis], code: int, as_document: bool) -> None:
    if as_document:
        diagnoses = [{"kind": each.kind, "exit_code": each.exit_code, **asdict(each)} for each in found]
        print_document({"exit_code": code, "diagnoses": diagnoses})
        return
    for each in found:
        style = "bold red" if each.exit_code else "bold yellow"
        output.print(Text(printable(f"{each.kind}: {each.summary}"), style))
        evidence = [("•", text, None) for text in each.evidence]
        for mark, text, command in (*evidence, *(("→", step.what, step.command) for step in each.next_commands)):
            # A grid indents all lines of a long text.
            row = Table.grid(padding=(0, 1))
            row.add_row(f"  {mark}", printable(output.spelled(text)))
            output.print(row)
            if command:
                output.print_line(f"      {command}", "bold cyan")
        output.print()
    if not found:
        output.print_line("Healthy: files, record, alembic_version and schema say the same.", "bold green")
    elif not any(each.exit_code for each in found):
        output.print_line("Otherwise healthy.", "bold green")
