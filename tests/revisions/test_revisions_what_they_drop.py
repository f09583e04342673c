"""Revisions: what they drop; what they rebuild on SQLite."""

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from alembic_savepoint.history.effects import Drop, drops, rebuilds
from alembic_savepoint.history.revisions import read_history
from tests.support.revisions import VERSIONS, revision_with, upgrade

UNKNOWN = Drop(None)


USERS, PHONE = Drop("users"), Drop("users", "phone")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        # Alembic's operations
        ("op.drop_table('users')", [USERS]),
        ("op.drop_table(table_name='users', if_exists=True)", [USERS]),
        ("op.drop_column('users', 'phone')", [PHONE]),
        ("op.drop_column('users', column_name='phone', schema='x')", [PHONE]),
        ("with op.batch_alter_table('users') as batch_op:\n    batch_op.drop_column('phone')", [PHONE]),
        ("with op.batch_alter_table('users') as b, op.batch_alter_table('logs') as c:\n"
         "    c.drop_column('b')\n    b.drop_column('phone')", [Drop("logs", "b"), PHONE]),
        ("with op.batch_alter_table(table_name='users') as b:\n    b.drop_column(column_name='phone')", [PHONE]),
        ("op.drop_table(op.f('users'))", [USERS]),
        ("op.drop_table('users')\nop.drop_table('users')", [USERS]),
        ("if it_is():\n    op.drop_table('users')\nelse:\n    op.drop_column('users', 'phone')", [USERS, PHONE]),
        ("[op.drop_table('users') for _ in '1']", [USERS]),
        ("def inner():\n    op.drop_table('users')\ninner()", [USERS]),
        ("alembic.op.drop_table('users')", [USERS]),
        # what drops nothing
        ("'''drop table users'''", []),
        ("op.drop_index('ix_users')\nop.drop_constraint('uq_users', 'users')", []),
        ("raise CommandError('It would drop table users')", []),
        ("op.alter_column('users', 'phone', nullable=False)", []),
        # what cannot be told
        ("op.drop_table(name)", [UNKNOWN]),
        ("op.drop_column('users', name)", [UNKNOWN]),
        ("op.drop_column(name, 'phone')", [UNKNOWN]),
        ("for name in ('users', 'logs'):\n    op.drop_table(name)", [UNKNOWN]),
        ("op.drop_table(*names)", [UNKNOWN]),
        ("with op.batch_alter_table(name) as batch_op:\n    batch_op.drop_column('phone')", [UNKNOWN]),
        ("drop = op.drop_table\ndrop('users')", [UNKNOWN]),
        ("op.execute(sa.schema.DropTable(users))", [UNKNOWN]),
        ("op.execute(DropTable(users))", [UNKNOWN]),
        ("metadata.drop_all(op.get_bind())", [UNKNOWN]),
        ("op.execute(" + "'x' + " * 1500 + "'y')", [UNKNOWN]),
        ("strip(op.batch_alter_table('users'))\nbatch.drop_column('phone')", [UNKNOWN]),
        # what was not there before
        ("op.create_table('users', sa.Column('phone'))\nop.drop_column('users', 'phone')\nop.drop_table('users')", []),
        ("op.drop_table('users')\nop.create_table('users')", [USERS]),
        ("op.create_table('users', if_not_exists=True)\nop.drop_table('users')", [USERS]),
        ("op.add_column('users', sa.Column('phone'))\nop.drop_column('users', 'phone')", []),
        ("with op.batch_alter_table('users') as b:\n    b.add_column(sa.Column('phone'))\n"
         "with op.batch_alter_table('users') as b:\n    b.drop_column('phone')", []),
        ("if is_postgresql():\n    op.create_table('users')\nop.drop_table('users')", [USERS]),
        ("try:\n    op.create_table('users')\nexcept Exception:\n    op.drop_table('users')", [USERS]),
        # what was called otherwise before
        ("op.rename_table('users', 'old')\nop.drop_table('old')", [USERS]),
        ("op.rename_table('users', 'old')\nop.drop_column('old', 'phone')", [PHONE]),
        ("op.create_table('new')\nop.rename_table('users', 'old')\nop.rename_table('new', 'users')\n"
         "op.drop_table('old')\nop.drop_column('users', 'phone')", [USERS]),
        ("op.alter_column('users', 'phone', new_column_name='old')\nop.drop_column('users', 'old')", [PHONE]),
        ("op.rename_table(name, 'old')\nop.drop_table('old')", [UNKNOWN]),
    ],
)  # fmt: skip
def test_what_a_function_drops_is_found(body: str, found: list[Drop]) -> None:
    assert drops(upgrade(body), "upgrade") == found


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("DROP TABLE users", [USERS]),
        ("drop table if exists public.\"Users\", logs cascade", [Drop("Users"), Drop("logs")]),
        ("DROP TABLE `users`; DROP TABLE [logs]", [USERS, Drop("logs")]),
        ("DROP\n  TABLE\n  Users", [USERS]),
        ("ALTER TABLE users DROP COLUMN phone", [PHONE]),
        ("ALTER TABLE IF EXISTS ONLY users DROP COLUMN IF EXISTS phone CASCADE, ADD COLUMN x int, DROP y",
         [PHONE, Drop("users", "y")]),
        ("ALTER TABLE users DROP CONSTRAINT uq_users, ALTER COLUMN phone DROP NOT NULL, ALTER y DROP DEFAULT", []),
        ("DO $$ BEGIN DROP TABLE users; END $$", [USERS]),
        ("-- DROP TABLE users\nSELECT 1 /* DROP TABLE users */", []),
        ("SELECT 'dropped tables'", []),
        ("CREATE TEMPORARY TABLE t AS SELECT 1; DROP TABLE t", []),
        ("CREATE TABLE IF NOT EXISTS users (id int); DROP TABLE users", [USERS]),
        ("ALTER TABLE users ADD COLUMN phone text; ALTER TABLE users DROP COLUMN phone", []),
        ("ALTER TABLE users RENAME TO old; DROP TABLE old", [USERS]),
        ("ALTER TABLE users RENAME phone TO old; ALTER TABLE users DROP COLUMN old", [PHONE]),
        ("DROP TABLE %s", [UNKNOWN]),
        ("DROP TABLE {name}", [UNKNOWN]),
        ("DROP TABLE public.{name}", [UNKNOWN]),
        ("ALTER TABLE {name} DROP COLUMN phone", [UNKNOWN]),
        ("ALTER TABLE users DROP COLUMN {name}", [UNKNOWN]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", ["op.execute({!r})", "op.get_bind().execute(sa.text({!r}))", "run(op, sql={!r})"])
def test_what_sql_drops_is_found(wrapped: str, sql: str, found: list[Drop]) -> None:
    assert drops(upgrade(wrapped.format(sql)), "upgrade") == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("op.execute(f'DROP TABLE {name}')", [UNKNOWN]),
        ("op.execute(f'DROP TABLE tmp_{name}')", [UNKNOWN]),
        ("op.execute('DROP TABLE ' + name)", [UNKNOWN]),
        ("op.execute('ALTER TABLE users ' + 'DROP COLUMN phone')", [PHONE]),
        ("op.execute(f'ALTER TABLE users DROP COLUMN phone, {more}')", [PHONE]),
        ("sql = 'DROP TABLE users'\nop.execute(sql)", [USERS]),
        ("op.execute(f'{drop_it()}')", []),
    ],
)
def test_sql_that_is_put_together_is_found(body: str, found: list[Drop]) -> None:
    assert drops(upgrade(body), "upgrade") == found


