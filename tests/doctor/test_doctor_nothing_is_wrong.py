"""Doctor: nothing is wrong; a revision that no file has."""

import re
import shutil
import sys

import pytest

from tests.support.doctor import BEFORE_HEAD, MESSAGE, NEW, OTHER, REPAIR, Place, commands, evidence, steps
from tests.support.migrations import BEFORE_ACCOUNTS, HEAD, REVISIONS, fill
from tests.support.service import query

pytestmark = pytest.mark.slow


def test_a_database_at_head_is_healthy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where Python would, it leaves no compiled revisions behind either.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    fill(place.url, *REVISIONS)

    assert place.is_healthy

    result = place.command()
    assert (result.exit_code, result.stdout) == (
        0,
        "Healthy: files, record, alembic_version and schema say the same.\n",
    )


def test_what_is_behind_is_told_and_healthy(place: Place) -> None:
    place.downgrade(BEFORE_HEAD)

    found = place.only("behind", 0)

    assert found["summary"] == "1 revision is not applied yet."
    assert f"Pending: {HEAD} '{MESSAGE}' ({place.name_of(HEAD)})" in evidence(found)
    assert commands(found) == ["alembic upgrade head"]
    assert place.command().stdout.endswith("Otherwise healthy.\n")
    place.run("alembic upgrade head")
    assert place.is_healthy


def test_an_empty_database_is_only_behind(place: Place) -> None:
    place.downgrade("base")

    assert place.only("behind", 0)["summary"] == f"{len(REVISIONS)} revisions are not applied yet."


def test_a_database_ahead_of_the_code_is_told_from_its_record(place: Place) -> None:
    place.add(NEW, HEAD)
    place.upgrade()
    text = place.file_of(NEW).read_text()
    place.file_of(NEW).unlink()

    found = place.only("ahead", 21)

    assert re.search(f"The record of the database: upgrade {NEW} 'added', after {HEAD}, on 20", evidence(found))
    assert steps(found)[:2] == [
        (None, "To continue with it, deploy the code that migrated the database again."),
        (f"alembic downgrade {HEAD}", "Or to take the database back to what this code knows, run with that code:"),
    ]
    assert "stamp" not in place.command().stdout
    (place.versions / f"{NEW}_added.py").write_text(text)
    place.run(f"alembic downgrade {HEAD}")
    place.file_of(NEW).unlink()
    assert place.is_healthy


def test_a_database_two_revisions_ahead_is_told_the_branch_that_has_them(place: Place) -> None:
    place.git("checkout", "--quiet", "-b", "newer")
    place.add(OTHER, HEAD)
    first = place.commit("other")
    place.add(NEW, OTHER, "    pass", "    pass")
    second = place.commit("new")
    place.upgrade()
    # Even a database that never recorded it is understood.
    query(place.url, f"DELETE FROM applied_revisions WHERE revision IN ('{NEW}', '{OTHER}')")
    place.git("checkout", "--quiet", "main")

    found = place.only("ahead", 21)

    new, other = (f"migrations/versions/{id}_added.py" for id in (NEW, OTHER))
    assert re.search(rf"Git: commit {second} of \S+ has {new} \(branch newer\)", evidence(found))
    assert re.search(rf"Git: commit {first} of \S+ has {other} \(branch newer\)", evidence(found))
    back = f"git checkout newer && alembic downgrade {HEAD} && git checkout -"
    files = f"git checkout {second} -- {new} && git checkout {first} -- {other}"
    assert commands(found) == ["git checkout newer", "git merge newer", back, files]
    place.run(files)
    assert place.is_healthy
    place.git("reset", "--quiet", "--hard")
    place.run(back)
    assert place.is_healthy


def leave_on_a_branch(place: Place) -> str:
    """Migrate to a revision of the branch wishes, which left the line before the accounts; the commit."""
    place.git("checkout", "--quiet", "-b", "wishes")
    place.add(NEW, BEFORE_ACCOUNTS)
    commit = place.commit("wishes")
    place.downgrade(BEFORE_ACCOUNTS)
    place.upgrade(NEW)
    place.git("checkout", "--quiet", "main")
    return commit


