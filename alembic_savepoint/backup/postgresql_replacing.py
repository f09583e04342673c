"""SQL with which a load replaces what is in a PostgreSQL database."""

import psycopg
from psycopg import sql

from alembic_savepoint.backup.postgresql_contents import TABLES
from alembic_savepoint.backup.save_files import PATIENCE, UNCHANGED, Contents, Extension, Save, SaveRefused


def identifiers(tables: list[tuple[str, str]]) -> sql.Composed:
    """Return the tables as SQL identifiers."""
    return sql.SQL(", ").join(sql.Identifier(*table) for table in tables)


def lock_command(tables: list[tuple[str, str]], mode: str, lock_timeout: float) -> str:
    """Return SQL that locks all tables, in several attempts, or names those who hold them."""
    schemas = sql.Literal(sorted({schema for schema, _ in tables})).as_string()
    return LOCK.format(
        tables=identifiers(tables).as_string(), schemas=schemas, mode=mode, seconds=PATIENCE * lock_timeout
    )


def all_schemas(connection: psycopg.Connection) -> set[str]:
    """Return all schemas of the database."""
    return {schema for (schema,) in connection.execute("SELECT nspname FROM pg_namespace")}


def preparation_of(connection: psycopg.Connection, chosen: Save, there: Contents) -> str:
    """Return SQL that empties the save's schemas, and creates the schemas and extensions that are missing.

    Raises SaveRefused where the current schema is another one, or an extension cannot be created.
    """
    existing, schemas = all_schemas(connection), chosen.saved_schemas
    if there.schema_name != chosen.schema_name and chosen.schema_name in existing:
        raise SaveRefused(
            f"Save {chosen.name} is of the schema {chosen.schema_name}, and the current one is {there.schema_name}. "
            f"{UNCHANGED} The search_path of the role, or in the URL, says which schema is current."
        )
    extensions = missing_extensions(connection, chosen, there)
    needed = dict.fromkeys([*schemas, *(each.schema_name for each in extensions)])
    # Not pg_catalog, which is searched first unless it is named.
    path = [each for each in chosen.search_path or schemas if not each.startswith("pg_")]
    names = {
        "schemas": sql.Literal(list(schemas)),
        "extensions": sql.Literal([each.name for each in chosen.extensions]),
    }
    commands = [sql.SQL(DROP).format(**names)]
    commands += [sql.SQL("CREATE SCHEMA {};").format(sql.Identifier(each)) for each in needed if each not in existing]
    commands += [
        sql.SQL("CREATE EXTENSION {} WITH SCHEMA {};").format(*map(sql.Identifier, (each.name, each.schema_name)))
        for each in extensions
    ]
    commands += [sql.SQL(CURRENT).format(schema=sql.Literal(chosen.schema_name))]
    # What generated columns, checks and indexes call may need it; pg_restore would set it to ''.
    commands += [sql.SQL("SET LOCAL search_path = {};").format(sql.SQL(", ").join(map(sql.Identifier, path)))]
    return sql.SQL("\n").join(commands).as_string()


def missing_extensions(connection: psycopg.Connection, chosen: Save, there: Contents) -> list[Extension]:
    """Return the extensions that the save needs and the database lacks. Raises SaveRefused if it cannot have them."""
    found = {each.name: each.schema_name for each in there.extensions}
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


def check_command(chosen: Save) -> str:
    """Return SQL that fails unless what was restored is what the description says."""
    expected = sql.Literal(chosen.model_dump_json(include={"schema_name", "rows", "revision"}))
    tables = sql.SQL(TABLES).format(schemas=sql.Literal(list(chosen.saved_schemas)))
    schema, _, name = chosen.version_table.rpartition(".")
    return CHECK.format(
        expected=expected.as_string(),
        tables=tables.as_string(),
        version_key=sql.Literal(chosen.version_table).as_string(),
        version_table=sql.Identifier(*filter(None, [schema, name])).as_string(),
    )


# --- SQL --------------------------------------------------------------------------------------------------------------

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
                JOIN pg_namespace ON pg_namespace.oid = relnamespace
                WHERE granted AND nspname = ANY ({schemas}::text[])
                AND (pg_locks.mode <> 'AccessShareLock' OR '{mode}' = 'ACCESS EXCLUSIVE'))
        ), 'Their users have ended since');
    END $savepoint$;
"""
CURRENT = """
    DO $savepoint$ BEGIN
        IF current_schema() IS DISTINCT FROM {schema} THEN
            RAISE EXCEPTION 'the save is of the schema %, and the current one is %. The search_path of the role, or in '
                'the URL, says which schema is current', {schema}, current_schema();
        END IF;
    END $savepoint$;
