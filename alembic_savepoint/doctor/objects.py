"""What a schema has beside its tables: views, triggers, functions, and enum types that no column has.

Models know nothing of them, so they are compared between a database and its revisions. Sequences, domains, operators,
aggregates, policies, rights, and the indexes of materialized views are not compared.
"""

import sqlalchemy as sa

from alembic_savepoint.doctor.catalog import OBJECTS, Part, Schema, as_text, schema_of, tokens_of
from alembic_savepoint.doctor.included import included
from alembic_savepoint.project import Project


def whole_schema_of(connection: sa.Connection, project: Project) -> Schema:
    """Return the tables of the current schema and, on PostgreSQL, of the models', and the objects beside them.

    What env.py excludes from comparisons is left out.
    """
    schemas = project.environment.schemas
    whole = schema_of(connection, schemas, project.versions.name)
    sql, parameters = (SQLITE, {}) if connection.dialect.name == "sqlite" else (POSTGRESQL, {"schemas": list(schemas)})
    for owner, kind, name, text in connection.execute(sql, parameters):
        part = Part(kind, name, as_text(tokens_of(text)) if connection.dialect.name == "sqlite" else text)
        whole[owner] = whole.get(owner, frozenset()) | {part}
    return included(whole, connection, project.environment)


def tables_in(schema: Schema) -> Schema:
    """Return the tables alone, without triggers, as `schema_of` does."""
    tables = {owner: frozenset(part for part in parts if part.kind not in OBJECTS) for owner, parts in schema.items()}
    return {table: parts for table, parts in tables.items() if parts}


# A temporary trigger or view is in sqlite_temp_master.
SQLITE = sa.text("""
    SELECT CASE type WHEN 'view' THEN name ELSE tbl_name END, type, CASE type WHEN 'view' THEN '' ELSE name END, sql
    FROM sqlite_master WHERE type IN ('view', 'trigger')
""")
# Extensions bring objects of their own.
POSTGRESQL = sa.text("""
    WITH names AS (
        SELECT oid AS namespace, CASE WHEN nspname = current_schema() THEN '' ELSE nspname || '.' END AS prefix
        FROM pg_namespace WHERE nspname = current_schema() OR nspname = ANY (:schemas)
    ), of_extensions AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
    SELECT prefix || relname, CASE relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, '',
        pg_get_viewdef(pg_class.oid, true)
    FROM names JOIN pg_class ON relnamespace = namespace AND relkind IN ('v', 'm')
    WHERE ('pg_class'::regclass, pg_class.oid) NOT IN (SELECT classid, objid FROM of_extensions)
    UNION ALL
    SELECT prefix || relname, 'trigger', tgname, pg_get_triggerdef(pg_trigger.oid, true) || ' ' || tgenabled::text
    FROM names JOIN pg_class ON relnamespace = namespace JOIN pg_trigger ON tgrelid = pg_class.oid AND NOT tgisinternal
    UNION ALL
    SELECT prefix || proname || '(' || pg_get_function_identity_arguments(pg_proc.oid) || ')',
        CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, '', pg_get_functiondef(pg_proc.oid)
    FROM names JOIN pg_proc ON pronamespace = namespace AND prokind <> 'a'
    WHERE ('pg_proc'::regclass, pg_proc.oid) NOT IN (SELECT classid, objid FROM of_extensions)
    UNION ALL
    SELECT prefix || typname, 'enum type', '',
        coalesce((SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum
                  WHERE enumtypid = pg_type.oid), '')
    FROM names JOIN pg_type ON typnamespace = namespace AND typtype = 'e'
    WHERE ('pg_type'::regclass, pg_type.oid) NOT IN (SELECT classid, objid FROM of_extensions)
    AND pg_type.oid NOT IN (SELECT atttypid FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped)
""")
