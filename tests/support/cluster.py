"""Three PostgreSQL servers under Patroni and etcd, each on a machine of its own, as docs/cluster.md configures them."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.machines import Machine, Network, missing_programs, networking
from tests.support.service import OPERATOR_TOKEN, ROOT, wait_until

DOCUMENT = ROOT / "docs" / "cluster.md"
PATRONI = "/etc/patroni/config.yml"
HAPROXY = "/etc/haproxy/haproxy.cfg"
PGBOUNCER = "/etc/pgbouncer"
PRIVATE = ("/etc/patroni", "/etc/haproxy", PGBOUNCER, "/var/lib/postgresql", "/run/postgresql", "/var/lib/etcd")
"""Folders that the configurations name, and that each node has to itself."""

VENV = ROOT / ".patroni"
"""Where Patroni is installed; the nodes see it as /opt."""

POSTGRES = Path("/usr/lib/postgresql/15/bin/postgres")


def reason_to_skip() -> str:
    """A sentence on what is missing here; empty if a cluster can run."""
    if missing := missing_programs("etcd", "haproxy", "pgbouncer", "curl"):
        return missing
    if not POSTGRES.exists():
        return "needs Debian's postgresql-15"
    return "" if (VENV / "bin" / "patroni").exists() else "needs Patroni, which make cluster installs"


def written(language: str, about: str) -> str:
    """The document's block in this language that has these words in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    [block] = [each for each in blocks if about in each]
    return str(block)


STARTED = "Application startup complete"
"""What the service logs once it answers."""


@dataclass(frozen=True)
class Configuration:
    """What the document prescribes, for its node1, or a change of it."""

    patroni: str
    etcd: str
    haproxy: str
    roles: str
    service: dict[str, str]
    """The service's settings."""
    pgbouncer: str

    @classmethod
    def prescribed(cls) -> "Configuration":
        return cls(
            patroni=written("yaml", PATRONI),
            etcd=written("ini", "ETCD_NAME"),
            haproxy=written("haproxy", "listen door"),
            pgbouncer=written("ini", "[pgbouncer]"),
            roles=written("sql", "CREATE DATABASE savepoint"),
            service=dict(line.split("=", 1) for line in written("sh", "DATABASE_URL").splitlines()),
        )


class Node(Machine):
    """A machine with PostgreSQL, Patroni, etcd and a door."""

    def __init__(self, number: int, folder: Path, configuration: Configuration) -> None:
        super().__init__(f"node{number}", folder / f"node{number}", PRIVATE)
        self.address = f"10.0.0.{number}"
        self.type(f"mount --bind {VENV} /opt")
        for own in ("var/lib/postgresql", "run/postgresql"):
            self.run("chown", "postgres:", f"/{own}")
        patroni = configuration.patroni.replace("name: node1", f"name: {self.name}")
        patroni = patroni.replace("connect_address: 10.0.0.1", f"connect_address: {self.address}")
        (folder / self.name / PATRONI.strip("/")).write_text(patroni)
        self.haproxy = configuration.haproxy
        private = folder / self.name / PGBOUNCER.strip("/")
        (private / "pgbouncer.ini").write_text(configuration.pgbouncer)
        (private / "userlist.txt").write_text('"savepoint" "change-me"\n')
        self.etcd: dict[str, str] = {}
        for line in configuration.etcd.splitlines():
            if not line.startswith("#"):
                key, value = line.split("=", 1)
                if not key.startswith("ETCD_INITIAL_CLUSTER"):
                    value = value.replace("node1", self.name).replace("10.0.0.1", self.address)
                self.etcd[key] = value

    def start_etcd(self) -> None:
        self.start("etcd", "etcd", **self.etcd)

    def start_door(self, port: int = 5432) -> None:
        """Start HAProxy, leading to PostgreSQL, or to the PgBouncer before it."""
        assert "127.0.0.1:5432" in self.haproxy
        configuration = self.haproxy.replace("127.0.0.1:5432", f"127.0.0.1:{port}")
        (self.folder / HAPROXY.strip("/")).write_text(configuration)
        self.start("haproxy", "haproxy", "-db", "-f", HAPROXY)

    def start_pgbouncer(self) -> None:
        self.start("pgbouncer", "pgbouncer", f"{PGBOUNCER}/pgbouncer.ini", user="postgres")

    def start_patroni(self) -> None:
        self.start("patroni", "/opt/bin/python", "-m", "patroni", PATRONI, user="postgres")

    def kill_database(self) -> None:
        """Kill Patroni and PostgreSQL, as systemd does with KillMode=mixed when Patroni has died."""
        self.signal_all("KILL", user="postgres")

    def postgresql(self, sql: str, database: str = "postgres") -> str:
        """What this node's PostgreSQL says itself, whether or not its door is open."""
        words = ("-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/run/postgresql", "-d", database)
        return self.run("psql", *words, user="postgres", text=sql).strip()


