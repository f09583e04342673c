"""Migrations: generated scripts; failures."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.migrations import (
    HEAD,
    REVISIONS,
    SCRIPTS,
    Snapshot,
    add_revision,
    common,
    complaints,
    copy_of_the_repository,
    fill,
    look,
    migrate,
    on_both_engines,
    only_sqlite,
)
from tests.support.service import alembic, new_database, query

pytestmark = pytest.mark.slow

NEW_FIELDS = {
    "    registration_key_hash:": """\
    birthstone: str | None = Field(default=None, max_length=30, index=True)
    invited_by: int | None = Field(default=None, foreign_key="users.id", sa_type=Id)
    is_curious: bool = Field(default=False, sa_column_kwargs={"server_default": sqlalchemy.false()})
""",
    "    status: Status = Field(": """\
    note: str | None = Field(default=None, max_length=30)
    sponsor_id: int | None = Field(default=None, foreign_key="users.id", index=True, sa_type=Id)
""",
}
"""Fields, by what they are written in front of in models.py."""


NEW_MODEL = '''

class Cents(sqlalchemy.TypeDecorator[int]):
    """A type of the models' own, of which no script may know."""

    impl = BigInteger
    cache_ok = True


class Gift(SQLModel, table=True):
    """A column of every kind, with every kind of constraint."""

    __tablename__ = "gifts"
    __table_args__ = (CheckConstraint("amount > 0", name="amount"), UniqueConstraint("user_id", "code"))

    id: int | None = Field(default=None, primary_key=True, sa_type=Id)
    user_id: int = Field(foreign_key="users.id", sa_type=Id)
    code: str = Field(max_length=12, unique=True)
    amount: int = Field(sa_type=BigInteger)
    wrapped: bool = Field(default=True, sa_column_kwargs={"server_default": sqlalchemy.true()})
    given_at: datetime = Field(index=True)
    stored_at: datetime = Field(sa_column_kwargs={"server_default": sqlalchemy.func.now()})
    memo: str | None = Field(default=None, sa_type=sqlalchemy.Text)
    price: int | None = Field(default=None, sa_type=Cents)
