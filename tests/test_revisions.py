"""Revision files read without being executed: as Alembic reads them, what is wrong with them, what they drop."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from migrations import lost_files, revisions
from migrations.effects import Drop, drops, rebuilds
from migrations.lost_files import find_in_git
from migrations.revisions import RevisionUnreadable, read_history, read_revision
from schema import ALEMBIC_INI

VERSIONS = ROOT / "migrations" / "versions"
UNTOLD = Drop(None)


@dataclass(frozen=True)
class Draft:
    """A revision file to write."""

    id: str
    parents: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    label: str | None = None

    def write(self, folder: Path, name: str | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name or f"{self.id}_a_revision.py")
        # One parent is written as Alembic writes it, several as a tuple.
        parents = self.parents[0] if len(self.parents) == 1 else self.parents or None
        path.write_text(
            f'"""about {self.id}.\n\nRevision ID: {self.id}\nCreate Date: 2026-11-23 01:00:00+00:00\n"""\n'
            f"revision: str = {self.id!r}\ndown_revision = {parents!r}\n"
            f"branch_labels = {self.label!r}\ndepends_on = {self.depends_on or None!r}\n"
        )
        return path


def write_all(folder: Path, *drafts: Draft) -> Path:
    for draft in drafts:
        draft.write(folder)
    return folder


# --- as Alembic reads them --------------------------------------------------------------------------------------------


@st.composite
def healthy_histories(draw: st.DrawFn) -> list[Draft]:
    """Any history that Alembic accepts: several roots, branches, merges, dependencies by id or label."""
    names = draw(st.lists(st.text("0123456789abcdef", min_size=4, max_size=12), min_size=1, max_size=12, unique=True))
    drafts: list[Draft] = []
    before: dict[str, set[str]] = {}
    for name in names:
        older = [draft.id for draft in drafts]
        parents: list[str] = []
        for other in draw(st.lists(st.sampled_from(older), max_size=3, unique=True)) if older else []:
            if not any(other in before[parent] or parent in before[other] for parent in parents):
                parents.append(other)
        before[name] = {*parents, *(each for parent in parents for each in before[parent])}
        needed = draw(st.lists(st.sampled_from(older), max_size=1)) if older else []
        labels = {draft.id: draft.label for draft in drafts if draft.label}
        depends_on = tuple(labels.get(other, other) for other in needed if other not in before[name])
        before[name] |= {each for other in needed for each in (other, *before[other])}
        label = f"label_of_{name}" if draw(st.booleans()) else None
        drafts.append(Draft(name, tuple(parents), depends_on, label))
    return drafts


@settings(deadline=None, max_examples=60)
@given(healthy_histories())
def test_every_healthy_history_is_what_alembic_makes_of_it(drafts: list[Draft]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        versions = write_all(Path(folder, "versions"), *drafts)
        scripts = ScriptDirectory(folder)
        history = read_history(versions)

        assert history.heads == scripts.get_heads()
        assert history.roots == scripts.get_bases()
        assert [revision.id for revision in history.in_order()] == [
            script.revision for script in scripts.walk_revisions()
        ][::-1]
        for script in scripts.walk_revisions():
            revision = history.by_id[script.revision]
            assert set(revision.parents) == set(script._versioned_down_revisions)
            assert revision.message == script.doc.removesuffix(".")
            assert history.ancestors(script.revision) | {script.revision} == {
                each.revision for each in scripts.iterate_revisions(script.revision, "base")
            }
        assert (history.unreadable, history.duplicates, history.missing_parents, history.cycles) == ({}, {}, {}, [])


def test_the_repositorys_own_history_is_what_alembic_makes_of_it() -> None:
    scripts = ScriptDirectory.from_config(Config(ALEMBIC_INI))

    assert [
        (revision.id, revision.parents, revision.message, str(revision.path))
        for revision in read_history(revisions.versions_folder()).in_order()
    ] == [
        (script.revision, script._versioned_down_revisions, script.doc, script.path)
        for script in scripts.walk_revisions()
    ][::-1]


def test_no_file_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    source = (
        f"open({str(trace)!r}, 'w').close()\nrevision = 'a1'\ndown_revision = None\n"
        "raise SystemExit('executed')\ndef upgrade():\n    op.drop_table('t')\n"
    )
    (tmp_path / "a1.py").write_text(source)

    history = read_history(tmp_path)

    assert list(history.by_id) == ["a1"]
    assert drops(history.by_id["a1"], "upgrade") == [Drop("t")]
    assert not trace.exists()


def test_the_files_that_alembic_ignores_are_ignored(tmp_path: Path) -> None:
    for name in (
        "__init__.py",
        "__init__2.py",
        ".#a1.py",
        "a1.pyc",
        "a1.txt",
        "a1.py~",
        "__pycache__/b1.py",
        "sub/c1.py",
    ):
        Draft("ignored").write((tmp_path / "versions" / name).parent, Path(name).name)
    Draft("a1").write(tmp_path / "versions", ".a1.py")
    (tmp_path / "versions" / "d1.py").mkdir()

    assert list(read_history(tmp_path / "versions").by_id) == ["a1"]
    assert ScriptDirectory(tmp_path).get_heads() == ["a1"]


def test_an_id_may_be_the_files_name_as_in_old_histories(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "12ab.py").write_text("down_revision = None\n")

    assert list(read_history(tmp_path / "versions").by_id) == ScriptDirectory(tmp_path).get_heads() == ["12ab"]


@pytest.mark.parametrize(
    ("lines", "folder"),
    [
        (["script_location = %(here)s/migrations"], "migrations/versions"),
        (["script_location = %(here)s/migrations", "version_locations = %(here)s/elsewhere"], "elsewhere"),
    ],
)
def test_the_folder_is_where_the_ini_file_says(tmp_path: Path, lines: list[str], folder: str) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "alembic.ini").write_text("\n".join(["[alembic]", "path_separator = os", *lines]))

    assert revisions.versions_folder(Config(tmp_path / "alembic.ini")) == tmp_path / folder
    assert revisions.versions_folder() == VERSIONS


# --- what is wrong with them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("revision = 'a1'\ndown_revision = (\n", "line 2: '(' was never closed"),
        ("down_revision = None\n", "it has no `revision`, the id by which others refer to it"),
        ("revision = None\ndown_revision = None\n", "it has no `revision`, the id by which others refer to it"),
        ("revision = 'a1'\n", "it has no `down_revision`, which names its parent or is None"),
        (
            "revision = 'a1'\ndown_revision = find()\n",
            "line 2: `down_revision` is computed; write its value out, as Alembic does",
        ),
        ("revision = 1\ndown_revision = None\n", "line 1: `revision` is neither a text, nor texts, nor None"),
        ("revision = 'a1'\ndown_revision = ['b', 2]", "line 2: `down_revision` is neither a text, nor texts, nor None"),
        ("revision = 'a-1'\ndown_revision = None\n", "Alembic does not allow - in an id: a-1"),
        ("revision = 'a\0'", "source code string cannot contain null bytes"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(source: str, fault: str) -> None:
    with pytest.raises(RevisionUnreadable) as raised:
        read_revision(source)

    assert str(raised.value).endswith(fault)


def test_a_broken_folder_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write_all(tmp_path, Draft("a1"), Draft("b1", ("a1",)))
    (tmp_path / "broken.py").write_text("def upgrade(:\n")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    (tmp_path / "latin.py").write_bytes(
        "# coding: latin-1\n'''Zürich'''\nrevision = 'c1'\ndown_revision = 'b1'".encode("latin-1")
    )
    (tmp_path / "deep.py").write_text("x = " + "-" * 100_000 + "1")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "twice.py").symlink_to(tmp_path / "latin.py")

    history = read_history(tmp_path)

    assert [(revision.id, revision.message) for revision in history.in_order()] == [
        ("a1", "about a1"), ("b1", "about b1"), ("c1", "Zürich"),
    ]  # fmt: skip
    assert {path.name for path in history.unreadable} == {"broken.py", "binary.py", "deep.py", "gone.py"}
    assert history.unreadable[tmp_path / "broken.py"] == "line 1: invalid syntax"
    assert history.unreadable[tmp_path / "deep.py"].endswith("too complex to parse")
    assert history.unreadable[tmp_path / "gone.py"] == "No such file or directory"
    assert history.duplicates == {}


def test_a_folder_that_is_not_there_has_no_revisions(tmp_path: Path) -> None:
    history = read_history(tmp_path / "versions")

    assert (history.revisions, history.heads, history.in_order(), history.unreadable) == ((), [], [], {})


def test_parents_that_no_file_has_are_named(tmp_path: Path) -> None:
    history = read_history(
        write_all(tmp_path, Draft("a1", ("gone",)), Draft("b1", ("a1", "lost")), Draft("c1", ("b1",), ("never",)))
    )

    assert history.missing_parents == {"a1": ["gone"], "b1": ["lost"], "c1": ["never"]}
    assert [revision.id for revision in history.in_order()] == ["a1", "b1", "c1"]
    assert history.ancestors("c1") == {"a1", "b1"}


def test_files_with_the_same_id_are_named(tmp_path: Path) -> None:
    paths = [Draft("a1", parents).write(tmp_path, name) for name, parents in (("1.py", ()), ("2.py", ("b1",)))]

    history = read_history(write_all(tmp_path, Draft("b1")))

    assert history.duplicates == {"a1": paths}
    assert history.by_id["a1"].path == paths[1]
    assert history.path_text("a1") == ", ".join(map(str, paths))


def test_each_cycle_is_named_by_the_revisions_in_it(tmp_path: Path) -> None:
    drafts = [
        Draft("a1"), Draft("b1", ("b2", "a1")), Draft("b2", ("b1",)), Draft("c1", ("b2",)), Draft("d1", ("d1",)),
        Draft("e1", (), ("f1",)), Draft("f1", ("e1",)),
    ]  # fmt: skip

    history = read_history(write_all(tmp_path, *drafts))

    assert history.cycles == [["b1", "b2"], ["d1"], ["e1", "f1"]]
    assert sorted(revision.id for revision in history.in_order()) == [draft.id for draft in drafts]
    assert history.ancestors("c1") == {"a1", "b1", "b2"}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefgh"), max_size=3)), max_size=8))
def test_any_history_is_put_in_some_order(edges: list[tuple[str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, (id, parents) in enumerate(edges):
            Draft(id, tuple(parents)).write(Path(folder), f"{number}.py")
        history = read_history(Path(folder))

        order = [revision.id for revision in history.in_order()]

        assert sorted(order) == sorted({id for id, _ in edges})
        looped = {id for cycle in history.cycles for id in cycle}
        assert looped == {id for id in order if id in history.ancestors(id)}
        if not looped:
            assert all(order.index(other) < order.index(id) for id in order for other in history.ancestors(id))


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\n", "\r\n"), lambda text: text.replace("\n", "  \n"), lambda text: text + "\n\n",
])  # fmt: skip
def test_a_checkout_that_changes_white_space_is_no_edit(tmp_path: Path, change: Callable[[str], str]) -> None:
    source = Draft("a1").write(tmp_path).read_text()

    assert read_revision(change(source)).checksum == read_revision(source).checksum


def test_any_other_change_is_an_edit(tmp_path: Path) -> None:
    path = Draft("a1").write(tmp_path)
    source = path.read_text()
    lines = [read_revision(source).checksum]

    lines += [read_revision(changed).checksum for changed in (source + "#", source.replace("about", " about"))]

    assert len(set(lines)) == 3
    assert all(len(checksum) == 64 for checksum in lines)


def test_a_files_bytes_do_not_change_its_checksum(tmp_path: Path) -> None:
    source = Draft("a1").write(tmp_path).read_text()
    (tmp_path / "a1_a_revision.py").write_bytes(b"\xef\xbb\xbf" + source.replace("\n", "\r\n").encode())

    assert read_history(tmp_path).by_id["a1"].checksum == read_revision(source).checksum


# --- what they drop ---------------------------------------------------------------------------------------------------


def revision_with(functions: str) -> revisions.Revision:
    return read_revision("revision = 'a1'\ndown_revision = None\n" + dedent(functions))


def upgrade(body: str) -> revisions.Revision:
    """A revision whose upgrade has these statements."""
    return revision_with("def upgrade():\n" + "".join(f"    {line}\n" for line in dedent(body).strip().splitlines()))


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
        ("op.drop_table(name)", [UNTOLD]),
        ("op.drop_column('users', name)", [UNTOLD]),
        ("op.drop_column(name, 'phone')", [UNTOLD]),
        ("for name in ('users', 'logs'):\n    op.drop_table(name)", [UNTOLD]),
        ("op.drop_table(*names)", [UNTOLD]),
        ("with op.batch_alter_table(name) as batch_op:\n    batch_op.drop_column('phone')", [UNTOLD]),
        ("drop = op.drop_table\ndrop('users')", [UNTOLD]),
        ("op.execute(sa.schema.DropTable(users))", [UNTOLD]),
        ("op.execute(DropTable(users))", [UNTOLD]),
        ("metadata.drop_all(op.get_bind())", [UNTOLD]),
        ("op.execute(" + "'x' + " * 1500 + "'y')", [UNTOLD]),
        ("strip(op.batch_alter_table('users'))\nbatch.drop_column('phone')", [UNTOLD]),
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
        ("op.rename_table(name, 'old')\nop.drop_table('old')", [UNTOLD]),
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
        ("DROP TABLE %s", [UNTOLD]),
        ("DROP TABLE {name}", [UNTOLD]),
        ("DROP TABLE public.{name}", [UNTOLD]),
        ("ALTER TABLE {name} DROP COLUMN phone", [UNTOLD]),
        ("ALTER TABLE users DROP COLUMN {name}", [UNTOLD]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", ["op.execute({!r})", "op.get_bind().execute(sa.text({!r}))", "run(op, sql={!r})"])
def test_what_sql_drops_is_found(wrapped: str, sql: str, found: list[Drop]) -> None:
    assert drops(upgrade(wrapped.format(sql)), "upgrade") == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("op.execute(f'DROP TABLE {name}')", [UNTOLD]),
        ("op.execute(f'DROP TABLE tmp_{name}')", [UNTOLD]),
        ("op.execute('DROP TABLE ' + name)", [UNTOLD]),
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

    assert drops(revision, "upgrade") == [UNTOLD]


@pytest.mark.parametrize("statement", ["from shared import upgrade", "from shared import *"])
def test_an_imported_function_cannot_be_told(statement: str) -> None:
    assert (drops(revision_with(statement), "upgrade"), rebuilds(revision_with(statement), "upgrade")) == (
        [UNTOLD],
        [None],
    )
    assert drops(revision_with("from shared import upgrades"), "upgrade") == []


def test_what_the_repositorys_own_revisions_drop() -> None:
    own = read_history(VERSIONS).by_id

    assert {id: drops(revision, "downgrade") for id, revision in own.items()} == {
        "4f1c7a9d2b60": [Drop("profiles"), Drop("users")],
        "9b3e5d8a1c74": [Drop("users", "phone_number")],
        "d27f60b8e913": [Drop("access_tokens")],
        "e8a4c05b7d31": [Drop("entries"), Drop("transfers"), Drop("accounts")],
        "a6d2e91f4c08": [],
        "c5b81e6f3d27": [Drop("users", "registration_content_hash")],
    }
    assert [drops(revision, "upgrade") for revision in own.values()] == [[]] * len(own)
    assert [rebuilds(revision, "upgrade") for revision in own.values()] == [[]] * len(own)
    assert {id: rebuilds(revision, "downgrade") for id, revision in own.items()} == {
        id: ["users"] if id in ("9b3e5d8a1c74", "c5b81e6f3d27") else [] for id in own
    }


# --- what they rebuild on SQLite --------------------------------------------------------------------------------------

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


# --- lost files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A git repository with revisions in migrations/versions."""

    root: Path

    @property
    def versions(self) -> Path:
        return self.root / "migrations" / "versions"

    def git(self, *arguments: str) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True, timeout=60
        )
        return result.stdout

    def commit(self, *drafts: Draft, name: str | None = None) -> str:
        for draft in drafts:
            draft.write(self.versions, name)
        self.git("add", "--all")
        self.git("commit", "--message", "a commit")
        return self.git("rev-parse", "--short", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository whose branch `main` has a1."""
    if shutil.which("git") is None:
        pytest.skip("there is no git to look into")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.com")
        monkeypatch.setenv(f"GIT_{role}_DATE", "2026-11-23T01:00:00+00:00")
    (tmp_path / "repository").mkdir()
    repository = Repository(tmp_path / "repository")
    repository.git("init", "--initial-branch", "main")
    repository.commit(Draft("a1"))
    return repository


def test_a_revision_of_another_branch_is_found_and_brought_back(repository: Repository) -> None:
    repository.git("checkout", "-b", "feature")
    commit = repository.commit(Draft("b1", ("a1",)))
    repository.git("branch", "other")
    repository.git("checkout", "main")

    [lost] = find_in_git("b1", repository.root)

    assert (lost.id, lost.commit, lost.branches) == ("b1", commit, ("feature", "other"))
    assert (lost.path, lost.date[:19]) == ("migrations/versions/b1_a_revision.py", "2026-11-23T01:00:00")
    assert lost.command == f"git checkout {commit} -- migrations/versions/b1_a_revision.py"
    subprocess.run(lost.command, shell=True, cwd=repository.root, check=True, capture_output=True, timeout=60)  # noqa: S602
    assert list(read_history(repository.versions).by_id) == ["a1", "b1"]


def test_a_revision_of_a_remotes_branch_is_found(repository: Repository, tmp_path: Path) -> None:
    repository.git("checkout", "-b", "feature")
    commit = repository.commit(Draft("b1", ("a1",)))
    repository.git("checkout", "main")
    repository.git("clone", str(repository.root), str(tmp_path / "clone"))

    [lost] = find_in_git("b1", tmp_path / "clone")

    assert (lost.commit, lost.branches) == (commit, ("origin/feature",))


def test_an_id_is_searched_as_it_is_written(repository: Repository) -> None:
    commit = repository.commit(Draft("v1.0*(x"), name="v1.py")

    assert [lost.commit for lost in find_in_git("v1.0*(x", repository.root)] == [commit]


def test_a_revision_that_was_deleted_is_found_as_it_was_last(repository: Repository) -> None:
    repository.commit(Draft("b1", ("a1",)))
    edited = repository.commit(Draft("b1", ("a1",), label="edited"))
    (repository.versions / "b1_a_revision.py").unlink()
    repository.commit(Draft("c1", ("b1",)))

    [lost] = find_in_git("b1", repository.root)

    assert (lost.commit, lost.branches) == (edited, ("main",))


def test_a_revision_that_was_thrown_away_is_found(repository: Repository) -> None:
    commit = repository.commit(Draft("b1", ("a1",)))
    repository.git("reset", "--hard", "HEAD~1")

    [lost] = find_in_git("b1", repository.root)

    assert (lost.commit, lost.branches) == (commit, ())


def test_a_revision_that_was_stashed_is_found(repository: Repository) -> None:
    Draft("b1", ("a1",)).write(repository.versions)
    repository.git("stash", "--include-untracked")

    assert [lost.path for lost in find_in_git("b1", repository.root)] == ["migrations/versions/b1_a_revision.py"]


def test_a_file_that_only_names_the_revision_is_not_taken_for_it(repository: Repository) -> None:
    repository.commit(Draft("c1", ("b1",)), name="b1.py")

    assert find_in_git("b1", repository.root) == []


@pytest.mark.parametrize(
    "id", ["", ".*", "a1'; touch trace", "$(touch trace)", "--output=trace", "a\0b", "[", "ä", "a\nb"]
)
def test_an_id_is_never_more_than_a_text(repository: Repository, id: str) -> None:
    assert find_in_git(id, repository.root) == []
    assert not list(repository.root.glob("**/*trace*"))


def test_a_path_is_quoted_for_the_shell(repository: Repository) -> None:
    commit = repository.commit(Draft("b1"), name="b1 $(touch trace).py")

    [lost] = find_in_git("b1", repository.root)

    assert lost.command == f"git checkout {commit} -- 'migrations/versions/b1 $(touch trace).py'"


def test_looking_into_git_changes_nothing(repository: Repository) -> None:
    repository.commit(Draft("b1", ("a1",)))
    (repository.versions / "a1_a_revision.py").write_text("changed")
    before = {path: path.read_bytes() for path in repository.root.rglob("*") if path.is_file()}

    assert find_in_git("b1", repository.root)

    assert {path: path.read_bytes() for path in repository.root.rglob("*") if path.is_file()} == before


def test_without_git_or_a_repository_or_time_nothing_is_found(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_in_git("a1", repository.root) != []
    assert find_in_git("a1", tmp_path) == []
    assert find_in_git("a1", tmp_path / "nowhere") == []
    with monkeypatch.context() as hurried:
        hurried.setattr(lost_files, "GIT_SECONDS", 0)
        assert find_in_git("a1", repository.root) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_in_git("a1", repository.root) == []
