"""The same with a PgBouncer between each door and its PostgreSQL."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.attack import attacking
from tests.support.cluster import Configuration, reason_to_skip, written


def test_a_leader_behind_a_pooler_is_killed(tmp_path: Path) -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)
    prescribed = Configuration.prescribed()
    pooled = replace(
        prescribed,
        haproxy=prescribed.haproxy.replace("here 127.0.0.1:5432", "here 127.0.0.1:6432"),
        pgbouncer=written("ini", "[pgbouncer]"),
    )
    with attacking(pooled, tmp_path) as attack:
        with attack("leader killed, through PgBouncer") as cluster:
            leader = cluster.node_as("leader")
            leader.kill_database()
            cluster.wait_for_leader_besides(leader)
            leader.start_patroni()

        attack.assert_nothing_lost()
