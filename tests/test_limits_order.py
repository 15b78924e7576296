"""Limits of which several are held at once: no order in which they are taken makes calls wait for each other."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from kgas_async import (
    CallFailed,
    CallRejected,
    ConcurrencyLimit,
    KGASTool,
    Outcome,
    Policy,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async._limits import Waiter
from kgas_async.testing import assert_clean

pytestmark = pytest.mark.real_time


@tool
async def pause() -> None:
    await anyio.sleep(0.05)


def nesting(name: str, limit: ConcurrencyLimit, nested: KGASTool) -> KGASTool:
    @tool(name=name, policy=Policy(concurrency=limit))
    async def outer() -> None:
        await anyio.sleep(0.05)
        await current().execute(nested)

    return outer


def nesting_in_thread(name: str, limit: ConcurrencyLimit, nested: KGASTool) -> KGASTool:
    @tool(name=name, policy=Policy(concurrency=limit))
    def outer() -> None:
        pause.execute()
        nested.execute()

    return outer


def rejection(outcomes: list[Outcome[Any]]) -> CallRejected:
    (failed,) = (outcome.error for outcome in outcomes if not outcome.ok)
    assert isinstance(failed, CallFailed)
    assert isinstance(failed.__cause__, CallRejected)
    return failed.__cause__


@pytest.mark.parametrize("make", [nesting, nesting_in_thread])
async def test_taking_limits_against_an_order_already_seen_raises_at_once_and_names_the_tools(make: Any) -> None:
    first, second = ConcurrencyLimit(1), ConcurrencyLimit(1)
    one = make("one", first, pause.using(name="pause_second", concurrency=second))
    other = make("other", second, pause.using(name="pause_first", concurrency=first))
    manager = ServiceManager(log=None)
    async with manager:
        with anyio.fail_after(10):
            calls = [manager.submit(one), manager.submit(other)]
            refused = rejection([await call.outcome() for call in calls])
        for name in ("one", "pause_second", "other", "pause_first"):
            assert repr(name) in str(refused)
    assert_clean(manager, first, second)


async def test_an_order_is_seen_over_several_steps() -> None:
    limits = [ConcurrencyLimit(1) for _ in range(3)]
    async with ServiceManager(log=None) as manager:
        for at in range(2):
            await manager.execute(
                nesting(f"step{at}", limits[at], pause.using(name=f"to{at + 1}", concurrency=limits[at + 1]))
            )
        back = await manager.outcome(nesting("back", limits[2], pause.using(name="to0", concurrency=limits[0])))
        assert "other order" in str(rejection([back]))


async def test_the_same_order_again_is_fine() -> None:
    first, second = ConcurrencyLimit(2), ConcurrencyLimit(1)
    one = nesting("one", first, pause.using(name="inner", concurrency=second))
    async with ServiceManager(log=None) as manager:
        calls = [manager.submit(one) for _ in range(5)]
        assert [(await call.outcome()).status for call in calls] == ["succeeded"] * 5


async def test_two_dedicated_instances_that_call_each_other_are_told() -> None:
    class Calls:
        other: KGASTool

        def execute(self, *, deeper: bool) -> None:
            pause.execute()
            if deeper:
                self.other.execute(deeper=False)

    class Left(Calls): ...

    class Right(Calls): ...

    left: KGASTool = ToolAdapter(factory=Left, instances="dedicated")
    right: KGASTool = ToolAdapter(factory=Right, instances="dedicated")
    Left.other, Right.other = right, left
    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            calls = [manager.submit(one, deeper=True) for one in (left, right)]
            rejection([await call.outcome() for call in calls])


async def test_lists_of_limits_in_opposite_orders_do_not_wait_for_each_other() -> None:
    first, second = ConcurrencyLimit(1), ConcurrencyLimit(1)
    one = pause.using(name="one", concurrency=[first, second])
    other = pause.using(name="other", concurrency=[second, first])
    async with ServiceManager(log=None) as manager:
        async with first:
            calls = [manager.submit(one)]
            await anyio.sleep(0.01)
            calls.append(manager.submit(other))  # has the second limit by now, if it takes them as they are listed
            await anyio.sleep(0.01)
        with anyio.fail_after(10):
            assert [(await call.outcome()).status for call in calls] == ["succeeded"] * 2


# --- waiters whose loop has ended


def a_waiter_of_an_ended_loop(limit: ConcurrencyLimit) -> None:
    async def wait() -> None:
        await limit.acquire()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # which would say that a pending task was destroyed
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    loop.close()


def test_a_token_passed_over_a_waiter_of_an_ended_loop_is_not_given_back_by_it_too() -> None:
    limit = ConcurrencyLimit(2)
    assert limit.acquire_nowait()
    assert limit.acquire_nowait()
    a_waiter_of_an_ended_loop(limit)
    limit.release()
    gc.collect()  # closes what waited
    assert limit.statistics().borrowed == 1


def test_a_waiter_of_an_ended_loop_may_be_collected_while_the_limit_is_in_use() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.acquire_nowait()
    a_waiter_of_an_ended_loop(limit)
    limit.release()
    with limit._lock:  # whatever this thread does, a collection may come in between
        gc.collect()
    assert limit.statistics().borrowed == 0


async def test_a_token_that_a_cancelled_waiter_gave_on_is_not_given_on_again_as_its_loop_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = ConcurrencyLimit(1)
    granted, cancelled = threading.Event(), threading.Event()

    def wake_too_late(self: Waiter) -> bool:
        granted.set()
        cancelled.wait(30)
        return False  # as of a loop that has ended meanwhile

    await limit.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limit.acquire)
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(Waiter, "wake", wake_too_late)
        thread = threading.Thread(target=limit.release)
        thread.start()
        await anyio.to_thread.run_sync(granted.wait)
        tasks.cancel_scope.cancel()
    assert limit.acquire_nowait()  # it was given on by the cancelled one
    cancelled.set()
    await anyio.to_thread.run_sync(thread.join)
    assert limit.statistics().borrowed == 1
