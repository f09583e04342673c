"""The medians as a page: targets, plots, tables."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.batches import CONNECTIONS as OTHERS
from bench.batches import FIGURES as BATCH_FIGURES
from bench.batches import PAUSE
from bench.contenders import CONTENDERS, PGBENCH, SAVEPOINT, USUAL, UVICORN, WATCHED
from bench.engines import Engine
from bench.load import BUSY, LONG_WARM_UP
from bench.plot import Chart, draw
from bench.results import ENGINES, Case, Results, compared_workloads, spread_of
from bench.targets import Target, targets
from bench.workloads import ME, REGISTRATION, SPREAD, WORKLOADS, Workload

CONNECTIONS = "connections"
USERS = "users, accounts and transfers"
FIGURES = {"p50 ms": "p50", "p99 ms": "p99", "server CPU": "server_cpu", "database CPU": "database_cpu"}
FIGURES |= {"peak MB": "memory"}


def write_report(results: Results, options: argparse.Namespace, engines: Sequence[Engine]) -> None:
    """Write results.md and the plots it shows."""
    pictures = {
        "throughput": ("Requests a second against connections", throughput(results)),
        "why": ("Why it is fast: the more calls wait, the more share a transaction", why(results)),
        "growth": ("Growth: Savepoint, 1 worker, as the database grows", growth(results)),
    }
    summary = format_summary(results)
    page = [describe(results, options, engines), "\n## Targets\n", *map(format_target, targets(results))]
    page += ["\n## Summary\n", summary]
    for name, (title, charts) in pictures.items():
        if charts:
            (options.into / f"{name}.svg").write_text(draw(charts))
            page.append(f"\n## {title}\n\n![{title}]({name}.svg)")
    for engine in ENGINES:
        page += [format_table(results, engine, each) for each in compared_workloads(results, engine)]
    if results.batches:
        page.append(format_batches(results))
    (options.into / "results.md").write_text("\n".join(page) + "\n")
    print(f"{summary}\n\nTargets, all tables and plots: {options.into / 'results.md'}")


def describe(results: Results, options: argparse.Namespace, engines: Sequence[Engine]) -> str:
    """When, where and by which command this was measured, and what it means."""
    versions = ", ".join(f"{engine.name} {engine.version}" for engine in engines)
    busy = max((each.disturbance for rounds in results.rounds.values() for each in rounds), default=0)
    failures = [
        f"{case.contender.name}, {case.engine}, {case.workload.name}, {case.connections} connections: "
        f"{sum(each.failures for each in rounds):,} of {sum(each.answers + each.failures for each in rounds):,}"
        for case, rounds in results.rounds.items()
        if any(each.failures for each in rounds)
    ]
    return f"""\
# Savepoint and others under the same load

Measured on {datetime.now(UTC):%Y-%m-%d} by `{" ".join(["python -m bench", *sys.argv[1:]])}`: medians of \
{options.rounds} rounds, in each of which all contenders take turns, with {options.seconds} s of load at each number \
of connections. From round to round, requests a second differ by {spread_of(results):.0f} % on average.
{os.cpu_count()} cores ({platform.machine()}) shared by server, database and wrk, and with other processes, which \
kept up to {busy:.1f} of them busy; Python {platform.python_version()}, \
{versions}.
After each run, each answer of 2xx was found in the database, whole, and balances, entries and transfers added up \
([books.sql](books.sql)). \
Requests that failed: {"; ".join(failures) or "none"}.

