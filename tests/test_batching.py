"""Batching, without a database: which calls run together, and what each caller is told."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from db.batching import Batcher
from refusals import Conflict, OutcomeUnknown, Overloaded, ShuttingDown


class HeldBack:
    """Stands where the crud function stands: notes each batch, and ends it when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.ends: list[asyncio.Future[None]] = []
        self.ended: list[list[str]] = []
        self.outcomes: dict[str, Exception] = {}

    async def __call__(self, items: Sequence[str]) -> list[str | Exception]:
        self.batches.append([*items])
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        await end
        self.ended.append([*items])
        return [self.outcomes.get(item, item.upper()) for item in items]

    async def end(self, batch: int, error: Exception | None = None) -> None:
        """Let this batch end, in failure where there is an error."""
        if error is None:
            self.ends[batch].set_result(None)
        else:
            self.ends[batch].set_exception(error)
        await turn()


@pytest.fixture
def run() -> HeldBack:
    return HeldBack()


def make_batcher(run: HeldBack, **limits: Any) -> Batcher[str, str]:
    chosen = {"tasks": 1, "batch_limit": 100, "queue_limit": 100, "deadline": 10, "too_late": OutcomeUnknown, **limits}
    return Batcher("test_batching", run, **chosen)


async def turn() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def call(batcher: Batcher[str, str], items: str) -> list[asyncio.Task[str]]:
    """Call with each letter at the same time."""
    calls = [asyncio.create_task(batcher(item)) for item in items]
    await turn()
    return calls


async def refusal_of(call: asyncio.Task[str]) -> BaseException | None:
    await asyncio.wait([call], timeout=5)
    return call.exception()


async def test_a_call_on_an_idle_batcher_runs_at_once_and_alone(run: HeldBack) -> None:
    await call(make_batcher(run), "a")

    assert run.batches == [["a"]]


async def test_calls_that_come_while_a_batch_runs_form_the_next_one(run: HeldBack) -> None:
    batcher = make_batcher(run)
    await call(batcher, "a")

    for item in "bcd":
        await call(batcher, item)
    assert run.batches == [["a"]]
    await run.end(0)

    assert run.batches == [["a"], ["b", "c", "d"]]


async def test_a_caller_may_call_again_at_once(run: HeldBack) -> None:
    batcher = make_batcher(run)

    async def call_twice() -> list[str]:
        return [await batcher("a"), await batcher("b")]

    both = asyncio.create_task(call_twice())
    await turn()
    await run.end(0)

    # A task that has run its last batch must not be taken for one that will run another.
    assert run.batches == [["a"], ["b"]]
    await run.end(1)
    assert await both == ["A", "B"]