"""
# Objects in another schema or in none, or of another role.
OTHERS = r"""
    SELECT concat_ws(' ', pg_class.oid::regclass, conname) FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace LEFT JOIN pg_constraint ON conrelid = pg_class.oid
    WHERE nspname NOT LIKE 'pg\_t%' AND (nspname <> ALL ({schemas}::text[]) OR NOT pg_has_role(relowner, 'USAGE'))
    UNION ALL
    SELECT pg_proc.oid::regprocedure::text FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE (nspname <> ALL ({schemas}::text[]) OR NOT pg_has_role(proowner, 'USAGE')) AND NOT EXISTS (
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
DROP = f"""
    DO $savepoint$
    DECLARE
        others CONSTANT text[] := ARRAY({OTHERS});
        lost text;
        commands text[];
        command text;
    BEGIN
        SELECT array_agg(format('DROP %s IF EXISTS %s CASCADE', CASE
            WHEN type IN ('function', 'procedure', 'aggregate') THEN 'ROUTINE'
            WHEN type = 'statistics object' THEN 'STATISTICS' ELSE type END, identity) ORDER BY type <> 'table')
        INTO commands FROM pg_depend AS object CROSS JOIN LATERAL pg_identify_object(classid, objid, 0)
        WHERE refclassid = 'pg_namespace'::regclass AND deptype = 'n'
        AND refobjid IN (SELECT oid FROM pg_namespace WHERE nspname = ANY ({{schemas}}::text[]))
        AND classid NOT IN ('pg_extension'::regclass, 'pg_default_acl'::regclass)
        -- What belongs to the first superuser, which is 10, has no row.
        AND pg_has_role(coalesce((
            SELECT owner.refobjid FROM pg_shdepend AS owner JOIN pg_database ON pg_database.oid = dbid
            WHERE datname = current_database() AND owner.deptype = 'o'
            AND owner.classid = object.classid AND owner.objid = object.objid), 10), 'USAGE')
        AND NOT EXISTS (
            -- Objects of an extension stay; parts of a type or table are dropped with it.
            SELECT FROM pg_depend AS part WHERE part.classid = object.classid AND part.objid = object.objid
            AND part.refobjid <> part.objid AND part.deptype IN ('e', 'i'));
        FOREACH command IN ARRAY coalesce(commands, ARRAY[]::text[]) LOOP
            EXECUTE command;
        END LOOP;
        SELECT string_agg(name, ', ') INTO lost FROM (SELECT unnest(others) EXCEPT ALL ({OTHERS})) AS gone(name);
        IF lost IS NOT NULL THEN
            RAISE EXCEPTION '% depends on what the save replaces, and is not in a schema of the save, or of another '
                'role. Drop it before the load, and create it again after', lost;
        END IF;
        -- Rows that were added to the tables of extensions, which stay.
        FOR command IN
            SELECT format('DELETE FROM %s %s', config::regclass, condition)
            FROM pg_extension CROSS JOIN LATERAL unnest(extconfig, extcondition) AS configuration (config, condition)
            JOIN pg_class ON pg_class.oid = config JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE relkind = 'r' AND pg_has_role(relowner, 'USAGE') AND extname = ANY ({{extensions}}::text[])
            AND nspname = ANY ({{schemas}}::text[])
        LOOP
            EXECUTE command;
        END LOOP;
    END $savepoint$;
"""  # noqa: S608 (all of it is written here)
CHECK = """
    SELECT set_config('savepoint.expected', {expected}, true);
    DO $savepoint$
    DECLARE
        expected CONSTANT jsonb := current_setting('savepoint.expected');
        found_rows jsonb := '{{}}';
        found_revision jsonb := '[]';
        found record;
        counted bigint;
    BEGIN
        PERFORM set_config('search_path', quote_ident(expected->>'schema_name'), true);
        FOR found IN {tables} LOOP
            EXECUTE format('SELECT count(*) FROM %I.%I', found.nspname, found.relname) INTO counted;
            found_rows := found_rows || jsonb_build_object(
                CASE WHEN found.nspname = expected->>'schema_name' THEN found.relname
                ELSE concat(found.nspname, '.', found.relname) END, counted);
        END LOOP;
        IF found_rows ? {version_key} THEN
            SELECT coalesce(jsonb_agg(version_num ORDER BY version_num COLLATE "C"), '[]') INTO found_revision
            FROM {version_table};
        END IF;
        IF found_rows <> expected->'rows' OR found_revision <> expected->'revision' THEN
            RAISE EXCEPTION 'the save does not hold the rows and the revision that its description says';
        END IF;
    END $savepoint$;
"""
