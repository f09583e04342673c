"""Doctor: the files by themselves; several, none, and what is not executed."""

import re
import shutil
from typing import Any

import pytest

from tests.support.doctor import MESSAGE, NEW, OTHER, USERS, Place, commands, evidence, on_one_engine, steps
from tests.support.migrations import ACCOUNTS, BEFORE_ACCOUNTS, HEAD, REVISIONS
from tests.support.service import query

pytestmark = pytest.mark.slow


@on_one_engine
def test_an_unreadable_file_is_brought_back_from_the_last_commit(place: Place) -> None:
    path = place.file_of(BEFORE_ACCOUNTS)
    path.write_text(path.read_text().replace("def upgrade() -> None:", "def upgrade( -> None:"))
    name = place.name_of(BEFORE_ACCOUNTS)

    found = place.only("unreadable-file", 10)

    assert found["evidence"] == [
        f"{name}: line 19: invalid syntax",
        f"Git: in the last commit it can be read, as revision {BEFORE_ACCOUNTS} 'access tokens'",
    ]
    assert commands(found) == [f"git diff HEAD -- {name}", f"git checkout HEAD -- {name}"]
    place.run(commands(found)[1])
    assert place.is_healthy


@on_one_engine
def test_of_an_unreadable_file_that_git_does_not_know_only_the_fault_is_told(place: Place) -> None:
    (place.versions / "notes.py").write_text("what = 1\n")

    found = place.only("unreadable-file", 10)

    assert "it has no `revision`" in evidence(found)
    assert commands(found) == []


def follow(place: Place, found: dict[str, Any]) -> None:
    """Do what the steps say to write into which line."""
    for step in found["next_commands"]:
        where = re.search(r"In (\S+), line (\d+), write:$", step["what"])
        assert where, step
        path = place.folder / where[1]
        lines = path.read_text().splitlines()
        lines[int(where[2]) - 1] = step["command"]
        path.write_text("\n".join(lines))


def copy_of_head(place: Place) -> None:
    copy = place.versions / "0_copy.py"
    text = place.file_of(HEAD).read_text()
    body = text.partition("def upgrade()")[0].replace(MESSAGE, f"a copy: {MESSAGE}")
    copy.write_text(f"{body}def upgrade() -> None:\n    pass\n\n\ndef downgrade() -> None:\n    pass\n")


@pytest.mark.parametrize("told_by", ["record", "git"])
@on_one_engine
def test_of_two_files_with_one_id_the_intruder_gets_an_id_of_its_own(place: Place, told_by: str) -> None:
    copy_of_head(place)
    if told_by == "record":
        place.commit("both")
    else:
        query(place.url, "DELETE FROM applied_revisions")

    found = place.only("duplicate-id", 11)

    name = place.name_of(HEAD)
    line = place.file_of(HEAD).read_text().splitlines().index(f'revision: str = "{HEAD}"') + 1
    assert f"migrations/versions/0_copy.py, line {line}: revision: str = " in evidence(found)
    assert f"{name}, line {line}: revision: str = " in evidence(found)
    words = {
        "record": f"The record of the database: {name} is what was applied on 20",
        "git": f"Git: of these files, only {name} is in the last commit",
    }
    assert words[told_by] in evidence(found)
    [new_id, parent] = commands(found)
    assert re.fullmatch(r'revision = "[0-9a-f]{12}"', new_id)
    assert parent == f'down_revision = "{HEAD}"'
    follow(place, found)
    assert place.only("behind", 0)
    place.run("alembic upgrade head")
    assert place.is_healthy


@on_one_engine
def test_where_nothing_tells_which_file_was_first_both_ways_are_told(place: Place) -> None:
    copy_of_head(place)
    place.commit("both")
    query(place.url, "DELETE FROM applied_revisions")

    found = place.only("duplicate-id", 11)

    assert len(commands(found)) == 2
    assert "Nothing shows which of them came later." in found["next_commands"][0]["what"]


