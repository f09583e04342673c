"""Errors in the revision files themselves; none is executed, and no database is needed."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from alembic_savepoint.doctor.diagnosis import Case, Diagnosis, Next, assigns, shell, write
from alembic_savepoint.history.lost_files import Git
from alembic_savepoint.history.revisions import History, Revision, path_text


def chain_faults(case: Case) -> Iterator[Diagnosis]:
    """Yield a diagnosis for each error."""
    for path, fault in case.history.unreadable.items():
        yield unreadable_file(case, path, fault)
    for id in case.history.duplicates:
        yield duplicate_id(case, id)
    for cycle in case.history.cycles:
        yield circle(case, cycle)
    missing = dict.fromkeys(id for ids in case.history.missing_parents.values() for id in ids)
    # Its file may be there, and not be readable; that is reported already.
    for id in missing:
        if id not in case.claimed:
            yield missing_parent(case, id)
    heads = [id for id in case.history.heads if not is_torn_off(case, id)]
    if len(heads) > 1:
        yield several_heads(case, heads)


def unreadable_file(case: Case, path: Path, fault: str) -> Diagnosis:
    """Diagnose a file that Python or Alembic cannot read either."""
    evidence = [f"{path_text(path)}: {fault}"]
    before = case.committed("HEAD", case.in_root(path))
    if before:
        evidence.append(f"Git: in the last commit it can be read, as revision {before.id} {before.message!r}")
        steps = [
            Next(f"git diff HEAD -- {shell(path)}", "See what was changed since the last commit:"),
            Next(f"git checkout HEAD -- {shell(path)}", "Fix that, or discard it and restore the committed file:"),
        ]
    elif Git(case.root).lines("log", "-1", "--format=%h", "--", case.in_root(path)):
        steps = [Next(f"git log -p -- {shell(path)}", "See how it was, and fix it:")]
    else:
        steps = [Next(None, "Git does not know this file. Fix it, or move it away if it is no revision.")]
    return Diagnosis("unreadable-file", f"{path_text(path)} cannot be read as a revision.", evidence, steps)


def duplicate_id(case: Case, id: str) -> Diagnosis:
    """Diagnose files with one id, of which Alembic would take the one that it reads last."""
    files = [revision for revision in case.history.revisions if revision.id == id]
    evidence = [f"{assigns(revision, 'revision')}  ({revision.message!r})" for revision in files]
    original, why = original_of(case, files)
    evidence += why
    if len({revision.checksum for revision in files}) == 1:
        evidence.append("Their contents are the same")
        kept = original or min(files, key=lambda revision: len(str(revision.path)))
        steps = [Next(f"rm {shell(each.path)}", "Delete the copy:") for each in files if each is not kept and each.path]
        return Diagnosis("duplicate-id", f"{len(files)} files have the id {id}.", evidence, steps)
    if original is None:
        first = "Nothing shows which of them came later. Give that one an id of its own. "
        steps = [write(revision, "revision", [new_id(revision)], first if revision is files[0] else "Or this one. ")
                 for revision in files]  # fmt: skip
        return Diagnosis("duplicate-id", f"{len(files)} files have the id {id}.", evidence, steps)
    steps = []
    others = [revision for revision in files if revision is not original]
    rest = History(tuple(revision for revision in case.history.revisions if revision not in others), {})
    last = rest.heads
    for other in others:
        steps.append(write(other, "revision", [new_id(other)], "Give the later file an id of its own. "))
        if other.parents == original.parents and len(last) == 1:
            steps.append(write(other, "down_revision", last, "And make it the last one, since both have one parent. "))
            last = [new_id(other)]
    return Diagnosis("duplicate-id", f"{len(files)} files have the id {id}.", evidence, steps)


def original_of(case: Case, files: list[Revision]) -> tuple[Revision | None, list[str]]:
    """Return the file that had the id first, with the evidence in the record or git; None without any."""
    event = case.applied.recorded.get(files[0].id)
    applied = [revision for revision in files if event and revision.checksum == event.checksum]
    if event and len(applied) == 1 and applied[0].path:
        return applied[0], [
            f"The record of the database: {path_text(applied[0].path)} is what was applied on"
            f" {event.applied_at:%F %T} UTC (checksum {event.checksum[:12]}…)"
        ]
    known = [revision for revision in files if revision.path and case.committed("HEAD", case.in_root(revision.path))]
    if len(known) == 1 and known[0].path:
        return known[0], [f"Git: of these files, only {path_text(known[0].path)} is in the last commit"]
    return None, []


def new_id(revision: Revision) -> str:
    """Return an id like Alembic's, the same for each reading of this file."""
    return replace(revision, source=f"{revision.path}\n{revision.source}").checksum[:12]


