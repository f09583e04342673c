"""Comparison: what is as it should be; what was changed by hand."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlmodel import SQLModel

from alembic_savepoint.doctor.catalog import constraints, schema_of
from alembic_savepoint.doctor.comparison import differences
from alembic_savepoint.doctor.scratch import scratch
from db.engines import create_migration_engine
from schema import ALEMBIC_INI
from tests.support.comparison import execute, found, schema_at
from tests.support.migrations import REVISIONS, only_sqlite
from tests.support.project import check, load, save, schema_of_revision
from tests.support.service import query


def test_nothing_is_found_at_head(url: str) -> None:
    assert found(url) == []


def test_nothing_is_found_in_a_database_that_was_loaded_from_a_save(url: str, tmp_path: Path) -> None:
    save(url, tmp_path, "kept")
    load(url, tmp_path, "kept")

    assert check(url) == []


def test_what_a_revision_makes_from_nothing_is_what_migrating_to_it_makes(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    for revision in REVISIONS:
        command.upgrade(Config(ALEMBIC_INI), revision)
        with create_migration_engine(empty_url).connect() as connection, scratch(connection) as place:
            assert differences(schema_of(connection), schema_of_revision(place, revision)) == []
            assert schema_of(connection) == schema_of_revision(place, [revision])
    assert schema_at(empty_url).keys() == SQLModel.metadata.tables.keys()


@pytest.mark.usefixtures("_made_once")
def test_a_column_in_another_place_is_no_difference(url: str) -> None:
    query(url, "ALTER TABLE access_tokens DROP COLUMN name")
    query(url, "ALTER TABLE access_tokens ADD COLUMN name VARCHAR(50)")

    assert found(url) == []


def rewrite(table: str, old: str, new: str) -> str:
    """Change the text of a SQLite table, which is all that SQLite knows of it."""
    old, new = (text.replace("'", "''") for text in (old, new))
    return f"""
        PRAGMA writable_schema = ON;
        UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}' AND instr(sql, '{old}');
    """


BALANCE = "CONSTRAINT ck_accounts_balance CHECK (user_id IS NULL OR balance - held >= -credit_limit)"


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
        rewrite("accounts", f", \n\t{BALANCE}", ""),
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance",
        "accounts: CHECK ck_accounts_balance is missing",
    ),
    "a CHECK changed": Change(
        rewrite("accounts", ">= -credit_limit", ">= -5"),
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance, "
        "ADD CONSTRAINT ck_accounts_balance CHECK (user_id IS NULL OR balance >= -5)",
        'accounts: CHECK ck_accounts_balance is "user_id IS NULL OR balance - held >= -5",'
        ' not "user_id IS NULL OR balance - held >= -credit_limit"',
        "accounts: CHECK ck_accounts_balance is \"user_id IS NULL OR balance >= '-5'::integer\","
        ' not "user_id IS NULL OR (balance - held) >= (- credit_limit)"',
    ),
    "a CHECK that old rows need not meet": Change(
        rewrite("accounts", "CHECK (user_id", "CHECK (version < 9 OR user_id"),
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance, "
        "ADD CONSTRAINT ck_accounts_balance CHECK (user_id IS NULL OR balance >= 0) NOT VALID",
        'accounts: CHECK ck_accounts_balance is "version < 9 OR user_id IS NULL OR balance - held >= -credit_limit",'
        ' not "user_id IS NULL OR balance - held >= -credit_limit"',
        'accounts: CHECK ck_accounts_balance is "CHECK (user_id IS NULL OR balance >= 0) NOT VALID",'
        ' not "user_id IS NULL OR (balance - held) >= (- credit_limit)"',
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
        "CREATE INDEX ix_users_mail ON users (email)", "users: index ix_users_mail is there and should not be"
    ),
    "an index of an expression added": on_both(
        "CREATE INDEX ix_users_mail ON users (lower(email))", "users: index ix_users_mail is there and should not be"
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
        rewrite("users", "email VARCHAR(100)", "email VARCHAR(90)"),
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
        "ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)", "users: column birthstone is there and should not be"
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
