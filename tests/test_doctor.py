"""`python manage.py doctor`: what is wrong is told apart, the commands that it prints mend it, and it never writes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from conftest import ROOT, alembic, query
from test_migrating import somebody_who_migrates
from test_migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    REVISIONS,
    SCRIPTS,
    add_revision,
    copy_of_the_repository,
    create_plain_engine,
    fill,
    only_postgresql,
    only_sqlite,
    run_script,
)
from typer.testing import CliRunner, Result

import manage
from migrations.catalog import schema_of
from migrations.comparison import Difference, check_schema, differences
from migrations.diagnosis import KINDS
from migrations.doctor import config_for, diagnose
from migrations.repair import RepairRefused, plan_repair, restamp
from migrations.revisions import read_history
from migrations.schema_faults import statement

NEW, OTHER = "ffffffffffff", "abcdef123456"
"""A revision that a test adds, and one that nobody has heard of."""
USERS, BEFORE_HEAD = REVISIONS[0], REVISIONS[-2]
MESSAGE = SCRIPTS.get_revision(HEAD).doc
ADD_COLUMN = '    op.add_column("users", sa.Column("nickname", sa.String(length=30), nullable=True))'
DROP_COLUMN = '    op.drop_column("users", "nickname")'
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "dev@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
"""So that the developer's own configuration has no influence."""
on_one_engine = only_sqlite
REPAIR = ("python manage.py doctor --repair", f"Write {HEAD} into alembic_version:")


