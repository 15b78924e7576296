"""Row 19 of rows.md: an operation does not outlive its caller; there it did.

However a call is started, and whoever the caller is: once the caller has ended, nothing that it had asked for runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio

from kgas_async import (
    Call,
    CallCancelled,
    CallTimeout,
    KGASTool,
    MemorySink,
    Phase,
    Pipeline,
    Policy,
    ServiceManager,
    check_cancelled,
    current,
    tool,
)
from kgas_async.testing import assert_clean

from . import process_tools
from .process_tools import is_running, until, written


class Works:
    """Two tools that work until they are told to stop, and count: begun, at work."""

    def __init__(self) -> None:
        self.begun = self.at_work = 0
        self._lock = threading.Lock()

        @tool
        async def waits(x: int) -> None:
            self._count(1)
            try:
                await anyio.sleep_forever()
            finally:
                self._count(-1)

        @tool
        def polls(x: int) -> None:
            self._count(1)
            try:
                while True:
                    check_cancelled()
                    time.sleep(0.002)
            finally:
                self._count(-1)

        self.tools: dict[str, KGASTool] = {"async": waits, "thread": polls}

    def _count(self, change: int) -> None:
        with self._lock:
            self.begun += change > 0
            self.at_work += change


# How a caller starts what runs, with two at once where there can be two.

Way = Callable[[ServiceManager, KGASTool], Awaitable[object]]


async def by_execute(manager: ServiceManager, one: KGASTool) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: manager.execute(one, x=1))
        group.start_soon(lambda: manager.outcome(one, x=2))


async def by_gather(manager: ServiceManager, one: KGASTool) -> None:
    await manager.gather({"a": one, "b": one}, {"x": 1})


async def by_race(manager: ServiceManager, one: KGASTool) -> None:
    await manager.race({"a": one, "b": one}, {"x": 1})


async def by_map(manager: ServiceManager, one: KGASTool) -> None:
    async with manager.map(one, range(100), arg="x", in_flight=2) as outcomes:
        async for _ in outcomes:
            pass


async def by_run(manager: ServiceManager, one: KGASTool) -> None:
    await manager.run(Pipeline("p", Phase("a", one), item=["x"]), ({"x": n} for n in range(100)), in_flight=2)


async def by_stream(manager: ServiceManager, one: KGASTool) -> None:
    async with manager.stream(Pipeline("p", Phase("a", one), item=["x"]), [{"x": 1}, {"x": 2}]) as outcomes:
        async for _ in outcomes:
            pass


async def by_nesting(manager: ServiceManager, one: KGASTool) -> None:
    @tool
    async def passes_on(x: int) -> None:
        await by_execute(current(), one)

    await manager.execute(passes_on, x=1)


async def by_the_sync_door(manager: ServiceManager, one: KGASTool) -> None:
    @tool
    def asks(x: int) -> None:
        one.execute(x=x)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: manager.execute(asks, x=1))
        group.start_soon(lambda: manager.execute(asks, x=2))


WAYS: dict[str, Way] = {
    "execute": by_execute, "gather": by_gather, "race": by_race, "map": by_map, "run": by_run, "stream": by_stream,
    "nested": by_nesting, "sync door": by_the_sync_door,
}  # fmt: skip


# Who the caller is, and how it comes to its end.

Caller = Callable[[ServiceManager, Callable[[], Awaitable[object]], Works], Awaitable[None]]


async def two_at_work(works: Works) -> None:
    await until(lambda: works.at_work == 2)


async def a_scope(manager: ServiceManager, use: Callable[[], Awaitable[object]], works: Works) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await two_at_work(works)
        group.cancel_scope.cancel()


async def a_deadline(manager: ServiceManager, use: Callable[[], Awaitable[object]], works: Works) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            await two_at_work(works)
            scope.deadline = anyio.current_time()


async def a_native_task(manager: ServiceManager, use: Callable[[], Awaitable[object]], works: Works) -> None:
    if sniffio.current_async_library() != "asyncio":
        await a_scope(manager, use, works)  # trio has no other
        return
    task = asyncio.ensure_future(use())
    await two_at_work(works)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def a_tool(manager: ServiceManager, use: Callable[[], Awaitable[object]], works: Works) -> None:
    @tool
    async def caller() -> None:
        await use()

    call = manager.submit(caller)
    await two_at_work(works)
    call.cancel("nobody wants it any more")
    with pytest.raises(CallCancelled, match="nobody wants it any more"):
        await call.result()


async def a_tool_that_times_out(manager: ServiceManager, use: Callable[[], Awaitable[object]], works: Works) -> None:
    @tool(policy=Policy(timeout=0.3))
    async def caller() -> None:
        await use()

    with pytest.raises(CallTimeout):
        await manager.execute(caller)


CALLERS: dict[str, Caller] = {
    "a scope": a_scope, "a deadline": a_deadline, "a native task": a_native_task, "a tool": a_tool,
    "a tool that times out": a_tool_that_times_out,
}  # fmt: skip


@pytest.mark.parametrize("what", ["async", "thread"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caller", CALLERS)
async def test_nothing_that_was_started_outlives_its_caller(caller: str, way: str, what: str) -> None:
    works = Works()
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, grace=100, threads=8) as manager:
        await CALLERS[caller](manager, lambda: WAYS[way](manager, works.tools[what]), works)
        assert works.at_work == 0  # at once, and not some time after it
        assert not manager.calls
        begun = works.begun
        await anyio.sleep(0.01)
        assert works.begun == begun  # what had not begun never does
    ends = [one["status"] for one in sink.records if one.get("tool") in ("waits", "polls") and "status" in one]
    assert len(ends) >= begun
    assert set(ends) <= {"cancelled"}
    assert_clean(manager)


@pytest.mark.parametrize("what", ["async", "thread"])
async def test_what_a_tool_has_submitted_ends_with_it(what: str) -> None:
    works = Works()
    inner: list[Call[Any]] = []

    @tool
    async def caller() -> None:
        inner.extend(current().submit(works.tools[what], x=n) for n in range(2))
        await anyio.sleep_forever()

    async with ServiceManager(log=None, grace=100) as manager:
        call = manager.submit(caller)
        await two_at_work(works)
        call.cancel()
        await call.wait()
        assert [await one.wait(10) for one in inner] == [True, True]
        assert works.at_work == 0
        assert [one.status for one in inner] == ["cancelled", "cancelled"]
        assert not manager.calls
    assert_clean(manager)


@pytest.mark.real_time  # real processes
@pytest.mark.parametrize("way", ["execute", "gather", "nested"])
async def test_no_process_works_on_for_a_caller_that_has_gone(way: str, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    works = process_tools.works_on

    @tool
    async def there(x: int) -> None:
        await current().execute(works, path=path)

    async with ServiceManager(log=None, processes=2) as manager:
        async with anyio.create_task_group() as group:
            if way == "execute":
                group.start_soon(lambda: manager.execute(works, path=path))
                group.start_soon(lambda: manager.execute(works, path=path))
            elif way == "gather":
                group.start_soon(lambda: manager.gather({"a": works, "b": works}, {"path": path}))
            else:
                group.start_soon(lambda: by_gather(manager, there))
            pids = await written(path, 2)
            assert all(is_running(pid) for pid in pids)
            group.cancel_scope.cancel()
        assert not any(is_running(pid) for pid in pids)
        assert not manager.calls
    assert_clean(manager)
