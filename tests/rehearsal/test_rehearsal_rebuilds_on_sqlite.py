"""Rehearsal: rebuilds on SQLite; others at work."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic.util import CommandError

from alembic_savepoint.guards.turns import only_migrator
from alembic_savepoint.rehearsal.trial import Rehearsal
from db.engines import create_migration_engine
from settings import Settings
from tests.support.migrations import HEAD, add_revision, only_postgresql, only_sqlite, run_script
from tests.support.project import rehearse
from tests.support.rehearsal import ADD_COLUMN, NEW, everything, findings, only, rehearsed, run, tried
from tests.support.service import query

REBUILD = """
    with op.batch_alter_table("users", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("birthstone", sa.String(length=30), nullable=True))
"""


THINGS = """
CREATE TABLE things (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT COLLATE NOCASE,
    code TEXT,
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    CHECK (length(name) > 0),
    CONSTRAINT ck_code CHECK (code <> '')
);
INSERT INTO things (name, code, user_id) VALUES ('one', '007', 1), ('two', 'x', 1);
CREATE INDEX ix_things_name ON things (name);
CREATE INDEX ix_things_lower ON things (lower(code));
CREATE TRIGGER no_two AFTER INSERT ON things BEGIN DELETE FROM things WHERE name = 'no'; END;
CREATE TABLE plain (id INTEGER PRIMARY KEY, code TEXT) STRICT;
INSERT INTO plain VALUES (1, '007'), (2, 'x');
"""


@pytest.fixture
def things_url(own_url: str) -> str:
    """A database with tables that a rebuild does not bring back whole."""
    run_script(own_url, THINGS)
    return own_url


def rebuilt(code: str) -> str:
    """A rebuild of that table by Alembic, which warns of some of what it leaves out."""
    return f"""
    import warnings
    with warnings.catch_warnings(action="ignore"), op.batch_alter_table("things", recreate="always") as batch_op:
        {code}
"""


def by_hand(columns: str, rows: str = "SELECT * FROM plain", *more: str) -> str:
    """A rebuild of the other table in SQL."""
    statements = (
        f"CREATE TABLE new ({columns})",
        f"INSERT INTO new {rows}",
        "DROP TABLE plain",
        "ALTER TABLE new RENAME TO plain",
        *more,
    )
    return "".join(f"    op.execute({sql!r})\n" for sql in statements)


def lost(rehearsal: Rehearsal) -> list[str]:
    assert rehearsal.failure is None
    return sorted(
        finding.message.removeprefix("The rebuild loses ").rstrip(".")
        for finding in findings(rehearsal)
        if finding.rule.startswith("rebuild")
    )


@only_sqlite
def test_what_a_rebuild_by_alembic_loses_is_named(things_url: str, folder: Path) -> None:
    result = tried(things_url, rebuilt("batch_op.add_column(sa.Column('more', sa.Text()))"), folder)

    assert lost(result) == [
        "CHECK without a name on things: length(name) > 0",
        "foreign key without a name on things: FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE",
        "index ix_things_lower on things: (lower(code))",
        "primary key without a name on things: PRIMARY KEY (id) AUTOINCREMENT",
        "the trigger no_two on things",
        "what things.name is: TEXT COLLATE NOCASE; it becomes TEXT",
    ]


@only_sqlite
def test_what_a_revision_drops_itself_is_not_lost(things_url: str, folder: Path) -> None:
    code = rebuilt("batch_op.drop_constraint(op.f('ck_code'), type_='check'); batch_op.drop_index('ix_things_name')")

    assert not [each for each in lost(tried(things_url, code, folder)) if "ck_code" in each or "ix_things_name" in each]


@only_sqlite
@pytest.mark.parametrize("name", ["'status'", "op.f('ck_profiles_status')"])
def test_a_check_that_a_revision_drops_by_its_short_name_is_not_lost(full_url: str, folder: Path, name: str) -> None:
    code = f"""
    with op.batch_alter_table("profiles") as batch_op:
        batch_op.drop_constraint({name}, type_="check")
