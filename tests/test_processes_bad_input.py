"""What misbehaves in a worker process, or on the way, fails its own call by an error that says so, and no other."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psutil
import pytest

from kgas_async import CallFailed, CallProgress, ServiceManager
from kgas_async._guarding import Guard
from kgas_async._process import Worker
from kgas_async.testing import assert_clean

from . import bad_process_tools as tools
from .process_tools import double

pytestmark = pytest.mark.real_time


async def test_a_thread_that_a_call_has_left_in_its_worker_says_nothing_in_the_name_of_others() -> None:
    manager = ServiceManager(log=None, processes=1)
    async with manager:
        worker = await manager.execute(tools.leaves_a_thread_that_tells)
        call = manager.submit(tools.tells_slowly)
        told = [event.done async for event in call.events() if isinstance(event, CallProgress)]
        assert await call.result() == worker
        assert told
        assert -1 not in told
        for x in range(20):  # what it says is taken neither for an answer nor for word of a tool that is loaded
            assert await manager.execute(tools.negative, x=x) == -x
            assert await manager.execute(double, x=x) == 2 * x
    assert_clean(manager)


async def test_a_fork_made_while_a_thread_of_the_tools_sends_does_not_hang() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        assert await manager.execute(tools.forks_while_a_thread_tells) == "done"


@pytest.mark.parametrize("size", [10, 300_000])
async def test_what_exits_where_it_is_loaded_fails_its_call_and_leaves_the_next_one_its_answer(size: int) -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        worker = (await manager.outcome(tools.tells_slowly)).value
        with pytest.raises(CallFailed, match="could not be loaded here: SystemExit: not here; return plain data"):
            await manager.execute(tools.returns_what_exits_elsewhere, size=size)
        assert await manager.execute(tools.negative, x=1) == -1
        assert await manager.execute(tools.tells_slowly) == worker


async def test_what_exits_when_it_is_pickled_fails_its_call_with_the_mend_and_not_its_worker() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        worker = await manager.execute(tools.tells_slowly)
        with pytest.raises(CallFailed, match=r"returned a ExitsWhenPickled, which cannot.*not this one.*returns="):
            await manager.execute(tools.returns_what_exits)
        with pytest.raises(CallFailed, match=r"input 'thing' .ExitsWhenPickled. cannot travel.*offload='thread'"):
            await manager.execute(tools.takes, thing=tools.ExitsWhenPickled())
        assert await manager.execute(tools.tells_slowly) == worker


async def test_an_error_without_words_where_a_result_is_loaded() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        with pytest.raises(CallFailed, match=r"loaded here: SilentError: \(its __str__ raised LookupError"):
            await manager.execute(tools.returns_what_fails_silently)


@pytest.mark.parametrize("kind", ["none", "number", "mute"])
async def test_notes_that_are_none_do_not_hide_the_error(kind: str) -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        worker = await manager.execute(tools.tells_slowly)
        with pytest.raises(CallFailed, match="ValueError: its own") as caught:
            await manager.execute(tools.raises_with_odd_notes, kind=kind)
        assert isinstance(caught.value.__cause__, ValueError)
        assert await manager.execute(tools.tells_slowly) == worker


NO_MEMORY = """
import resource, socket, threading
from kgas_async._wire import Channel, HUGE, Unreadable, _HEAD, pack

ours, theirs = socket.socketpair()

def send():
    size = 2**30
    theirs.sendall(_HEAD.pack(7, 1, 3) + size.to_bytes(8, "big"))
    part = bytes(2**20)
    for _ in range(size // 2**20):
        theirs.sendall(part)
    theirs.sendall(b"abc")
    Channel(theirs).send(pack(8, "the next"))

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))
threading.Thread(target=send, daemon=True).start()
channel = Channel(ours)
try:
    channel.receive()
except Unreadable as unreadable:
    print(unreadable.kind, type(unreadable.__cause__).__name__, channel.receive())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bounds its memory")
def test_a_message_that_finds_no_memory_is_skipped_and_the_next_one_read() -> None:
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() in ("7 OSError (8, 'the next')", "7 MemoryError (8, 'the next')"), done.stderr


async def test_a_guard_that_cannot_start_fails_the_call_and_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("no more")

    manager = ServiceManager(log=None, processes=1)
    async with manager:
        with monkeypatch.context() as only_here:
            only_here.setattr(Guard, "watch", refuse)
            with pytest.raises(CallFailed, match="the guard of the worker processes could not start: no more"):
                await manager.execute(double, x=1)
            assert not psutil.Process().children()
        assert await manager.execute(double, x=1) == 2
    assert_clean(manager)


@pytest.mark.parametrize("what", ["load", "call"])
async def test_workers_that_are_gone_before_they_read_fail_the_call_by_an_error_with_words(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Worker, what)

    def too_late(worker: Worker, *arguments: Any) -> Any:
        psutil.Process(worker.pid).kill()
        while worker.is_alive:  # its death is seen a moment later
            pass
        return real(worker, *arguments)

    manager = ServiceManager(log=None, processes=1)
    async with manager:
        with monkeypatch.context() as only_here:
            only_here.setattr(Worker, what, too_late)
            with pytest.raises(CallFailed, match="ChildProcessError: two worker processes, one after the other, ended"):
                await manager.execute(double, x=1)
        assert await manager.execute(double, x=1) == 2
    assert_clean(manager)
