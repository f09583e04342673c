"""`python manage.py check`: what a schema, its revisions and the models say, against each other and without a trace."""

import json
import logging
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from conftest import ROOT, query, wait_until
from sqlmodel import SQLModel
from test_migrations import REVISIONS, add_revision, fill, look, only_postgresql, only_sqlite
from typer.testing import CliRunner, Result

import manage
from db.engines import create_migration_engine
from migrations import comparison, saves
from migrations.catalog import Schema, constraints, schema_of
from migrations.comparison import check_schema, differences, schema_of_models, schema_of_revision
from migrations.revisions import read_history, versions_folder
from schema import ALEMBIC_INI

NEW = "ffffffffffff"
"""A revision that a test adds to a copy of the migrations."""
HEAD = REVISIONS[-1]
ADD_COLUMN = '    op.add_column("users", sa.Column("nickname", sa.String(length=30), nullable=True))'


def execute(url: str, sql: str) -> None:
    """Run statements by hand."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(sql)
    else:
        with psycopg.connect(url, autocommit=True) as postgresql:
            postgresql.execute(sql.encode())


def schema_at(url: str) -> Schema:
    """The schema of a database, as a comparison reads it."""
    with create_migration_engine(url).connect() as connection:
        return schema_of(connection)


def found(url: str, config: Config | None = None) -> list[tuple[str, str]]:
    """What the check finds: kinds and texts."""
    return [(finding.kind, finding.text) for finding in check_schema(url, config)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the migrations, to change."""
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    return tmp_path


@pytest.fixture
def config(folder: Path) -> Config:
    """Alembic's configuration for the copy."""
    return config_of(folder)


def config_of(folder: Path) -> Config:
    config = Config(ALEMBIC_INI)
    config.set_main_option("script_location", str(folder / "migrations"))
    return config


@pytest.fixture(scope="module")
def made() -> dict[Any, Schema]:
    """The schemas that were made to compare with."""
    return {}