def circle(case: Case, cycle: list[str]) -> Diagnosis:
    """Diagnose revisions that need each other, so that none can be the first."""
    revisions = [case.history.by_id[id] for id in cycle]
    evidence = [assigns(revision, variable_with(revision, cycle)) for revision in revisions]
    steps: list[Next] = []
    for revision in revisions:
        for line, step in earlier(case, revision):
            evidence.append(line)
            steps.append(step)
    if not steps:
        files = " ".join(shell(revision.path) for revision in revisions if revision.path)
        steps = [Next(f"git log -p -- {files}", "See these lines as they were first committed, and restore them:")]
    alone = f"{cycle[0]} comes after itself." if len(cycle) == 1 else f"{', '.join(cycle)} come after one another."
    return Diagnosis("cycle", alone, evidence, steps[:1])


def variable_with(revision: Revision, ids: list[str]) -> str:
    """Return the variable of the file that names one of these revisions."""
    return "down_revision" if set(ids) & set(revision.parents) else "depends_on"


def missing_parent(case: Case, missing: str) -> Diagnosis:
    """Diagnose a parent that was deleted, never committed, or is misspelled."""
    children = [case.history.by_id[id] for id, ids in case.history.missing_parents.items() if missing in ids]
    evidence = [assigns(child, variable_with(child, [missing])) for child in children]
    evidence += [*case.record_of(missing), *case.lost_of(missing)]
    steps = [Next(lost.command, "Restore the file:") for lost in case.lost(missing)[:1]]
    if not steps:
        for child in children:
            for line, step in earlier(case, child):
                evidence.append(line)
                steps.append(step)
        steps = steps[:1] or [guess(case, child, missing) for child in children]
    files = ", ".join(child.id for child in children)
    return Diagnosis(
        "missing-parent", f"No file has the revision {missing}, after which {files} comes.", evidence, steps
    )


def earlier(case: Case, revision: Revision) -> Iterator[tuple[str, Next]]:
    """Yield the parents of a revision in the last commit and the record, where its file now has others."""
    assert revision.path is not None
    before = case.committed("HEAD", case.in_root(revision.path))
    if before and before.id == revision.id and before.parents != revision.parents:
        parents = ", ".join(before.parents) or "nothing"
        yield (
            f"Git: in the last commit {path_text(revision.path)} comes after {parents}",
            Next(f"git checkout HEAD -- {shell(revision.path)}", "Restore the committed file:"),
        )
    event = case.applied.recorded.get(revision.id)
    if event and event.parents != revision.parents and set(event.parents) <= case.history.by_id.keys():
        yield (
            f"The record of the database: {parents_text(revision.id, event.parents)}",
            write(revision, "down_revision", event.parents, "As it was applied. "),
        )


def parents_text(id: str, parents: tuple[str, ...]) -> str:
    """Return in words which parents a revision had when it was applied."""
    return f"{id} was applied after {', '.join(parents) or 'nothing'}"


def guess(case: Case, child: Revision, missing: str) -> Next:
    """Suggest a parent where neither git nor the record has one."""
    others = [id for id in case.history.by_id if id != child.id and child.id not in case.history.ancestors(id)]
    variable = variable_with(child, [missing])
    if similar := get_close_matches(missing, others, 1, 0.75):
        return write(child, variable, similar, f"It may be a misspelled {similar[0]}. ")
    last = [id for id in case.history.heads if id in others]
    if len(last) == 1:
        why = "Neither git nor the record knows it. Get the file from its author; or, if that revision never existed, "
        step = write(child, variable, last)
        return Next(step.command, f"{why}{step.what[0].lower()}{step.what[1:]}")
    return Next(None, f"Neither git nor the record knows {missing}. Get its file from its author.")


def is_torn_off(case: Case, head: str) -> bool:
    """Return whether it is a head only because of an error below it, or of an unreadable file."""
    line = {head, *case.history.ancestors(head)}
    gone = any(line & case.history.missing_parents.keys())
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in case.history.unreadable if path.exists())
    return gone or any(line & set(cycle) for cycle in case.history.cycles) or any(head in text for text in texts)


def several_heads(case: Case, heads: list[str]) -> Diagnosis:
    """Diagnose several heads, for example of two branches that were merged."""
    current = case.applied.current
    done = {*current, *case.history.ancestors(*(id for id in current if id in case.history.by_id))}
    evidence = [f"{case.named(id)}: {'applied' if id in done else 'not applied'}" for id in heads]
    steps = [
        Next(f'alembic merge -m "merge {" and ".join(heads)}" {" ".join(heads)}', "Join them in a new revision:"),
        Next("alembic upgrade heads", "Then apply what is pending:"),
    ]
    return Diagnosis("several-heads", f"Nothing comes after any of {', '.join(heads)}.", evidence, steps)
