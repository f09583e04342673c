"""Helpers of the tests of races: calls that meet on a real server."""

import asyncio
from collections import Counter
from typing import Any, NamedTuple

import httpx2

from tests.support.accounts import Headers, Holder, register_all
from tests.support.service import AS_OPERATOR, Server


class Post(NamedTuple):
    """A call."""

    path: str
    body: dict[str, Any] | None
    headers: Headers | None = None


async def post_at_once(server: Server, posts: list[Post], connections: int = 32) -> list[httpx2.Response]:
    """Make all calls at the same time; the answers in the order of the calls."""
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
        # Connections are opened first, so that the calls meet.
        await asyncio.gather(*(client.get("/healthz") for _ in range(connections)))
        return await asyncio.gather(*(client.post(post.path, json=post.body, headers=post.headers) for post in posts))


def outcomes(responses: list[httpx2.Response]) -> dict[str, int]:
    """How many answers were of each kind: created, replayed, done (200), or the type of the problem."""

    def kind(response: httpx2.Response) -> str:
        if response.status_code == 201:
            return "replayed" if "Idempotency-Replayed" in response.headers else "created"
        if response.status_code == 200:
            return "done"
        return str(response.json()["type"]).removeprefix("/problems/")

    return dict(Counter(kind(response) for response in responses))


def retried(server: Server) -> float:
    """How many transactions all workers have run again after a conflict: after a deadlock, say."""
    text = httpx2.get(f"{server.url}/metrics", headers=AS_OPERATOR).text
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("savepoint_transactions_retried_total")
    )


def holders(server: Server, **funds: int) -> list[Holder]:
    """New users, each with this much in its account."""
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        return register_all(client, **funds)
