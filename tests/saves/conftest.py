"""Fixtures of the tests beside this file."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

import manage
from tests.support.migrations import REVISIONS, fill
from tests.support.saves import Run
from tests.support.service import ENGINES, new_database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the saves are; nobody has made it yet."""
    return tmp_path / "saves"


@pytest.fixture(scope="module")
def full_templates(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A database of each engine at head with rows in its tables, to copy."""
    with ExitStack() as stack:
        templates = {}
        for engine in ENGINES:
            template = request.getfixturevalue(f"{engine}_template")
            url = stack.enter_context(new_database(engine, tmp_path_factory.mktemp(engine), request, template))
            fill(url, *REVISIONS)
            templates[engine] = str(make_url(url).database)
        yield templates


@pytest.fixture
def full_url(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest, full_templates: dict[str, str]
) -> Iterator[str]:
    """A database at head with rows in its tables."""
    with new_database(engine, tmp_path, request, full_templates[engine]) as url:
        yield url


@pytest.fixture
def run(url: str, request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one of the operator's commands in this process, with nobody at the terminal."""
    if "full_url" in request.fixturenames:
        url = request.getfixturevalue("full_url")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SAVES_DIR", str(folder))
    return lambda *arguments: CliRunner().invoke(manage.app, arguments)
