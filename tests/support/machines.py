"""Machines on a network of their own, made of Linux namespaces: each can be cut off, and is gone when its test ends.

Nothing of it is seen outside: no address, no process that stays behind. It needs root.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.service import wait_until

NAMESPACES = ("--net", "--pid", "--ipc", "--uts")


def missing_programs(*programs: str) -> str:
    """A sentence on why there can be no machines with these programs here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [each for each in ("unshare", "nsenter", "setpriv", "ip", *programs) if shutil.which(each) is None]
    return f"needs {', '.join(missing)}" if missing else ""


class Machine:
    """Processes with a network, a process table and some folders of their own, kept in `folder`."""

    def __init__(self, name: str, folder: Path, private: tuple[str, ...] = ()) -> None:
        """`private` are the folders that other machines have as well."""
        self.name = name
        self.folder = folder
        folder.mkdir()
        self.console = (folder / "console.log").open("wb")
        # It ends when this process closes its input, and all that it started with it: it is their init.
        self.shell = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash"],
            stdin=subprocess.PIPE,
            stdout=self.console,
            stderr=self.console,
            cwd="/",
        )
        self.type("ip link set lo up")
        for each in private:
            (folder / each.strip("/")).mkdir(parents=True)
            self.type(f"mkdir -p {each}; mount --bind {folder}{each} {each}")
        self.type(f"hostname {name}; echo up > {folder}/up")
        wait_until((folder / "up").exists, f"{name} to start")
        [self.init] = Path(f"/proc/{self.shell.pid}/task/{self.shell.pid}/children").read_text().split()

    def type(self, command: str) -> None:
        """Let the machine's shell do this, some time soon."""
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{command}\n".encode())
        self.shell.stdin.flush()

    def run(self, *command: str | Path, user: str = "root", text: str = "") -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            ["nsenter", "-t", self.init, *NAMESPACES, "--mount", *as_user(user), *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr or done.stdout}"
        return done.stdout

    def start(self, name: str, *command: str | Path, user: str = "root", **environment: str) -> None:
        """Start a process that stays, known by `name`, and writes to a log of that name."""
        pid = self.folder / f"{name}.pid"
        pid.unlink(missing_ok=True)
        words = [*(f"{key}={value!r}" for key, value in environment.items()), *as_user(user), *map(str, command)]
        self.type(f"{' '.join(words)} >> {self.folder}/{name}.log 2>&1 & echo $! > {pid}")
        wait_until(lambda: pid.exists() and pid.read_text() != "", f"{name} on {self.name}")

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self, name: str, signal: str = "KILL") -> None:
        """Send a signal to a process that was started."""
        self.run("kill", f"-{signal}", (self.folder / f"{name}.pid").read_text().strip())

    def signal_all(self, signal: str, user: str = "root") -> None:
        """Send a signal to all processes of a user on this machine, or to all but its init."""
        # kill spares the one who asks and the init.
        self.run("bash", "-c", f"kill -{signal} -1 || true", user=user)

    def close(self) -> None:
        """End it, and everything on it, as a power cut does."""
        assert self.shell.stdin is not None
        if self.shell.poll() is None:
            self.shell.kill()
        self.shell.stdin.close()
        self.shell.wait()
        self.console.close()


def as_user(user: str) -> list[str]:
    """The start of a command that runs as another user than root."""
    return [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]


class Network:
    """A switch, and the machines that are plugged into it."""

    def __init__(self, folder: Path) -> None:
        self.switch = Machine("switch", folder / "switch")
        self.link("add", "name", "bridge", "type", "bridge")
        self.link("set", "bridge", "up")
        self.machines: list[Machine] = []

    def add(self, machine: Machine, address: str) -> None:
        self.link("add", "name", machine.name, "type", "veth", "peer", "name", "eth0", "netns", machine.init)
        self.link("set", machine.name, "master", "bridge", "up")
        machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
        self.machines.append(machine)

    def cut_off(self, machine: Machine) -> None:
        """Let every packet from and to a machine vanish, so that nobody is told that it is gone."""
        self.link("set", machine.name, "nomaster")

    def plug_in(self, machine: Machine) -> None:
        self.link("set", machine.name, "master", "bridge")

    def link(self, *words: str) -> None:
        """Change the switch's cables. It shares the process table, so that machines are known by their process."""
        subprocess.run(["nsenter", "-t", self.switch.init, "--net", "ip", "link", *words], check=True)


@contextmanager
def networking(folder: Path) -> Iterator[Network]:
    """A network without machines; in the end, all of its machines end."""
    network = Network(folder)
    try:
        yield network
    finally:
        for machine in [*network.machines, network.switch]:
            machine.close()
