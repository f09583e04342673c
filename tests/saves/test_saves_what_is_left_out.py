"""Saves of PostgreSQL: what a save leaves out is named, and what a load cannot bring back it does not drop."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from alembic_savepoint.backup.saves import SaveError, SaveRefused
from tests.support.project import contents, load, save
from tests.support.saves import Run, files_in, only_postgresql, plain_dump
from tests.support.service import new_database, query

pytestmark = [pytest.mark.slow, only_postgresql]


def test_what_a_save_leaves_out_is_printed_and_described(run: Run, full_url: str, folder: Path) -> None:
    query(
        full_url,
        """
        CREATE FUNCTION act() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
        CREATE EVENT TRIGGER watch ON sql_drop EXECUTE FUNCTION act(); ALTER EVENT TRIGGER watch DISABLE;
        CREATE PUBLICATION all_of_it FOR ALL TABLES;
        CREATE TYPE mood AS ENUM ('glad'); CREATE FUNCTION number(mood) RETURNS integer RETURN 1;
        CREATE CAST (mood AS integer) WITH FUNCTION number(mood);
        CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
        CREATE FOREIGN TABLE hosts (line text) SERVER files OPTIONS (filename '/etc/hosts');
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO pg_monitor;
        ALTER TABLE profiles OWNER TO pg_database_owner;
        SELECT lo_create(0), lo_create(0)
        """,
    )

    result = run("save", "kept")

    described = json.loads((folder / "kept.json").read_text())["left_out"]
    assert described == [
        "2 large objects",
        "cast (public.mood AS integer)",
        "default privileges of postgres",
        "event trigger watch",
        "ownership by the role pg_database_owner: what a load restores belongs to the role that loads",
        "publication all_of_it",
        "rows of the foreign table hosts",
        "server files",
    ]
    assert result.exit_code == 0
    assert all(f"Not in the save: {text}\n" in result.stderr for text in described)


@pytest.mark.parametrize(
    ("create", "name"),
    [
        ("CREATE PUBLICATION one FOR TABLE users", "publication relation public.users in publication one"),
        (
            "CREATE FUNCTION number(users) RETURNS integer RETURN 1; "
            "CREATE CAST (users AS integer) WITH FUNCTION number(users)",
            r"cast \(public.users AS integer\)",
        ),
        (
            "CREATE FUNCTION act() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; "
            "CREATE EVENT TRIGGER watch ON sql_drop WHEN tag IN ('DROP OPERATOR') EXECUTE FUNCTION act()",
            "event trigger watch",
        ),
    ],
)
def test_what_a_load_would_drop_for_good_refuses_it(full_url: str, folder: Path, create: str, name: str) -> None:
    query(full_url, create)
    save(full_url, folder, "kept")
    before = plain_dump(full_url)

    with pytest.raises(SaveError, match=f"{name} depends on what the save replaces.*Drop it before the load"):
        load(full_url, folder, "kept")

    assert plain_dump(full_url) == before
    assert files_in(folder) == ["kept.dump", "kept.json"]


def test_foreign_tables_come_back_where_their_server_is(empty_url: str, folder: Path) -> None:
    query(empty_url, "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw")
    query(empty_url, "CREATE FOREIGN TABLE hosts (line text) SERVER files OPTIONS (filename '/etc/hosts')")
    query(empty_url, "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)")
    before = plain_dump(empty_url)
    save(empty_url, folder, "kept")
    query(empty_url, "DROP FOREIGN TABLE hosts; DELETE FROM t")

    load(empty_url, folder, "kept")

    assert plain_dump(empty_url) == before


def test_a_later_schema_or_extension_stays_and_is_named(
    full_url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(full_url, folder, "kept")
    query(full_url, "CREATE SCHEMA billing; CREATE TABLE billing.t AS SELECT 1 AS id; CREATE EXTENSION citext")

    load(full_url, folder, "kept")

    assert query(full_url, "SELECT * FROM billing.t") == [(1,)]
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("Not in the save, and left as it was: the schema billing, the extension citext. ")


def test_rows_of_all_schemas_are_counted(empty_url: str) -> None:
    query(empty_url, "CREATE TABLE t AS SELECT 1; CREATE SCHEMA billing; CREATE TABLE billing.t (id integer)")

    found = contents(empty_url)

    assert found is not None
    assert found.rows == {"t": 1, "billing.t": 0}


def test_a_save_of_an_earlier_version_is_loaded(empty_url: str, folder: Path) -> None:
    query(empty_url, "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)")
    save(empty_url, folder, "kept")
    described = json.loads((folder / "kept.json").read_text())
    for later in ("schemas", "search_path", "extensions", "left_out"):
        del described[later]
    (folder / "kept.json").write_text(json.dumps(described))
    query(empty_url, "DELETE FROM t; CREATE SCHEMA other; CREATE TABLE other.t (id integer)")

    load(empty_url, folder, "kept")

    assert query(empty_url, "SELECT id FROM t") == [(1,)]
    assert query(empty_url, "SELECT id FROM other.t") == []


@pytest.fixture
def role(empty_url: str) -> Iterator[str]:
    """A role that is no superuser, and may create in the schema public."""
    name = f"role_{time.time_ns()}"
    query(empty_url, f"CREATE ROLE {name} LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO {name}")
    yield name
    query(empty_url, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


def test_a_role_saves_the_schemas_that_it_owns_and_names_the_others(empty_url: str, role: str, folder: Path) -> None:
    query(empty_url, "CREATE SCHEMA theirs; CREATE TABLE theirs.t (id integer)")
    query(empty_url, f"CREATE SCHEMA ours AUTHORIZATION {role}")
    url = as_role(empty_url, role)
    query(url, "CREATE TABLE t (id integer); CREATE TABLE ours.t AS SELECT 1 AS id")
    before = plain_dump(empty_url)

    made = save(url, folder, "kept")
    query(url, "DROP TABLE ours.t")
    load(url, folder, "kept")

    assert made.schemas == ("ours", "public")
    assert made.left_out == ("schema theirs",)
    assert plain_dump(empty_url) == before


def test_extensions_that_cannot_be_created_are_named(
    empty_url: str, role: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    query(empty_url, "CREATE EXTENSION bloom; CREATE TABLE t (id integer)")
    save(empty_url, folder, "kept")
    with new_database("postgresql", tmp_path, request) as elsewhere:
        query(elsewhere, f"GRANT USAGE, CREATE ON SCHEMA public TO {role}")
        with pytest.raises(SaveError, match='as a superuser, and load again: CREATE EXTENSION "bloom"'):
            load(as_role(elsewhere, role), folder, "kept")
        query(elsewhere, "CREATE SCHEMA other; CREATE EXTENSION bloom SCHEMA other")
        with pytest.raises(SaveRefused, match='ALTER EXTENSION "bloom" SET SCHEMA "public"'):
            load(elsewhere, folder, "kept")
        path = folder / "kept.json"
        path.write_text(path.read_text().replace('"bloom"', '"postgis"'))
        with pytest.raises(SaveRefused, match=r"does not offer: postgis \(1.0\).*Install their packages"):
            load(elsewhere, folder, "kept")
        query(elsewhere, f"DROP OWNED BY {role}")


@pytest.fixture
def places(empty_url: str) -> Iterator[str]:
    """A database with an extension whose table holds rows of its own and rows that users add, as PostGIS's does."""
    if not query(empty_url, "SELECT 1 FROM pg_settings WHERE name = 'extension_control_path'"):
        pytest.skip("PostgreSQL before 18 finds extensions in its own folder only")
    with tempfile.TemporaryDirectory() as folder:
        # The server is another user.
        Path(folder).chmod(0o755)
        files = Path(folder, "extension")
        files.mkdir()
        (files / "places.control").write_text("default_version = '1.0'\n")
        (files / "places--1.0.sql").write_text(
            "CREATE TABLE spots (id integer PRIMARY KEY, own boolean); INSERT INTO spots VALUES (1, true);\n"
            "SELECT pg_extension_config_dump('spots', 'WHERE NOT own');"
        )
        name = make_url(empty_url).database
        query(empty_url, f"ALTER DATABASE {name} SET extension_control_path = '{folder}:$system'")
        query(empty_url, "CREATE EXTENSION places; INSERT INTO spots VALUES (2, false)")
        yield empty_url


