"""Helpers of the tests of revisions."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from hypothesis import strategies as st

from alembic_savepoint.history import revisions
from alembic_savepoint.history.revisions import read_revision
from tests.support.service import ROOT

VERSIONS = ROOT / "migrations" / "versions"


@dataclass(frozen=True)
class Draft:
    """A revision file to write."""

    id: str
    parents: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    label: str | None = None

    def write(self, folder: Path, name: str | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name or f"{self.id}_a_revision.py")
        # One parent is written as Alembic writes it, several as a tuple.
        parents = self.parents[0] if len(self.parents) == 1 else self.parents or None
        path.write_text(
            f'"""about {self.id}.\n\nRevision ID: {self.id}\nCreate Date: 2026-11-23 01:00:00+00:00\n"""\n'
            f"revision: str = {self.id!r}\ndown_revision = {parents!r}\n"
            f"branch_labels = {self.label!r}\ndepends_on = {self.depends_on or None!r}\n"
        )
        return path


def write_all(folder: Path, *drafts: Draft) -> Path:
    for draft in drafts:
        draft.write(folder)
    return folder


@st.composite
def healthy_histories(draw: st.DrawFn) -> list[Draft]:
    """Any history that Alembic accepts: several roots, branches, merges, dependencies by id or label."""
    names = draw(st.lists(st.text("0123456789abcdef", min_size=4, max_size=12), min_size=1, max_size=12, unique=True))
    drafts: list[Draft] = []
    before: dict[str, set[str]] = {}
    for name in names:
        older = [draft.id for draft in drafts]
        parents: list[str] = []
        for other in draw(st.lists(st.sampled_from(older), max_size=3, unique=True)) if older else []:
            if not any(other in before[parent] or parent in before[other] for parent in parents):
                parents.append(other)
        before[name] = {*parents, *(each for parent in parents for each in before[parent])}
        needed = draw(st.lists(st.sampled_from(older), max_size=1)) if older else []
        labels = {draft.id: draft.label for draft in drafts if draft.label}
        depends_on = tuple(labels.get(other, other) for other in needed if other not in before[name])
        before[name] |= {each for other in needed for each in (other, *before[other])}
        label = f"label_of_{name}" if draw(st.booleans()) else None
        drafts.append(Draft(name, tuple(parents), depends_on, label))
    return drafts


def revision_with(functions: str) -> revisions.Revision:
    return read_revision("revision = 'a1'\ndown_revision = None\n" + dedent(functions))


def upgrade(body: str) -> revisions.Revision:
    """A revision whose upgrade has these statements."""
    return revision_with("def upgrade():\n" + "".join(f"    {line}\n" for line in dedent(body).strip().splitlines()))
