"""The contents of a PostgreSQL database: what a save takes of it, and what it leaves out."""

from collections.abc import Iterable
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from alembic_savepoint.backup.save_files import Contents, Extension
from alembic_savepoint.history.applied import now, revision_text


def schemas_of_postgresql(connection: psycopg.Connection) -> list[str]:
    """Return the schemas that a save takes: the current one, and all whose tables this role owns and may replace."""
    return [schema for schema, is_taken in connection.execute(SCHEMAS) if is_taken]


def tables_of_postgresql(connection: psycopg.Connection, schemas: Iterable[str]) -> list[tuple[str, str]]:
    """Return the tables of these schemas, each with its schema and before those that refer to it.

    Whoever writes begins with what others refer to, so locking in this order avoids deadlocks.
    """
    tables = sql.SQL(TABLES).format(schemas=sql.Literal(list(schemas)))
    return list(connection.execute(sql.SQL("{} ORDER BY {}, nspname, relname").format(tables, sql.SQL(DEPTH))))


def foreign_rows_of_postgresql(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Return the tables of extensions whose rows are configuration that this role may read, but not replace."""
    return list(connection.execute(FOREIGN_ROWS))


def extensions_of_postgresql(connection: psycopg.Connection) -> tuple[Extension, ...]:
    """Return the extensions in the order in which they were created, since one may need another."""
    return tuple(
        Extension(name=name, version=version, schema_name=schema)
        for name, version, schema in connection.execute(EXTENSIONS)
    )


def rows_of_postgresql(connection: psycopg.Connection, schemas: Iterable[str], current: str | None) -> dict[str, int]:
    """Return the number of rows of each table, which is called SCHEMA.TABLE unless it is in the current schema."""
    return {
        table if schema == current else f"{schema}.{table}": select(connection, "count(*)", schema, table)[0]
        for schema, table in sorted(tables_of_postgresql(connection, schemas))
    }


def revision_of_postgresql(connection: psycopg.Connection, *version_table: str) -> tuple[str, ...]:
    """Return what is in Alembic's table, whose schema comes first."""
    return tuple(sorted(map(revision_text, select(connection, "version_num", *version_table))))


def server_version(connection: psycopg.Connection) -> str:
    """Return the server's version, such as 18.1."""
    major, minor = divmod(connection.info.server_version, 10_000)
    return f"{major}.{minor}"


def select(connection: psycopg.Connection, column: str, *table: str) -> list[Any]:
    """Return the values of one column."""
    query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(column), sql.Identifier(*table))
    return [value for (value,) in connection.execute(query)]


def contents_of_postgresql(connection: psycopg.Connection, versions: sa.TableClause) -> Contents:
    """Return the contents of the schemas that a save takes. Other schemas' tables are SCHEMA.TABLE in its rows."""
    ((current, search_path),) = connection.execute("SELECT current_schema(), current_schemas(false)")
    schemas = schemas_of_postgresql(connection)
    rows = rows_of_postgresql(connection, schemas, current)
    # In a schema that is named like the role, perhaps, which has none of the tables.
    called = {each: versions.name if each == current else f"{each}.{versions.name}" for each in search_path}
    schema = versions.schema or next((each for each, name in called.items() if name in rows), current)
    version_table = versions.name if schema == current else f"{schema}.{versions.name}"
    return Contents(
        engine="postgresql",
        server_version=server_version(connection),
        schema_name=current,
        schemas=tuple(schemas),
        search_path=tuple(search_path),
        extensions=extensions_of_postgresql(connection),
        left_out=tuple(left_out(connection, schemas)),
        version_table=version_table,
        revision=revision_of_postgresql(connection, schema, versions.name) if version_table in rows else (),
        created_at=now(),
        rows=rows,
    )


def left_out(connection: psycopg.Connection, schemas: list[str]) -> Iterable[str]:
    """Yield what is in the database and not in a save of these schemas, in words."""
    for (text,) in connection.execute(sql.SQL(LEFT_OUT).format(schemas=sql.Literal(schemas))):
        yield text
    for schema, table in foreign_rows_of_postgresql(connection):
        yield f"rows of {schema}.{table}, which an extension owns"


