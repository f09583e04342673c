"""The revision files, read without being executed."""

import ast
import os
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from pathlib import Path
from typing import Literal

from alembic.util import CommandError

from alembic_savepoint.terminal import printable

Direction = Literal["upgrade", "downgrade"]

# Alembic's own rules (alembic/script/base.py and revision.py).
REVISION_FILE = re.compile(r"(?!\.#|__init__)(.*\.py)$")
FILE_NAMED_BY_ITS_ID = re.compile(r"([a-f0-9]+)\.py$")
ILLEGAL_IN_AN_ID = "@-+:"

ASK_DOCTOR = "Run: alembic-savepoint doctor, which shows the cause and the next command."


class RevisionUnreadable(ValueError):
    """The error in a revision file."""


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Revision:
    """The contents of a revision file; message is the first line of its docstring."""

    id: str
    parents: tuple[str, ...]
    depends_on: tuple[str, ...]
    branch_labels: tuple[str, ...]
    message: str
    path: Path | None
    source: str

    @property
    def checksum(self) -> str:
        """SHA-256 in hex, without line endings and white space at the end of lines, which checkouts change."""
        lines = (line.rstrip() for line in self.source.split("\n"))
        return sha256("\n".join(lines).rstrip().encode()).hexdigest()

    @property
    def created(self) -> str | None:
        """The date that Alembic wrote into the docstring, as text."""
        found = re.search(r"^Create Date: *(\S.*?) *$", self.source, re.MULTILINE)
        return found and found[1]


def read_revision(source: str, path: Path | None = None) -> Revision:
    """Return the revision in a file's text. Raises RevisionUnreadable."""
    tree = parse(source)
    assigned = assignments(tree)
    if "revision" in assigned:
        ids = read_names(assigned, "revision")
    else:
        named = FILE_NAMED_BY_ITS_ID.match(path.name) if path else None
        ids = named.groups() if named else ()
    if len(ids) != 1 or not ids[0]:
        raise RevisionUnreadable("it has no `revision`, the id by which others refer to it")
    if illegal := sorted(set(ids[0]) & set(ILLEGAL_IN_AN_ID)):
        raise RevisionUnreadable(f"Alembic does not allow {' '.join(illegal)} in an id: {ids[0]}")
    if "down_revision" not in assigned:
        raise RevisionUnreadable("it has no `down_revision`, which names its parent or is None")
    return Revision(
        id=ids[0],
        parents=read_names(assigned, "down_revision"),
        depends_on=read_names(assigned, "depends_on"),
        branch_labels=read_names(assigned, "branch_labels"),
        message=((ast.get_docstring(tree) or "").splitlines() or [""])[0].strip().removesuffix("."),
        path=path,
        source=source,
    )


