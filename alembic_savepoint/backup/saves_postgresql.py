"""Saves of PostgreSQL: pg_dump, and its dump restored in one transaction."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import psycopg
import sqlalchemy as sa
from psycopg import sql

from alembic_savepoint.backup.postgresql_contents import (
    contents_of_postgresql,
    foreign_rows_of_postgresql,
    schemas_of_postgresql,
    tables_of_postgresql,
)
from alembic_savepoint.backup.postgresql_programs import Psql, complaint, libpq, start
from alembic_savepoint.backup.postgresql_replacing import (
    all_schemas,
    check_command,
    identifiers,
    lock_command,
    preparation_of,
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
    discarded_on_failure,
    temporary,
)
from alembic_savepoint.history.applied import VERSIONS

logger = logging.getLogger(__name__)


@contextmanager
def connect_postgresql(url: str, lock_timeout: float) -> Iterator[psycopg.Connection]:
    """Yield a connection whose transaction sees one state of all tables, none of which can be altered meanwhile."""
    conninfo, environment = libpq(url)
    with psycopg.connect(conninfo, password=environment.get("PGPASSWORD"), autocommit=True) as connection:
        connection.execute(NO_LIMITS)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [milliseconds(lock_timeout)])
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
        with start("pg_dump", url, found.server_version, *options) as dump:
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
    """Drop what is in the save's schemas and restore the save, in one transaction of psql.

    `keep` saves the old data once nobody else can write; its result is returned.
    """
    schemas = chosen.saved_schemas
    with connect_postgresql(url, lock_timeout) as connection:
        tables = tables_of_postgresql(connection, schemas)
        there = contents_of_postgresql(connection, VERSIONS)
        roles = {role for (role,) in connection.execute("SELECT quote_ident(rolname) FROM pg_roles")}
        created = [schema for schema in schemas if schema not in all_schemas(connection)]
        preparation = preparation_of(connection, chosen, there)
    dump, version, replaced = chosen.copy_in(folder), there.server_version, list[Save]()
    entries, grants = entries_of(dump, url, version, created)
    with script_of(dump, grants, url, version) as script:
        granting, missing = grants_to(roles, script)
    with Psql(url, version) as psql:
        with discarded_on_failure(replaced, folder):
            psql.run(f"SET client_min_messages = error; {NO_LIMITS}")
            psql.run(f"BEGIN; SET LOCAL lock_timeout = {milliseconds(lock_timeout)};")
            if tables:
                psql.run(lock_command(tables, "EXCLUSIVE", lock_timeout))
                # From here on, others can read, but not write.
                replaced.append(keep())
                psql.run(lock_command(tables, "ACCESS EXCLUSIVE", lock_timeout))
            psql.run(preparation)
            with script_of(dump, entries, url, version) as script:
                psql.send(chain(script, granting), sum(chosen.rows.values()), progress)
            psql.run(check_command(chosen))
        psql.commit()
    if missing:
        warn_of_missing_roles(missing, chosen.name)
    warn_of_what_stays(chosen, there)
    return replaced[0] if replaced else None


def warn_of_what_stays(chosen: Save, there: Contents) -> None:
    """Log which schemas and extensions the save does not have; a revision that creates them would find them there."""
    known = {each.name for each in chosen.extensions}
    names = [f"the schema {each}" for each in there.schemas if each not in chosen.schemas]
    names += [f"the extension {each.name}" for each in there.extensions if each.name not in known]
    if chosen.schemas and names:
        logger.warning(
            "Not in the save, and left as it was: %s. If a later revision creates it, drop it before you upgrade.",
            ", ".join(names),
        )


def warn_of_missing_roles(missing: set[str], save: str) -> None:
    """Log which roles the server lacks, whose grants were therefore not restored."""
    logger.warning(
        "The server has no role %s, so nothing was granted to it. To restore its grants, create it (CREATE ROLE "
        "%s), and load %s again.",
        ", ".join(sorted(missing)),
        min(missing),
        save,
    )


def entries_of(dump: Path, url: str, server_version: str, created: Iterable[str] = ()) -> tuple[bytes, bytes]:
    """Return pg_restore's list of the save's entries, and separately the grants.

    The schemas themselves are left out: they stay, with their grants. Those that the load has `created` get theirs.
    """
    with start("pg_restore", url, server_version, "--list", str(dump)) as listing:
        entries, said = listing.communicate()
    if listing.returncode:
        newer = "If it says unsupported version, a newer pg_dump made the save, and pg_restore has to be as new."
        raise SaveError(f"{UNCHANGED} pg_restore says: {complaint(said.splitlines())}. {newer}")
    new = {schema.encode() for schema in created}
    kept = re.sub(ABOUT_THE_SCHEMA, lambda entry: entry[0] if entry["schema"] in new else b"", entries)
    return re.sub(GRANTS, b"", kept), b"".join(each[0] for each in re.finditer(GRANTS, kept))


def grants_to(roles: set[str], script: Iterable[bytes]) -> tuple[list[bytes], set[str]]:
    """Return a script's grants to these roles, and its other roles, which this server does not have."""
    granting, missing = [], set[str]()
    for line in script:
        named = re.search(GRANTED_ROLE, line.decode())
        if named is None or named[1] in {"PUBLIC", *roles}:
            granting.append(line)
        else:
            missing.add(named[1])
    return granting, missing


@contextmanager
def script_of(dump: Path, entries: bytes, url: str, server_version: str) -> Iterator[Iterator[bytes]]:
    """Yield the lines of a script that restores these entries. Raises SaveError in the end if pg_restore failed."""
    with temporary(dump.parent) as listed:
        listed.write_bytes(entries)
        options = ["--no-owner", f"--use-list={listed}", "--file=-", str(dump)]
        with start("pg_restore", url, server_version, *options) as script:
            assert script.stdout is not None
            assert script.stderr is not None
            head = [line for line in islice(script.stdout, 20) if not line.startswith(SET_ALREADY)]
            yield chain(head, script.stdout)
            said = script.stderr.read()
    if script.returncode:
        raise SaveError(f"{UNCHANGED} pg_restore says: {complaint(said.splitlines())}")


# --- texts and SQL ----------------------------------------------------------------------------------------------------

SET_ALREADY = (b"SET transaction_timeout ", b"SELECT pg_catalog.set_config('search_path', ")
"""Settings that are left out of a script: servers before 17 have no time-out of transactions."""

ABOUT_THE_SCHEMA = re.compile(
    rb"^\d+; \d+ \d+ (?:SCHEMA .*|DEFAULT ACL .*|(?:ACL|COMMENT|SECURITY LABEL) - SCHEMA (?P<schema>.*) \S*)\n",
    re.MULTILINE,
)
"""Entries in pg_restore's list about the schema itself."""

GRANTS = re.compile(rb"^\d+; \d+ \d+ ACL .*\n", re.MULTILINE)
GRANTED_ROLE = re.compile(
    r"""^(?:GRANT .* TO|REVOKE .* FROM|SET SESSION AUTHORIZATION) ("(?:[^"]|"")+"|\w+)"""
    r"(?: WITH GRANT OPTION)?;$"
)
"""The role in a line of a script that restores grants, quoted as in SQL."""

NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout');
"""
