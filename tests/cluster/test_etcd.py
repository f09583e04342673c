"""etcd loses one member, or all of them: the leader goes on."""

import time

from tests.support.attack import Attack


def test_one_member_of_etcd_is_killed(attack: Attack) -> None:
    with attack("one of three etcd killed, the leader's") as cluster:
        leader = cluster.node_as("leader")
        leader.kill("etcd")
        time.sleep(25)
        assert cluster.node_as("leader") is leader
        leader.start_etcd()

    attack.assert_nothing_lost()


def test_all_of_etcd_is_killed(attack: Attack) -> None:
    with attack("all etcd killed for 40 s") as cluster:
        leader = cluster.node_as("leader")
        for node in cluster.nodes:
            node.kill("etcd")
        time.sleep(40)
        for node in cluster.nodes:
            node.start_etcd()
        cluster.wait_until_whole()
        assert cluster.node_as("leader") is leader

    attack.assert_nothing_lost()
