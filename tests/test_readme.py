"""What README.md, docs/tour.md and docs/settings.md show is what happens."""

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

FIVE_MINUTES = (ROOT / "README.md").read_text().partition("## Five minutes")[2].partition("\n## ")[0]
TOUR = (ROOT / "docs/tour.md").read_text()

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")


def run(script: str, folder: Path) -> str:
    """What the commands print, with a new service that listens where the page says."""
    with serving(f"sqlite:///{folder}/savepoint.db", folder, OPERATOR_TOKEN="") as server:
        shell = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script.replace("http://127.0.0.1:8000", server.url)],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert shell.returncode == 0, shell.stderr
    return shell.stdout


def without_what_varies(output: str) -> str:
    output = re.sub(r"svp_[\w-]{43}", "svp_…", output)
    # The README shows a problem without its id.
    output = re.sub(r',"request_id":"[0-9a-f]{16}"', "", output)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "an instant", output)


@needs_curl
def test_the_five_minutes_end_as_the_readme_shows(tmp_path: Path) -> None:
    _, pasted = re.findall(r"```sh\n(.*?)```", FIVE_MINUTES, re.DOTALL)
    [shown] = re.findall(r"```text\n(.*?)```", FIVE_MINUTES, re.DOTALL)

    printed = run(pasted, tmp_path).splitlines()

    assert len(printed) == len(shown.splitlines()) >= 6
    for real, line in zip(printed, shown.splitlines(), strict=True):
        assert re.fullmatch(".*".join(map(re.escape, line.split("…"))), real)


@needs_curl
def test_the_tour_prints_what_it_shows(tmp_path: Path) -> None:
    steps = steps_in(TOUR)

    printed = run("\n".join(f"printf '\\036'\n{command}" for command, _ in steps), tmp_path).split("\036")[1:]

    assert len(printed) == len(steps) >= 8
    for (command, shown), real in zip(steps, printed, strict=True):
        assert without_what_varies(real.strip()) == without_what_varies(shown), command


def test_the_settings_table_lists_every_setting_with_its_default() -> None:
    table = (ROOT / "docs/settings.md").read_text()
    listed = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.+?)`)? ?\| (.+?) \|$", table, re.MULTILINE)

    assert listed == [
        (name.upper(), "" if field.default is None else str(field.default), field.description)
        for name, field in Settings.model_fields.items()
    ]
