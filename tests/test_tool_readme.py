"""What the README of alembic_savepoint lists is what there is."""

import re
from dataclasses import fields

from alembic_savepoint.commands.main import app
from alembic_savepoint.project import Options
from tests.support.service import ROOT

README = (ROOT / "alembic_savepoint" / "README.md").read_text(encoding="utf-8")


def test_each_option_is_listed_with_its_default() -> None:
    listed = re.findall(r"^\| `savepoint_(\w+)` \| (?:`(.*?)`)? ?\|", README, re.MULTILINE)

    options = [(each.name, each.default) for each in fields(Options)]
    assert listed == [(name, "" if default is None else str(default).lower()) for name, default in options]


def test_each_command_is_explained_and_shown() -> None:
    names = [str(each.name) for each in app.registered_commands]
    explained = re.findall(r"\w+", " ".join(re.findall(r"^\*\*(.*?)\*\*", README, re.MULTILINE)))

    assert len(names) == 7
    assert [name for name in names if name not in explained or f"$ alembic-savepoint {name}" not in README] == []
