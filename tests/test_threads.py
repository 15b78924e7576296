"""Worker threads: who runs what, how many there are, what never starts, and what a tool sees in them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import CallFailed, ConcurrencyLimit, Policy, ServiceManager, ToolAdapter, current, tool
from kgas_async._bare import run_bare
from kgas_async._mailbox import Mailbox
from kgas_async._threads import ThreadPool, Work
from kgas_async.testing import assert_clean

place: ContextVar[str] = ContextVar("place", default="nowhere")


class Door:
    """Threads wait at it; the test knows how many."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.came = threading.Semaphore(0)
        self.names: list[str] = []

    def wait(self) -> str:
        name = threading.current_thread().name
        self.names.append(name)
        self.came.release()
        assert self.opened.wait(30)
        return name

    async def visitors(self, count: int) -> None:
        for _ in range(count):
            await anyio.to_thread.run_sync(self.came.acquire)


@asynccontextmanager
async def pool_of(slots: int) -> AsyncIterator[ThreadPool]:
    pool = ThreadPool(slots, "test")
    yield pool
    await pool.close(Mailbox.here()).wait()
    assert pool.alive == 0
    assert Mailbox.here().busy == 0


def submit(pool: ThreadPool, function: Callable[[], Any]) -> Work:
    work = Work(function, copy_context(), Mailbox.here())
    pool.submit(work)
    return work


# --- the pool


async def test_there_are_never_more_threads_than_slots_and_idle_ones_are_used_again() -> None:
    async with pool_of(3) as pool:
        door = Door()
        works = [submit(pool, door.wait) for _ in range(10)]
        await door.visitors(3)
        assert (pool.alive, pool.queued) == (3, 7)
        door.opened.set()
        for work in works:
            await work.done.wait()
        assert len(set(door.names)) <= 3
        again = [submit(pool, threading.get_ident) for _ in range(10)]
        for work in again:
            await work.done.wait()
        assert pool.alive == 3


async def test_threads_are_started_only_as_they_are_needed() -> None:
    async with pool_of(30) as pool:
        for _ in range(5):
            work = submit(pool, lambda: None)
            await work.done.wait()
            while not pool._idle:  # it has told of its end, and is about to wait for more
                await checkpoint()
        assert pool.alive == 1


async def test_works_are_taken_up_first_come_first_served() -> None:
    taken: list[int] = []
    async with pool_of(1) as pool:
        works = [submit(pool, lambda number=number: taken.append(number)) for number in range(50)]
        for work in works:
            await work.done.wait()
    assert taken == list(range(50))


async def test_a_work_that_was_withdrawn_before_a_thread_took_it_up_never_starts() -> None:
    ran: list[int] = []
    async with pool_of(1) as pool:
        door = Door()
        first = submit(pool, door.wait)
        await door.visitors(1)
        second = submit(pool, lambda: ran.append(2))
        third = submit(pool, lambda: ran.append(3))
        assert second.withdraw()
        assert not first.withdraw()
        door.opened.set()
        await third.done.wait()
    assert ran == [3]
    assert second.withdrawn
    assert Mailbox.here().busy == 0


async def test_a_work_is_either_withdrawn_or_runs_whoever_is_first() -> None:
    ran: set[int] = set()
    withdrawn: set[int] = set()
    async with pool_of(4) as pool:
        for round_ in range(50):
            works = [submit(pool, lambda number=(round_, n): ran.add(number)) for n in range(8)]
            for n, work in enumerate(works):
                if work.withdraw():
                    withdrawn.add((round_, n))
                else:
                    await work.done.wait()
    assert len(ran) + len(withdrawn) == 400
    assert not ran & withdrawn
    assert Mailbox.here().busy == 0


