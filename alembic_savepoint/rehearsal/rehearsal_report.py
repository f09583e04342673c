"""The report of a rehearsal, as text and as a JSON document."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alembic_savepoint.guards.losses import losses_text
from alembic_savepoint.rehearsal.trial import Rehearsal, Trial
from alembic_savepoint.rehearsal.watching import Lock, Statement, UnsafeStep
from alembic_savepoint.terminal import plural

# --- for machines -----------------------------------------------------------------------------------------------------


def as_json(rehearsal: Rehearsal) -> dict[str, Any]:
    """Return the report as a JSON document; times are in milliseconds, and null for a failed statement."""
    return {
        "engine": rehearsal.engine,
        "place": rehearsal.place,
        "reason": rehearsal.reason,
        "heads": rehearsal.heads,
        "target": rehearsal.target,
        "direction": rehearsal.direction,
        "revisions": [trial_as_json(trial) for trial in rehearsal.revisions],
        "failure": rehearsal.failure and asdict(rehearsal.failure),
        "is_stored": rehearsal.is_stored,
        "milliseconds": rehearsal.milliseconds,
        "locks": [lock_as_json(lock) for lock in rehearsal.locks],
        "warnings": rehearsal.warnings,
        "notes": rehearsal.notes,
        "command": rehearsal.command,
    }


def trial_as_json(trial: Trial) -> dict[str, Any]:
    """Return one revision; its time is null if it was not reached."""
    return {
        "id": trial.id,
        "message": trial.message,
        "milliseconds": trial.milliseconds,
        "locked_before": trial.locked_before,
        "statements": [
            {
                "sql": statement.sql,
                "kind": statement.kind,
                "milliseconds": statement.milliseconds,
                "rows": statement.rows,
                "locks": [lock_as_json(lock) for lock in statement.locks] if statement.in_transaction else None,
                "findings": [asdict(each) for each in statement.unsafe_steps],
            }
            for statement in trial.statements
        ],
        "losses": trial.losses,
        "findings": [asdict(each) for each in trial.unsafe_steps],
    }


def lock_as_json(lock: Lock) -> dict[str, Any]:
    """Return one lock."""
    return {**asdict(lock), "blocks": lock.blocks}


# --- for people -------------------------------------------------------------------------------------------------------


def as_text(rehearsal: Rehearsal) -> Group:
    """Return each revision with its statements, then a summary."""
    if not rehearsal.revisions:
        return Group(f"There is nothing to do: the database is at {', '.join(rehearsal.heads) or 'base'}.")
    parts: list[RenderableType] = [opening(rehearsal)]
    for trial in rehearsal.revisions:
        parts += ["", title(trial, rehearsal.direction)]
        if trial.milliseconds is not None:
            parts.append(body(trial))
    return Group(*parts, "", *closing(rehearsal))


def opening(rehearsal: Rehearsal) -> Text:
    """Return the first line: where it was run, and who waited."""
    way = f"{', '.join(rehearsal.heads) or 'base'} → {rehearsal.target}"
    if rehearsal.place == "copy":
        return Text(f"{way}, on a copy of the database ({rehearsal.reason}).")
    others = "other writers waited" if rehearsal.engine == "sqlite" else "others waited for its locks"
    return Text(f"{way}, in a transaction on the database itself ({others}).")


def title(trial: Trial, direction: str) -> Text:
    """Return the title of a revision: its id and message."""
    time = "not reached" if trial.milliseconds is None else duration(trial.milliseconds)
    arrow = "↑" if direction == "upgrade" else "↓"
    return Text.assemble((f"{arrow} {trial.id}  {trial.message}", "bold"), (f"  {direction}, {time}", "dim"))


def body(trial: Trial) -> Table:
    """Return the statements of a revision, one a line, and below each its locks and warnings."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=9, no_wrap=True)
    table.add_column(justify="right", min_width=9, no_wrap=True)
    table.add_column()
    if trial.locked_before:
        held = (
            f"{', '.join(trial.locked_before)}: locked already by a revision above; --copy shows the locks of this one"
        )
        table.add_row("", "", Text(held, "dim"))
    around = [statement for statement in trial.statements if not is_shown(statement)]
    for statements in in_loops(filter(is_shown, trial.statements)):
        add_statements(table, statements)
    if around:
        time = duration(sum(statement.milliseconds or 0 for statement in around))
        table.add_row(Text(time, "dim"), "", Text(f"{len(around)} more, of Alembic and Savepoint", "dim"))
    for unsafe in (*losses_of(trial), *trial.unsafe_steps):
        table.add_row("", "", words_of(unsafe))
    return table


def in_loops(statements: Iterable[Statement]) -> Iterator[list[Statement]]:
    """Yield the statements in order; repeated ones together, at the place of the first."""
    alike: dict[str, list[Statement]] = {}
    for statement in (listed := list(statements)):
        alike.setdefault(statement.sql, []).append(statement)
    for statement in listed:
        same = alike[statement.sql]
        if len(same) <= OFTEN:
            yield [statement]
        elif statement is same[0]:
            yield same


