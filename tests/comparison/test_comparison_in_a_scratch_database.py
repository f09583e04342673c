"""Comparison: the scratch database, in which any right revision runs, and from which none reaches the live one."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from alembic_savepoint.connections import reading
from alembic_savepoint.doctor.scratch import NoScratch, scratch, server_wide
from db.engines import create_migration_engine
from tests.support.comparison import execute, found
from tests.support.migrations import HEAD, REVISIONS, add_revision, fill, look, only_postgresql
from tests.support.project import check, diagnose
from tests.support.rehearsal import databases
from tests.support.service import execute_on_server, query, wait_until

NEW = "ffffffffffff"


def runs(*statements: str) -> str:
    return "".join(f"    op.execute({sql!r})\n" for sql in statements)


def alone(*statements: str) -> str:
    """Outside of a transaction."""
    return "    with op.get_context().autocommit_block():\n" + runs(*statements).replace("    op", "        op")


RIGHT = {
    "an enum value added and used": runs("CREATE TYPE mood AS ENUM ('good')")
    + alone("ALTER TYPE mood ADD VALUE 'bad'")
    + runs("CREATE TABLE days (mood mood)", "INSERT INTO days VALUES ('bad')", "DROP TABLE days"),
    "an extension": runs("CREATE EXTENSION citext", "CREATE TABLE t (a citext)", "DROP TABLE t"),
    "a function of an extension": runs("CREATE EXTENSION pg_trgm", "SELECT similarity('a', 'b')"),
    "a function and a trigger": runs(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
        "CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch()",
    ),
    "a materialized view": runs("CREATE MATERIALIZED VIEW names AS SELECT username FROM users")
    + alone("CREATE UNIQUE INDEX CONCURRENTLY uq_names ON names (username)")
    + alone("REFRESH MATERIALIZED VIEW CONCURRENTLY names"),
    "no transaction": alone("VACUUM users", "CREATE INDEX CONCURRENTLY ix ON users (email)", "DROP INDEX ix"),
    "the schema's name": runs("ALTER TABLE public.users ADD COLUMN a int", "ALTER TABLE public.users DROP COLUMN a"),
    "a schema of its own": runs("CREATE SCHEMA audit", "CREATE TABLE audit.log (id int)"),
}


@only_postgresql
@pytest.mark.parametrize("right", RIGHT)
def test_a_right_revision_is_no_finding(
    url: str, folder: Path, config: Config, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(folder, NEW, HEAD, RIGHT[right])
    monkeypatch.setenv("DATABASE_URL", url)
    assert [kind for kind, _ in found(url, config)] == ["behind"]

    command.upgrade(config, "head")

    assert found(url, config) == []
    assert len(databases(url)) == 1


def test_vacuum_outside_of_a_transaction_is_no_finding(url: str, folder: Path, config: Config) -> None:
    add_revision(folder, NEW, HEAD, alone("VACUUM"))

    assert [kind for kind, _ in found(url, config)] == ["behind"]


HOSTILE = {
    "it commits": runs(
        "COMMIT", "UPDATE users SET email = 'nobody@example.com'", "ALTER TABLE users ADD COLUMN a INTEGER"
    ),
    "it names the schema": runs(
        "UPDATE main.users SET email = 'nobody@example.com'", "ALTER TABLE main.users ADD COLUMN a INTEGER", "COMMIT"
    ),
    "another connection": "    from alembic import context\n    op.execute('COMMIT')\n"
    "    url = context.config.get_main_option('sqlalchemy.url')\n"
    "    engine = sa.create_engine(url.replace('sql:', 'sql+psycopg:'), poolclass=sa.NullPool)\n"
    "    for each in (op.get_bind().engine, engine):\n"
    "        with each.begin() as other:\n"
    "            other.execute(sa.text(\"UPDATE users SET email = 'nobody@example.com'\"))\n"
    "    op.execute('ALTER TABLE users ADD COLUMN a INTEGER')\n",
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_revision_reaches_the_live_database(
    url: str, engine: str, folder: Path, config: Config, hostile: str
) -> None:
    config.set_main_option("sqlalchemy.url", url)
    fill(url, *REVISIONS)
    body = HOSTILE[hostile]
    add_revision(folder, NEW, HEAD, body if engine == "sqlite" else body.replace("main.", "public."))
    before = look(url)

    undone, (behind, _) = found(url, config)
    assert undone == ("not-in-revisions", "users: column a is there and should not be")
    assert behind == "behind"
    assert look(url) == before
    assert config.get_main_option("sqlalchemy.url") == url


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("create role app", "CREATE ROLE"),
        ("ALTER DATABASE app SET timezone = 'UTC'", "ALTER DATABASE"),
        ("DO $$ BEGIN EXECUTE 'CREATE USER app'; END $$", "CREATE USER"),
        ("GRANT admin TO app", "GRANT ADMIN"),
        ("GRANT CONNECT ON DATABASE app TO app", "ON DATABASE"),
        ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM"),
        ("CREATE USER MAPPING FOR app SERVER other", None),
        ("GRANT SELECT ON users TO app WITH GRANT OPTION", None),
        ("INSERT INTO rights VALUES ('create user')", None),
    ],
)
def test_what_changes_the_whole_server_is_told_by_its_words(sql: str, words: str | None) -> None:
    assert server_wide(sql) == words


@only_postgresql
def test_a_revision_that_changes_the_whole_server_is_not_run(url: str, folder: Path, config: Config) -> None:
    add_revision(folder, NEW, HEAD, runs("CREATE ROLE of_a_revision"))

    (kind, text), _ = found(url, config)

    assert (kind, "(CREATE ROLE)" in text) == ("not-compared", True)
    assert query(url, "SELECT 1 FROM pg_roles WHERE rolname = 'of_a_revision'") == []


@only_postgresql
def test_no_lock_is_held_while_the_revisions_run(url: str, folder: Path, config: Config) -> None:
    add_revision(folder, NEW, HEAD, '    op.execute("SELECT pg_sleep(3)")')
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND starts_with(datname, current_database())"

    # At an older one, so that doctor, too, runs all revisions.
    query(url, f"DELETE FROM alembic_version; INSERT INTO alembic_version VALUES ('{REVISIONS[1]}')")
    looks: list[Callable[[], object]] = [
        lambda: found(url, config),
        lambda: diagnose(url, folder / "migrations" / "versions", folder),
    ]
    with ThreadPoolExecutor(1) as pool, psycopg.connect(url, autocommit=True) as other:
        other.execute("SET lock_timeout = '500ms'")
        for look_at in looks:
            running = pool.submit(look_at)
            wait_until(partial(lambda it: it.done() or query(url, asleep) != [], running), "the revision")
            assert not running.done()
            for table in ("users", "alembic_version", "applied_revisions"):
                other.execute(f"ALTER TABLE {table} ADD COLUMN x int; ALTER TABLE {table} DROP COLUMN x".encode())
            running.result()


@only_postgresql
@pytest.mark.parametrize("table", ["users", "alembic_version"])
def test_a_locked_table_ends_check_and_doctor_within_seconds_with_a_message(url: str, table: str, folder: Path) -> None:
    with psycopg.connect(url) as reader, psycopg.connect(url) as migrating, ThreadPoolExecutor(1) as pool:
        reader.execute(f"SELECT * FROM {table}".encode())
        # It waits for the reader, and everybody who reads the table from now on waits for it.
        queued = pool.submit(migrating.execute, f"ALTER TABLE {table} ADD COLUMN x int".encode())
        wait_until(lambda: query(url, "SELECT 1 FROM pg_locks WHERE NOT granted") != [], "the queue")
        began = time.monotonic()
        try:
            said = [*check(url), *diagnose(url, folder / "migrations" / "versions", folder)]
            took = time.monotonic() - began
            assert query(url, "SELECT count(*) FROM profiles") == [(0,)]
        finally:
            reader.rollback()
            queued.result(10)

    assert took < 12
    assert [each.kind for each in said] == ["database-unreadable"] * 2
    assert all("locked by another session" in each.evidence[0] for each in said)


@pytest.fixture
def given_url(url: str, postgresql_url: str) -> Iterator[str]:
    """A database that may be filled and emptied."""
    name = f"given_{sa.make_url(url).database}"
    execute_on_server(postgresql_url, f"CREATE DATABASE {name}")
    yield postgresql_url.format(name)
    execute_on_server(postgresql_url, f"DROP DATABASE {name}")


@only_postgresql
def test_a_database_that_is_given_is_used_and_left_empty(
    url: str, given_url: str, folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two branches make it necessary to empty it in between as well.
    objects = runs(
        "CREATE EXTENSION hstore", "CREATE SCHEMA audit", "CREATE TYPE mood AS ENUM ('good')",
        "CREATE TABLE days (id int GENERATED ALWAYS AS IDENTITY, mood mood) PARTITION BY LIST (mood)",
        "CREATE TABLE good_days PARTITION OF days FOR VALUES IN ('good')", "CREATE SEQUENCE numbers",
        "CREATE VIEW moods AS SELECT mood FROM days", "CREATE COLLATION german (locale = 'C')",
        "CREATE FUNCTION f(days) RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE PUBLICATION all_days FOR ALL TABLES",
        "CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int)",
    )  # fmt: skip
    add_revision(folder, NEW, HEAD, objects)
    monkeypatch.setenv("DATABASE_URL", url)
    config.set_main_option("savepoint_scratch_url", given_url)
    may_create_none = f"CREATE ROLE poor LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor; -- {url}"
    execute(url, may_create_none)
    try:
        findings = found(url.replace("postgres@", "poor@"), config)
    finally:
        execute(url, "DROP OWNED BY poor; DROP ROLE poor")

    assert {kind for kind, _ in findings} == {"behind", "not-in-revisions"}
    everything = """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT collname FROM pg_collation WHERE collnamespace = 'public'::regnamespace
        UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'audit'
        UNION ALL SELECT pubname FROM pg_publication
        UNION ALL SELECT extname FROM pg_extension WHERE extname <> 'plpgsql'
    """
    assert query(given_url, everything) == []


@only_postgresql
def test_a_database_that_is_given_must_be_empty_another_and_free(url: str, given_url: str) -> None:
    def refusal(scratch_url: str) -> str:
        with (
            create_migration_engine(url).connect() as live,
            scratch(live, scratch_url=scratch_url) as place,
            pytest.raises(NoScratch) as refused,
            place.empty(),
        ):
            pass
        return str(refused.value)

    before = look(url)
    assert "names the live database" in refusal(url)
    assert look(url) == before
    with psycopg.connect(given_url) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('alembic scratch_url'))")
        assert "Another process uses" in refusal(given_url)
    execute(given_url, "CREATE TABLE of_somebody (id int)")
    assert "holds of_somebody" in refusal(given_url)
    assert query(given_url, "SELECT * FROM of_somebody") == []
    assert "no PostgreSQL database" in refusal("sqlite:///x.db")


@only_postgresql
def test_a_scratch_database_in_use_is_not_taken_for_left_over(url: str) -> None:
    with create_migration_engine(url).connect() as live, scratch(live) as one, one.empty() as place:
        assert found(url) == []
        assert place.scalar(sa.text("SELECT 1")) == 1


@only_postgresql
def test_an_extension_that_may_not_be_created_is_named_and_only_if_it_is_needed(
    url: str, folder: Path, config: Config
) -> None:
    execute(url, "CREATE EXTENSION pageinspect")
    role = f"creator_of_{sa.make_url(url).database}"
    execute(url, f"CREATE ROLE {role} LOGIN CREATEDB; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        assert found(url.replace("postgres@", f"{role}@")) == []
        add_revision(folder, NEW, HEAD, runs("SELECT page_checksum('', 0)"))
        (kind, text), _ = found(url.replace("postgres@", f"{role}@"), config)
    finally:
        execute(url, f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert kind == "not-compared"
    assert "pageinspect (permission denied to create extension" in text


@only_postgresql
def test_what_only_reads_cannot_write(url: str) -> None:
    with reading(url) as connection, pytest.raises(sa.exc.InternalError, match="read-only"):
        connection.exec_driver_sql("DELETE FROM users")


@only_postgresql
def test_a_scratch_database_is_as_the_live_one(url: str, postgresql_url: str) -> None:
    name = f"own_{sa.make_url(url).database}"
    execute_on_server(
        postgresql_url,
        f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'",
    )
    likeness = (
        "SELECT encoding, datlocprovider, datcollate, datctype, to_jsonb(pg_database) ->> 'datlocale',"
        " current_schemas(false) FROM pg_database WHERE datname = current_database()"
    )
    execute(postgresql_url.format(name), f"CREATE SCHEMA app; ALTER DATABASE {name} SET search_path = app, public")
    try:
        with (
            closing(create_migration_engine(postgresql_url.format(name)).connect()) as live,
            scratch(live) as one,
            one.empty() as place,
        ):
            assert place.execute(sa.text(likeness)).all() == live.execute(sa.text(likeness)).all()
    finally:
        execute_on_server(postgresql_url, f"DROP DATABASE {name}")
