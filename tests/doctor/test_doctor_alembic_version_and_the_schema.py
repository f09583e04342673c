"""Doctor: alembic_version and the schema."""

import re

import pytest
import sqlalchemy as sa
from sqlmodel import SQLModel

from alembic_savepoint.doctor.catalog import schema_of
from alembic_savepoint.doctor.comparison import Difference, differences
from alembic_savepoint.doctor.schema_faults import statement
from alembic_savepoint.history.revisions import read_history
from tests.support.doctor import ADD_COLUMN, INDEX, NEW, OTHER, REPAIR, Place, commands, evidence, on_one_engine, steps
from tests.support.migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    REVISIONS,
    create_plain_engine,
    fill,
    only_postgresql,
    run_script,
)
from tests.support.project import check
from tests.support.service import query

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("loss", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"])
def test_an_empty_or_missing_version_table_is_filled_where_one_revision_has_the_schema(place: Place, loss: str) -> None:
    query(place.url, loss)

    found = place.only("unversioned", 24)

    assert f"Tables: {', '.join(sorted(SQLModel.metadata.tables))}" in found["evidence"]
    assert f"The record of the database: upgrade {HEAD} " in evidence(found)
    assert f"Its schema is exactly that of {HEAD} " in evidence(found)
    assert steps(found) == [REPAIR]
    assert place.command("--repair", "--yes").exit_code == 0
    assert place.is_healthy
    assert place.stamped == [(HEAD,)]
    # Alembic goes on with the table as with its own.
    place.downgrade(BEFORE_ACCOUNTS)
    place.upgrade()


def test_tables_that_were_all_dropped_under_their_revision_are_created_again(place: Place) -> None:
    SQLModel.metadata.drop_all(place.engine)
    query(place.url, "CREATE VIEW left_behind AS SELECT 1 AS one")

    found = place.only("wrong-revision", 25)

    assert found["summary"] == "alembic_version names a revision, and its tables are gone."
    assert f"All {len(SQLModel.metadata.tables)} tables are missing" in found["evidence"]
    assert "Left: view left_behind" in found["evidence"]
    saves, again = commands(found)
    assert saves == "python manage.py saves"
    assert place.command("--repair", "--yes").exit_code == 25
    query(place.url, "DROP VIEW left_behind")
    place.run(again)
    assert place.is_healthy


def test_between_revisions_of_one_schema_doctor_does_not_choose(place: Place) -> None:
    place.add(NEW, HEAD, "    pass", "    pass")
    query(place.url, "DELETE FROM alembic_version")

    found = place.only("unversioned", 24)

    for id in (HEAD, NEW):
        assert f"Its schema is exactly that of {id} " in evidence(found)
    assert commands(found) == [f"alembic stamp --purge {HEAD}", f"alembic stamp --purge {NEW}"]
    assert place.command("--repair", "--yes").exit_code == 24
    assert place.stamped == []
    place.run(f"alembic stamp --purge {NEW}")
    assert place.is_healthy


def test_a_schema_of_another_revision_than_the_one_stamped_is_repaired(place: Place) -> None:
    place.stamp(BEFORE_ACCOUNTS)

    found = place.only("wrong-revision", 25)

    assert "accounts: table is there and should not be" in found["evidence"]
    assert f"Its schema is exactly that of {HEAD} " in evidence(found)
    assert steps(found) == [REPAIR]
    assert place.command("--repair", "--yes").exit_code == 0
    assert place.is_healthy


def test_a_revision_that_is_stamped_besides_the_one_that_comes_after_it_is_taken_out(place: Place) -> None:
    query(place.url, f"INSERT INTO alembic_version VALUES ('{BEFORE_ACCOUNTS}')")

    found = place.only("wrong-revision", 25)

    assert found["summary"] == f"alembic_version holds {BEFORE_ACCOUNTS} as well as {HEAD}, which comes after it."
    assert steps(found) == [REPAIR]
    assert place.command("--repair", "--yes").exit_code == 0
    assert place.stamped == [(HEAD,)]


def test_what_came_after_another_revision_may_have_been_undone_by_hand(place: Place) -> None:
    place.add(NEW, HEAD, '    op.create_index("ix_users_mail", "users", ["email"])')
    place.upgrade()
    query(place.url, "DROP INDEX ix_users_mail")

    found = place.only("wrong-revision", 25)

    assert f"Its schema is exactly that of {HEAD} " in evidence(found)
    assert f"The record of the database: upgrade {NEW} 'added', after {HEAD}, on 20" in evidence(found)
    assert f"Either alembic_version is wrong, or what came after {HEAD} " in evidence(found)
    repair, (fixes, words), again = steps(found)
    assert (repair, again[0]) == (REPAIR, "python manage.py doctor")
    assert words.startswith("Or, if it was undone by hand: In ")
    query(place.url, fixes)
    assert place.is_healthy


@pytest.mark.parametrize("revision", [HEAD, NEW])
def test_of_two_branches_the_one_whose_schema_it_is_is_found(place: Place, revision: str) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)
    place.downgrade(BEFORE_ACCOUNTS)
    place.upgrade(revision)
    query(place.url, "DELETE FROM alembic_version")

    assert place.command("--repair", "--yes").exit_code == 34

    assert place.stamped == [(revision,)]