'''


@dataclass(frozen=True)
class Generation:
    """A script generated from changed models, run up and down unedited on a database with rows."""

    script: str
    before: Snapshot
    up: Snapshot
    check: str
    down: Snapshot


def change_models(folder: Path) -> None:
    """Add a table, and columns to tables that exist."""
    path = folder / "models.py"
    source = path.read_text().replace("\nimport pydantic\n", "\nimport pydantic\nimport sqlalchemy\n", 1)
    for place, fields in NEW_FIELDS.items():
        assert place in source
        source = source.replace(place, fields + place, 1)
    path.write_text(source + NEW_MODEL)


def generate(url: str, folder: Path) -> str:
    """Run `alembic revision --autogenerate`; the script that it wrote."""
    scripts = folder / "migrations" / "versions"
    before = set(scripts.glob("*.py"))
    migrate(url, "revision", "--autogenerate", "-m", 'what "the models" say', cwd=folder)
    (script,) = set(scripts.glob("*.py")) - before
    return script.read_text()


@pytest.fixture(scope="module")
def generations(
    request: pytest.FixtureRequest,
    sqlite_template: str,
    postgresql_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Generation]:
    templates = {"sqlite": sqlite_template, "postgresql": postgresql_template}

    def run(engine: str) -> Generation:
        fork = copy_of_the_repository(tmp_path_factory.mktemp(engine))
        change_models(fork)
        with new_database(engine, fork, request, templates[engine]) as url:
            fill(url, *REVISIONS)
            before = look(url)
            return Generation(
                script=generate(url, fork),
                before=before,
                up=migrate(url, "upgrade", "head", cwd=fork),
                check=alembic(url, "check", cwd=fork).stdout,
                down=migrate(url, "-x", "accept-loss=users.is_curious", "downgrade", "-1", cwd=fork),
            )

    return on_both_engines(run)


@pytest.fixture
def generation(engine: str, generations: dict[str, Generation]) -> Generation:
    return generations[engine]


def test_unchanged_models_generate_an_empty_script(url: str, fork: Path) -> None:
    functions = {
        node.name: [ast.unparse(statement) for statement in node.body[1:]]
        for node in ast.parse(generate(url, fork)).body
        if isinstance(node, ast.FunctionDef)
    }

    assert functions == {"upgrade": ["pass"], "downgrade": ["pass"]}


def test_a_generated_script_is_the_same_whichever_engine_it_was_generated_on(
    generations: dict[str, Generation],
) -> None:
    sqlite, postgresql = (generation.script.partition("def upgrade")[2] for generation in generations.values())

    assert sqlite == postgresql


def test_a_generated_script_needs_no_sqlmodel(generation: Generation) -> None:
    assert "sqlmodel" not in generation.script.lower()


def test_a_generated_script_leaves_nothing_to_generate(generation: Generation) -> None:
    assert generation.check == "No new upgrade operations detected.\n"


def test_a_generated_script_makes_the_columns_and_constraints_of_a_new_model(generation: Generation) -> None:
    gifts = generation.up.schema["gifts"]

    assert list(gifts["columns"]) == [
        "id",
        "user_id",
        "code",
        "amount",
        "wrapped",
        "given_at",
        "stored_at",
        "memo",
        "price",
    ]
    assert gifts["columns"]["code"]["type"] == "VARCHAR(length=12)"
    assert [name for name, column in gifts["columns"].items() if column["nullable"]] == ["memo", "price"]
    assert [name for name, column in gifts["columns"].items() if name != "id" and column["default"]] == [
        "wrapped",
        "stored_at",
    ]
    assert {
        constraint["name"] for kind in gifts.keys() - {"columns"} for constraint in gifts[kind] if constraint["name"]
    } >= {
        "pk_gifts",
        "ck_gifts_amount",
        "fk_gifts_user_id_users",
        "uq_gifts_code",
        "uq_gifts_user_id_code",
        "ix_gifts_given_at",
    }


def test_a_generated_script_adds_columns_to_a_table_with_rows(generation: Generation) -> None:
    before, after = common(generation.before, generation.up)

    assert after == before
    assert {"birthstone", "invited_by", "is_curious"} <= generation.up.rows["users"][0].keys()


def test_a_generated_script_keeps_the_constraints_of_the_tables_that_it_changes(generation: Generation) -> None:
    for table in ("users", "profiles"):
        before, after = generation.before.schema[table], generation.up.schema[table]
        for kind in ("unique", "foreign keys", "checks"):
            assert [constraint for constraint in before[kind] if constraint not in after[kind]] == []


def test_a_generated_script_undone_leaves_the_database_as_it_was(generation: Generation) -> None:
    assert generation.down == generation.before


@only_sqlite  # PostgreSQL changes a table in place.
def test_a_rebuild_of_accounts_keeps_its_rows_its_constraints_and_the_condition_of_its_partial_index(
    full_url: str, fork: Path
) -> None:
    add_revision(fork, "ffffffffffff", HEAD, REBUILD)
    before = look(full_url)

    after = migrate(full_url, "upgrade", "head", cwd=fork)

    assert after.schema["accounts"]["columns"].pop("note")
    assert after.schema == before.schema
    kept = {"sqlite_where": "user_id IS NULL"}
    assert kept in [index["dialect_options"] for index in after.schema["accounts"]["indexes"]]
    assert common(before, after)[1] == common(before, after)[0]


REBUILD = """
    with op.batch_alter_table("accounts", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("note", sa.String(length=30), nullable=True))
"""


BLESSED = """
    op.create_table("gifts", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("INSERT INTO gifts (id) VALUES (1)")
"""


DOOMED = """
    op.create_table("wishes", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("UPDATE users SET username = email")
    with op.batch_alter_table("users") as batch_op:
        batch_op.drop_column("email")
    op.execute("SELECT nonsense")
"""


def test_a_revision_that_fails_half_way_takes_back_all_that_it_did_and_none_before_it(
    full_url: str, fork: Path
) -> None:
    add_revision(fork, "eeeeeeeeeeee", HEAD, BLESSED, '    op.drop_table("gifts")')
    blessed = migrate(full_url, "upgrade", "head", cwd=fork)
    assert query(full_url, "SELECT id FROM gifts") == [(1,)]
    migrate(full_url, "-x", "accept-loss=gifts", "downgrade", "-1", cwd=fork)
    add_revision(fork, "ffffffffffff", "eeeeeeeeeeee", DOOMED)

    result = alembic(full_url, "upgrade", "head", cwd=fork)

    assert "eeeeeeeeeeee -> ffffffffffff" in result.stderr
    assert result.returncode != 0
    assert look(full_url) == blessed


def test_a_downgrade_that_fails_changes_nothing(full_url: str, fork: Path) -> None:
    oldest = fork / "migrations" / "versions" / Path(SCRIPTS.get_revision(REVISIONS[0]).path).name
    oldest.write_text(oldest.read_text() + '    op.execute("SELECT nonsense")\n')  # Its downgrade comes last.
    before = look(full_url)

    result = alembic(full_url, "-x", "accept-loss=all", "downgrade", "base", cwd=fork)

    assert f"{REVISIONS[0]} -> " in result.stderr
    assert result.returncode != 0
    assert look(full_url) == before


@only_sqlite  # PostgreSQL refuses the statement itself.
def test_a_migration_that_would_leave_orphans_is_refused_in_one_line(full_url: str, fork: Path) -> None:
    add_revision(fork, "ffffffffffff", HEAD, '    op.execute("DELETE FROM users")')
    before = look(full_url)

    result = alembic(full_url, "upgrade", "head", cwd=fork)

    assert complaints(result) == [
        "FAILED: 4 rows would refer to rows that do not exist (access_tokens → users, accounts → users,"
        " profiles → users). Nothing was changed."
    ]
    assert look(full_url) == before
