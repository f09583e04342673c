"""The same with a PgBouncer between each door and its PostgreSQL."""

from collections.abc import Iterator

import pytest

from tests.support.attack import Attack


@pytest.fixture
def pooled(attack: Attack) -> Iterator[Attack]:
    """The cluster, with doors that lead to poolers while the test lasts, and a service that knows."""
    for node in attack.cluster.nodes:
        node.start_pgbouncer()
        node.kill("haproxy")
        node.start_door(6432)
    attack.cluster.home.kill("service")
    attack.cluster.serve("&target_session_attrs=any")
    yield attack
    for node in attack.cluster.nodes:
        node.kill("haproxy")
        node.start_door()
    attack.cluster.home.kill("service")
    attack.cluster.serve()


def test_a_leader_behind_a_pooler_is_killed(pooled: Attack) -> None:
    with pooled("leader killed, through PgBouncer") as cluster:
        leader = cluster.node_as("leader")
        leader.kill_database()
        cluster.wait_for_leader_besides(leader)
        leader.start_pgbouncer()
        leader.start_patroni()
        pooled_by = leader.log("pgbouncer")

    assert "login attempt" in pooled_by
    pooled.assert_nothing_lost()
