"""Timed-out and cancelled threads: what the limit admits, who gives its token back, what is on record."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import anyio.to_thread
import pytest

from kgas_async import CallTimeout, ConcurrencyLimit, KGASTool, MemorySink, Policy, ServiceManager, tool
from kgas_async.testing import assert_clean

pytestmark = pytest.mark.real_time


class Inside:
    """Counts what is in the tool, in the tool."""

    def __init__(self) -> None:
        self.now = self.peak = self.starts = self.ends = 0
        self.two = threading.Event()
        self._lock = threading.Lock()

    def stay(self, seconds: float) -> None:
        with self._lock:
            self.now += 1
            self.starts += 1
            self.peak = max(self.peak, self.now)
            if self.now == 2:
                self.two.set()
        time.sleep(seconds)
        with self._lock:
            self.now -= 1
            self.ends += 1


def stays(inside: Inside, seconds: float, **policy: object) -> KGASTool:
    @tool(on_cancel="abandon")
    def stay(x: int) -> int:
        inside.stay(seconds)
        return x

    return stay.using(**policy)


@pytest.mark.parametrize("calls", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_abandoned_threads_keep_their_tokens_until_they_end(calls: int) -> None:
    inside, limit, sink = Inside(), ConcurrencyLimit(2), MemorySink()
    manager = ServiceManager(log=None, evidence=sink, abandoned="join")
    async with manager:
        stay = stays(inside, 0.1, timeout=0.01, concurrency=limit)
        async with manager.map(stay, range(calls), arg="x") as outcomes:
            errors = [outcome.error async for outcome in outcomes]
    assert [type(error) for error in errors] == [CallTimeout] * calls
    events = Counter(record["event"] for record in sink.records)
    assert events["call.timed_out"] == calls
    # Where the loop hears of a timeout after 90 ms more, the thread has ended by itself, and was not left behind.
    left = sum(record.get("abandoned", False) for record in sink.records if record["event"] == "call.timed_out")
    assert events["thread.ended"] == left >= 0.9 * calls
    assert inside.starts == inside.ends == calls
    assert inside.peak == limit.statistics().peak == 2
    assert_clean(manager, limit)


async def test_healthy_calls_do_not_time_out_while_they_wait_for_a_thread() -> None:
    stalled = set()

    @tool(policy=Policy(timeout=0.2))
    def stay(x: int) -> None:
        began = time.monotonic()
        time.sleep(0.05)
        if time.monotonic() - began > 0.15:  # a busy machine has kept it for so long: that is no health
            stalled.add(x)

    async with ServiceManager(log=None, threads=4) as manager, manager.map(stay, range(100), arg="x") as outcomes:
        ended = {outcome.index: outcome.status async for outcome in outcomes}
    late = {x for x, status in ended.items() if status != "succeeded"}
    assert late <= stalled
    assert len(stalled) < 20  # of 100, of which 84 wait for longer than the timeout


async def test_a_value_that_comes_after_the_timeout_is_a_timeout() -> None:
    @tool(policy=Policy(timeout=0.1))  # on_cancel="wait": the thread is waited for, and is late
    def late() -> int:
        time.sleep(0.4)
        return 1

    async with ServiceManager(log=None) as manager:
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            await manager.execute(late)
        assert time.monotonic() - began >= 0.4


@pytest.fixture
def on_asyncio(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own cancellation")


@pytest.mark.parametrize("way", ["wait_for", "task.cancel"])
async def test_native_cancellation_loses_no_token_and_no_thread(way: str, on_asyncio: None) -> None:
    inside, limit, sink = Inside(), ConcurrencyLimit(2), MemorySink()
    manager = ServiceManager(log=None, evidence=sink, abandoned="join")
    async with manager:
        stay = stays(inside, 0.05, concurrency=limit)
        if way == "wait_for":

            async def one(x: int) -> None:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(manager.execute(stay, x=x), 0.01)

            await asyncio.gather(*[one(x) for x in range(20)])
        else:
            tasks = [asyncio.create_task(manager.execute(stay, x=x)) for x in range(20)]
            await anyio.to_thread.run_sync(inside.two.wait)  # some have begun, the others wait for a token
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)
    assert inside.starts == inside.ends
    assert inside.peak <= 2
    events = Counter(record["event"] for record in sink.records)
    assert events["call.cancelled"] == 20
    assert events["thread.ended"] == inside.ends
    assert_clean(manager, limit)
