"""Options of Alembic, in each place where a project can give them, and what env.py gives to context.configure()."""

import json
from pathlib import Path

import pytest

from alembic_savepoint.tests.conftest import Begin
from alembic_savepoint.tests.support import Stranger

CONFIGURED = "context.configure(\n            connection=connection, target_metadata=target_metadata\n        )"

FOLDERS = "# version_locations = %(here)s/bar:%(here)s/bat:%(here)s/alembic/versions"
TWO_FOLDERS = """version_locations = %(here)s/migrations/versions:%(here)s/plugins
recursive_version_locations = true"""

ONLY_USERS = """
def only_users(object, name, kind, reflected, other):
    return kind != "table" or name == "users"

"""

CONFIG = "config = context.config\n"
FROM_ENVIRONMENT = f"""{CONFIG}
import os
config.set_main_option("sqlalchemy.url", os.environ["APP_URL"])
"""
FROM_ARGUMENT = f"""{CONFIG}
import os
if "right" in context.get_x_argument():
    config.set_main_option("sqlalchemy.url", os.environ["APP_URL"])
"""

THIRD = """
def upgrade():
    op.create_table("more", sa.Column("id", sa.Integer(), primary_key=True))

def downgrade():
    op.drop_table("more")
"""


@pytest.fixture
def project(begin: Begin) -> Stranger:
    """A project with models, whose database is not migrated yet."""
    project = begin()
    project.use_models()
    return project


def configure(project: Stranger, options: str) -> None:
    """Give env.py's context.configure() further options."""
    project.edit(
        "migrations/env.py", (CONFIGURED, CONFIGURED.replace("target_metadata\n", f"target_metadata, {options}\n"))
    )


@pytest.mark.parametrize("guarded", [False, True])
def test_alembic_s_table_has_the_name_and_schema_of_env_py(project: Stranger, engine: str, guarded: bool) -> None:
    options = 'version_table="x"'
    if engine == "postgresql":
        project.query("CREATE SCHEMA versions")
        options += ', version_table_schema="versions"'
    configure(project, options)
    if guarded:
        project.guard()
    project.alembic("upgrade", "aaa1")

    assert "● 1 applied ○ 1 pending" in project.savepoint("graph").text
    project.savepoint("save", "one")
    assert json.loads(project.savepoint("saves", "--json").output)[0]["revision"] == ["aaa1"]
    project.savepoint("rehearse")
    project.savepoint("rehearse", "--copy")
    project.alembic("upgrade", "head")
    project.savepoint("load", "one", "--yes")
    project.alembic("upgrade", "head")

    assert "Healthy" in project.savepoint("doctor").output
    project.savepoint("check")
    project.alembic("check")
    assert "alembic_version" not in project.tables()


def test_what_env_py_does_not_compare_is_no_finding(project: Stranger) -> None:
    project.edit("migrations/env.py", ("from models import", f"{ONLY_USERS}from models import"))
    configure(project, "include_object=only_users, compare_type=False")
    project.alembic("upgrade", "head")
    project.query("CREATE TABLE others (id INTEGER)")

    project.alembic("check")
    project.savepoint("check")
    assert "Healthy" in project.savepoint("doctor").output


NOT_COMPARED = """
import sqlalchemy as sa

metadata = sa.MetaData()
users = sa.Table(
    "users", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(80), nullable=False, server_default="nobody"),
    sa.Column("email", sa.String(100)),
    sa.Column("x_column", sa.String(100)),
    sa.Index("x_index", "email"),
    sa.UniqueConstraint("email", name="x_unique"),
)
"""


@pytest.mark.parametrize(
    "options",
    [
        "compare_type=False, include_name=lambda name, kind, parents: not str(name).startswith('x_')",
        "compare_type=lambda *_: False, include_object=lambda item, name, *_: not (name or '').startswith('x_')",
    ],
)
def test_columns_indexes_and_constraints_that_env_py_does_not_compare_are_no_finding(
    project: Stranger, options: str
) -> None:
    # Of what only the models have, Alembic asks include_object alone.
    lines = [line for line in NOT_COMPARED.splitlines() if "include_object" in options or '"x_' not in line]
    (project.folder / "models.py").write_text("\n".join(lines))
    configure(project, options)
    project.alembic("upgrade", "head")
    project.query("ALTER TABLE users ADD COLUMN x_other VARCHAR(10)")
    project.query("CREATE INDEX x_more ON users (name)")

    project.alembic("check")
    project.savepoint("check")
    assert "Healthy" in project.savepoint("doctor").output


