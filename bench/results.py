"""What was measured, and what was aimed at."""

import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from bench.contenders import CEILING, PGBENCH, SAVEPOINT, SAVEPOINT_2, USUAL, USUAL_ASYNC, Contender
from bench.load import BUSY, Measurement
from bench.workloads import HOT, ME, REGISTRATION, SPREAD, WORKLOADS, Workload

WRITES = (REGISTRATION, SPREAD, HOT)
ENGINES = ("SQLite", "PostgreSQL")


class Case(NamedTuple):
    """What is measured once in each round; `template` is the database that it began with."""

    engine: str
    contender: Contender
    workload: Workload
    connections: int = BUSY
    template: str = "compared"


class Results:
    """The measurements of each case, in order of rounds."""

    def __init__(self) -> None:
        self.rounds: dict[Case, list[Measurement]] = {}

    def add(self, case: Case, measured: Measurement) -> None:
        """Keep a measurement."""
        self.rounds.setdefault(case, []).append(measured)

    def median(self, case: Case, figure: str) -> float:
        """The median of the rounds. Raises KeyError where the case was not measured."""
        return float(statistics.median(getattr(each, figure) for each in self.rounds[case]))

    def connections(self) -> list[int]:
        """The numbers of connections that contenders were compared at."""
        return sorted({case.connections for case in self.rounds if case.template == "compared"})

    def best(self, engine: str, contender: Contender, workload: Workload) -> tuple[float, int]:
        """Requests a second at the number of connections that suits the contender best, and that number.

        Raises KeyError as median.
        """
        cases = [case for case in self.rounds if case[:3] == (engine, contender, workload)]
        rates = [(self.median(case, "rate"), case.connections) for case in cases if case.template == "compared"]
        if not rates:
            raise KeyError(contender.name)
        return max(rates)

    def times(self, engine: str, contender: Contender, other: Contender, workload: Workload) -> float:
        """How many times as many requests a second as the other, each at its best."""
        return self.best(engine, contender, workload)[0] / self.best(engine, other, workload)[0]

    def times_beside(self, engine: str, contender: Contender, other: Contender, workload: Workload) -> float:
        """How many times as many as the other with as many connections, those that suit the contender best."""
        rate, connections = self.best(engine, contender, workload)
        return rate / self.median(Case(engine, other, workload, connections), "rate")

    def latency(self, case: Case, figure: str, other: Case, other_figure: str) -> float:
        """A latency as a multiple of another."""
        return self.median(case, figure) / self.median(other, other_figure)


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
    """What this benchmark is to show, and how far it does."""
    at_best, beside = "each at its best concurrency", "with as many connections, those that suit Savepoint best"
    for workloads, contender, other, engine, limit, times, words in (
        ((REGISTRATION, SPREAD), SAVEPOINT_2, PGBENCH, "PostgreSQL", 1.5, results.times, at_best),
        ((HOT,), SAVEPOINT_2, PGBENCH, "PostgreSQL", 8, results.times, at_best),
        ((REGISTRATION, SPREAD), SAVEPOINT_2, PGBENCH, "PostgreSQL", 1.5, results.times_beside, beside),
        ((HOT,), SAVEPOINT_2, PGBENCH, "PostgreSQL", 8, results.times_beside, beside),
        (WRITES, SAVEPOINT_2, USUAL, "PostgreSQL", 12, results.times, at_best),
        (WRITES, SAVEPOINT_2, USUAL_ASYNC, "PostgreSQL", 5, results.times, at_best),
        ((ME,), SAVEPOINT_2, CEILING, "PostgreSQL", 0.6, results.times, at_best),
        (WRITES, SAVEPOINT, USUAL, "SQLite", 10, results.times, at_best),
    ):
        values = {}
        for workload in workloads:
            with suppress(KeyError):
                values[workload.name] = times(engine, contender, other, workload)
        yield Target(f"{engine}, {contender.name}: {limit} × {other.name}, {words}", limit, values)
    slow, unfair = {}, {}
    for case in results.rounds:
        name = f"{case.workload.name}, {case.engine}, {case.contender.name}"
        usual = case._replace(contender=USUAL)
        if case.contender is SAVEPOINT and case.connections == 1 and usual in results.rounds:
            slow[name] = results.latency(case, "p50", usual, "p50")
        if case.contender in (SAVEPOINT, SAVEPOINT_2) and case.connections == BUSY and case.template == "compared":
            unfair[name] = results.latency(case, "p99", case, "p50")
    yield Target("1 connection: p50 as a multiple of the usual way's, at most 1", 1, slow, at_most=True)
    yield Target(f"{BUSY} connections: p99 as a multiple of p50, at most 5", 5, unfair, at_most=True)
    losses = {}
    for case in results.rounds:
        small = case._replace(template="size_10000")
        if case.template == "size_1000000" and small in results.rounds:
            name = f"{case.workload.name}, {case.engine}"
            losses[name] = 100 * (1 - results.median(case, "rate") / results.median(small, "rate"))
    yield Target("10⁶ users: at most 15 % fewer requests a second than with 10⁴; percent", 15, losses, at_most=True)


def spread_of(results: Results) -> float:
    """How far, in percent, requests a second differ from their median between rounds, as a mean over all cases."""
    distances = []
    for case, rounds in results.rounds.items():
        middle = results.median(case, "rate")
        distances.append(max(abs(each.rate - middle) for each in rounds) / max(1, middle))
    return 100 * statistics.mean(distances)


def compared_workloads(results: Results, engine: str) -> list[Workload]:
    """The workloads that contenders were compared with."""
    measured = {case.workload for case in results.rounds if case.engine == engine and case.template == "compared"}
    return [workload for workload in WORKLOADS if workload in measured]