def test_a_revision_of_another_branch_is_named_with_its_branch(place: Place) -> None:
    commit = leave_on_a_branch(place)

    found = place.only("foreign-branch", 22)

    assert found["summary"] == f"The database is at {NEW}, of the branch wishes."
    assert f"Git: commit {commit} of 20" in evidence(found)
    assert f"It branched off from these files after {BEFORE_ACCOUNTS} 'access tokens'" in evidence(found)
    back = f"git checkout wishes && alembic downgrade {BEFORE_ACCOUNTS} && git checkout -"
    file = f"git checkout {commit} -- migrations/versions/{NEW}_added.py"
    assert commands(found) == ["git checkout wishes", "git merge wishes", back, file]
    place.run(back)
    assert place.only("behind", 0)


def test_a_revision_of_a_branch_that_git_does_not_have_is_told_from_the_record(place: Place) -> None:
    leave_on_a_branch(place)
    shutil.rmtree(place.folder / ".git")

    found = place.only("foreign-branch", 22)

    assert found["summary"] == f"The database is at {NEW}, of a branch that is not here."
    assert f"after {BEFORE_ACCOUNTS}, on " in evidence(found)
    assert commands(found)[0] == f"alembic downgrade {BEFORE_ACCOUNTS}"
    assert f"What was changed after {BEFORE_ACCOUNTS}: users: column birthstone" in evidence(found)
    assert f"alembic revision --rev-id {NEW} --head {BEFORE_ACCOUNTS} --splice -m added" in commands(found)


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_file_that_this_branch_lost_is_brought_back(place: Place, is_committed: bool) -> None:
    place.add(NEW, HEAD)
    commit = place.commit("new")
    place.upgrade()
    name = place.name_of(NEW)
    place.file_of(NEW).unlink()
    if is_committed:
        deletion = place.commit("tidy up")

    found = place.only("lost-file", 20)

    assert f"Git: commit {commit} of 20" in evidence(found)
    if is_committed:
        assert re.search(rf"Git: {name} was deleted by commit {deletion} of \S+, tidy up", evidence(found))
    else:
        assert f"Git: {name} is in the last commit, and not in the folder" in evidence(found)
    assert commands(found) == [f"git checkout {commit} -- {name}"]
    place.run(commands(found)[0])
    assert place.is_healthy


def test_a_file_whose_id_was_changed_is_told_from_one_that_is_gone(place: Place) -> None:
    path = place.file_of(HEAD)
    path.write_text(path.read_text().replace(f'"{HEAD}"', f'"{NEW}"'))
    place.commit("renumber")

    found = place.only("lost-file", 20)

    name = place.name_of(HEAD)
    assert f"Git: {name} had this id, and is {NEW} '{MESSAGE}' now" in found["evidence"]
    place.run(commands(found)[0])
    assert place.is_healthy


def test_a_revision_of_which_nothing_is_known_is_repaired_where_the_schema_is_that_of_one(place: Place) -> None:
    place.stamp(OTHER)

    found = place.only("unknown-revision", 23)

    assert f"Its schema is exactly that of {HEAD} '{MESSAGE}'" in evidence(found)
    assert steps(found) == [REPAIR]
    schema, _ = place.contents()
    result = place.command("--repair", "--yes")
    assert result.exit_code == 0, result.output
    assert f"To be written: alembic_version: {HEAD} instead of {OTHER}." in result.stderr
    assert place.stamped == [(HEAD,)]
    assert place.contents()[0] == schema
    assert query(place.url, "SELECT action, revision, parents, message FROM applied_revisions ORDER BY id DESC")[0] == (
        "repair", HEAD, BEFORE_HEAD, f"was {OTHER}",
    )  # fmt: skip
    assert place.is_healthy
    assert place.command("--repair").exit_code == 0


def test_an_unknown_schema_is_compared_with_the_nearest_and_not_repaired(place: Place) -> None:
    place.stamp(OTHER)
    query(place.url, "ALTER TABLE users ADD COLUMN birthstone VARCHAR(30)")
    before = place.everything()

    found = place.only("unknown-revision", 23)

    assert f"No revision has its schema. The nearest is {HEAD} " in evidence(found)
    assert "users: column birthstone is there and should not be" in found["evidence"]
    assert commands(found) == ["python manage.py saves"]
    result = place.command("--repair", "--yes")
    assert (result.exit_code, place.everything()) == (23, before)
    assert "Not exactly one revision has this schema" in result.stderr
