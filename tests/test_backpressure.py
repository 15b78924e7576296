"""A writer of evidence that lags: no call is admitted until it has caught up, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import MemorySink, Phase, Pipeline, ServiceManager, current, tool
from kgas_async._evidence import BATCH, HIGH_WATER

from .test_evidence import check_whole, double, ends, sink  # noqa: F401  (a fixture)

CALLS = 3 * HIGH_WATER // 2
IN_FLIGHT = 50
# Above the mark there is what was in flight, and what ends between two looks of a worker (a quarter of a millisecond).
SLACK = IN_FLIGHT + 2 * BATCH
FLUSH = 4 * BATCH
PATIENCE_S = 20.0  # else a failed test would wait for its writer when it leaves the manager

real_time = pytest.mark.real_time


class Slow(MemorySink):
    """Writes a batch only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        assert self.permits.acquire(timeout=PATIENCE_S), "a test ended early, or hangs"
        super().write(records)


@pytest.fixture
def slow() -> Iterator[Slow]:
    kept = Slow()
    yield kept
    check_whole(kept.records)


class Count:
    """What is in the buffer at the worst, and how many calls have begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.deepest = 0
        self.tool = tool(self.one, name="one")

    async def one(self, x: int) -> int:
        self.begun += 1
        if self.begun % 7 == 0:
            await checkpoint()
        log = current()._session.log  # type: ignore[union-attr]
        self.deepest = max(self.deepest, len(log.buffer))  # type: ignore[union-attr]
        return x

    async def stalled(self) -> None:
        """Until nothing begins any more."""
        before = -1
        while before != self.begun:
            before = self.begun
            await anyio.sleep(0.2)


async def by_map(manager: ServiceManager, count: Count) -> None:
    async with manager.map(count.tool, range(CALLS), arg="x", in_flight=IN_FLIGHT) as outcomes:
        async for outcome in outcomes:
            assert outcome.ok


async def by_run(manager: ServiceManager, count: Count) -> None:
    pipeline = Pipeline("p", Phase("a", count.tool), item=["x"])
    report = await manager.run(pipeline, ({"x": x} for x in range(CALLS)), in_flight=IN_FLIGHT)
    assert report.succeeded == CALLS


async def by_execute(manager: ServiceManager, count: Count) -> None:
    async def some() -> None:
        for number in range(CALLS // IN_FLIGHT):
            await manager.execute(count.tool, x=number)

    async with anyio.create_task_group() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.start_soon(some)


async def by_submit(manager: ServiceManager, count: Count) -> None:
    async def some() -> None:
        for number in range(CALLS // IN_FLIGHT):
            await manager.submit(count.tool, x=number).result()

    async with anyio.create_task_group() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.start_soon(some)


@real_time
@pytest.mark.parametrize("way", [by_map, by_run, by_execute, by_submit])
async def test_no_call_is_admitted_while_the_writer_lags_and_nothing_is_lost(
    slow: Slow, way: Callable[[ServiceManager, Count], Awaitable[None]]
) -> None:
    count = Count()
    async with ServiceManager(evidence=slow, log=None) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(way, manager, count)
        await count.stalled()
        stuck_at = count.begun
        assert HIGH_WATER < stuck_at <= HIGH_WATER + SLACK + FLUSH  # the writer holds a batch
        slow.permits.release(2)  # two batches are less than it must catch up
        await count.stalled()
        assert count.begun == stuck_at
        assert len(slow.records) > 0
        slow.permits.release(10_000)
    assert count.begun == CALLS
    assert count.deepest <= HIGH_WATER + SLACK
    assert sum(record["status"] == "succeeded" for record in ends(slow.records)) == CALLS


@real_time
async def test_nested_calls_of_threads_are_held_up_too(slow: Slow) -> None:
    count = Count()

    @tool
    def many() -> None:
        for number in range(CALLS):
            count.tool.execute(x=number)

    async with ServiceManager(evidence=slow, log=None) as manager:
        call = manager.submit(many)
        await count.stalled()
        assert HIGH_WATER - FLUSH <= count.begun <= HIGH_WATER + FLUSH + SLACK
        slow.permits.release(10_000)
        await call.result()
    assert count.begun == CALLS


@real_time
async def test_who_waits_for_the_writer_can_be_cancelled(slow: Slow) -> None:
    count = Count()
    async with ServiceManager(evidence=slow, log=None) as manager:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(by_map, manager, count)
                await count.stalled()
                waiting = manager.submit(double, x=1)
                await checkpoint()
                assert not waiting.has_ended
                waiting.cancel("enough")
                assert await waiting.wait(1)
                with anyio.move_on_after(0.05) as impatient:
                    await manager.execute(double, x=1)
                assert impatient.cancelled_caught
                scope.cancel()
        assert scope.cancelled_caught
        stuck_at = count.begun
        slow.permits.release(10_000)
    assert count.begun == stuck_at
    assert [record["status"] for record in ends(slow.records) if record["tool"] == "double"] == ["cancelled"]


@real_time
async def test_leaving_waits_until_all_is_written(slow: Slow) -> None:
    async with ServiceManager(evidence=slow, log=None) as manager:
        for number in range(100):
            await manager.execute(double, x=number)
        threading.Timer(0.3, slow.permits.release, [10_000]).start()
        left = time.monotonic()
    assert time.monotonic() - left >= 0.2
    assert len(ends(slow.records)) == 100


@real_time
async def test_a_sink_that_fails_lets_those_who_wait_for_it_go_on() -> None:
    class Stuck:
        """Blocks, then fails: the records that it was to get are gone, and nobody waits for it."""

        def __init__(self) -> None:
            self.fail = threading.Event()

        def write(self, records: Sequence[Mapping[str, Any]]) -> None:
            self.fail.wait(PATIENCE_S)
            raise OSError("gone")

        def close(self) -> None:
            pass

    stuck, count = Stuck(), Count()
    manager = ServiceManager(evidence=stuck, log=None, on_sink_error="continue")
    async with manager, anyio.create_task_group() as tasks:
        tasks.start_soon(by_map, manager, count)
        await count.stalled()
        assert count.begun < CALLS
        stuck.fail.set()
    assert count.begun == CALLS


async def test_a_writer_that_keeps_up_holds_up_nobody(sink: MemorySink) -> None:  # noqa: F811
    count = Count()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await by_map(manager, count)
    assert len(ends(sink.records)) == CALLS
    assert count.deepest <= HIGH_WATER + SLACK
