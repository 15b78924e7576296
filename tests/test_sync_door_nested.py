"""`tool.execute()` in the thread of a call: a nested call of that call."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallAborted,
    CallCancelled,
    CallFailed,
    CallTimeout,
    InvalidInputs,
    KGASTool,
    MemorySink,
    Service,
    ServiceManager,
    ServiceNotRunning,
    ToolAdapter,
    current,
    tool,
)
from kgas_async._context import current_call


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def in_thread(x: int) -> int:
    return 2 * x


@tool
async def breaks() -> None:
    raise KeyError("broken")


class Store(Service):
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def ask(self) -> str:
        self.ensure_running()
        return "answer"


class Ask(KGASTool):
    def __init__(self, store: Store) -> None:
        self.store = store

    async def execute_async(self) -> str:
        return self.store.ask()


def in_foreign_thread(function: Callable[[], Any]) -> Any:
    """What the function gives, or raises, in a thread that nobody of ours knows."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001  (raised again in the thread of the test)
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


async def test_in_the_thread_of_a_call_it_is_a_nested_call_of_the_same_manager() -> None:
    managers: list[Any] = []

    @tool
    async def inner(x: int) -> int:
        managers.append(current())
        await checkpoint()
        return x + 1

    @tool
    def outer(x: int) -> int:
        managers.append(current())
        return inner.execute(x) + in_thread.execute(x=x)

    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        assert await manager.execute(outer, x=1) == 4
        assert managers == [manager, manager]
        assert manager.statistics().calls_open == 0
    ends = {one["tool"]: one for one in sink.records if "tool" in one}
    assert ends.keys() == {"inner", "in_thread", "outer"}
    assert ends["inner"]["parent_id"] == ends["in_thread"]["parent_id"] == ends["outer"]["call_id"]
    assert {one["session_id"] for one in ends.values()} == {ends["outer"]["session_id"]}


async def test_a_thread_that_waits_in_a_nested_call_lends_its_slot() -> None:
    @tool
    def deep(depth: int) -> int:
        return 0 if depth == 0 else 1 + deep.execute(depth - 1)

    async with ServiceManager(log=None, threads=1) as manager:
        assert await manager.execute(deep, depth=5) == 5
        calls = [manager.submit(deep, depth=2) for _ in range(3)]
        assert [await call.result() for call in calls] == [2, 2, 2]


@pytest.mark.parametrize("instances", ["per_thread", "dedicated"])
async def test_objects_with_threads_of_their_own_may_nest_too(instances: Any) -> None:
    class Legacy:
        def execute(self, x: int) -> int:
            return double.execute(x)

    async with ServiceManager(log=None, threads=1) as manager:
        assert await manager.execute(ToolAdapter(factory=Legacy, instances=instances), x=2) == 4


async def test_a_nested_call_inherits_the_deadline_and_may_only_have_an_earlier_one() -> None:
    @tool
    async def inner() -> tuple[float, float | None]:
        call: Any = current_call.get()
        return call.deadline_at, call.parent.deadline_at

    @tool
    def outer() -> list[Any]:
        return [inner.execute(), inner.using(deadline=2000).execute(), inner.using(deadline=10).execute()]

    async with ServiceManager(log=None) as manager:
        before = anyio.current_time()
        inherited, later, earlier = await manager.execute(outer.using(deadline=1000))
    assert before + 1000 <= inherited[0] <= anyio.current_time() + 1000
    assert inherited == (inherited[1], inherited[1]) == later
    assert earlier[0] <= anyio.current_time() + 10
    assert earlier[1] == inherited[0]


async def test_when_the_deadline_has_passed_the_nested_call_has_ended_too() -> None:
    ended: list[str] = []

    @tool
    async def inner() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("inner")

    @tool
    def outer() -> None:
        inner.execute()

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallTimeout, match="tool 'outer'"):
            await manager.execute(outer.using(deadline=0.05))
        assert ended == ["inner"]
        assert manager.statistics().calls_open == 0


async def test_a_nested_call_ends_with_the_call_that_it_is_nested_in() -> None:
    began = threading.Event()
    seen: list[BaseException] = []

    @tool
    async def inner() -> None:
        began.set()
        await anyio.sleep_forever()

    @tool
    def outer() -> None:
        try:
            inner.execute()
        except BaseException as error:
            seen.append(error)
            raise

    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        call = manager.submit(outer)
        await anyio.to_thread.run_sync(began.wait)
        call.cancel("enough")
        with anyio.fail_after(10):
            await call.wait()
    assert [type(error) for error in seen] == [CallAborted]
    assert {one["tool"]: one["status"] for one in sink.records if "tool" in one and "status" in one} == {
        "inner": "cancelled",
        "outer": "cancelled",
    }


async def test_a_nested_call_that_is_cancelled_alone_is_told_to_the_thread_that_waits() -> None:
    began = threading.Event()

    @tool
    async def inner() -> None:
        began.set()
        await anyio.sleep_forever()

    @tool
    def outer() -> str:
        try:
            inner.execute()
        except CallCancelled as error:
            return error.reason
        return "not cancelled"

    async with ServiceManager(log=None) as manager:
        call = manager.submit(outer)
        await anyio.to_thread.run_sync(began.wait)
        (nested,) = (one for one in manager.calls.values() if one.name == "inner")
        nested.cancel("by hand")
        assert await call.result() == "by hand"


async def test_errors_of_nested_calls_are_raised_in_the_thread() -> None:
    kinds: list[Any] = []

    @tool
    def outer(inner: Any) -> None:
        try:
            inner.execute()
        except Exception as error:
            kinds.append((type(error), type(error.__cause__)))
            raise

    async with ServiceManager(log=None) as manager:
        for inner in (breaks, double, Ask(Store())):
            with pytest.raises(CallFailed, match="tool 'outer' failed"):
                await manager.execute(outer, inner=inner)
    nothing = type(None)
    assert kinds == [(CallFailed, KeyError), (InvalidInputs, nothing), (ServiceNotRunning, nothing)]


async def test_the_backend_of_a_nested_tool_is_that_of_its_manager() -> None:
    @tool
    async def which() -> str:
        return sniffio.current_async_library()

    @tool
    def outer() -> list[str]:
        which.backend = "trio"
        first = which.execute()
        which.backend = "asyncio"
        return [first, which.execute()]

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(outer) == [sniffio.current_async_library()] * 2


async def test_a_thread_that_a_tool_starts_with_its_context_nests_too_and_without_it_stands_alone() -> None:
    @tool
    async def manager_here() -> Any:
        return current()

    @tool
    def outer() -> list[Any]:
        context = copy_context()
        return [in_foreign_thread(lambda: context.run(manager_here.execute)), in_foreign_thread(manager_here.execute)]

    @tool
    async def async_outer() -> Any:
        return await anyio.to_thread.run_sync(manager_here.execute)

    async with ServiceManager(log=None) as manager:
        inside, outside = await manager.execute(outer)
        assert inside is manager
        assert outside is not manager
        assert await manager.execute(async_outer) is manager


async def test_when_its_call_has_ended_a_thread_that_went_on_is_told() -> None:
    contexts: list[Any] = []

    @tool
    def outer() -> None:
        contexts.append(copy_context())

    async with ServiceManager(log=None) as manager:
        await manager.execute(outer)
        with pytest.raises(CallAborted, match="which this thread works for, has ended"):
            await anyio.to_thread.run_sync(in_foreign_thread, lambda: contexts[0].run(double.execute, 1))