@dataclass(frozen=True)
class Place:
    """A copy of the repository, in git, and a database."""

    folder: Path
    url: str

    @property
    def config(self) -> Config:
        config = Config(self.folder / "alembic.ini")
        config.set_main_option("script_location", str(self.folder / "migrations"))
        return config

    @property
    def versions(self) -> Path:
        return self.folder / "migrations" / "versions"

    @cached_property
    def engine(self) -> sa.Engine:
        return create_plain_engine(self.url)

    def file_of(self, revision: str) -> Path:
        [path] = self.versions.glob(f"{revision}_*.py")
        return path

    def name_of(self, revision: str) -> str:
        return str(self.file_of(revision).relative_to(self.folder))

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        """Commit everything; the short id of the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)
        return self.git("rev-parse", "--short", "HEAD")

    def add(self, revision: str, parent: str, upgrade: str = ADD_COLUMN, downgrade: str = DROP_COLUMN) -> None:
        add_revision(self.folder, revision, parent, upgrade, downgrade)

    def upgrade(self, target: str = "head") -> None:
        command.upgrade(self.config, target)

    def downgrade(self, target: str) -> None:
        command.downgrade(self.config, target)

    def run(self, line: str) -> None:
        """Run a command as it was printed."""
        for part in line.split(" && "):
            program, *words = shlex.split(part)
            if program == "git":
                self.git(*words)
            else:
                assert program == "alembic"
                done = alembic(self.url, *words, cwd=self.folder)
                assert done.returncode == 0, done.stderr

    def everything(self) -> tuple[Any, ...]:
        """The database, the files and git, to see that nothing is changed."""
        files = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        stored = Path(self.url.removeprefix("sqlite:///"))
        return self.contents(), files, stored.read_bytes() if stored.exists() else None

    def contents(self) -> tuple[Any, ...]:
        """The schema and every row."""
        with self.engine.connect() as connection:
            tables = sa.inspect(connection).get_table_names()
            rows = {table: connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY 1")).all() for table in tables}
            return schema_of(connection), rows

    def command(self, *options: str) -> Result:
        return CliRunner().invoke(manage.app, ["doctor", *options])

    def doctor(self) -> list[dict[str, Any]]:
        """What doctor says, the most serious first; that it changes nothing, and ends with the right code."""
        before = self.everything()
        result = self.command("--json")
        assert self.everything() == before
        document = json.loads(result.stdout)
        found: list[dict[str, Any]] = document["diagnoses"]
        assert result.exit_code == document["exit_code"] == (KINDS[found[0]["kind"]][0] if found else 0)
        return found

    def only(self, kind: str, code: int) -> dict[str, Any]:
        """The only thing that doctor finds."""
        [found] = self.doctor()
        assert (found["kind"], found["exit_code"]) == (kind, code)
        return found

    @property
    def is_healthy(self) -> bool:
        return self.doctor() == []

    @property
    def stamped(self) -> list[tuple[Any, ...]]:
        return query(self.url, "SELECT version_num FROM alembic_version")

    def stamp(self, revision: str) -> None:
        query(self.url, f"UPDATE alembic_version SET version_num = '{revision}'")


def commands(found: dict[str, Any]) -> list[str]:
    return [step["command"] for step in found["next_commands"] if step["command"]]


def steps(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["command"], step["what"]) for step in found["next_commands"]]


def evidence(found: dict[str, Any]) -> str:
    return "\n".join(found["evidence"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in git, with one commit on main."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    (folder / ".gitignore").write_text("__pycache__/\n")
    # In few files, since each test copies them.
    for line in (
        "init --quiet --template= --initial-branch=main",
        "add --all",
        "commit --quiet -m start",
        "gc --quiet",
    ):
        subprocess.run(["git", *line.split()], cwd=folder, env={**os.environ, **GIT}, check=True)
    return folder


@pytest.fixture
def place(url: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of its own, with a database at head; the commands run in it."""
    folder = shutil.copytree(repository, tmp_path / "fork")
    for name, value in {**GIT, "DATABASE_URL": url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    place = Place(folder, url)
    monkeypatch.setattr("migrations.revisions.VERSIONS", place.versions)
    monkeypatch.setattr("manage.ALEMBIC_INI", folder / "alembic.ini")
    return place


# --- nothing is wrong -------------------------------------------------------------------------------------------------


def test_a_database_at_head_is_healthy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where Python would, it leaves no compiled revisions behind either.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    fill(place.url, *REVISIONS)

    assert place.is_healthy

    result = place.command()
    assert (result.exit_code, result.stdout) == (
        0,
        "Healthy: files, record, alembic_version and schema say the same.\n",
    )


def test_what_is_behind_is_told_and_healthy(place: Place) -> None:
    place.downgrade(BEFORE_HEAD)

    found = place.only("behind", 0)

    assert found["summary"] == "1 revision is not applied yet."
    assert f"Pending: {HEAD} '{MESSAGE}' ({place.name_of(HEAD)})" in evidence(found)
    assert commands(found) == ["alembic upgrade head"]
    assert place.command().stdout.endswith("Otherwise healthy.\n")
    place.run("alembic upgrade head")
    assert place.is_healthy


def test_an_empty_database_is_only_behind(place: Place) -> None:
    place.downgrade("base")

    assert place.only("behind", 0)["summary"] == f"{len(REVISIONS)} revisions are not applied yet."


# --- a revision that no file has --------------------------------------------------------------------------------------


def test_a_database_ahead_of_the_code_is_told_from_its_record(place: Place) -> None:
    place.add(NEW, HEAD)
    place.upgrade()
    text = place.file_of(NEW).read_text()
    place.file_of(NEW).unlink()

    found = place.only("ahead", 21)

    assert re.search(f"The record of the database: upgrade {NEW} 'added', after {HEAD}, on 20", evidence(found))
    assert steps(found) == [
        (None, "To go on with it: deploy the code again that migrated the database."),
        (f"alembic downgrade {HEAD}", "Or to take the database back to what this code knows, run with that code:"),
    ]
    assert "stamp" not in place.command().stdout
    (place.versions / f"{NEW}_added.py").write_text(text)
    place.run(f"alembic downgrade {HEAD}")
    place.file_of(NEW).unlink()
    assert place.is_healthy


def test_a_database_two_revisions_ahead_is_told_the_branch_that_has_them(place: Place) -> None:
    place.git("checkout", "--quiet", "-b", "newer")
    place.add(OTHER, HEAD)
    first = place.commit("other")
    place.add(NEW, OTHER, "    pass", "    pass")
    second = place.commit("new")
    place.upgrade()
    # Even a database that never recorded it is understood.
    query(place.url, f"DELETE FROM applied_revisions WHERE revision IN ('{NEW}', '{OTHER}')")
    place.git("checkout", "--quiet", "main")

    found = place.only("ahead", 21)

    new, other = (f"migrations/versions/{id}_added.py" for id in (NEW, OTHER))
    assert re.search(rf"Git: commit {second} of \S+ has {new} \(branch newer\)", evidence(found))
    assert re.search(rf"Git: commit {first} of \S+ has {other} \(branch newer\)", evidence(found))
    back = f"git checkout newer && alembic downgrade {HEAD} && git checkout -"
    files = f"git checkout {second} -- {new} && git checkout {first} -- {other}"
    assert commands(found) == ["git checkout newer", "git merge newer", back, files]
    place.run(files)
    assert place.is_healthy
    place.git("reset", "--quiet", "--hard")
    place.run(back)
    assert place.is_healthy


def leave_on_a_branch(place: Place) -> str:
    """Migrate to a revision of the branch wishes, which left the line before the accounts; the commit."""
    place.git("checkout", "--quiet", "-b", "wishes")
    place.add(NEW, BEFORE_ACCOUNTS)
    commit = place.commit("wishes")
    place.downgrade(BEFORE_ACCOUNTS)
    place.upgrade(NEW)
    place.git("checkout", "--quiet", "main")
    return commit


def test_a_revision_of_another_branch_is_named_with_its_branch(place: Place) -> None:
    commit = leave_on_a_branch(place)

    found = place.only("foreign-branch", 22)

    assert found["summary"] == f"The database is at {NEW}, of the branch wishes."
    assert f"Git: commit {commit} of 20" in evidence(found)
    assert f"It left the line of these files after {BEFORE_ACCOUNTS} 'access tokens'" in evidence(found)
    back = f"git checkout wishes && alembic downgrade {BEFORE_ACCOUNTS} && git checkout -"
    file = f"git checkout {commit} -- migrations/versions/{NEW}_added.py"
    assert commands(found) == ["git checkout wishes", "git merge wishes", back, file]
    place.run(back)
    assert place.only("behind", 0)


def test_a_revision_of_a_branch_that_git_does_not_have_is_told_from_the_record(place: Place) -> None:
    leave_on_a_branch(place)
    shutil.rmtree(place.folder / ".git")

    found = place.only("foreign-branch", 22)

    assert found["summary"] == f"The database is at {NEW}, of a branch that is not here."
    assert f"after {BEFORE_ACCOUNTS}, on " in evidence(found)
    assert commands(found) == [f"alembic downgrade {BEFORE_ACCOUNTS}"]


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_file_that_this_branch_lost_is_brought_back(place: Place, is_committed: bool) -> None:
    place.add(NEW, HEAD)
    commit = place.commit("new")
    place.upgrade()
    name = place.name_of(NEW)
    place.file_of(NEW).unlink()
    if is_committed:
        deletion = place.commit("tidy up")

    found = place.only("lost-file", 20)

    assert f"Git: commit {commit} of 20" in evidence(found)
    if is_committed:
        assert re.search(rf"Git: {name} was deleted by commit {deletion} of \S+, tidy up", evidence(found))
    else:
        assert f"Git: {name} is in the last commit, and not in the folder" in evidence(found)
    assert commands(found) == [f"git checkout {commit} -- {name}"]
    place.run(commands(found)[0])
    assert place.is_healthy


def test_a_file_whose_id_was_changed_is_told_from_one_that_is_gone(place: Place) -> None:
    path = place.file_of(HEAD)
    path.write_text(path.read_text().replace(f'"{HEAD}"', f'"{NEW}"'))
    place.commit("renumber")

    found = place.only("lost-file", 20)

    name = place.name_of(HEAD)
    assert f"Git: {name} had this id, and is {NEW} '{MESSAGE}' now" in found["evidence"]
    place.run(commands(found)[0])
    assert place.is_healthy


def test_a_revision_of_which_nothing_is_known_is_repaired_where_the_schema_is_that_of_one(place: Place) -> None:
    place.stamp(OTHER)

    found = place.only("unknown-revision", 23)

    assert f"Its schema is exactly that of {HEAD} '{MESSAGE}'" in evidence(found)
    assert steps(found) == [REPAIR]
    schema, _ = place.contents()
    result = place.command("--repair", "--yes")
    assert result.exit_code == 0, result.output
    assert f"To be written: alembic_version: {HEAD} instead of {OTHER}." in result.stderr
    assert place.stamped == [(HEAD,)]
    assert place.contents()[0] == schema
    assert query(place.url, "SELECT action, revision, parents, message FROM applied_revisions ORDER BY id DESC")[0] == (
        "repair", HEAD, BEFORE_HEAD, f"was {OTHER}",
    )  # fmt: skip
    assert place.is_healthy
    assert place.command("--repair").exit_code == 0


def test_an_unknown_schema_is_compared_with_the_nearest_and_not_repaired(place: Place) -> None:
    place.stamp(OTHER)
    query(place.url, "ALTER TABLE users ADD COLUMN nickname VARCHAR(30)")
    before = place.everything()

    found = place.only("unknown-revision", 23)

    assert f"No revision has its schema. The nearest is {HEAD} " in evidence(found)
    assert "users: column nickname is there and should not be" in found["evidence"]
    assert commands(found) == ["python manage.py saves"]
    result = place.command("--repair", "--yes")
    assert (result.exit_code, place.everything()) == (23, before)
    assert "There is not exactly one revision whose schema this is" in result.stderr


# --- alembic_version and the schema -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"])
def test_an_empty_or_missing_version_table_is_filled_where_one_revision_has_the_schema(place: Place, loss: str) -> None:
    query(place.url, loss)

    found = place.only("unversioned", 24)

    assert "Tables: access_tokens, accounts, entries, profiles, transfers, users" in found["evidence"]
    assert f"The record of the database: upgrade {HEAD} " in evidence(found)
    assert f"Its schema is exactly that of {HEAD} " in evidence(found)
    assert steps(found) == [REPAIR]
    assert place.command("--repair", "--yes").exit_code == 0
    assert place.is_healthy
    assert place.stamped == [(HEAD,)]
    # Alembic goes on with the table as with its own.
    place.downgrade(BEFORE_ACCOUNTS)
    place.upgrade()


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
    place.add(NEW, HEAD, '    op.create_index("ix_users_email", "users", ["email"])')
    place.upgrade()
    query(place.url, "DROP INDEX ix_users_email")

    found = place.only("wrong-revision", 25)

    assert f"Its schema is exactly that of {HEAD} " in evidence(found)
    assert f"The record of the database: upgrade {NEW} 'added', after {HEAD}, on 20" in evidence(found)
    assert f"Either is possible: alembic_version is wrong, or what came after {HEAD} " in evidence(found)
    repair, (mends, words), again = steps(found)
    assert (repair, again[0]) == (REPAIR, "python manage.py doctor")
    assert words.startswith("Or, if it was undone by hand: In ")
    query(place.url, mends)
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
            f"{ADD_COLUMN}\n    open('runs', 'a').write('{revision} ')".replace("nickname", f"a{revision}"),
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
    assert "entries is not there: the rows may be in _alembic_tmp_entries only" in found["evidence"]
    save, rename = commands(found)
    assert save == "python manage.py save"
    query(place.url, rename)
    assert place.is_healthy


INDEX = "ix_access_tokens_user_id"
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
def test_drift_that_is_clear_is_mended_by_the_printed_sql(place: Place, change: str) -> None:
    sql, difference = DRIFT[change]
    run_script(place.url, sql)

    found = place.only("drift", 30)

    assert found["summary"] == f"The schema is not what {HEAD} makes: 1 difference."
    assert found["evidence"][0].startswith(f"alembic_version: {HEAD} ")
    assert found["evidence"][1].startswith(difference)
    [mends, again] = commands(found)
    assert again == "python manage.py doctor"
    run_script(place.url, mends)
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


@only_postgresql
def test_a_check_that_was_changed_is_mended_by_the_printed_sql(place: Place) -> None:
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
            f"PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}');"
            " ALTER TABLE users ADD COLUMN nickname VARCHAR(30)",
        )
    else:
        run_script(place.url, "ALTER TABLE users ALTER email TYPE TEXT, ADD COLUMN nickname VARCHAR(30)")

    found = place.only("drift", 30)

    assert "users: column nickname is there and should not be" in found["evidence"]
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
    assert check_schema(place.url, config_for(place.versions)) == []

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