async def test_an_abandoned_thread_leaves_the_count_and_comes_back_when_it_ends() -> None:
    async with pool_of(1) as pool:
        door = Door()
        stuck = submit(pool, door.wait)
        await door.visitors(1)
        assert pool.abandon(stuck)
        other = submit(pool, lambda: "runs meanwhile")
        await other.done.wait()
        assert (pool.alive, pool.abandoned) == (2, 1)
        door.opened.set()
        await stuck.done.wait()
        assert pool.abandoned == 0
        both_at_once = threading.Barrier(2)
        again = [submit(pool, lambda: both_at_once.wait(0.05)) for _ in range(2)]
        for work in again:
            await work.done.wait()
        assert [type(work.error) for work in again] == [threading.BrokenBarrierError] * 2  # one slot, as before
        assert pool.alive == 1


async def test_a_work_that_has_just_ended_is_not_abandoned() -> None:
    async with pool_of(1) as pool:
        work = submit(pool, lambda: None)
        await work.done.wait()
        assert not pool.abandon(work)


async def test_a_closed_pool_takes_no_more_work_and_says_when_its_threads_have_ended() -> None:
    async with pool_of(4) as pool:
        door = Door()
        works = [submit(pool, door.wait) for _ in range(6)]
        await door.visitors(4)
        gate = pool.close(Mailbox.here())
        with pytest.raises(RuntimeError, match="closed"):
            submit(pool, lambda: None)
        await anyio.wait_all_tasks_blocked()
        assert not gate.is_set()
        door.opened.set()
        await gate.wait()
        assert pool.alive == 0
        assert {work.value for work in works} == set(door.names)  # what waited for a thread had its turn


async def test_a_closed_pool_does_not_wait_for_abandoned_threads() -> None:
    async with pool_of(1) as pool:
        door = Door()
        stuck = submit(pool, door.wait)
        await door.visitors(1)
        pool.abandon(stuck)
        await pool.close(Mailbox.here()).wait()
        assert (pool.alive, pool.abandoned) == (1, 1)
        door.opened.set()
        await stuck.done.wait()


async def test_what_a_work_held_is_given_back_by_its_thread_before_the_loop_hears_of_it() -> None:
    given_back_in: list[int] = []
    async with pool_of(1) as pool:
        work = Work(threading.get_ident, copy_context(), Mailbox.here())
        work.on_end = lambda: given_back_in.append(threading.get_ident())
        pool.submit(work)
        await work.done.wait()
    assert given_back_in == [work.value]


# --- what a tool sees in its thread


async def test_context_variables_travel_into_the_thread_and_not_back() -> None:
    @tool
    def moves(to: str) -> str:
        seen = place.get()
        place.set(to)
        return seen

    place.set("here")
    async with ServiceManager(log=None, threads=1) as manager:
        assert await manager.execute(moves, to="there") == "here"
        assert await manager.execute(moves, to="elsewhere") == "here"
    assert place.get() == "here"


@pytest.mark.parametrize("inner", ["asyncio", "trio"])
async def test_an_event_loop_can_be_run_inside_a_worker_thread(inner: str) -> None:
    async def main() -> str:
        await checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(checkpoint)
        return sniffio.current_async_library()

    @tool
    def runs_a_loop() -> str:
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            sniffio.current_async_library()
        return anyio.run(main, backend=inner)

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(runs_a_loop) == inner


async def test_current_is_the_manager_in_a_thread_too() -> None:
    @tool
    def finds() -> Any:
        return current()

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(finds) is manager


async def test_tools_run_in_daemon_threads_that_are_not_anyios() -> None:
    @tool
    def where() -> tuple[bool, int]:
        return threading.current_thread().daemon, threading.get_ident()

    async with ServiceManager(log=None) as manager:
        daemon, ident = await manager.execute(where)
        assert daemon
        assert ident != threading.get_ident()
    assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_slow_tools_do_not_block_what_else_uses_threads() -> None:
    door = Door()
    async with ServiceManager(log=None, threads=50) as manager:
        calls = [manager.submit(ToolAdapter(door.wait, name="wait")) for _ in range(50)]
        for _ in range(50):
            assert await anyio.to_thread.run_sync(lambda: door.came.acquire(timeout=10))
        assert await anyio.Path("/").exists()  # AnyIO's own threads, 40 at the most, are free
        door.opened.set()
        for call in calls:
            await call.result()