def test_what_env_py_compares_is_a_finding(project: Stranger) -> None:
    (project.folder / "models.py").write_text(NOT_COMPARED)
    configure(project, "compare_server_default=True")
    project.alembic("upgrade", "head")

    found = project.savepoint("check", code=1).output

    assert "not-in-revisions: The models and what the revisions make have 4 differences." in found
    assert "users: column x_column is missing" in found


def test_a_default_is_compared_if_env_py_says_so(project: Stranger) -> None:
    project.edit("models.py", ("nullable=False", 'nullable=False, server_default="nobody"'))
    project.alembic("upgrade", "head")

    project.savepoint("check")

    configure(project, "compare_server_default=True")
    assert "DEFAULT 'nobody'" in project.savepoint("check", code=1).text
    # A database that differs from its revisions is one in any case.
    assert "Healthy" in project.savepoint("doctor").output


def test_several_folders_of_revisions_are_read(project: Stranger) -> None:
    project.add_revision("ccc3", THIRD, "bbb2", folder="plugins/deeper")
    project.edit("alembic.ini", (FOLDERS, TWO_FOLDERS))
    project.alembic("upgrade", "head")

    assert "● 3 applied" in project.savepoint("graph").text
    assert "Healthy" in project.savepoint("doctor").output
    project.savepoint("rehearse", "-1")


def test_the_ini_file_and_section_are_chosen_as_for_alembic_and_named_in_what_is_printed(project: Stranger) -> None:
    ini = Path(project.folder, "alembic.ini")
    ini.rename(project.folder / "other.ini")
    project.edit("other.ini", ("[alembic]", "[main]"))

    project.alembic("-c", "other.ini", "-n", "main", "upgrade", "aaa1")
    typed = ["-c", "other.ini", "-n", "main", "-x", "tenant=a b"]
    spelled = "-c other.ini -n main -x 'tenant=a b'"

    assert f"alembic-savepoint {spelled} load one" in project.savepoint(*typed, "save", "one").text
    assert f"alembic {spelled} upgrade head" in project.savepoint(*typed, "rehearse").output
    assert f"alembic {spelled} upgrade head" in project.savepoint(*typed, "doctor").output
    assert f"alembic {spelled} upgrade head" in project.savepoint(*typed, "check", code=1).output
    assert f"alembic {spelled} upgrade head" in project.savepoint(*typed, "load", "one", "--yes").text


@pytest.mark.parametrize("engine", ["sqlite"])
def test_what_is_named_in_alembic_config_is_named_in_what_is_printed(project: Stranger) -> None:
    Path(project.folder, "alembic.ini").rename(project.folder / "other.ini")
    project.guard()
    project.environment["ALEMBIC_CONFIG"] = "other.ini"
    project.alembic("upgrade", "head")
    project.query("INSERT INTO users (id, name, email) VALUES (1, 'Ada', 'ada@example.org')")

    refused = project.run("alembic", "downgrade", "-1")

    assert "ALEMBIC_CONFIG=other.ini alembic -x accept-loss=users.email downgrade" in refused.text
    assert "ALEMBIC_CONFIG=other.ini alembic-savepoint load before-bbb2" in refused.text
    assert "ALEMBIC_CONFIG=other.ini alembic-savepoint load one" in project.savepoint("save", "one").text


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_guards_name_the_options_that_alembic_was_given(project: Stranger) -> None:
    Path(project.folder, "alembic.ini").rename(project.folder / "other.ini")
    project.guard()
    project.alembic("-c", "other.ini", "upgrade", "head")
    project.query("INSERT INTO users (id, name, email) VALUES (1, 'Ada', 'ada@example.org')")

    refused = project.run("alembic", "-c", "other.ini", "-x", "tenant=a", "downgrade", "-1")

    assert "alembic -c other.ini -x tenant=a -x accept-loss=users.email downgrade" in refused.text


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_url_that_only_env_py_knows_and_of_psycopg2_s_kind_is_used(project: Stranger) -> None:
    project.edit("alembic.ini", (project.url, ""))
    project.edit("migrations/env.py", (CONFIG, FROM_ENVIRONMENT))
    # SQLAlchemy 2.1 takes psycopg for this one.
    project.environment["APP_URL"] = project.url.replace("+psycopg", "")
    project.alembic("upgrade", "head")

    project.savepoint("save", "one")
    assert "Healthy" in project.savepoint("doctor").output
    del project.environment["APP_URL"]
    assert "migrations/env.py fails: KeyError: 'APP_URL'" in project.savepoint("save", code=2).text


