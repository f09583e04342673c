"""Saves of PostgreSQL: pg_dump, and its dump restored in one transaction."""

import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from alembic_savepoint.backup.save_files import (
    NO_TABLES,
    PATIENCE,
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
from alembic_savepoint.connections import driver_url
from alembic_savepoint.history.applied import now, revision_text

logger = logging.getLogger(__name__)


@contextmanager
def connect_postgresql(url: str, lock_timeout: float) -> Iterator[psycopg.Connection]:
    """Yield a connection whose transaction sees one state of all tables, none of which can be altered meanwhile."""
    conninfo, environment = libpq(url)
    with psycopg.connect(conninfo, password=environment.get("PGPASSWORD"), autocommit=True) as connection:
        connection.execute(NO_LIMITS)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [milliseconds(lock_timeout)])
        tables = tables_of_postgresql(connection)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if tables:
            # Before the snapshot: a table that a migration rewrites later would appear empty.
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(identifiers(tables)))
        if tables_of_postgresql(connection) != tables:
            raise SaveError("A migration created or dropped tables at this moment. Run this again when it has ended.")
        yield connection


def libpq(url: str) -> tuple[str, dict[str, str]]:
    """Return the connection string for PostgreSQL's programs, and their environment with the password."""
    parsed = driver_url(url)
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    parameters.pop("context", None)
    password = parameters.pop("password", None)
    environment = {**os.environ, "LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}
    if password is not None:
        environment["PGPASSWORD"] = password
    return make_conninfo("", **parameters), environment


def tables_of_postgresql(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Return the tables of the current schema, each with its schema and before those that refer to it.

    Whoever writes begins with what others refer to, so locking in this order avoids deadlocks.
    """
    return list(connection.execute(f"{TABLES} ORDER BY {DEPTH}, relname"))


def identifiers(tables: list[tuple[str, str]]) -> sql.Composed:
    """Return the tables as SQL identifiers."""
    return sql.SQL(", ").join(sql.Identifier(*table) for table in tables)


def milliseconds(seconds: float) -> str:
    """Return a duration for PostgreSQL's settings."""
    return str(max(1, round(seconds * 1000)))


def contents_of_postgresql(connection: psycopg.Connection) -> Contents:
    """Return the contents of the current schema."""

    def select(columns: str, *table: str) -> list[Any]:
        query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(columns), sql.Identifier(*table))
        return [value for (value,) in connection.execute(query)]

    ((schema,),) = connection.execute("SELECT current_schema()")
    rows = {table: select("count(*)", schema, table)[0] for schema, table in sorted(tables_of_postgresql(connection))}
    versions = select("version_num", schema, "alembic_version") if "alembic_version" in rows else []
    major, minor = divmod(connection.info.server_version, 10_000)
    return Contents(
        engine="postgresql",
        server_version=f"{major}.{minor}",
        schema_name=schema,
        revision=tuple(sorted(map(revision_text, versions))),
        created_at=now(),
        rows=rows,
    )


def dump_postgresql(url: str, copy: Path, progress: Progress, lock_timeout: float) -> Contents:
    """Dump the current schema into an empty file, from the same snapshot in which its rows are counted."""
    with connect_postgresql(url, lock_timeout) as connection:
        ((snapshot,),) = connection.execute("SELECT pg_export_snapshot()")
        found = contents_of_postgresql(connection)
        if not found.rows:
            raise SaveRefused(NO_TABLES)
        # In quotes it is a name, not a pattern.
        schema = str(found.schema_name).replace('"', '""')
        options = ["--format=custom", "--no-owner", f"--snapshot={snapshot}", f'--schema="{schema}"', f"--file={copy}"]
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
    """Drop what is in the current schema and restore the save, in one transaction of psql.

    `keep` saves the old data once nobody else can write; its result is returned.
    """
    with connect_postgresql(url, lock_timeout) as connection:
        tables = tables_of_postgresql(connection)
        there = contents_of_postgresql(connection)
        roles = {role for (role,) in connection.execute("SELECT quote_ident(rolname) FROM pg_roles")}
    if there.schema_name != chosen.schema_name:
        raise SaveRefused(
            f"Save {chosen.name} is of the schema {chosen.schema_name}, and the current one is {there.schema_name}. "
            f"{UNCHANGED} The search_path of the role, or in the URL, says which schema is current."
        )
    dump, version, replaced = chosen.copy_in(folder), there.server_version, list[Save]()
    entries, grants = entries_of(dump, url, version)
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
            psql.run(DROP)
            with script_of(dump, entries, url, version) as script:
                psql.send(chain(script, granting), sum(chosen.rows.values()), progress)
            expected = chosen.model_dump_json(include={"schema_name", "rows", "revision"})
            psql.run(CHECK.format(expected=sql.Literal(expected).as_string(), tables=TABLES))
        psql.commit()
    if missing:
        warn_of_missing_roles(missing, chosen.name)
    return replaced[0] if replaced else None


def warn_of_missing_roles(missing: set[str], save: str) -> None:
    """Log which roles the server lacks, whose grants were therefore not restored."""
    logger.warning(
        "The server has no role %s, so nothing was granted to it. To restore its grants, create it (CREATE ROLE "
        "%s), and load %s again.",
        ", ".join(sorted(missing)),
        min(missing),
        save,
    )


def lock_command(tables: list[tuple[str, str]], mode: str, lock_timeout: float) -> str:
    """Return SQL that locks all tables, in several attempts, or names those who hold them."""
    return LOCK.format(tables=identifiers(tables).as_string(), mode=mode, seconds=PATIENCE * lock_timeout)


def entries_of(dump: Path, url: str, server_version: str) -> tuple[bytes, bytes]:
    """Return pg_restore's list of the save's entries, and separately the grants.

    The schema itself is left out: it stays, with its grants.
    """
    with start("pg_restore", url, server_version, "--list", str(dump)) as listing:
        entries, said = listing.communicate()
    if listing.returncode:
        newer = "If it says unsupported version, a newer pg_dump made the save, and pg_restore has to be as new."
        raise SaveError(f"{UNCHANGED} pg_restore says: {complaint(said.splitlines())}. {newer}")
    kept = re.sub(ABOUT_THE_SCHEMA, b"", entries)
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
            # Servers before 17 do not have this setting; for others, NO_LIMITS has set it.
            head = [line for line in islice(script.stdout, 20) if not line.startswith(b"SET transaction_timeout ")]
            yield chain(head, script.stdout)
            said = script.stderr.read()
    if script.returncode:
        raise SaveError(f"{UNCHANGED} pg_restore says: {complaint(said.splitlines())}")


class Psql:
    """psql in a transaction that only `commit` commits: any earlier failure, also of this process, rolls it back."""

    def __init__(self, url: str, server_version: str) -> None:
        options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
        self.process = start("psql", url, server_version, *options)
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.input, self.messages = self.process.stdin, self.process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Cancel what is running; then the input ends, without a COMMIT.
        self.process.send_signal(signal.SIGINT)
        with suppress(BrokenPipeError), self.process:
            pass

    def send(self, lines: Iterable[bytes], rows: int, progress: Progress) -> None:
        """Send SQL in which most lines are rows. Raises SaveError if an earlier line has failed already."""
        try:
            for number, line in enumerate(lines):
                self.input.write(line)
                if number % 1000 == 0:
                    progress("Loading", min(number, rows), rows)
        except BrokenPipeError:
            raise failure(self.messages) from None

    def run(self, script: str) -> None:
        """Send SQL, and wait until it and all before it are done. Raises SaveError if they failed."""
        with suppress(BrokenPipeError):
            self.input.write(f"{script}\n\\warn {DONE}\n".encode())
            self.input.flush()
        said = []
        for line in self.messages:
            if line.strip() == DONE.encode():
                return
            said.append(line)
        raise failure(said)

    def commit(self) -> None:
        """Commit the transaction. Raises SaveError, which says whether the database is unchanged."""
        with suppress(BrokenPipeError):
            self.input.write(b"COMMIT;\n")
            self.input.close()
        said = list(self.messages)
        status = self.process.wait()
        if status == SQL_FAILED:
            raise failure(said)
        if status:
            raise SaveError(
                f"The answer to COMMIT did not arrive ({complaint(said)}), so it is not known whether the save was "
                "loaded. The newest save whose name begins with replaced- holds what was there before; compare: "
                "alembic-savepoint saves"
            )


def failure(said: Iterable[bytes]) -> SaveError:
    """Return the error of a psql that failed before its COMMIT."""
    fault = complaint(said)
    role = re.fullmatch(r"role (\".+\") does not exist", fault)
    advice = f". A policy in the save needs it. Create it, and load again: CREATE ROLE {role[1]}" if role else ""
    return SaveError(f"{UNCHANGED} PostgreSQL says: {fault}{advice}")


def complaint(said: Iterable[bytes]) -> str:
    """Return the error in the output of one of PostgreSQL's programs, without lines that repeat what is in rows."""
    lines = [line.decode(errors="replace").strip() for line in said]
    # psql stops at its first error, which is not called ERROR if the server's language is not English.
    errors = [line for line in lines if re.match(r"psql:<stdin>:\d+: |\w+: error: ", line)]
    return re.sub(r"^(psql:<stdin>:\d+: )?(\w+: )+\s*", "", (errors[-1:] or lines[-1:] or ["nothing"])[0])


def start(program: str, url: str, server_version: str, *options: str) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs. Raises SaveError if it is missing, or older than the server."""
    server = server_version.partition(".")[0]
    path = shutil.which(program)
    if path is None:
        raise SaveError(f"{program} is not on the PATH. {INSTALL.format(server=server)}")
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    version = re.search(r"\(PostgreSQL\) (\d+)", shown)
    if version is None or int(version[1]) < int(server):
        raise SaveError(f"{path} is {shown.strip()}, too old for the server. {INSTALL.format(server=server)}")
    conninfo, environment = libpq(url)
    if program != "pg_restore":
        options = ("--no-password", f"--dbname={conninfo}", *options)
    return subprocess.Popen(  # noqa: S603
        [path, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


# --- texts and SQL ----------------------------------------------------------------------------------------------------

INSTALL = (
    "Saves of PostgreSQL need its client programs, of version {server} or newer: install postgresql-client-{server} "
    "(Debian, Ubuntu: apt install postgresql-client-{server}), or put the folder that has them first on the PATH. Then "
    "run this again. Nothing was changed."
)
DONE = "savepoint: done"
SQL_FAILED = 3
"""psql's exit code if a statement failed."""

ABOUT_THE_SCHEMA = re.compile(
    rb"^\d+; \d+ \d+ (SCHEMA|DEFAULT ACL|(ACL|COMMENT|SECURITY LABEL) - SCHEMA) .*\n", re.MULTILINE
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
# The tables of extensions are not dumped.
TABLES = """
    SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = current_schema() AND relkind = 'r' AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
"""
DEPTH = """
    (WITH RECURSIVE above (id, height) AS (
        SELECT pg_class.oid, 0
        UNION SELECT confrelid, height + 1 FROM above JOIN pg_constraint ON conrelid = id
        WHERE contype = 'f' AND confrelid <> conrelid AND height < 20
    ) SELECT max(height) FROM above)
"""
LOCK = r"""
    DO $savepoint$
    DECLARE
        deadline CONSTANT timestamptz := clock_timestamp() + interval '{seconds} seconds';
    BEGIN
        LOOP
            BEGIN
                LOCK TABLE {tables} IN {mode} MODE;
                RETURN;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                IF clock_timestamp() > deadline THEN
                    EXIT;
                END IF;
                -- Meanwhile, those who wait behind this have their turn.
                PERFORM pg_sleep(random() / 2);
            END;
        END LOOP;
        RAISE EXCEPTION 'the tables are in use. %', coalesce((
            SELECT string_agg(format('Process %s, for %s seconds: %s', pid,
                extract(epoch FROM clock_timestamp() - xact_start)::integer,
                regexp_replace(left(query, 200), '\s+', ' ', 'g')), '; ' ORDER BY xact_start)
            FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid IN (
                SELECT pg_locks.pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation
                WHERE granted AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
                AND (pg_locks.mode <> 'AccessShareLock' OR '{mode}' = 'ACCESS EXCLUSIVE'))
        ), 'Their users have ended since');
    END $savepoint$;
"""
# Objects in another schema, or of another role.
OTHERS = r"""
    SELECT concat_ws(' ', pg_class.oid::regclass, conname) FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace LEFT JOIN pg_constraint ON conrelid = pg_class.oid
    WHERE nspname NOT LIKE 'pg\_t%' AND (nspname <> current_schema() OR NOT pg_has_role(relowner, 'USAGE'))
    UNION ALL
    SELECT pg_proc.oid::regprocedure::text FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE (nspname <> current_schema() OR NOT pg_has_role(proowner, 'USAGE')) AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'i')
"""
DROP = f"""
    DO $savepoint$
    DECLARE
        others CONSTANT text[] := ARRAY({OTHERS});
        lost text;
        commands text[];
        command text;
    BEGIN
        SELECT array_agg(format('DROP %s IF EXISTS %s CASCADE', kind, name) ORDER BY kind <> 'TABLE') INTO commands
        FROM (
            SELECT 'pg_class'::regclass AS class, oid, relnamespace AS schema, relowner AS owner,
                oid::regclass::text AS name, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind
            FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
            UNION ALL
            SELECT 'pg_proc'::regclass, oid, pronamespace, proowner, oid::regprocedure::text, 'ROUTINE' FROM pg_proc
            UNION ALL
            SELECT 'pg_type'::regclass, oid, typnamespace, typowner, oid::regtype::text, 'TYPE'
            FROM pg_type WHERE typtype IN ('e', 'd', 'r', 'c')
        ) AS objects
        WHERE schema = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND pg_has_role(owner, 'USAGE')
        AND NOT EXISTS (
            -- Objects of an extension stay; parts of a type or table are dropped with it.
            SELECT FROM pg_depend
            WHERE classid = class AND objid = objects.oid AND refobjid <> objid AND deptype IN ('e', 'i'));
        FOREACH command IN ARRAY coalesce(commands, ARRAY[]::text[]) LOOP
            EXECUTE command;
        END LOOP;
        SELECT string_agg(name, ', ') INTO lost FROM (SELECT unnest(others) EXCEPT ALL ({OTHERS})) AS gone(name);
        IF lost IS NOT NULL THEN
            RAISE EXCEPTION '% depends on what the save replaces, and is in another schema or of another role. '
                'Drop it before the load, and create it again after', lost;
        END IF;
    END $savepoint$;
"""  # noqa: S608 (all of it is written here)
CHECK = """
    SELECT set_config('savepoint.expected', {expected}, true);
    DO $savepoint$
    DECLARE
        expected CONSTANT jsonb := current_setting('savepoint.expected');
        found_rows jsonb := '{{}}';
        found_revision jsonb := '[]';
        table_name text;
        counted bigint;
    BEGIN
        PERFORM set_config('search_path', quote_ident(expected->>'schema_name'), true);
        FOR table_name IN SELECT relname FROM ({tables}) AS found LOOP
            EXECUTE format('SELECT count(*) FROM %I', table_name) INTO counted;
            found_rows := found_rows || jsonb_build_object(table_name, counted);
        END LOOP;
        IF found_rows ? 'alembic_version' THEN
            SELECT coalesce(jsonb_agg(version_num ORDER BY version_num COLLATE "C"), '[]') INTO found_revision
            FROM alembic_version;
        END IF;
        IF found_rows <> expected->'rows' OR found_revision <> expected->'revision' THEN
            RAISE EXCEPTION 'the save does not hold the rows and the revision that its description says';
        END IF;
    END $savepoint$;
"""
