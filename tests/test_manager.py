"""Who owns what: after leaving a manager nothing of it runs, however it is left."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    KGASTool,
    ManagerClosed,
    Phase,
    Pipeline,
    ServiceManager,
    check_cancelled,
    tool,
)

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@tool
async def forever() -> None:
    await anyio.sleep_forever()


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def polite() -> None:
    while True:
        check_cancelled()
        time.sleep(0.002)


def our_threads(manager: ServiceManager) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if manager.session_id in thread.name]


async def gone(threads: list[threading.Thread]) -> bool:
    """Idle threads end by themselves once the pool is closed."""
    with anyio.move_on_after(2):
        while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110  (a thread's end is no event)
            await anyio.sleep(0.001)
    return not any(thread.is_alive() for thread in threads)


def task_ids() -> set[int]:
    return {task.id for task in anyio.get_running_tasks()}


class Cleaning(KGASTool):
    """Its clean-up takes several checkpoints."""

    def __init__(self) -> None:
        self.cleaned = 0

    async def execute_async(self) -> None:
        await anyio.sleep_forever()

    async def cleanup_resources(self, call: Any) -> None:
        for _ in range(5):
            await checkpoint()
        await anyio.sleep(0.001)
        self.cleaned += 1


# --- leaving


async def test_after_leaving_no_task_and_no_thread_of_it_is_left() -> None:
    before = task_ids()
    async with ServiceManager() as manager:
        submitted = [manager.submit(forever), manager.submit(polite)]
        async with manager.map(double, ({"x": n} for n in range(50))) as outcomes:
            assert [outcome.value async for outcome in outcomes] == [2 * n for n in range(50)]
        await anyio.wait_all_tasks_blocked()
        threads = our_threads(manager)
        assert threads
        for call in submitted:
            call.cancel()
    assert task_ids() == before
    assert [call.status for call in submitted] == ["cancelled", "cancelled"]
    assert await gone(threads)


async def test_cancelling_the_scope_around_it_ends_all_calls_and_waits_for_their_clean_up() -> None:
    cleaning = Cleaning()
    before = task_ids()
    with anyio.CancelScope() as scope:
        async with ServiceManager(grace=5) as manager:
            calls = [manager.submit(cleaning) for _ in range(5)] + [manager.submit(polite)]
            await anyio.wait_all_tasks_blocked()
            threads = our_threads(manager)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert cleaning.cleaned == 5
    assert {call.status for call in calls} == {"cancelled"}
    assert task_ids() == before
    assert await gone(threads)


@asyncio_only
@pytest.mark.parametrize("times", [1, 3])
async def test_native_cancellation_ends_all_calls_and_waits_for_their_clean_up(times: int) -> None:
    cleaning = Cleaning()
    calls: list[Any] = []
    threads: list[threading.Thread] = []
    ready = anyio.Event()

    async def session() -> None:
        async with ServiceManager(grace=5) as manager:
            calls.extend([manager.submit(cleaning), manager.submit(polite)])
            await anyio.wait_all_tasks_blocked()
            threads.extend(our_threads(manager))
            ready.set()
            await anyio.sleep_forever()

    task = asyncio.get_running_loop().create_task(session())
    await ready.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait({task})
    assert task.cancelled()
    assert cleaning.cleaned == 1
    assert [call.status for call in calls] == ["cancelled", "cancelled"]
    assert await gone(threads)


@asyncio_only
async def test_wait_for_around_a_manager_times_out_when_its_calls_have_ended() -> None:
    cleaning = Cleaning()

    async def session() -> None:
        async with ServiceManager() as manager:
            await manager.execute(cleaning)

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(session(), 0.01)
    assert cleaning.cleaned == 1


@asyncio_only
async def test_wait_for_around_one_call_leaves_the_manager_usable() -> None:
    async with ServiceManager() as manager:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(manager.execute(polite), 0.01)
        assert await manager.execute(double, x=4) == 8
        assert manager.statistics().tools["polite"].cancelled == 3
        assert not manager.calls


async def test_an_exception_of_the_body_comes_out_as_it_is() -> None:
    error = KeyError("the body's own")
    with pytest.raises(KeyError) as caught:
        async with ServiceManager() as manager:
            manager.submit(forever)
            raise error
    assert caught.value is error


async def test_a_group_raised_by_the_body_comes_out_as_it_is() -> None:
    group = ExceptionGroup("two", [KeyError("a"), ValueError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with ServiceManager():
            raise group
    assert caught.value is group


async def test_a_group_of_one_raised_by_the_body_is_not_unwrapped() -> None:
    group = ExceptionGroup("one", [KeyError("a")])
    with pytest.raises(ExceptionGroup) as caught:
        async with ServiceManager():
            raise group
    assert caught.value is group


async def test_an_exception_of_the_body_cancels_what_runs_at_once() -> None:
    call = None
    with pytest.raises(KeyError):
        async with ServiceManager(grace=1000) as manager:
            call = manager.submit(forever)
            await anyio.wait_all_tasks_blocked()
            raise KeyError
    assert call is not None
    assert call.status == "cancelled"


@pytest.mark.parametrize("interrupt", [SystemExit(7), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
async def test_an_exit_in_an_async_tool_ends_the_session_and_comes_out_bare(interrupt: BaseException) -> None:
    @tool
    async def leaves() -> None:
        raise interrupt

    call = None
    with pytest.raises(type(interrupt)) as caught:
        async with ServiceManager() as manager:
            call = manager.submit(leaves)
            await anyio.sleep_forever()
    assert caught.value is interrupt
    assert call is not None
    assert call.status == "failed"


async def test_an_exit_in_a_thread_is_the_failure_of_its_call_alone() -> None:
    @tool
    def leaves(how: str) -> None:
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "stop": StopIteration}[how]

    async with ServiceManager() as manager:
        for how, kind in (("exit", SystemExit), ("interrupt", KeyboardInterrupt), ("stop", StopIteration)):
            outcome = await manager.outcome(leaves, how=how)
            assert outcome.status == "failed"
            assert outcome.error is not None
            assert isinstance(outcome.error.__cause__, kind)
        assert await manager.execute(double, x=1) == 2


async def test_a_manager_is_opened_again_after_it_was_left() -> None:
    manager = ServiceManager()
    sessions = set()
    for _ in range(3):
        async with manager:
            sessions.add(manager.session_id)
            assert await manager.execute(double, x=2) == 4
    assert len(sessions) == 3


async def test_a_manager_that_is_open_cannot_be_opened_twice() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(RuntimeError, match="open already"):
            async with manager:
                pass
        assert await manager.execute(double, x=2) == 4


async def test_outside_of_its_lifetime_each_method_says_how_to_open_it() -> None:
    manager = ServiceManager()
    for make in (
        lambda: manager.execute(double, x=1),
        manager.drain,
        manager.cancel,
        lambda: manager.run(Pipeline("p", Phase("double", double)), []),
        lambda: manager.map(double, []).__aenter__(),
    ):
        with pytest.raises(ManagerClosed, match="async with ServiceManager"):
            await make()
    for method in (lambda: manager.submit(double, x=1), manager.statistics, lambda: manager.calls):
        with pytest.raises(ManagerClosed, match="async with ServiceManager"):
            method()