@pytest.fixture
def _made_once(made: dict[Any, Schema], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make them once for all tests that change nothing but a database."""
    for function in (schema_of_models, schema_of_revision):

        def remember(connection: sa.Connection, *arguments: Any, make: Any = function) -> Schema:
            key = (make, connection.dialect.name)
            if key not in made:
                made[key] = make(connection, *arguments)
            return made[key]

        monkeypatch.setattr(comparison, function.__name__, remember)


# --- what is as it should be ------------------------------------------------------------------------------------------


def test_nothing_is_found_at_head(url: str) -> None:
    assert found(url) == []


def test_nothing_is_found_in_a_database_that_was_loaded_from_a_save(url: str, tmp_path: Path) -> None:
    saves.save(url, tmp_path, "kept")
    saves.load(url, tmp_path, "kept")

    assert check_schema(url) == []


def test_what_a_revision_makes_from_nothing_is_what_migrating_to_it_makes(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    for revision in REVISIONS:
        command.upgrade(Config(ALEMBIC_INI), revision)
        with create_migration_engine(empty_url).connect() as connection:
            assert differences(schema_of(connection), schema_of_revision(connection, revision)) == []
            assert schema_of(connection) == schema_of_revision(connection, [revision])
    assert schema_at(empty_url).keys() == SQLModel.metadata.tables.keys()


@pytest.mark.usefixtures("_made_once")
def test_a_column_in_another_place_is_no_difference(url: str) -> None:
    query(url, "ALTER TABLE access_tokens DROP COLUMN name")
    query(url, "ALTER TABLE access_tokens ADD COLUMN name VARCHAR(50)")

    assert found(url) == []


# --- what was changed by hand -----------------------------------------------------------------------------------------


def rewrite(table: str, old: str, new: str) -> str:
    """Change the text of a SQLite table, which is all that SQLite knows of it."""
    old, new = (text.replace("'", "''") for text in (old, new))
    return f"""
        PRAGMA writable_schema = ON;
        UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}' AND instr(sql, '{old}');
    """


BALANCE = "CONSTRAINT ck_accounts_balance CHECK (user_id IS NULL OR balance >= 0)"
ONE_SYSTEM_ACCOUNT = "CREATE UNIQUE INDEX uq_accounts_system_currency ON accounts (currency)"
OF_PROFILES = "CONSTRAINT fk_profiles_user_id_users FOREIGN KEY(user_id) REFERENCES users (id)"


@dataclass(frozen=True)
class Change:
    """Statements for each engine, and what the check then says, on PostgreSQL in other words perhaps."""

    sqlite: str
    postgresql: str
    found: str
    postgresql_found: str = ""

    def sql(self, engine: str) -> str:
        return self.sqlite if engine == "sqlite" else self.postgresql

    def finding(self, engine: str) -> str:
        return self.postgresql_found or self.found if engine == "postgresql" else self.found


def on_both(sql: str, found: str, postgresql_found: str = "") -> Change:
    return Change(sql, sql, found, postgresql_found)


CHANGES = {
    "a CHECK dropped": Change(
        rewrite("accounts", f"{BALANCE}, ", ""),
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance",
        "accounts: CHECK ck_accounts_balance is missing",
    ),
    "a CHECK changed": Change(
        rewrite("accounts", ">= 0", ">= -5"),
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance, "
        "ADD CONSTRAINT ck_accounts_balance CHECK (user_id IS NULL OR balance >= -5)",
        'accounts: CHECK ck_accounts_balance is "user_id IS NULL OR balance >= -5",'
        ' not "user_id IS NULL OR balance >= 0"',
        "accounts: CHECK ck_accounts_balance is \"user_id IS NULL OR balance >= '-5'::integer\","
        ' not "user_id IS NULL OR balance >= 0"',
    ),
    "a CHECK that old rows need not meet": Change(
        rewrite("accounts", "CHECK (user_id", "CHECK (version < 9 OR user_id"),
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance, "
        "ADD CONSTRAINT ck_accounts_balance CHECK (user_id IS NULL OR balance >= 0) NOT VALID",
        'accounts: CHECK ck_accounts_balance is "version < 9 OR user_id IS NULL OR balance >= 0",'
        ' not "user_id IS NULL OR balance >= 0"',
        'accounts: CHECK ck_accounts_balance is "CHECK (user_id IS NULL OR balance >= 0) NOT VALID",'
        ' not "user_id IS NULL OR balance >= 0"',
    ),
    "one more value": Change(
        rewrite("profiles", "'closed'", "'closed', 'gone'"),
        "ALTER TABLE profiles DROP CONSTRAINT ck_profiles_status, "
        "ADD CONSTRAINT ck_profiles_status CHECK (status IN ('active', 'suspended', 'closed', 'gone'))",
        "profiles: CHECK ck_profiles_status is \"status IN ('active', 'suspended', 'closed', 'gone')\","
        " not \"status IN ('active', 'suspended', 'closed')\"",
        "profiles: CHECK ck_profiles_status is \"status = ANY (ARRAY['active', 'suspended', 'closed', 'gone'])\","
        " not \"status = ANY (ARRAY['active', 'suspended', 'closed'])\"",
    ),
    "an index dropped": on_both(
        "DROP INDEX ix_access_tokens_user_id", "access_tokens: index ix_access_tokens_user_id is missing"
    ),
    "an index added": on_both(
        "CREATE INDEX ix_users_email ON users (email)", "users: index ix_users_email is there and should not be"
    ),
    "an index of an expression added": on_both(
        "CREATE INDEX ix_users_email ON users (lower(email))", "users: index ix_users_email is there and should not be"
    ),
    "an index on another column": on_both(
        "DROP INDEX ix_access_tokens_user_id; CREATE INDEX ix_access_tokens_user_id ON access_tokens (name)",
        'access_tokens: index ix_access_tokens_user_id is "(name)", not "(user_id)"',
        'access_tokens: index ix_access_tokens_user_id is "USING btree (name)", not "USING btree (user_id)"',
    ),
    "an index that is unique": on_both(
        "DROP INDEX ix_access_tokens_user_id; CREATE UNIQUE INDEX ix_access_tokens_user_id ON access_tokens (user_id)",
        'access_tokens: index ix_access_tokens_user_id is "UNIQUE (user_id)", not "(user_id)"',
        'access_tokens: index ix_access_tokens_user_id is "UNIQUE USING btree (user_id)", not "USING btree (user_id)"',
    ),
    "an index without its condition": on_both(
        f"DROP INDEX uq_accounts_system_currency; {ONE_SYSTEM_ACCOUNT}",
        'accounts: index uq_accounts_system_currency is "UNIQUE (currency)",'
        ' not "UNIQUE (currency) WHERE user_id IS NULL"',
        'accounts: index uq_accounts_system_currency is "UNIQUE USING btree (currency)",'
        ' not "UNIQUE USING btree (currency) WHERE user_id IS NULL"',
    ),
    "an index of another method": Change(
        "DROP INDEX ix_access_tokens_user_id; CREATE INDEX ix_access_tokens_user_id ON access_tokens (user_id DESC)",
        "DROP INDEX ix_access_tokens_user_id;"
        "CREATE INDEX ix_access_tokens_user_id ON access_tokens USING hash (user_id)",
        'access_tokens: index ix_access_tokens_user_id is "(user_id DESC)", not "(user_id)"',
        'access_tokens: index ix_access_tokens_user_id is "USING hash (user_id)", not "USING btree (user_id)"',
    ),
    "another length": Change(
        rewrite("users", "VARCHAR(100)", "VARCHAR(90)"),
        "ALTER TABLE users ALTER email TYPE VARCHAR(90)",
        'users: column email is "VARCHAR(90) NOT NULL", not "VARCHAR(100) NOT NULL"',
        'users: column email is "character varying(90) NOT NULL", not "character varying(100) NOT NULL"',
    ),
    "another type": Change(
        rewrite("entries", "amount BIGINT", "amount INTEGER"),
        "ALTER TABLE entries ALTER amount TYPE INTEGER",
        'entries: column amount is "INTEGER NOT NULL", not "BIGINT NOT NULL"',
        'entries: column amount is "integer NOT NULL", not "bigint NOT NULL"',
    ),
    "another collation": Change(
        rewrite("users", "VARCHAR(50)", "VARCHAR(50) COLLATE NOCASE"),
        'ALTER TABLE users ALTER username TYPE VARCHAR(50) COLLATE "C"',
        'users: column username is "VARCHAR(50) NOT NULL COLLATE NOCASE", not "VARCHAR(50) NOT NULL"',
        'users: column username is "character varying(50) COLLATE "C" NOT NULL", not "character varying(50) NOT NULL"',
    ),
    "null allowed": Change(
        rewrite("users", "email VARCHAR(100) NOT NULL", "email VARCHAR(100)"),
        "ALTER TABLE users ALTER email DROP NOT NULL",
        'users: column email is "VARCHAR(100)", not "VARCHAR(100) NOT NULL"',
        'users: column email is "character varying(100)", not "character varying(100) NOT NULL"',
    ),
    "a default": Change(
        rewrite("accounts", "version BIGINT", "version BIGINT DEFAULT 0"),
        "ALTER TABLE accounts ALTER version SET DEFAULT 0",
        'accounts: column version is "BIGINT NOT NULL DEFAULT 0", not "BIGINT NOT NULL"',
        'accounts: column version is "bigint NOT NULL DEFAULT 0", not "bigint NOT NULL"',
    ),
    "rows numbered otherwise": Change(
        rewrite("users", "CONSTRAINT pk_users PRIMARY KEY (id)", "CONSTRAINT pk_users PRIMARY KEY (id AUTOINCREMENT)"),
        "ALTER TABLE users ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY",
        'users: primary key pk_users is "PRIMARY KEY (id AUTOINCREMENT)", not "PRIMARY KEY (id)"',
        'users: column id is "bigint NOT NULL GENERATED ALWAYS AS IDENTITY",'
        " not \"bigint NOT NULL DEFAULT nextval('users_id_seq'::regclass)\"",
    ),
    "a table added": on_both(
        "CREATE TABLE gifts (id INTEGER PRIMARY KEY)", "gifts: table is there and should not be"
    ),
    "a table dropped": on_both("DROP TABLE access_tokens", "access_tokens: table is missing"),
    "a table of another kind": Change(
        rewrite("profiles", "users (id)\n)", "users (id)\n) WITHOUT ROWID"),
        "ALTER TABLE access_tokens SET UNLOGGED",
        'profiles: table is "WITHOUT ROWID", not "plain"',
        'access_tokens: table is "UNLOGGED", not "plain"',
    ),
    "a column added": on_both(
        "ALTER TABLE users ADD COLUMN nickname VARCHAR(30)", "users: column nickname is there and should not be"
    ),
    "a column dropped": on_both("ALTER TABLE users DROP COLUMN phone_number", "users: column phone_number is missing"),
    "a foreign key dropped": Change(
        rewrite("profiles", f", \n\t{OF_PROFILES}", ""),
        "ALTER TABLE profiles DROP CONSTRAINT fk_profiles_user_id_users",
        "profiles: foreign key fk_profiles_user_id_users is missing",
    ),
    "a foreign key that cascades": Change(
        rewrite("profiles", OF_PROFILES, f"{OF_PROFILES} ON DELETE CASCADE"),
        "ALTER TABLE profiles DROP CONSTRAINT fk_profiles_user_id_users, "
        f"ADD {OF_PROFILES} ON DELETE CASCADE",
        'profiles: foreign key fk_profiles_user_id_users is "FOREIGN KEY (user_id) REFERENCES users(id)'
        ' ON DELETE CASCADE", not "FOREIGN KEY (user_id) REFERENCES users(id)"',
    ),
    "a unique constraint dropped": Change(
        # Its index has to go too, or SQLite takes the file for damaged.
        "DROP TABLE access_tokens; CREATE TABLE access_tokens (id INTEGER NOT NULL, user_id INTEGER NOT NULL, "
        "token_hash VARCHAR(64) NOT NULL, name VARCHAR(50), created_at DATETIME NOT NULL, expires_at DATETIME, "
        "revoked_at DATETIME, CONSTRAINT pk_access_tokens PRIMARY KEY (id), CONSTRAINT fk_access_tokens_user_id_users "
        "FOREIGN KEY(user_id) REFERENCES users(id)); CREATE INDEX ix_access_tokens_user_id ON access_tokens (user_id)",
        "ALTER TABLE access_tokens DROP CONSTRAINT uq_access_tokens_token_hash",
        "access_tokens: unique constraint uq_access_tokens_token_hash is missing",
    ),
    "a constraint without a name": Change(
        rewrite("users", "CONSTRAINT uq_users_username", "CHECK (id > 0), CONSTRAINT uq_users_username"),
        "ALTER TABLE users ADD CHECK (id > 0)",
        'users: CHECK without a name, "id > 0", is there and should not be',
        "users: CHECK users_id_check is there and should not be",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("_made_once")
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_by_hand_is_found_once(url: str, engine: str, change: str) -> None:
    execute(url, CHANGES[change].sql(engine))

    assert found(url) == [("drift", CHANGES[change].finding(engine))]


def test_a_column_that_is_called_like_a_constraint_is_none(empty_url: str) -> None:
    execute(empty_url, "CREATE TABLE t (t_a_key INTEGER); CREATE INDEX t_b_check ON t (t_a_key)")

    assert [part for part in schema_at(empty_url)["t"] if not part.is_named] == []


@only_sqlite
@pytest.mark.parametrize(
    ("one", "other"),
    [
        # spelling
        ("a INT, CONSTRAINT c CHECK (a>0 AND a IS NOT 1)", '"a" int, constraint "c" check( a > 0 and a is not 1 )'),
        ("a INTEGER /* why */, -- so\n CONSTRAINT c UNIQUE (a)", "a INTEGER,\n\tconstraint [c] unique (`a`)"),
        # for a column, or for the table
        ("a INTEGER NOT NULL CONSTRAINT c CHECK (a > 0)", "a INTEGER NOT NULL, CONSTRAINT c CHECK (a > 0)"),
        ("a INTEGER PRIMARY KEY", "a INTEGER, PRIMARY KEY (a)"),
        ("a INTEGER UNIQUE DEFAULT 5 NOT NULL", "a INTEGER NOT NULL DEFAULT (5), UNIQUE (a)"),
        ("a INTEGER CONSTRAINT c REFERENCES t(a) ON DELETE SET NULL DEFAULT NULL",
         "a INTEGER DEFAULT NULL, CONSTRAINT c FOREIGN KEY (a) REFERENCES t(a) ON DELETE SET NULL"),
    ],
)  # fmt: skip
def test_how_a_sqlite_table_was_typed_is_no_difference(empty_url: str, tmp_path: Path, one: str, other: str) -> None:
    twin_url = f"sqlite:///{tmp_path}/twin.db"
    execute(empty_url, f"CREATE TABLE t ({one})")
    execute(twin_url, f"CREATE TABLE t ({other})")

    assert schema_at(empty_url)["t"] == schema_at(twin_url)["t"]


@pytest.mark.parametrize(
    ("sql", "texts"),
    [
        # words of SQL where they are none
        ("CREATE TABLE \"check\" (\"unique\" TEXT DEFAULT 'CHECK (x)', b TEXT /* , CHECK (b > 1) */)", []),
        ("CREATE TABLE t (a TEXT CHECK (a <> 'it''s, (fine'), b)", ["CHECK (a <> 'it''s, (fine')"]),
        ("CREATE TABLE t (\"a b\" INT CHECK (\"a b\" > -1 AND \"a b\" - 1 < max(2, 3)))",
         ["CHECK (\"a b\" > -1 AND \"a b\" - 1 < max(2, 3))"]),
        ("CREATE TABLE t (a DECIMAL(10, 2) COLLATE NOCASE UNIQUE ON CONFLICT IGNORE NOT NULL)",
         ["COLLATE NOCASE", "UNIQUE (a) ON CONFLICT IGNORE"]),
        ("CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a + 1) STORED)", ["AS (a + 1) STORED"]),
    ],
)  # fmt: skip
def test_the_constraints_of_a_sqlite_table_are_read_from_its_text(sql: str, texts: list[str]) -> None:
    assert [constraint.text for constraint in constraints(sql)] == texts


# --- what the models say ----------------------------------------------------------------------------------------------


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> sa.MetaData:
    """A copy of the models' tables, to change; the check takes it for the models."""
    conventions: Any = dict(SQLModel.metadata.naming_convention)
    del conventions["ck"]  # which lets no CHECK go without a name
    copy = sa.MetaData(naming_convention=conventions)
    for table in SQLModel.metadata.sorted_tables:
        table.to_metadata(copy)
    monkeypatch.setattr(SQLModel, "metadata", copy)
    return copy


