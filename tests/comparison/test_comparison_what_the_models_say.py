"""Comparison: what the models say; the revisions, and where the database is; no trace."""

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from alembic_savepoint.doctor.comparison import differences
from alembic_savepoint.doctor.scratch import scratch
from alembic_savepoint.history.revisions import read_history
from db.engines import create_migration_engine
from schema import ALEMBIC_INI
from tests.support.comparison import config_of, found, schema_at
from tests.support.migrations import REVISIONS, add_revision, fill, look, only_postgresql, only_sqlite
from tests.support.project import VERSIONS, schema_of_revision
from tests.support.rehearsal import databases
from tests.support.service import ROOT, query, wait_until

NEW = "ffffffffffff"
"""A revision that a test adds to a copy of the migrations."""


HEAD = REVISIONS[-1]


def test_a_copy_of_the_models_is_as_good_as_they_are(url: str, metadata: sa.MetaData) -> None:
    assert found(url) == []


def test_what_no_revision_does_is_found_once(url: str, metadata: sa.MetaData) -> None:
    users = metadata.tables["users"]
    users.append_column(sa.Column("birthstone", sa.String(30)))
    users.append_constraint(sa.CheckConstraint("id > 0", name="ck_users_id"))

    assert found(url) == [
        ("not-in-revisions", "users: CHECK ck_users_id is missing"),
        ("not-in-revisions", "users: column birthstone is missing"),
    ]


def test_what_was_changed_by_hand_is_told_from_what_no_revision_does(url: str, metadata: sa.MetaData) -> None:
    metadata.tables["users"].append_column(sa.Column("birthstone", sa.String(30)))
    query(url, "ALTER TABLE profiles ADD COLUMN note VARCHAR(30)")

    assert found(url) == [
        ("drift", "profiles: column note is there and should not be"),
        ("not-in-revisions", "users: column birthstone is missing"),
    ]


@only_postgresql  # Only there do tables have comments.
def test_what_only_alembic_sees_is_found_too(url: str) -> None:
    query(url, "COMMENT ON COLUMN users.email IS 'as typed'")

    ((kind, text),) = found(url)
    assert kind == "ungenerated"
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
    assert re.fullmatch(r"gifts: CHECK kind.+'a'.+'b'.+", text)


def add_file(folder: Path, revision: str, down_revision: str, name: str = "added") -> None:
    (folder / "migrations" / "versions" / f"{revision}_{name}.py").write_text(
        f'"""added"""\nrevision = "{revision}"\ndown_revision = {down_revision}\n\n\ndef upgrade():\n    pass\n'
    )


def test_a_second_head_is_found(url: str, folder: Path, config: Config) -> None:
    add_file(folder, NEW, f'"{REVISIONS[1]}"')

    (several, heads), (behind, pending) = found(url, config)
    assert (several, behind) == ("several-heads", "behind")
    assert heads.startswith(f"Nothing comes after any of {HEAD}, {NEW}.")
    assert f"Pending: {NEW}" in pending


@only_sqlite
@pytest.mark.parametrize(
    ("down_revision", "text"),
    [
        ('"nowhere"', ("missing-parent", f"No file has the revision nowhere, after which {NEW} comes.")),
        (f'("{HEAD}", "{NEW}")', ("cycle", f"{NEW} comes after itself.")),
        ('"broken', ("unreadable-file", "line 3: unterminated string literal (detected at line 3)")),
    ],
)
def test_what_is_wrong_with_a_file_is_found(
    url: str, folder: Path, config: Config, down_revision: str, text: tuple[str, str]
) -> None:
    add_file(folder, NEW, down_revision)

    kind, said = found(url, config)[0]
    assert kind == text[0]
    assert text[1] in said
    assert "not-compared" not in dict(found(url, config))


@only_sqlite
def test_two_files_of_one_revision_are_found(url: str, folder: Path, config: Config) -> None:
    add_file(folder, NEW, f'"{HEAD}"')
    add_file(folder, NEW, f'"{HEAD}"', "again")

    ((kind, text),) = found(url, config)
    assert kind == "duplicate-id"
    assert f"{NEW}_added.py" in text
    assert f"{NEW}_again.py" in text


