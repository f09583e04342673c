"""The distribution: what it needs, what it holds, and that it runs where nothing else is."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import alembic_savepoint
from alembic_savepoint.tests.conftest import Begin
from alembic_savepoint.tests.support import Stranger

PACKAGE = Path(alembic_savepoint.__file__).parent
UV = Path(sys.executable).with_name("uv")
MODULES = [path for path in PACKAGE.rglob("*.py") if "tests" not in path.parts]


def imports_of(path: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_it_imports_what_it_depends_on_and_nothing_else() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=]", each)[0] for each in project["dependencies"]}

    imported = set().union(*map(imports_of, MODULES)) - sys.stdlib_module_names - {"alembic_savepoint"}

    assert imported == declared


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, PACKAGE], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel, its dependencies and pytest-alembic alone."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([UV, "pip", "install", "--quiet", "--python", folder / "bin/python", str(wheel)], check=True)
    return folder / "bin"


def run(project: Stranger, *command: str | Path) -> str:
    """Run a command of the bare environment in the project's folder."""
    environment = {"PATH": project.environment["PATH"], "HOME": str(project.folder)}
    result = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result
    return result.stdout


@pytest.mark.slow
def test_the_wheel_has_all_packages_and_no_tests(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    wanted = {f"alembic_savepoint/{path.relative_to(PACKAGE)}" for path in MODULES}
    assert names == {*wanted, "alembic_savepoint/py.typed"}


@pytest.mark.slow
def test_it_runs_where_nothing_else_is_installed(bare: Path, begin: Begin) -> None:
    project = begin()

    assert "Save, load, rehearse" in run(project, bare / "alembic-savepoint", "--help")
    run(project, bare / "alembic", "upgrade", "head")
    run(project, bare / "alembic-savepoint", "save", "one")
    [save] = json.loads(run(project, bare / "alembic-savepoint", "saves", "--json"))
    run(project, bare / "alembic-savepoint", "doctor")

    assert save["revision"] == ["bbb2"]


ENGINE_GIVEN = "connectable = context.config.attributes.get('connection') or engine_from_config("
TESTS = """
import pytest
import sqlalchemy as sa
from pytest_alembic.tests import *

@pytest.fixture
def alembic_engine():
    return sa.create_engine({url!r})
"""


@pytest.mark.slow
def test_pytest_alembic_passes_on_a_project_with_guards(bare: Path, begin: Begin) -> None:
    subprocess.run([UV, "pip", "install", "--quiet", "--python", bare / "python", "pytest-alembic"], check=True)
    project = begin()
    project.use_models()
    project.guard()
    project.edit("migrations/env.py", ("connectable = engine_from_config(", ENGINE_GIVEN))
    (project.folder / "test_migrations.py").write_text(TESTS.format(url=project.url))

    assert " passed" in run(project, bare / "python", "-m", "pytest", "-q", "test_migrations.py")
