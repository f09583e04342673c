"""A PostgreSQL database whose contents a load replaces: locks, schemas, what is dropped, and rows."""

import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile

import psycopg
from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable

from alembic_savepoint.backup.postgresql_contents import extensions_of_postgresql
from alembic_savepoint.backup.save_files import PATIENCE, UNCHANGED, Extension, Progress, Save, SaveError, SaveRefused


def identifiers(tables: list[tuple[str, str]]) -> sql.Composed:
    """Return the tables as SQL identifiers."""
    return sql.SQL(", ").join(sql.Identifier(*table) for table in tables)


def lock_tables(connection: psycopg.Connection, tables: list[tuple[str, str]], mode: str, lock_timeout: float) -> None:
    """Lock all tables, in several attempts. Raises SaveError, which names those who hold them."""
    deadline = time.monotonic() + PATIENCE * lock_timeout
    while True:
        try:
            with connection.transaction():
                connection.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(identifiers(tables), sql.SQL(mode)))
            return
        except (LockNotAvailable, DeadlockDetected):
            if time.monotonic() > deadline:
                schemas = sorted({schema for schema, _ in tables})
                found = [text for (text,) in connection.execute(HOLDERS, [schemas, mode == "ACCESS EXCLUSIVE"])]
                holders = "; ".join(found) or "Their users have ended since"
                raise SaveError(f"{UNCHANGED} The tables are in use. {holders}") from None
            # Meanwhile, those who wait behind this have their turn.
            time.sleep(random.uniform(0, 0.5))


def create_schemas(connection: psycopg.Connection, chosen: Save) -> tuple[list[str], list[Extension]]:
    """Create the schemas that the save needs, and return these and the extensions that are still missing.

    Raises SaveRefused where the current schema is another one, or an extension cannot be created.
    """
    extensions = missing_extensions(connection, chosen)
    needed = dict.fromkeys([*chosen.saved_schemas, *(each.schema_name for each in extensions)])
    existing = {schema for (schema,) in connection.execute("SELECT nspname FROM pg_namespace")}
    created = [each for each in needed if each not in existing]
    for each in created:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(each)))
    ((current,),) = connection.execute("SELECT current_schema()")
    if current != chosen.schema_name:
        raise SaveRefused(
            f"Save {chosen.name} is of the schema {chosen.schema_name}, and the current one is {current}. {UNCHANGED} "
            "The search_path of the role, or in the URL, says which schema is current."
        )
    return created, extensions


def missing_extensions(connection: psycopg.Connection, chosen: Save) -> list[Extension]:
    """Return the extensions that the save needs and the database lacks. Raises SaveRefused if it cannot have them."""
    found = {each.name: each.schema_name for each in extensions_of_postgresql(connection)}
    for each in chosen.extensions:
        if each.name in found and found[each.name] != each.schema_name:
            raise SaveRefused(
                f"Save {chosen.name} needs the extension {each.name} in the schema {each.schema_name}, and it is in "
                f"{found[each.name]}. {UNCHANGED} Move it, and load again: "
                f"ALTER EXTENSION {quoted(each.name)} SET SCHEMA {quoted(each.schema_name)}"
            )
    missing = [each for each in chosen.extensions if each.name not in found]
    available = {name for (name,) in connection.execute("SELECT name FROM pg_available_extensions")}
    unavailable = [f"{each.name} ({each.version})" for each in missing if each.name not in available]
    if unavailable:
        raise SaveRefused(
            f"Save {chosen.name} needs extensions that this server does not offer: {', '.join(unavailable)}. "
            f"{UNCHANGED} Install their packages on the server, and load again."
        )
    return missing


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return sql.Identifier(name).as_string()


def drop_objects(connection: psycopg.Connection, chosen: Save) -> None:
    """Drop what is in the save's schemas. Raises SaveError if something elsewhere, or another role's, would go too."""
    schemas = {"schemas": list(chosen.saved_schemas)}
    others = Counter(connection.execute(OTHERS, schemas))
    commands = [command for (command,) in connection.execute(DROPS, schemas)]
    connection.execute("; ".join(commands).encode())
    if lost := others - Counter(connection.execute(OTHERS, schemas)):
        names = ", ".join(name for (name,) in lost.elements())
        raise SaveError(
            f"{UNCHANGED} {names} depends on what the save replaces, and is not in a schema of the save, or of another "
            "role. Drop it before the load, and create it again after."
        )
    # Rows that were added to the tables of extensions, which stay.
    extensions = [each.name for each in chosen.extensions]
    for (command,) in connection.execute(ADDED_ROWS, {**schemas, "extensions": extensions}).fetchall():
        connection.execute(command.encode())


def create_extensions(connection: psycopg.Connection, chosen: Save, extensions: Iterable[Extension]) -> None:
    """Create the extensions that the save needs, and search the schemas that it was saved with."""
    for each in extensions:
        command = sql.SQL("CREATE EXTENSION {} WITH SCHEMA {}")
        connection.execute(command.format(sql.Identifier(each.name), sql.Identifier(each.schema_name)))
    # What generated columns, checks and indexes call may need it; pg_restore would set it to ''. Not pg_catalog, which
    # is searched first unless it is named.
    path = [each for each in chosen.search_path or chosen.saved_schemas if not each.startswith("pg_")]
    connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.SQL(", ").join(map(sql.Identifier, path))))