def test_functions_and_constants_of_the_file_are_followed() -> None:
    revision = revision_with("""
        TABLE = "logs"
        CLEAN_UP = "DROP TABLE old_logs"

        class Step:
            def run(self):
                op.drop_column("users", "phone")

        def upgrade():
            first()
            Step().run()
            op.execute(CLEAN_UP)
            op.execute(f"DROP TABLE {TABLE}")

        def first():
            first()
            op.drop_table("users")

        def downgrade():
            op.execute("DROP TABLE others")

        def never():
            op.drop_table("never")
    """)

    assert drops(revision, "upgrade") == [USERS, PHONE, Drop("old_logs"), Drop("logs")]
    assert drops(revision, "downgrade") == [Drop("others")]


def test_a_function_that_is_called_again_is_followed_again() -> None:
    revision = revision_with("""
        def upgrade():
            if is_postgresql():
                op.create_table("logs")
                clean_up()
            clean_up()

        def clean_up():
            op.drop_table("logs")
    """)

    assert drops(revision, "upgrade") == [Drop("logs")]


def test_a_constant_that_may_have_changed_cannot_be_told() -> None:
    revision = revision_with("""
        TABLE = "logs"

        def upgrade():
            for TABLE in find_tables():
                op.drop_table(TABLE)
    """)

    assert drops(revision, "upgrade") == [UNKNOWN]


@pytest.mark.parametrize("statement", ["from shared import upgrade", "from shared import *"])
def test_an_imported_function_cannot_be_told(statement: str) -> None:
    assert (drops(revision_with(statement), "upgrade"), rebuilds(revision_with(statement), "upgrade")) == (
        [UNKNOWN],
        [None],
    )
    assert drops(revision_with("from shared import upgrades"), "upgrade") == []


def test_what_the_repositorys_own_revisions_drop() -> None:
    own = read_history(VERSIONS).by_id

    # What each downgrade drops, and which tables it rebuilds on SQLite.
    assert {id: (drops(each, "downgrade"), rebuilds(each, "downgrade")) for id, each in own.items()} == {
        "4f1c7a9d2b60": ([Drop("profiles"), Drop("users")], []),
        "9b3e5d8a1c74": ([Drop("users", "phone_number")], ["users"]),
        "d27f60b8e913": ([Drop("access_tokens")], []),
        "e8a4c05b7d31": ([Drop("entries"), Drop("transfers"), Drop("accounts")], []),
        "a6d2e91f4c08": ([], []),
        "c5b81e6f3d27": ([Drop("users", "registration_content_hash")], ["users"]),
    }
    assert [drops(revision, "upgrade") for revision in own.values()] == [[]] * len(own)
    assert [rebuilds(revision, "upgrade") for revision in own.values()] == [[]] * len(own)