@on_one_engine
def test_each_revision_is_run_once_to_find_the_one_whose_schema_it_is(place: Place) -> None:
    for revision, parent in ((NEW, HEAD), (OTHER, NEW)):
        place.add(
            revision,
            parent,
            f"{ADD_COLUMN}\n    open('runs', 'a').write('{revision} ')".replace("birthstone", f"a{revision}"),
        )
    query(place.url, "DELETE FROM alembic_version")

    assert place.command().exit_code == 24

    assert (place.folder / "runs").read_text() == f"{NEW} {OTHER} "


def test_tables_that_are_nobodys_are_no_unversioned_database(place: Place) -> None:
    place.downgrade("base")
    query(place.url, "CREATE TABLE something_else (id INTEGER)")

    assert place.only("behind", 0)


def test_a_table_that_a_rebuild_left_is_counted_before_it_is_dropped(place: Place) -> None:
    fill(place.url, *REVISIONS)
    query(place.url, "CREATE TABLE _alembic_tmp_users (id INTEGER)")
    query(place.url, "INSERT INTO _alembic_tmp_users VALUES (1)")

    found = place.only("leftover-table", 32)

    assert found["evidence"] == ["_alembic_tmp_users: 1 row", "users: 2 rows"]
    assert commands(found) == ["DROP TABLE _alembic_tmp_users;"]
    query(place.url, commands(found)[0])
    assert place.is_healthy


def test_a_table_that_is_only_there_under_its_temporary_name_gets_its_own_back(place: Place) -> None:
    query(place.url, "ALTER TABLE entries RENAME TO _alembic_tmp_entries")

    drift, found = place.doctor()

    assert (drift["kind"], found["kind"]) == ("drift", "leftover-table")
    assert "entries is missing: the rows may be only in _alembic_tmp_entries" in found["evidence"]
    save, rename = commands(found)
    assert save == "python manage.py save"
    query(place.url, rename)
    assert place.is_healthy


DRIFT = {
    "an index is missing": (f"DROP INDEX {INDEX}", f"access_tokens: index {INDEX} is missing"),
    "a unique index lost its condition": (
        "DROP INDEX uq_accounts_system_currency;"
        " CREATE UNIQUE INDEX uq_accounts_system_currency ON accounts (currency)",
        "accounts: index uq_accounts_system_currency is ",
    ),
    "an index too many": ("CREATE INDEX ix_x ON users (email)", "users: index ix_x is there and should not be"),
    "a column is missing": ("ALTER TABLE transfers DROP COLUMN memo", "transfers: column memo is missing"),
}


@pytest.mark.parametrize("change", DRIFT)
def test_drift_that_is_clear_is_fixed_by_the_printed_sql(place: Place, change: str) -> None:
    sql, difference = DRIFT[change]
    run_script(place.url, sql)

    found = place.only("drift", 30)

    assert found["summary"] == f"The schema is not what {HEAD} makes: 1 difference."
    assert found["evidence"][0].startswith(f"alembic_version: {HEAD} ")
    assert found["evidence"][1].startswith(difference)
    [fixes, again] = commands(found)
    assert again == "python manage.py doctor"
    run_script(place.url, fixes)
    assert place.is_healthy


@pytest.mark.parametrize(
    ("column", "is_clear"),
    [
        ("VARCHAR(30)", True),
        ('VARCHAR(30) COLLATE "C"', True),
        ("VARCHAR(30) NOT NULL DEFAULT 'x'", False),
        ("INTEGER GENERATED ALWAYS AS (1 + 1) STORED", False),
        ("mood", False),
    ],
)
@only_postgresql
def test_a_column_is_only_added_again_where_that_is_clear(place: Place, column: str, is_clear: bool) -> None:
    run_script(place.url, f"CREATE TYPE mood AS ENUM ('good'); ALTER TABLE users ADD COLUMN extra {column}")
    with create_plain_engine(place.url).connect() as connection:
        expected = schema_of(connection)
        query(place.url, "ALTER TABLE users DROP COLUMN extra")
        [difference] = differences(schema_of(connection), expected)

        sql = statement(difference, connection.dialect)

        assert (sql is not None) == is_clear
        if sql:
            query(place.url, sql)
            assert schema_of(connection) == expected


def test_a_column_that_sqlite_computes_is_not_added_again() -> None:
    computed = Difference("users", "column", "extra", None, "INTEGER AS (1 + 1) STORED")

    assert statement(computed, sa.dialects.sqlite.dialect()) is None


