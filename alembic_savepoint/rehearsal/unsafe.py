"""Unsafe steps of a migration: squawk's rules on PostgreSQL, and what took long or touched many rows."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alembic_savepoint.history.revisions import Direction
from alembic_savepoint.rehearsal.watching import Lock, Statement, UnsafeStep, Watch, mentions

MANY_ROWS = 100_000
"""The number of rows that one statement may touch without a warning."""
SLOW = 1000.0
"""The milliseconds that a statement may take, or a lock may block others, without a warning."""


def slow_or_large(statement: Statement) -> Iterator[UnsafeStep]:
    """Yield a warning about the time and rows of a statement."""
    rows = statement.rows or 0
    seconds = (statement.milliseconds or 0) / 1000
    if rows > MANY_ROWS:
        yield UnsafeStep(
            "many-rows",
            f"It touches {rows:,} rows at once, in {seconds:.1f} s.",
            "If it can be done in parts, before or after the migration, others need not wait.",
        )
    elif (statement.milliseconds or 0) > SLOW:
        yield UnsafeStep(
            "slow-statement", f"It takes {seconds:.1f} s.", "Until it ends, others wait for what is locked."
        )


def long_held(lock: Lock) -> Iterator[UnsafeStep]:
    """Yield a warning about a lock that blocked others for long."""
    if lock.is_felt and lock.milliseconds > SLOW:
        yield UnsafeStep(
            "long-lock",
            f"{lock.blocks.capitalize()} of {lock.table} wait for {lock.milliseconds / 1000:.1f} s.",
            "Move what need not be in the same transaction into a revision of its own.",
        )


# --- NOT NULL ---------------------------------------------------------------------------------------------------------


def nullable_columns(watch: Watch) -> dict[tuple[str, str], bool]:
    """Return whether each column may be null, by its table and name as in SQL."""
    rows = watch.execute(COLUMNS[watch.connection.dialect.name])
    return {(table, column): bool(nullable) for table, column, nullable in rows}


def newly_required(
    watch: Watch, before: dict[tuple[str, str], bool], after: dict[tuple[str, str], bool]
) -> Iterator[UnsafeStep]:
    """Yield the columns that become NOT NULL in a table with rows."""
    for (table, column), is_nullable in after.items():
        # Table and column are quoted.
        became_required = before.get((table, column), False) and not is_nullable
        if became_required and watch.execute(f"SELECT 1 FROM {table} LIMIT 1"):  # noqa: S608  # nosec B608
            yield UnsafeStep(
                "newly-required",
                f"{table.strip(chr(34))}.{column} becomes NOT NULL in a table that has rows: all are read while others "
                "wait, and code that leaves it out fails from then on.",
                "First deploy the code that always fills it.",
            )


COLUMNS = {
    "sqlite": """
        SELECT '"' || replace(tables.name, '"', '""') || '"', columns.name, NOT columns."notnull"
        FROM sqlite_master AS tables, pragma_table_xinfo(tables.name) AS columns WHERE tables.type = 'table'
    """,
    "postgresql": """
        SELECT attrelid::regclass::text, quote_ident(attname), NOT attnotnull
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p') AND relnamespace NOT IN
            ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    """,
}


# --- enums ------------------------------------------------------------------------------------------------------------


def enums_of(watch: Watch) -> dict[str, bool]:
    """Return whether a column has each native enum of PostgreSQL, by its name as in SQL."""
    return {name: bool(is_used) for name, is_used in watch.execute(ENUMS)} if watch.is_postgresql else {}


def left_behind(
    before: dict[str, bool], after: dict[str, bool], direction: Direction, other_way: str
) -> Iterator[UnsafeStep]:
    """Yield the enums that nobody drops, so that the next upgrade fails; `other_way` is the downgrade's code."""
    for name, is_used in after.items():
        if direction == "downgrade" and before.get(name) and not is_used:
            said = f"The downgrade leaves the type {name} behind, so that the next upgrade fails: it already exists."
        elif direction == "upgrade" and name not in before and not drops_type(other_way, name.rpartition(".")[2]):
            said = (
                f"The downgrade does not drop the type {name}, so that the upgrade after it fails: it already exists."
            )
        else:
            continue
        yield UnsafeStep("enum-left-behind", said, f'Write in downgrade(), in the end: op.execute("DROP TYPE {name}")')


