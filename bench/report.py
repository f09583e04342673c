"""The medians as tables, and what they mean."""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from bench.contenders import PGBENCH, USUAL, Contender
from bench.engines import Engine
from bench.load import Load, Measurement
from bench.workloads import Workload

HEADING = """\

## {title}

| engine | contender | requests/s | p50 ms | p99 ms | server CPU ms/request | database CPU ms/request \
| × usual | × pgbench |
|---|---|--:|--:|--:|--:|--:|--:|--:|
"""

Rounds = dict[Contender, list[Measurement]]
"""The measurements of one workload on one engine, by contender, in order of rounds."""


def format_table(workload: Workload, results: dict[str, Rounds]) -> str:
    """The table of one workload; `results` are by the engines' names."""
    rows = [format_row(engine, contender, rounds) for engine, rounds in results.items() for contender in rounds]
    return HEADING.format(title=workload.title) + "".join(rows)


def format_row(engine: str, contender: Contender, rounds: Rounds) -> str:
    """The medians of one contender on one engine."""

    def median(name: str, digits: int) -> str:
        return f"{statistics.median(getattr(each, name) for each in rounds[contender]):,.{digits}f}"

    cells = (
        engine,
        contender.name,
        median("rate", 0),
        median("p50", 1),
        median("p99", 1),
        median("server_cpu", 2) if contender.app else "–",
        median("database_cpu", 2) if PGBENCH in rounds else "–",
        compare(rounds, contender, USUAL),
        compare(rounds, contender, PGBENCH) if PGBENCH in rounds else "–",
    )
    return f"| {' | '.join(cells)} |\n"


def compare(rounds: Rounds, contender: Contender, other: Contender) -> str:
    """How many times as many requests a second as the other: median (lowest to highest)."""
    if contender is other:
        return "1"
    # Round by round, since what else the machine does changes from one round to the next.
    ratios = [own.rate / its.rate for own, its in zip(rounds[contender], rounds[other], strict=True)]
    return f"{statistics.median(ratios):.2g} ({min(ratios):.2g} to {max(ratios):.2g})"


def describe(engines: Sequence[Engine], load: Load, rounds: Sequence[Rounds]) -> str:
    """When, where and by which command this was measured, and what it means."""
    versions = ", ".join(f"{engine.name} {engine.version}" for engine in engines)
    series = [measurements for each in rounds for measurements in each.values()]
    disturbance = max(each.disturbance for measurements in series for each in measurements)
    return f"""\
# Savepoint, the usual way, and pgbench under the same load

Measured on {datetime.now(UTC):%Y-%m-%d} by `{" ".join(["python -m bench", *sys.argv[1:]])}`: one uvicorn worker \
unless said otherwise, {load.connections} connections, medians of {len(series[0])} rounds of {load.seconds} s.
{os.cpu_count()} cores ({platform.machine()}) shared by server, database and wrk, and with other processes, which \
kept up to {disturbance:.1f} of them busy; Python {platform.python_version()}, {versions}.
Every answer was 201, and each was found in the database, whole; the audit found the books right after each run. \
Latencies are corrected for coordinated omission, as wrk does it.
The usual way is [usual.py](usual.py): a session per request, the ORM, SELECT … FOR UPDATE. pgbench sends the same \
statements straight to the database, one transaction at a time on each connection ([register.sql](register.sql), \
[transfer.sql](transfer.sql)). The ceiling is [ceiling.py](ceiling.py): FastAPI, and nothing behind it.
× usual, × pgbench: requests/s against theirs of the same round, median (lowest to highest).
"""
