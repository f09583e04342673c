"""The command `alembic-savepoint`, and its mounting in other programs."""

import os
import sys
from argparse import Namespace
from functools import cache
from inspect import getdoc
from typing import Annotated

import typer

from alembic_savepoint.commands import looking, saving
from alembic_savepoint.commands.shared import Commands, messages, program
from alembic_savepoint.project import Project, Spelling, read_config
from alembic_savepoint.terminal import Messages, Output, OutputLost

app = program(
    Commands,
    "Save, load, rehearse, check and diagnose the database of an Alembic project. Options come before the command.",
)


@app.callback()
def choose(
    context: typer.Context,
    config: Annotated[
        list[str] | None, typer.Option("-c", "--config", help="As for alembic: an ini file, or pyproject.toml.")
    ] = None,
    name: Annotated[str, typer.Option("-n", "--name", help="As for alembic: the section of the ini file.")] = "alembic",
    x: Annotated[list[str] | None, typer.Option("-x", help="As for alembic: an argument of env.py.")] = None,
) -> None:
    """Remember which project is meant."""

    @cache
    def find() -> Project:
        chosen = Namespace(config=config, name=name, x=x, raiseerr=False)
        return Project(read_config(config or (), name, cmd_opts=chosen))

    context.obj = find


def mount(app: typer.Typer, spelling: Spelling) -> None:
    """Add the commands to another program, whose callback sets the context's `obj` to what returns its Project."""
    for command in (*looking.app.registered_commands, *saving.app.registered_commands):
        assert command.callback is not None
        name = command.name or command.callback.__name__
        app.command(
            name,
            help=spelling.of(getdoc(command.callback) or ""),
            epilog=command.epilog,
            context_settings=command.context_settings,
        )(command.callback)


mount(app, Spelling())


def run(app: typer.Typer) -> None:
    """Run a program, whose output can always be printed, and whose lost output ends it."""
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


def main() -> None:
    """Run `alembic-savepoint`."""
    run(app)
