"""The synchronous standby dies or is cut off: another one takes its place, and until then writes wait."""

from tests.support.attack import Attack
from tests.support.service import wait_until


def test_a_standby_that_is_killed(attack: Attack) -> None:
    with attack("synchronous standby killed") as cluster:
        standby, other = cluster.node_as("sync_standby"), cluster.node_as("replica")
        standby.kill_database()
        wait_until(lambda: cluster.members()[other.name]["role"] == "sync_standby", "the other standby")
        standby.start_patroni()

    attack.assert_nothing_lost()


def test_a_standby_that_is_cut_off(attack: Attack) -> None:
    with attack("synchronous standby cut off, and back") as cluster:
        standby, other = cluster.node_as("sync_standby"), cluster.node_as("replica")
        cluster.network.cut_off(standby)
        wait_until(lambda: cluster.members(other)[other.name]["role"] == "sync_standby", "the other standby", 60)
        cluster.network.plug_in(standby)

    attack.assert_nothing_lost()
