"""What docs/ says of the API is what the app does, and every link leads somewhere."""

import json
import re
from pathlib import Path

import pytest

from api import problems
from api.errors import STATUSES
from docs.write_openapi import FILE, write_openapi
from main import VERSION, app

DOCS = FILE.parent


ROOT = DOCS.parent


CONTRACT = (DOCS / "contract.md").read_text(encoding="utf-8")


PAGES = [
    page
    for place in ("*.md", "alembic_savepoint/*.md", "docs/**/*.md", "examples/*/*.md")
    for page in sorted(ROOT.glob(place))
]


def test_the_description_in_the_repository_is_that_of_the_app() -> None:
    description = FILE.read_text(encoding="utf-8")

    assert json.loads(description)["paths"].keys() == app.openapi()["paths"].keys()
    assert description == write_openapi(), "Run: make openapi"


def test_the_contract_lists_every_type_of_problem_with_its_status() -> None:
    listed = {
        type_: int(status)
        for status, type_ in re.findall(r"^\| (\d{3}) \| `(/problems/.+?)` \|", CONTRACT, re.MULTILINE)
    }

    assert listed.keys() == problems.TYPES
    for refusal, status in STATUSES.items():
        assert listed[problems.type_of(refusal.__name__)] == status


def test_the_contract_lists_every_path_with_its_methods() -> None:
    calls = re.findall(r"^\| ((?:GET|POST|PATCH|DELETE).*?) \|", CONTRACT, re.MULTILINE)
    listed = {
        (method, path)
        for call in calls
        for methods, paths in re.findall(r"((?:[A-Z]+, )*[A-Z]+) ((?:/[\w{}/.]*, )*/[\w{}/.]*)", call)
        for method in methods.split(", ")
        for path in paths.split(", ")
    }
    described = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}

    assert {call for call in listed if call[1] not in ("/docs", "/redoc", "/openapi.json")} == described


def test_the_version_is_that_of_the_newest_release_in_the_changelog() -> None:
    releases = re.findall(
        r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )

    assert releases[0] == VERSION == app.version
    assert releases == sorted(releases, key=lambda version: [*map(int, version.split("."))], reverse=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")

    assert [page.name for page in DOCS.glob("*.md") if f"]({page.name})" not in index] == ["README.md"]


def test_the_decisions_are_numbered_without_a_gap() -> None:
    files = sorted((DOCS / "decisions").glob("*.md"))

    assert [int(file.name[:4]) for file in files] == [*range(1, len(files) + 1)]
    for number, file in enumerate(files, 1):
        text = file.read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. ")
        assert all(f"**{part}" in text for part in ("Question.", "Tried", "Chosen.", "What would change it."))


@pytest.mark.parametrize("name", ["requirements", "requirements-dev", "requirements-otel"])
def test_what_is_asked_for_is_pinned_with_hashes(name: str) -> None:
    asked = re.findall(r"^[a-z][a-z0-9-]*", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
    pinned = (ROOT / f"{name}.txt").read_text()

    assert [package for package in asked if not re.search(rf"^{package}(\[\w+\])?==", pinned, re.MULTILINE)] == []
    assert pinned.count("==") <= pinned.count("--hash=sha256:")
    assert "://" not in pinned
