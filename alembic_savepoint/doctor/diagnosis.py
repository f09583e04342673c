"""A diagnosis, its kinds with their exit codes, and its evidence: files, the database's record, and git."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from alembic_savepoint.history.applied import Applied, Event
from alembic_savepoint.history.lost_files import Git, Lost, find_in_git
from alembic_savepoint.history.revisions import (
    History,
    Revision,
    RevisionUnreadable,
    assignments,
    parse,
    path_text,
    read_revision,
)

KINDS = {
    "unreadable-file": (10, "a revision file cannot be read"),
    "duplicate-id": (11, "two files have the same revision id"),
    "cycle": (12, "revisions come after one another in a cycle"),
    "missing-parent": (13, "a revision comes after one that no file has"),
    "database-unreadable": (2, "the database cannot be read"),
    "lost-file": (20, "the database is at a revision whose file this branch once had"),
    "ahead": (21, "the database is ahead: newer code than this migrated it"),
    "foreign-branch": (22, "the database is at a revision of another branch"),
    "unknown-revision": (23, "the database is at a revision of which nothing is known"),
    "unversioned": (24, "there are tables, and alembic_version is empty or missing"),
    "wrong-revision": (25, "the schema is exactly that of another revision than alembic_version says"),
    "drift": (30, "the schema is not what its revision makes"),
    "not-compared": (31, "the schema could not be compared"),
    "leftover-table": (32, "an interrupted rebuild left its temporary table"),
    "edited-file": (33, "a revision file was edited after it was applied"),
    "several-heads": (34, "nothing comes after either of several revisions"),
    "not-in-revisions": (40, "the revisions do not make what the models say; only `check` compares them"),
    "ungenerated": (41, "Alembic would generate a revision; as above"),
    "unnamed-constraint": (42, "a constraint of the models has no name; as above"),
    "behind": (0, "revisions are not applied yet"),
}
"""Each kind with its exit code and meaning, the most serious first."""


EXIT_CODES = "\n".join(
    [
        "The exit code is that of the first diagnosis, the most serious:\n",
        "* 0 healthy, or `behind`: revisions are not applied yet",
        *(f"* {code} `{kind}`: {meaning}" for kind, (code, meaning) in KINDS.items() if code),
    ]
)
"""The table for `--help`."""


@dataclass(frozen=True, slots=True)
class Next:
    """The next step: a command, or the text to write, or None where only words can tell."""

    command: str | None
    what: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """An error, its evidence, and what to run."""

    kind: str
    summary: str
    evidence: Sequence[str] = ()
    next_commands: Sequence[Next] = ()
    restamp: tuple[str, ...] = ()
    """The revisions that a repair would write into alembic_version."""

    @property
    def exit_code(self) -> int:
        """The exit code of its kind."""
        return KINDS[self.kind][0]


def exit_code(found: Sequence[Diagnosis]) -> int:
    """Return the exit code of doctor for these, sorted diagnoses."""
    return found[0].exit_code if found else 0


@dataclass(frozen=True)
class Case:
    """The files, the record of the database, and the folder in which git searches."""

    history: History
    applied: Applied
    root: Path
    found_in_git: dict[str, list[Lost]] = field(default_factory=dict)

    @cached_property
    def claimed(self) -> set[str]:
        """The ids in files that cannot be read, as far as their text shows."""
        texts = (
            path.read_text(encoding="utf-8", errors="replace") for path in self.history.unreadable if path.exists()
        )
        return {id for text in texts for id in re.findall(r"^revision\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)}

    @property
    def is_broken(self) -> bool:
        """Return whether the files form no history, so that none may be executed."""
        history = self.history
        return bool(history.unreadable or history.duplicates or history.missing_parents or history.cycles)

    def named(self, id: str) -> str:
        """Return a revision to print: its id, message and file."""
        revision = self.history.by_id.get(id)
        return f"{id} {revision.message!r} ({self.history.path_text(id)})" if revision else id

    def record_of(self, id: str) -> list[str]:
        """Return the record's last events of a revision, one a line."""
        events = [event for event in self.applied.record if event.revision == id]
        return [f"The record of the database: {event_text(event)}" for event in events[-3:]]

    def lost(self, id: str) -> list[Lost]:
        """Return the commits that have the file of a revision."""
        if id not in self.found_in_git:
            self.found_in_git[id] = find_in_git(id, self.root)
        return self.found_in_git[id]

    def lost_of(self, id: str) -> list[str]:
        """Return the same, one a line."""
        return [
            f"Git: commit {lost.commit} of {lost.date} has {lost.path}"
            f" ({', '.join(map('branch {}'.format, lost.branches)) or 'no longer on a branch'})"
            for lost in self.lost(id)
        ]

    def parents_of(self, id: str) -> tuple[str, ...]:
        """Return the parents of an unknown revision, from the record or git, or none."""
        if id in self.applied.recorded:
            return self.applied.recorded[id].parents
        for lost in self.lost(id)[:1]:
            revision = self.committed(lost.commit, lost.path)
            return revision.parents if revision else ()
        return ()

    def committed(self, commit: str, path: str) -> Revision | None:
        """Return the revision in a file of a commit; the path is relative to the root."""
        try:
            return read_revision("\n".join(Git(self.root).lines("show", f"{commit}:./{path}")), self.root / path)
        except RevisionUnreadable:
            return None

    def in_root(self, path: Path) -> str:
        """Return a path for git, relative to the root."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def event_text(event: Event) -> str:
    """Return an event of the record to print."""
    after = f", after {', '.join(event.parents)}" if event.parents else ""
    message = f" {event.message!r}" if event.message else ""
    return f"{event.action} {event.revision}{message}{after}, on {event.applied_at:%F %T} UTC"


def line_of(revision: Revision, variable: str) -> int:
    """Return the number of the line that assigns the variable, or 1 if none does."""
    assigned = assignments(parse(revision.source)).get(variable)
    return assigned.lineno if assigned else 1


def place(revision: Revision, variable: str) -> str:
    """Return the file and line that assign a variable, to print."""
    assert revision.path is not None
    return f"{path_text(revision.path)}, line {line_of(revision, variable)}"


def assigns(revision: Revision, variable: str) -> str:
    """Return the line that assigns a variable, with its place, to print."""
    line = revision.source.splitlines()[line_of(revision, variable) - 1]
    return f"{place(revision, variable)}: {line.strip()}"


def write(revision: Revision, variable: str, ids: Sequence[str], why: str = "") -> Next:
    """Return the step of writing these ids into a variable of a file."""
    value = f'"{ids[0]}"' if len(ids) == 1 else repr(tuple(ids) or None)
    return Next(f"{variable} = {value}", f"{why}In {place(revision, variable)}, write:")


def or_if(condition: str, steps: Sequence[Next]) -> list[Next]:
    """Return steps that are right under a condition only."""
    first, *rest = steps
    return [replace(first, what=f"Or, if {condition}: {first.what}"), *rest]


def shell(path: Path | str) -> str:
    """Return a path quoted for a shell."""
    return shlex.quote(path_text(path) if isinstance(path, Path) else path)