- The usual way: [usual_sync.py](usual_sync.py) and [usual_async.py](usual_async.py), a session per request, the ORM, \
SELECT … FOR UPDATE; the same tables, constraints and answers.
- pgbench sends the same statements ([.sql](.)) straight to the database, one transaction at a time on each \
connection, prepared.
- pgledger's way: [a function](ledger_function.sql) in the database makes the whole transfer, as in the published \
ledger [pgledger](https://github.com/pgr0ss/pgledger), and pgbench calls it as one prepared statement: lock both \
accounts in order of id, update and check them, insert the transfer and both entries. Written for Savepoint's tables, \
whose entries hold the balance after them and not the one before. No HTTP, no token, no status of users, no key.
- uvicorn as it comes: the same app under uvicorn's own protocol class ([plain.py](plain.py)). Savepoint's \
([why](../docs/decisions/0001-the-server.md)) limits slow and hostile clients, refuses overload before anything is \
parsed, and sends each answer in one write{cost_of_server(results)}.
- Two workers have a port each, and half of the connections, as behind a proxy that shares them out.
- The ceiling: [ceiling.py](ceiling.py), FastAPI with the same bodies and answers, and nothing behind it.
- Growth is measured after {LONG_WARM_UP} s of transfers and as many of registrations, once what is used of the \
database is in the caches; that adds some ten thousand of each.
- 10,000 users with 50 entries each. Latencies are corrected for coordinated omission, as wrk does it. \
CPU is in ms per request, of all processes (SQLite is part of the server). Peak MB are the server's processes added up.
"""


def format_target(target: Target) -> str:
    """Whether it was met, and by which figures."""
    if not target.values:
        return f"- not measured: {target.words}"
    shown = "; ".join(f"{name}: {rounded(value)}" for name, value in target.worst_first[:3])
    more = len(target.values) - 3
    rest = f"; {more} more are better" if more > 0 else ""
    return f"- **{'met' if target.met else 'missed'}**: {target.words}. {shown}{rest}"


def rounded(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cost_of_server(results: Results) -> str:
    """What Savepoint's protocol class costs beside uvicorn's own, where both were measured."""
    ratios = [
        f"{100 * results.ratio('server_cpu', case, case._replace(contender=UVICORN)) - 100:+.0f} % for {each.name}"
        for each in (ME, SPREAD, REGISTRATION)
        if (case := Case("PostgreSQL", SAVEPOINT, each)) in results.rounds
        and case._replace(contender=UVICORN) in results.rounds
    ]
    return f"; the server's CPU time beside it, at {BUSY} connections: {', '.join(ratios)}" if ratios else ""


def format_summary(results: Results) -> str:
    """Requests a second of each contender at its best, in columns that can be read in a terminal too."""
    rows = [
        ["requests/s, each at its best", *(workload.name for workload in WORKLOADS), f"p50 ms of {SPREAD.name} at 1"]
    ]
    for engine in ENGINES:
        for contender in CONTENDERS[engine]:
            cells = [cell(results.best, engine, contender, workload) for workload in WORKLOADS]
            cells.append(cell(results.median, Case(engine, contender, SPREAD, 1), "p50"))
            if set(cells) != {"–"}:
                rows.append([f"{engine}: {contender.name}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    ruler = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ruler, *lines[1:]])


def format_batches(results: Results) -> str:
    """What batches and the import reach, and what others see of it."""
    rows = [
        "\n## Batches of 10,000 on one worker\n",
        "The operator sends one after the other for as long as the load lasts. Others send over "
        f"{OTHERS} connections, each of which pauses for {PAUSE} ms after an answer; a dash is none that failed. "
        "The import is a process of its own, start included, and issues tokens.\n",
        f"| engine, batches | {' | '.join(BATCH_FIGURES)} |",
        f"|---{'|--:' * len(BATCH_FIGURES)}|",
    ]
    for engine, batches in results.batches:
        cells = [cell(results.batches_median, engine, batches, figure) for figure in BATCH_FIGURES]
        rows.append(f"| {engine}, {batches} | {' | '.join(cells)} |")
    return "\n".join(rows)


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
    for contender in CONTENDERS[engine]:
        case = Case(engine, contender, workload)
        cells = [cell(results.median, case._replace(connections=each), "rate") for each in results.connections()]
        cells.append(cell(results.median, case._replace(connections=1), "p50"))
        cells += [cell(results.median, case, figure) for figure in FIGURES.values()]
        others = (USUAL, PGBENCH)[: len(columns) - len(cells) - 1]
        cells += [cell(results.times, engine, contender, other, workload) for other in others]
        if set(cells) != {"–"}:
            rows.append(f"| {contender.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def cell(figure: Callable[..., float], *way: Any) -> str:
    """A figure; a dash where it was not measured, or there is none."""
    try:
        value = figure(*way)
    except KeyError:
        value = 0
    return rounded(value) if value else "–"


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
            {
                each.name: [Case(engine, each, workload, n) for n in results.connections()]
                for each in CONTENDERS[engine]
                if each is not UVICORN
            },
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
