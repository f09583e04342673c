"""Revisions: as Alembic reads them; what is wrong with them; checksums."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st

from alembic_savepoint.history.revisions import RevisionUnreadable, read_history, read_revision
from alembic_savepoint.project import Project
from schema import ALEMBIC_INI
from tests.support.revisions import VERSIONS, Draft, healthy_histories, write_all


@settings(deadline=None, max_examples=60)
@given(healthy_histories())
def test_every_healthy_history_is_what_alembic_makes_of_it(drafts: list[Draft]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        versions = write_all(Path(folder, "versions"), *drafts)
        scripts = ScriptDirectory(folder)
        history = read_history(versions)

        assert history.heads == scripts.get_heads()
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
        for revision in read_history(VERSIONS).in_order()
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

    assert Project(Config(tmp_path / "alembic.ini")).folders == [tmp_path / folder]


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
        ("revision = 1\ndown_revision = None\n", "line 1: `revision` is not a string, strings, or None"),
        ("revision = 'a1'\ndown_revision = ['b', 2]", "line 2: `down_revision` is not a string, strings, or None"),
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