def copy_rows(connection: psycopg.Connection, script: Iterator[bytes], rows: int, progress: Progress) -> None:
    """Run a script in which most lines are rows."""
    done = 0
    progress("Loading", 0, rows)
    for statement in statements_of(script):
        if not statement.startswith(b"COPY "):
            connection.execute(statement)
            continue
        with connection.cursor().copy(statement) as copy:
            for some in in_parts(takewhile(END_OF_ROWS.__ne__, script)):
                copy.write(b"".join(some))
                done += len(some)
                progress("Loading", done, rows)


def statements_of(script: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the statements of pg_restore's script of rows or grants; the rows after a COPY are the caller's to take."""
    statement = b""
    for line in script:
        if not statement and line.startswith((b"--", b"\n")):
            continue
        statement += line
        # A name or text may have several lines.
        rest = QUOTED.sub(b"", statement)
        if rest.endswith(b";\n") and not re.search(rb"[\"']", rest):
            yield statement
            statement = b""


def in_parts(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines in lists of about a MiB."""
    part, size = list[bytes](), 0
    for line in lines:
        part.append(line)
        size += len(line)
        if size > MIB:
            yield part
            part, size = [], 0
    yield part


@contextmanager
def with_advice() -> Iterator[None]:
    """Say what to create if a save needs a role that is missing, or an extension that this role may not create."""
    try:
        yield
    except psycopg.Error as error:
        said = error.diag.message_primary or ""
        if role := re.fullmatch(r"role (\".+\") does not exist", said):
            advice = f"A policy in the save needs it. Create it, and load again: CREATE ROLE {role[1]}"
        elif extension := re.fullmatch(r"permission denied to create extension (\".+\")", said):
            advice = f"Create it as a superuser, and load again: CREATE EXTENSION {extension[1]}"
        else:
            raise
        raise SaveError(f"{UNCHANGED} PostgreSQL says: {said}. {advice}") from None


# --- SQL --------------------------------------------------------------------------------------------------------------

END_OF_ROWS = b"\\.\n"
MIB = 2**20
QUOTED = re.compile(rb"""\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'""")
"""Names and texts in SQL."""
HOLDERS = r"""
    SELECT format('Process %%s, for %%s seconds: %%s', pid, extract(epoch FROM clock_timestamp() - xact_start)::integer,
        regexp_replace(left(query, 200), '\s+', ' ', 'g'))
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid IN (
        SELECT pg_locks.pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE granted AND nspname = ANY (%s) AND (pg_locks.mode <> 'AccessShareLock' OR %s))
    ORDER BY xact_start
"""
# Objects in another schema or in none, or of another role.
OTHERS = r"""
    SELECT concat_ws(' ', pg_class.oid::regclass, conname) FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace LEFT JOIN pg_constraint ON conrelid = pg_class.oid
    WHERE nspname NOT LIKE 'pg\_t%%' AND (nspname <> ALL (%(schemas)s) OR NOT pg_has_role(relowner, 'USAGE'))
    UNION ALL
    SELECT pg_proc.oid::regprocedure::text FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE (nspname <> ALL (%(schemas)s) OR NOT pg_has_role(proowner, 'USAGE')) AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'i')
    UNION ALL
    SELECT concat_ws(' ', type, identity) FROM (
        SELECT 'pg_cast'::regclass AS class, oid FROM pg_cast
        UNION ALL SELECT 'pg_transform'::regclass, oid FROM pg_transform
        UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger
        UNION ALL SELECT 'pg_publication_rel'::regclass, oid FROM pg_publication_rel
    ) AS objects CROSS JOIN LATERAL pg_identify_object(class, oid, 0)
    -- The casts of a range belong to it.
    WHERE NOT EXISTS (SELECT FROM pg_depend WHERE classid = class AND objid = objects.oid AND deptype = 'i')
"""
DROPS = """
    SELECT format('DROP %%s IF EXISTS %%s CASCADE', CASE
        WHEN type IN ('function', 'procedure', 'aggregate') THEN 'ROUTINE'
        WHEN type = 'statistics object' THEN 'STATISTICS' ELSE type END, identity)
    FROM pg_depend AS object CROSS JOIN LATERAL pg_identify_object(classid, objid, 0)
    WHERE refclassid = 'pg_namespace'::regclass AND deptype = 'n'
    AND refobjid IN (SELECT oid FROM pg_namespace WHERE nspname = ANY (%(schemas)s))
    AND classid NOT IN ('pg_extension'::regclass, 'pg_default_acl'::regclass)
    -- What belongs to the first superuser, which is 10, has no row.
    AND pg_has_role(coalesce((
        SELECT owner.refobjid FROM pg_shdepend AS owner JOIN pg_database ON pg_database.oid = dbid
        WHERE datname = current_database() AND owner.deptype = 'o'
        AND owner.classid = object.classid AND owner.objid = object.objid), 10), 'USAGE')
    AND NOT EXISTS (
        -- Objects of an extension stay; parts of a type or table are dropped with it.
        SELECT FROM pg_depend AS part WHERE part.classid = object.classid AND part.objid = object.objid
        AND part.refobjid <> part.objid AND part.deptype IN ('e', 'i'))
    ORDER BY type <> 'table'
"""
ADDED_ROWS = """
    SELECT format('DELETE FROM %%s %%s', config::regclass, condition)
    FROM pg_extension CROSS JOIN LATERAL unnest(extconfig, extcondition) AS configuration (config, condition)
    JOIN pg_class ON pg_class.oid = config JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'r' AND pg_has_role(relowner, 'USAGE') AND extname = ANY (%(extensions)s)
    AND nspname = ANY (%(schemas)s)
"""