# --- the files by themselves ------------------------------------------------------------------------------------------


@on_one_engine
def test_an_unreadable_file_is_brought_back_from_the_last_commit(place: Place) -> None:
    path = place.file_of(BEFORE_ACCOUNTS)
    path.write_text(path.read_text().replace("def upgrade() -> None:", "def upgrade( -> None:"))
    name = place.name_of(BEFORE_ACCOUNTS)

    found = place.only("unreadable-file", 10)

    assert found["evidence"] == [
        f"{name}: line 19: invalid syntax",
        f"Git: in the last commit it can be read, as revision {BEFORE_ACCOUNTS} 'access tokens'",
    ]
    assert commands(found) == [f"git diff HEAD -- {name}", f"git checkout HEAD -- {name}"]
    place.run(commands(found)[1])
    assert place.is_healthy


@on_one_engine
def test_of_an_unreadable_file_that_git_does_not_know_only_the_fault_is_told(place: Place) -> None:
    (place.versions / "notes.py").write_text("what = 1\n")

    found = place.only("unreadable-file", 10)

    assert "it has no `revision`" in evidence(found)
    assert commands(found) == []


def follow(place: Place, found: dict[str, Any]) -> None:
    """Do what the steps say to write into which line."""
    for step in found["next_commands"]:
        where = re.search(r"In (\S+), line (\d+), write:$", step["what"])
        assert where, step
        path = place.folder / where[1]
        lines = path.read_text().splitlines()
        lines[int(where[2]) - 1] = step["command"]
        path.write_text("\n".join(lines))


