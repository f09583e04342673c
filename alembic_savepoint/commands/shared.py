"""What every command needs: the project, the terminal, errors in one line, tables and progress bars."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from alembic.util import CommandError
from rich.box import SIMPLE
from rich.progress import Progress, TaskID
from rich.table import Column, Table
from sqlalchemy.exc import SQLAlchemyError
from typer.core import TyperGroup

from alembic_savepoint.backup import saves
from alembic_savepoint.connections import no_file, sqlite_path
from alembic_savepoint.project import Project
from alembic_savepoint.terminal import Terminal

# In a file or pipe, a table is as wide as its numbers.
output = Terminal(width=None if sys.stdout and sys.stdout.isatty() else 160)
messages = Terminal(stderr=True)

AsDocument = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]

FindProject = Callable[[], Project]


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with a message."""
    messages.print_line(message, "bold red")
    raise typer.Exit(code)


class Commands(TyperGroup):
    """The commands. An error that a command does not handle ends it with one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Exit code 1: a save was refused. 2: any other error."""
        try:
            return super().invoke(ctx)
        except saves.SaveRefused as refusal:
            fail(str(refusal), 1)
        except OSError as error:
            fail(os_error_text(error))
        except (KeyError, IndexError):  # Errors of this code, unlike other LookupErrors.
            raise
        except (CommandError, LookupError, saves.SaveError, SQLAlchemyError) as error:
            fail(first_line(error))


def program(commands: type[Commands], words: str) -> typer.Typer:
    """Return a program without commands yet; `words` are its help."""
    return typer.Typer(
        cls=commands,
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="markdown",
        help=f"{words} Exit code 74: the output could not be written.",
    )


def use(context: typer.Context) -> Project:
    """Return the project of this command, and spell what is printed for it."""
    find: FindProject = context.obj
    project = find()
    for each in (output, messages):
        each.spelled = project.spelling.of
    return project


def use_existing(context: typer.Context) -> Project:
    """Return the project, of a database that exists: SQLite would create an empty one."""
    project = use(context)
    if project.is_sqlite and not sqlite_path(project.url).exists():
        fail(f"{no_file(project.url)} savepoint_url says which database is meant.")
    return project


def print_document(data: Any) -> None:
    """Print a JSON document."""
    output.print_json(data=_spelled(data))


def _spelled(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _spelled(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_spelled(each) for each in data]
    return output.spelled(data) if isinstance(data, str) else data


def first_line(error: Exception) -> str:
    """Return the first line of an error; the others may repeat what is in the rows."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def os_error_text(error: OSError) -> str:
    """Return the file and the reason of an error."""
    return f"{error.filename or 'A file'}: {error.strerror or error}."


def why_not(question: str) -> str | None:
    """Ask, and return why not to go on, or None for a yes."""
    if not is_interactive():
        return "Standard input is not a terminal, so nobody can be asked. To confirm in advance: --yes"
    return None if typer.confirm(question, err=True) else "Cancelled."


def is_interactive() -> bool:
    """Return whether a question can be answered."""
    return sys.stdin.isatty()


def progress_bar() -> Progress:
    """Return a progress bar, which is only shown on a terminal."""
    return Progress(console=messages, transient=True, disable=not messages.is_terminal)


@contextmanager
def steps() -> Iterator[saves.Progress]:
    """Show a bar for each step."""
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show


def make_table(*texts: str, numbers: Sequence[str], title: str | None = None) -> Table:
    """Return a table with these columns."""
    columns = [Column(name, overflow="fold") for name in texts]
    columns += [Column(name, justify="right", overflow="fold") for name in numbers]
    return Table(*columns, title=title, title_justify="left", box=SIMPLE)
