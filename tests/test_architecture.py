"""ARCHITECTURE.md says what is so."""

from pathlib import Path

import pytest

from docs.draw_tables import DIAGRAM, FILE, draw_tables

ROOT = FILE.parent


TEXT = FILE.read_text(encoding="utf-8")


def test_the_tables_are_drawn_as_the_models_have_them() -> None:
    [drawn] = DIAGRAM.findall(TEXT)

    assert drawn == draw_tables(), "Run: make tables"


@pytest.mark.parametrize("folder", [".", "api", "db", "migrations", "server"])
def test_every_file_is_explained(folder: str) -> None:
    files = [file for file in sorted((ROOT / folder).glob("*.py")) if file.name != "__init__.py"]

    assert len(files) > 3
    assert [file.name for file in files if f"`{file.name}`" not in TEXT] == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_a_file_that_others_look_for_is_in_the_root(name: str) -> None:
    assert Path(ROOT / name).is_file()