def test_a_copy_of_the_models_is_as_good_as_they_are(url: str, metadata: sa.MetaData) -> None:
    assert found(url) == []


def test_what_no_revision_does_is_found_once(url: str, metadata: sa.MetaData) -> None:
    users = metadata.tables["users"]
    users.append_column(sa.Column("nickname", sa.String(30)))
    users.append_constraint(sa.CheckConstraint("id > 0", name="ck_users_id"))

    assert found(url) == [
        ("not-in-revisions", "users: CHECK ck_users_id is missing"),
        ("not-in-revisions", "users: column nickname is missing"),
    ]


def test_what_was_changed_by_hand_is_told_from_what_no_revision_does(url: str, metadata: sa.MetaData) -> None:
    metadata.tables["users"].append_column(sa.Column("nickname", sa.String(30)))
    query(url, "ALTER TABLE profiles ADD COLUMN note VARCHAR(30)")

    assert found(url) == [
        ("not-in-revisions", "users: column nickname is missing"),
        ("drift", "profiles: column note is there and should not be"),
    ]


@only_postgresql  # Only there do tables have comments.
def test_what_only_alembic_sees_is_found_too(url: str) -> None:
    query(url, "COMMENT ON COLUMN users.email IS 'as typed'")

    ((kind, text),) = found(url)
    assert kind == "alembic"
    assert text.startswith("users: op.alter_column('users', 'email',")