def copy_of_head(place: Place) -> None:
    copy = place.versions / "0_copy.py"
    text = place.file_of(HEAD).read_text()
    body = text.partition("def upgrade()")[0].replace(MESSAGE, f"a copy: {MESSAGE}")
    copy.write_text(f"{body}def upgrade() -> None:\n    pass\n\n\ndef downgrade() -> None:\n    pass\n")


@pytest.mark.parametrize("told_by", ["record", "git"])
@on_one_engine
def test_of_two_files_with_one_id_the_intruder_gets_an_id_of_its_own(place: Place, told_by: str) -> None:
    copy_of_head(place)
    if told_by == "record":
        place.commit("both")
    else:
        query(place.url, "DELETE FROM applied_revisions")

    found = place.only("duplicate-id", 11)

    name = place.name_of(HEAD)
    line = place.file_of(HEAD).read_text().splitlines().index(f'revision: str = "{HEAD}"') + 1
    assert f"migrations/versions/0_copy.py, line {line}: revision: str = " in evidence(found)
    assert f"{name}, line {line}: revision: str = " in evidence(found)
    words = {
        "record": f"The record of the database: {name} is what was applied on 20",
        "git": f"Git: of these files, only {name} is in the last commit",
    }
    assert words[told_by] in evidence(found)
    [new_id, parent] = commands(found)
    assert re.fullmatch(r'revision = "[0-9a-f]{12}"', new_id)
    assert parent == f'down_revision = "{HEAD}"'
    follow(place, found)
    assert place.only("behind", 0)
    place.run("alembic upgrade head")
    assert place.is_healthy