COLUMN = "batch_op.add_column(sa.Column({}))"


def rebuilt_by_alembic(body: str) -> bool:
    """Run the statements on SQLite, and see whether Alembic copied the table."""
    engine = sa.create_engine("sqlite://")
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE logs (id INTEGER PRIMARY KEY, a INTEGER, b INTEGER, CONSTRAINT old CHECK (b > 0))"
        )
        connection.exec_driver_sql("CREATE TABLE users (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("CREATE INDEX ix_logs ON logs (id)")
        # The statements are the test's own.
        exec(body, {"op": Operations(MigrationContext.configure(connection)), "sa": sa})  # noqa: S102
    engine.dispose()
    return any("_alembic_tmp_logs" in statement for statement in statements)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (COLUMN.format("'x', sa.String(20), nullable=True"), False),
        (COLUMN.format("'x', sa.String(), server_default='0', index=True, comment='an x'"), False),
        ("batch_op.create_index('ix_logs_id', ['id'])", False),
        ("batch_op.drop_index(batch_op.f('ix_logs'))", False),
        ("batch_op.execute('SELECT 1')", False),
        (COLUMN.format("'x', sa.DateTime(), server_default=sa.func.now()"), True),
        (COLUMN.format("'x', sa.Integer(), server_default=sa.text('0')"), True),
        (COLUMN.format("'x', sa.Integer(), sa.ForeignKey('users.id', name='fk')"), True),
        (COLUMN.format("'x', sa.Boolean(create_constraint=True, name='ck')"), True),
        (COLUMN.format("'x', sa.Integer(), sa.Computed('a + 1', persisted=True)"), True),
        ("batch_op.drop_column('a')", True),
        ("batch_op.alter_column('a', new_column_name='c')", True),
        ("batch_op.alter_column('a', nullable=False)", True),
        ("batch_op.create_check_constraint('ck', 'id > 0')", True),
        ("batch_op.create_unique_constraint('uq', ['a'])", True),
        ("batch_op.drop_constraint('old', type_='check')", True),
    ],
)
def test_a_table_is_found_to_be_rebuilt_where_alembic_does_so(operation: str, expected: bool) -> None:
    body = f"with op.batch_alter_table('logs') as batch_op:\n    {operation}"

    assert rebuilt_by_alembic(body) is expected
    assert rebuilds(upgrade(body), "upgrade") == (["logs"] if expected else [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("with op.batch_alter_table('logs', recreate='always') as batch_op:\n    pass", True),
        ("with op.batch_alter_table('logs', None, 'always'):\n    pass", True),
        ("with op.batch_alter_table('logs', recreate='never') as batch_op:\n    batch_op.drop_index('ix_logs')", False),
        ("with op.batch_alter_table('logs', recreate='auto') as batch_op:\n    batch_op.drop_index('ix_logs')", False),
    ],
)
def test_recreate_decides_whether_a_table_is_rebuilt(body: str, expected: bool) -> None:
    assert rebuilt_by_alembic(body) is expected
    assert rebuilds(upgrade(body), "upgrade") == (["logs"] if expected else [])


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("with op.batch_alter_table('logs', recreate=how) as batch_op:\n    pass", ["logs"]),
        ("with op.batch_alter_table(name) as batch_op:\n    batch_op.drop_column('a')", [None]),
        ("with op.batch_alter_table('logs') as batch_op:\n    change(batch_op)", ["logs"]),
        ("with op.batch_alter_table('logs') as batch_op:\n    batch_op.add_column(column)", ["logs"]),
        (
            "with op.batch_alter_table('logs') as batch_op:\n    batch_op.add_column(sa.Column(*parts, **more))",
            ["logs"],
        ),
        (
            f"with op.batch_alter_table('logs') as batch_op:\n    {COLUMN}".format("'x', sa.ForeignKey('users.id')"),
            ["logs"],
        ),
        (f"with op.batch_alter_table('logs') as batch_op:\n    {COLUMN}".format("'x', Text, unique=True"), ["logs"]),
        ("stack.enter_context(op.batch_alter_table('logs'))", ["logs"]),
        ("with op.batch_alter_table('logs', recreate='never') as batch_op:\n    batch_op.drop_column('a')", []),
        ("op.drop_column('logs', 'a')\nop.alter_column('logs', 'b', nullable=True)", []),
    ],
)
def test_a_table_may_be_rebuilt_where_the_file_does_not_tell(body: str, found: list[str | None]) -> None:
    assert rebuilds(upgrade(body), "upgrade") == found