def test_rows_in_the_tables_of_extensions_come_back(places: str, folder: Path) -> None:
    query(places, "CREATE TABLE t (id integer REFERENCES spots); INSERT INTO t VALUES (2)")
    save(places, folder, "kept")
    query(places, "DELETE FROM t; DELETE FROM spots WHERE id = 2; INSERT INTO spots VALUES (3, false)")

    load(places, folder, "kept")

    assert query(places, "SELECT id FROM spots ORDER BY id") == [(1,), (2,)]
    assert query(places, "SELECT id FROM t") == [(2,)]


def test_rows_in_the_tables_of_others_extensions_stay_and_are_named(places: str, role: str, folder: Path) -> None:
    query(places, "GRANT SELECT ON spots TO PUBLIC")
    url = as_role(places, role)
    query(url, "CREATE TABLE t (id integer); INSERT INTO t VALUES (2)")
    made = save(url, folder, "kept")
    query(url, "DELETE FROM t")
    query(places, "INSERT INTO spots VALUES (3, false)")

    load(url, folder, "kept")

    assert "rows of public.spots, which an extension owns" in made.left_out
    assert query(places, "SELECT id FROM spots ORDER BY id") == [(1,), (2,), (3,)]
    assert query(places, "SELECT id FROM t") == [(2,)]


def test_a_save_is_not_loaded_where_its_schema_would_not_be_the_current_one(
    empty_url: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    query(empty_url, "CREATE SCHEMA app; CREATE TABLE app.t (id integer)")
    path = "&options=-csearch_path%3Dapp"
    save(empty_url + path, folder, "kept")
    with new_database("postgresql", tmp_path, request) as elsewhere:
        with pytest.raises(SaveError, match="is of the schema app, and the current one is public"):
            load(elsewhere, folder, "kept")
        load(elsewhere + path, folder, "kept")
        with psycopg.connect(elsewhere + path) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