@dataclass
class Cluster:
    """The nodes, and the machine that the service runs on."""

    network: Network
    nodes: list[Node]
    home: Machine
    configuration: Configuration

    def members(self, asked: Node | None = None) -> dict[str, dict[str, Any]]:
        """What Patroni says of each node, by name; nothing if no node answers."""
        for node in [asked] if asked else self.nodes:
            with suppress(AssertionError):
                answer = self.home.run("curl", "-sfm", "2", f"http://{node.address}:8008/cluster")
                return {member["name"]: member for member in json.loads(answer)["members"]}
        return {}

    def node_as(self, role: str) -> Node:
        """The node in this role: leader, sync_standby or replica."""
        members = self.members()
        [node] = [each for each in self.nodes if members.get(each.name, {}).get("role") == role]
        return node

    def stored(self) -> list[str]:
        """The names of all writes that the leader has."""
        sql = "SELECT reference FROM transfers WHERE reference IS NOT NULL UNION ALL SELECT username FROM users"
        return self.node_as("leader").postgresql(sql, "savepoint").splitlines()

    def tell_patroni(self, node: Node, method: str, path: str, content: dict[str, Any]) -> str:
        url = f"http://{node.address}:8008{path}"
        login = "patroni:change-me"
        return self.home.run("curl", "-sS", "-m", "60", "-u", login, "-X", method, "-d", json.dumps(content), url)

    def is_whole(self) -> bool:
        """True if there are a leader, a synchronous standby and a replica, all of them alike, and all nodes say so."""
        views = [self.members(node) for node in self.nodes]
        # A node that was cut off remembers for a moment who was what before.
        if any(roles_in(view) != roles_in(views[0]) for view in views):
            return False
        members = views[0].values()
        roles = sorted(member["role"] for member in members)
        alike = {member.get("timeline") for member in members}
        is_behind = any(member.get("lag") not in (None, 0) for member in members if member["role"] != "leader")
        states = {member["state"] for member in members}
        return (
            roles == ["leader", "replica", "sync_standby"]
            and len(alike) == 1
            and states <= {"running", "streaming"}
            and not is_behind
        )

    def wait_until_whole(self, seconds: float = 90) -> None:
        wait_until(self.is_whole, "a leader, a synchronous standby and a replica", seconds)

    def wait_for_leader_besides(self, former: Node, seconds: float = 60) -> Node:
        """Wait until another node leads; that node."""

        def leads(node: Node) -> bool:
            with suppress(AssertionError):
                self.home.run("curl", "-sfm", "2", f"http://{node.address}:8008/primary")
                return True
            return False

        others = [node for node in self.nodes if node is not former]
        wait_until(lambda: any(map(leads, others)), f"a leader besides {former.name}", seconds)
        [leader] = [node for node in others if leads(node)]
        return leader

    def python(self, *words: str) -> str:
        """Run Python in the repository, on the service's machine, with the service's settings."""
        settings = [f"{name}={value}" for name, value in self.configuration.service.items()]
        settings.append(f"PATH={os.environ['PATH']}")
        return self.home.run("env", "-C", str(ROOT), *settings, sys.executable, *words)

    def serve(self, more: str = "") -> Path:
        """Start the service on its machine, with `more` in its URL; the socket that it listens to."""
        path = self.home.folder / "service"
        starts = self.home.log("service").count(STARTED)
        self.home.start(
            "service",
            *(sys.executable, "-m", "uvicorn", "--app-dir", ROOT, "main:app", "--uds", path, "--no-access-log"),
            *("--http", "server.protocol:BoundedProtocol"),
            **self.configuration.service | {"DATABASE_URL": self.configuration.service["DATABASE_URL"] + more},
            OPERATOR_TOKEN=OPERATOR_TOKEN,
        )
        wait_until(lambda: self.home.log("service").count(STARTED) > starts, "the service to start")
        return path


def roles_in(view: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: member["role"] for name, member in view.items()}


@contextmanager
def running_cluster(folder: Path, configuration: Configuration) -> Iterator[Cluster]:
    """A cluster whose database is at head."""
    with networking(folder) as network:
        nodes = [Node(number, folder, configuration) for number in (1, 2, 3)]
        home = Machine("home", folder / "home")
        cluster = Cluster(network, nodes, home, configuration)
        for node in nodes:
            network.add(node, node.address)
        network.add(home, "10.0.0.10")
        for node in nodes:
            node.start_etcd()
        for node in nodes:
            node.start_door()
            node.start_patroni()
        cluster.wait_until_whole()
        cluster.node_as("leader").postgresql(configuration.roles)
        cluster.python("-m", "alembic", "upgrade", "head")
        yield cluster