# --- SQL --------------------------------------------------------------------------------------------------------------

OF_EXTENSION = """
    EXISTS (SELECT FROM pg_depend WHERE classid = '{catalog}'::regclass AND objid = {catalog}.oid AND deptype = 'e')
"""
"""A condition on a row of a catalog: the object was created by an extension."""

OWN_RELATIONS = f"""
    SELECT FROM pg_class WHERE relnamespace = pg_namespace.oid AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND NOT {OF_EXTENSION.format(catalog="pg_class")}
"""  # nosec B608 # all of it is written here
SCHEMAS = rf"""
    SELECT nspname, coalesce(nspname = current_schema(), false) OR (
        has_schema_privilege(oid, 'CREATE') AND NOT EXISTS ({OWN_RELATIONS} AND NOT pg_has_role(relowner, 'USAGE')))
    FROM pg_namespace WHERE nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
    AND (NOT {OF_EXTENSION.format(catalog="pg_namespace")} OR EXISTS ({OWN_RELATIONS}))
    ORDER BY nspname
"""  # noqa: S608 (all of it is written here)  # nosec B608
# The tables of extensions are not dumped.
DEPTH = """
    (WITH RECURSIVE above (id, height) AS (
        SELECT pg_class.oid, 0
        UNION SELECT confrelid, height + 1 FROM above JOIN pg_constraint ON conrelid = id
        WHERE contype = 'f' AND confrelid <> conrelid AND height < 20
    ) SELECT max(height) FROM above)
"""
"""How many tables, one referring to the other, are above a table."""
TABLES = f"""
    SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = ANY ({{schemas}}::text[]) AND relkind = 'r' AND NOT {OF_EXTENSION.format(catalog="pg_class")}
"""  # noqa: S608 (as above)  # nosec B608
# plpgsql is in every database.
EXTENSIONS = """
    SELECT extname, extversion, nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname <> 'plpgsql' ORDER BY pg_extension.oid
"""
FOREIGN_ROWS = """
    SELECT nspname, relname FROM pg_extension
    JOIN pg_class ON pg_class.oid = ANY (extconfig) JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'r' AND NOT pg_has_role(relowner, 'USAGE')
"""
LEFT_OUT = f"""
    SELECT concat_ws(' ', type, identity) FROM (
        SELECT 'pg_namespace'::regclass AS class, oid FROM pg_namespace WHERE nspname IN (
            SELECT nspname FROM ({SCHEMAS}) AS schemas EXCEPT SELECT unnest({{schemas}}::text[]))
        UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger
        UNION ALL SELECT 'pg_publication'::regclass, oid FROM pg_publication
        UNION ALL SELECT 'pg_subscription'::regclass, oid FROM pg_subscription
            WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid FROM pg_foreign_server
        UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast
        UNION ALL SELECT 'pg_transform'::regclass, oid FROM pg_transform
        UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language
    ) AS objects CROSS JOIN LATERAL pg_identify_object(class, oid, 0)
    -- Lower numbers are PostgreSQL's own objects, and its schema public.
    WHERE (oid >= 16384 OR class = 'pg_namespace'::regclass) AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = class AND objid = objects.oid AND deptype IN ('e', 'i'))
    UNION ALL SELECT 'rows of the foreign table ' || pg_class.oid::regclass
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'f' AND nspname = ANY ({{schemas}}::text[])
    UNION ALL SELECT format('%s large objects', count(*)) FROM pg_largeobject_metadata HAVING count(*) > 0
    UNION ALL SELECT format('default privileges of %s', pg_get_userbyid(defaclrole)) FROM pg_default_acl GROUP BY 1
    UNION ALL SELECT 'settings of the database' FROM pg_db_role_setting
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) HAVING count(*) > 0
    UNION ALL SELECT format('ownership by the role %s: what a load restores belongs to the role that loads',
        pg_get_userbyid(relowner))
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = ANY ({{schemas}}::text[]) AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
    AND NOT {OF_EXTENSION.format(catalog="pg_class")}
    GROUP BY relowner
    ORDER BY 1
"""  # noqa: S608 (as above)  # nosec B608
