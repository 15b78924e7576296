"""Whose turn it is among calls that wait for a token: priorities, ageing, and the worker pool that they make."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import anyio
import pytest

from kgas_async import (
    CallCancelled,
    ConcurrencyLimit,
    ManagerClosed,
    Policy,
    Priority,
    ServiceManager,
    current,
    tool,
)
from kgas_async._context import current_call
from kgas_async._priority import AGEING, priority_of
from kgas_async.testing import assert_clean, explore


def noting(limit: Any, served: list[Any]) -> Any:
    """A tool that notes in which order its calls began."""

    @tool(policy=Policy(concurrency=limit))
    async def note(name: Any) -> Any:
        served.append(name)
        await anyio.lowlevel.checkpoint()
        return name

    return note


@explore(seeds=10)
async def test_critical_overtakes_low_and_equals_are_served_first_come_first_served() -> None:
    limit = ConcurrencyLimit(1)
    served: list[Any] = []
    note = noting(limit, served)
    async with ServiceManager(log=None) as manager, limit:
        for priority in (Priority.LOW, Priority.NORMAL, Priority.CRITICAL, Priority.HIGH, 5):
            for number in range(2):
                manager.options(priority=priority).submit(note, name=(int(priority), number))
                await anyio.wait_all_tasks_blocked()
        assert limit.statistics().waiting == 10
    assert served == [(priority, number) for priority in (9, 6, 5, 3, 0) for number in range(2)]
    assert_clean(manager, limit)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_low_is_not_starved_by_a_stream_of_critical_calls(kind: str) -> None:
    limit = ConcurrencyLimit(1)
    served: list[int] = []

    async def in_task(priority: int) -> None:
        served.append(priority)

    def in_thread(priority: int) -> None:
        served.append(priority)

    note = tool(in_task if kind == "async" else in_thread).using(name="note", concurrency=limit)
    async with ServiceManager(log=None) as manager:

        def submit(priority: int) -> None:
            call = manager.options(priority=priority).submit(note, priority=priority)
            if priority == Priority.CRITICAL and len(served) < 60:
                call.on_end = lambda _: again()  # as one ends, the next is there

        def again() -> None:
            with suppress(ManagerClosed):  # enough were served: it is being left
                submit(Priority.CRITICAL)

        async with limit:
            for priority in (Priority.LOW, Priority.LOW, Priority.CRITICAL, Priority.CRITICAL, Priority.CRITICAL):
                submit(priority)
            await anyio.wait_all_tasks_blocked()
        while len(served) <= 60:  # noqa: ASYNC110  (threads may be at it)
            await anyio.sleep(0.001)
    lows = [place for place, priority in enumerate(served) if priority == Priority.LOW]
    assert len(served) > 60
    latest = [AGEING, 2 * AGEING + 1]
    if kind == "async":  # a thread hands its token on before the loop hears of its end and the next one is submitted
        assert lows == latest
    assert all(place <= at for place, at in zip(lows, latest, strict=True))


async def test_a_policy_gives_a_priority_and_an_option_another() -> None:
    limit = ConcurrencyLimit(1)
    served: list[Any] = []
    note = noting(limit, served)
    async with ServiceManager(log=None) as manager, limit:
        manager.submit(note, name="normal")
        manager.submit(note.using(priority=Priority.HIGH), name="high")
        manager.submit(note.using(priority=Priority.LOW), name="low")
        manager.options(priority=Priority.CRITICAL).submit(note.using(priority=Priority.LOW), name="critical")
        await anyio.wait_all_tasks_blocked()
    assert served == ["critical", "high", "normal", "low"]


async def test_a_nested_call_has_the_priority_of_the_call_that_it_is_nested_in_unless_given_one() -> None:
    seen: list[tuple[str, int]] = []

    @tool
    async def inner(name: str) -> None:
        call: Any = current_call.get()
        seen.append((name, priority_of(call)))

    @tool
    async def outer(deeper: bool = True) -> None:
        if deeper:
            await current().execute(outer, deeper=False)
        await current().execute(inner, name="its parent's")
        await current().execute(inner.using(priority=2), name="its policy's")
        await current().options(priority=Priority.HIGH).execute(inner, name="its own")

    async with ServiceManager(log=None) as manager:
        await manager.options(priority=Priority.CRITICAL).execute(outer)
        await manager.execute(inner, name="without any")
    assert seen == [("its parent's", 9), ("its policy's", 2), ("its own", 6)] * 2 + [("without any", 3)]


async def test_code_of_a_tool_that_enters_a_limit_waits_with_the_priority_of_its_call() -> None:
    limit = ConcurrencyLimit(1)
    served: list[str] = []

    @tool
    async def enters(name: str) -> None:
        async with limit:
            served.append(name)

    async with ServiceManager(log=None) as manager, limit:
        for name, priority in (("low", Priority.LOW), ("normal", Priority.NORMAL), ("high", Priority.HIGH)):
            manager.options(priority=priority).submit(enters, name=name)
            await anyio.wait_all_tasks_blocked()
    assert served == ["high", "normal", "low"]
    assert_clean(manager, limit)


async def test_a_cancelled_critical_call_passes_its_token_to_the_next_by_priority() -> None:
    limit = ConcurrencyLimit(1)
    served: list[Any] = []
    note = noting(limit, served)
    async with ServiceManager(log=None) as manager:
        await limit.acquire()
        low = manager.options(priority=Priority.LOW).submit(note, name="low")
        high = manager.options(priority=Priority.HIGH).submit(note, name="high")
        critical = manager.options(priority=Priority.CRITICAL).submit(note, name="critical")
        await anyio.wait_all_tasks_blocked()
        limit.release()  # critical has it from here on
        critical.cancel()
        with pytest.raises(CallCancelled):
            await critical.result()
        await high.wait()
        await low.wait()
    assert [name for name in served if name != "critical"] == ["high", "low"]
    assert_clean(manager, limit)


async def test_acquire_takes_a_priority_and_refuses_what_is_none() -> None:
    limit = ConcurrencyLimit(1)
    order: list[int] = []

    async def take(priority: int) -> None:
        await limit.acquire(priority)
        order.append(priority)
        limit.release()

    async with anyio.create_task_group() as tasks, limit:
        for priority in (0, 9, 4):
            tasks.start_soon(take, priority)
        await anyio.wait_all_tasks_blocked()
        for wrong, kind in ((10, ValueError), ("HIGH", TypeError)):
            with pytest.raises(kind, match=r"acquire\(priority\)"):
                await limit.acquire(wrong)  # type: ignore[arg-type]
    assert order == [9, 4, 0]


def test_waiters_of_two_loops_are_served_by_priority() -> None:
    limit = ConcurrencyLimit(1)
    served: list[int] = []
    waiting = threading.Barrier(3)

    async def main(priority: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take, priority)
            await anyio.wait_all_tasks_blocked()
            waiting.wait(10)

    async def take(priority: int) -> None:
        await limit.acquire(priority)
        served.append(priority)
        limit.release()

    assert limit.acquire_nowait()
    threads = [
        threading.Thread(target=anyio.run, args=(main, priority), kwargs={"backend": name})
        for priority, name in ((Priority.LOW, "asyncio"), (Priority.CRITICAL, "trio"))
    ]
    for thread in threads:
        thread.start()
    waiting.wait(10)
    assert limit.statistics().waiting == 2
    limit.release()
    for thread in threads:
        thread.join(10)
    assert served == [9, 0]
    assert_clean(limit)


# --- the worker pool of row 17: submit, a limit and priorities


async def test_submit_with_a_limit_and_priorities_is_a_worker_pool() -> None:
    # Was: results kept forever, and CRITICAL ran after all LOW.
    pool = ConcurrencyLimit(3)
    ended: list[int] = []
    inside = most = 0
    lock = threading.Lock()

    @tool(policy=Policy(concurrency=pool))
    def job(number: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        with lock:
            inside -= 1
            ended.append(number)
        return number * number

    async with ServiceManager(log=None) as manager:
        calls = [manager.options(priority=Priority.LOW).submit(job, number=number) for number in range(600)]
        async with pool:  # hold one back, so that there is a queue
            urgent = [manager.options(priority=Priority.CRITICAL).submit(job, number=-n) for n in range(1, 6)]
            for call in urgent:
                await call.result()
            done = len(ended)
        assert done < 300  # they did not wait for all that were there before
        assert [await call.result() for call in calls] == [number * number for number in range(600)]
        calls.clear()
        assert len(manager.calls) == 0
        assert sum(1 for n in range(700) if manager.find(f"{manager.session_id}-{n}")) <= 256  # the rest is forgotten
    assert most <= 3
    assert_clean(manager, pool)


def test_a_priority_in_a_script() -> None:
    seen: list[int] = []

    @tool
    def look() -> None:
        call: Any = current_call.get()
        seen.append(priority_of(call))

    with ServiceManager(log=None).blocking() as manager:
        manager.options(priority=Priority.HIGH).execute(look)
        manager.options(priority=1).submit(look).result()
    assert seen == [6, 1]
