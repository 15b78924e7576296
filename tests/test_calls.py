"""Single calls: waited for, cancelled alone, told apart from their caller's own cancellation."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallCancelled,
    CallFailed,
    ManagerClosed,
    PipelineError,
    ServiceManager,
    check_cancelled,
    current,
    tool,
)
from kgas_async.testing import explore


@tool
async def forever() -> None:
    await anyio.sleep_forever()


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def breaks() -> None:
    await checkpoint()
    raise KeyError("broken")


@tool
def polite(started: Any) -> None:
    started.set()
    while True:
        check_cancelled()
        time.sleep(0.002)


# --- waiting


async def test_a_submitted_call_gives_its_result_outcome_and_times() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(double, x=4)
        assert not call.has_ended
        assert await call.result() == 8
        outcome = await call.outcome()
    assert (call.status, call.name, call.tool) == ("succeeded", "double", double)
    assert call.has_ended
    assert call.id.startswith(call.bound.home.session)
    assert call.inputs == {"x": 4}
    assert call.started is not None
    assert 0 <= call.started <= call.duration < 10
    assert (outcome.ok, outcome.value, outcome.attempts, outcome.tool) == (True, 8, 1, "double")


async def test_the_result_of_a_failed_call_raises_once_per_waiter() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(breaks)
        for _ in range(2):
            with pytest.raises(CallFailed, match="KeyError: 'broken'") as caught:
                await call.result()
            assert isinstance(caught.value.__cause__, KeyError)
        outcome = await call.outcome()
        assert (outcome.ok, outcome.status, outcome.value) == (False, "failed", None)


@explore(seeds=3)
async def test_waiting_with_a_timeout_never_ends_the_call() -> None:
    @tool
    async def ten_seconds() -> str:
        await anyio.sleep(10)
        return "done"

    async with ServiceManager() as manager:
        call = manager.submit(ten_seconds)
        for _ in range(3):
            assert await call.wait(2) is False
            assert call.status == "running"
        assert anyio.current_time() == pytest.approx(6)
        assert await call.wait(20) is True
        assert await call.wait(0) is True
        assert await call.result() == "done"
        assert anyio.current_time() == pytest.approx(10)


async def test_cancelling_one_who_waits_leaves_the_call_running() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(forever)
        for wait in (call.wait, call.result, call.outcome):
            with anyio.move_on_after(0.001) as scope:
                await wait()
            assert scope.cancelled_caught
        assert call.status == "running"
        call.cancel()


async def test_many_wait_for_one_call() -> None:
    gate = anyio.Event()

    @tool
    async def gated() -> int:
        await gate.wait()
        return 7

    results: list[int] = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:
        call = manager.submit(gated)

        async def wait() -> None:
            results.append(await call.result())

        for _ in range(5):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert results == [7] * 5


# --- cancelling


async def test_a_cancelled_call_tells_those_who_wait_why() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(forever)
        await anyio.wait_all_tasks_blocked()
        assert call.cancel("not needed") is True
        with pytest.raises(CallCancelled, match="'forever' was cancelled: not needed") as caught:
            await call.result()
        assert (caught.value.reason, caught.value.call_id, caught.value.tool) == ("not needed", call.id, "forever")
        outcome = await call.outcome()
        assert outcome.status == "cancelled"
        assert call.cancel("again") is False
        assert call.reason == "not needed"


async def test_a_call_cancelled_before_its_first_step_never_runs() -> None:
    ran = []

    @tool
    async def runs() -> None:
        ran.append(1)

    async with ServiceManager() as manager:
        call = manager.submit(runs)
        call.cancel("at once")
        await call.wait()
    assert call.status == "cancelled"
    assert ran == []


async def test_a_sync_call_cancelled_while_it_waits_for_a_thread_never_starts() -> None:
    ran = []
    started = threading.Event()

    @tool
    def runs() -> None:
        ran.append(1)

    async with ServiceManager(threads=1) as manager:
        first = manager.submit(polite, started=started)
        await anyio.wait_all_tasks_blocked()
        second = manager.submit(runs)
        await anyio.wait_all_tasks_blocked()
        second.cancel()
        await second.wait()
        first.cancel()
        await first.wait()
        assert (first.status, second.status) == ("cancelled", "cancelled")
        assert await manager.execute(double, x=1) == 2
    assert ran == []


async def test_a_cooperative_sync_call_ends_at_its_next_look() -> None:
    started = threading.Event()
    async with ServiceManager(grace=1000) as manager:
        call = manager.submit(polite, started=started)
        await anyio.to_thread.run_sync(started.wait)
        call.cancel("enough")
        with anyio.fail_after(5):
            await call.wait()
        assert call.status == "cancelled"
        assert not call.abandoned


async def test_the_caller_of_a_call_that_somebody_else_cancels_is_told_and_not_cancelled() -> None:
    told = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def caller() -> None:
            with pytest.raises(CallCancelled, match="by hand"):
                await manager.execute(forever)
            await checkpoint()  # it was not cancelled itself
            told.append(True)

        group.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        (call,) = manager.calls.values()
        call.cancel("by hand")
    assert told == [True]


async def test_cancel_by_id_ends_that_call_alone_and_waits_for_it() -> None:
    async with ServiceManager() as manager:
        first, second = manager.submit(forever), manager.submit(forever)
        await anyio.wait_all_tasks_blocked()
        assert set(manager.calls) == {first.id, second.id}
        assert await manager.cancel(first.id, "one") is True
        assert (first.status, second.status) == ("cancelled", "running")
        assert set(manager.calls) == {second.id}
        assert await manager.cancel(first.id) is False
        assert await manager.cancel("nonsense") is False
        second.cancel()


async def test_cancel_without_id_ends_all_calls_and_keeps_the_manager_open() -> None:
    async with ServiceManager() as manager:
        calls = [manager.submit(forever) for _ in range(5)]
        await anyio.wait_all_tasks_blocked()
        assert await manager.cancel(reason="stop") is True
        assert {call.status for call in calls} == {"cancelled"}
        assert {call.reason for call in calls} == {"stop"}
        assert await manager.cancel() is False
        assert await manager.execute(double, x=3) == 6


async def test_cancel_without_id_ends_maps_and_says_so_to_who_iterates() -> None:
    statuses = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def iterate() -> None:
            async with manager.map(forever, ({} for _ in range(9)), in_flight=2) as outcomes:
                with pytest.raises(
                    PipelineError, match="cancelled after 2 items, before the end of the source: enough"
                ):
                    async for outcome in outcomes:
                        statuses.append(outcome.status)

        group.start_soon(iterate)
        await anyio.wait_all_tasks_blocked()
        assert await manager.cancel(reason="enough")
    assert statuses == ["cancelled", "cancelled"]


async def test_a_tool_may_cancel_all_calls_its_own_among_them() -> None:
    @tool
    async def stops_all() -> None:
        await current().cancel(reason="from within")
        await checkpoint()

    async with ServiceManager() as manager:
        others = [manager.submit(forever) for _ in range(2)]
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(CallCancelled, match="from within"):
            await manager.execute(stops_all)
        for call in others:
            await call.wait()
        assert {call.status for call in others} == {"cancelled"}
        assert await manager.execute(double, x=1) == 2


async def test_a_cancelled_call_cancels_what_it_had_submitted() -> None:
    inner: list[Any] = []

    @tool
    async def outer() -> None:
        inner.append(current().submit(forever))
        await anyio.sleep_forever()

    async with ServiceManager() as manager:
        call = manager.submit(outer)
        await anyio.wait_all_tasks_blocked()
        call.cancel("outer")
        await call.wait()
        with anyio.fail_after(1):
            await inner[0].wait()
        assert inner[0].status == "cancelled"


@explore(seeds=10)
async def test_a_cancel_at_the_moment_of_the_end_leaves_one_clear_status() -> None:
    @tool
    async def one_second(x: int) -> int:
        await anyio.sleep(1)
        return x

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        calls = [manager.submit(one_second, x=n) for n in range(20)]

        async def cancel(call: Any) -> None:
            await anyio.sleep(1)
            was_open = call.cancel("race")
            await call.wait()
            assert (call.status == "succeeded") or was_open

        for call in calls:
            group.start_soon(cancel, call)
    assert {call.status for call in calls} <= {"succeeded", "cancelled"}
    for n, call in enumerate(calls):
        if call.status == "succeeded":
            assert call.unwrap() == n
    assert not any(state for state in manager_is_empty(manager))


def manager_is_empty(manager: ServiceManager) -> list[str]:
    try:
        return list(manager.calls)
    except ManagerClosed:
        return []


@tool
def square(x: int) -> int:
    return x * x


@pytest.mark.parametrize("how", [double, double.using(isolated=True), double.using(timeout=60), square])
async def test_a_submitted_call_runs_from_when_its_task_begins(how: Any) -> None:
    async with ServiceManager(log=None) as manager:
        call = manager.submit(how, x=1)
        until = time.perf_counter() + 0.05
        while time.perf_counter() < until:  # whoever submitted it has more to do first
            pass
        outcome = await call.outcome()
    assert call.started is not None
    assert call.started >= 0.05
    assert outcome.run_s <= call.duration - 0.05
