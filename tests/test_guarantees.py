"""docs/guarantees.md names tests that exist, and runs them by commands that exist."""

import re

import pytest

from tests.support.service import ROOT

TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")

ROWS = re.findall(r"^\| (?!promise|---)(.+?) \| (.+) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("promise", "attacks"), ROWS, ids=[promise[:40] for promise, _ in ROWS])
def test_a_promise_names_tests_that_exist(promise: str, attacks: str) -> None:
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", attacks)
    commands = re.findall(r"`make (\w+)`", attacks)

    assert named or commands, promise
    assert [path for path, _ in named if not (ROOT / path).exists()] == []
    assert [name for path, name in named if name and f"def {name}(" not in (ROOT / path).read_text()] == []
    makefile = (ROOT / "Makefile").read_text()
    assert [command for command in commands if f"\n{command}:" not in makefile] == []
