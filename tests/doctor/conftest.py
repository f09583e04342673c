"""Fixtures of the tests beside this file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.doctor import GIT, Place
from tests.support.migrations import copy_of_the_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in git, with one commit on main."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    (folder / ".gitignore").write_text("__pycache__/\n")
    # In few files, since each test copies them.
    for line in (
        "init --quiet --template= --initial-branch=main",
        "add --all",
        "commit --quiet -m start",
        "gc --quiet",
    ):
        subprocess.run(["git", *line.split()], cwd=folder, env={**os.environ, **GIT}, check=True)
    return folder


@pytest.fixture
def place(url: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of its own, with a database at head; the commands run in it."""
    folder = shutil.copytree(repository, tmp_path / "fork")
    for name, value in {**GIT, "DATABASE_URL": url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    place = Place(folder, url)
    monkeypatch.setattr("schema.ALEMBIC_INI", folder / "alembic.ini")
    return place
