"""The load, what it cost, and whether everything that was answered was stored."""

import http.client
import json
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench.contenders import Contender, serving
from bench.engines import Engine, count_rows, fresh_database
from models import RegistrationAnswer

SCRIPT = Path(__file__).with_name("register.lua")
WARM_UP = 2
"""Seconds of load before the measured ones: connections open, statements are compiled and prepared."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much, over how many connections, for how many seconds."""

    connections: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one load showed; latencies are milliseconds, CPU times are milliseconds per answer.

    disturbance is how many cores were busy with anything but server, database and wrk.
    """

    answers: int
    failures: int
    rate: float
    p50: float
    p99: float
    server_cpu: float = 0
    database_cpu: float = 0
    disturbance: float = 0


def measure(contender: Contender, engine: Engine, database: str, load: Load, folder: Path) -> Measurement:
    """Serve the contender on a fresh database, put it under load, and check that nothing was lost or halved."""
    with fresh_database(engine, database) as url:
        with serving(contender, url, folder) as (server_pid, port):
            check_answer(contender, port)
            warm_up = run_wrk(contender, port, replace(load, seconds=WARM_UP), "warm")
            before = cpu_seconds(server_pid, engine)
            measured = run_wrk(contender, port, load, "load")
            after = cpu_seconds(server_pid, engine)
        # Only now, since the server stores what it accepted before it ends.
        check_rows(contender, url, 1 + warm_up.answers + measured.answers)
    server_cpu, database_cpu, wrk_cpu, machine_cpu = (late - early for early, late in zip(before, after, strict=True))
    return replace(
        measured,
        server_cpu=server_cpu * 1000 / measured.answers,
        database_cpu=database_cpu * 1000 / measured.answers,
        disturbance=max(0, machine_cpu - server_cpu - database_cpu - wrk_cpu) / load.seconds,
    )


def check_answer(contender: Contender, port: int) -> None:
    """Register one user, and end the benchmark unless the answer is what Savepoint answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"username": "first", "email": "first@example.com"})
    connection.request("POST", contender.path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 201 or RegistrationAnswer.model_validate_json(answer).user.username != "first":
        sys.exit(f"{contender.name} answered {response.status}: {answer.decode()}")
    connection.close()


def run_wrk(contender: Contender, port: int, load: Load, prefix: str) -> Measurement:
    """Register users, one request at a time on each connection; end the benchmark where an answer is not 2xx."""
    # As patient as SQLite's busy_timeout in bench/usual.py: what is slow is counted as slow, not left out.
    wrk = f"wrk -t1 -c{load.connections} -d{load.seconds}s --timeout 30s -s"
    url = f"http://127.0.0.1:{port}{contender.path}"
    output = subprocess.run([*wrk.split(), SCRIPT, url, "--", prefix], stdout=subprocess.PIPE, text=True, check=True)
    measurement = Measurement(**json.loads(output.stdout.splitlines()[-1]))
    if measurement.failures or not measurement.answers:
        sys.exit(f"{contender.name} failed {measurement.failures} requests:\n{output.stdout}")
    return measurement


def check_rows(contender: Contender, url: str, answers: int) -> None:
    """End the benchmark where an answer of 2xx is not in the database, whole."""
    users, profiles, access_tokens = count_rows(url)
    # There may be more users than answers: wrk hangs up on what is still under way at the end.
    if contender.stores and not (answers <= users == profiles == access_tokens):
        stored = f"{users} users, {profiles} profiles, {access_tokens} access tokens"
        sys.exit(f"{contender.name} answered {answers} registrations and stored {stored}.")


def cpu_seconds(server_pid: int, engine: Engine) -> tuple[float, float, float, float]:
    """The CPU time that the server, the database server, wrk and the whole machine have used so far."""
    wrk = resource.getrusage(resource.RUSAGE_CHILDREN)
    machine = psutil.cpu_times()
    return (
        tree_cpu_seconds(server_pid),
        tree_cpu_seconds(engine.server.get_pid()) if engine.server else 0,
        wrk.ru_utime + wrk.ru_stime,
        sum(machine) - machine.idle - getattr(machine, "iowait", 0),
    )


def tree_cpu_seconds(pid: int | None) -> float:
    """The CPU time of a process and its descendants, those that have ended included."""
    process = psutil.Process(pid)
    seconds = 0.0
    for each in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            # The time of a child that has ended is kept by its parent.
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
