"""Saves: PostgreSQL."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from alembic_savepoint.backup import saves_postgresql
from alembic_savepoint.backup.saves import SaveError, SaveRefused, list_saves
from tests.support.migrations import REVISIONS, fill
from tests.support.project import load, save
from tests.support.saves import Run, change, files_in, only_postgresql, plain_dump, state, upgrade
from tests.support.service import query, wait_until

pytestmark = pytest.mark.slow


@only_postgresql
@pytest.mark.parametrize("statement", ["DELETE FROM entries", "SELECT count(*) FROM entries"])
def test_a_load_names_who_holds_the_tables(full_url: str, folder: Path, statement: str) -> None:
    save(full_url, folder, "kept")
    with psycopg.connect(full_url) as holder:
        holder.execute(statement.encode())

        with pytest.raises(SaveError, match=rf"Process {holder.info.backend_pid}, for \d+ seconds: {statement[:6]}"):
            load(full_url, folder, "kept", lock_timeout=0.05)

    assert files_in(folder) == ["kept.dump", "kept.json"]
    load(full_url, folder, "kept")


@only_postgresql
def test_a_load_comes_to_its_turn_although_who_reads_goes_on_to_write(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    change(full_url)

    def read_then_write() -> None:
        # It waits for the load's lock, and the load for its.
        with psycopg.connect(full_url) as connection:
            connection.execute("SET LOCAL lock_timeout = 500")
            connection.execute("SELECT count(*) FROM users")
            reading.set()
            wait_until(lambda: files_in(folder)[-1].startswith("replaced-"), "the load to lock and to save")
            with pytest.raises((psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)):
                connection.execute("UPDATE users SET email = 'late@example.com'")

    reading = threading.Event()
    thread = threading.Thread(target=read_then_write)
    thread.start()
    reading.wait(10)
    load(full_url, folder, "kept")
    thread.join()

    assert query(full_url, "SELECT count(*) FROM profiles") == [(2,)]


@only_postgresql
def test_all_kinds_of_objects_are_replaced(url: str, folder: Path) -> None:
    query(
        url,
        """
        CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE TYPE pair AS (a integer, b text);
        CREATE TYPE span AS RANGE (subtype = float8);
        CREATE FUNCTION next(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
        CREATE AGGREGATE total(integer) (sfunc = int4pl, stype = integer);
        CREATE TABLE "odd "" name" (id serial PRIMARY KEY, n integer GENERATED ALWAYS AS IDENTITY, m mood, p positive);
        CREATE TABLE parts (id integer, s span, p pair, words text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
        CREATE INDEX ON parts (next(id));
        CREATE VIEW odd AS SELECT * FROM "odd "" name";
        CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM odd;
        CREATE SEQUENCE numbers;
        INSERT INTO "odd "" name" (m, p) VALUES ('glad', 1), ('sad', 2);
        INSERT INTO parts VALUES (5, '[1,2]', (1, 'x'), E'tab\\tline\\nCOMMIT;\\n\\\\.')
        """,
    )
    before = plain_dump(url)
    save(url, folder, "kept")
    query(url, "DROP VIEW odd CASCADE; CREATE TABLE more (id integer); UPDATE parts SET id = 6")

    load(url, folder, "kept")

    assert plain_dump(url) == before


@only_postgresql
@pytest.mark.parametrize("name", ["a FROM stdin;\nb", "a\nCOPY b", "x TO ghost;\ny", "it's\n\\.\n", "--\n;\n''"])
def test_a_name_of_several_lines_is_no_statement(url: str, folder: Path, name: str) -> None:
    query(
        url,
        f"""
        CREATE TABLE "{name}" (id serial, "{name} c" text);
        CREATE SEQUENCE "{name} s";
        GRANT SELECT ON "{name}" TO PUBLIC;
        INSERT INTO "{name}" ("{name} c") VALUES ('one'), (E'\\\\.\n'), (NULL);
        """,
    )
    before = plain_dump(url)
    save(url, folder, "kept")
    query(url, f'DROP TABLE "{name}"')

    load(url, folder, "kept")

    assert plain_dump(url) == before


@only_postgresql
@pytest.mark.parametrize(
    "dependent",
    ["CREATE VIEW other.names AS SELECT username FROM users", "CREATE TABLE other.t (id bigint REFERENCES users (id))"],
)
def test_what_is_in_another_schema_is_never_dropped(full_url: str, folder: Path, dependent: str) -> None:
    save(full_url, folder, "kept")
    query(full_url, f"CREATE SCHEMA other; {dependent}")
    before = plain_dump(full_url)

    with pytest.raises(SaveError, match=r"other\.\w+.* depends on what the save replaces"):
        load(full_url, folder, "kept")

    assert plain_dump(full_url) == before


@only_postgresql
def test_a_role_that_owns_only_the_tables_can_save_and_load_and_the_grants_stay(
    empty_url: str, folder: Path, postgresql_url: str
) -> None:
    role, database = (f"role_{time.time_ns()}", make_url(empty_url).database)
    query(empty_url, f"CREATE ROLE {role} LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO {role}")
    query(empty_url, "GRANT USAGE ON SCHEMA public TO pg_monitor; CREATE FUNCTION mine() RETURNS integer RETURN 1")
    limited = postgresql_url.format(database).replace("postgres@", f"{role}@")
    try:
        upgrade(limited, "head")
        query(limited, "GRANT SELECT ON users TO pg_monitor")
        fill(limited, *REVISIONS)
        query(empty_url, "DROP FUNCTION mine()")
        before = plain_dump(empty_url)
        save(limited, folder, "kept")
        change(limited)
        query(empty_url, "CREATE FUNCTION mine() RETURNS integer RETURN 1")

        load(limited, folder, "kept")

        assert query(empty_url, "SELECT mine()") == [(1,)]
        query(empty_url, "DROP FUNCTION mine()")
        assert plain_dump(empty_url) == before
    finally:
        query(empty_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
def role(full_url: str) -> Iterator[str]:
    """A role, in quotes that its name needs; a test may drop it."""
    name = f'"reader {time.time_ns()}"'
    query(full_url, f"CREATE ROLE {name}")
    yield name
    if query(full_url, f"SELECT rolname FROM pg_roles WHERE quote_ident(rolname) = '{name}'"):
        query(full_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


@only_postgresql
def test_a_save_is_loaded_without_what_it_grants_to_roles_that_are_not_there(
    full_url: str, role: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    query(full_url, "GRANT SELECT ON users TO pg_monitor; GRANT SELECT (user_id) ON profiles TO pg_monitor")
    before = plain_dump(full_url)
    query(full_url, f"GRANT SELECT ON users TO {role} WITH GRANT OPTION; GRANT SELECT (id) ON transfers TO {role}")
    query(full_url, f"SET ROLE {role}; GRANT SELECT ON users TO pg_read_all_data")
    save(full_url, folder, "kept")
    query(full_url, f"DROP OWNED BY {role}; DROP ROLE {role}")

    load(full_url, folder, "kept")

    query(full_url, "REVOKE SELECT ON users FROM pg_read_all_data")
    assert plain_dump(full_url) == before
    assert [record.getMessage() for record in caplog.records if role in record.getMessage()] == [
        f"The server has no role {role}, so nothing was granted to it. To restore its grants, create it (CREATE ROLE "
        f"{role}), and load kept again."
    ]


@only_postgresql
def test_a_policy_for_a_role_that_is_not_there_says_what_to_create(full_url: str, role: str, folder: Path) -> None:
    query(full_url, f"CREATE POLICY own ON users TO {role}")
    save(full_url, folder, "kept")
    query(full_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
    before = state(full_url)

    with pytest.raises(SaveError, match=f"Create it, and load again: CREATE ROLE {role}"):
        load(full_url, folder, "kept")

    assert state(full_url) == before
    assert files_in(folder) == ["kept.dump", "kept.json"]


@only_postgresql
def test_no_table_can_be_altered_from_before_a_save_sees_it_until_it_is_dumped(url: str) -> None:
    # A table that is rewritten seems to be empty to whoever saw the database before.
    with saves_postgresql.connect_postgresql(url, 1), psycopg.connect(url) as migration:
        migration.execute("SET lock_timeout = 1")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            migration.execute("ALTER TABLE users ALTER COLUMN email TYPE varchar(90)")


@only_postgresql
def test_a_script_sets_nothing_that_servers_before_17_do_not_know(full_url: str, folder: Path) -> None:
    copy = save(full_url, folder, "kept").copy_in(folder)

    with saves_postgresql.script_of(copy, saves_postgresql.entries_of(copy, "15.0")[0], "15.0") as lines:
        script = b"".join(lines)

    assert b"transaction_timeout" in subprocess.run(["pg_restore", "-f-", copy], check=True, capture_output=True).stdout
    assert b"\nSET transaction_timeout" not in script


@only_postgresql
def test_another_schema_than_public_is_saved_and_loaded_and_keeps_what_is_granted_on_it(
    empty_url: str, folder: Path
) -> None:
    query(empty_url, "CREATE SCHEMA other; COMMENT ON SCHEMA other IS 'x'; GRANT USAGE ON SCHEMA other TO pg_monitor")
    query(empty_url, "CREATE TABLE bystander (id integer); INSERT INTO bystander VALUES (1)")
    url = f"{empty_url}&options=-csearch_path%3Dother"
    upgrade(url, "head")
    fill(url, *REVISIONS)
    before = plain_dump(empty_url)
    save(url, folder, "kept")
    change(url)

    load(url, folder, "kept")

    assert plain_dump(empty_url) == before


@only_postgresql
def test_a_save_of_another_schema_is_refused(full_url: str, folder: Path) -> None:
    save(full_url, folder, "kept")
    query(full_url, "CREATE SCHEMA other")

    with pytest.raises(SaveRefused, match="is of the schema public, and the current one is other"):
        load(f"{full_url}&options=-csearch_path%3Dother", folder, "kept")


@only_postgresql
def test_a_url_with_several_hosts_works(full_url: str, folder: Path) -> None:
    socket = make_url(full_url).query["host"]
    several = full_url.replace(f"host={socket}", f"host={socket}:1&host={socket}:5432")
    before = state(full_url)

    save(several, folder, "kept")
    change(full_url)
    load(several, folder, "kept")

    assert state(full_url) == before


def fake(program: str, folder: Path, script: str, version: int = 99) -> None:
    """Put another program before PostgreSQL's own."""
    folder.mkdir()
    path = folder / program
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{program} (PostgreSQL) {version}.1" && exit\n{script}\n')
    path.chmod(0o755)


@only_postgresql
def test_a_commit_whose_answer_does_not_arrive_is_not_taken_for_a_failure(
    full_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = saves_postgresql.commit

    def lose(connection: psycopg.Connection) -> None:
        query(full_url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        commit(connection)

    save(full_url, folder, "kept")
    monkeypatch.setattr(saves_postgresql, "commit", lose)

    with pytest.raises(SaveError, match="it is not known whether the save was loaded"):
        load(full_url, folder, "kept")
    assert len(list_saves(folder)) == 2


@only_postgresql
def test_a_password_is_never_on_a_command_line(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    fake("pg_dump", tmp_path / "bin", f'echo "$PGPASSWORD" "$@" > {tmp_path}/said; exit 1')

    with pytest.raises(SaveError):
        save(url.replace("postgres@", "postgres:hunter%402@"), folder)

    password, _, arguments = (tmp_path / "said").read_text().partition(" ")
    assert password == "hunter@2"
    assert "dbname" in arguments
    assert "hunter" not in arguments


@only_postgresql
def test_a_pg_dump_that_is_missing_or_too_old_says_what_to_install(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    missing = run("save")
    fake("pg_dump", tmp_path / "bin", "", version=9)
    too_old = run("save")

    for result, words in ((missing, "pg_dump is not on the PATH"), (too_old, "too old for the server")):
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
        assert "apt install postgresql-client-18" in result.stderr
    assert files_in(folder) == []