async def test_forty_callers_that_nest_three_deep_on_four_threads_end() -> None:
    @tool
    def deepest(x: int) -> int:
        time.sleep(0.001)
        return x

    @tool
    def middle(x: int) -> int:
        return deepest.execute(x=x) + 1

    @tool
    def outer(x: int) -> int:
        return middle.execute(x=x) + 1

    async with (
        ServiceManager(log=None, threads=4) as manager,
        manager.map(outer, range(40), arg="x", in_flight=40) as outcomes,
    ):
        assert [outcome.unwrap() async for outcome in outcomes] == [x + 2 for x in range(40)]
    assert_clean(manager)


async def test_slots_that_were_lent_are_taken_back() -> None:
    @tool
    def inner() -> None: ...

    @tool
    def outer() -> None:
        inner.execute()

    async with ServiceManager(log=None, threads=2) as manager:
        async with manager.map(outer, ({} for _ in range(20))) as outcomes:
            assert [outcome.status async for outcome in outcomes] == ["succeeded"] * 20
        door = Door()
        calls = [manager.submit(ToolAdapter(door.wait, name="wait")) for _ in range(5)]
        await door.visitors(2)
        await anyio.sleep(0.02)
        assert len(door.names) == 2
        door.opened.set()
        for call in calls:
            await call.wait()


async def test_a_tool_that_leaks_threads_or_changes_the_directory_lets_the_others_finish(tmp_path: Path) -> None:
    let_go = threading.Event()
    home = Path.cwd()

    @tool
    def misbehaves(what: str) -> str:
        if what == "directory":
            os.chdir(tmp_path)
        elif what == "threads":
            for _ in range(3):
                threading.Thread(target=let_go.wait, args=(30,), daemon=True).start()
        return what

    wishes = ["fine", "directory", "threads", "fine"] * 5
    try:
        async with ServiceManager(log=None, threads=2) as manager, manager.map(misbehaves, wishes, arg="what") as found:
            assert [outcome.value async for outcome in found] == wishes
    finally:
        os.chdir(home)
        let_go.set()
    assert_clean(manager)


async def test_a_function_that_turns_out_to_be_async_is_refused_with_the_mend() -> None:
    async def hidden(x: int) -> int:
        return x

    disguised = ToolAdapter(lambda: hidden(1), name="disguised")
    async with ServiceManager(log=None) as manager:
        for each in (disguised, disguised.using(timeout=5)):
            with pytest.raises(CallFailed, match="declare it with 'async def'"):
                await manager.execute(each)


async def test_a_call_cancelled_while_it_waits_for_a_thread_never_starts_and_gives_its_token_back() -> None:
    limit, door, ran = ConcurrencyLimit(5), Door(), []
    async with ServiceManager(log=None, threads=1) as manager:
        first = manager.submit(ToolAdapter(door.wait, name="wait"))
        await door.visitors(1)
        waits = manager.submit(ToolAdapter(lambda: ran.append(1), name="ran", policy=Policy(concurrency=limit)))
        await anyio.wait_all_tasks_blocked()
        assert limit.statistics().borrowed == 1
        waits.cancel()
        await waits.wait()
        assert limit.statistics().borrowed == 0  # the thread that is busy had nothing to do with it
        door.opened.set()
        await first.result()
    assert ran == []
    assert_clean(manager, limit)


# --- outside of a manager


async def test_a_function_run_bare_gives_its_value_or_its_error() -> None:
    assert await run_bare(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await run_bare(lambda: 1 / 0)
    assert Mailbox.here().busy == 0


async def test_a_bare_thread_that_is_cancelled_is_waited_for_up_to_its_grace() -> None:
    door = Door()
    before = anyio.current_time()
    with anyio.move_on_after(0.01):
        await run_bare(door.wait, grace=0.03)
    assert 0.03 < anyio.current_time() - before < 5
    door.opened.set()
