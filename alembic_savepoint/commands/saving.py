"""The commands of saves: save, load, saves."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from alembic_savepoint.backup import saves
from alembic_savepoint.commands.shared import (
    AsDocument,
    fail,
    make_table,
    messages,
    output,
    print_document,
    steps,
    use,
    use_existing,
    why_not,
)
from alembic_savepoint.connections import create_engine
from alembic_savepoint.guards.turns import only_migrator
from alembic_savepoint.terminal import plural, printable

app = typer.Typer()


@app.command("save")
def save_database(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Its name; by default, the revision and the time.")] = None,
) -> None:
    """Save a copy of the database as it is at one instant, while the service runs.

    Writes two files into savepoint_saves_dir that only you can read: the copy, and its description (revision, time,
    rows of each table, SHA-256). For PostgreSQL, `pg_dump` has to be installed, of the server's version or newer.

    Example: `alembic-savepoint save before-the-sale`

    Exit code 0: saved. 1: refused, since there is a save of that name, or nothing to save. 2: it failed.
    """
    project = use_existing(context)
    with steps() as progress:
        save = saves.save(project, name, progress)
    path = save.copy_in(project.options.saves_dir)
    output.print_line(f"Saved {plural(sum(save.rows.values()), 'row')} in {path}")
    for text in save.left_out:
        messages.print_line(f"Not in the save: {text}", "yellow")
    messages.print_line(f"To go back to it: alembic-savepoint load {save.name}")


@app.command("load")
def load_save(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A save, as `saves` lists it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before data is replaced.")] = False,
) -> None:
    """Replace the contents of the database with a save: whole, or not at all.

    Refuses a save that is damaged, of the other engine, or of a revision that this code does not have. Compares the
    contents with the save's, and asks. What is replaced is saved, up to its last change, as replaced-… and the time.
    The service may keep running: its requests wait, or are answered 503.

    Example: `alembic-savepoint load before-the-sale`

    Exit code 0: loaded. 1: refused or cancelled. 2: it failed. Unless it is 0, the database is unchanged; only an
    interruption at the last moment may come too late, and then the save is loaded, whole.
    """
    project = use(context)
    with steps() as progress:
        save = saves.verify(project, name, progress)
        there = saves.contents(project)
    output.print(_comparison_table(there, save))
    if there and not yes and (reason := why_not("Replace what is there?")):
        fail(f"Nothing was changed. {reason}", 1)
    with steps() as progress, only_migrator(create_engine(project.url), project.options.migration_timeout):
        replaced = saves.load(project, name, progress)
    output.print_line(f"Loaded {name}.")
    if replaced:
        messages.print_line(f"To go back: alembic-savepoint load {replaced.name}")
    if set(save.revision) != set(project.history.heads):
        messages.print_line("The save is older than this code. Next: alembic upgrade head")


INCOMPLETE = {
    "being written": "is being written by a save or load.",
    "left over": "was left by a save or load that was killed. The next one removes it.",
    "without description": "has no description beside it, so it cannot be loaded. `saves --prune` removes it.",
}
"""The explanation of each state of an incomplete copy."""


@app.command("saves")
def list_saves(
    context: typer.Context,
    *,
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
    """List the saves in savepoint_saves_dir, newest first, and incomplete copies.

    `--prune` removes copies without a description. With `--keep` or `--older-than` it also removes, after asking, the
    saves that neither of them keeps, oldest first; never the newest of an engine, or what is being written.

    Example: `alembic-savepoint saves --prune --keep 5 --older-than 30`

    Exit code 0: listed, also if there are none. 1: it was not confirmed what to remove. 2: it failed.
    """
    folder = use(context).options.saves_dir
    if prune:
        _prune_saves(folder, keep, older_than, yes)
    elif keep is not None or older_than is not None:
        raise typer.BadParameter("--keep and --older-than say what --prune keeps. Nothing was removed.")
    found = saves.list_saves(folder)
    for path, size, moment, state in saves.list_incomplete(folder):
        messages.print_line(f"{path} ({decimal(size)}, {moment:%F %T} UTC) {INCOMPLETE[state]}", "yellow")
    if as_document:
        print_document([save.model_dump(mode="json") for save in found])
    elif found:
        table = make_table("name", "engine", "revision", "time (UTC)", numbers=("size", "rows"))
        for save in found:
            revision, rows = printable(", ".join(save.revision)), f"{sum(save.rows.values()):,}"
            table.add_row(save.name, save.engine, revision, f"{save.created_at:%F %T}", decimal(save.size), rows)
        output.print(table)
    else:
        messages.print_line(f"There are no saves in {folder}. To make one: alembic-savepoint save")


def _prune_saves(folder: Path, keep: int | None, older_than: float | None, yes: bool) -> None:
    old = saves.list_prunable(folder, keep, older_than)
    incomplete = [each for each in saves.list_incomplete(folder) if each.state != "being written"]
    for save in old:
        messages.print_line(f"{save.name} ({decimal(save.size)}, {save.created_at:%F %T} UTC)")
    for each in incomplete:
        messages.print_line(f"{each.path.name} ({decimal(each.size)}, {each.modified_at:%F %T} UTC), {each.state}")
    if not old and not incomplete:
        messages.print_line("There is nothing to remove.")
    elif not yes and (reason := why_not("Remove them?")):
        fail(f"Nothing was removed. {reason}", 1)
    for path in saves.prune(folder, old, incomplete):
        messages.print_line(f"Removed {path}")


def _comparison_table(there: saves.Contents | None, save: saves.Save) -> Table:
    table = make_table("", numbers=("there", "save"), title="What is there, and what the save holds")
    both = (there, save)
    table.add_row("revision", *(printable(", ".join(each.revision)) or "none" if each else "" for each in both))
    table.add_row("time (UTC)", *(f"{each.created_at:%F %T}" if each else "" for each in both))
    for name in sorted({name for each in both if each for name in each.rows}):
        table.add_row(printable(name), *(f"{each.rows[name]:,}" if each and name in each.rows else "" for each in both))
    return table