async def test_how_long_the_first_of_a_batch_waited_and_how_long_it_ran_is_measured(
    run: HeldBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("db.batching.perf_counter", lambda: now)
    before = [measured("queue_wait"), measured("transaction")]
    batcher = make_batcher(run)
    await call(batcher, "a")
    for item in "bc":
        now += 1
        await call(batcher, item)
    now += 3
    await run.end(0)
    now += 0.5
    await run.end(1)

    after = [measured("queue_wait"), measured("transaction")]
    assert [each - earlier for each, earlier in zip(after, before, strict=True)] == [0 + 4, 5 + 0.5]


def measured(what: str) -> float:
    name = f"savepoint_{what}_seconds_sum"
    return REGISTRY.get_sample_value(name, {"operation": "test_batching"}) or 0.0


async def test_each_caller_gets_the_outcome_of_its_own_item(run: HeldBack) -> None:
    calls = await call(make_batcher(run), "abc")

    await run.end(0)

    assert run.batches == [["a", "b", "c"]]
    assert await asyncio.gather(*calls) == ["A", "B", "C"]


async def test_an_exception_among_the_outcomes_is_raised_to_its_own_caller_alone(run: HeldBack) -> None:
    run.outcomes["b"] = ValueError("b is bad")
    first, second, third = await call(make_batcher(run), "abc")

    await run.end(0)

    assert (await first, await third) == ("A", "C")
    with pytest.raises(ValueError, match="b is bad"):
        await second


async def test_a_batch_that_fails_tells_each_of_its_callers(run: HeldBack) -> None:
    calls = await call(make_batcher(run), "abc")

    await run.end(0, Conflict())

    assert [type(await refusal_of(each)) for each in calls] == [Conflict] * 3


async def test_the_batch_after_one_that_failed_runs_as_ever(run: HeldBack) -> None:
    batcher = make_batcher(run)
    (failing,) = await call(batcher, "a")
    (waiting,) = await call(batcher, "b")

    await run.end(0, ZeroDivisionError())
    await run.end(1)

    assert isinstance(await refusal_of(failing), ZeroDivisionError)
    assert await waiting == "B"


async def test_a_batch_holds_no_more_than_batch_limit(run: HeldBack) -> None:
    await call(make_batcher(run, batch_limit=2), "abcde")

    await run.end(0)
    await run.end(1)

    assert run.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_no_more_batches_than_tasks_run_at_once(run: HeldBack) -> None:
    batcher = make_batcher(run, tasks=2)

    for item in "abcd":
        await call(batcher, item)
    assert run.batches == [["a"], ["b"]]
    await run.end(1)

    # Its share of what waits.
    assert run.batches == [["a"], ["b"], ["c"]]


async def test_a_call_beyond_queue_limit_is_refused_at_once(run: HeldBack) -> None:
    batcher = make_batcher(run, queue_limit=2)
    await call(batcher, "a")

    *accepted, refused = await call(batcher, "bcd")

    assert isinstance(refused.exception(), Overloaded)
    assert not any(each.done() for each in accepted)


async def test_the_queue_takes_calls_again_once_a_batch_has_left_it(run: HeldBack) -> None:
    batcher = make_batcher(run, queue_limit=1)
    await call(batcher, "a")
    await call(batcher, "b")
    await run.end(0)

    await call(batcher, "c")
    await run.end(1)

    assert run.batches == [["a"], ["b"], ["c"]]


async def test_a_call_that_waits_beyond_the_deadline_is_refused_and_never_run(run: HeldBack) -> None:
    batcher = make_batcher(run, deadline=0.05)
    (running,) = await call(batcher, "a")
    (waiting,) = await call(batcher, "b")

    await refusal_of(running)
    assert isinstance(await refusal_of(waiting), Overloaded)
    await run.end(0)

    assert run.batches == [["a"]]


async def test_a_call_whose_batch_outlasts_the_deadline_is_told_that_nobody_knows(run: HeldBack) -> None:
    (late,) = await call(make_batcher(run, deadline=0.05), "a")

    assert isinstance(await refusal_of(late), OutcomeUnknown)


async def test_a_batch_that_outlasts_the_deadline_is_left_to_end(run: HeldBack) -> None:
    (late,) = await call(make_batcher(run, deadline=0.05), "a")
    await refusal_of(late)

    await run.end(0)

    assert run.ended == [["a"]]


async def test_a_caller_that_leaves_does_not_disturb_its_batch(run: HeldBack) -> None:
    first, leaving, third = await call(make_batcher(run), "abc")

    leaving.cancel()
    await run.end(0)

    assert run.ended == [["a", "b", "c"]]
    assert (await first, await third) == ("A", "C")
    assert leaving.cancelled()


async def test_an_item_whose_caller_left_while_it_waited_is_not_run(run: HeldBack) -> None:
    batcher = make_batcher(run)
    await call(batcher, "a")
    _, leaving, _ = await call(batcher, "bcd")

    leaving.cancel()
    await run.end(0)

    assert run.batches == [["a"], ["b", "d"]]


async def test_closing_finishes_what_runs_and_what_waits(run: HeldBack) -> None:
    batcher = make_batcher(run)
    calls = await call(batcher, "a") + await call(batcher, "b")

    closing = asyncio.create_task(batcher.close())
    await run.end(0)
    assert not closing.done()
    await run.end(1)

    assert await asyncio.gather(*calls) == ["A", "B"]
    await asyncio.wait_for(closing, 5)


async def test_what_comes_after_closing_began_is_refused(run: HeldBack) -> None:
    batcher = make_batcher(run)
    await call(batcher, "a")
    closing = asyncio.create_task(batcher.close())
    await turn()

    (late,) = await call(batcher, "b")

    assert isinstance(late.exception(), ShuttingDown)
    await run.end(0)
    await closing
    assert run.batches == [["a"]]


async def test_others_get_their_turn_while_the_callers_of_a_large_batch_are_answered(run: HeldBack) -> None:
    batcher = make_batcher(run, batch_limit=200, queue_limit=200)
    calls = await call(batcher, "a" * 200)
    answered = {0}

    run.ends[0].set_result(None)
    while len(answered) < 200 and not all(each.done() for each in calls):
        await asyncio.sleep(0)
        answered.add(sum(each.done() for each in calls))

    assert len(answered) > 2
    assert [await each for each in calls] == ["A"] * 200


async def test_several_tasks_share_what_waits(run: HeldBack) -> None:
    batcher = make_batcher(run, tasks=2)

    calls = await call(batcher, "abcd")

    assert run.batches == [["a", "b"], ["c"]]
    for batch in range(2):
        await run.end(batch)
    await run.end(2)
    assert await asyncio.gather(*calls) == ["A", "B", "C", "D"]
