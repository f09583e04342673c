"""Doctor: a revision whose file is gone for good, and the ways on."""

import pytest

from tests.support.doctor import ADD_COLUMN, BEFORE_HEAD, DROP_COLUMN, NEW, OTHER, Place, commands, evidence
from tests.support.migrations import HEAD
from tests.support.service import query

pytestmark = pytest.mark.slow


def test_a_revision_that_was_never_committed_is_written_again_from_its_record(place: Place) -> None:
    place.add(NEW, HEAD)
    place.upgrade()
    place.file_of(NEW).unlink()

    found = place.only("ahead", 21)

    assert found["summary"] == (
        f"The database is at {NEW}, of which only the record is left: no commit here has its file."
    )
    assert f"What was changed after {HEAD}: users: column birthstone is there and should not be" in found["evidence"]
    write, accept = commands(found)[-2:]
    assert write == f"alembic revision --rev-id {NEW} --head {HEAD} -m added"
    assert place.command("--repair", "--yes").exit_code == 21
    place.run(write)
    path = place.file_of(NEW)
    before, upgrade, downgrade = path.read_text().split("    pass")
    path.write_text(f"{before}{ADD_COLUMN}{upgrade}{DROP_COLUMN}{downgrade}")
    assert place.only("edited-file", 33)
    assert accept == f"python manage.py doctor --accept {NEW}"
    assert place.command("--accept", NEW).exit_code == 0
    assert place.is_healthy


def test_a_revision_that_was_never_committed_and_left_no_trace_in_the_schema_is_repaired(place: Place) -> None:
    place.add(NEW, BEFORE_HEAD, "    pass")
    place.downgrade(BEFORE_HEAD)
    place.upgrade(NEW)
    place.file_of(NEW).unlink()

    found = place.only("foreign-branch", 22)

    assert "only the record is left" in found["summary"]
    assert f"Its schema is exactly that of {BEFORE_HEAD}" in evidence(found)
    assert commands(found)[-1] == "python manage.py doctor --repair"
    assert place.command("--repair", "--yes").exit_code == 0
    assert place.stamped == [(BEFORE_HEAD,)]
    assert place.only("behind", 0)


def squash(place: Place) -> None:
    """Replace the last two revisions with one of another id that does the same, and commit that."""
    place.add(NEW, HEAD)
    place.commit("new")
    place.upgrade()
    place.file_of(NEW).unlink()
    place.add(OTHER, HEAD)
    place.commit("squash")


def test_a_database_at_a_revision_that_was_squashed_gets_the_new_id(place: Place) -> None:
    squash(place)
    rows = place.contents()[1]["users"]

    found = place.only("lost-file", 20)

    assert f"Its schema is exactly that of {OTHER}" in evidence(found)
    assert [each.split(" -- ")[0].rsplit(" ", 1)[0] for each in commands(found)] == [
        "git checkout", "python manage.py doctor",
    ]  # fmt: skip
    assert "Or, if other files replace it on purpose, as after a squash: Write" in found["next_commands"][1]["what"]
    result = place.command("--repair", "--yes")
    assert result.exit_code == 0, result.output
    assert place.stamped == [(OTHER,)]
    assert place.contents()[1]["users"] == rows
    assert place.is_healthy


def test_a_squash_that_makes_another_schema_is_not_stamped(place: Place) -> None:
    squash(place)
    query(place.url, "ALTER TABLE users ADD COLUMN hobby VARCHAR(30)")

    assert len(commands(place.only("lost-file", 20))) == 1
    assert place.command("--repair", "--yes").exit_code == 20
    assert place.stamped == [(NEW,)]


def test_a_file_that_is_only_missing_in_the_folder_is_restored_and_nothing_is_stamped(place: Place) -> None:
    place.add(NEW, HEAD, "    pass")
    place.commit("new")
    place.upgrade()
    place.file_of(NEW).unlink()

    assert len(commands(place.only("lost-file", 20))) == 1
    assert place.command("--repair", "--yes").exit_code == 20
    assert place.stamped == [(NEW,)]
