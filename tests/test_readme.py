"""What the README shows is what happens."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from settings import Settings
from tests.support.readme import steps_in
from tests.support.service import ROOT, serving

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()


def tour() -> list[tuple[str, str]]:
    """The commands that the README shows, each with the output it shows."""
    return steps_in(README.partition("## A tour")[2].partition("\n## ")[0])


def without_what_varies(output: str) -> str:
    output = re.sub(r"svp_[\w-]{43}", "svp_…", output)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "an instant", output)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour uses curl")
def test_the_tour_prints_what_the_readme_shows(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/savepoint.db", tmp_path, OPERATOR_TOKEN="") as server:
        script = "\n".join(f"printf '\\036'\n{command}" for command, _ in tour())
        script = script.replace("http://127.0.0.1:8000", server.url)
        shell = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert shell.returncode == 0, shell.stderr
    printed = [output.strip() for output in shell.stdout.split("\036")[1:]]
    assert len(printed) == len(tour()) >= 8
    for (command, shown), real in zip(tour(), printed, strict=True):
        assert without_what_varies(real) == without_what_varies(shown), command


def test_the_settings_table_lists_every_setting_with_its_default() -> None:
    listed = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.+?)`)? ?\| (.+?) \|$", README, re.MULTILINE)

    assert listed == [
        (name.upper(), "" if field.default is None else str(field.default), field.description)
        for name, field in Settings.model_fields.items()
    ]
