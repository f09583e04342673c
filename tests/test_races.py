"""The promises that only a real server with real connections can break."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Rows, Server, serving
from test_registration import CURSED, count, named


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def server(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(url, tmp_path, workers=request.param) as server:
        yield server


async def register_at_once(server: Server, bodies: list[dict[str, Any]]) -> list[httpx2.Response]:
    """Send all registrations at the same time, each on a connection of its own."""
    limits = httpx2.Limits(max_connections=len(bodies))
    async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
        # Connections are opened first, so that the registrations meet.
        await asyncio.gather(*(client.get("/healthz") for _ in bodies))
        return await asyncio.gather(*(client.post("/register", json=body) for body in bodies))


async def test_of_32_who_want_one_name_exactly_one_gets_it(server: Server, rows: Rows) -> None:
    for round_number in range(5):
        spellings = [f"{spelling}{round_number}" for spelling in ("racer", "RACER", "Racer", "rAcEr")] * 8

        responses = await register_at_once(server, [named(spelling) for spelling in spellings])

        assert sorted(response.status_code for response in responses) == [201] + [409] * 31
        assert count(rows) == (round_number + 1,) * 3


async def test_one_failure_leaves_no_row_while_31_others_are_stored_whole(
    server: Server, rows: Rows, engine: str
) -> None:
    rows(CURSED[engine])
    private = {"email": "private@example.com", "phone_number": "+4915187654321"}
    bodies = [named(f"user{index}", **private) for index in range(31)]
    bodies.insert(17, named("cursed", **private))

    responses = await register_at_once(server, bodies)

    failed = responses.pop(17)
    assert failed.status_code == 500
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.json()["type"] == "/problems/internal-error"
    assert [response.status_code for response in responses] == [201] * 31
    assert rows("SELECT count(*) FROM users WHERE username = 'cursed'") == [(0,)]
    assert count(rows) == (31, 31, 31)
    for told in (failed.text, server.log):
        for secret in ("private@example.com", "+4915187654321", "svp_", "INSERT", "SELECT"):
            assert secret not in told
    assert "POST /register failed unforeseen" in server.log