@on_one_engine
def test_where_nothing_tells_which_file_was_first_both_ways_are_told(place: Place) -> None:
    copy_of_head(place)
    place.commit("both")
    query(place.url, "DELETE FROM applied_revisions")

    found = place.only("duplicate-id", 11)

    assert len(commands(found)) == 2
    assert "Which of them came later, nothing tells." in found["next_commands"][0]["what"]


def set_parent(place: Place, revision: str, parent: str) -> None:
    path = place.file_of(revision)
    path.write_text(re.sub(r"(?m)^(down_revision.* = ).*$", rf'\1"{parent}"', path.read_text()))


@on_one_engine
def test_a_cycle_is_broken_where_the_last_commit_says_otherwise(place: Place) -> None:
    set_parent(place, BEFORE_ACCOUNTS, ACCOUNTS)
    name = place.name_of(BEFORE_ACCOUNTS)

    found = place.doctor()

    assert [each["kind"] for each in found] == ["cycle", "edited-file"]
    assert found[0]["exit_code"] == 12
    assert f'{name}, line 14: down_revision: str | Sequence[str] | None = "{ACCOUNTS}"' in found[0]["evidence"]
    assert f"Git: in the last commit {name} comes after {REVISIONS[1]}" in found[0]["evidence"]
    assert commands(found[0]) == [f"git checkout HEAD -- {name}"]
    place.run(commands(found[0])[0])
    assert place.is_healthy


