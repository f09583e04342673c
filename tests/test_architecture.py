"""ARCHITECTURE.md says what is so."""

from pathlib import Path

import pytest

from docs.draw_tables import DIAGRAM, FILE, draw_tables

ROOT = FILE.parent


TEXT = FILE.read_text(encoding="utf-8")


ROOMS = ("backup", "commands", "doctor", "guards", "history", "rehearsal")
TOOL = ("alembic_savepoint", *(f"alembic_savepoint/{room}" for room in ROOMS))


def test_the_tables_are_drawn_as_the_models_have_them() -> None:
    [drawn] = DIAGRAM.findall(TEXT)

    assert drawn == draw_tables(), "Run: make tables"


@pytest.mark.parametrize("folder", [".", "api", "console", "db", "server", "webhooks", *TOOL])
def test_every_file_is_explained(folder: str) -> None:
    files = [file.name for file in sorted((ROOT / folder).glob("*.py")) if file.name != "__init__.py"]
    # main.py, connections.py and others are in more than one folder.
    rows = TEXT.partition(f"| in `{folder}/` |" if folder != "." else "| file |")[2].partition("\n\n")[0]

    assert len(files) > 3
    assert [name for name in files if f"`{name}`" not in rows] == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_a_file_that_others_look_for_is_in_the_root(name: str) -> None:
    assert Path(ROOT / name).is_file()
