"""How calls in worker processes end early: killed with all that they have started, or told; and who suffers for it."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import sniffio

from kgas_async import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    ConcurrencyLimit,
    MemorySink,
    Retry,
    ServiceManager,
)
from kgas_async.testing import assert_clean, sweep

from . import process_tools as tools
from .process_tools import is_running, pids_in, until, written
from .sweep_world import World
from .test_evidence import ends

pytestmark = pytest.mark.real_time


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "pids"


def left() -> list[psutil.Process]:
    """Our child processes, zombies too."""
    return psutil.Process().children(recursive=True)


# --- killed


async def test_a_timeout_kills_and_the_process_is_dead_when_the_call_ends(mark: Path) -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        await manager.execute(tools.double, x=1)
        with pytest.raises(CallTimeout, match=r"timeout of 1 s") as late:
            await manager.execute(tools.spin.using(timeout=1), mark=str(mark))
        (pid,) = pids_in(mark)
        assert not psutil.pid_exists(pid)
        assert late.value.__cause__ is None
        assert await manager.execute(tools.double, x=1) == 2
        assert manager.statistics().processes == 1
    assert left() == []


async def by_scope(manager: ServiceManager, call: Callable[[], Awaitable[object]], ready: Callable[[], Any]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await ready()
        tasks.cancel_scope.cancel()


async def by_call(manager: ServiceManager, call: Callable[[], Awaitable[object]], ready: Callable[[], Any]) -> None:
    async with anyio.create_task_group() as tasks:

        async def expect() -> None:
            with pytest.raises(CallCancelled):
                await call()

        tasks.start_soon(expect)
        await ready()
        await manager.cancel()


async def natively(manager: ServiceManager, call: Callable[[], Awaitable[object]], ready: Callable[[], Any]) -> None:
    if sniffio.current_async_library() == "trio":
        return
    import asyncio

    task = asyncio.ensure_future(call())
    await ready()
    for _ in range(3):  # it must be dead all the same
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("cancel", [by_scope, by_call, natively])
@pytest.mark.parametrize("tool", [tools.ignores_signals, tools.holds_the_interpreter])
async def test_a_cancelled_call_is_killed_whatever_it_does(mark: Path, tool: Any, cancel: Any) -> None:
    sink = MemorySink()
    limit = ConcurrencyLimit(1)
    manager = ServiceManager(evidence=sink, log=None, processes=1)
    dead: list[bool] = []

    async def call() -> None:
        try:
            await manager.execute(tool.using(concurrency=limit), mark=str(mark))
        finally:
            dead.append(not psutil.pid_exists(*pids_in(mark)))
            assert limit.statistics().borrowed == 0

    async with manager:
        await cancel(manager, call, lambda: written(mark))
    if dead:
        assert dead == [True]
        assert [record["status"] for record in ends(sink.records)] == ["cancelled"]
    assert left() == []
    assert_clean(manager, limit)


async def test_all_that_a_tool_has_forked_dies_with_it(mark: Path) -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        call = manager.submit(tools.forks, mark=str(mark))
        pids = await written(mark, tools.FORKS)
        assert len({pid for pid in pids if is_running(pid)}) == tools.FORKS
        call.cancel()
        await call.wait()
        assert [pid for pid in pids if is_running(pid)] == []
    assert left() == []


async def test_a_fork_that_returns_from_the_tool_does_not_answer(mark: Path) -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        for _ in range(2):
            assert await manager.execute(tools.leaves_a_fork, mark=str(mark)) == "once"
            assert not is_running(*pids_in(mark))


async def test_what_a_tool_leaves_running_ends_with_its_worker() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        pid = await manager.execute(tools.leaves_a_child_behind)
        assert is_running(pid)
        assert await manager.execute(tools.double, x=1) == 2
    assert not is_running(pid)


async def test_calls_given_up_leave_no_process_and_hand_their_places_on(tmp_path: Path) -> None:
    manager = ServiceManager(log=None, processes=2)
    async with manager:
        async with manager.map(
            tools.spin.using(timeout=0.1), [{"mark": str(tmp_path / str(n))} for n in range(8)], in_flight=8
        ) as outcomes:
            assert [outcome.status async for outcome in outcomes] == ["timed_out"] * 8
        assert not any(psutil.pid_exists(pid) for n in range(8) for pid in pids_in(tmp_path / str(n)))
        assert len(left()) <= 3  # two workers at the most, and their guard
        assert await manager.execute(tools.double, x=1) == 2
    assert left() == []
    assert_clean(manager)


async def test_a_call_cancelled_before_it_began_never_starts(mark: Path) -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, processes=1) as manager:
        first = manager.submit(tools.nap, seconds=0.3)
        second = manager.submit(tools.spin, mark=str(mark))
        await anyio.wait_all_tasks_blocked()
        second.cancel()
        await second.wait()
        await first.result()
        assert await manager.execute(tools.double, x=2) == 4
    assert pids_in(mark) == []
    assert next(record for record in ends(sink.records) if record["tool"] == "spin")["run_us"] == 0


async def test_leaving_while_workers_are_still_starting(mark: Path) -> None:
    manager = ServiceManager(log=None, processes=2)
    with pytest.raises(KeyError):
        async with manager:
            for _ in range(4):
                manager.submit(tools.spin, mark=str(mark))
            await until(lambda: manager.statistics().processes == 2)
            raise KeyError
    assert left() == []
    assert pids_in(mark) == []
    assert_clean(manager)


async def test_a_timed_out_attempt_is_tried_again_in_a_new_worker() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        outcome = await manager.outcome(tools.nap.using(timeout=0.1, retry=Retry(3, wait=0)), seconds=5)
        assert (outcome.status, outcome.attempts) == ("timed_out", 3)


# --- told


async def test_with_wait_a_tool_that_looks_ends_by_itself_and_its_worker_stays(mark: Path) -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(tools.polite.using(timeout=0.1), mark=str(mark))
        again = mark.with_name("again")
        call = manager.submit(tools.polite, mark=str(again))
        (pid,) = await written(again)
        call.cancel()
        await call.wait()
        assert call.status == "cancelled"
        assert await manager.execute(tools.pid) == pid
        assert await manager.execute(tools.double.using(timeout=5), x=1) == 2  # what was told then is not told now


async def test_with_wait_late_is_late_and_the_process_is_waited_for() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        pid = await manager.execute(tools.pid)
        began = time.monotonic()
        outcome = await manager.outcome(tools.late.using(timeout=0.05), seconds=0.3)
        assert isinstance(outcome.error, CallTimeout)
        assert outcome.value is None
        assert time.monotonic() - began >= 0.3
        assert await manager.execute(tools.pid) == pid


async def test_with_wait_one_that_does_not_look_is_killed_after_its_grace(mark: Path) -> None:
    sink = MemorySink()
    manager = ServiceManager(evidence=sink, log=None, processes=1, grace=0.2)
    async with manager:
        call = manager.submit(tools.deaf, mark=str(mark))
        (pid,) = await written(mark)
        asked = time.monotonic()
        call.cancel()
        await call.wait()
        assert time.monotonic() - asked >= 0.2
        assert not psutil.pid_exists(pid)
    assert [record.get("abandoned") for record in ends(sink.records)] == [None]
    assert sink.records[-1].get("abandoned") is None  # a process never is
    assert_clean(manager)


# --- ended by itself


@pytest.mark.parametrize(
    ("tool", "inputs", "how"),
    [
        (tools.exits, {"code": 3}, "ended with exit code 3"),
        (tools.exits, {"code": 0}, "ended with exit code 0"),
        (tools.segfaults, {}, "was killed by SIGSEGV"),
        (tools.kills_itself, {"number": signal.SIGKILL}, "was killed by SIGKILL.*memory runs out"),
        (tools.kills_itself, {"number": signal.SIGTERM}, "was killed by SIGTERM"),
        (tools.kills_itself, {"number": signal.SIGABRT}, "was killed by SIGABRT"),
    ],
)
async def test_a_worker_that_dies_fails_its_call_alone(tool: Any, inputs: dict[str, Any], how: str) -> None:
    manager = ServiceManager(log=None, processes=2)
    async with manager:
        other = manager.submit(tools.nap, seconds=1.0)
        with pytest.raises(CallFailed, match=how) as failed:
            await manager.execute(tool, **inputs)
        assert type(failed.value.__cause__) is ChildProcessError
        if tool is tools.segfaults:
            assert any("in segfaults\n" in note for note in failed.value.__cause__.__notes__)  # where it crashed
        await other.result()
        assert await manager.execute(tools.double, x=1) == 2
    assert left() == []
    assert_clean(manager)


async def test_a_tool_that_closes_all_files_fails_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgas_async._process.DYING_S", 0.1)
    async with ServiceManager(log=None, processes=1) as manager:
        with pytest.raises(CallFailed):
            await manager.execute(tools.closes_everything)
        assert await manager.execute(tools.double, x=1) == 2


async def test_no_file_descriptor_is_left() -> None:
    def open_now() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await one_session()  # whatever is opened once and kept
    before = open_now()
    await one_session()
    assert open_now() == before


async def one_session() -> None:
    async with ServiceManager(log=None, processes=2) as manager:
        await manager.outcome(tools.exits, code=1)
        await manager.outcome(tools.spin.using(timeout=0.05))
        await manager.execute(tools.double, x=1)


# --- at each suspension


@pytest.mark.slow
async def test_the_sweep_leaves_no_process_wherever_it_strikes(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def use() -> None:
        async with world.manager(processes=2) as manager:
            limited = tools.double.using(concurrency=world.limit, rate=world.rate, timeout=30, deadline=60)
            assert await manager.execute(limited, x=1) == 2
            await manager.outcome(tools.spin.using(timeout=0.05, concurrency=world.limit))

    def check(point: int) -> None:
        world.check(point)
        assert left() == []

    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(use, check=check, mode=mode, timeout_s=60) >= 3
