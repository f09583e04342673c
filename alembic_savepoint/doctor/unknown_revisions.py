"""A database at a revision that no file has: the cause, and how to bring code and database together again."""

import shlex
from dataclasses import dataclass, replace

from alembic_savepoint.doctor.diagnosis import Case, Diagnosis, Next, or_if, shell
from alembic_savepoint.doctor.schema_faults import SchemaAtHand
from alembic_savepoint.history.lost_files import Git, Lost


@dataclass(frozen=True, slots=True)
class Line:
    """The revisions from one that no file has down to those that files have, as far as the record and git show."""

    unknown: list[str]
    known: list[str]
    """The newest of its revisions that files have."""
    is_whole: bool


def line_down(case: Case, id: str) -> Line:
    """Follow the parents of a revision."""
    unknown: list[str] = []
    known: set[str] = set()
    is_whole = True
    todo = [id]
    while todo:
        id = todo.pop(0)
        if id in case.history.by_id:
            known.add(id)
        elif id not in unknown:
            unknown.append(id)
            parents = case.parents_of(id)
            is_whole = is_whole and bool(parents)
            todo += parents
    return Line(unknown, sorted(known - case.history.ancestors(*known)), is_whole)


def unknown_revision(case: Case, id: str, schema: SchemaAtHand) -> Diagnosis:
    """Diagnose why no file has the revision that the database is at."""
    line = line_down(case, id)
    evidence = [f"alembic_version: {id}, which no revision file has"]
    for each in line.unknown:
        evidence += [*case.record_of(each), *case.lost_of(each)]
    deleted = [(lost, *deletion) for each in line.unknown for lost in case.lost(each) if (deletion := gone(case, lost))]
    if deleted:
        evidence += [text for _, text in deleted]
        steps = [Next(lost.command, "Restore the file:") for lost, _ in deleted]
        found = Diagnosis("lost-file", f"The database is at {id}, whose file was lost.", evidence, steps)
        kept = (case.committed("HEAD", lost.path) for lost in case.lost(id))
        is_committed = all(file is None or file.id != id for file in kept)
        replaced = "other files replace it on purpose, as after a squash"
        return or_repaired(found, schema, replaced) if is_committed else found
    if line.is_whole and set(case.history.heads) <= set(line.known):
        evidence.append(f"The files end at {' and at '.join(map(case.named, line.known))}, and it comes after that")
        why = f"The database is at {id}, ahead of this code, which is an old image or checkout."
        found = Diagnosis("ahead", why, evidence, steps_back(case, line))
        return or_written_again(case, line, schema, found)
    if case.lost(id) or line.known:
        evidence += [f"It branched off from these files after {case.named(each)}" for each in line.known]
        branches = branches_of(case, line)
        where = f"the branch {branches[0]}" if branches else "a branch that is not here"
        found = Diagnosis("foreign-branch", f"The database is at {id}, of {where}.", evidence, steps_back(case, line))
        return or_written_again(case, line, schema, found)
    evidence.append("Nothing links it to these files, neither the record of the database nor git")
    like = schema.likeness()
    why = f"The database is at {id}, of which nothing is known."
    return Diagnosis("unknown-revision", why, [*evidence, *like.lines], like.steps, like.restamp)


def or_repaired(found: Diagnosis, schema: SchemaAtHand, condition: str) -> Diagnosis:
    """Return the diagnosis, with the steps to another revision if one has the live schema, under a condition."""
    like = schema.likeness()
    if not like.exact:
        return found
    evidence, steps = [*found.evidence, *like.lines], [*found.next_commands, *or_if(condition, like.steps)]
    return replace(found, evidence=evidence, next_commands=steps, restamp=like.restamp)


def or_written_again(case: Case, line: Line, schema: SchemaAtHand, found: Diagnosis) -> Diagnosis:
    """Return the diagnosis, with the ways on if git has none of the files: they may be lost for good."""
    if any(map(case.lost, line.unknown)):
        return found
    id, is_lost = line.unknown[0], "its file is lost for good"
    # Without git, or in a shallow clone, the file is likely to be elsewhere.
    if Git(case.root).lines("rev-parse", "--is-shallow-repository") == ["false"]:
        why = f"The database is at {id}, of which only the record is left: no commit here has its file."
        found = or_repaired(replace(found, summary=why), schema, is_lost)
    if found.restamp:
        return found
    after = " and ".join(line.known)
    evidence = [f"What was changed after {after}: {each}" for each in schema.against(line.known)]
    message = shlex.quote(case.applied.recorded[id].message or id)
    if len(line.known) == 1:
        splice = "" if line.known[0] in case.history.heads else "--splice "
        command = f"alembic revision --rev-id {id} --head {after} {splice}-m {message}"
    else:
        command = f"alembic merge --rev-id {id} -m {message} {' '.join(line.known)}"
    steps = [
        Next(command, "Make it again, and write the changes above into its upgrade() and downgrade():"),
        Next(f"alembic-savepoint doctor --accept {id}", "Then accept that file as the one that was applied:"),
    ]
    return replace(
        found, evidence=[*found.evidence, *evidence], next_commands=[*found.next_commands, *or_if(is_lost, steps)]
    )


def gone(case: Case, lost: Lost) -> tuple[str] | None:
    """Return how this branch lost a file; None if it never had it."""
    path = f":(literal){lost.path}"
    history = ("log", "-1", "--full-history", "--format=%h of %cI, %s")
    if not Git(case.root).lines(*history, "HEAD", "--", path):
        return None
    here = next((each for each in case.history.revisions if each.path and case.in_root(each.path) == lost.path), None)
    if here:
        return (f"Git: {lost.path} had this id, and is {here.id} {here.message!r} now",)
    deletions = Git(case.root).lines(*history, "--diff-filter=D", "HEAD", "--", path)
    if case.committed("HEAD", lost.path) or not deletions:
        return (f"Git: {lost.path} is in the last commit, and not in the folder",)
    return (f"Git: {lost.path} was deleted by commit {deletions[0]}",)


def branches_of(case: Case, line: Line) -> list[str]:
    """Return the branches that have the newest of the unknown files, local ones first."""
    return [branch for lost in case.lost(line.unknown[0])[:1] for branch in lost.branches]


def steps_back(case: Case, line: Line) -> list[Next]:
    """Return the steps that bring code and database together again; never a stamp, since the schema differs."""
    [meeting] = line.known if len(line.known) == 1 else [None]
    branches = branches_of(case, line)
    steps = []
    if branches:
        branch = shell(branches[0])
        steps += [
            Next(f"git checkout {branch}", "To continue with the code that has it:"),
            Next(f"git merge {branch}", "Or to have it here as well; doctor then shows any conflict:"),
        ]
        if meeting:
            back = f"git checkout {branch} && alembic downgrade {meeting} && git checkout -"
            steps.append(Next(back, "Or to take the database back to what this code knows:"))
    else:
        steps.append(Next(None, "To continue with it, deploy the code that migrated the database again."))
        if meeting:
            back = f"alembic downgrade {meeting}"
            steps.append(Next(back, "Or to take the database back to what this code knows, run with that code:"))
    files = [found[0].command for id in line.unknown if (found := case.lost(id))]
    if files:
        steps.append(Next(" && ".join(files), "Or to restore only those of its files that git has:"))
    return steps
