"""Saves of PostgreSQL: pg_dump, and its dump restored in one transaction."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, filterfalse, islice
from pathlib import Path

import psycopg
import sqlalchemy as sa
from psycopg import sql

from alembic_savepoint.backup.postgresql_contents import (
    contents_of_postgresql,
    extensions_of_postgresql,
    foreign_rows_of_postgresql,
    revision_of_postgresql,
    rows_of_postgresql,
    schemas_of_postgresql,
    server_version,
    tables_of_postgresql,
)
from alembic_savepoint.backup.postgresql_programs import complaint, libpq, start
from alembic_savepoint.backup.postgresql_replacing import (
    copy_rows,
    create_extensions,
    create_schemas,
    drop_objects,
    identifiers,
    lock_tables,
    statements_of,
    with_advice,
)
from alembic_savepoint.backup.save_files import (
    NO_TABLES,
    UNCHANGED,
    Contents,
    Keep,
    Progress,
    Save,
    SaveError,
    SaveRefused,
    check_contents,
    discarded_on_failure,
    temporary,
)

logger = logging.getLogger(__name__)


@contextmanager
def connect(url: str, lock_timeout: float) -> Iterator[psycopg.Connection]:
    """Yield a connection without limits, except that it waits no longer than `lock_timeout` seconds for each lock."""
    conninfo, password = libpq(url)
    # No transaction begins by itself, and poolers need not know prepared statements.
    with psycopg.connect(conninfo, password=password, autocommit=True, prepare_threshold=None) as connection:
        connection.execute(NO_LIMITS)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [milliseconds(lock_timeout)])
        yield connection


@contextmanager
def connect_postgresql(url: str, lock_timeout: float) -> Iterator[psycopg.Connection]:
    """Yield a connection whose transaction sees one state of all tables, none of which can be altered meanwhile."""
    with connect(url, lock_timeout) as connection:
        tables = tables_of_postgresql(connection, schemas_of_postgresql(connection))
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if tables:
            # Before the snapshot: a table that a migration rewrites later would appear empty.
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(identifiers(tables)))
        if tables_of_postgresql(connection, schemas_of_postgresql(connection)) != tables:
            raise SaveError("A migration created or dropped tables at this moment. Run this again when it has ended.")
        yield connection


def milliseconds(seconds: float) -> str:
    """Return a duration for PostgreSQL's settings."""
    return str(max(1, round(seconds * 1000)))


def dump_postgresql(
    url: str, copy: Path, progress: Progress, lock_timeout: float, versions: sa.TableClause
) -> Contents:
    """Dump the schemas that a save takes into an empty file, from the same snapshot in which its rows are counted."""
    with connect_postgresql(url, lock_timeout) as connection:
        ((snapshot,),) = connection.execute("SELECT pg_export_snapshot()")
        found = contents_of_postgresql(connection, versions)
        if not found.rows:
            raise SaveRefused(NO_TABLES)
        options = ["--format=custom", "--no-owner", f"--snapshot={snapshot}", f"--file={copy}"]
        # In quotes they are names, not patterns.
        options += [f"--schema={sql.Identifier(schema).as_string()}" for schema in found.schemas]
        foreign = foreign_rows_of_postgresql(connection)
        options += [f"--exclude-table-data={sql.Identifier(*table).as_string()}" for table in foreign]
        options += ["--verbose", f"--lock-wait-timeout={milliseconds(lock_timeout)}"]
        said, done = [], 0
        with start("pg_dump", found.server_version, *options, url=url) as dump:
            for line in dump.stderr or ():
                said.append(line)
                done += b"dumping contents of table" in line
                progress("Dumping", done, len(found.rows))
    if dump.returncode:
        raise SaveError(f"Nothing was saved. pg_dump says: {complaint(said)}")
    return found


def load_postgresql(
    url: str, chosen: Save, folder: Path, keep: Keep, progress: Progress, *, lock_timeout: float
) -> Save | None:
    """Drop what is in the save's schemas and restore the save, in one transaction.

    `keep` saves the old data once nobody else can write; its result is returned.
    """
    replaced: list[Save] = []
    with connect(url, lock_timeout) as connection:
        extras = not_in_the_save(connection, chosen)
        with discarded_on_failure(replaced, folder), with_advice():
            connection.execute("BEGIN")
            created, extensions = create_schemas(connection, chosen)
            if tables := tables_of_postgresql(connection, chosen.saved_schemas):
                lock_tables(connection, tables, "EXCLUSIVE", lock_timeout)
                # From here on, others can read, but not write.
                replaced.append(keep())
                lock_tables(connection, tables, "ACCESS EXCLUSIVE", lock_timeout)
            drop_objects(connection, chosen)
            create_extensions(connection, chosen, extensions)
            missing = restore(connection, chosen, folder, created, progress)
            check_restored(connection, chosen)
        commit(connection)
    if missing:
        logger.warning(
            "The server has no role %s, so nothing was granted to it. To restore its grants, create it (CREATE ROLE "
            "%s), and load %s again.",
            ", ".join(sorted(missing)),
            min(missing),
            chosen.name,
        )
    if extras:
        logger.warning(
            "Not in the save, and left as it was: %s. If a later revision creates it, drop it before you upgrade.",
            ", ".join(extras),
        )
    return replaced[0] if replaced else None


def not_in_the_save(connection: psycopg.Connection, chosen: Save) -> list[str]:
    """Return the schemas and extensions that the save does not have; a revision that creates them would find them."""
    known = {each.name for each in chosen.extensions}
    names = [f"the schema {each}" for each in schemas_of_postgresql(connection) if each not in chosen.schemas]
    names += [f"the extension {each.name}" for each in extensions_of_postgresql(connection) if each.name not in known]
    # Saves of earlier versions do not say what they have.
    return names if chosen.schemas else []


