"""The image has what the service needs and no more, and what deploys it sets only what there is to set."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from uvicorn.main import main as uvicorn_command

from settings import Settings
from tests.support.service import ROOT, answers, free_port, wait_until

DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNITS = {path.name: path.read_text().replace("\\\n", " ") for path in (ROOT / "deploy").glob("*.service")}
# Alembic's, uvicorn's, prometheus_client's, Python's, the image's own.
OTHERS = {"ALEMBIC_CONFIG", "FORWARDED_ALLOW_IPS", "PROMETHEUS_MULTIPROC_DIR", "PATH"}
OTHERS |= {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
SECRET = "of-the-operator-of-the-image"


def command_of(instruction: str) -> list[str]:
    """The command of the Dockerfile's HEALTHCHECK, or its last CMD."""
    found = re.findall(rf"^(?:{instruction}\b[^[]*)(\[.*\])$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def make_image(folder: Path) -> None:
    """Copy what is committed and .dockerignore lets through; of its lines, those that begin with ! allow."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = {path for line in lines if line.startswith("!") for path in ROOT.glob(line[1:])}
    denied = {path for line in lines if line[:1] not in ("", "!", "*") for path in ROOT.glob(line)}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        places = {ROOT / name, *(ROOT / name).parents}
        if places & allowed and not places & denied:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


@pytest.mark.slow
def test_the_image_serves_migrates_and_saves(tmp_path: Path) -> None:
    app, port = tmp_path / "app", str(free_port())
    make_image(app)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ENVIRONMENT": "production",
        "DATABASE_URL": f"sqlite:///{tmp_path}/savepoint.db",
        "SAVES_DIR": f"{tmp_path}/saves",
        "OPERATOR_TOKEN": SECRET,
    }

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=app, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    check = [word.replace("8000", port) for word in command_of("HEALTHCHECK")]
    run("alembic", "upgrade", "head")
    assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode != 0
    with subprocess.Popen(
        [port if word == "8000" else word for word in command_of("CMD")], cwd=app, env=environment
    ) as server:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "the image to start")
            run(*check)
            assert "Saved" in run("python", "manage.py", "save")
        finally:
            server.terminate()


def test_the_image_has_nothing_that_the_service_does_not_need(tmp_path: Path) -> None:
    make_image(tmp_path)

    names = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert names == {
        *("alembic.ini", "prod_alembic.ini", "requirements.txt", "LICENSE"),
        *("alembic_savepoint", "api", "console", "db", "migrations", "server", "webhooks"),
    }
    assert not [*tmp_path.rglob("tests")]


def test_each_variable_that_is_set_is_a_setting() -> None:
    compose = (ROOT / "compose.yaml").read_text()
    [environment] = re.findall(r"&environment\n((?:      .*\n)+)", compose)
    set_by = {
        "compose.yaml": re.findall(r"^      (\w+):", environment, re.MULTILINE),
        "Dockerfile": re.findall(r"(\w+)=", "".join(re.findall("^ENV (.*)$", DOCKERFILE, re.MULTILINE))),
        **{
            name: re.findall(r"(\w+)=\S", " ".join(re.findall("^Environment=(.*)$", unit, re.MULTILINE)))
            for name, unit in UNITS.items()
        },
    }
    known = {name.upper() for name in Settings.model_fields} | OTHERS

    for file, names in set_by.items():
        assert names, file
        assert {*names} <= known, file


def test_uvicorn_has_each_option() -> None:
    [served] = re.findall("^ExecStart=.*/uvicorn (.*)$", UNITS["savepoint.service"], re.MULTILINE)

    for words in (served.split(), command_of("CMD")[1:]):
        options = uvicorn_command.make_context("uvicorn", [*words]).params
        assert options["http"] == "server.protocol:BoundedProtocol"
        assert options["timeout_keep_alive"] == 75
