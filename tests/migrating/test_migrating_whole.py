"""Migrating: a revision that ends its transaction is refused; time-outs end none; errors of SQL take two lines."""

from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.support.migrating import ADD_COLUMN, NEW, record
from tests.support.migrations import HEAD, add_revision, complaints, look, only_postgresql
from tests.support.service import alembic, query

pytestmark = pytest.mark.slow

ALICE = "INSERT INTO users (id, username, email, created_at) VALUES (1, 'a', 'a@b.c', '2026-01-01 00:00:00.000000')"
MORE = "    op.execute(\"UPDATE users SET phone_number = coalesce(phone_number, '') || '1'\")\n"
SECOND = """    with op.get_bind().engine.connect() as other:
        other.execute(sa.text("UPDATE users SET phone_number = '9'"))
        other.commit()
"""
AUTOCOMMIT = """    other = sa.create_engine(op.get_bind().engine.url, isolation_level="AUTOCOMMIT")
    with other.connect() as second:
        second.execute(sa.text("UPDATE users SET phone_number = '9'"))
"""
CAUGHT = "    try:\n        op.get_bind().commit()\n    except Exception:\n        pass\n"


@pytest.mark.parametrize(
    "end",
    [
        "    op.get_bind().commit()\n",
        '    op.execute("COMMIT")\n',
        '    op.execute("-- so\\n COMMIT WORK ;")\n',
        "    op.get_bind().rollback()\n",
        CAUGHT,
    ],
)
def test_a_revision_that_ends_its_transaction_is_refused_and_changes_nothing(url: str, fork: Path, end: str) -> None:
    query(url, ALICE)
    before = look(url)
    add_revision(fork, NEW, HEAD, f"{MORE}{end}{MORE}")

    for _ in range(2):
        result = alembic(url, "upgrade", "head", cwd=fork)

        assert result.returncode == 1
        line = complaints(result)[-1]
        assert line.startswith(f"FAILED: Upgrade {NEW} ")
        assert "by itself" in line
        assert f"Upgrade {NEW} changed nothing." in line
        assert "autocommit_block" in line
        assert look(url) == before


@only_postgresql  # On SQLite it cannot write: the migration's own transaction does.
@pytest.mark.parametrize("other", [SECOND, AUTOCOMMIT])
def test_a_second_connection_that_writes_is_refused(url: str, fork: Path, other: str) -> None:
    query(url, ALICE)
    before = look(url)
    add_revision(fork, NEW, HEAD, other)

    result = alembic(url, "upgrade", "head", cwd=fork)

    assert result.returncode == 1
    assert "writes through a second connection" in complaints(result)[-1]
    assert look(url) == before


@only_postgresql
def test_a_second_connection_that_reads_is_allowed(url: str, fork: Path) -> None:
    add_revision(fork, NEW, HEAD, SECOND.replace("UPDATE users SET phone_number = '9'", "SELECT 1"))

    assert alembic(url, "upgrade", "head", cwd=fork).returncode == 0


def test_a_commit_past_sqlalchemy_is_noticed_and_never_applied_twice(url: str, fork: Path) -> None:
    query(url, ALICE)
    add_revision(fork, NEW, HEAD, f"{MORE}    op.get_bind().connection.dbapi_connection.commit()\n")

    first = alembic(url, "upgrade", "head", cwd=fork)
    again = alembic(url, "upgrade", "head", cwd=fork)

    assert (first.returncode, again.returncode) == (1, 1)
    assert f"Upgrade {NEW} ended its own transaction" in complaints(first)[-1]
    assert "UPDATE users SET phone_number" in complaints(first)[-1]
    assert f"Revision {NEW} ended its own transaction on " in complaints(again)[-1]
    assert query(url, "SELECT phone_number FROM users") == [("1",)]
    assert alembic(url, "stamp", "head", cwd=fork).returncode == 0
    assert alembic(url, "downgrade", "-1", cwd=fork).returncode == 0
    assert query(url, "SELECT version_num FROM alembic_version") == [(HEAD,)]