@pytest.mark.parametrize("is_committed", [False, True])
@on_one_engine
def test_of_a_file_that_was_copied_the_copy_is_deleted(place: Place, is_committed: bool) -> None:
    original = place.file_of(HEAD)
    copy = original.with_stem(f"{original.stem} (1)")
    shutil.copy(original, copy)
    if is_committed:
        place.commit("both")

    found = place.only("duplicate-id", 11)

    assert "Their contents are the same" in found["evidence"]
    assert steps(found) == [(f"rm '{copy.relative_to(place.folder)}'", "Delete the copy:")]
    copy.unlink()
    assert place.is_healthy


def set_parent(place: Place, revision: str, parent: str) -> None:
    path = place.file_of(revision)
    path.write_text(re.sub(r"(?m)^(down_revision.* = ).*$", rf'\1"{parent}"', path.read_text()))


@on_one_engine
def test_a_cycle_is_broken_where_the_last_commit_says_otherwise(place: Place) -> None:
    set_parent(place, BEFORE_ACCOUNTS, ACCOUNTS)
    name = place.name_of(BEFORE_ACCOUNTS)

    found = place.doctor()

    assert [each["kind"] for each in found] == ["cycle", "edited-file"]
    assert found[0]["exit_code"] == 12
    assert f'{name}, line 14: down_revision: str | Sequence[str] | None = "{ACCOUNTS}"' in found[0]["evidence"]
    assert f"Git: in the last commit {name} comes after {REVISIONS[1]}" in found[0]["evidence"]
    assert commands(found[0]) == [f"git checkout HEAD -- {name}"]
    place.run(commands(found[0])[0])
    assert place.is_healthy


@on_one_engine
def test_a_cycle_that_was_committed_is_broken_as_the_record_says(place: Place) -> None:
    set_parent(place, USERS, ACCOUNTS)
    place.commit("a circle")

    found = place.doctor()[0]

    assert (found["kind"], len(found["evidence"])) == ("cycle", 5)
    assert f"The record of the database: {USERS} was applied after nothing" in found["evidence"]
    assert commands(found) == ["down_revision = None"]
    follow(place, found)
    assert all(each["kind"] == "edited-file" for each in place.doctor())


@on_one_engine
def test_a_cycle_of_which_nothing_is_known_is_shown_line_by_line(place: Place) -> None:
    place.add(NEW, NEW)

    found = place.only("cycle", 12)

    assert found["summary"] == f"{NEW} comes after itself."
    assert commands(found) == [f"git log -p -- migrations/versions/{NEW}_added.py"]


@on_one_engine
def test_a_missing_parent_is_brought_back_from_another_branch(place: Place) -> None:
    place.git("checkout", "--quiet", "-b", "wishes")
    place.add(OTHER, HEAD)
    commit = place.commit("other")
    place.git("checkout", "--quiet", "main")
    place.add(NEW, OTHER, "    pass")

    found = place.only("missing-parent", 13)

    assert found["summary"] == f"No file has the revision {OTHER}, after which {NEW} comes."
    assert f'migrations/versions/{NEW}_added.py, line 6: down_revision = "{OTHER}"' in found["evidence"]
    assert f"Git: commit {commit} of 20" in evidence(found)
    assert commands(found) == [f"git checkout {commit} -- migrations/versions/{OTHER}_added.py"]
    place.run(commands(found)[0])
    assert place.only("behind", 0)


@on_one_engine
def test_a_parent_that_was_changed_to_one_that_is_missing_is_told_from_the_record(place: Place) -> None:
    set_parent(place, ACCOUNTS, OTHER)
    place.commit("mistake")

    found = place.doctor()[0]

    assert found["kind"] == "missing-parent"
    assert f"The record of the database: {ACCOUNTS} was applied after {BEFORE_ACCOUNTS}" in found["evidence"]
    assert found["next_commands"] == [
        {
            "command": f'down_revision = "{BEFORE_ACCOUNTS}"',
            "what": f"As it was applied. In {place.name_of(ACCOUNTS)}, line 17, write:",
        }
    ]


