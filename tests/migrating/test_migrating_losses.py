"""Migrating: what a revision loses is counted, however it is written, and refused before it is stored."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import CommandError

from alembic_savepoint.guards.losses import Losses, losses_text, refuse_losses
from db.engines import create_migration_engine
from tests.support.migrating import NEW
from tests.support.migrations import HEAD, add_revision, complaints, look, only_postgresql, only_sqlite
from tests.support.revisions import revision_with
from tests.support.service import alembic, query

NOTHING = "COUNTS_AS_LOSS = {}"
TABLES = """
    CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL, phone VARCHAR(20));
    CREATE TABLE notes (id INTEGER PRIMARY KEY, person INTEGER REFERENCES people (id) ON DELETE CASCADE);
    INSERT INTO people VALUES (1, 'alice', '1'), (2, 'bob', '2'), (3, 'carol', NULL);
    INSERT INTO notes VALUES (1, 1), (2, 1)
"""


@contextmanager
def operating(url: str) -> Iterator[tuple[sa.Connection, Operations]]:
    """A connection to a database with rows, in a transaction that is rolled back."""
    with create_migration_engine(url).connect() as connection:
        for sql in TABLES.split(";"):
            connection.exec_driver_sql(sql)
        yield connection, Operations(MigrationContext.configure(connection))
        connection.rollback()


def lost(url: str, body: str, said: str = NOTHING) -> dict[str, int]:
    """What the statements of a revision lose."""
    with operating(url) as (connection, op):
        losses = Losses(connection, revision_with(said))
        people = sa.Table("people", sa.MetaData(), sa.Column("id"), sa.Column("phone"))
        with losses.watched():
            # The statements are the test's own.
            exec(body, {"op": op, "sa": sa, "bind": connection, "people": people})  # noqa: S102
        return losses.lost()


BATCH = "with op.batch_alter_table('people') as batch:\n    "
ADD_NUMBER = "op.add_column('people', sa.Column('number', sa.String(20)))\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("op.drop_table('notes')", {"notes": 2}),
        ("[op.drop_table(name) for name in ('no' + 'tes', 'people')]", {"notes": 2, "people": 3}),
        ("sa.Table('notes', sa.MetaData()).drop(bind)", {"notes": 2}),
        ("m = sa.MetaData()\nm.reflect(bind)\nm.drop_all(bind)", {"notes": 2, "people": 3}),
        ("op.execute('DELETE FROM notes WHERE id = 1')", {"notes": 1}),
        ("op.execute(people.delete().where(people.c.phone.is_(None)))", {"people": 1}),
        ("op.execute('UPDATE people SET phone = NULL')", {"people.phone": 2}),
        ("op.execute(people.update().where(people.c.id == 1).values(phone=None))", {"people.phone": 1}),
        (BATCH + "batch.drop_column('phone')", {"people.phone": 2}),
        (ADD_NUMBER + BATCH + "batch.drop_column('phone')", {"people.phone": 2}),
        # A value that was copied is gone from where others look for it.
        (ADD_NUMBER + "op.execute('UPDATE people SET number = phone')\n" + BATCH + "batch.drop_column('phone')",
         {"people.phone": 2}),
        ("op.rename_table('notes', 'old')\nop.drop_table('old')", {"old": 2}),
        # Nothing is lost.
        ("op.rename_table('people', 'persons')", {}),
        ("op.execute(\"UPDATE people SET name = 'x'\")\nop.rename_table('people', 'persons')", {}),
        (BATCH + "batch.alter_column('phone', new_column_name='number')", {}),
        (BATCH + "batch.alter_column('phone', new_column_name='number', type_=sa.String(30))", {}),
        ("op.execute('UPDATE people SET phone = name')\n" + BATCH + "batch.alter_column('phone', new_column_name='n')",
         {}),
        ("op.execute('ALTER TABLE people RENAME COLUMN phone TO number')\n"
         "op.execute('DELETE FROM people WHERE id > 9')", {}),
        (BATCH + "batch.alter_column('name', nullable=True)", {}),
        ("op.execute('CREATE TABLE new AS SELECT * FROM people')\nop.drop_table('new')", {}),
        (ADD_NUMBER + "op.execute(\"UPDATE people SET number = '1'\")\n" + BATCH + "batch.drop_column('number')", {}),
        ("op.create_index('ix', 'people', ['name'])\nop.drop_index('ix', 'people')", {}),
        ("op.execute('CREATE TABLE c AS SELECT * FROM notes')\nop.drop_table('notes')\n"
         "op.rename_table('c', 'notes')", {}),
    ],
)  # fmt: skip
def test_what_is_lost_is_counted_however_it_is_written(empty_url: str, body: str, expected: dict[str, int]) -> None:
    assert lost(empty_url, body) == expected


@only_postgresql
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("op.execute('TRUNCATE notes')", {"notes": 2}),
        ("op.execute('TRUNCATE people CASCADE')", {"people": 3, "notes": 2}),
        ("op.execute('DELETE FROM people WHERE id = 1')", {"people": 1, "notes": 2}),
        ("op.execute('DO $$ BEGIN DELETE FROM notes; END $$')", {"notes": 2}),
        ("op.execute('ALTER TABLE people ALTER phone TYPE int USING NULL')", {"people.phone": 2}),
        ("op.execute('ALTER TABLE people DROP phone')", {"people.phone": 2}),
        ("op.execute('CREATE SCHEMA x')\nop.execute('ALTER TABLE notes SET SCHEMA x')\n"
         "op.execute('DROP SCHEMA x CASCADE')", {"x.notes": 2}),
    ],
)  # fmt: skip
def test_what_only_postgresql_can_lose_is_counted(empty_url: str, body: str, expected: dict[str, int]) -> None:
    assert lost(empty_url, body) == expected


@only_postgresql
def test_a_table_of_another_schema_loses_rows_and_its_columns_lose_values(empty_url: str) -> None:
    body = "op.execute('CREATE SCHEMA x')\nop.execute('ALTER TABLE people SET SCHEMA x')\n"
    rows = lost(empty_url, f"{body}op.execute('DROP SCHEMA x CASCADE')")
    values = lost(empty_url, f"{body}op.execute('UPDATE x.people SET phone = NULL')")

    assert losses_text(rows) == "x.people: 3 rows"
    assert losses_text(values) == "x.people.phone: 2 values"
    with pytest.raises(CommandError, match=r"would lose data \(x\.people: 3 rows\)"):
        refuse_losses(rows, {"people"}, "upgrade", "")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("COUNTS_AS_LOSS = {'people.phone': 'FALSE'}", {}),
        ("COUNTS_AS_LOSS = {'people.phone': 'id = 1'}", {"people.phone": 1}),
    ],
)
def test_a_revision_says_which_rows_count(empty_url: str, said: str, expected: dict[str, int]) -> None:
    assert lost(empty_url, BATCH + "batch.drop_column('phone')", said) == expected


REMOVE_STATUS = "    op.execute(\"UPDATE users SET phone_number = '1'\")\n    op.execute('DELETE FROM profiles')"
ALICE = "INSERT INTO users (id, username, email, created_at) VALUES (1, 'a', 'a@b.c', '2026-01-01 00:00:00.000000')"


@pytest.mark.slow
def test_an_upgrade_that_loses_rows_is_refused_until_it_is_accepted_or_meant(url: str, fork: Path) -> None:
    query(url, ALICE)
    query(url, "INSERT INTO profiles (user_id, status) VALUES (1, 'active')")
    add_revision(fork, NEW, HEAD, REMOVE_STATUS)
    before = look(url)

    refused = alembic(url, "upgrade", "head", cwd=fork)

    assert refused.returncode == 1
    line = complaints(refused)[-1]
    assert line.startswith("FAILED: This upgrade would lose data (profiles: 1 row). Nothing was changed.")
    assert "alembic -x accept-loss=profiles upgrade" in line
    assert "COUNTS_AS_LOSS = {'profiles': 'FALSE'}" in line
    assert look(url) == before
    assert alembic(url, "-x", "accept-loss=profiles", "upgrade", "head", cwd=fork).returncode == 0


@pytest.mark.slow
@only_postgresql
def test_what_is_dropped_outside_of_a_transaction_is_refused_before_it_is(url: str, fork: Path) -> None:
    query(url, ALICE)
    query(url, "INSERT INTO profiles (user_id, status) VALUES (1, 'active')")
    block = '    with op.get_context().autocommit_block():\n        op.execute("TRUNCATE profiles")'
    add_revision(fork, NEW, HEAD, block)

    refused = alembic(url, "upgrade", "head", cwd=fork)

    assert "(profiles: 1 row)" in complaints(refused)[-1]
    assert query(url, "SELECT count(*) FROM profiles") == [(1,)]


@only_sqlite
def test_a_table_is_counted_once_for_many_statements(empty_url: str) -> None:
    counted = []
    with operating(empty_url) as (connection, op):
        losses = Losses(connection, revision_with(NOTHING))
        sa.event.listen(connection, "before_cursor_execute", lambda *found: counted.append(found[2]))
        with losses.watched():
            for number in range(10):
                op.execute(f"UPDATE people SET name = '{number}'")

    assert sum("count(people.phone)" in sql for sql in counted) == 1
