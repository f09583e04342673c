"""The medians as a page: targets, plots, tables."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from bench.contenders import CONTENDERS, PGBENCH, SAVEPOINT, USUAL, WATCHED
from bench.engines import Engine
from bench.load import BUSY, LONG_WARM_UP
from bench.plot import Chart, draw
from bench.results import ENGINES, Case, Results, Target, compared_workloads, spread_of, targets
from bench.workloads import SPREAD, WORKLOADS, Workload

CONNECTIONS = "connections"
USERS = "users, accounts and transfers"
FIGURES = {"p50 ms": ("p50", 1), "p99 ms": ("p99", 1), "server CPU": ("server_cpu", 2)}
FIGURES |= {"database CPU": ("database_cpu", 2), "peak MB": ("memory", 0)}


def write_report(results: Results, options: argparse.Namespace, engines: Sequence[Engine]) -> None:
    """Write results.md and the plots it shows."""
    pictures = {
        "throughput": ("Requests a second against connections", throughput(results)),
        "why": ("Why it is fast: the more calls wait, the more share a transaction", why(results)),
        "growth": ("Growth: Savepoint, 1 worker, as the database grows", growth(results)),
    }
    page = [describe(results, options, engines), "\n## Targets\n", *map(format_target, targets(results))]
    for name, (title, charts) in pictures.items():
        if charts:
            (options.into / f"{name}.svg").write_text(draw(charts))
            page.append(f"\n## {title}\n\n![{title}]({name}.svg)")
    for engine in ENGINES:
        page += [format_table(results, engine, each) for each in compared_workloads(results, engine)]
    (options.into / "results.md").write_text("\n".join(page) + "\n")
    print(f"Written: {options.into / 'results.md'}")


def describe(results: Results, options: argparse.Namespace, engines: Sequence[Engine]) -> str:
    """When, where and by which command this was measured, and what it means."""
    versions = ", ".join(f"{engine.name} {engine.version}" for engine in engines)
    measurements = [each for rounds in results.rounds.values() for each in rounds]
    failures = [
        f"{case.contender.name}, {case.engine}, {case.workload.name}, {case.connections} connections: "
        f"{sum(each.failures for each in rounds):,} of {sum(each.answers + each.failures for each in rounds):,}"
        for case, rounds in results.rounds.items()
        if any(each.failures for each in rounds)
    ]
    return f"""\
# Savepoint, the usual way, and pgbench under the same load

Measured on {datetime.now(UTC):%Y-%m-%d} by `{" ".join(["python -m bench", *sys.argv[1:]])}`: medians of \
{options.rounds} rounds, in each of which all contenders take turns, with {options.seconds} s of load at {BUSY} \
connections and {min(2, options.seconds)} s at other numbers of them. From round to round, requests a second differ by \
{spread_of(results):.0f} % on average.
{os.cpu_count()} cores ({platform.machine()}) shared by server, database and wrk, and with other processes, which \
kept up to {max(each.disturbance for each in measurements):.1f} of them busy; Python {platform.python_version()}, \
{versions}.
Each answer of 2xx was found in the database, whole, and the audit found the books right after each run. \
Requests that failed: {"; ".join(failures) or "none"}.

