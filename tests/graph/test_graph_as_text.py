"""Graph: as text; where it is drawn; as SVG."""

import re
import tempfile
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings

from alembic_savepoint.history.applied import Applied, Event
from alembic_savepoint.history.graph import arrange, as_mermaid, as_text, nodes_of
from alembic_savepoint.history.revisions import History, read_history
from tests.support.graph import event, history_of
from tests.support.revisions import Draft, healthy_histories, write_all


def drawn(history: History, current: list[str], *record: Event) -> str:
    """The text graph, with a line feed before it, as an indented text has it."""
    return "\n" + as_text(history, Applied(current, list(record))) + "\n"


def picture(text: str) -> str:
    return dedent(text)


def test_a_line_of_revisions_is_applied_up_to_the_database(tmp_path: Path) -> None:
    history = history_of(tmp_path, "a1:\nb1: a1\nc1: b1")

    assert drawn(history, ["b1"]) == picture("""
        ○  c1  about c1  (head)
        ●  b1  about b1  ← database
        ●  a1  about a1

        ● 2 applied  ○ 1 pending
        """)


def test_branches_and_merges_are_drawn(tmp_path: Path) -> None:
    history = history_of(
        tmp_path,
        """
        a1:
        a2: a1
        b1: a2
        b2: b1
        c1: a2
        d1: a2
        d2: d1
        m1: b2 c1 d2
        n1: m1
        n2: m1
        """,
    )

    assert drawn(history, ["b1", "c1"]) == picture("""
        ○      n1  about n1  (head)
        │ ○    n2  about n2  (head)
        ├─╯
        ○      m1  about m1
        ├─┬─╮
        ○ │ │  b2  about b2
        ● │ │  b1  about b1  ← database
        │ ● │  c1  about c1  ← database
        │ │ ○  d2  about d2
        │ │ ○  d1  about d1
        ├─┴─╯
        ●      a2  about a2
        ●      a1  about a1

        ● 4 applied  ○ 6 pending
        """)


def test_lines_that_cross_or_meet_again_are_drawn(tmp_path: Path) -> None:
    history = history_of(tmp_path, "a1:\nb1: a1\nc1: a1\nd1: b1 c1\ne1: c1 b1\nf1: d1 e1\ng1: b1\nh1: f1 g1 a1")

    assert drawn(history, []) == picture("""
        ○          h1  about h1  (head)
        ├─┬─╮
        ○ │ │      f1  about f1
        ├─│─│─╮
        ○ │ │ │    d1  about d1
        ├─│─│─│─╮
        │ ○ │ │ │  g1  about g1
        │ │ │ ○ │  e1  about e1
        ├─│─│─┤ │
        ├─╯ │ │ │
        ○   │ │ │  b1  about b1
        │   │ ├─╯
        │   │ ○    c1  about c1
        ├───┴─╯
        ○          a1  about a1

        ○ 8 pending
        """)


def test_histories_that_have_nothing_in_common_do_not_touch(tmp_path: Path) -> None:
    assert drawn(history_of(tmp_path, "a1:\nb1: a1\nx1:\ny1: x1"), ["y1"]) == picture("""
        ○  b1  about b1  (head)
        ○  a1  about a1

        ●  y1  about y1  (head)  ← database
        ●  x1  about x1

        ● 2 applied  ○ 2 pending
        """)


def test_what_a_revision_depends_on_is_applied_with_it_and_named(tmp_path: Path) -> None:
    history = read_history(write_all(tmp_path, Draft("a1", label="base"), Draft("b1", (), ("base",))))

    assert drawn(history, ["b1"]) == picture("""
        ●  b1  about b1  (depends on base)  (head)  ← database

        ●  a1  about a1  (base)  (head)

        ● 2 applied
        """)


def test_a_revision_of_newer_code_is_named_by_the_record(tmp_path: Path) -> None:
    history = history_of(tmp_path, "a1:\nb1: a1")

    assert drawn(history, ["n2"], event("n1", "b1"), event("n2", "n1", message="add a column")) == picture("""
        ?  n2  add a column  (in no file)  ← database
        ?  n1  about n1  (in no file)
        ●  b1  about b1  (head)
        ●  a1  about a1

        ● 2 applied  ? 2 unknown to these files
        """)


@pytest.mark.parametrize("record", [[], [event("zz", action="stamp", message="", checksum="")]])
def test_behind_an_unknown_revision_without_a_record_nothing_is_said_to_be_pending(
    tmp_path: Path, record: list[Event]
) -> None:
    history = history_of(tmp_path, "a1:\nb1: a1\nc1: a1\nd1: c1")

    assert {node.id: node.state for node in nodes_of(history, Applied(["zz", "c1"], record))} == {
        "zz": "unknown", "a1": "applied", "c1": "applied", "d1": "pending", "b1": "untold",
    }  # fmt: skip


