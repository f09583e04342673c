"""The measurements of all rounds, and their medians."""

import math
import statistics
from typing import NamedTuple

from bench.contenders import Contender
from bench.load import BUSY, Measurement
from bench.workloads import WORKLOADS, Workload

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
        self.batches: dict[tuple[str, str], list[dict[str, float]]] = {}

    def add(self, case: Case, measured: Measurement) -> None:
        """Keep a measurement."""
        self.rounds.setdefault(case, []).append(measured)

    def median(self, case: Case, figure: str) -> float:
        """The median of the rounds. Raises KeyError where the case was not measured."""
        return float(statistics.median(getattr(each, figure) for each in self.rounds[case]))

    def connections(self) -> list[int]:
        """The numbers of connections that contenders were compared at."""
        return sorted({case.connections for case in self.rounds if case.template == "compared"})

    def best(self, engine: str, contender: Contender, workload: Workload) -> float:
        """Requests a second at the number of connections that suits the contender best. Raises KeyError as median."""
        cases = [case for case in self.rounds if case[:3] == (engine, contender, workload)]
        rates = [self.median(case, "rate") for case in cases if case.template == "compared"]
        if not rates:
            raise KeyError(contender.name)
        return max(rates)

    def times(self, engine: str, contender: Contender, other: Contender, workload: Workload) -> float:
        """How many times as many requests a second as the other, each at its best."""
        return self.best(engine, contender, workload) / self.best(engine, other, workload)

    def ratio(self, figure: str, case: Case, other: Case) -> float:
        """A figure as a multiple of another case's, infinite where that is 0."""
        of_other = self.median(other, figure)
        return self.median(case, figure) / of_other if of_other else math.inf

    def batches_median(self, engine: str, batches: str, figure: str) -> float:
        """The median of a figure of bench/batches.py. Raises KeyError where it was not measured."""
        return statistics.median(each[figure] for each in self.batches[engine, batches])


def spread_of(results: Results) -> float:
    """How far, in percent, requests a second differ from their median between rounds, as a mean over all cases."""
    distances = []
    for case, rounds in results.rounds.items():
        middle = results.median(case, "rate")
        distances.append(max(abs(each.rate - middle) for each in rounds) / max(1, middle))
    return 100 * statistics.mean(distances or [0])


def compared_workloads(results: Results, engine: str) -> list[Workload]:
    """The workloads that contenders were compared with."""
    measured = {case.workload for case in results.rounds if case.engine == engine and case.template == "compared"}
    return [workload for workload in WORKLOADS if workload in measured]
