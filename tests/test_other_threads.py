"""The methods of a manager in other threads than its loop's: refused before anything is registered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import Call, CallCancelled, MemorySink, Phase, Pipeline, ServiceManager, check_cancelled, current, tool

HERE = "the manager's event loop runs in another thread; in a sync tool use 'tool.execute"


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def forever() -> None:
    await anyio.sleep_forever()


@tool
def polite() -> None:
    while True:
        check_cancelled()
        time.sleep(0.002)


async def enter(context: Any) -> None:
    async with context:
        pass


pipeline = Pipeline("p", Phase("double", double), item=["x"])
REFUSED: dict[str, Callable[[ServiceManager], object]] = {
    "submit": lambda manager: manager.submit(double, x=1),
    "execute": lambda manager: anyio.run(lambda: manager.execute(double, x=1)),
    "map": lambda manager: anyio.run(enter, manager.map(double, [{"x": 1}])),
    "stream": lambda manager: anyio.run(enter, manager.stream(pipeline, [{"x": 1}])),
    "run": lambda manager: anyio.run(manager.run, pipeline, [{"x": 1}]),
    "start": lambda manager: anyio.run(manager.start, object()),
    "drain": lambda manager: anyio.run(manager.drain),
    "cancel": lambda manager: anyio.run(manager.cancel),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_methods_of_the_loop_are_refused_elsewhere_and_nothing_is_registered(name: str) -> None:
    @tool
    def astray() -> str:
        with pytest.raises(RuntimeError) as refused:
            REFUSED[name](current())
        return str(refused.value)

    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(20):
            said = await manager.execute(astray)
        assert said.startswith(f"manager.{name}: {HERE}")
        assert len(manager.calls) == 0
        assert set(manager.statistics().tools) == {"astray"}
        assert await manager.execute(double, x=1) == 2


async def test_an_outcome_asked_for_elsewhere_is_rejected() -> None:
    @tool
    def astray() -> str:
        return str(anyio.run(lambda: current().outcome(double, x=1)).error)

    async with ServiceManager(log=None) as manager:
        assert HERE in await manager.execute(astray)


async def test_nested_calls_from_a_thread_go_on_by_the_sync_door() -> None:
    @tool
    def outer(x: int) -> int:
        with pytest.raises(RuntimeError, match=r"tool\.execute"):
            current().submit(double, x=x)
        return double.execute(x=x)

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(outer, x=2) == 4


@pytest.mark.parametrize("what", [forever, polite], ids=["async", "sync"])
async def test_a_call_can_be_cancelled_from_any_thread(what: Any) -> None:
    async with ServiceManager(log=None) as manager:
        call: Call[None] = manager.submit(what)
        await anyio.wait_all_tasks_blocked()
        assert await anyio.to_thread.run_sync(call.cancel, "from elsewhere") is True
        with anyio.fail_after(10), pytest.raises(CallCancelled) as cancelled:
            await call.result()
        assert cancelled.value.reason == "from elsewhere"
        assert await anyio.to_thread.run_sync(call.cancel) is False


async def test_a_call_is_waited_for_on_its_own_loop_only() -> None:
    async with ServiceManager(log=None) as manager:
        call = manager.submit(forever)
        with pytest.raises(RuntimeError, match="another thread"):
            await anyio.to_thread.run_sync(lambda: anyio.run(call.result))
        call.cancel()


async def test_counts_can_be_read_from_any_thread() -> None:
    async with ServiceManager(log=None) as manager:
        call = manager.submit(forever)
        assert list(await anyio.to_thread.run_sync(lambda: manager.calls)) == [call.id]
        assert (await anyio.to_thread.run_sync(manager.statistics)).calls_open == 1
        call.cancel()


async def test_a_call_whose_task_never_begins_ends_with_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where asyncio cancels a task before its first step."""
    with anyio.fail_after(10):
        async with ServiceManager(log=None, grace=0.05) as manager:
            monkeypatch.setattr(manager._session, "spawn", lambda *arguments: None)
            calls = [manager.submit(forever), manager.submit(double, x=1)]
            monkeypatch.undo()
    assert [call.status for call in calls] == ["cancelled", "cancelled"]


async def test_a_nested_call_that_is_cancelled_before_its_task_began_keeps_its_end() -> None:
    @tool
    def outer() -> None:
        double.execute(x=1)

    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        call = manager.submit(outer)
        session = manager._session
        assert session is not None
        spawn = session.spawn

        def spawn_and_cancel(*arguments: Any) -> None:
            spawn(*arguments)
            if any(one.name == "double" for one in session.starting):
                session.cancel_calls("now")

        session.spawn = spawn_and_cancel  # type: ignore[method-assign]
        await call.wait()
    ends = {record["tool"]: record["event"] for record in sink.records if "status" in record and "tool" in record}
    assert ends == {"double": "call.cancelled", "outer": "call.cancelled"}


async def test_a_call_that_was_cancelled_before_its_task_began_has_one_end() -> None:
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        call = manager.submit(double, x=1)
        await manager.cancel()
        assert call.status == "cancelled"
        await anyio.wait_all_tasks_blocked()
    assert [record["event"] for record in sink.records if "call_id" in record] == ["call.cancelled"]