def drops_type(code: str, name: str) -> bool:
    """Return whether a revision's code has DROP TYPE, or an Enum's drop, besides the name."""
    return mentions(code, name) and re.search(r"\bDROP\s+TYPE\b|\.drop\(", code, re.IGNORECASE) is not None


ENUMS = """
    SELECT pg_type.oid::regtype::text, EXISTS (
        SELECT FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid AND relkind IN ('r', 'p')
        WHERE atttypid IN (pg_type.oid, typarray) AND NOT attisdropped)
    FROM pg_type WHERE typtype = 'e' AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_type.oid AND deptype = 'e')
"""


# --- squawk -----------------------------------------------------------------------------------------------------------

NOT_ASKED = {
    "prefer-text-field": "the models limit texts, alike on both engines",
    "prefer-identity": "Alembic writes SERIAL",
    "prefer-bigint-over-int": "a matter of the model, which no migration in use suffers from",
    "prefer-bigint-over-smallint": "as above",
    "prefer-robust-stmts": "a revision is whole or not at all, so none restarts half-way",
    "require-lock-timeout": "migrating.py sets it",
    "require-statement-timeout": "a statement that has its locks may run long",
    "adding-not-nullable-field": "`newly_required` warns, if there are rows",
    "ban-concurrent-index-creation-in-transaction": "it would have failed here",
    "require-concurrent-index-deletion": "it takes no time; `long_held` warns if the lock is held",
}
"""Rules that do not apply here, and why."""
NOT_ASKED_DOWN = {
    "ban-drop-table": "the purpose of a downgrade; losses.py counts what is lost",
    "ban-drop-column": "as above",
    "ban-drop-constraint": "as above",
}
"""Rules that do not apply to a downgrade, and why."""


def ask_squawk(revisions: Sequence[Sequence[Statement]], direction: Direction, version: str) -> str | None:
    """Add squawk's warnings to the statements of each revision; return why it could not be run, or None."""
    path = shutil.which("squawk", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        return "squawk is not installed (pip install -r requirements.txt), so its rules were not applied."
    # Without the values of its parameters, a statement is not SQL; those that have some change rows, not tables.
    asked = [[each for each in sent if each.kind == "revision" and not each.has_parameters] for sent in revisions]
    excluded = [*NOT_ASKED, *(NOT_ASKED_DOWN if direction == "downgrade" else ())]
    command = [path, "--reporter=json", "--assume-in-transaction", f"--pg-version={version}"]
    command += [f"--exclude={','.join(excluded)}"]
    try:
        found = list(answers(command, asked))
        unread = [statement for statement, unsafe in found if unsafe.rule == "syntax-error"]
        if unread:
            # If it cannot read one statement of a file, it reports nothing about the others.
            asked = [[each for each in sent if not any(each is one for one in unread)] for sent in asked]
            found = list(answers(command, asked))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"squawk failed, so its rules were not applied: {error}"
    for statement, unsafe in found:
        statement.unsafe_steps.append(unsafe)
    return None


def answers(command: list[str], asked: Sequence[Sequence[Statement]]) -> Iterator[tuple[Statement, UnsafeStep]]:
    """Run squawk over one file for each revision, and yield its warnings, each with its statement."""
    with tempfile.TemporaryDirectory(prefix="savepoint-") as folder:
        lines: dict[str, list[Statement]] = {}
        for number, statements in enumerate(asked):
            name = f"{number}.sql"
            texts = [f"{statement.sql.rstrip().rstrip(';')}\n;\n" for statement in statements]
            Path(folder, name).write_text("".join(texts), encoding="utf-8")
            lines[name] = [
                statement for statement, text in zip(statements, texts, strict=True) for _ in text.splitlines()
            ]
        # No shell takes part. In that folder, which has no configuration.
        run = subprocess.run(  # noqa: S603  # nosec B603
            [*command, *lines], cwd=folder, capture_output=True, encoding="utf-8", check=False, timeout=60
        )
        if run.returncode not in (0, 1):
            raise ValueError(run.stderr.strip() or f"exit code {run.returncode}")
        for each in json.loads(run.stdout or "[]"):
            yield lines[each["file"]][each["line"]], as_unsafe_step(each)


def as_unsafe_step(answer: dict[str, Any]) -> UnsafeStep:
    """Return a warning from squawk's JSON."""
    return UnsafeStep(answer["rule_name"], answer["message"], answer["help"] or "")
