"""What is known to be unsafe in a migration: squawk's rules on PostgreSQL, and what took long or touched much."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from migrations.revisions import Direction
from migrations.watching import Finding, Lock, Statement, Watch

MANY_ROWS = 100_000
"""How many rows one statement may touch before it is remarked on."""
SLOW = 1000.0
"""Milliseconds that a statement may take, or a lock be held that keeps others waiting."""


def slow_or_large(statement: Statement) -> Iterator[Finding]:
    """What a statement shows when it is run."""
    rows = statement.rows or 0
    seconds = (statement.milliseconds or 0) / 1000
    if rows > MANY_ROWS:
        yield Finding(
            "many-rows",
            f"It touches {rows:,} rows at once, in {seconds:.1f} s.",
            "What can be done in parts, before or after the migration, keeps nobody waiting.",
        )
    elif (statement.milliseconds or 0) > SLOW:
        yield Finding("slow-statement", f"It takes {seconds:.1f} s.", "Until it ends, others wait for what is locked.")


def long_held(lock: Lock) -> Iterator[Finding]:
    """What a lock shows when its transaction has ended."""
    if lock.is_felt and lock.milliseconds > SLOW:
        yield Finding(
            "long-lock",
            f"{lock.blocks.capitalize()} of {lock.table} wait for {lock.milliseconds / 1000:.1f} s.",
            "What need not be in the same transaction belongs in a revision of its own.",
        )


# --- NOT NULL ---------------------------------------------------------------------------------------------------------


def nullable_columns(watch: Watch) -> dict[tuple[str, str], bool]:
    """Every column, by its table and name as SQL has them, and whether it may be null."""
    rows = watch.execute(COLUMNS[watch.connection.dialect.name])
    return {(table, column): bool(nullable) for table, column, nullable in rows}


def newly_required(
    watch: Watch, before: dict[tuple[str, str], bool], after: dict[tuple[str, str], bool]
) -> Iterator[Finding]:
    """The columns that could be null, must not any more, and are in a table with rows."""
    for (table, column), is_nullable in after.items():
        became_required = before.get((table, column), False) and not is_nullable
        if became_required and watch.execute(f"SELECT 1 FROM {table} LIMIT 1"):  # noqa: S608
            yield Finding(
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


# --- squawk -----------------------------------------------------------------------------------------------------------

NOT_ASKED = {
    "prefer-text-field": "models.py limits texts, alike on both engines",
    "prefer-identity": "Alembic writes SERIAL",
    "prefer-bigint-over-int": "a matter of the model, which no migration in use suffers from",
    "prefer-bigint-over-smallint": "as above",
    "prefer-robust-stmts": "a revision is whole or not at all, so none begins anew half-way",
    "require-lock-timeout": "migrating.py sets it",
    "require-statement-timeout": "what has its locks may take its time",
    "adding-not-nullable-field": "`newly_required` says it, where there are rows",
    "ban-concurrent-index-creation-in-transaction": "it would have failed here",
    "require-concurrent-index-deletion": "it takes no time; `long_held` says where the lock is kept",
}
"""Rules that make no sense here, and why."""
NOT_ASKED_DOWN = {
    "ban-drop-table": "what a downgrade is for; losses.py counts what goes with it",
    "ban-drop-column": "as above",
    "ban-drop-constraint": "as above",
}
"""Rules that make no sense in a downgrade, and why."""


def ask_squawk(revisions: Sequence[Sequence[Statement]], direction: Direction, version: str) -> str | None:
    """Add what squawk finds to the statements of each revision; the reason where it could not be asked."""
    path = shutil.which("squawk", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        return "squawk is not installed (pip install -r requirements.txt), so its rules were not applied."
    # Values are not part of the text, and without them it is not SQL; such a statement changes rows, not tables.
    asked = [[each for each in sent if each.kind == "revision" and not each.has_parameters] for sent in revisions]
    excluded = [*NOT_ASKED, *(NOT_ASKED_DOWN if direction == "downgrade" else ())]
    command = [path, "--reporter=json", "--assume-in-transaction", f"--pg-version={version}"]
    command += [f"--exclude={','.join(excluded)}"]
    try:
        found = list(answers(command, asked))
        unread = [statement for statement, finding in found if finding.rule == "syntax-error"]
        if unread:
            # It says nothing of the others in a file where it cannot read one.
            asked = [[each for each in sent if not any(each is one for one in unread)] for sent in asked]
            found = list(answers(command, asked))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"squawk failed, so its rules were not applied: {error}"
    for statement, finding in found:
        statement.findings.append(finding)
    return None


def answers(command: list[str], asked: Sequence[Sequence[Statement]]) -> Iterator[tuple[Statement, Finding]]:
    """Run squawk over one file for each revision: what it finds, with the statement that it is about."""
    with tempfile.TemporaryDirectory(prefix="savepoint-") as folder:
        lines: dict[str, list[Statement]] = {}
        for number, statements in enumerate(asked):
            name = f"{number}.sql"
            texts = [f"{statement.sql.rstrip().rstrip(';')}\n;\n" for statement in statements]
            Path(folder, name).write_text("".join(texts), encoding="utf-8")
            lines[name] = [
                statement for statement, text in zip(statements, texts, strict=True) for _ in text.splitlines()
            ]
        # In that folder, where no configuration is.
        run = subprocess.run(  # noqa: S603
            [*command, *lines], cwd=folder, capture_output=True, encoding="utf-8", check=False, timeout=60
        )
        if run.returncode not in (0, 1):
            raise ValueError(run.stderr.strip() or f"exit code {run.returncode}")
        for each in json.loads(run.stdout or "[]"):
            yield lines[each["file"]][each["line"]], as_finding(each)


def as_finding(answer: dict[str, Any]) -> Finding:
    """A finding in squawk's JSON."""
    return Finding(answer["rule_name"], answer["message"], answer["help"] or "")
