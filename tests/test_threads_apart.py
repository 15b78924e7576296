"""Worker threads where the system gives no more of them, and where abandoned ones come back or are replaced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest

from kgas_async import ConcurrencyLimit, Policy, ServiceManager, _threads, tool
from kgas_async._mailbox import Mailbox
from kgas_async._threads import ThreadPool, Work
from kgas_async.testing import assert_clean

pytestmark = pytest.mark.real_time


def submit(pool: ThreadPool, function: Callable[[], Any]) -> Work:
    work = Work(function, copy_context(), Mailbox.here())
    pool.submit(work)
    return work


def refuse_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    start = _threads.start_daemon

    def refusing(target: Callable[[], object], name: str) -> threading.Thread:
        if name.rpartition("-")[2].isdigit():
            raise RuntimeError("can't start new thread")
        return start(target, name)

    monkeypatch.setattr(_threads, "start_daemon", refusing)


@pytest.mark.parametrize("policy", [{}, {"concurrency": 1, "timeout": 30.0}], ids=["plain", "bounded"])
async def test_a_call_for_which_no_thread_can_be_started_fails_and_never_runs(
    monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    ran = []

    @tool(policy=Policy(**policy))
    def note(x: int) -> int:
        ran.append(x)
        return x

    with anyio.fail_after(20):
        manager = ServiceManager(log=None)
        async with manager:
            refuse_workers(monkeypatch)
            outcome = await manager.outcome(note, x=1)
            assert (outcome.status, str(outcome.error.__cause__)) == ("failed", "can't start new thread")
            monkeypatch.undo()
            assert await manager.execute(note, x=2) == 2
    assert ran == [2]
    assert_clean(manager)


async def test_a_token_of_a_call_for_which_no_thread_can_be_started_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = ConcurrencyLimit(1)

    @tool(policy=Policy(concurrency=limit))
    def work() -> None: ...

    async with ServiceManager(log=None) as manager:
        refuse_workers(monkeypatch)
        await manager.outcome(work)
        assert limit.statistics().borrowed == 0


async def test_where_no_further_thread_can_be_started_those_there_are_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, entered, opened = ThreadPool(2, "test"), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        opened.wait(30)

    first = submit(pool, wait)
    await anyio.to_thread.run_sync(entered.wait)
    refuse_workers(monkeypatch)
    second = submit(pool, threading.get_ident)
    opened.set()
    await first.done.wait()
    await second.done.wait()
    assert second.value == first.ident
    await pool.close(Mailbox.here()).wait()
    assert Mailbox.here().busy == 0


async def test_a_pool_that_is_closing_hears_of_a_thread_that_is_abandoned_meanwhile() -> None:
    pool, entered, opened = ThreadPool(1, "test"), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        opened.wait(30)

    work = submit(pool, wait)
    await anyio.to_thread.run_sync(entered.wait)
    ended = pool.close(Mailbox.here())
    assert pool.abandon(work)
    with anyio.fail_after(10):
        await ended.wait()
    opened.set()
    await work.done.wait()


async def test_an_abandoned_thread_that_was_replaced_ends_and_its_replacement_stays() -> None:
    pool = ThreadPool(1, "test")
    entered, opened, coming_back, go = (threading.Semaphore(0), *(threading.Event() for _ in range(3)))

    def wait() -> int:
        entered.release()
        opened.wait(30)
        return threading.get_ident()

    def come_back_slowly() -> None:
        coming_back.set()
        go.wait(30)

    stuck = submit(pool, wait)
    stuck.on_end = come_back_slowly
    await anyio.to_thread.run_sync(entered.acquire)
    assert pool.abandon(stuck)
    replacement = submit(pool, wait)
    await anyio.to_thread.run_sync(entered.acquire)
    opened.set()
    await anyio.to_thread.run_sync(coming_back.wait)
    await replacement.done.wait()
    go.set()
    await stuck.done.wait()
    for _ in range(3):
        later = submit(pool, threading.get_ident)
        await later.done.wait()
        assert later.value == replacement.value
    await pool.close(Mailbox.here()).wait()
    assert pool.alive == 0


@pytest.mark.parametrize("way", [anyio.to_thread.run_sync, asyncio.to_thread], ids=["anyio", "asyncio"])
async def test_the_sync_door_opens_in_threads_that_others_have_started(
    way: Callable[..., Any], anyio_backend_name: str
) -> None:
    if way is asyncio.to_thread and anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own threads")

    @tool
    def leaf() -> int:
        return 1

    @tool
    async def between() -> int:
        return await way(leaf.execute)  # type: ignore[no-any-return]

    @tool
    def top() -> int:
        return between.execute()

    assert await way(leaf.execute) == 1  # under a manager of its own
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(between) == 1
        assert await manager.execute(top) == 1