def test_a_file_that_was_edited_after_it_was_applied_is_found(url: str, folder: Path, config: Config) -> None:
    (edited,) = (folder / "migrations" / "versions").glob(f"{REVISIONS[1]}*.py")
    edited.write_text(f"{edited.read_text()}# An edit.\n")

    ((kind, text),) = found(url, config)
    assert kind == "edited-file"
    assert text.startswith(f"{edited} was edited after it was applied.")


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
    return read_history(VERSIONS).by_id[HEAD].checksum


def test_a_database_that_is_behind_is_compared_with_its_own_revision(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_url)
    command.upgrade(Config(ALEMBIC_INI), REVISIONS[1])
    [(kind, text)] = found(empty_url)
    assert kind == "behind"
    assert [f"Pending: {id}" in text for id in REVISIONS] == [False, False, *[True] * len(REVISIONS[2:])]

    query(empty_url, "ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)")
    assert found(empty_url) == [("drift", "users: column birthstone is there and should not be"), (kind, text)]


def test_an_empty_database_is_only_behind(empty_url: str) -> None:
    query(empty_url, "CREATE TABLE gifts (id INTEGER)")
    query(empty_url, "DROP TABLE gifts")

    [(kind, text)] = found(empty_url)
    assert kind == "behind"
    assert all(f"Pending: {id}" in text for id in REVISIONS)


@pytest.mark.usefixtures("_made_once")
def test_an_unknown_revision_is_found_and_its_schema_is_compared_with_all_others(url: str) -> None:
    query(url, f"UPDATE alembic_version SET version_num = '{NEW}'")
    query(url, "ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)")

    [(kind, text)] = found(url)
    assert kind == "unknown-revision"
    assert text.startswith(f"The database is at {NEW}, of which nothing is known.")
    assert text.endswith("users: column birthstone is there and should not be")


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

    fails, behind = found(url, config)

    assert fails[0] == "not-compared"
    assert f"on an empty database the revisions fail: {NEW}: " in fails[1]
    assert "nonsense" in fails[1]
    assert behind[0] == "behind"
    assert trace(url) == before


@only_postgresql  # On SQLite the second COMMIT fails, as in an upgrade.
def test_a_revision_that_commits_leaves_everything_as_it_was(url: str, folder: Path, config: Config) -> None:
    add_revision(folder, NEW, HEAD, COMMIT)
    before = trace(url)

    assert [kind for kind, _ in found(url, config)] == ["not-in-revisions", "not-in-revisions", "behind"]
    assert trace(url) == before


@only_postgresql
def test_a_check_that_is_killed_leaves_everything_as_it_was(url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, '    op.drop_table("profiles")\n    import time; time.sleep(60)')
    before = trace(url)
    script = (
        "import sys; from tests.support.project import check; from schema import read_ini;"
        "config = read_ini(); config.set_main_option('script_location', sys.argv[2] + '/migrations');"
        "check(sys.argv[1], config)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, url, str(folder)], cwd=ROOT)
    sessions = (
        "SELECT query FROM pg_stat_activity WHERE starts_with(datname, current_database()) AND pid <> pg_backend_pid()"
    )
    try:
        wait_until(lambda: any("DROP TABLE profiles" in sql for (sql,) in query(url, sessions)), "the drop")
        assert query(url, "SELECT count(*) FROM profiles") == [(0,)]
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: query(url, sessions) == [], "its sessions to end")

    assert trace(url) == before
    assert len(databases(url)) == 2
    # What it left is dropped by the next.
    assert found(url) == []
    assert len(databases(url)) == 1


@only_postgresql
def test_a_revision_that_wants_no_transaction_can_be_compared(url: str, folder: Path, config: Config) -> None:
    concurrently = '"ix_users_mail", "users", ["email"], postgresql_concurrently=True'
    add_revision(
        folder, NEW, HEAD, f"    with op.get_context().autocommit_block():\n        op.create_index({concurrently})"
    )

    with create_migration_engine(url).connect() as connection, scratch(connection) as place:
        made = schema_of_revision(place, "heads", config)
    assert [str(difference) for difference in differences(made, schema_at(url))] == [
        "users: index ix_users_mail is there and should not be"
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
