"""Scenarios: something is done to a cluster while clients write; what they were told is compared with what is there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cluster import Cluster, Configuration, running_cluster
from tests.support.service import wait_until
from tests.support.writers import Figures, Writers, client_of

TABLE: dict[str, Figures] = {}
"""The figures of each scenario of this run."""

WITHIN = 30
"""Seconds within which each kind of write is acknowledged again, whatever happened."""


@dataclass
class Attack:
    """A cluster whose service is written to, in one scenario after the other."""

    cluster: Cluster
    socket: Path
    accounts: tuple[int, int]
    told: list[Writers] = field(default_factory=list)
    figures: Figures | None = None
    """Those of the last scenario."""

    @contextmanager
    def __call__(self, scenario: str) -> Iterator[Cluster]:
        """Write while something is done to the cluster, which must be whole again afterwards, by itself."""
        self.cluster.wait_until_whole()
        writers = Writers(self.socket, self.accounts)
        self.told.append(writers)
        writers.start()
        wait_until(lambda: writers.are_served(writers.since), "the first writes")
        yield self.cluster
        done = time.monotonic()
        wait_until(lambda: writers.are_served(done), "writes to be acknowledged again", 60)
        writers.stop()
        self.cluster.wait_until_whole()
        self.figures = TABLE[scenario] = writers.judge(self.cluster.stored())

    def assert_nothing_lost(self) -> None:
        """In the last scenario and all before it, while one and the same process served."""
        figures = self.figures
        assert figures is not None
        assert figures.acknowledged >= 200, figures
        assert (figures.lost, figures.doubled, figures.refused) == (0, 0, 0), figures
        assert figures.silence < WITHIN, figures
        stored = self.cluster.stored()
        assert [writers.judge(stored).lost for writers in self.told] == [0] * len(self.told)
        assert self.cluster.python("manage.py", "audit"), "the books are wrong"
        self.cluster.home.kill("service", "0")


@contextmanager
def attacking(configuration: Configuration, folder: Path) -> Iterator[Attack]:
    """A cluster with a service on it, and two accounts, of which one has money."""
    with running_cluster(folder, configuration) as cluster:
        socket = cluster.serve()
        with client_of(socket) as client:
            for name in ("alice", "bob"):
                registered = client.post("/register", json={"username": name, "email": f"{name}@example.com"})
                assert registered.status_code == 201
            listed = client.get("/accounts").json()["items"]
            alice, bob = (account["id"] for account in listed if account["user_id"] is not None)
            assert client.post("/deposits", json={"account_id": alice, "amount": 10**9}).status_code == 201
        yield Attack(cluster, socket, (alice, bob))
