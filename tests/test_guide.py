"""What docs/migrations.md shows is what happens, from its first command to its last."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.migrations import copy_of_the_repository
from tests.support.readme import steps_in
from tests.support.service import ROOT

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "migrations.md").read_text()


BIRTHSTONE = "    birthstone: str | None = Field(default=None, max_length=30)\n"


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """A committed copy of the repository, with the field that the guide adds to User."""
    folder = tmp_path / "fork"
    folder.mkdir()
    copy_of_the_repository(folder)
    models = folder / "models.py"
    place = "    registration_key_hash:"
    models.write_text(models.read_text().replace(place, BIRTHSTONE + place, 1))
    shutil.copy(ROOT / ".gitignore", folder)
    return folder


def test_each_command_of_the_guide_prints_what_the_guide_shows(fork: Path) -> None:
    commit = "git add --all && git commit --quiet --message 'Add birthstone'"
    steps = steps_in(GUIDE)
    script = "\n".join(f"printf '\\036'\n{command}" for command, _ in steps)
    # Committed at once, as the guide says.
    script = script.replace(" --rev-id 0a1b2c3d4e5f", f" --rev-id 0a1b2c3d4e5f\n{{ git init --quiet; {commit}; }} >&2")
    git = {f"GIT_{who}_{what}": "dev@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    shell = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=fork,
        env={**git, "PATH": path, "LC_ALL": "C.UTF-8", "HOME": str(fork), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    printed = shell.stdout.split("\036")[1:]
    for (command, shown), real in zip(steps, printed, strict=False):
        pattern = ".*".join(map(re.escape, shown.split("…")))
        assert not shown or re.fullmatch(rf"\s*{pattern}\s*", real, re.DOTALL), f"{command}\n{real}"
    assert shell.returncode == 0, printed[-1]
    assert len(printed) == len(steps) > 15