@on_one_engine
def test_a_cycle_that_was_committed_is_broken_as_the_record_says(place: Place) -> None:
    set_parent(place, USERS, ACCOUNTS)
    place.commit("a circle")

    found = place.doctor()[0]

    assert (found["kind"], len(found["evidence"])) == ("cycle", 5)
    assert f"The record of the database: {USERS} was applied after nothing" in found["evidence"]
    assert commands(found) == ["down_revision = None"]
    follow(place, found)
    assert all(each["kind"] == "edited-file" for each in place.doctor())


@on_one_engine
def test_a_cycle_of_which_nothing_is_known_is_shown_line_by_line(place: Place) -> None:
    place.add(NEW, NEW)

    found = place.only("cycle", 12)

    assert found["summary"] == f"{NEW} comes after itself."
    assert commands(found) == [f"git log -p -- migrations/versions/{NEW}_added.py"]


@on_one_engine
def test_a_missing_parent_is_brought_back_from_another_branch(place: Place) -> None:
    place.git("checkout", "--quiet", "-b", "wishes")
    place.add(OTHER, HEAD)
    commit = place.commit("other")
    place.git("checkout", "--quiet", "main")
    place.add(NEW, OTHER, "    pass")

    found = place.only("missing-parent", 13)

    assert found["summary"] == f"No file has the revision {OTHER}, after which {NEW} comes."
    assert f'migrations/versions/{NEW}_added.py, line 6: down_revision = "{OTHER}"' in found["evidence"]
    assert f"Git: commit {commit} of 20" in evidence(found)
    assert commands(found) == [f"git checkout {commit} -- migrations/versions/{OTHER}_added.py"]
    place.run(commands(found)[0])
    assert place.only("behind", 0)


@on_one_engine
def test_a_parent_that_was_changed_to_one_that_is_missing_is_told_from_the_record(place: Place) -> None:
    set_parent(place, ACCOUNTS, OTHER)
    place.commit("mistake")

    found = place.doctor()[0]

    assert found["kind"] == "missing-parent"
    assert f"The record of the database: {ACCOUNTS} was applied after {BEFORE_ACCOUNTS}" in found["evidence"]
    assert found["next_commands"] == [
        {
            "command": f'down_revision = "{BEFORE_ACCOUNTS}"',
            "what": f"As it was applied. In {place.name_of(ACCOUNTS)}, line 17, write:",
        }
    ]