@pytest.mark.parametrize(("typed", "words"), [(HEAD[1:] + HEAD[0], "misspelled"), ("0" * 12, "Neither git nor")])
@on_one_engine
def test_a_missing_parent_that_nothing_knows_is_guessed_as_a_guess(place: Place, typed: str, words: str) -> None:
    place.add(NEW, typed, "    pass")

    found = place.only("missing-parent", 13)

    [(line, what)] = steps(found)
    assert line == f'down_revision = "{HEAD}"'
    assert words in what
    follow(place, {"next_commands": [{"command": line, "what": re.sub("in (?=migrations)", "In ", what)}]})
    assert place.only("behind", 0)


def test_several_heads_are_joined(place: Place) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)

    found, behind = place.doctor()

    assert (found["kind"], found["exit_code"], behind["kind"]) == ("several-heads", 34, "behind")
    assert f"{HEAD} '{MESSAGE}' ({place.name_of(HEAD)}): applied" in found["evidence"]
    assert f"{NEW} 'added' ({place.name_of(NEW)}): not applied" in found["evidence"]
    heads = sorted([HEAD, NEW])
    assert commands(found) == [
        f'alembic merge -m "merge {heads[0]} and {heads[1]}" {heads[0]} {heads[1]}', "alembic upgrade heads",
    ]  # fmt: skip
    for line in commands(found):
        place.run(line)
    assert place.is_healthy


def test_several_heads_that_are_applied_are_compared_together(place: Place) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)
    place.upgrade("heads")
    assert [each["kind"] for each in place.doctor()] == ["several-heads"]

    query(place.url, "DELETE FROM alembic_version")
    assert [each["kind"] for each in place.doctor()] == ["unversioned", "several-heads"]
    assert place.command("--repair", "--yes").exit_code == 34

    assert sorted(place.stamped) == sorted([(HEAD,), (NEW,)])


@on_one_engine
def test_a_head_that_another_one_depends_on_is_not_stamped_besides_it(place: Place) -> None:
    place.add(NEW, BEFORE_ACCOUNTS)
    path = place.file_of(NEW)
    path.write_text(path.read_text().replace("\n\n\n", f'\ndepends_on = "{HEAD}"\n\n\n', 1))
    place.upgrade("heads")
    was = place.stamped
    query(place.url, "DELETE FROM alembic_version")

    assert place.command("--repair", "--yes").exit_code == 34

    assert place.stamped == was == [(NEW,)]


def test_all_that_is_wrong_is_told_and_nothing_broken_is_executed(place: Place) -> None:
    for number, text in enumerate([f'revision = "{NEW}"\ndown_revision = "{OTHER}"\n', "def ("]):
        (place.versions / f"{number}.py").write_text(f'open("executed", "w")\n{text}')
    place.stamp("0" * 12)
    query(place.url, "CREATE TABLE _alembic_tmp_users (id INTEGER)")

    found = place.doctor()

    assert [each["kind"] for each in found] == [
        "unreadable-file", "missing-parent", "unknown-revision", "leftover-table",
    ]  # fmt: skip
    assert "The schema was not compared: nothing is executed before the revision files form a history" in evidence(
        found[2]
    )
    assert not (place.folder / "executed").exists()
    printed = place.command()
    assert printed.exit_code == 10
    for each in found:
        assert f"{each['kind']}: {each['summary']}\n" in printed.stdout
        for line in commands(each):
            assert f"\n      {line}\n" in printed.stdout


def test_revisions_that_fail_are_no_reason_to_say_nothing(place: Place) -> None:
    place.add(NEW, HEAD, '    raise RuntimeError("not here")')
    place.stamp(NEW)

    found = place.only("not-compared", 31)

    assert found["evidence"] == [f"Why: on an empty database the revisions fail: {NEW}: not here"]


@on_one_engine
def test_without_a_database_the_files_are_diagnosed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, words in (
        (f"sqlite:///{place.folder}/missing.db", "There is no file"),
        ("postgresql://localhost:1/x", "Connection refused"),
    ):
        monkeypatch.setenv("DATABASE_URL", url)
        result = place.command()
        assert result.exit_code == 2
        assert words in result.stdout
    place.add(NEW, OTHER)
    assert place.command().exit_code == 13
    assert not (place.folder / "missing.db").exists()