def test_a_difference_in_another_schema_is_fixed_there() -> None:
    index = Difference("other.logs", "index", "ix_logs", "USING btree (a)", "UNIQUE USING btree (a)")
    view = Difference("other.names", "view", "", None, "SELECT 1")
    dialect = sa.make_url("postgresql+psycopg:///").get_dialect()()

    assert statement(index, dialect) == (
        "DROP INDEX other.ix_logs; CREATE UNIQUE INDEX ix_logs ON other.logs USING btree (a);"
    )
    assert statement(view, dialect) is None


@only_postgresql
def test_a_check_that_was_changed_is_fixed_by_the_printed_sql(place: Place) -> None:
    run_script(
        place.url,
        "ALTER TABLE transfers DROP CONSTRAINT ck_transfers_amount,"
        " ADD CONSTRAINT ck_transfers_amount CHECK (amount > -1), DROP CONSTRAINT uq_transfers_reverses_id;"
        " ALTER TABLE profiles DROP CONSTRAINT ck_profiles_status",
    )

    found = place.only("drift", 30)

    assert "transfers: CHECK ck_transfers_amount is " in evidence(found)
    assert "transfers: unique constraint uq_transfers_reverses_id is missing" in found["evidence"]
    for sql in commands(found)[:3]:
        run_script(place.url, sql)
    assert place.is_healthy


def test_drift_that_could_lose_data_or_is_not_clear_points_to_the_saves(place: Place) -> None:
    if place.url.startswith("sqlite"):
        old, new = "CHECK (amount > 0)", "CHECK (amount > -1)"
        run_script(
            place.url,
            f"PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}')"
            " WHERE name = 'transfers';"
            " ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)",
        )
    else:
        run_script(place.url, "ALTER TABLE users ALTER email TYPE TEXT, ADD COLUMN birthstone VARCHAR(30)")

    found = place.only("drift", 30)

    assert "users: column birthstone is there and should not be" in found["evidence"]
    assert len(found["evidence"]) == 3
    assert commands(found) == ["python manage.py saves", "python manage.py doctor"]


def test_a_file_that_was_edited_after_it_was_applied_is_brought_back(place: Place) -> None:
    path = place.file_of(BEFORE_ACCOUNTS)
    commit = place.git("rev-parse", "--short", "HEAD")
    path.write_text(path.read_text().replace("unique=False", "unique=bool(0)"))
    place.commit("polish")

    found = place.only("edited-file", 33)

    name = place.name_of(BEFORE_ACCOUNTS)
    assert found["summary"] == f"{name} was edited after it was applied."
    [(recorded,)] = query(place.url, f"SELECT checksum FROM applied_revisions WHERE revision = '{BEFORE_ACCOUNTS}'")
    now = read_history(place.versions).by_id[BEFORE_ACCOUNTS].checksum
    assert re.search(f"upgrade {BEFORE_ACCOUNTS} .* on 20.* UTC, checksum {recorded[:12]}…", evidence(found))
    assert f"{name}: checksum {now[:12]}…" in found["evidence"]
    assert commands(found)[0] == f"git checkout {commit} -- {name}"
    assert commands(found)[1].startswith("alembic revision -m ")
    place.run(commands(found)[0])
    assert place.is_healthy


def test_an_edit_that_was_meant_is_accepted_and_the_next_one_is_not(place: Place) -> None:
    path = place.file_of(BEFORE_ACCOUNTS)
    path.write_text(path.read_text() + "# polished\n")
    before = query(place.url, "SELECT * FROM applied_revisions ORDER BY id")

    accepts = commands(place.only("edited-file", 33))[-1]

    assert accepts == f"python manage.py doctor --accept {BEFORE_ACCOUNTS}"
    result = place.command(*accepts.split()[3:])
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        0, f"Accepted, and recorded: the file of {BEFORE_ACCOUNTS} as it is now.",
    )  # fmt: skip
    *others, accepted = query(place.url, "SELECT * FROM applied_revisions ORDER BY id")
    checksum = read_history(place.versions).by_id[BEFORE_ACCOUNTS].checksum
    assert (others, accepted[1:6]) == (before, ("accept", BEFORE_ACCOUNTS, REVISIONS[1], checksum, "access tokens"))
    assert place.is_healthy
    assert check(place.url, place.config) == []

    path.write_text(path.read_text() + "# and again\n")
    assert f"The record of the database: accept {BEFORE_ACCOUNTS} " in evidence(place.only("edited-file", 33))


def test_only_the_edit_of_an_applied_file_is_accepted(place: Place) -> None:
    path = place.file_of(ACCOUNTS)
    path.write_text(path.read_text() + "# polished\n")
    before = place.everything()

    for revision in (BEFORE_ACCOUNTS, OTHER):
        result = place.command("--accept", revision)
        assert (result.exit_code, place.everything()) == (2, before)
        assert f"those are: {ACCOUNTS}." in " ".join(result.stderr.replace("│", "").split())

    place.downgrade(BEFORE_ACCOUNTS)
    assert place.command("--accept", ACCOUNTS).exit_code == 2
    place.upgrade()
    assert place.is_healthy
