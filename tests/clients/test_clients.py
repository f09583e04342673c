"""docs/clients.md: the clients that generators make of the API's description are typed, and do what the page says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import main
from tests.support.readme import steps_in
from tests.support.service import OPERATOR_TOKEN, ROOT, Server, query, serving

PAGE = (ROOT / "docs/clients.md").read_text()
[PRINTED] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
INSTALLED = ROOT / ".clients"
TSC = (
    "--strict",
    "--noUnusedLocals",
    "--skipLibCheck",
    "--module",
    "nodenext",
    "--target",
    "es2022",
    "--types",
    "node",
)
NUMBERED = r"class \w+Type\d\w*|\bVALUE_\d+"
"""Names that the generator makes where the description gives none."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(f"sqlite:///{tmp_path}/savepoint.db", tmp_path) as server:
        yield server
        # Each language sent the order twice.
        assert query(f"sqlite:///{tmp_path}/savepoint.db", "SELECT count(*) FROM transfers") == [(3,)]


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What the command prints; any that fails is an error."""
    path = os.pathsep.join([str(INSTALLED / "bin"), str(INSTALLED / "node_modules/.bin"), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def generate(program: str, server: Server, folder: Path) -> None:
    """Run the page's command; a description that it cannot read completely is an error."""
    [command] = [command for command, _ in steps_in(PAGE) if program in command]
    said = run("bash", "-c", command.replace("http://127.0.0.1:8000", server.url), folder=folder)
    assert not re.search(r"warn|error|unable", said, re.IGNORECASE), said


def write_script(language: str, file: Path) -> Path:
    """The program that the page shows."""
    [script] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    file.write_text(script)
    return file


def use(*command: str | Path, server: Server, folder: Path) -> str:
    """What the program prints."""
    settings = {"SAVEPOINT_URL": server.url, "SAVEPOINT_OPERATOR_TOKEN": OPERATOR_TOKEN}
    return run(*command, folder=folder, **settings)


def test_the_python_client_is_typed_and_does_what_the_page_says(server: Server, tmp_path: Path) -> None:
    generate("openapi-python-client", server, tmp_path)
    folder = tmp_path / "savepoint-client"
    script = write_script("python", folder / "script.py")
    python = INSTALLED / "bin/python"

    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={python}"]
    run(*mypy, script, "savepoint_client", folder=folder)
    assert use(python, script, server=server, folder=folder) == PRINTED

    package = folder / "savepoint_client"
    generated = {file.stem for file in (package / "api").glob("*/*.py")} - {"__init__"}
    described = [operation for path in main.app.openapi()["paths"].values() for operation in path.values()]
    assert generated == {operation["operationId"] for operation in described}
    models = "".join(file.read_text() for file in (package / "models").glob("*.py"))
    assert "class ProblemType(" in models
    assert re.findall(NUMBERED, models) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_typescript_client_is_typed_and_does_what_the_page_says(server: Server, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(INSTALLED / "node_modules")
    shutil.copy(INSTALLED / "package.json", tmp_path)
    generate("openapi-typescript", server, tmp_path)
    script = write_script("typescript", tmp_path / "script.ts")

    run("tsc", *TSC, script, folder=tmp_path)
    assert use("node", "script.js", server=server, folder=tmp_path) == PRINTED
