"""Fixtures of the tests beside this file."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import make_url

from schema import ALEMBIC_INI
from tests.support.migrations import ACCOUNTS, BEFORE_ACCOUNTS, HEAD, REVISIONS, fill
from tests.support.rehearsal import config_of, everything
from tests.support.service import ROOT, new_database


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Databases with rows, by engine and revision. Rehearsals are run on them, and they are the same in the end."""
    folder = tmp_path_factory.mktemp("filled")
    before = {}
    with ExitStack() as stack:

        @cache
        def make(engine: str, revision: str) -> str:
            url = stack.enter_context(new_database(engine, folder, request))
            with patch.dict(os.environ, {"DATABASE_URL": url}):
                command.upgrade(Config(ALEMBIC_INI), revision)
            fill(url, *REVISIONS[: REVISIONS.index(revision) + 1])
            before[url] = everything(url)
            return url

        yield make
        assert {url: everything(url) for url in before} == before


@pytest.fixture
def full_url(engine: str, filled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database at head with rows in its tables, which only rehearsals use."""
    url = filled(engine, HEAD)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def accounts_url(engine: str, filled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with rows where accounts, transfers and entries came last, which only rehearsals use."""
    url = filled(engine, ACCOUNTS)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def older_url(engine: str, filled: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with two users, where there are no accounts yet, which only rehearsals use."""
    url = filled(engine, BEFORE_ACCOUNTS)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def own_url(
    engine: str, full_url: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A copy of the database at head, to change."""
    with new_database(engine, tmp_path, request, make_url(full_url).database) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the migrations, to change; they are what is rehearsed."""
    shutil.copytree(ROOT / "migrations/versions", tmp_path / "migrations/versions")
    shutil.copy(ROOT / "migrations/env.py", tmp_path / "migrations")
    for module in ("schema", "tests.support.project"):
        monkeypatch.setattr(f"{module}.read_ini", lambda *_: config_of(tmp_path))
    return tmp_path
