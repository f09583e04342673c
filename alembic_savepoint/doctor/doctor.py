"""Diagnoses of errors in a revision chain or a database's schema, with evidence and what to run next."""

import sqlite3
from collections.abc import Iterator

import sqlalchemy as sa
from alembic.util import CommandError

from alembic_savepoint.connections import TablesLocked, reading
from alembic_savepoint.doctor.chain_faults import chain_faults
from alembic_savepoint.doctor.diagnosis import KINDS, Case, Diagnosis, Next, event_text, shell
from alembic_savepoint.doctor.model_faults import model_faults
from alembic_savepoint.doctor.schema_faults import LEFT_OVER, SchemaAtHand, schema_faults
from alembic_savepoint.doctor.unknown_revisions import unknown_revision
from alembic_savepoint.history.applied import Applied, edited_revisions, pending_revisions, read_applied
from alembic_savepoint.history.lost_files import Git
from alembic_savepoint.history.revisions import path_text
from alembic_savepoint.project import Project


def diagnose(project: Project, *, models: bool = False) -> list[Diagnosis]:
    """Return all errors, the most serious first; those of the models too, if they are to be compared. Changes nothing.

    The files are read without being executed. Only to compare schemas, and only where they form a history, are they
    run, on a scratch database.
    """
    history = project.history
    try:
        applied = read_applied(project)
        with reading(project.url) as connection:
            case = Case(history, applied, project.root)
            found = [*chain_faults(case), *database_faults(case, connection, project, models=models)]
    except (CommandError, LookupError, sa.exc.SQLAlchemyError) as error:
        found = [*chain_faults(Case(history, Applied([], []), project.root)), unreadable_database(error)]
    return sorted(found, key=lambda diagnosis: list(KINDS).index(diagnosis.kind))


def unreadable_database(error: Exception) -> Diagnosis:
    """Diagnose a database that cannot be read."""
    words = str(getattr(error, "orig", None) or error).splitlines()[0]
    if isinstance(error, CommandError):
        step = Next("alembic-savepoint doctor", "Correct that, or start its server. Then run doctor again:")
    elif isinstance(error, LookupError):
        step = Next("alembic upgrade head", "savepoint_url says which database is meant. To create it:")
    elif isinstance(error, TablesLocked):
        step = Next("alembic-savepoint doctor", "When it is no longer locked, run doctor again:")
    elif isinstance(getattr(error, "orig", None), sqlite3.Error):
        damaged = "If the file is damaged, stop the service, move it away with its -wal and -shm, and load a save:"
        step = Next("alembic-savepoint saves", f"savepoint_url says which database is meant. {damaged}")
    else:
        step = Next(
            "alembic-savepoint doctor",
            "Start the server, or correct savepoint_url (host, port, name, user, password). Then run doctor again:",
        )
    return Diagnosis("database-unreadable", "The database cannot be read.", [words], [step])


def database_faults(
    case: Case, connection: sa.Connection, project: Project, *, models: bool = False
) -> Iterator[Diagnosis]:
    """Yield the errors in the database's revision and schema."""
    unknown = [id for id in case.applied.current if id not in case.history.by_id and id not in case.claimed]
    with SchemaAtHand.of(case, connection, project) as schema:
        # To hold no lock while the revisions run.
        connection.rollback()
        of_schema = [unknown_revision(case, id, schema) for id in unknown] or list(schema_faults(case, schema))
        of_models = list(model_faults(case, schema, connection)) if models else []
    yield from of_schema
    yield from of_models
    yield from schema.obstacles()
    yield from leftover_tables(connection)
    yield from edited_files(case)
    # Pending revisions are known only if alembic_version is right.
    if not case.is_broken and not any(each.kind in ("unversioned", "wrong-revision") for each in of_schema):
        yield from pending(case)


def pending(case: Case) -> Iterator[Diagnosis]:
    """Diagnose revisions that are not applied yet."""
    ids = pending_revisions(case.history, case.applied)
    if ids:
        evidence = [f"alembic_version: {', '.join(case.applied.current) or 'no revision'}"]
        evidence += [f"Pending: {case.named(id)}" for id in ids]
        step = Next("alembic upgrade heads" if len(case.history.heads) > 1 else "alembic upgrade head", "Apply them:")
        count = f"{len(ids)} revisions are" if len(ids) > 1 else "1 revision is"
        yield Diagnosis("behind", f"{count} not applied yet.", evidence, [step])


def leftover_tables(connection: sa.Connection) -> Iterator[Diagnosis]:
    """Diagnose tables left by an interrupted rebuild, of an Alembic without a transaction for example."""
    inspector = sa.inspect(connection)
    tables = inspector.get_table_names()
    for table in tables:
        if not table.startswith(LEFT_OVER):
            continue
        counts = [
            (name, rows_in(connection, name)) for name in (table, table.removeprefix(LEFT_OVER)) if name in tables
        ]
        evidence = [f"{name}: {count:,} {'row' if count == 1 else 'rows'}" for name, count in counts]
        own_name, quote = table.removeprefix(LEFT_OVER), connection.dialect.identifier_preparer.quote
        if len(counts) == 1:
            evidence.append(f"{own_name} is missing: the rows may be only in {table}")
            steps = [
                Next("alembic-savepoint save", "Take a copy before anything else:"),
                Next(
                    f"ALTER TABLE {quote(table)} RENAME TO {quote(own_name)};",
                    "If these are its rows, finish the rebuild, in sqlite3 or psql; doctor then shows what is missing:",
                ),
            ]
        else:
            words = f"When {own_name} has all that is in it (see the counts), in sqlite3 or psql:"
            steps = [Next(f"DROP TABLE {quote(table)};", words)]
        yield Diagnosis("leftover-table", f"A rebuild that was interrupted left {table}.", evidence, steps)


def rows_in(connection: sa.Connection, table: str) -> int:
    """Return the number of rows of a table."""
    return connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0


def edited_files(case: Case) -> Iterator[Diagnosis]:
    """Diagnose applied revisions whose files have changed since."""
    for id in edited_revisions(case.history, case.applied):
        event, revision = case.applied.recorded[id], case.history.by_id[id]
        assert revision.path is not None
        path = case.in_root(revision.path)
        evidence = [
            f"The record of the database: {event_text(event)}, checksum {event.checksum[:12]}…",
            f"{path_text(revision.path)}: checksum {revision.checksum[:12]}…",
        ]
        commit = commit_with(case, path, event.checksum)
        if commit:
            evidence.append(f"Git: commit {commit} has the file as it was applied")
            steps = [Next(f"git checkout {commit} -- {shell(path)}", "Restore what was applied:")]
        else:
            steps = [Next(f"git log -p -- {shell(path)}", "See how it was, and undo the edit:")]
        adds = "If the edit is right, move what it adds into a revision of its own, since nothing applies it here:"
        steps.append(Next(f'alembic revision -m "what was edited in {id}"', adds))
        accepts = "Or, if nothing has to be applied for it, accept the file as it is now:"
        steps.append(Next(f"alembic-savepoint doctor --accept {id}", accepts))
        yield Diagnosis("edited-file", f"{path_text(revision.path)} was edited after it was applied.", evidence, steps)


def commit_with(case: Case, path: str, checksum: str) -> str | None:
    """Return the newest of the last 50 commits of this file in which it has this checksum."""
    commits = Git(case.root).lines("log", "--all", "--max-count=50", "--format=%h", "--", f":(literal){path}")
    for commit in commits:
        revision = case.committed(commit, path)
        if revision and revision.checksum == checksum:
            return commit
    return None
