"""`python -m bench`: every workload on every engine, all contenders in alternation; results.md and its plots."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path

from bench.batches import IMPORT, measure_batches, measure_import
from bench.contenders import CONTENDERS, QUICK, SAVEPOINT, WATCHED, Contender
from bench.engines import Engine, both_engines, create_database, tidy
from bench.filling import fill_database
from bench.load import BUSY, LONG_WARM_UP, Load
from bench.measure import Step, measure
from bench.report import write_report
from bench.results import Case, Results
from bench.workloads import ME, REGISTRATION, SPREAD, WORKLOADS

KEPT = Path(__file__).parent
"""Where results.md and its plots are, as a run without options writes them."""
PARTS = Path(tempfile.gettempdir(), "savepoint-bench")

ACCOUNTS = 10_000
PAYMENTS = 25
"""Payments made and got by each account, so that a statement fills a page."""

SIZES = (10_000, 100_000, 1_000_000)
"""Users of the databases that growth is measured on, each with an account and a transfer."""
SOAKED = 1_000_000
"""Requests after which a worker's memory is looked at."""


def main() -> None:
    """Run the parts, and write what they showed."""
    options = read_options()
    if shutil.which("wrk") is None:
        sys.exit("The benchmark needs wrk: apt-get install wrk")
    results = Results()
    options.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as name, both_engines(Path(name)) as both:
        engines, folder = [engine for engine in both if engine.name in options.engines], Path(name)
        for engine in engines:
            make_template(engine, "compared", ACCOUNTS, PAYMENTS)
        if options.part == "soak":
            for engine in engines:
                soak(engine, folder)
            return
        if options.part in ("all", "quick", "comparison"):
            run(results, options.rounds, list(comparison(options, engines)), folder)
        if options.part in ("all", "batches"):
            run_batches(results, options, engines, folder)
        if options.part in ("all", "growth"):
            for engine, size in product(engines, options.sizes):
                make_template(engine, f"size_{size}", size, 0)
            run(results, options.rounds, list(growth(options, engines)), folder)
    write_report(results, options, engines)


def read_options() -> argparse.Namespace:
    """The part to run, and how long."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare with others, side by side.")
    parts = ("all", "quick", "comparison", "batches", "growth", "soak")
    parser.add_argument("part", nargs="?", choices=parts, default="all")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, BUSY, 128])
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--engines", nargs="+", choices=("SQLite", "PostgreSQL"), default=["SQLite", "PostgreSQL"])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="users, where growth is measured")
    parser.add_argument("--into", type=Path, help="folder of the results; left out, a temporary one")
    if "quick" in sys.argv[1:]:
        parser.set_defaults(connections=[1, 8, 128], seconds=1, rounds=1)
    options = parser.parse_args()
    # Only a whole run replaces the results that are kept.
    options.into = options.into or (KEPT if len(sys.argv) == 1 else PARTS)
    return options


def make_template(engine: Engine, name: str, users: int, payments: int) -> None:
    """Make the database that runs begin with a copy of."""
    fill_database(create_database(engine, name), users, payments)
    tidy(engine, name)


Run = tuple[Contender, Sequence[Step], Engine, str]


def comparison(options: argparse.Namespace, engines: list[Engine]) -> Iterator[Run]:
    """The contenders with every workload, over few connections and many; and Savepoint once more, watched."""
    loads = [Load(ACCOUNTS, connections, options.seconds) for connections in options.connections]
    for engine in engines:
        contenders = QUICK[engine.name] if options.part == "quick" else (*CONTENDERS[engine.name], WATCHED)
        for contender in contenders:
            steps = [(each, loads) for each in contender.workloads if each.name in options.workloads]
            if steps:
                yield contender, steps, engine, "compared"


def growth(options: argparse.Namespace, engines: list[Engine]) -> Iterator[Run]:
    """Savepoint on databases of each size."""
    for engine, size in product(engines, options.sizes):
        steps = [
            (each, [Load(size, BUSY, options.seconds, options.seconds if each is ME else LONG_WARM_UP)])
            for each in (SPREAD, REGISTRATION, ME)
            if each.name in options.workloads
        ]
        yield SAVEPOINT, steps, engine, f"size_{size}"


def run_batches(results: Results, options: argparse.Namespace, engines: list[Engine], folder: Path) -> None:
    """Batches and the import on each engine, once in each round."""
    for number, engine in product(range(options.rounds), engines):
        measured = chain(
            measure_batches(engine, ACCOUNTS, options.seconds, folder), [(IMPORT, measure_import(engine, folder))]
        )
        for batches, figures in measured:
            results.batches.setdefault((engine.name, batches), []).append(figures)
            shown = ", ".join(f"{name}: {figure:,.0f}" for name, figure in figures.items())
            print(f"Round {number + 1}, {engine.name}, {batches}: {shown}", file=sys.stderr)


def soak(engine: Engine, folder: Path) -> None:
    """Send one worker a million requests, and print how much memory it takes in the end."""
    answers = 0

    def steps() -> Iterator[Step]:
        while answers < SOAKED:
            yield from ((workload, [Load(ACCOUNTS, 128, 30)]) for workload in (ME, SPREAD, REGISTRATION, ME))

    for _, _, measured in measure(SAVEPOINT, steps(), engine, "compared", folder):
        answers += measured.answers
        print(f"{engine.name}: after {answers:,} requests, {measured.memory:.0f} MB at most")


def run(results: Results, rounds: int, runs: list[Run], folder: Path) -> None:
    """All of them once in each round, each round beginning with another one."""
    for number in range(rounds):
        first = number * len(runs) // rounds
        for contender, steps, engine, template in runs[first:] + runs[:first]:
            for workload, load, measured in measure(contender, steps, engine, template, folder):
                results.add(Case(engine.name, contender, workload, load.connections, template), measured)
                print(
                    f"Round {number + 1}, {engine.name}, {contender.name}, {workload.name}, {template}, "
                    f"{load.connections} connections: {measured.rate:,.0f}/s, {measured.failures} failed, "
                    f"other processes: {measured.disturbance:.1f} cores",
                    file=sys.stderr,
                )


if __name__ == "__main__":
    main()