@pytest.mark.parametrize(("typed", "words"), [(HEAD[1:] + HEAD[0], "misspelled"), ("0" * 12, "Neither git nor")])
@on_one_engine
def test_a_missing_parent_that_nothing_knows_is_guessed_as_a_guess(place: Place, typed: str, words: str) -> None:
    place.add(NEW, typed, "    pass")

    found = place.only("missing-parent", 13)

    [(line, what)] = steps(found)
    assert line == f'down_revision = "{HEAD}"'
    assert words in what
    follow(place, {"next_commands": [{"command": line, "what": re.sub("in (?=migrations)", "In ", what)}]})
    assert place.only("behind", 0)


def test_several_heads_are_joined(place: Place) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)

    found, behind = place.doctor()

    assert (found["kind"], found["exit_code"], behind["kind"]) == ("several-heads", 34, "behind")
    assert f"{HEAD} '{MESSAGE}' ({place.name_of(HEAD)}): applied" in found["evidence"]
    assert f"{NEW} 'added' ({place.name_of(NEW)}): not applied" in found["evidence"]
    heads = sorted([HEAD, NEW])
    assert commands(found) == [
        f'alembic merge -m "merge {heads[0]} and {heads[1]}" {heads[0]} {heads[1]}', "alembic upgrade heads",
    ]  # fmt: skip
    for line in commands(found):
        place.run(line)
    assert place.is_healthy


def test_several_heads_that_are_applied_are_compared_together(place: Place) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)
    place.upgrade("heads")
    assert [each["kind"] for each in place.doctor()] == ["several-heads"]

    query(place.url, "DELETE FROM alembic_version")
    assert [each["kind"] for each in place.doctor()] == ["unversioned", "several-heads"]
    assert place.command("--repair", "--yes").exit_code == 34

    assert sorted(place.stamped) == sorted([(HEAD,), (NEW,)])


@on_one_engine
def test_a_head_that_another_one_depends_on_is_not_stamped_besides_it(place: Place) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)
    path = place.file_of(NEW)
    path.write_text(path.read_text().replace("\n\n\n", f'\ndepends_on = "{HEAD}"\n\n\n', 1))
    place.upgrade("heads")
    was = place.stamped
    query(place.url, "DELETE FROM alembic_version")

    assert place.command("--repair", "--yes").exit_code == 34

    assert place.stamped == was == [(NEW,)]


# --- several, none, and what is not executed --------------------------------------------------------------------------


def test_all_that_is_wrong_is_told_and_nothing_broken_is_executed(place: Place) -> None:
    for number, text in enumerate([f'revision = "{NEW}"\ndown_revision = "{OTHER}"\n', "def ("]):
        (place.versions / f"{number}.py").write_text(f'open("executed", "w")\n{text}')
    place.stamp("0" * 12)
    query(place.url, "CREATE TABLE _alembic_tmp_users (id INTEGER)")

    found = place.doctor()

    assert [each["kind"] for each in found] == [
        "unreadable-file", "missing-parent", "unknown-revision", "leftover-table",
    ]  # fmt: skip
    assert "The schema was not compared: nothing is executed before the revision files make a history" in evidence(
        found[2]
    )
    assert not (place.folder / "executed").exists()
    printed = place.command()
    assert printed.exit_code == 10
    for each in found:
        assert f"{each['kind']}: {each['summary']} (exit code {each['exit_code']})\n" in printed.stdout
        for line in commands(each):
            assert f"\n      {line}\n" in printed.stdout


def test_revisions_that_fail_are_no_reason_to_say_nothing(place: Place) -> None:
    place.add(NEW, HEAD, '    raise RuntimeError("not here")')
    place.stamp(NEW)

    found = place.only("not-compared", 31)

    assert found["evidence"] == [f"Why: on an empty database the revisions fail: {NEW}: not here"]


