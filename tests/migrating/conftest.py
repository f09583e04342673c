"""Fixtures of the tests beside this file."""

from pathlib import Path

import pytest

from tests.support.migrations import copy_of_the_repository


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """A copy of the repository, to add revisions to."""
    folder = tmp_path / "fork"
    folder.mkdir()
    return copy_of_the_repository(folder)
