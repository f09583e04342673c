"""`python -m bench`: every contender on every engine in alternation, and the medians as a table."""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from bench.contenders import CONTENDERS, USUAL, Contender
from bench.engines import Engine, both_engines
from bench.load import Load, Measurement, measure

RESULTS = Path(__file__).with_name("results.md")

HEADING = """\
| engine | contender | requests/s | p50 ms | p99 ms | server CPU ms/request | database CPU ms/request | × usual |
|---|---|--:|--:|--:|--:|--:|--:|
"""

Rounds = dict[Contender, list[Measurement]]


def main() -> None:
    """Run the rounds, and print and keep their medians."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare with the usual way, side by side.")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=8, help="of load for each contender and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("The benchmark needs wrk: apt-get install wrk")
    load = Load(options.connections, options.seconds)
    table, disturbance = HEADING, 0.0
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as folder, both_engines(Path(folder)) as engines:
        for engine in engines:
            rounds = run_rounds(engine, load, options.rounds, Path(folder))
            table += "".join(format_row(engine, contender, rounds) for contender in CONTENDERS)
            disturbance = max(disturbance, *(each.disturbance for every in rounds.values() for each in every))
    report = f"{describe(engines, load, options.rounds, disturbance)}\n{table}"
    RESULTS.write_text(report)
    print(report, end="")


def run_rounds(engine: Engine, load: Load, count: int, folder: Path) -> Rounds:
    """Every contender once in each round, each round beginning with another one."""
    rounds: Rounds = {contender: [] for contender in CONTENDERS}
    for number in range(count):
        first = number % len(CONTENDERS)
        for contender in CONTENDERS[first:] + CONTENDERS[:first]:
            database = f"round{number}_{CONTENDERS.index(contender)}"
            measurement = measure(contender, engine, database, load, folder)
            rounds[contender].append(measurement)
            print(
                f"{engine.name}, round {number + 1}, {contender.name}: {measurement.rate:,.0f}/s, "
                f"other processes: {measurement.disturbance:.1f} cores",
                file=sys.stderr,
            )
    return rounds


def format_row(engine: Engine, contender: Contender, rounds: Rounds) -> str:
    """The medians of one contender on one engine."""
    measurements = rounds[contender]
    # Round by round, since what else the machine does changes from one round to the next.
    ratios = [own.rate / usual.rate for own, usual in zip(measurements, rounds[USUAL], strict=True)]

    def median(name: str, digits: int) -> str:
        return f"{statistics.median(getattr(each, name) for each in measurements):,.{digits}f}"

    cells = (
        engine.name,
        contender.name,
        median("rate", 0),
        median("p50", 1),
        median("p99", 1),
        median("server_cpu", 2),
        median("database_cpu", 2) if engine.server else "–",
        f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
    )
    return f"| {' | '.join(cells)} |\n"


def describe(engines: Iterable[Engine], load: Load, rounds: int, disturbance: float) -> str:
    """When, where and by which command this was measured, and what it means."""
    versions = ", ".join(f"{engine.name} {engine.version}" for engine in engines)
    return f"""\
# POST /register: user, profile and first access token

Measured on {datetime.now(UTC):%Y-%m-%d} by `{" ".join(["python -m bench", *sys.argv[1:]])}`: one uvicorn worker, \
{load.connections} connections, medians of {rounds} rounds of {load.seconds} s.
{os.cpu_count()} cores ({platform.machine()}) shared by server, database and wrk, and with other processes, which \
kept up to {disturbance:.1f} of them busy; Python {platform.python_version()}, {versions}.
Every answer was 201, and each was found in the database, whole. Latencies are as wrk reports them, corrected for \
coordinated omission.
× usual: requests/s against the usual way of the same round, median (lowest to highest).
"""


if __name__ == "__main__":
    main()
