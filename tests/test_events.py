"""`progress()` from any tool, and `Call.events()`: what a call tells while it runs, to any number of readers."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    Call,
    CallEvents,
    CallProgress,
    CallState,
    Policy,
    Retry,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
    progress,
    tool,
)
from kgas_async._events import EVENTS_KEPT
from kgas_async.testing import explore


@tool
async def counts(n: int, pause: float = 0.0) -> int:
    for done in range(1, n + 1):
        progress(done, n, f"step {done}", half=done / 2)
        await anyio.sleep(pause)
    return n


@tool
def counts_in_thread(n: int) -> int:
    for done in range(1, n + 1):
        progress(done, total=n)
    return n


def told(events: list[Any]) -> list[Any]:
    return [event.done if isinstance(event, CallProgress) else event.status for event in events]


async def all_of(call: Call[Any]) -> list[Any]:
    return [event async for event in call.events()]


@explore(seeds=5)
async def test_progress_and_states_come_in_order_and_end_with_the_call() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(counts, n=3, pause=1)
        events = await all_of(call)
        assert told(events) == ["waiting", "running", 1, 2, 3, "succeeded"]
        assert events[-2] == call.progress
        assert (events[2].total, events[2].message, events[2].data) == (3, "step 1", {"half": 0.5})
        assert all(event.attempt == 1 for event in events[2:])
        assert [event.elapsed_s for event in events] == sorted(event.elapsed_s for event in events)


async def test_progress_comes_from_worker_threads_too() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(counts_in_thread, n=50)
        assert told(await all_of(call))[-51:] == [*range(1, 51), "succeeded"]
        assert call.progress is not None
        assert (call.progress.done, call.progress.total, call.progress.message) == (50, 50, "")


async def test_a_waiting_reader_is_woken_by_a_thread() -> None:
    go = threading.Event()

    @tool
    def tells() -> None:
        progress(1)
        go.wait(10)

    async with ServiceManager() as manager:
        call = manager.submit(tells)
        async for event in call.events():
            if isinstance(event, CallProgress):
                assert not call.has_ended
                go.set()
        assert call.status == "succeeded"


async def test_outside_of_a_call_it_does_nothing() -> None:
    progress(1, 2, "plain")
    assert await counts(2) == 2
    assert counts_in_thread(2) == 2


async def test_every_reader_gets_all_and_late_ones_what_is_the_latest() -> None:
    gate = anyio.Event()

    @tool
    async def gated() -> None:
        progress(1)
        progress(2)
        await gate.wait()
        progress(3)

    async with ServiceManager() as manager:
        call = manager.submit(gated)
        readers = [call.events(), call.events()]
        await anyio.wait_all_tasks_blocked()
        readers.append(call.events())
        gate.set()
        await call.wait()
        readers.append(call.events())
        assert [told([event async for event in reader]) for reader in readers] == [
            ["running", 1, 2, 3, "succeeded"],
            ["running", 1, 2, 3, "succeeded"],
            [2, "running", 3, "succeeded"],
            [3, "succeeded"],
        ]


async def test_a_slow_reader_gets_the_newest_and_the_end() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(counts_in_thread, n=100_000)
        events = call.events()
        await call.wait()
        seen = told([event async for event in events])
        assert len(seen) == EVENTS_KEPT
        assert seen[-3:] == [99_999, 100_000, "succeeded"]
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_a_reader_that_left_is_forgotten() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(anyio_forever)
        for _ in range(100):
            async for _event in call.events():
                break
        gc.collect()
        call.events()
        assert call._feed is not None
        assert len(call._feed._readers) <= 2
        call.cancel()
        await call.wait()


@tool(name="forever")
async def anyio_forever() -> None:
    await anyio.sleep_forever()


async def test_cancelling_a_reader_takes_nothing_and_leaves_the_call() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(anyio_forever)
        events = call.events()
        assert isinstance(await anext(events), CallState)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.001) as scope:
            async for _ in events:
                pass
        assert scope.cancelled_caught
        assert not call.has_ended
        call.cancel("enough")
        assert told([event async for event in events]) == ["cancelled"]


async def test_progress_of_a_nested_call_is_that_calls() -> None:
    inner: list[Any] = []

    @tool
    async def outer() -> None:
        progress(10)
        inner.append(current().submit(counts, n=2))
        await inner[0].result()

    @tool
    def outer_in_thread() -> None:
        progress(20)
        counts.execute(n=2)
        counts_in_thread.execute(n=2)
        progress(21)

    async with ServiceManager() as manager:
        call = manager.submit(outer)
        assert [event for event in told(await all_of(call)) if not isinstance(event, str)] == [10]
        assert inner[0].progress.done == 2
        call = manager.submit(outer_in_thread)
        assert [event for event in told(await all_of(call)) if not isinstance(event, str)] == [20, 21]


@explore(seeds=3)
async def test_attempts_and_retries_are_seen() -> None:
    tries: list[int] = []

    @tool(policy=Policy(retry=Retry(3, wait=5), timeout=60))
    async def flaky() -> None:
        tries.append(1)
        await anyio.sleep(1)
        progress(len(tries))
        await anyio.sleep(1)
        if len(tries) < 3:
            raise OSError

    async with ServiceManager() as manager:
        tries.clear()
        call = manager.submit(flaky)
        events = await all_of(call)
        assert [event.attempt for event in events if isinstance(event, CallProgress)] == [1, 2, 3]
        assert told(events)[-9:] == ["running", 1, "waiting", "running", 2, "waiting", "running", 3, "succeeded"]


async def test_what_a_thread_that_was_left_behind_tells_is_not_heard() -> None:
    started, stop, told_late = threading.Event(), threading.Event(), threading.Event()

    def hangs() -> None:
        progress(1)
        started.set()
        stop.wait(10)
        progress(2)
        told_late.set()

    async with ServiceManager(abandoned="join") as manager:
        call = manager.submit(ToolAdapter(hangs, on_cancel="abandon"))
        events = call.events()
        await anyio.to_thread.run_sync(started.wait)
        call.cancel()
        await call.wait()
        stop.set()
        await anyio.to_thread.run_sync(told_late.wait)
        assert call.progress is not None
        assert call.progress.done == 1
        assert told([event async for event in events])[-2:] == [1, "cancelled"]


async def test_many_threads_tell_many_readers() -> None:
    @tool
    def parts(n: int) -> None:
        threads = [threading.Thread(target=current_context_runner(k, n)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        call = manager.submit(parts, n=40)
        read: list[list[Any]] = []

        async def reads(events: CallEvents) -> None:
            read.append([event async for event in events])

        for events in [call.events() for _ in range(5)]:  # all of them before the call can tell anything
            group.start_soon(reads, events)
    assert len(read) == 5
    for told_to_one in read:
        seen = [(event.data["thread"], event.done) for event in told_to_one if isinstance(event, CallProgress)]
        assert len(seen) == 160
        for k in range(4):
            assert [done for thread, done in seen if thread == k] == list(range(40))


def current_context_runner(k: int, n: int) -> Any:
    from contextvars import copy_context

    context = copy_context()

    def run() -> None:
        for done in range(n):
            progress(done, thread=k)
            time.sleep(0)

    return lambda: context.run(run)


async def test_a_call_that_nobody_watches_is_a_plain_one() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(counts, n=1)
        await call.wait()
        assert type(call) is Call
        assert call.progress is not None
        assert [event.status for event in await all_of(call) if isinstance(event, CallState)] == ["succeeded"]
        assert type(call) is Call


async def test_a_running_call_can_be_watched_by_its_id() -> None:
    started = threading.Event()

    @tool
    def polite() -> None:
        while True:
            progress(1)
            started.set()
            check_cancelled()
            time.sleep(0.002)

    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def runs() -> None:
            await manager.outcome(polite)

        group.start_soon(runs)
        await anyio.to_thread.run_sync(started.wait)
        (call,) = manager.calls.values()
        async for event in call.events():
            if isinstance(event, CallProgress):
                call.cancel()
        await checkpoint()
        assert call.status == "cancelled"


async def test_a_call_that_runs_is_at_its_first_attempt_whatever_its_policy() -> None:
    async with ServiceManager() as manager:
        for how in (counts, counts.using(timeout=60), counts.using(isolated=True)):
            events = await all_of(manager.submit(how, n=1))
            seen = [(event.status, event.attempt) for event in events if isinstance(event, CallState)]
            assert seen == [("waiting", 0), ("running", 1), ("succeeded", 1)]


async def test_events_are_read_in_the_thread_of_the_loop() -> None:
    @tool
    async def never_ends() -> None:
        await anyio.sleep_forever()

    async with ServiceManager() as manager:
        call = manager.submit(never_ends)
        with pytest.raises(RuntimeError, match="the manager's event loop runs in another thread"):
            await anyio.to_thread.run_sync(call.events)
        call.cancel()
        await call.wait()
        events = await anyio.to_thread.run_sync(call.events)  # nothing more will come
        assert [event.status async for event in events if isinstance(event, CallState)] == ["cancelled"]
