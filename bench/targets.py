"""What this benchmark is to show, and how far it does."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bench.batches import ALONE, IMPORT, NO_BATCH, P99
from bench.contenders import CEILING, PGBENCH, SAVEPOINT, SAVEPOINT_2, USUAL
from bench.load import BUSY
from bench.results import ENGINES, Case, Results
from bench.workloads import HOLDS, HOT, LINKED, ME, REGISTRATION, SPREAD, STATEMENT

POSTGRESQL = "PostgreSQL"
WRITES = (REGISTRATION, SPREAD, HOT)


@dataclass(frozen=True, slots=True)
class Target:
    """Something to reach in each of several ways; what was not measured is not among the values."""

    words: str
    limit: float
    values: Mapping[str, float]
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether all values reach it."""
        return all(value <= self.limit if self.at_most else value >= self.limit for value in self.values.values())

    @property
    def worst_first(self) -> list[tuple[str, float]]:
        """The values with their names, the furthest from the target first."""
        return sorted(self.values.items(), key=lambda item: -item[1] if self.at_most else item[1])


def targets(results: Results) -> Iterator[Target]:
    """All targets."""
    yield from beside_pgbench(results)
    yield from beside_the_usual_way(results)
    yield from beside_the_ceiling(results)
    yield from beside_transfers(results)
    yield from fairness_and_growth(results)
    yield from of_batches(results)


def values_of(figure: Callable[..., float], ways: Mapping[str, tuple[Any, ...]]) -> dict[str, float]:
    """The figure in each of these ways, without those that were not measured."""
    values = {}
    for name, way in ways.items():
        with suppress(KeyError):
            values[name] = figure(*way)
    return values


def beside_pgbench(results: Results) -> Iterator[Target]:
    """Throughput and latency."""
    for limit, workloads in ((1.7, (SPREAD, REGISTRATION)), (7, (HOT,))):
        ways = {each.name: (POSTGRESQL, SAVEPOINT_2, PGBENCH, each) for each in workloads}
        words = f"PostgreSQL, 2 workers: {limit} × pgbench, each at its best concurrency"
        yield Target(words, limit, values_of(results.times, ways))
    ways_of_one = {
        each.name: ("p50", Case(POSTGRESQL, SAVEPOINT, each, 1), Case(POSTGRESQL, PGBENCH, each, 1)) for each in WRITES
    }
    words = "PostgreSQL, 1 worker, 1 connection: p50 as a multiple of pgbench's, at most 1.5"
    yield Target(words, 1.5, values_of(results.ratio, ways_of_one), at_most=True)


def beside_the_usual_way(results: Results) -> Iterator[Target]:
    """Throughput on both engines."""
    ways = {
        f"{each.name} at {n}": ("rate", Case(POSTGRESQL, SAVEPOINT_2, each, n), Case(POSTGRESQL, USUAL, each, n))
        for each in WRITES
        for n in (8, BUSY, 128)
    }
    words = "PostgreSQL, 2 workers: 12 × the usual way at 8, 32 and 128 connections, the same number for both"
    yield Target(words, 12, values_of(results.ratio, ways))
    at_best = {each.name: ("SQLite", SAVEPOINT, USUAL, each) for each in WRITES}
    words = "SQLite, 1 worker: 12 × the usual way, each at its best concurrency"
    yield Target(words, 12, values_of(results.times, at_best))


def beside_the_ceiling(results: Results) -> Iterator[Target]:
    """Reads, by one worker as the ceiling, which is measured once for both engines."""

    def part_of_ceiling(engine: str, workload: Any) -> float:
        return results.best(engine, SAVEPOINT, workload) / results.best(POSTGRESQL, CEILING, workload)

    for workload in (ME, STATEMENT):
        words = f"{workload.title}, 1 worker: 0.6 × no database (the ceiling), each at its best concurrency"
        yield Target(words, 0.6, values_of(part_of_ceiling, {each: (each, workload) for each in ENGINES}))
    ways = {each: (Case(each, SAVEPOINT, STATEMENT), "server_cpu") for each in ENGINES}
    words = f"{STATEMENT.title}, {BUSY} connections: ms of server CPU, less than 0.6"
    yield Target(words, 0.6, values_of(results.median, ways), at_most=True)


def beside_transfers(results: Results) -> Iterator[Target]:
    """Holds and transactions."""
    for workload, limit in ((HOLDS, 0.8), (LINKED, 0.6)):
        ways = {
            f"{engine}, {contender.name}": (
                "rate",
                Case(engine, contender, workload, BUSY),
                Case(engine, contender, SPREAD, BUSY),
            )
            for engine in ENGINES
            for contender in (SAVEPOINT, SAVEPOINT_2)
        }
        words = f"{workload.title}, {BUSY} connections: {limit} × as many calls a second as transfers"
        yield Target(words, limit, values_of(results.ratio, ways))


def fairness_and_growth(results: Results) -> Iterator[Target]:
    """Slow answers beside others, and large databases beside small ones."""
    unfair, losses = {}, {}
    for case in results.rounds:
        name = f"{case.workload.name}, {case.engine}"
        if case.contender in (SAVEPOINT, SAVEPOINT_2) and case.connections == BUSY and case.template == "compared":
            unfair[f"{name}, {case.contender.name}"] = results.median(case, "p99") / results.median(case, "p50")
        small = case._replace(template="size_10000")
        if case.template == "size_1000000" and small in results.rounds:
            losses[name] = 100 * (1 - results.ratio("rate", case, small))
    yield Target(f"{BUSY} connections: p99 as a multiple of p50, at most 5", 5, unfair, at_most=True)
    yield Target("10⁶ users: at most 15 % fewer requests a second than with 10⁴; percent", 15, losses, at_most=True)


def of_batches(results: Results) -> Iterator[Target]:
    """Items a second, and the wait of others."""
    sent = [key for key in results.batches if key[1] not in (NO_BATCH, IMPORT)]
    rates = {f"{batches}, {engine}": (engine, batches, ALONE) for engine, batches in sent}
    words = "Batches of 10,000, 1 worker, no other load: 10,000 items a second"
    yield Target(words, 10_000, values_of(results.batches_median, rates))
    waits = {
        f"{figure}, {batches}, {engine}": (engine, batches, figure)
        for engine, batches in sent
        for figure in P99.values()
    }
    words = "Beside these batches: others' p99 in ms, less than 100"
    yield Target(words, 100, values_of(results.batches_median, waits), at_most=True)