- The usual way: [usual_sync.py](usual_sync.py) and [usual_async.py](usual_async.py), a session per request, the ORM, \
SELECT … FOR UPDATE; the same tables, constraints and answers.
- pgbench sends the same statements ([.sql](.)) straight to the database, one transaction at a time on each \
connection, prepared.
- Two workers have a port each, and half of the connections, as behind a proxy that shares them out.
- The ceiling: [ceiling.py](ceiling.py), FastAPI with the same bodies and answers, and nothing behind it.
- Growth is measured after {LONG_WARM_UP} s of load, once what is used of the database is in the caches; that adds \
some ten thousand transfers and users.
- 10,000 users with 50 entries each. Latencies are corrected for coordinated omission, as wrk does it. \
CPU is in ms per request, of all processes (SQLite is part of the server). Peak MB are the server's processes added up.
"""


def format_target(target: Target) -> str:
    """Whether it was met, and by which figures."""
    if not target.values:
        return f"- not measured: {target.words}"
    shown = "; ".join(f"{name}: {value:.2g}" for name, value in target.worst_first[:3])
    more = len(target.values) - 3
    rest = f"; {more} more are better" if more > 0 else ""
    return f"- **{'met' if target.met else 'missed'}**: {target.words}. {shown}{rest}"


def format_table(results: Results, engine: str, workload: Workload) -> str:
    """The contenders with one workload on one engine."""
    columns = ["contender", *(f"{each}" for each in results.connections()), "p50 ms at 1", *FIGURES]
    columns += ["× usual", "× pgbench"] if engine == "PostgreSQL" else ["× usual"]
    rows = [
        f"\n## {engine}: {workload.title}\n",
        f"Requests a second by connections; latency, CPU and memory at {BUSY}; ×: each at its best.\n",
        f"| {' | '.join(columns)} |",
        f"|---{'|--:' * (len(columns) - 1)}|",
    ]
    for contender in CONTENDERS:
        case = Case(engine, contender, workload)
        cells = [cell(results, case._replace(connections=each), "rate", 0) for each in results.connections()]
        cells.append(cell(results, case._replace(connections=1), "p50", 1))
        cells += [cell(results, case, figure, digits) for figure, digits in FIGURES.values()]
        for other in (USUAL, PGBENCH)[: len(columns) - len(cells) - 1]:
            try:
                cells.append(f"{results.times(engine, contender, other, workload):.2g}")
            except KeyError:
                cells.append("–")
        if set(cells) != {"–"}:
            rows.append(f"| {contender.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def cell(results: Results, case: Case, figure: str, digits: int) -> str:
    """A median; a dash where there is none."""
    value = results.median(case, figure) if case in results.rounds else 0
    return f"{value:,.{digits}f}" if value else "–"


def throughput(results: Results) -> list[Chart]:
    """Requests a second of all contenders."""
    return [
        chart
        for engine in ENGINES
        for workload in compared_workloads(results, engine)
        for chart in charts_of(
            f"{engine}, {workload.name}: requests/s",
            CONNECTIONS,
            results,
            {each.name: [Case(engine, each, workload, n) for n in results.connections()] for each in CONTENDERS},
            "rate",
        )
    ]


def why(results: Results) -> list[Chart]:
    """What happens in Savepoint while transfers come over more and more connections."""
    lines = {each: [Case(each, WATCHED, SPREAD, n) for n in results.connections()] for each in ENGINES}
    titles = {"Transfers in a batch": "batch_size", "Wait in queues: ms/request": "waited"}
    titles |= {"Server CPU: ms/request": "server_cpu", "Database CPU: ms/request": "database_cpu"}
    titles |= {"Requests/s": "rate", "p99: ms": "p99"}
    return [
        chart for title, figure in titles.items() for chart in charts_of(title, CONNECTIONS, results, lines, figure)
    ]


def growth(results: Results) -> list[Chart]:
    """Requests a second and p99 of databases of each size."""
    templates = sorted({case.template for case in results.rounds if case.template != "compared"}, key=size_of)
    charts: list[Chart] = []
    for title, figure in {"requests/s": "rate", "p99: ms": "p99"}.items():
        for workload in WORKLOADS:
            lines = {each: [Case(each, SAVEPOINT, workload, BUSY, size) for size in templates] for each in ENGINES}
            charts += charts_of(f"{workload.name}: {title}", USERS, results, lines, figure)
    return charts


def charts_of(title: str, below: str, results: Results, lines: dict[str, list[Case]], figure: str) -> Iterator[Chart]:
    """A chart of the medians, where all of a line were measured; none where there is no line.

    SQLite's CPU time is part of the server's: a line that is 0 everywhere would tell of something that is not there.
    """
    measured = {
        name: [results.median(case, figure) for case in cases]
        for name, cases in lines.items()
        if cases and all(case in results.rounds for case in cases)
    }
    measured = {name: line for name, line in measured.items() if any(line)}
    if measured:
        points = [point_of(case, below) for case in next(iter(lines.values()))]
        marks = [f"{point // 1000}k" if point >= 1000 else str(point) for point in points]
        yield Chart(title, below, marks, measured)


def point_of(case: Case, below: str) -> int:
    """Where a case stands in a chart."""
    return case.connections if below == CONNECTIONS else size_of(case.template)


def size_of(template: str) -> int:
    """How many users the database began with."""
    return int(template.removeprefix("size_"))
