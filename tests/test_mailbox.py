"""The hand-over from threads to the loop, gates, and waits that no cancellation ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import ServiceManager
from kgas_async._mailbox import Mailbox
from kgas_async._waiting import wait_until

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def test_callbacks_of_one_thread_run_on_the_loop_in_their_order() -> None:
    mailbox = Mailbox.here()
    came: list[tuple[int, int]] = []

    def post() -> None:
        for number in range(200):
            mailbox.put(lambda number=number: came.append((number, threading.get_ident())))

    await anyio.to_thread.run_sync(post)
    while len(came) < 200:
        await checkpoint()
    assert came == [(number, threading.get_ident()) for number in range(200)]


async def test_many_callbacks_cost_the_loop_one_wake_up() -> None:
    mailbox = Mailbox()
    posted: list[Any] = []
    mailbox._post = posted.append
    ran: list[int] = []
    for number in range(100):
        assert mailbox.put(lambda number=number: ran.append(number))
    assert len(posted) == 1
    posted[0]()
    assert ran == list(range(100))
    mailbox.put(lambda: None)
    assert len(posted) == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_mailbox_whose_loop_has_ended_says_so(backend: str) -> None:
    async def main() -> Mailbox:
        return Mailbox.here()

    mailbox = anyio.run(main, backend=backend)
    assert not mailbox.put(lambda: None)
    assert not mailbox.put(lambda: None)


async def test_a_posted_callback_can_start_tasks() -> None:
    mailbox = Mailbox.here()
    ran = anyio.Event()

    async def task() -> None:
        ran.set()

    async with anyio.create_task_group() as group:
        threading.Thread(target=lambda: mailbox.put(lambda: group.start_soon(task))).start()
        await ran.wait()


async def test_a_gate_opens_once_for_who_comes_later_too() -> None:
    gate = Mailbox.here().gate()
    async with anyio.create_task_group() as group:
        group.start_soon(gate.wait)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    await gate.wait()
    gate.set()
    assert gate.is_set()


async def test_a_wait_at_a_gate_is_cancelled_and_can_be_begun_again() -> None:
    gate = Mailbox.here().gate()
    with anyio.move_on_after(0.001) as scope:
        await gate.wait()
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(gate.wait)
        await anyio.wait_all_tasks_blocked()
        gate.set()


async def test_waiting_under_a_deadline_goes_on_under_a_cancelled_scope() -> None:
    event = anyio.Event()
    with anyio.CancelScope() as scope:
        scope.cancel()
        before = anyio.current_time()
        assert await wait_until(event, before + 0.01) is None
        assert anyio.current_time() >= before + 0.01


@asyncio_only
async def test_native_cancellations_that_arrive_meanwhile_are_remembered_and_the_first_is_given_back() -> None:
    event = anyio.Event()
    remembered: list[BaseException | None] = []

    async def waits() -> None:
        remembered.append(await wait_until(event))

    task = asyncio.create_task(waits())
    for reason in ("first", "second", "third"):
        await anyio.wait_all_tasks_blocked()
        task.cancel(reason)
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    event.set()
    await task
    assert isinstance(remembered[0], asyncio.CancelledError)
    assert remembered[0].args == ("first",)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_mailbox_and_its_loop_are_freed_when_the_loop_has_ended(backend: str) -> None:
    async def use() -> weakref.ref[Mailbox]:
        mailbox = Mailbox.here()
        assert Mailbox.here() is mailbox
        async with ServiceManager(log=None):
            assert Mailbox.here() is mailbox
        return weakref.ref(mailbox)

    mailbox = anyio.run(use, backend=backend)
    gc.collect()
    assert mailbox() is None
