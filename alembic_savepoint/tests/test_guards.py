"""The guards' one line in the env.py of Alembic's templates."""

import pytest

from alembic_savepoint.tests.conftest import Begin
from alembic_savepoint.tests.support import Stranger

TEMPLATES = ["generic", "async", "pyproject", "pyproject_async"]


@pytest.fixture(params=["generic", "async"])
def guarded(begin: Begin, request: pytest.FixtureRequest) -> Stranger:
    """A project with models and the guards, of a synchronous and an asynchronous template."""
    project = begin(request.param)
    project.use_models()
    project.guard()
    return project


def record(project: Stranger) -> list[tuple[object, ...]]:
    return project.query("SELECT action, revision FROM applied_revisions ORDER BY id")


@pytest.mark.parametrize("template", TEMPLATES)
def test_with_one_line_in_env_py_each_step_is_recorded(begin: Begin, template: str) -> None:
    project = begin(template)
    project.guard()

    project.alembic("upgrade", "head")
    project.alembic("downgrade", "-1")
    project.alembic("stamp", "head")
    project.alembic("current")

    assert record(project) == [("upgrade", "aaa1"), ("upgrade", "bbb2"), ("downgrade", "bbb2"), ("stamp", "bbb2")]


def test_autogenerate_proposes_nothing_after_an_upgrade(guarded: Stranger) -> None:
    guarded.alembic("upgrade", "head")

    guarded.alembic("check")
    guarded.alembic("revision", "--autogenerate", "-m", "nothing")

    [written] = guarded.folder.glob("migrations/versions/*_nothing.py")
    assert "op." not in written.read_text().split("def upgrade")[1]


def test_printed_sql_has_the_record(guarded: Stranger) -> None:
    printed = guarded.alembic("upgrade", "head", "--sql").output

    assert "CREATE TABLE users" in printed
    assert printed.count("INSERT INTO applied_revisions") == 2
    assert guarded.folder.joinpath("app.db").exists() is False


def test_a_revision_that_fails_half_way_leaves_nothing(guarded: Stranger) -> None:
    fails = """
def upgrade():
    op.create_table("half", sa.Column("id", sa.Integer))
    op.execute("SELECT nothing_there")
"""
    guarded.add_revision("ccc3", fails, "bbb2")

    result = guarded.run("alembic", "upgrade", "head")

    assert result.code not in (None, 0)
    assert "Traceback" not in result.errors
    assert "ccc3" in result.text
    assert "half" not in guarded.tables()
    assert record(guarded) == [("upgrade", "aaa1"), ("upgrade", "bbb2")]


def test_a_loss_is_refused_until_it_is_accepted(guarded: Stranger) -> None:
    guarded.alembic("upgrade", "head")
    guarded.query("INSERT INTO users (id, name, email) VALUES (1, 'Ada', 'ada@example.org')")

    refused = guarded.run("alembic", "downgrade", "-1")

    assert refused.code not in (None, 0)
    assert "alembic -x accept-loss=users.email downgrade" in refused.text
    assert guarded.query("SELECT email FROM users") == [("ada@example.org",)]
    guarded.alembic("-x", "accept-loss=users.email", "downgrade", "-1")
    assert record(guarded)[-1] == ("downgrade", "bbb2")


@pytest.mark.parametrize("is_guarded", [False, True])
def test_a_rehearsal_names_the_option_only_where_something_reads_it(begin: Begin, is_guarded: bool) -> None:
    project = begin("generic")
    if is_guarded:
        project.guard()
    project.alembic("upgrade", "head")
    project.query("INSERT INTO users (id, name, email) VALUES (1, 'Ada', 'ada@example.org')")

    found = project.savepoint("rehearse", "-1", code=1).text

    assert "It loses data (users.email: 1 value)" in found
    assert f"To do it for real: alembic {'-x accept-loss=users.email ' if is_guarded else ''}downgrade -1" in found
    assert ("accept-loss" in found) is is_guarded


def test_two_at_once_wait_for_each_other(guarded: Stranger) -> None:
    sleeps = "import time\ndef upgrade():\n    time.sleep(1)\n"
    guarded.add_revision("ccc3", sleeps, "bbb2")

    first, second = guarded.start("alembic", "upgrade", "head"), guarded.start("alembic", "upgrade", "head")

    assert [first().code, second().code] == [0, 0], (first(), second())
    assert record(guarded) == [("upgrade", "aaa1"), ("upgrade", "bbb2"), ("upgrade", "ccc3")]


PAST_SQLALCHEMY = """
def upgrade():
    op.execute("DELETE FROM users")
    op.get_bind().connection.dbapi_connection.commit()
    raise RuntimeError("after that")


def downgrade():
    pass
"""


def test_a_commit_past_sqlalchemy_is_told_also_where_the_revision_fails_after_it(begin: Begin) -> None:
    project = begin("generic")
    project.guard()
    project.alembic("upgrade", "head")
    project.query("INSERT INTO users (id, name) VALUES (1, 'Ada')")
    project.add_revision("ccc3", PAST_SQLALCHEMY, "bbb2")

    rehearsed = project.savepoint("rehearse", code=1)

    assert "on a copy" in rehearsed.text
    assert "the database was only read" in rehearsed.text
    assert project.query("SELECT name FROM users") == [("Ada",)]
    failed = project.run("alembic", "-x", "accept-loss=all", "upgrade", "head")
    assert failed.code != 0
    assert "ended its own transaction, past SQLAlchemy" in failed.text


ELSEWHERE = """
def upgrade():
    url = op.get_context().config.get_main_option("sqlalchemy.url")
    with sa.create_engine(url).begin() as other:
        other.execute(sa.text("DELETE FROM users"))


def downgrade():
    pass
"""


def test_a_revision_that_is_rehearsed_on_a_copy_finds_only_the_copy(begin: Begin) -> None:
    project = begin("generic")
    project.alembic("upgrade", "head")
    project.query("INSERT INTO users (id, name) VALUES (1, 'Ada')")
    project.add_revision("ccc3", ELSEWHERE, "bbb2")

    project.run("alembic_savepoint", "rehearse", "--copy")

    assert project.query("SELECT name FROM users") == [("Ada",)]


HIDDEN = """
def upgrade():
    op.execute("DELETE FROM users")
    getattr(op.get_bind().connection, "dbapi_" + "connection").commit()


def downgrade():
    pass
"""


def test_a_rehearsal_does_not_say_that_it_rolled_back_what_a_revision_has_stored(begin: Begin) -> None:
    project = begin("generic")
    project.alembic("upgrade", "head")
    project.add_revision("ccc3", HIDDEN, "bbb2")

    told = project.savepoint("rehearse", code=1)

    assert "Not rolled back" in told.text
    assert "as it was" not in told.text
