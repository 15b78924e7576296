"""manager.map: items do not touch each other, whatever one of them does; and a slow consumer is never overrun."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import CallFailed, ManagerClosed, Policy, Progress, ServiceManager, tool
from kgas_async.testing import explore

from .test_map import collect, double, forever, picky

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
seen_by: ContextVar[int | None] = ContextVar("seen_by", default=None)


async def test_what_one_item_sets_in_its_context_the_next_does_not_see() -> None:
    @tool
    async def leaves_traces(x: int) -> int | None:
        before = seen_by.get()
        seen_by.set(x)
        await checkpoint()
        assert seen_by.get() == x
        return before

    @tool
    def leaves_traces_in_a_thread(x: int) -> int | None:
        before = seen_by.get()
        seen_by.set(x)
        return before

    seen_by.set(-1)
    async with ServiceManager(threads=2) as manager:
        for how in (leaves_traces, leaves_traces_in_a_thread):
            outcomes = await collect(manager, how, ({"x": n} for n in range(100)), in_flight=5)
            assert {outcome.value for outcome in outcomes} == {-1}
    assert seen_by.get() == -1


@explore(seeds=10)
async def test_two_hundred_random_cancels_of_single_calls_never_hit_another() -> None:
    chance = random.Random(4)

    @tool
    async def steps(x: int) -> int:
        for _ in range(x % 5):
            await checkpoint()
        await anyio.sleep(x % 3)
        return x

    asked: dict[int, bool] = {}
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def canceller() -> None:
            while len(asked) < 200:
                for _ in range(chance.randrange(4)):
                    await checkpoint()
                calls = [call for call in manager.calls.values() if call.index not in asked]
                if not calls:
                    await anyio.sleep(chance.random())
                    continue
                call = chance.choice(calls)
                asked[call.index] = call.cancel("race")

        group.start_soon(canceller)
        outcomes = await collect(manager, steps, ({"x": n} for n in range(700)), in_flight=8)
        group.cancel_scope.cancel()
    assert [outcome.index for outcome in outcomes] == list(range(700))
    cancelled = {outcome.index for outcome in outcomes if outcome.status == "cancelled"}
    assert cancelled <= asked.keys()
    assert len(cancelled) > 100
    assert all(outcome.value == outcome.index for outcome in outcomes if outcome.ok)
    assert all(outcome.ok for outcome in outcomes if outcome.index not in asked)


@pytest.mark.parametrize("how", [forever, forever.using(isolated=True)], ids=["shared", "isolated"])
async def test_each_call_of_a_map_is_cancelled_alone(how: Any) -> None:
    async with ServiceManager() as manager, anyio.create_task_group() as group:
        statuses: list[str] = []

        async def iterate() -> None:
            async with manager.map(how, [{"x": n} for n in range(6)], in_flight=2, ordered=False) as outcomes:
                async for outcome in outcomes:
                    statuses.append(outcome.status)

        group.start_soon(iterate)
        for done in range(6):
            await anyio.wait_all_tasks_blocked()
            assert len(manager.calls) == min(2, 6 - done)
            (first, *_) = manager.calls
            assert await manager.cancel(first)
            await anyio.wait_all_tasks_blocked()
            assert statuses == ["cancelled"] * (done + 1)


@asyncio_only
@pytest.mark.parametrize("isolated", [False, True])
async def test_tools_that_cancel_themselves_fail_alone_and_the_map_goes_on(isolated: bool) -> None:
    @tool(policy=Policy(isolated=isolated))
    async def wild(x: int) -> int:
        if x % 4 == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)
        if x % 4 == 2:
            raise asyncio.CancelledError
        await checkpoint()
        return x

    async with ServiceManager() as manager:
        outcomes = await collect(manager, wild, ({"x": n} for n in range(100)), in_flight=3)
    assert [outcome.status for outcome in outcomes] == ["succeeded", "failed", "failed", "succeeded"] * 25
    assert all(isinstance(outcome.error, CallFailed) for outcome in outcomes if not outcome.ok)


@asyncio_only
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_tool_that_cancels_its_task_and_returns_does_not_harm_the_next(waits: bool, times: int) -> None:
    @tool
    async def wild(x: int) -> int:
        if x % 2:
            task = asyncio.current_task()
            assert task is not None
            for _ in range(times):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if waits:
                    await asyncio.sleep(1)
        else:
            await checkpoint()
        return x

    async with ServiceManager() as manager:
        outcomes = await collect(manager, wild, ({"x": n} for n in range(100)), in_flight=3)
    assert [outcome.index for outcome in outcomes] == list(range(100))
    assert all(outcome.ok for outcome in outcomes if outcome.index % 2 == 0)


async def test_a_scope_that_a_tool_cancels_inside_is_its_own() -> None:
    @tool
    async def scoped(x: int) -> int:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await checkpoint()
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.cancel_scope.cancel()
        return x

    async with ServiceManager() as manager:
        outcomes = await collect(manager, scoped, ({"x": n} for n in range(50)), in_flight=3)
    assert [outcome.value for outcome in outcomes] == list(range(50))


async def test_a_group_that_a_tool_raises_is_its_failure_with_the_group_as_cause() -> None:
    @tool
    async def grouped(x: int) -> int:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            raise ValueError(x)
        return x

    async with ServiceManager() as manager:
        outcomes = await collect(manager, grouped, [{"x": 1}, {"x": 2}])
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
    assert all(isinstance(outcome.error.__cause__, ExceptionGroup) for outcome in outcomes if outcome.error)


async def test_leaving_a_map_cancels_and_waits_for_what_is_in_flight() -> None:
    cleaned: list[int] = []

    @tool
    async def slow(x: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(x):
                    await checkpoint()
            cleaned.append(x)

    async with ServiceManager() as manager:
        async with manager.map(slow, ({"x": n} for n in range(100)), in_flight=10):
            await anyio.wait_all_tasks_blocked()
        assert sorted(cleaned) == list(range(10))
        assert not manager.calls


async def test_an_error_in_the_loop_over_outcomes_comes_out_as_it_is() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(KeyError, match="mine"):
            async with manager.map(double, ({"x": n} for n in range(100))) as outcomes:
                async for outcome in outcomes:
                    if outcome.index == 5:
                        raise KeyError("mine")
        assert not manager.calls
        assert await manager.execute(double, x=1) == 2


async def test_cancelling_one_who_waits_for_an_outcome_takes_none() -> None:
    gate = anyio.Event()

    @tool
    async def gated(x: int) -> int:
        await gate.wait()
        return x

    async with ServiceManager() as manager, manager.map(gated, [{"x": n} for n in range(3)]) as outcomes:
        for _ in range(3):
            with anyio.move_on_after(0):
                await anext(outcomes)
        gate.set()
        assert [outcome.value async for outcome in outcomes] == [0, 1, 2]


@pytest.mark.parametrize("shielded", [True, False])
async def test_one_who_is_cancelled_with_its_calls_is_not_given_their_outcomes(shielded: bool) -> None:
    @tool
    async def first_ends(x: int) -> None:
        await (checkpoint() if x == 0 else anyio.sleep_forever())

    seen = []
    with anyio.CancelScope() as scope:
        async with ServiceManager() as manager, manager.map(first_ends, [{"x": n} for n in range(3)]) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.status)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                with anyio.CancelScope(shield=shielded):
                    await anyio.sleep(0.01)
    assert scope.cancelled_caught
    assert seen == ["succeeded"]


async def test_two_tasks_may_share_the_outcomes() -> None:
    shares: list[list[int]] = [[], []]
    items = ({"x": n} for n in range(100))
    async with ServiceManager() as manager, manager.map(double, items, in_flight=3) as outcomes:

        async def take(share: list[int]) -> None:
            async for outcome in outcomes:
                share.append(outcome.index)
                await checkpoint()

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for share in shares:
                    group.start_soon(take, share)
    assert sorted(shares[0] + shares[1]) == list(range(100))
    assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_with_a_slow_consumer_the_source_is_never_more_than_the_window_ahead(kind: str) -> None:
    async def slow_consumer() -> None:
        pulled = taken = 0
        worst = 0

        def source() -> Iterator[dict[str, int]]:
            nonlocal pulled, worst
            while True:
                pulled += 1
                worst = max(worst, pulled - taken)
                yield {"x": pulled}

        async def async_source() -> AsyncIterator[dict[str, int]]:
            for one in source():
                await checkpoint()
                yield one

        items = source() if kind == "sync" else async_source()
        async with ServiceManager() as manager, manager.map(double, items, in_flight=6) as outcomes:
            async for _ in outcomes:
                taken += 1
                await anyio.sleep(0.001)
                if anyio.current_time() > 10:
                    break
        assert taken > 9_000
        assert worst <= 24

    explore(slow_consumer, seeds=1)


async def test_progress_is_told_after_each_outcome() -> None:
    told: list[Progress] = []
    async with ServiceManager() as manager:
        await collect(manager, picky, [{"x": n} for n in range(20)], on_progress=told.append)
        await collect(manager, double, ({"x": n} for n in range(2)), on_progress=told.append)
    assert [progress.done for progress in told] == [*range(1, 21), 1, 2]
    assert (told[19].failed, told[19].total, told[-1].total) == (2, 20, None)
    assert told[0].elapsed_s <= told[19].elapsed_s


async def test_an_error_in_on_progress_ends_the_map_with_it() -> None:
    def broken(progress: Progress) -> None:
        raise KeyError("the bar")

    async with ServiceManager() as manager:
        with pytest.raises(KeyError, match="the bar"):
            await collect(manager, double, [{"x": n} for n in range(20)], on_progress=broken)
        assert not manager.calls


async def test_a_map_in_a_manager_that_is_not_open_is_refused() -> None:
    manager = ServiceManager()
    with pytest.raises(ManagerClosed):
        await collect(manager, double, [])


async def test_a_fast_tool_over_a_long_source_lets_others_run() -> None:
    turns = 0

    @tool
    async def nothing(x: int) -> None:
        pass

    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await checkpoint()

        group.start_soon(other)
        async with manager.map(nothing, ({"x": n} for n in range(20_000)), ordered=False) as outcomes:
            async for _ in outcomes:
                pass
        group.cancel_scope.cancel()
    assert turns > 50  # of 20,000 items at some microseconds each


async def test_worker_threads_are_used_side_by_side() -> None:
    import threading

    meeting = threading.Barrier(4, timeout=10)

    @tool
    def meets(x: int) -> int:
        meeting.wait()
        return x

    async with ServiceManager(threads=4) as manager:
        outcomes = await collect(manager, meets, [{"x": n} for n in range(8)])
    assert [outcome.value for outcome in outcomes] == list(range(8))