@only_postgresql
def test_an_autocommit_block_is_allowed_and_named_if_the_rest_fails(url: str, fork: Path) -> None:
    block = (
        f"{MORE}    with op.get_context().autocommit_block():\n"
        '        op.create_index("ix_email", "users", ["email"], postgresql_concurrently=True, if_not_exists=True)\n'
    )
    add_revision(fork, NEW, HEAD, f'{block}    op.execute("SELECT nonsense")')

    failed = alembic(url, "upgrade", "head", cwd=fork)
    add_revision(fork, NEW, HEAD, f"{block}{MORE}")
    passed = alembic(url, "upgrade", "head", cwd=fork)

    assert failed.returncode == 1
    assert f"Upgrade {NEW} has an autocommit_block: what it did up to the end of that is stored." in failed.stderr
    assert passed.returncode == 0, passed.stderr
    assert record(url)[-1] == ("upgrade", NEW)


def test_a_revision_that_changes_alembic_version_is_noticed(url: str, fork: Path) -> None:
    # As a trigger of the database could.
    trigger = {
        "sqlite": "CREATE TRIGGER t AFTER INSERT ON applied_revisions BEGIN UPDATE alembic_version "
        "SET version_num = 'elsewhere'; END",
        "postgresql": "CREATE RULE t AS ON INSERT TO applied_revisions DO ALSO UPDATE alembic_version "
        "SET version_num = 'elsewhere'",
    }
    query(url, trigger[url.partition(":")[0]])
    add_revision(fork, NEW, HEAD, ADD_COLUMN)

    result = alembic(url, "upgrade", "head", cwd=fork)

    assert result.returncode == 1
    assert f"alembic_version names elsewhere instead of {NEW}" in complaints(result)[-1]


@only_postgresql
def test_the_roles_own_time_outs_end_no_migration(url: str, fork: Path) -> None:
    role = f"hasty_{make_url(url).database}"
    query(url, f"CREATE ROLE {role} LOGIN SUPERUSER")
    [(names,)] = query(
        url,
        "SELECT array_agg(name) FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout',"
        " 'idle_in_transaction_session_timeout')",
    )
    for name in names:
        query(url, f"ALTER ROLE {role} SET {name} = '400ms'")
    slow = (
        '    op.execute("SELECT pg_sleep(0.6)")\n    import time; time.sleep(0.6)\n'
        '    with op.get_context().autocommit_block():\n        op.execute("SELECT pg_sleep(0.6)")\n'
        '    op.execute("SELECT pg_sleep(0.6)")\n'
    )
    add_revision(fork, NEW, HEAD, slow)

    try:
        result = alembic(url.replace("//postgres@", f"//{role}@"), "upgrade", "head", cwd=fork)
    finally:
        query(url, f"DROP OWNED BY {role}")
        query(url, f"DROP ROLE {role}")

    assert result.returncode == 0, result.stderr


def test_an_error_of_sql_takes_two_lines(url: str, fork: Path) -> None:
    add_revision(fork, "0123456789ab", HEAD, "    pass")
    add_revision(fork, NEW, "0123456789ab", f'{ADD_COLUMN}\n    op.execute("SELECT 1 +\\n FROM users")')

    result = alembic(url, "upgrade", "head", cwd=fork)

    assert result.returncode == 1
    first, second = complaints(result)
    assert first.startswith(f"FAILED: Upgrade {NEW}: “SELECT 1 + FROM users”: ")
    assert "syntax error" in first
    assert second.startswith(f"Upgrade {NEW} changed nothing. Stored before it: upgrade {HEAD} -> 0123456789ab")
    assert "Traceback" not in result.stderr


def test_tables_without_alembic_version_lead_to_doctor(url: str) -> None:
    query(url, "DROP TABLE alembic_version")

    result = alembic(url, "upgrade", "head")

    assert result.returncode == 1
    first, second = complaints(result)
    assert "already exists" in first
    assert "python manage.py doctor" in second
    assert "Traceback" not in result.stderr


@only_postgresql
def test_a_constraint_that_fails_at_the_commit_takes_two_lines(url: str, fork: Path) -> None:
    deferred = (
        '    op.execute("CREATE TABLE t (id int REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)")\n'
        '    op.execute("INSERT INTO t VALUES (-1)")'
    )
    add_revision(fork, NEW, HEAD, deferred)

    result = alembic(url, "upgrade", "head", cwd=fork)

    assert len(complaints(result)) == 2
    assert f"FAILED: Upgrade {NEW}: insert or update on table" in complaints(result)[0]