@on_one_engine
def test_without_a_database_the_files_are_diagnosed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, words in (
        (f"sqlite:///{place.folder}/missing.db", "There is no file"),
        ("postgresql://localhost:1/x", "Connection refused"),
    ):
        monkeypatch.setenv("DATABASE_URL", url)
        result = place.command()
        assert result.exit_code == 2
        assert words in result.stdout
    place.add(NEW, OTHER)
    assert place.command().exit_code == 13
    assert not (place.folder / "missing.db").exists()


# --- repair -----------------------------------------------------------------------------------------------------------


def test_a_repair_is_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.stamp(OTHER)
    before = place.everything()

    nobody = place.command("--repair")
    assert (nobody.exit_code, place.everything()) == (23, before)
    assert "There is nobody to ask. To write it without a question: --yes" in nobody.stderr

    monkeypatch.setattr("manage.is_asked", lambda: True)
    for answer, code in (("n\n", 23), ("y\n", 0)):
        result = CliRunner().invoke(manage.app, ["doctor", "--repair"], input=answer)
        assert result.exit_code == code
        assert "Write it?" in result.stderr
    assert place.is_healthy


def test_a_database_ahead_of_the_code_is_never_restamped(place: Place) -> None:
    # The schema is exactly that of the head, and still it would be wrong.
    place.add(NEW, HEAD, "    pass")
    place.upgrade()
    place.file_of(NEW).unlink()

    result = place.command("--repair", "--yes")

    assert result.exit_code == 21
    assert "A restamp would not mend this (ahead), only hide it." in result.stderr
    assert place.stamped == [(NEW,)]


def test_a_repair_does_not_hide_that_a_file_was_edited(place: Place) -> None:
    path = place.file_of(HEAD)
    path.write_text(path.read_text() + "# polished\n")
    query(place.url, "DELETE FROM alembic_version")

    assert place.command("--repair", "--yes").exit_code == 33
    assert place.stamped == [(HEAD,)]
    assert place.only("edited-file", 33)


def test_drift_is_never_restamped(place: Place) -> None:
    query(place.url, f"DROP INDEX {INDEX}")
    before = place.everything()

    result = place.command("--repair", "--yes")

    assert (result.exit_code, place.everything()) == (30, before)
    assert "None of this is mended by writing another revision" in result.stderr


def test_a_repair_waits_its_turn_and_says_who_migrates(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.stamp(OTHER)
    monkeypatch.setenv("MIGRATION_TIMEOUT", "0.2")

    with somebody_who_migrates(place.url) as name:
        result = place.command("--repair", "--yes")

    assert result.exit_code == 2
    assert name in result.stderr
    assert place.stamped == [(OTHER,)]


@pytest.mark.parametrize("change", ["DELETE FROM alembic_version", f"DROP INDEX {INDEX}"])
def test_what_changed_before_the_repair_is_not_overwritten(place: Place, change: str) -> None:
    place.stamp(OTHER)
    plan = plan_repair(diagnose(place.url, place.versions, place.folder), place.url)
    query(place.url, change)
    before = place.everything()

    with pytest.raises(RepairRefused, match="changed in the meantime"):
        restamp(place.url, plan, place.versions, 1)

    assert place.everything() == before


# --- the codes --------------------------------------------------------------------------------------------------------


def test_help_and_guide_list_each_kind_with_its_exit_code() -> None:
    codes = [code for code, _ in KINDS.values()]
    assert len(set(codes)) == len(codes)
    assert 1 not in codes  # Python's own, for what nobody foresaw.

    shown = CliRunner().invoke(manage.app, ["doctor", "--help"], env={"COLUMNS": "160"}).stdout
    assert {kind: int(code) for code, kind in re.findall(r"• (\d+) ([a-z-]+):", shown)} == {
        kind: code for kind, (code, _) in KINDS.items() if code
    }
    for guide in ROOT.glob("docs/migrations.md"):
        listed = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", guide.read_text(), re.MULTILINE)
        assert [(kind, int(code)) for kind, code in listed] == [(kind, code) for kind, (code, _) in KINDS.items()]
