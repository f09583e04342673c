"""Helpers of the tests of database."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import CursorResult, make_url
from sqlmodel.ext.asyncio.session import AsyncSession

from models import KeyedRegistration
from tests.support.registration import named
from tests.support.service import Rows

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


Service = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


def registration(username: str) -> KeyedRegistration:
    return KeyedRegistration.model_validate(named(username))


async def execute(session: AsyncSession, sql: str) -> CursorResult[Any]:
    connection = await session.connection()
    return await connection.exec_driver_sql(sql)


async def run(session: AsyncSession, *statements: str) -> None:
    """An operation: these statements in one transaction."""
    async with session.begin():
        for sql in statements:
            await execute(session, sql)


async def count_users(session: AsyncSession) -> int:
    """A query of one statement."""
    result = await execute(session, "SELECT count(*) FROM users")
    number: int = result.scalar_one()
    return number


async def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Let the event loop go on until the condition answers something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await asyncio.sleep(0.01)
    return answer


@contextmanager
def locked_elsewhere(url: str, table: str = "users") -> Iterator[Callable[[], None]]:
    """Another connection that lets nobody write to the table (SQLite: to any), until it is told to let go."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(str(make_url(url).database), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
    else:
        connection = psycopg.connect(url)
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
    try:
        yield connection.rollback
    finally:
        connection.close()


async def backend_that_waits(rows: Rows, wait_event: str) -> int:
    """The process id of the service's PostgreSQL backend that waits for this."""
    sql = f"""
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'savepoint' AND wait_event = '{wait_event}'
    """
    ((pid,),) = await until(lambda: rows(sql), f"a backend that waits for {wait_event}")
    return int(pid)


def assert_refused_for_now(response: httpx2.Response, slug: str) -> None:
    """A 503 with this problem, which says when to try again."""
    assert (response.status_code, response.json()["type"]) == (503, f"/problems/{slug}")
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) >= 1
