"""`gather` and `race`: several tools on the same inputs, results by name, and nothing left of those that lose."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel, ConfigDict

from kgas_async import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    ConcurrencyLimit,
    KGASTool,
    ManagerClosed,
    MemorySink,
    Policy,
    Service,
    ServiceManager,
    ServiceNotRunning,
    ToolAdapter,
    check_cancelled,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def square(x: int) -> int:
    return x * x


@tool
async def after(seconds: float, value: str = "done") -> str:
    await anyio.sleep(seconds)
    return value


@tool
async def breaks(x: int = 0) -> int:
    await checkpoint()
    raise KeyError(x)


@tool
async def forever(x: int = 0) -> None:
    await anyio.sleep_forever()


# --- gather


async def test_async_and_sync_tools_run_together_and_give_their_values_by_name() -> None:
    async with ServiceManager() as manager:
        values = await manager.gather({"twice": double, "squared": square, "again": double}, {"x": 3})
        assert list(values.items()) == [("twice", 6), ("squared", 9), ("again", 6)]
        assert await manager.gather({}) == {}
        assert not manager.calls


@explore(seeds=2)
async def test_they_take_as_long_as_the_slowest() -> None:
    async with ServiceManager() as manager:
        await manager.gather({str(n): after.using(name=f"after{n}") for n in range(9)}, {"seconds": 5})
        assert anyio.current_time() == pytest.approx(5)


async def test_each_tool_gets_the_inputs_that_it_takes() -> None:
    @tool
    async def named(name: str, x: int = 1) -> str:
        return f"{name}{x}"

    class Anything(BaseModel):
        model_config = ConfigDict(extra="allow")

    adapted = ToolAdapter(lambda request: sorted(request.model_extra), inputs=Anything, name="adapted")
    async with ServiceManager() as manager:
        assert await manager.gather({"a": double, "b": named}, {"x": 2, "name": "n"}) == {"a": 4, "b": "n2"}
        assert await manager.gather({"a": double, "c": adapted}, {"x": 2, "y": 3}) == {"a": 4, "c": ["x", "y"]}


async def test_an_input_that_no_tool_takes_is_a_mistake() -> None:
    async with ServiceManager() as manager:
        for collected in ("raise", "collect"):
            with pytest.raises(TypeError, match="'xx' is no input of any of these tools; they take seconds, value, x"):
                await manager.gather({"a": double, "b": after}, {"x": 2, "xx": 3}, collected)  # type: ignore[call-overload]
        assert manager.statistics().tools["double"].calls == 0
        with pytest.raises(TypeError, match="is no tool; wrap it"):
            await manager.gather({"a": double, "b": print}, {"x": 2})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match=r"'raise' or 'collect', not 0\.5"):
            await manager.gather({"a": double}, {"x": 2}, 0.5)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="at least one tool"):
            await manager.race({}, {"x": 2})


@explore(seeds=5)
async def test_the_first_failure_cancels_the_rest_and_comes_plain() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        with pytest.raises(CallFailed, match="KeyError") as caught:
            await manager.gather({"a": after, "b": breaks, "c": forever}, {"seconds": 50, "x": 1})
        assert not manager.calls
        assert anyio.current_time() < 1
    assert isinstance(caught.value.__cause__, KeyError)
    ends = {record["tool"]: record for record in sink.records if "status" in record and "tool" in record}
    assert {name: end["status"] for name, end in ends.items()} == {
        "after": "cancelled", "breaks": "failed", "forever": "cancelled",
    }  # fmt: skip
    assert ends["after"]["reason"] == "another tool has failed"
    assert_clean(manager)


@explore(seeds=5)
async def test_several_that_failed_come_in_a_group() -> None:
    gate = anyio.Event()

    class Gated(KGASTool):
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def execute_async(self) -> None:
            await gate.wait()
            raise self.error

    @tool
    async def opens() -> None:
        await anyio.wait_all_tasks_blocked()
        gate.set()  # both go on in the same pass of the loop, before anybody hears of the first failure
        await anyio.sleep_forever()

    a, b = OSError("a"), ValueError("b")
    async with ServiceManager() as manager:
        with pytest.raises(ExceptionGroup, match="2 of the 3 tools of a gather failed") as caught:
            await manager.gather({"a": Gated(a).using(name="a"), "b": Gated(b).using(name="b"), "c": opens})
    assert [error.__cause__ for error in caught.value.exceptions] == [a, b]


async def test_collected_failures_are_outcomes_beside_the_values() -> None:
    async with ServiceManager() as manager:
        tools: dict[str, KGASTool] = {"good": double, "bad": breaks, "odd": after.using(name="odd", timeout=0)}
        outcomes = await manager.gather(tools, {"x": 1, "seconds": 5}, on_error="collect")
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": "succeeded", "bad": "failed", "odd": "timed_out",
    }  # fmt: skip
    assert outcomes["good"].value == 2
    assert [outcome.key for outcome in outcomes.values()] == list(tools)


@explore(seeds=3)
async def test_a_timeout_around_gather_bounds_the_whole() -> None:
    limit = ConcurrencyLimit(2)
    async with ServiceManager() as manager:
        slow = after.using(concurrency=limit)
        with pytest.raises(TimeoutError):
            with anyio.fail_after(2):
                await manager.gather({"a": slow, "b": slow, "c": slow}, {"seconds": 10})
        assert anyio.current_time() == pytest.approx(2)
        assert not manager.calls
        with pytest.raises(TimeoutError):
            with anyio.fail_after(2):
                await manager.race({"a": slow, "b": slow}, {"seconds": 10})
        assert not manager.calls
    assert_clean(manager, limit)


async def test_a_call_that_somebody_cancels_is_told_and_ends_the_gather() -> None:
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def gathers() -> None:
            with pytest.raises(CallCancelled, match="by hand"):
                await manager.gather({"a": forever, "b": forever})
            with pytest.raises(CallCancelled, match="all of them"):
                await manager.race({"a": forever, "b": forever})
            await checkpoint()  # it was not cancelled itself

        group.start_soon(gathers)
        await anyio.wait_all_tasks_blocked()
        first, _ = manager.calls.values()
        first.cancel("by hand")
        await anyio.wait_all_tasks_blocked()
        await manager.cancel(reason="all of them")


class Store(Service):
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class UsesStore(KGASTool):
    def __init__(self) -> None:
        self.store = Store()

    async def execute_async(self, x: int) -> int:
        return x


async def test_a_tool_whose_service_does_not_run_has_failed_and_the_others_are_not_begun() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(ServiceNotRunning):
            await manager.gather({"a": double, "b": UsesStore()}, {"x": 1})
        assert manager.statistics().tools["double"].calls == 0
        outcomes = await manager.gather({"a": double, "b": UsesStore()}, {"x": 1}, on_error="collect")
        assert [outcome.status for outcome in outcomes.values()] == ["succeeded", "rejected"]
        assert isinstance(outcomes["b"].error, ServiceNotRunning)
        assert (await manager.race({"b": UsesStore(), "a": double}, {"x": 1})).value == 2
        with pytest.raises(ServiceNotRunning):
            await manager.race({"b": UsesStore()}, {"x": 1})


async def test_a_manager_that_drains_admits_none_but_nested_ones() -> None:
    started, go = anyio.Event(), anyio.Event()

    @tool
    async def outer() -> Any:
        started.set()
        await go.wait()
        return await current().gather({"a": double, "b": square}, {"x": 3})

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        call = manager.submit(outer)
        await started.wait()
        group.start_soon(manager.drain)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ManagerClosed):
            await manager.gather({"a": double}, {"x": 1})
        with pytest.raises(ManagerClosed):
            await manager.race({"a": double}, {"x": 1})
        go.set()
        assert await call.result() == {"a": 6, "b": 9}


@explore(seeds=3)
async def test_a_nested_gather_has_its_callers_deadline_and_ends_with_it() -> None:
    @tool(policy=Policy(deadline=3))
    async def outer() -> None:
        await current().gather({"a": forever, "b": forever})

    async with ServiceManager() as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(outer)
        assert anyio.current_time() == pytest.approx(3)
        assert not manager.calls


# --- race


@explore(seeds=3)
async def test_the_first_success_wins_and_the_others_are_cancelled_and_waited_for() -> None:
    ended: list[str] = []

    @tool
    async def cleans_up(seconds: float) -> str:
        try:
            await anyio.sleep(seconds * 10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            ended.append("cleaned")
        return "late"

    async with ServiceManager() as manager:
        winner = await manager.race({"broken": breaks, "slow": cleans_up, "quick": after}, {"seconds": 2, "x": 1})
        assert (winner.ok, winner.value, winner.key, winner.tool) == (True, "done", "quick", "after")
        assert ended == ["cleaned"]
        assert anyio.current_time() == pytest.approx(3)
        assert not manager.calls


async def test_a_race_that_all_lose_raises_the_one_error_or_a_group() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(CallFailed, match="KeyError"):
            await manager.race({"a": breaks}, {"x": 1})
        with pytest.raises(ExceptionGroup, match="2 of the 2 tools of a race failed") as caught:
            await manager.race({"a": breaks, "b": breaks}, {"x": 1})
    assert [type(error) for error in caught.value.exceptions] == [CallFailed, CallFailed]


async def test_a_sync_tool_that_looks_loses_a_race_at_once() -> None:
    started = threading.Event()

    @tool
    def polite(x: int) -> int:
        started.set()
        while True:
            check_cancelled()
            time.sleep(0.002)

    @tool
    async def waits_for_it(x: int) -> int:
        await anyio.to_thread.run_sync(started.wait)
        return x

    async with ServiceManager(grace=1000) as manager:
        with anyio.fail_after(10):
            assert (await manager.race({"a": polite, "b": waits_for_it}, {"x": 5})).value == 5
    assert_clean(manager)


@explore(seeds=20)
async def test_of_two_that_succeed_at_once_one_wins() -> None:
    async with ServiceManager() as manager:
        tools = {name: after.using(name=name) for name in "abc"}
        winner = await manager.race(tools, {"seconds": 1})
        assert winner.ok
        assert winner.key == winner.tool
        assert anyio.current_time() == pytest.approx(1)
        done = manager.statistics().tools
        assert sum(one.calls for one in done.values()) == 3


@explore(seeds=10)
async def test_one_who_is_cancelled_while_the_losers_end_is_cancelled() -> None:
    @tool
    async def lingers(seconds: float) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    async with ServiceManager() as manager:
        with anyio.move_on_after(2) as scope:
            await manager.race({"a": lingers, "b": after}, {"seconds": 1})
            await checkpoint()
        assert scope.cancelled_caught
        assert not manager.calls
        assert anyio.current_time() == pytest.approx(6)