def test_x_arguments_reach_env_py(project: Stranger) -> None:
    project.edit("alembic.ini", (project.url, "sqlite:///wrong.db"))
    project.edit("migrations/env.py", (CONFIG, FROM_ARGUMENT))
    project.environment["APP_URL"] = project.url
    project.alembic("-x", "right", "upgrade", "head")

    assert "● 2 applied" in project.savepoint("-x", "right", "graph").text
    assert not (project.folder / "wrong.db").exists()


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_search_path_that_env_py_sets_counts_for_every_command(begin: Begin) -> None:
    project = begin("generic")
    project.query('CREATE SCHEMA "my place"')
    connected = "    with connectable.connect() as connection:\n"
    sets = "        connection.exec_driver_sql('SET search_path = \"my place\", public')\n        connection.commit()\n"
    project.edit("migrations/env.py", (connected, connected + sets))
    project.alembic("upgrade", "head")

    project.savepoint("save", "one")
    project.savepoint("load", "one", "--yes")

    assert "Healthy" in project.savepoint("doctor").output
    assert project.query('SELECT version_num FROM "my place".alembic_version') == [("bbb2",)]
    assert "bbb2" in project.savepoint("graph").text
    assert "No warnings" in project.savepoint("rehearse", "-1").text


@pytest.mark.parametrize("engine", ["postgresql"])
def test_tables_that_a_schema_named_like_the_role_hides_are_found(project: Stranger) -> None:
    project.alembic("upgrade", "head")
    # From now on "$user", the first in the search_path, means something.
    project.query("CREATE SCHEMA postgres")

    found = project.savepoint("doctor", code=30).text

    assert "drift: Tables are in the schema public, and new ones would go to postgres" in found
    assert 'search_path: "$user", public, and the role is postgres' in found
    assert "Only in public: users" in found
    assert "ALTER ROLE postgres SET search_path = public;" in found
    assert "alembic upgrade" not in found
    project.savepoint("check", code=1)
    project.savepoint("rehearse", "-1")
    project.savepoint("save", "one")
    assert json.loads(project.savepoint("saves", "--json").output)[0]["revision"] == ["bbb2"]
    assert "ALTER TABLE public.users SET SCHEMA postgres;" in found
    for table in ("users", "alembic_version"):
        project.query(f"ALTER TABLE public.{table} SET SCHEMA postgres")
    assert "Healthy" in project.savepoint("doctor").output
    project.savepoint("load", "one", "--yes")


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("is_named", [False, True])
def test_tables_in_a_schema_named_like_the_role_are_compared(project: Stranger, is_named: bool) -> None:
    if is_named:
        project.edit("models.py", ("sa.MetaData()", 'sa.MetaData(schema="postgres")'))
    project.query("CREATE SCHEMA postgres")
    project.alembic("upgrade", "head")

    assert project.tables() == set()
    assert "Healthy" in project.savepoint("check").output
    project.savepoint("save", "one")
    project.savepoint("load", "one", "--yes")
    project.savepoint("rehearse", "-1", "--copy")
    assert "Healthy" in project.savepoint("doctor").output


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_role_of_another_scratch_database_has_the_same_current_schema(project: Stranger) -> None:
    project.edit("models.py", ("sa.MetaData()", 'sa.MetaData(schema="postgres")'))
    project.query("CREATE SCHEMA postgres")
    project.alembic("upgrade", "head")
    name = f"scratch_{project.url.partition('@/')[2].partition('?')[0]}"
    for each in ("ROLE {} LOGIN SUPERUSER", "DATABASE {}"):
        project.query(f"CREATE {each.format(name)}")
    url = project.url.replace("postgres@", f"{name}@").replace(f"/{name.removeprefix('scratch_')}", f"/{name}")
    project.edit("alembic.ini", ("[alembic]\n", f"[alembic]\nsavepoint_scratch_url = {url}\n"))
    try:
        assert "Healthy" in project.savepoint("check").output
    finally:
        for kind in ("DATABASE", "ROLE"):
            project.query(f"DROP {kind} {name}")
