"""`python -m bench`: every workload on every engine, all contenders in alternation, and the medians as tables."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from bench.contenders import CONTENDERS
from bench.engines import Engine, both_engines, create_database, tidy
from bench.load import Load
from bench.measure import measure
from bench.report import Rounds, describe, format_table
from bench.workloads import WORKLOADS, Workload, fill_database

RESULTS = Path(__file__).with_name("results.md")


def main() -> None:
    """Run the rounds, and print their medians; keep those of a run without options."""
    parser = option_parser()
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("The benchmark needs wrk: apt-get install wrk")
    load = Load(options.connections, options.seconds)
    workloads = [workload for workload in WORKLOADS if workload.name in options.workloads]
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as folder, both_engines(Path(folder)) as both:
        engines = [engine for engine in both if engine.name in options.engines]
        for engine in engines:
            for template, accounts in {workload.template: workload.accounts for workload in workloads}.items():
                make_template(engine, template, accounts)
        results = [
            {engine.name: run_rounds(engine, workload, load, options.rounds, Path(folder)) for engine in engines}
            for workload in workloads
        ]
    report = describe(engines, load, [rounds for by_engine in results for rounds in by_engine.values()])
    report += "".join(map(format_table, workloads, results))
    print(report, end="")
    if options == parser.parse_args([]):
        RESULTS.write_text(report)


def option_parser() -> argparse.ArgumentParser:
    """The options that run a part of it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compare with the usual way, side by side. A run without options is kept in bench/results.md.",
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=4, help="of load for each contender and round")
    parser.add_argument("--rounds", type=int, default=3)
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--engines", nargs="+", choices=("SQLite", "PostgreSQL"), default=["SQLite", "PostgreSQL"])
    return parser


def make_template(engine: Engine, name: str, accounts: int) -> None:
    """Make the database that runs begin with a copy of."""
    url = create_database(engine, name)
    # One without users stays as Alembic leaves it: once PostgreSQL was told that the tables are empty, it would plan
    # to read them from end to end, and keep to that while they grow.
    if accounts:
        asyncio.run(fill_database(url, accounts))
        tidy(engine, name)


def run_rounds(engine: Engine, workload: Workload, load: Load, count: int, folder: Path) -> Rounds:
    """Every contender once in each round, each round beginning with another one."""
    contenders = [contender for contender in CONTENDERS if engine.server or not contender.postgresql_only]
    rounds: Rounds = {contender: [] for contender in contenders}
    for number in range(count):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            what = f"{workload.name}, {engine.name}, round {number + 1}, {contender.name}"
            print(what, end=": ", file=sys.stderr, flush=True)
            measured = measure(contender, workload, engine, load, folder)
            rounds[contender].append(measured)
            print(f"{measured.rate:,.0f}/s, other processes: {measured.disturbance:.1f} cores", file=sys.stderr)
    return rounds


if __name__ == "__main__":
    main()
