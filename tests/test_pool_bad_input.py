"""Pools that are given what makes no sense, or are left in the middle: an error that says so, and others unharmed."""

from __future__ import annotations

import math
import signal
import threading
from contextlib import nullcontext
from typing import Any

import anyio
import pytest

from kgas_async import Pool, ServiceManager
from kgas_async._mailbox import Mailbox
from kgas_async.testing import assert_clean

from .test_pool import UsesInThread, manager_of


class Incomparable:
    """Like an array: what ``==`` gives of it is neither true nor false."""

    def __eq__(self, other: object) -> Any:
        raise ValueError("ambiguous")

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("key", [["a list"], Incomparable(), math.nan])
async def test_a_key_that_cannot_be_told_from_others_is_refused_and_nobody_else_is_harmed(key: Any) -> None:
    made: list[str] = []
    pool: Pool[None] = Pool(made.append, 2)
    manager, _ = manager_of(pool)
    async with manager:
        for _ in range(2):
            with pytest.raises(TypeError, match=r"acquire\(\) takes a key that"):
                async with pool.acquire(key):
                    pass
            async with pool.acquire("a string"):
                pass
    assert made == ["a string"]
    assert_clean(manager)


@pytest.mark.parametrize("drop_on", ["OSError", [OSError], OSError("this one"), int, (OSError, 3)])
def test_errors_to_drop_on_that_are_none_are_refused(drop_on: Any) -> None:
    with pytest.raises(TypeError, match=r"Pool\(drop_on\) is an exception type, a tuple of such, or a function"):
        Pool(nullcontext, drop_on=drop_on)


async def test_a_resource_with_an_async_close_that_a_left_thread_still_uses_is_said_to_stay_open() -> None:
    begun, let_go, mailbox = anyio.Event(), threading.Event(), Mailbox.here()

    def hangs(pool: Pool[object]) -> None:
        with pool.acquire():
            mailbox.put(begun.set)
            let_go.wait()

    async def close(resource: object) -> None:
        raise AssertionError("under the thread that uses it")

    pool: Pool[object] = Pool(object, 2, close=close)
    manager, sink = manager_of(pool, grace=0.05)
    async with manager:
        manager.submit(UsesInThread(pool, hangs))
        await begun.wait()
    (failed,) = [record for record in sink.records if record["event"] == "pool.failed"]
    assert failed["what"] == "close"
    assert "cannot await close=" in failed["error"]["message"]
    let_go.set()


class Alarm(Exception):
    """As Ctrl-C comes: in the main thread, in the middle of what it waits for."""


def test_a_main_thread_that_is_interrupted_while_it_waits_takes_no_resource_with_it() -> None:
    def interrupt(*_: object) -> None:
        raise Alarm

    pool: Pool[object] = Pool(object, 1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ServiceManager(pool, log=None).blocking():
            with pool.acquire(), pytest.raises(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pool.acquire():
                    pass
            with pool.acquire():
                now = pool.statistics()
                assert (now.in_use, now.users, now.waiting) == (1, 1, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_factory_or_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Pool\(factory\) is a function, not None"):
        Pool(None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"Pool\(name\)"):
        Pool(nullcontext, name=3)  # type: ignore[call-overload]