"""
    assert lost(tried(full_url, code, folder)) == []


@only_sqlite
def test_what_hangs_on_a_dropped_column_is_not_lost(things_url: str, folder: Path) -> None:
    result = tried(
        things_url, rebuilt("batch_op.drop_constraint(op.f('ck_code')); batch_op.drop_column('code')"), folder
    )

    assert not [each for each in lost(result) if "code" in each]


@only_sqlite
def test_what_a_revision_makes_again_is_not_lost(things_url: str, folder: Path) -> None:
    trigger = "CREATE TRIGGER no_two AFTER INSERT ON things BEGIN DELETE FROM things WHERE name = 'no'; END"
    code = rebuilt("batch_op.add_column(sa.Column('more', sa.Text()))") + f"    op.execute({trigger!r})\n"

    assert not [each for each in lost(tried(things_url, code, folder)) if "no_two" in each]


PLAIN = "id INTEGER PRIMARY KEY, code TEXT) STRICT --"


@only_sqlite
@pytest.mark.parametrize(
    ("columns", "rows", "losses"),
    [
        (PLAIN, "SELECT * FROM plain", []),
        ("id INTEGER PRIMARY KEY) STRICT --", "SELECT id FROM plain", ["the column plain.code with its values"]),
        ("id INTEGER PRIMARY KEY, code TEXT", "SELECT * FROM plain", ["STRICT of plain"]),
        (
            "id INTEGER PRIMARY KEY, code NUMERIC",
            "SELECT * FROM plain",
            [
                "STRICT of plain",
                "The rebuild changes the type of values in plain.code: 0 integer are now 1, 2 text are now 1",
            ],
        ),
    ],
    ids=["nothing", "a column", "strictness", "types of values"],
)
def test_what_a_rebuild_by_hand_loses_is_named(
    things_url: str, folder: Path, columns: str, rows: str, losses: list[str]
) -> None:
    assert lost(tried(things_url, by_hand(columns, rows), folder)) == losses


@only_sqlite
def test_rows_that_a_rebuild_loses_are_counted(things_url: str, folder: Path) -> None:
    result = tried(things_url, by_hand(PLAIN, "SELECT * FROM plain WHERE id = 1"), folder)

    assert (lost(result), only(result).losses) == ([], {"plain": 1})


@only_sqlite
def test_what_is_deleted_after_a_rebuild_is_not_lost_by_it(things_url: str, folder: Path) -> None:
    code = by_hand(PLAIN, "SELECT * FROM plain", "DELETE FROM plain", "DROP TABLE plain")

    assert lost(tried(things_url, code, folder)) == []


@only_sqlite
def test_each_of_several_rebuilds_counts(things_url: str, folder: Path) -> None:
    again = rebuilt("batch_op.add_column(sa.Column('more', sa.Text()))")
    code = rebuilt("batch_op.alter_column('code', type_=sa.Integer())") + again

    losses = lost(tried(things_url, code, folder))
    assert "The rebuild changes the type of values in things.code: 0 integer are now 2, 2 text are now 0" in losses
    assert "the trigger no_two on things" in losses


@only_sqlite
def test_a_table_that_is_only_dropped_is_not_looked_at(things_url: str, folder: Path) -> None:
    assert lost(tried(things_url, '    op.drop_table("things")', folder)) == []


@only_sqlite
@pytest.mark.parametrize(
    "reader",
    [
        "CREATE VIEW names AS SELECT username FROM users",
        "CREATE TRIGGER names AFTER INSERT ON profiles BEGIN DELETE FROM users WHERE id = 0; END",
    ],
)
def test_what_stands_in_the_way_of_a_rebuild_is_named(own_url: str, folder: Path, reader: str) -> None:
    query(own_url, reader)

    result = tried(own_url, REBUILD, folder)

    assert result.failure is not None
    assert "names" in result.failure.error


@only_sqlite
def test_rows_that_a_rebuild_would_orphan_are_a_failure(full_url: str, folder: Path) -> None:
    result = tried(full_url, '    op.execute("DELETE FROM users")', folder)

    assert result.failure is not None
    assert result.failure.error.startswith("4 rows would refer to rows that do not exist")


@contextmanager
def somebody_at_work(url: str) -> Iterator[None]:
    """A transaction of somebody else that has locked what the migration needs; in the end who waits for it gets it."""
    connection: sqlite3.Connection | psycopg.Connection
    if url.startswith("sqlite"):
        connection = sqlite3.connect(
            url.removeprefix("sqlite:///"), isolation_level="IMMEDIATE", check_same_thread=False
        )
    else:
        connection = psycopg.connect(url, application_name="a report")
    end = threading.Timer(20, connection.rollback)
    with closing(connection):
        connection.execute("UPDATE users SET email = 'mine@example.com'")
        end.start()
        yield
        end.cancel()
        connection.rollback()


def test_a_lock_that_somebody_holds_ends_the_rehearsal_in_time(full_url: str, folder: Path) -> None:
    before = everything(full_url)

    with somebody_at_work(full_url), pytest.raises(CommandError) as raised:
        tried(full_url, ADD_COLUMN, folder)

    words = "Another process has been writing for 0.3 seconds"
    if full_url.startswith("postgresql"):
        words = "“ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)” needs a lock, and did not get it in 0.3 seconds"
        assert "(a report, idle in transaction since" in str(raised.value)
    assert str(raised.value).startswith(words)
    assert str(raised.value).endswith(
        "Wait for that to end, or rehearse on a copy: alembic-savepoint rehearse head --copy"
    )
    assert everything(full_url) == before


def test_on_a_copy_nobody_is_in_the_way(full_url: str, folder: Path) -> None:
    add_revision(folder, NEW, HEAD, ADD_COLUMN)

    with somebody_at_work(full_url):
        result = rehearsed(full_url, copy=True)

    assert (result.failure, [trial.id for trial in result.revisions]) == (None, [NEW])


def test_while_somebody_migrates_nothing_is_rehearsed(full_url: str) -> None:
    patient = Settings(database_url=full_url, migration_timeout=0.1)

    with (
        only_migrator(create_migration_engine(full_url), 0),
        pytest.raises(CommandError, match="Another process migrates this database"),
    ):
        rehearse(full_url, "-1", settings=patient)


def test_a_file_that_is_no_database_is_exit_code_2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{folder / 'migrations/env.py'}")

    result = run()

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("env.py cannot be used: file is not a database\n")


@only_postgresql
def test_a_server_that_does_not_answer_is_exit_code_2(full_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")

    result = run()

    assert (result.exit_code, result.stdout) == (2, "")
    assert "The database cannot be used: " in result.stderr
