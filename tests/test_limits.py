"""Concurrency limits: how many run at once, who comes next, and that each token comes back when its work is done."""

from __future__ import annotations

import asyncio
import pickle
import threading
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallRejected,
    CallTimeout,
    ConcurrencyLimit,
    KGASTool,
    Policy,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@dataclass
class Count:
    inside: int = 0
    most: int = 0
    runs: int = 0


class Gauge(KGASTool):
    """Counts in the tool itself how many run at once; its copies count together."""

    def __init__(self) -> None:
        self.count = Count()

    async def execute_async(self) -> None:
        count = self.count
        count.runs += 1
        count.inside += 1
        count.most = max(count.most, count.inside)
        try:
            for _ in range(3):
                await checkpoint()
        finally:
            count.inside -= 1


async def many(manager: ServiceManager, tool: KGASTool, count: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(manager.execute, tool)


# --- what is refused


@pytest.mark.parametrize("total", [0, -1])
def test_a_limit_below_one_is_refused_by_value(total: int) -> None:
    with pytest.raises(ValueError, match=rf"ConcurrencyLimit\(total\) must be at least 1, not {total}"):
        ConcurrencyLimit(total)


@pytest.mark.parametrize("total", [float("nan"), float("inf"), 2.0, "2", True, None])
def test_a_limit_that_is_no_whole_number_is_refused_by_type(total: Any) -> None:
    with pytest.raises(TypeError, match=r"ConcurrencyLimit\(total\) must be a whole number"):
        ConcurrencyLimit(total)


def test_the_same_limit_twice_in_one_policy_is_refused() -> None:
    # A call would wait for a token that it holds itself.
    limit = ConcurrencyLimit(1)
    with pytest.raises(ValueError, match="twice"):
        Policy(concurrency=[limit, ConcurrencyLimit(1), limit])


async def test_a_token_that_was_not_taken_cannot_be_given_back() -> None:
    with pytest.raises(RuntimeError, match="not taken"):
        ConcurrencyLimit(1).release()


# --- how many


@explore(seeds=10)
async def test_never_more_than_the_limit_run_at_once_and_as_many_as_it_allows_do() -> None:
    gauge = Gauge()
    async with ServiceManager(log=None) as manager:
        await many(manager, gauge.using(concurrency=3), 20)
    assert gauge.count.most == 3
    assert gauge.count.runs == 20


async def test_an_object_is_shared_by_all_tools_it_is_given_to() -> None:
    limit = ConcurrencyLimit(2)
    gauge = Gauge()
    one, other = gauge.using(name="one", concurrency=limit), gauge.using(name="other", concurrency=limit)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:
        group.start_soon(many, manager, one, 10)
        group.start_soon(many, manager, other, 10)
    assert (gauge.count.runs, gauge.count.most) == (20, 2)
    assert_clean(manager, limit)
    assert limit.statistics().peak == 2


async def test_an_object_is_shared_by_two_managers() -> None:
    gauge = Gauge()
    limited = gauge.using(concurrency=ConcurrencyLimit(2))
    async with (
        ServiceManager(log=None) as manager,
        ServiceManager(log=None) as other,
        anyio.create_task_group() as group,
    ):
        group.start_soon(many, manager, limited, 10)
        group.start_soon(many, other, limited, 10)
    assert (gauge.count.runs, gauge.count.most) == (20, 2)


async def test_a_number_is_a_limit_of_each_tool_name() -> None:
    gauge = Gauge()
    one, other = gauge.using(name="one", concurrency=2), gauge.using(name="other", concurrency=2)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:
        group.start_soon(many, manager, one, 10)
        group.start_soon(many, manager, other, 10)
    assert gauge.count.most == 4


async def test_a_copy_that_keeps_its_name_shares_the_number_with_the_original() -> None:
    gauge = Gauge().using(concurrency=2)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:
        group.start_soon(many, manager, gauge, 10)
        group.start_soon(many, manager, gauge.using(timeout=60), 10)
    assert (gauge.count.runs, gauge.count.most) == (20, 2)


async def test_of_several_limits_each_one_holds() -> None:
    gauge = Gauge()
    wide, narrow = ConcurrencyLimit(5), ConcurrencyLimit(2)
    async with ServiceManager(log=None) as manager:
        await many(manager, gauge.using(concurrency=[wide, narrow]), 10)
    assert gauge.count.most == 2
    assert wide.statistics().peak == 5
    assert_clean(manager, wide, narrow)


# --- the line


async def test_waiters_are_served_first_come_first_served() -> None:
    limit = ConcurrencyLimit(1)
    served: list[int] = []

    async def waiter(number: int) -> None:
        async with limit:
            served.append(number)

    async with anyio.create_task_group() as group, limit:
        for number in range(5):
            group.start_soon(waiter, number)
            await anyio.wait_all_tasks_blocked()
        assert limit.statistics().waiting == 5
    assert served == [0, 1, 2, 3, 4]


async def test_a_newcomer_does_not_overtake_a_token_that_was_granted() -> None:
    limit = ConcurrencyLimit(1)
    await limit.acquire()
    async with anyio.create_task_group() as group:
        group.start_soon(limit.acquire)
        await anyio.wait_all_tasks_blocked()
        limit.release()  # the waiter has it from here on, though it has not woken up yet
        assert not limit.acquire_nowait()
    assert limit.statistics().borrowed == 1
    limit.release()


async def test_a_cancelled_waiter_leaves_the_line() -> None:
    limit = ConcurrencyLimit(1)
    async with limit:
        with anyio.move_on_after(0):
            await limit.acquire()
        assert limit.statistics().waiting == 0
    assert_clean(limit)


async def test_a_token_granted_to_a_waiter_that_is_cancelled_at_that_moment_goes_to_the_next() -> None:
    limit = ConcurrencyLimit(1)
    served: list[str] = []

    async def waiter(name: str) -> None:
        async with limit:
            served.append(name)

    await limit.acquire()
    async with anyio.create_task_group() as group:
        doomed = anyio.CancelScope()

        async def cancelled() -> None:
            with doomed:
                await waiter("doomed")

        group.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(waiter, "next")
        await anyio.wait_all_tasks_blocked()
        limit.release()
        doomed.cancel()
    assert "next" in served
    assert_clean(limit)


@asyncio_only
async def test_a_token_granted_to_a_task_that_is_cancelled_natively_at_that_moment_goes_to_the_next() -> None:
    limit = ConcurrencyLimit(1)
    await limit.acquire()
    doomed, after = asyncio.create_task(limit.acquire()), asyncio.create_task(limit.acquire())
    await anyio.wait_all_tasks_blocked()
    limit.release()
    doomed.cancel()
    await after
    assert doomed.cancelled()
    limit.release()
    assert_clean(limit)


# --- calls


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_work_cancelled_while_it_waits_for_a_token_never_starts(kind: str) -> None:
    ran: list[str] = []

    async def in_task() -> None:
        ran.append(kind)

    def in_thread() -> None:
        ran.append(kind)

    limit = ConcurrencyLimit(1)
    limited = ToolAdapter(in_task if kind == "async" else in_thread, policy=Policy(concurrency=limit))
    async with ServiceManager(log=None) as manager:
        async with limit:
            call = manager.submit(limited)
            await anyio.wait_all_tasks_blocked()
            call.cancel()
            await call.wait()
        await checkpoint()
    assert ran == []
    assert call.status == "cancelled"
    assert_clean(manager, limit)


async def test_a_failing_tool_gives_its_token_back() -> None:
    limit = ConcurrencyLimit(1)

    @tool(policy=Policy(concurrency=limit))
    async def failing() -> None:
        raise ValueError("no")

    async with ServiceManager(log=None) as manager:
        for _ in range(3):
            assert (await manager.outcome(failing)).status == "failed"
    assert_clean(manager, limit)


async def test_tokens_of_a_list_are_given_back_when_a_later_one_does_not_come() -> None:
    first, second = ConcurrencyLimit(1), ConcurrencyLimit(1)
    gauge = Gauge().using(concurrency=[first, second], deadline=0.01)
    async with ServiceManager(log=None) as manager:
        async with second:
            with pytest.raises(CallTimeout):
                await manager.execute(gauge)
        assert_clean(first)
        await manager.execute(gauge)


@tool
async def inner() -> str:
    return "inner"


@tool
def inner_in_thread() -> str:
    return "inner"


@pytest.mark.parametrize("wanted", [inner, inner_in_thread], ids=["async", "thread"])
async def test_taking_a_limit_that_ones_own_chain_holds_raises_at_once_and_names_both_tools(wanted: Any) -> None:
    limit = ConcurrencyLimit(1)
    limited = wanted.using(concurrency=limit)

    @tool
    async def between() -> str:
        return await current().execute(limited)

    @tool(policy=Policy(concurrency=limit))
    async def outer() -> str:
        return await current().execute(between)

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(outer)
    cause = outcome.error.__cause__.__cause__ if outcome.error and outcome.error.__cause__ else None
    assert isinstance(cause, CallRejected)
    assert "'outer'" in str(cause)
    assert repr(limited.name) in str(cause)
    assert_clean(manager, limit)


async def test_a_thread_that_wants_a_limit_of_its_own_chain_is_told_at_once() -> None:
    limit = ConcurrencyLimit(2)  # with two tokens it would not be stuck yet, but two such calls would be

    @tool(policy=Policy(concurrency=limit))
    def outer() -> str:
        return inner.using(concurrency=limit).execute()

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(outer)
    assert outcome.error is not None
    assert isinstance(outcome.error.__cause__, CallRejected)
    assert_clean(manager, limit)


# --- one loop after another


def test_a_limit_made_at_import_serves_one_loop_after_another() -> None:
    limit = ConcurrencyLimit(1)
    gauge = Gauge().using(concurrency=limit)

    async def main() -> None:
        async with ServiceManager(log=None) as manager:
            await many(manager, gauge, 5)
        assert_clean(manager, limit)

    for backend in ("asyncio", "trio", "asyncio", "trio"):
        anyio.run(main, backend=backend)


@pytest.mark.parametrize("backends", [("asyncio", "trio", "asyncio"), ("trio", "asyncio", "trio")])
def test_a_token_held_by_a_thread_of_an_ended_loop_is_waited_for_in_the_second_and_free_in_the_third(
    backends: tuple[str, ...],
) -> None:
    limit = ConcurrencyLimit(1)
    let_go, begun = threading.Event(), threading.Event()

    @tool(on_cancel="abandon", policy=Policy(concurrency=limit))
    def stuck() -> None:
        begun.set()
        let_go.wait(30)

    async def abandon_it() -> None:
        async with ServiceManager(log=None, grace=0) as manager:
            call = manager.submit(stuck)
            await anyio.to_thread.run_sync(begun.wait)
            call.cancel()
        assert call.abandoned

    async def find_it_held() -> None:
        assert limit.statistics().borrowed == 1
        gauge = Gauge()
        async with ServiceManager(log=None) as manager:
            late = await manager.outcome(gauge.using(concurrency=limit, deadline=0.01))
            assert late.status == "timed_out"
            call = manager.submit(gauge.using(concurrency=limit))
            await anyio.wait_all_tasks_blocked()
            assert gauge.count.runs == 0
            let_go.set()  # the thread of the loop that has ended hands its token to this loop
            await call.result()
            assert gauge.count.runs == 1

    async def find_it_free() -> None:
        assert limit.statistics().borrowed == 0
        async with limit:
            pass

    for main, backend in zip((abandon_it, find_it_held, find_it_free), backends, strict=True):
        anyio.run(main, backend=backend)
    assert_clean(limit)


def test_two_loops_at_once_share_a_limit() -> None:
    limit = ConcurrencyLimit(2)
    lock = threading.Lock()
    inside = most = 0

    async def worker() -> None:
        nonlocal inside, most
        for _ in range(20):
            async with limit:
                with lock:
                    inside += 1
                    most = max(most, inside)
                await checkpoint()
                with lock:
                    inside -= 1

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(worker)

    threads = [
        threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": name}) for name in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert most <= 2
    assert_clean(limit)


def test_a_limit_pickles_without_its_tokens() -> None:
    limit = ConcurrencyLimit(3)
    limit.acquire_nowait()
    copy = pickle.loads(pickle.dumps(limit))
    assert copy.total == 3
    assert copy.statistics().borrowed == 0
