"""Fixtures of the tests beside this file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.migrations import REVISIONS, alembic_processes, copy_of_the_repository, fill, make_older


@pytest.fixture(scope="module", autouse=True)
def _stop_alembic_processes() -> Iterator[None]:
    yield
    alembic_processes().shutdown()
    alembic_processes.cache_clear()


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """A copy of the repository."""
    folder = tmp_path / "fork"
    folder.mkdir()
    return copy_of_the_repository(folder)


@pytest.fixture
def full_url(url: str) -> str:
    """A database at head with rows in its tables."""
    fill(url, *REVISIONS)
    return url


@pytest.fixture
def older_url(empty_url: str) -> str:
    """A database with users who have no accounts yet."""
    return make_older(empty_url)
