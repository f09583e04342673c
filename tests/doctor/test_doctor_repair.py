"""Doctor: repair; the codes."""

import re
import shutil

import pytest
from typer.testing import CliRunner

import manage
from alembic_savepoint.doctor.diagnosis import KINDS
from alembic_savepoint.doctor.repair import RepairRefused
from tests.support.doctor import INDEX, NEW, OTHER, Place
from tests.support.migrating import somebody_who_migrates
from tests.support.migrations import HEAD
from tests.support.project import diagnose, plan_repair, restamp
from tests.support.service import ROOT, query

pytestmark = pytest.mark.slow


def test_a_repair_is_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.stamp(OTHER)
    before = place.everything()

    nobody = place.command("--repair")
    assert (nobody.exit_code, place.everything()) == (23, before)
    assert "Standard input is not a terminal, so nobody can be asked. To confirm in advance: --yes" in nobody.stderr

    monkeypatch.setattr("alembic_savepoint.commands.shared.is_interactive", lambda: True)
    for answer, code in (("n\n", 23), ("y\n", 0)):
        result = CliRunner().invoke(manage.app, ["doctor", "--repair"], input=answer)
        assert result.exit_code == code
        assert "Write it?" in result.stderr
    assert place.is_healthy


@pytest.mark.parametrize("where", ["a branch", "elsewhere"])
def test_a_database_ahead_of_the_code_is_never_restamped(place: Place, where: str) -> None:
    # The schema is exactly that of the head, and still it would be wrong.
    place.git("checkout", "--quiet", "-b", "newer")
    place.add(NEW, HEAD, "    pass")
    if where == "a branch":
        place.commit("newer")
    place.upgrade()
    place.git("checkout", "--quiet", "main")
    if where == "elsewhere":
        place.file_of(NEW).unlink()
        shutil.rmtree(place.folder / ".git")

    result = place.command("--repair", "--yes")

    assert result.exit_code == 21
    assert "A restamp would not fix this (ahead), only hide it." in result.stderr
    assert place.stamped == [(NEW,)]


def test_a_repair_does_not_hide_that_a_file_was_edited(place: Place) -> None:
    path = place.file_of(HEAD)
    path.write_text(path.read_text() + "# polished\n")
    query(place.url, "DELETE FROM alembic_version")

    assert place.command("--repair", "--yes").exit_code == 33
    assert place.stamped == [(HEAD,)]
    assert place.only("edited-file", 33)


def test_drift_is_never_restamped(place: Place) -> None:
    query(place.url, f"DROP INDEX {INDEX}")
    before = place.everything()

    result = place.command("--repair", "--yes")

    assert (result.exit_code, place.everything()) == (30, before)
    assert "None of this is fixed by writing another revision" in result.stderr


def test_a_repair_waits_its_turn_and_says_who_migrates(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.stamp(OTHER)
    monkeypatch.setenv("MIGRATION_TIMEOUT", "0.2")

    with somebody_who_migrates(place.url) as name:
        result = place.command("--repair", "--yes")

    assert result.exit_code == 2
    assert name in result.stderr
    assert place.stamped == [(OTHER,)]


@pytest.mark.parametrize("change", ["DELETE FROM alembic_version", f"DROP INDEX {INDEX}"])
def test_what_changed_before_the_repair_is_not_overwritten(place: Place, change: str) -> None:
    place.stamp(OTHER)
    plan = plan_repair(diagnose(place.url, place.versions, place.folder), place.url)
    query(place.url, change)
    before = place.everything()

    with pytest.raises(RepairRefused, match="changed in the meantime"):
        restamp(place.url, plan, place.versions, 1)

    assert place.everything() == before


def test_help_and_guide_list_each_kind_with_its_exit_code() -> None:
    codes = [code for code, _ in KINDS.values()]
    assert len(set(codes)) == len(codes)
    assert 1 not in codes  # Python's own, for what nobody foresaw.

    shown = CliRunner().invoke(manage.app, ["doctor", "--help"], env={"COLUMNS": "160"}).stdout
    assert {kind: int(code) for code, kind in re.findall(r"• (\d+) ([a-z-]+):", shown)} == {
        kind: code for kind, (code, _) in KINDS.items() if code
    }
    for guide in ROOT.glob("docs/migrations.md"):
        listed = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", guide.read_text(), re.MULTILINE)
        assert [(kind, int(code)) for kind, code in listed] == [(kind, code) for kind, (code, _) in KINDS.items()]
