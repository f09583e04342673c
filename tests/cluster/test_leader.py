"""The leader dies, freezes, is cut off or hands over: nothing that was acknowledged is lost, and writes go on."""

import time

from tests.support.attack import Attack


def test_a_leader_that_is_killed(attack: Attack) -> None:
    with attack("leader killed: PostgreSQL and Patroni") as cluster:
        leader = cluster.node_as("leader")
        leader.kill_database()
        cluster.wait_for_leader_besides(leader)
        leader.start_patroni()

    attack.assert_nothing_lost()


def test_a_leader_that_is_frozen(attack: Attack) -> None:
    with attack("leader's machine frozen, and thawed") as cluster:
        leader = cluster.node_as("leader")
        leader.signal_all("STOP")
        cluster.wait_for_leader_besides(leader)
        time.sleep(10)
        leader.signal_all("CONT")

    attack.assert_nothing_lost()


def test_a_leader_whose_database_is_frozen(attack: Attack) -> None:
    with attack("leader's PostgreSQL and Patroni frozen, and thawed") as cluster:
        leader = cluster.node_as("leader")
        leader.signal_all("STOP", user="postgres")
        cluster.wait_for_leader_besides(leader)
        time.sleep(10)
        leader.signal_all("CONT", user="postgres")

    attack.assert_nothing_lost()


def test_a_leader_that_is_cut_off(attack: Attack) -> None:
    with attack("leader cut off, and back") as cluster:
        leader = cluster.node_as("leader")
        cluster.network.cut_off(leader)
        cluster.wait_for_leader_besides(leader)
        time.sleep(10)
        cluster.network.plug_in(leader)

    attack.assert_nothing_lost()


def test_a_switchover(attack: Attack) -> None:
    with attack("switchover") as cluster:
        leader, candidate = cluster.node_as("leader"), cluster.node_as("sync_standby")
        cluster.tell_patroni(leader, "POST", "/switchover", {"leader": leader.name, "candidate": candidate.name})
        cluster.wait_for_leader_besides(leader)

    attack.assert_nothing_lost()
