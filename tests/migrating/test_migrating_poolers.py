"""Migrating behind PgBouncer in transaction mode is refused; no lock is left on another's backend."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import make_url

from alembic_savepoint.guards.turns import only_migrator
from db.engines import create_migration_engine
from tests.support.migrations import complaints, look, only_postgresql
from tests.support.poolers import needs_pgbouncer, pooling
from tests.support.service import alembic, query

pytestmark = [pytest.mark.slow, needs_pgbouncer]


@only_postgresql
@pytest.mark.parametrize("more", ["", "server_round_robin = 1\n"], ids=["last used first", "round robin"])
def test_a_pooler_in_transaction_mode_is_refused(url: str, tmp_path: Path, more: str) -> None:
    before = look(url)

    with pooling(url, tmp_path, more=more) as through, ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda _: alembic(through, "downgrade", "-1"), range(3)))
        locks = query(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")

    for result in results:
        assert result.returncode == 1
        line = complaints(result)[-1]
        assert "through a pooler in transaction mode" in line
        assert f"port ({make_url(url).port or 5432}), not through the pooler's ({make_url(through).port})" in line
    assert locks == [(0,)]
    assert look(url) == before


@only_postgresql
def test_a_pooler_in_session_mode_is_allowed(url: str, tmp_path: Path) -> None:
    with pooling(url, tmp_path, pool_mode="session") as through:
        result = alembic(through, "upgrade", "head")

    assert result.returncode == 0, result.stderr


@only_postgresql
def test_whoever_holds_the_turn_keeps_no_snapshot(url: str) -> None:
    with only_migrator(create_migration_engine(url), 1):
        held = query(
            url,
            "SELECT backend_xmin, backend_xid FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND datname = current_database()",
        )

    # CREATE INDEX CONCURRENTLY waits for those who keep one.
    assert held == [(None, None)]
