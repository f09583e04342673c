"""Patroni dies or freezes beside a PostgreSQL that lives on: behind the doors nothing is lost, without them it is."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.attack import Attack, attacking
from tests.support.cluster import Cluster, Configuration, reason_to_skip

THROUGH_THE_DOOR = "host savepoint savepoint 127.0.0.1/32"


def test_patroni_is_killed_beside_its_postgresql(attack: Attack) -> None:
    with attack("Patroni killed beside its living PostgreSQL, and back") as cluster:
        leader = cluster.node_as("leader")
        leader.kill("patroni")
        cluster.wait_for_leader_besides(leader)
        assert leader.postgresql("SELECT pg_is_in_recovery()") == "f"
        leader.start_patroni()

    attack.assert_nothing_lost()


def test_patroni_freezes_beside_its_postgresql(attack: Attack) -> None:
    with attack("Patroni frozen beside its living PostgreSQL, and thawed") as cluster:
        leader = cluster.node_as("leader")
        leader.kill("patroni", "STOP")
        cluster.wait_for_leader_besides(leader)
        assert leader.postgresql("SELECT pg_is_in_recovery()") == "f"
        leader.kill("patroni", "CONT")

    attack.assert_nothing_lost()


def release_commits_of_a_former_leader(cluster: Cluster) -> None:
    """Let a PostgreSQL that lost its role end its waiting commits as done.

    Patroni 3.0.2 does that by itself when it is started beside a living PostgreSQL.
    """
    leader = cluster.node_as("leader")
    leader.kill("patroni")
    cluster.wait_for_leader_besides(leader)
    # Commits that nobody will ever have besides this node.
    time.sleep(2)
    leader.postgresql("ALTER SYSTEM SET synchronous_standby_names = ''")
    leader.postgresql("SELECT pg_reload_conf()")
    time.sleep(2)
    leader.postgresql("ALTER SYSTEM RESET synchronous_standby_names")
    leader.start_patroni()


def test_behind_its_door_a_former_leader_has_no_commits_to_release(attack: Attack) -> None:
    with attack("a former leader stops waiting for its standby") as cluster:
        release_commits_of_a_former_leader(cluster)

    attack.assert_nothing_lost()


def test_without_doors_what_a_former_leader_releases_is_lost(tmp_path: Path) -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)
    prescribed = Configuration.prescribed()
    assert THROUGH_THE_DOOR in prescribed.patroni
    without_doors = replace(
        prescribed,
        patroni=prescribed.patroni.replace(THROUGH_THE_DOOR, "host savepoint savepoint 10.0.0.0/24"),
        service={name: value.replace(":5000", ":5432") for name, value in prescribed.service.items()},
    )
    with attacking(without_doors, tmp_path) as attack:
        with attack("**the same without doors**"):
            release_commits_of_a_former_leader(attack.cluster)

        assert attack.figures is not None
        assert attack.figures.lost > 0
