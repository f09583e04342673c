"""Patroni dies or freezes beside a PostgreSQL that lives on: with the prescribed fencing nothing is lost, without it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.attack import Attack, attacking
from tests.support.cluster import Cluster, Configuration, reason_to_skip
from tests.support.service import wait_until

STRICT = "    synchronous_mode_strict: true\n"
THROUGH_THE_DOOR = "host savepoint savepoint 127.0.0.1/32"


def restart_patroni_beside_postgresql(cluster: Cluster) -> None:
    """Kill the leader's Patroni alone, and start it again once another node leads, as systemd's KillMode=process may."""
    leader = cluster.node_as("leader")
    leader.kill("patroni")
    cluster.wait_for_leader_besides(leader)
    assert leader.postgresql("SELECT pg_is_in_recovery()") == "f"
    leader.start_patroni()


def test_patroni_is_killed_beside_its_postgresql(attack: Attack) -> None:
    with attack("leader's Patroni killed beside PostgreSQL, started again") as cluster:
        restart_patroni_beside_postgresql(cluster)

    attack.assert_nothing_lost()


def test_patroni_freezes_beside_its_postgresql(attack: Attack) -> None:
    with attack("leader's Patroni frozen beside PostgreSQL, and thawed") as cluster:
        leader = cluster.node_as("leader")
        leader.kill("patroni", "STOP")
        cluster.wait_for_leader_besides(leader)
        assert leader.postgresql("SELECT pg_is_in_recovery()") == "f"
        leader.kill("patroni", "CONT")

    attack.assert_nothing_lost()


def test_without_the_fencing_acknowledged_writes_are_lost(tmp_path: Path) -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)
    prescribed = Configuration.prescribed()
    assert STRICT in prescribed.patroni
    assert THROUGH_THE_DOOR in prescribed.patroni
    patroni = prescribed.patroni.replace(STRICT, "")
    unfenced = replace(
        prescribed,
        patroni=patroni.replace(THROUGH_THE_DOOR, "host savepoint savepoint 10.0.0.0/24"),
        url=prescribed.url.replace(":5000", ":5432"),
    )
    with attacking(unfenced, tmp_path) as attack:
        with attack("the same without fencing: no doors, not strict"):
            restart_patroni_beside_postgresql(attack.cluster)

        assert attack.figures is not None
        assert attack.figures.lost > 0
