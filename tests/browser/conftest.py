"""A browser that cannot reach the internet, and a server for the tests of a file."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.browser import CHROMIUM, QUIET
from tests.support.service import Server, serving


@pytest.fixture(scope="module")
def server(sqlite_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    path = shutil.copy(sqlite_template, folder / "browser.db")
    with serving(f"sqlite:///{path}", folder, EVENTS="true") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()
