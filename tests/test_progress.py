"""`Progress`: rate and time left, as `on_progress` gets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import CallCancelled, CallFailed, MemorySink, Outcome, Phase, Pipeline, Progress, ServiceManager, tool
from kgas_async._on_error import OnError
from kgas_async._report import Pace


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


class Clock:
    """Gives the times it was told, and how long that many items took."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def paced(total: int | None, seconds_per_item: Iterable[float]) -> Iterator[Progress]:
    clock = Clock()
    pace = Pace(total, clock)
    for done, seconds in enumerate(seconds_per_item, 1):
        clock.now += seconds
        yield pace.progress(done, 0)
        assert len(pace._marks) < 70


def test_items_of_equal_length_have_the_rate_that_they_have() -> None:
    for seconds in (0.001, 1.0, 90.0):
        for progress in paced(2000, [seconds] * 1500):
            assert progress.rate == pytest.approx(1 / seconds)
            assert progress.eta_s == pytest.approx((2000 - progress.done) * seconds)
    assert progress.elapsed_s == pytest.approx(1500 * 90)


def test_without_a_total_there_is_a_rate_and_no_time_left() -> None:
    for progress in paced(None, [0.5] * 10):
        assert progress.rate == pytest.approx(2)
        assert (progress.total, progress.eta_s) == (None, None)


def test_before_time_has_passed_nothing_is_said() -> None:
    first, second, third = paced(3, [0.0, 0.0, 0.0])
    assert (first.rate, first.eta_s, second.rate) == (None, None, None)
    assert third.eta_s == 0  # there is nothing left


def test_a_total_that_was_too_low_is_none() -> None:
    told = [(progress.total, progress.eta_s) for progress in paced(2, [1.0] * 4)]
    assert told == [(2, pytest.approx(1)), (2, 0), (None, None), (None, None)]


def test_what_was_quick_at_first_is_soon_forgotten() -> None:
    told = list(paced(10_000, [0.0001] * 9000 + [1.0] * 900))  # found in a journal, then done
    assert told[8999].eta_s == pytest.approx(0.1)
    for progress in told[9010:]:
        assert progress.eta_s == pytest.approx(10_000 - progress.done, rel=0.05)


def test_a_slow_start_is_forgotten_too() -> None:
    *_, last = paced(400, [60.0] + [0.5] * 300)  # a model was loaded
    assert last.eta_s == pytest.approx(99 * 0.5, rel=0.05)


def test_a_burst_does_not_promise_the_end() -> None:
    *_, last = paced(1000, [1.0] * 500 + [0.0] * 10)
    assert 400 < (last.eta_s or 0) < 490


async def test_maps_and_runs_tell_it() -> None:
    told: list[Progress] = []
    async with ServiceManager() as manager:
        async with manager.map(double, range(50), arg="x", on_progress=told.append) as outcomes:
            async for _ in outcomes:
                pass
        pipeline = Pipeline("p", Phase("doubled", double), item=["x"])
        await manager.run(pipeline, ({"x": n} for n in range(20)), on_progress=told.append)
    assert len(told) == 70
    assert all(progress.rate is None or progress.rate > 0 for progress in told)
    assert [progress.eta_s is None for progress in told[10:]] == [False] * 40 + [True] * 20
    assert told[49].eta_s == 0


@tool
async def odd_ones_wait(x: int) -> int:
    if x % 2:
        await anyio.sleep_forever()
    return x


@tool
async def last_one_fails(x: int) -> int:
    if x < 9:
        await anyio.sleep_forever()
    raise LookupError(x)


async def test_a_cancelled_call_of_a_map_is_no_failed_one() -> None:
    told: list[Progress] = []
    async with (
        ServiceManager(log=None) as manager,
        manager.map(odd_ones_wait, range(40), arg="x", on_error=0.0, on_progress=told.append) as outcomes,
    ):
        await anyio.wait_all_tasks_blocked()
        await manager.cancel(reason="enough")
        assert len([outcome async for outcome in outcomes if outcome.ok]) == 20  # no share of failures stops it
    assert (told[-1].done, told[-1].failed, told[-1].cancelled) == (40, 0, 20)


async def test_what_the_first_failure_of_a_run_cancels_has_not_failed_and_is_counted() -> None:
    sink = MemorySink()
    told: list[Progress] = []
    pipeline = Pipeline("p", Phase("only", last_one_fails), item=["x"], key="x")
    async with ServiceManager(evidence=sink, log=None) as manager:
        with pytest.raises(CallFailed):
            items = [{"x": x} for x in range(10)]
            await manager.run(pipeline, items, on_error="raise", on_progress=told.append)
        report = manager._last_report
        assert report is not None
        assert (report.total, report.failed, report.cancelled) == (10, 1, 9)
    assert (told[-1].done, told[-1].failed, told[-1].cancelled) == (10, 1, 9)
    (ended,) = [record for record in sink.records if record["event"] == "run.ended"]
    assert [ended[name] for name in ("items", "failed", "cancelled", "skipped")] == [10, 1, 9, 0]


def test_a_share_is_of_failures_and_tells_of_the_last_of_them_where_the_twentieth_item_was_cancelled() -> None:
    decision = OnError(0.5)
    for index in range(18):
        failed = Outcome("failed", None, LookupError(index), f"k{index}", index, failed_phase="only")
        assert decision.verdict(failed, index + 1, index + 1) is None
    cancelled = Outcome("cancelled", None, CallCancelled("enough"), "k18", 18)
    assert decision.verdict(cancelled, 19, 18) is None
    assert str(decision.verdict(cancelled, 20, 18)).endswith("the last: item 'k17' in phase 'only': 17")
    assert OnError(0.0).verdict(cancelled, 20, 0) is None
    assert OnError("raise").verdict(cancelled, 1, 0) is cancelled.error  # who wants all values is told
