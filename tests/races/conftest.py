"""A real server and its database, which the tests of a file share, since it takes long to start."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.service import ENGINES, Server, audited, empty, new_database, serving


class Running(NamedTuple):
    """A running server and its database."""

    engine: str
    url: str
    server: Server


@pytest.fixture(scope="module", params=itertools.product(ENGINES, (1, 2)), ids="{0[0]}, workers: {0[1]}".format)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine, workers = request.param
    folder, metrics = tmp_path_factory.mktemp("races"), tmp_path_factory.mktemp("metrics")
    # So long that only a deadlock ends a wait: two workers on SQLite take turns, and the machine may be busy.
    patience = {"LOCK_TIMEOUT": "30"}
    with (
        new_database(engine, folder, request, request.getfixturevalue(f"{engine}_template")) as url,
        serving(url, folder, workers, PROMETHEUS_MULTIPROC_DIR=str(metrics), **patience) as server,
    ):
        yield Running(engine, url, server)


@pytest.fixture
def engine(running: Running) -> str:
    return running.engine


@pytest.fixture
def url(running: Running) -> str:
    return running.url


@pytest.fixture
def server(running: Running, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server, without any user; it must have made no money and lost none in the end."""
    with audited(running.url, request):
        yield running.server
    empty(running.url)