def test_a_constraint_without_a_name_is_found_where_models_and_revisions_agree_on_it(
    empty_url: str, metadata: sa.MetaData, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = 'sa.Column("kind", sa.Enum("a", "b", native_enum=False, create_constraint=True))'
    add_revision(folder, NEW, HEAD, f'    op.create_table("gifts", {kinds})')
    sa.Table("gifts", metadata, eval(kinds))  # noqa: S307
    monkeypatch.setenv("DATABASE_URL", empty_url)
    command.upgrade(config_of(folder), "head")

    ((kind, text),) = found(empty_url, config_of(folder))
    assert kind == "unnamed-constraint"
    assert re.fullmatch(r"gifts: CHECK kind.+'a'.+'b'.+ has no name of its own", text)


# --- the revisions, and where the database is -------------------------------------------------------------------------


def add_file(folder: Path, revision: str, down_revision: str, name: str = "added") -> None:
    (folder / "migrations" / "versions" / f"{revision}_{name}.py").write_text(
        f'"""added"""\nrevision = "{revision}"\ndown_revision = {down_revision}\n\n\ndef upgrade():\n    pass\n'
    )


def test_a_second_head_is_found(url: str, folder: Path, config: Config) -> None:
    add_file(folder, NEW, f'"{REVISIONS[1]}"')

    assert found(url, config) == [
        ("several-heads", f"{HEAD}, {NEW}: nothing comes after any of them"),
        ("behind", f"The database is at {HEAD}; pending: {NEW}"),
    ]


@only_sqlite
@pytest.mark.parametrize(
    ("down_revision", "text"),
    [
        ('"nowhere"', ("missing-parent", f"{NEW} comes after nowhere, which no file has")),
        (f'("{HEAD}", "{NEW}")', ("cycle", f"{NEW} come after one another in a circle")),
        ('"broken', ("unreadable-file", "line 3: unterminated string literal (detected at line 3)")),
    ],
)
def test_what_is_wrong_with_a_file_is_found(
    url: str, folder: Path, config: Config, down_revision: str, text: tuple[str, str]
) -> None:
    add_file(folder, NEW, down_revision)

    kind, said = found(url, config)[0]
    assert (kind, said.rpartition(".py: ")[2]) == text
    assert "revisions-fail" not in dict(found(url, config))


@only_sqlite
def test_two_files_of_one_revision_are_found(url: str, folder: Path, config: Config) -> None:
    add_file(folder, NEW, f'"{HEAD}"')
    add_file(folder, NEW, f'"{HEAD}"', "again")

    (kind, text), behind = found(url, config)
    assert (kind, behind[0]) == ("duplicate-id", "behind")
    assert f"{NEW}_added.py" in text
    assert f"{NEW}_again.py" in text


def test_a_file_that_was_edited_after_it_was_applied_is_found(url: str, folder: Path, config: Config) -> None:
    (edited,) = (folder / "migrations" / "versions").glob(f"{REVISIONS[1]}*.py")
    edited.write_text(f"{edited.read_text()}# An edit.\n")

    ((kind, text),) = found(url, config)
    assert kind == "edited-file"
    assert text.startswith(f"{edited} is not what was recorded on 20")


@pytest.mark.usefixtures("_made_once")
def test_the_newest_checksum_in_the_record_counts(url: str) -> None:
    assert [kind for kind, _ in found(url)] == []
    query(url, f"UPDATE applied_revisions SET checksum = 'another' WHERE revision = '{HEAD}'")
    assert [kind for kind, _ in found(url)] == ["edited-file"]
    query(
        url,
        "INSERT INTO applied_revisions (action, revision, parents, checksum, message, applied_at, seconds)"
        f" SELECT 'stamp', revision, parents, '{checksum_of_head()}', message, applied_at, seconds"
        f" FROM applied_revisions WHERE revision = '{HEAD}'",
    )
    assert [kind for kind, _ in found(url)] == []


def checksum_of_head() -> str:
    return read_history(versions_folder()).by_id[HEAD].checksum


def test_a_database_that_is_behind_is_compared_with_its_own_revision(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    command.upgrade(Config(ALEMBIC_INI), REVISIONS[1])
    behind = ("behind", f"The database is at {REVISIONS[1]}; pending: {', '.join(REVISIONS[2:])}")
    assert found(empty_url) == [behind]

    query(empty_url, "ALTER TABLE users ADD COLUMN nickname VARCHAR(30)")
    assert found(empty_url) == [behind, ("drift", "users: column nickname is there and should not be")]


def test_an_empty_database_is_only_behind(empty_url: str) -> None:
    query(empty_url, "CREATE TABLE gifts (id INTEGER)")
    query(empty_url, "DROP TABLE gifts")

    assert found(empty_url) == [("behind", f"The database is at no revision; pending: {', '.join(REVISIONS)}")]


@pytest.mark.usefixtures("_made_once")
def test_an_unknown_revision_is_found_and_its_schema_is_not_compared(url: str) -> None:
    query(url, f"UPDATE alembic_version SET version_num = '{NEW}'")
    query(url, "ALTER TABLE users ADD COLUMN nickname VARCHAR(30)")

    assert found(url) == [("unknown-revision", f"The database is at {NEW}, which no file has")]


# --- no trace ---------------------------------------------------------------------------------------------------------


def trace(url: str) -> Any:
    """All that there is in a database: on SQLite the bytes of its file, and the names of the files beside it."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        return path.read_bytes(), sorted(beside.name for beside in path.parent.glob(f"{path.name}*"))
    names = (
        "SELECT nspname, relname FROM pg_namespace LEFT JOIN pg_class ON relnamespace = pg_namespace.oid ORDER BY 1, 2"
    )
    return look(url), query(url, names), query(url, "SELECT * FROM applied_revisions ORDER BY id")


def test_a_check_leaves_everything_as_it_was(url: str) -> None:
    fill(url, *REVISIONS)
    before = trace(url)

    assert found(url) == []
    assert trace(url) == before


FAIL = '    op.create_table("gifts", sa.Column("id", sa.Integer()))\n    op.execute("SELECT nonsense")'
# As some do before ALTER TYPE … ADD VALUE.
COMMIT = """
    op.create_table("gifts", sa.Column("id", sa.Integer()))
    op.execute("COMMIT")
    op.create_table("wishes", sa.Column("id", sa.Integer()))
    op.execute("COMMIT")
"""


def test_a_revision_that_fails_half_way_is_named_and_leaves_everything_as_it_was(
    url: str, folder: Path, config: Config
) -> None:
    fill(url, *REVISIONS)
    add_revision(folder, NEW, HEAD, FAIL)
    before = trace(url)

    behind, fails = found(url, config)

    assert fails[0] == "revisions-fail"
    assert fails[1].startswith(f"On an empty database they fail: {NEW}: ")
    assert "nonsense" in fails[1]
    assert behind[0] == "behind"
    assert trace(url) == before


@only_postgresql  # A scratch database in memory has nothing to do with the file.
def test_a_revision_that_commits_leaves_everything_as_it_was(url: str, folder: Path, config: Config) -> None:
    add_revision(folder, NEW, HEAD, COMMIT)
    before, schemas = look(url), "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%temp\\_%' ORDER BY 1"
    schemas_before = query(url, schemas)

    assert [kind for kind, _ in found(url, config)] == ["behind", "not-in-revisions", "not-in-revisions"]
    assert look(url) == before
    assert query(url, schemas) == schemas_before
    wait_until(
        lambda: query(url, "SELECT * FROM pg_class WHERE relname IN ('gifts', 'wishes')") == [], "the session to end"
    )


@only_postgresql
def test_a_check_that_is_killed_leaves_everything_as_it_was(url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, '    op.drop_table("profiles")\n    import time; time.sleep(60)')
    before = trace(url)
    script = (
        "import sys; from migrations.comparison import check_schema; from schema import read_ini;"
        "config = read_ini(); config.set_main_option('script_location', sys.argv[2] + '/migrations');"
        "check_schema(sys.argv[1], config)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, url, str(folder)], cwd=ROOT)
    sessions = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    try:
        wait_until(lambda: any("DROP TABLE profiles" in sql for (sql,) in query(url, sessions)), "the drop")
        assert query(url, "SELECT count(*) FROM profiles") == [(0,)]
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: query(url, sessions) == [], "its sessions to end")

    assert trace(url) == before


@only_postgresql
def test_a_revision_that_wants_no_transaction_can_be_compared(url: str, folder: Path, config: Config) -> None:
    concurrently = '"ix_users_email", "users", ["email"], postgresql_concurrently=True'
    add_revision(
        folder, NEW, HEAD, f"    with op.get_context().autocommit_block():\n        op.create_index({concurrently})"
    )

    with create_migration_engine(url).connect() as connection:
        made = schema_of_revision(connection, "heads", config)
    assert [str(difference) for difference in differences(made, schema_at(url))] == [
        "users: index ix_users_email is there and should not be"
    ]


@only_postgresql
def test_a_revision_does_not_see_the_tables_of_the_service(url: str, folder: Path, config: Config) -> None:
    fill(url, *REVISIONS)
    add_revision(folder, NEW, HEAD, '    assert op.get_bind().scalar(sa.text("SELECT count(*) FROM users")) == 0')

    assert [kind for kind, _ in found(url, config)] == ["behind"]


def test_a_check_is_silent_whatever_the_logging(url: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    try:
        with caplog.at_level(logging.INFO):
            assert found(url) == []
    finally:
        logging.getLogger("alembic.runtime.migration").setLevel(logging.NOTSET)

    assert caplog.records == []


# --- PostgreSQL's roles -----------------------------------------------------------------------------------------------

READER = """
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO {0};
    REVOKE TEMPORARY ON DATABASE {1} FROM PUBLIC;
"""


@pytest.fixture
def reader_url(url: str) -> Iterator[str]:
    """The database as a role sees it that may read it, and has no temporary schema."""
    name = sa.make_url(url).database
    execute(url, f"CREATE ROLE reader_of_{name} LOGIN;" + READER.format(f"reader_of_{name}", name))
    yield url.replace("postgres@", f"reader_of_{name}@")
    execute(url, f"DROP OWNED BY reader_of_{name}; DROP ROLE reader_of_{name}")


@only_postgresql
def test_a_role_that_may_read_needs_no_more_than_a_temporary_schema(url: str, reader_url: str) -> None:
    name = sa.make_url(url).database
    execute(url, f"GRANT TEMPORARY ON DATABASE {name} TO reader_of_{name}")

    assert found(reader_url) == []


@only_postgresql
def test_a_role_without_a_temporary_schema_is_told_what_it_needs(
    reader_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", reader_url)

    result = run_check()

    assert (result.exit_code, result.stdout) == (2, "")
    assert "GRANT TEMPORARY ON DATABASE" in result.stderr


# --- the command ------------------------------------------------------------------------------------------------------


def run_check(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(manage.app, ["check", *arguments])


def test_the_command_says_that_nothing_was_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    result = run_check()

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "The schema is as it should be.\n"
    assert run_check("--json").stdout == "[]\n"


@pytest.mark.usefixtures("_made_once")
def test_the_command_names_each_finding_and_what_to_do_once_for_all_of_a_kind(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    query(url, "ALTER TABLE users ADD COLUMN nickname VARCHAR(30)")
    query(url, "DROP INDEX ix_access_tokens_user_id")

    result = run_check()

    assert result.exit_code == 1
    first, second, advice = result.stdout.splitlines()
    assert first == "drift: access_tokens: index ix_access_tokens_user_id is missing"
    assert second == "drift: users: column nickname is there and should not be"
    assert "python manage.py doctor" in advice
    assert "2 findings" in result.stderr
    assert json.loads(run_check("--json").stdout) == [
        {"kind": "drift", "text": line.removeprefix("drift: "), "advice": advice.strip()} for line in (first, second)
    ]


def test_a_database_that_cannot_be_read_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.db").write_text("This is no database, but a text that is long enough to be taken for one." * 10)
    cases = {
        f"sqlite:///{tmp_path}/missing.db": "There is no file",
        f"sqlite:///{tmp_path}/text.db": "file is not a database",
        "postgresql://localhost:1/x": "Connection refused",
        "mysql://localhost/x": "DATABASE_URL: mysql is not supported",
    }
    for database_url, words in cases.items():
        monkeypatch.setenv("DATABASE_URL", database_url)
        result = run_check()
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    assert not (tmp_path / "missing.db").exists()