def test_a_missing_parent_is_drawn_where_it_would_be(tmp_path: Path) -> None:
    history = history_of(tmp_path, "a1:\nb1: gone\nc1: b1 a1")

    assert drawn(history, []) == picture("""
        ○    c1    about c1  (head)
        ├─╮
        ○ │  b1    about b1
        ? │  gone  (in no file)
          ○  a1    about a1

        ○ 3 pending  ? 1 unknown to these files
        """)


def test_a_missing_parent_that_was_recorded_joins_the_parts(tmp_path: Path) -> None:
    history = history_of(tmp_path, "a1:\nb1: gone")

    assert drawn(history, ["b1"], event("gone", "a1", message="what it was")) == picture("""
        ●  b1    about b1  (head)  ← database
        ?  gone  what it was  (in no file)
        ●  a1    about a1  (head)

        ● 2 applied  ? 1 unknown to these files
        """)


def test_files_that_cannot_be_drawn_are_listed_and_cycles_and_duplicates_marked(tmp_path: Path) -> None:
    Draft("z1").write(tmp_path, "twice.py")
    (tmp_path / "broken.py").write_text("\n(")

    text = drawn(history_of(tmp_path, "b1: b2\nb2: b1\nz1:"), [])

    assert text == picture(f"""
        ○  b1  about b1  (in a cycle)
        ○  b2  about b2  (in a cycle)

        ○  z1  about z1  (in 2 files)  (head)

        ○ 3 pending
        Unreadable: {tmp_path}/broken.py: line 2: '(' was never closed
        """)


def test_without_a_database_only_the_files_are_shown(tmp_path: Path) -> None:
    assert as_text(history_of(tmp_path, "a1:\nb1: a1"), None) == picture("""\
        ·  b1  about b1  (head)
        ·  a1  about a1

        · 2 applied or pending, not known which""")


def test_without_files_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert as_text(read_history(tmp_path), Applied([], [])) == "No revisions"


def test_what_the_database_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = drawn(read_history(tmp_path), ["z\x1b[2J"], event("z\x1b[2J", message="\x07\u202e\nx"))

    assert "\n?  z\N{REPLACEMENT CHARACTER}[2J  \N{REPLACEMENT CHARACTER}" in text
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


@settings(deadline=None, max_examples=40)
@given(healthy_histories())
def test_each_line_has_its_lane_for_itself(drafts: list[Draft]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = arrange(nodes_of(read_history(write_all(Path(folder), *drafts)), None))
    rows = {place.node.id: row for row, place in enumerate(places)}
    assert len(rows) == len(drafts)
    for row, place in enumerate(places):
        assert list(place.lanes) == list(place.node.parents)
        for parent, lane in place.lanes.items():
            assert rows[parent] > row
            for between, after in pairwise(places[row + 1 : rows[parent] + 1]):
                assert between.lane != lane
                assert lane in after.above


def test_the_flowchart_has_each_revision_and_each_line(tmp_path: Path) -> None:
    history = history_of(tmp_path, "a1:\nb1: a1\nc1: a1\nd1: b1 c1\ne1: gone")

    lines = as_mermaid(history, Applied(["b1", "zz"], [event("zz", "d1")])).splitlines()

    assert lines[0] == "flowchart TD"
    labels = {found[1]: found[2] for line in lines if (found := re.fullmatch(r' +(r\d+)\["(.*)"\]:::\w+', line))}
    ids = {name: label.partition("<br>")[0] for name, label in labels.items()}
    drawn = {(ids[found[1]], ids[found[2]]) for line in lines if (found := re.fullmatch(r" +(r\d+) --> (r\d+)", line))}
    assert sorted(ids.values()) == sorted([*history.by_id, "zz", "gone"])
    assert drawn == {("b1", "a1"), ("c1", "a1"), ("d1", "b1"), ("d1", "c1"), ("e1", "gone"), ("zz", "d1")}
    assert [label for label in labels.values() if label.endswith("<br>database")] == [
        "zz<br>about zz<br>(in no file)<br>database",
        "b1<br>about b1<br>database",
    ]


def test_the_flowchart_takes_no_text_for_its_own_language(tmp_path: Path) -> None:
    attack = 'x"]; click r0 "javascript:alert(1)"\n`**b**` #quot; <script>\x00'

    text = as_mermaid(history_of(tmp_path, "a1:"), Applied([attack], [event(attack, message=attack)]))

    assert len(text.splitlines()) == 7
    assert re.search(r"[<`#](?!br>)", re.sub(r"classDef.*", "", text)) is None


def test_without_files_the_flowchart_is_empty(tmp_path: Path) -> None:
    assert as_mermaid(read_history(tmp_path), None).splitlines()[0] == "flowchart TD"
