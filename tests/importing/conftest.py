"""Fixtures of the tests beside this file."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import importing
import manage
from tests.support.importing import Import


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file to import; nobody has written it yet."""
    return tmp_path / "users.csv"


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Run the command in this process, with chunks of ten lines."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setattr(importing, "CHUNK", 10)
    return lambda *arguments: CliRunner().invoke(manage.app, ["import", *map(str, arguments)])
