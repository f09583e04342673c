"""One attack: clients against faults for a while, and the report of it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.calls import Call, Client, read_calls
from tests.chaos.history import History, Violation, count, example_of, newest_ids, read_books
from tests.chaos.nemesis import Fault, faults_of
from tests.chaos.stage import Stage, staged
from tests.support.accounts import cash
from tests.support.service import AS_OPERATOR, ROOT

SETUPS = ("sqlite", "postgresql", "pgbouncer")

PATIENCE = 60
"""Seconds after which a call without a definite answer is given up, which is a violation."""

BACK_WITHIN = 30
"""Seconds after the end of a fault within which writes must be acknowledged again."""

ENOUGH_A_SECOND = 10
"""Acknowledged writes a second below which a run means nothing."""

MONEY = ("transfer", "batch item", "reversal", "deposit", "withdrawal", "hold", "capture", "void", "transaction")

KINDS = frozenset(["registration", "read", *MONEY])


@dataclass
class Report:
    """What an attack did, and which promises it broke."""

    setup: str
    calls: Sequence[Call] = ()
    violations: Sequence[Violation] = ()
    faults: dict[str, int] = field(default_factory=dict)
    seconds_until_writes: dict[str, float] = field(default_factory=dict)
    """By fault, the longest time from its end to the next acknowledged write."""
    seconds: float = 0
    too_little: list[str] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        return bool(self.violations or self.too_little)

    def kinds(self) -> set[str]:
        return {each.kind for each in self.violations}

    def text(self) -> str:
        refused = sum(call.is_refused for call in self.calls)
        unknown = sum(call.is_unknown for call in self.calls)
        found = example_of(self.violations)
        broken = [f"  BROKEN {total} x {kind}: {detail}" for kind, (total, detail) in found.items()]
        return "\n".join(
            [
                f"{self.setup}: {self.seconds:.0f} s, {sum(call.is_done for call in self.calls)} acknowledged, "
                f"{refused} refused, {unknown} unknown and sent again; "
                f"lost {found.get('lost', (0,))[0]}, doubled {found.get('doubled', (0,))[0]}",
                "  " + ", ".join(f"{kind} {number}" for kind, number in sorted(count(self.calls).items())),
                *(
                    f"  {name} {times} x: writes are back after {self.seconds_until_writes[name]:.1f} s at most"
                    for name, times in self.faults.items()
                ),
                *broken,
                *(f"  TOO LITTLE: {each}" for each in self.too_little),
            ]
        )


async def run(
    setup: str,
    seconds: float,
    chance: random.Random,
    folder: Path,
    *,
    root: Path = ROOT,
    faults: Sequence[Fault] | None = None,
    prepare: Callable[[Stage], Awaitable[None]] | None = None,
    patience: float = PATIENCE,
) -> Report:
    """Attack the code in `root` with each of the faults once, and then with any of them until the time is over."""
    report = Report(setup)
    with staged(setup, folder, chance.randrange(10**9), root, patience) as stage:
        if prepare:
            await prepare(stage)
        before = newest_ids(stage.url)
        chosen = list(faults if faults is not None else faults_of(stage))
        chance.shuffle(chosen)
        began = time.monotonic()
        stage.start_clients()
        probe = Client(stage.address, folder / "probe.jsonl", patience)
        await probe_until_back(stage, probe)
        number = 0
        while number < len(chosen) or (chosen and time.monotonic() - began < seconds):
            fault = chosen[number % len(chosen)]
            number += 1
            await asyncio.sleep(chance.uniform(0, 0.7))
            await fault(stage, chance)
            await asyncio.to_thread(stage.revive)
            name = fault.__name__.replace("_", " ")
            report.faults[name] = report.faults.get(name, 0) + 1
            waited = await probe_until_back(stage, probe)
            report.seconds_until_writes[name] = max(waited, report.seconds_until_writes.get(name, 0))
        await asyncio.sleep(max(0, seconds - (time.monotonic() - began)))
        await stage.end_clients()
        await probe.close()
        report.seconds = time.monotonic() - began
        report.calls = [call for log in stage.logs for call in read_calls(log)]
        stage.service.stop()
        history = History(report.calls, read_books(stage.url), before, stage.parties)
        report.violations = list(history.violations())
    report.too_little = list(too_little(report))
    return report


async def probe_until_back(stage: Stage, probe: Client) -> float:
    """Return the seconds until a write is acknowledged; wait then for both workers, which the next fault may need."""
    began = time.monotonic()
    call = Call("deposit", f"probe-{began}", sent=began)
    body = cash(stage.parties[0].account_id, 1)
    await probe.send(call, "POST", "/deposits", body, AS_OPERATOR | {"Idempotency-Key": call.key})
    waited = time.monotonic() - began
    while len(stage.workers()) < 2 and time.monotonic() - began < BACK_WITHIN:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return waited


def too_little(report: Report) -> list[str]:
    """Return why the run proves nothing, or that writes were not back in time."""
    acknowledged = count(report.calls)
    writes = sum(number for kind, number in acknowledged.items() if kind != "read")
    found = [
        f"{name} took {waited:.0f} s" for name, waited in report.seconds_until_writes.items() if waited > BACK_WITHIN
    ]
    if writes < ENOUGH_A_SECOND * report.seconds:
        found.append(f"{writes} writes were acknowledged, {ENOUGH_A_SECOND * report.seconds:.0f} are needed")
    found += [f"no {kind} was acknowledged" for kind in sorted(KINDS - acknowledged.keys())]
    if report.faults and not any(call.is_unknown for call in report.calls):
        found.append("no call was unknown: no fault met one")
    return found