OFTEN = 3


def is_shown(statement: Statement) -> bool:
    """Return whether the revision sent it, it blocks others, or it failed."""
    return (
        statement.kind == "revision"
        or statement.milliseconds is None
        or bool(statement.unsafe_steps)
        or any(lock.is_felt for lock in statement.locks)
    )


def add_statements(table: Table, statements: list[Statement]) -> None:
    """Add a statement in one line, however often it was sent, with its locks and warnings."""
    time = duration(sum(statement.milliseconds or 0 for statement in statements))
    rows = [statement.rows for statement in statements if statement.rows is not None]
    sql = " ".join(statements[0].sql.split())
    times = f"{len(statements):,} × " if len(statements) > 1 else ""
    failed = [statement.error for statement in statements if statement.milliseconds is None]
    table.add_row(
        Text("failed", "bold red") if failed else time,
        plural(sum(rows), "row") if rows else "",
        Text(f"{times}{sql}", no_wrap=True, overflow="ellipsis"),
    )
    for error in failed:
        add_below(table, Text(str(error).partition("\n")[0], "red"))
    locks = sorted((lock for statement in statements for lock in statement.locks), key=by_strength)
    for _, of_a_mode in groupby(locks, by_strength):
        add_below(table, lock_line(list(of_a_mode)))
    if not all(statement.in_transaction for statement in statements):
        add_below(table, Text("outside of transactions, so its locks are not shown", "dim"))
    by_rule = {unsafe.rule: unsafe for statement in reversed(statements) for unsafe in statement.unsafe_steps}
    for unsafe in by_rule.values():
        add_below(table, words_of(unsafe))


def add_below(table: Table, text: Text) -> None:
    """Add a line about the statement above."""
    table.add_row("", "", Padding(text, (0, 0, 0, 2)))


def lock_line(locks: list[Lock]) -> Text:
    """Return a line about the locks of one mode: whom they block, and how long."""
    lock, tables = locks[0], ", ".join(lock.table for lock in locks)
    time = f" for {duration(lock.milliseconds)}" if lock.is_felt else ""
    return Text(f"{tables}: {lock.mode}, blocks {lock.blocks}{time}", "cyan" if lock.is_felt else "dim")


def losses_of(trial: Trial) -> Iterator[UnsafeStep]:
    """Yield the losses, as one warning."""
    if trial.losses:
        yield UnsafeStep("data-loss", f"It loses data ({losses_text(trial.losses)}).", "")


def words_of(unsafe: UnsafeStep) -> Text:
    """Return a warning, what to do instead, and the name of the rule."""
    text = Text.assemble((f"! {unsafe.message}", "yellow"), f" {unsafe.help}" if unsafe.help else "")
    return text.append(f" [{unsafe.rule}]", "dim")


by_strength = attrgetter("strength")


def closing(rehearsal: Rehearsal) -> Iterator[RenderableType]:
    """Yield the summary: who waits, how many warnings there are, and what to do next."""
    yield from waiting(rehearsal)
    for note in rehearsal.notes:
        yield Text(note, "yellow")
    if failure := rehearsal.failure:
        where = f" ({failure.where})" if failure.where else ""
        yield Text(f"FAILED in {failure.revision}{where}: {failure.error}", "bold red")
    if rehearsal.warnings:
        yield Text(f"{plural(rehearsal.warnings, 'warning')}, marked ! above.", "bold yellow")
    elif not rehearsal.failure:
        yield Text("No warnings.", "bold green")
    if rehearsal.place == "copy":
        yield Text("The copy is removed, and the database was only read.")
    elif rehearsal.is_stored:
        yield Text("Not rolled back: the revision committed past SQLAlchemy, and what it did is stored.", "bold red")
    else:
        yield Text("Rolled back: the database is as it was.")


def waiting(rehearsal: Rehearsal) -> Iterator[RenderableType]:
    """Yield how long it takes, and who waits how long."""
    longest = max((trial.milliseconds or 0 for trial in rehearsal.revisions), default=0)
    yield Text(f"{plural(len(rehearsal.revisions), 'revision')} in {duration(rehearsal.milliseconds)}.")
    if rehearsal.engine == "sqlite":
        yield Text(f"Writers wait until a revision has ended, up to {duration(longest)}; readers do not wait.")
        return
    felt = [lock for lock in rehearsal.locks if lock.is_felt]
    if not felt:
        yield Text("No existing table is locked against reads or writes.")
        return
    table = Table.grid(padding=(0, 3, 0, 0))
    for lock in felt:
        table.add_row(f"  {lock.table}", lock.mode, f"blocks {lock.blocks}", f"for {duration(lock.milliseconds)}")
    yield Text("The strongest lock on each table, held until its revision ends:")
    yield table


def duration(milliseconds: float) -> str:
    """Return a time in a suitable unit."""
    if milliseconds < 0.1:
        return "< 0.1 ms"
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:,.1f} s"