def restore(
    connection: psycopg.Connection, chosen: Save, folder: Path, created: Iterable[str], progress: Progress
) -> set[str]:
    """Restore a save into schemas that are empty; return the roles that its grants name and the server lacks."""
    dump, version = chosen.copy_in(folder), server_version(connection)
    entries, grants = entries_of(dump, version, created)
    with script_of(dump, entries, version, "--section=pre-data") as script:
        connection.execute(b"".join(script))
    with script_of(dump, entries, version, "--section=data") as script:
        copy_rows(connection, script, sum(chosen.rows.values()), progress)
    with script_of(dump, entries, version, "--section=post-data") as script:
        connection.execute(b"".join(script))
    roles = {role for (role,) in connection.execute("SELECT quote_ident(rolname) FROM pg_roles")}
    with script_of(dump, grants, version) as script:
        granting, missing = grants_to(roles, script)
    connection.execute(b"".join(granting))
    return missing


def check_restored(connection: psycopg.Connection, chosen: Save) -> None:
    """Raise SaveRefused unless what was restored is what the description says."""
    schema, _, name = chosen.version_table.rpartition(".")
    rows = rows_of_postgresql(connection, chosen.saved_schemas, chosen.schema_name)
    is_there = chosen.version_table in rows
    revision = revision_of_postgresql(connection, schema or str(chosen.schema_name), name) if is_there else ()
    check_contents(chosen, rows, revision)


def commit(connection: psycopg.Connection) -> None:
    """Commit the transaction. Raises SaveError if it is not known whether that was done."""
    try:
        connection.commit()
    except psycopg.OperationalError as error:
        raise SaveError(
            f"The answer to COMMIT did not arrive ({str(error).splitlines()[0]}), so it is not known whether the save "
            "was loaded. The newest save whose name begins with replaced- holds what was there before; compare: "
            "alembic-savepoint saves"
        ) from error


def entries_of(dump: Path, version: str, created: Iterable[str] = ()) -> tuple[bytes, bytes]:
    """Return pg_restore's list of the save's entries, and separately the grants.

    The schemas themselves are left out: they stay, with their grants. Those that the load has `created` get theirs.
    """
    with start("pg_restore", version, "--list", str(dump)) as listing:
        entries, said = listing.communicate()
    if listing.returncode:
        newer = "If it says unsupported version, a newer pg_dump made the save, and pg_restore has to be as new."
        raise SaveError(f"{UNCHANGED} pg_restore says: {complaint(said.splitlines())}. {newer}")
    new = {schema.encode() for schema in created}
    kept = re.sub(ABOUT_THE_SCHEMA, lambda entry: entry[0] if entry["schema"] in new else b"", entries)
    return re.sub(GRANTS, b"", kept), b"".join(each[0] for each in re.finditer(GRANTS, kept))


def grants_to(roles: set[str], script: Iterator[bytes]) -> tuple[list[bytes], set[str]]:
    """Return a script's grants to these roles, and its other roles, which this server does not have."""
    granting, missing = [], set[str]()
    for statement in statements_of(script):
        named = re.search(GRANTED_ROLE, statement.decode())
        if named is None or named[1] in {"PUBLIC", *roles}:
            granting.append(statement)
        else:
            missing.add(named[1])
    return granting, missing


@contextmanager
def script_of(dump: Path, entries: bytes, version: str, *section: str) -> Iterator[Iterator[bytes]]:
    """Yield the lines of a script that restores these entries. Raises SaveError in the end if pg_restore failed."""
    with temporary(dump.parent) as listed:
        listed.write_bytes(entries)
        options = ["--no-owner", f"--use-list={listed}", "--file=-", *section, str(dump)]
        with start("pg_restore", version, *options) as script:
            assert script.stdout is not None
            assert script.stderr is not None
            head = list(islice(script.stdout, 20))
            # A command of psql, with a random key.
            restricted = [b"\\un" + line[1:] for line in head if line.startswith(b"\\restrict ")]
            lines = chain((line for line in head if not line.startswith(LEFT_OUT)), script.stdout)
            yield filterfalse(restricted.__contains__, lines)
            said = script.stderr.read()
    if script.returncode:
        raise SaveError(f"{UNCHANGED} pg_restore says: {complaint(said.splitlines())}")


# --- texts and SQL ----------------------------------------------------------------------------------------------------

LEFT_OUT = (b"\\restrict ", b"SET transaction_timeout ", b"SELECT pg_catalog.set_config('search_path', ")
"""Lines that are left out of a script: servers before 17 have no time-out of transactions."""

ABOUT_THE_SCHEMA = re.compile(
    rb"^\d+; \d+ \d+ (?:SCHEMA .*|DEFAULT ACL .*|(?:ACL|COMMENT|SECURITY LABEL) - SCHEMA (?P<schema>.*) \S*)\n",
    re.MULTILINE,
)
"""Entries in pg_restore's list about the schema itself."""

GRANTS = re.compile(rb"^\d+; \d+ \d+ ACL .*\n", re.MULTILINE)
GRANTED_ROLE = re.compile(
    r"""^(?:GRANT .* TO|REVOKE .* FROM|SET SESSION AUTHORIZATION) ("(?:[^"]|"")+"|\w+)"""
    r"(?: WITH GRANT OPTION)?;$",
    re.DOTALL,
)
"""The role in a statement that restores a grant, quoted as in SQL."""

NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout');
"""
