"""The commands beside an untouched env.py of each of Alembic's own templates."""

import json

import pytest

from alembic_savepoint.tests.conftest import Begin


@pytest.mark.parametrize("template", ["generic", "async", "pyproject", "pyproject_async"])
def test_every_command_works_beside_an_untouched_env_py(begin: Begin, template: str) -> None:
    project = begin(template)
    project.alembic("upgrade", "aaa1")
    project.query("INSERT INTO users (id, name) VALUES (1, 'Ada')")

    project.savepoint("save", "one")
    assert "● 1 applied ○ 1 pending" in project.savepoint("graph").text
    project.savepoint("rehearse")
    project.savepoint("rehearse", "--copy")
    project.alembic("upgrade", "head")
    project.savepoint("rehearse", "-1")
    assert "Healthy" in project.savepoint("doctor").output
    assert "Not compared with models: migrations/env.py names no metadata." in project.savepoint("check").text
    project.savepoint("load", "one", "--yes")

    assert project.query("SELECT * FROM users") == [(1, "Ada")]
    [replaced, save] = json.loads(project.savepoint("saves", "--json").output)
    assert (save["name"], save["revision"], replaced["revision"]) == ("one", ["aaa1"], ["bbb2"])
    assert json.loads(project.savepoint("graph", "--json").output)["current"] == ["aaa1"]
    assert project.savepoint("graph", "--mermaid").output.startswith("flowchart")
    assert "alembic upgrade head" in project.savepoint("doctor").output
    assert project.tables() == {"alembic_version", "users"}


def test_several_databases_are_refused_in_a_sentence_and_not_created(begin: Begin) -> None:
    project = begin("multidb", url="sqlite:///app.db")

    for command in ("save", "check", "rehearse"):
        refused = project.savepoint(command, code=2)
        assert "migrations/env.py configures several databases" in refused.text
    assert "configures several databases" in project.savepoint("graph").text
    assert "configures several databases" in project.run("alembic_savepoint", "doctor").text

    assert {path.name for path in project.folder.iterdir()} == {"alembic.ini", "migrations"}


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("template", ["generic", "async"])
def test_no_command_that_looks_creates_a_database(begin: Begin, template: str) -> None:
    project = begin(template)

    for command in ("save", "check", "rehearse"):
        assert f"There is no file {project.folder}/app.db. " in project.savepoint(command, code=2).text
    assert f"There is no file {project.folder}/app.db" in project.savepoint("graph").text
    assert "database-unreadable" in project.run("alembic_savepoint", "doctor").output
    project.savepoint("saves")

    assert {path.name for path in project.folder.iterdir()} == {"alembic.ini", "migrations"}


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("template", ["generic", "async"])
def test_doctor_reads_the_files_where_no_server_answers(begin: Begin, template: str) -> None:
    driver = "asyncpg" if template == "async" else "psycopg"
    project = begin(template, url=f"postgresql+{driver}://nobody@127.0.0.1:1/nothing")
    project.add_revision("ccc3", "", "missing")

    found = project.run("alembic_savepoint", "doctor")

    assert "missing-parent" in found.output
    assert "database-unreadable" in found.output
    assert "Traceback" not in found.errors


FORMATS = """
def upgrade():
    op.get_bind().exec_driver_sql("DO $$ BEGIN EXECUTE format('CREATE TABLE %I (id integer)', 'made'); END $$")
    op.execute("UPDATE users SET name = 'x' WHERE name LIKE '%z'")


def downgrade():
    op.drop_table("made")
"""


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_percent_sign_is_what_it_is_to_the_projects_own_driver(begin: Begin) -> None:
    project = begin("async")
    project.add_revision("ccc3", FORMATS, "bbb2")
    project.alembic("upgrade", "bbb2")

    assert "No warnings" in project.savepoint("rehearse").output
    project.alembic("upgrade", "head")

    assert "Healthy" in project.savepoint("doctor").output