def parse(source: str) -> ast.Module:
    """Return the syntax tree of a file's text. Raises RevisionUnreadable."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Old files may have escapes that Python warns about.
            return ast.parse(source)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise RevisionUnreadable(f"{where}{error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RevisionUnreadable(str(error) or "it is too complex to parse") from error


def assignments(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the values of the file's global variables; the last assignment counts."""
    found: dict[str, ast.expr] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            found |= {target.id: statement.value for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            found[statement.target.id] = statement.value
    return found


def read_names(assigned: Mapping[str, ast.expr], variable: str) -> tuple[str, ...]:
    """Return the names in a variable that holds one, several or None. Raises RevisionUnreadable."""
    expression = assigned.get(variable)
    if expression is None:
        return ()
    try:
        value = ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise RevisionUnreadable(
            f"line {expression.lineno}: `{variable}` is computed; write its value out, as Alembic does"
        ) from None
    if isinstance(value, str):
        return (value,)
    names = sorted(value) if isinstance(value, set) else (value or ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise RevisionUnreadable(f"line {expression.lineno}: `{variable}` is not a string, strings, or None")
    return tuple(dict.fromkeys(names))


# --- all files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """The revisions of a folder, in the order of its files, and their errors."""

    revisions: tuple[Revision, ...]
    unreadable: dict[Path, str]
    """The error of each file that cannot be read."""

    @cached_property
    def by_id(self) -> dict[str, Revision]:
        """Each revision; of two files with the same id, the last one, as in Alembic."""
        return {revision.id: revision for revision in self.revisions}

    @cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The ids that must be applied before each revision: parents, then dependencies. Files may be missing."""
        labels = {label: revision.id for revision in self.revisions for label in revision.branch_labels}
        return {
            id: tuple(dict.fromkeys([*revision.parents, *(labels.get(name, name) for name in revision.depends_on)]))
            for id, revision in self.by_id.items()
        }

    @cached_property
    def heads(self) -> list[str]:
        """The revisions that are not a parent of another."""
        parents = {parent for revision in self.by_id.values() for parent in revision.parents}
        return [id for id in self.by_id if id not in parents]

    @cached_property
    def paths(self) -> dict[str, list[Path]]:
        """The files of each id."""
        paths: dict[str, list[Path]] = {id: [] for id in self.by_id}
        for revision in self.revisions:
            if revision.path:
                paths[revision.id].append(revision.path)
        return paths

    @property
    def duplicates(self) -> dict[str, list[Path]]:
        """The files of each id that several files have."""
        return {id: paths for id, paths in self.paths.items() if len(paths) > 1}

    @cached_property
    def missing_parents(self) -> dict[str, list[str]]:
        """The ids that each revision needs and no readable file has."""
        missing = {id: [each for each in needed if each not in self.by_id] for id, needed in self.needs.items()}
        return {id: ids for id, ids in missing.items() if ids}

    @cached_property
    def cycles(self) -> list[list[str]]:
        """The cycles: revisions that need each other, or themselves."""
        try:
            TopologicalSorter(self.needs).prepare()
        except CycleError:
            before = {id: self.ancestors(id) for id in self.by_id}
            cycles = ([other for other in self.by_id if other in before[id] and id in before[other]] for id in before)
            return [list(cycle) for cycle in dict.fromkeys(tuple(cycle) for cycle in cycles if cycle)]
        return []

    def in_order(self) -> list[Revision]:
        """Return all revisions, parents first: `alembic history`, from its end."""
        return [self.by_id[id] for id in reversed(children_first(self.needs))]

    def ancestors(self, *ids: str) -> set[str]:
        """Return every revision that must be applied before these; themselves only in a cycle."""
        return ancestors(self.needs, ids)

    def path_text(self, id: str) -> str:
        """Return the path of the revision's file to print, or of all files that have the id."""
        return ", ".join(map(path_text, self.paths[id]))


def read_history(*folders: Path, recursive: bool = False) -> History:
    """Return the revisions in these folders, with their errors; a missing folder has none."""
    revisions, unreadable = [], {}
    for path in revision_files(folders, recursive=recursive):
        try:
            with tokenize.open(path) as file:  # In the encoding that the file declares, as Python reads it.
                source = file.read()
            revisions.append(read_revision(source, path))
        except RevisionUnreadable as error:
            unreadable[path] = str(error)
        except (OSError, SyntaxError, ValueError) as error:
            unreadable[path] = getattr(error, "strerror", None) or str(error)
    return History(tuple(revisions), unreadable)


def revision_files(folders: Iterable[Path], *, recursive: bool) -> Iterator[Path]:
    """Yield the files that Alembic takes for revisions, by name; a file with two names counts once."""
    seen = set()
    for folder in folders:
        walked = os.walk(folder) if recursive else [next(os.walk(folder), (str(folder), [], []))]
        for place, _, names in walked:
            for name in sorted(names):
                path = Path(place) / name
                if REVISION_FILE.match(name) and "__pycache__" not in path.parts and path.resolve() not in seen:
                    seen.add(path.resolve())
                    yield path


def refuse_broken_history(history: History) -> None:
    """Raise CommandError, with the first error, if the files form no history."""
    faults = [
        *(f"{path} cannot be read as a revision: {text}" for path, text in history.unreadable.items()),
        *(f"{' and '.join(map(str, paths))} have the same id, {id}" for id, paths in history.duplicates.items()),
        *(
            f"{history.path_text(id)} needs {', '.join(missing)}, which no file has"
            for id, missing in history.missing_parents.items()
        ),
        *(f"{', '.join(cycle)} come after one another in a cycle" for cycle in history.cycles),
    ]
    if faults:
        raise CommandError(f"{printable(faults[0])}. Nothing was changed. {ASK_DOCTOR}")


def path_text(path: Path) -> str:
    """Return a path to print, relative to the working directory if it is inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def children_first(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Return all ids, each before those of its parents that are among them, in the order of `alembic history`.

    It follows a line until the next id has children in another line; then it continues in that one.
    """
    before = {id: ancestors(parents, [id]) for id in parents}

    def waits(id: str, child: str) -> bool:
        # In a cycle, each is a child of each other, and none waits.
        return id in before[child] and child not in before[id]

    lines = [id for id in parents if not any(waits(id, child) for child in parents)]
    order: list[str] = []
    todo = set(parents)
    at = 0
    while lines:
        id = lines[at]
        children = [other for other, child in enumerate(lines) if waits(id, child)]
        if children:
            at = children[0]
            continue
        order.append(id)
        todo.remove(id)
        further = [parent for parent in parents[id] if parent in todo and parent not in lines]
        lines[at : at + 1] = further[:1]
        lines += further[1:]
        if not further:
            at = max(at - 1, 0)
    return order


def ancestors(parents: Mapping[str, Sequence[str]], ids: Iterable[str]) -> set[str]:
    """Return the parents of these ids, their parents, and so on, as far as they are known."""
    found: set[str] = set()
    todo = [parent for id in ids for parent in parents[id]]
    while todo:
        id = todo.pop()
        if id in parents and id not in found:
            found.add(id)
            todo += parents[id]
    return found


def code_of(revision: Revision, direction: Direction) -> str:
    """Return the file's code for one direction, without comments and docstrings."""
    other = "downgrade" if direction == "upgrade" else "upgrade"
    tree = parse(revision.source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == other)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
