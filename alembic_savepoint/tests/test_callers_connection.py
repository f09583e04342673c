"""Guards on a connection that a program gives to Alembic in config.attributes."""

from pathlib import Path

import pytest

from alembic_savepoint.tests.conftest import Begin
from alembic_savepoint.tests.support import Stranger

GIVEN = """
from alembic import context
from alembic_savepoint import guards

context.configure(connection=context.config.attributes["connection"])
guards.run_migrations()
"""

PROGRAM = """
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

config = Config("alembic.ini")
engine = sa.create_engine(config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    config.attributes["connection"] = connection
"""


@pytest.fixture
def project(begin: Begin) -> Stranger:
    """A project whose env.py uses the caller's connection."""
    project = begin()
    (project.folder / "migrations/env.py").write_text(GIVEN)
    return project


def run(project: Stranger, *lines: str) -> str:
    """Run lines of a program, within its connection."""
    Path(project.folder, "program.py").write_text(PROGRAM + "".join(f"    {line}\n" for line in lines))
    result = project.run("program")
    assert result.code == 0, result
    return result.output


def test_without_a_transaction_each_revision_is_committed(project: Stranger) -> None:
    run(project, 'command.upgrade(config, "head")', "assert not connection.in_transaction()", "connection.rollback()")

    assert project.query("SELECT version_num FROM alembic_version") == [("bbb2",)]
    assert project.query("SELECT revision FROM applied_revisions ORDER BY id") == [("aaa1",), ("bbb2",)]


def test_a_callers_transaction_is_not_committed(project: Stranger) -> None:
    seen = run(
        project,
        "connection.begin()",
        'command.upgrade(config, "head")',
        'print(sa.inspect(connection).has_table("users"), connection.in_transaction())',
        "connection.rollback()",
    )

    assert seen == "True True\n"
    assert project.tables() == set()


def test_a_callers_transaction_is_not_rolled_back(project: Stranger) -> None:
    run(
        project,
        'connection.execute(sa.text("CREATE TABLE callers (id INTEGER)"))',
        'command.upgrade(config, "head")',
        "command.current(config)",
        "connection.execute(sa.text(\"INSERT INTO users (id, name) VALUES (1, 'Ada')\"))",
        'command.downgrade(config, "-1")',
        "connection.commit()",
    )

    assert project.tables() == {"alembic_version", "applied_revisions", "callers", "users"}
    assert project.query("SELECT * FROM users") == [(1, "Ada")]
    assert not (project.folder / "saves").exists()


def test_a_failure_leaves_it_to_the_caller_to_roll_back(project: Stranger) -> None:
    project.add_revision("ccc3", '\ndef upgrade():\n    op.execute("SELECT nothing_there")\n', "bbb2")

    seen = run(
        project,
        "connection.begin()",
        "try:",
        '    command.upgrade(config, "head")',
        "except Exception as error:",
        "    print(error)",
        "connection.rollback()",
    )

    assert "Upgrade ccc3" in seen
    assert "in a transaction of the caller, which was not committed. Roll that back." in seen
    assert project.tables() == set()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_database_in_memory_is_neither_locked_nor_saved(begin: Begin) -> None:
    project = begin(url="sqlite://")
    (project.folder / "migrations/env.py").write_text(GIVEN)

    run(project, 'command.upgrade(config, "head")', 'command.downgrade(config, "base")')

    assert {path.name for path in project.folder.iterdir()} - {"__pycache__"} == {
        "alembic.ini", "migrations", "program.py",
    }  # fmt: skip
