"""Revisions: lost files."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from alembic_savepoint.history import lost_files
from alembic_savepoint.history.lost_files import find_in_git
from alembic_savepoint.history.revisions import read_history
from tests.support.revisions import Draft


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
