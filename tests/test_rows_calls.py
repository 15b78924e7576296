"""The capabilities of rows.md about calls (6, 10 to 13, 15, 17, 19, 30, 31, 41, 48, 49), with what used to be wrong."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    Batcher,
    CallCancelled,
    CallProgress,
    ConcurrencyLimit,
    KGASTool,
    Outcome,
    Policy,
    Progress,
    ServiceManager,
    call_context,
    check_cancelled,
    progress,
    tool,
)
from kgas_async._journal_inspect import summary
from kgas_async.testing import assert_clean

from .loops import chosen
from .programs import Program


class Peak:
    """How many are inside at once."""

    def __init__(self) -> None:
        self.inside = self.most = 0

    def __enter__(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)

    def __exit__(self, *exc_info: object) -> None:
        self.inside -= 1


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def square(x: int) -> int:
    return x * x


@tool
async def odd_fails(x: int) -> int:
    await checkpoint()
    if x % 2:
        raise ValueError(x)
    return x


async def test_row_6_async_and_sync_tools_in_parallel_with_results_by_name() -> None:
    async with ServiceManager(log=None) as manager:
        assert await manager.gather({"a": double, "b": square}, {"x": 3}) == {"a": 6, "b": 9}  # and not {}


# --- row 10: named managed tasks


async def test_row_10_waiting_with_a_timeout_does_not_end_the_task() -> None:
    go = anyio.Event()

    @tool
    async def gated() -> str:
        await go.wait()
        return "done"

    async with ServiceManager(log=None) as manager:
        call = manager.options(name="report").submit(gated)
        assert await call.wait(0.01) is False
        assert (call.name, call.status, manager.calls[call.id]) == ("report", "running", call)
        go.set()
        assert await call.result() == "done"


async def test_row_10_a_limit_of_10_is_10() -> None:
    peak = Peak()

    @tool(policy=Policy(concurrency=10))
    async def counted() -> None:
        with peak:
            await anyio.sleep(0.001)

    async with ServiceManager(log=None) as manager:
        calls = [manager.submit(counted) for _ in range(1000)]
        for call in calls:
            await call.wait()
    assert peak.most == 10


async def test_row_10_cancel_one_cancel_all_and_replace_with_clean_up() -> None:
    cleaned: list[str] = []

    class Lasting(KGASTool):
        async def execute_async(self) -> None:
            await anyio.sleep_forever()

        async def cleanup_resources(self, call: Any) -> None:
            await checkpoint()
            cleaned.append(call.name)

    lasting = Lasting()
    async with ServiceManager(log=None) as manager:
        calls = [manager.options(name=name).submit(lasting) for name in "abc"]
        await anyio.wait_all_tasks_blocked()
        assert await manager.cancel("a", "not needed")
        assert (calls[0].status, calls[0].reason) == ("cancelled", "not needed")
        newer = manager.options(name="b", replace=True).submit(lasting)
        await calls[1].wait()
        await anyio.wait_all_tasks_blocked()
        assert newer.status == "running"
        await manager.cancel()
        assert not manager.calls
    assert Counter(cleaned) == {"a": 1, "b": 2, "c": 1}


@pytest.mark.unwatched  # the watcher of ends keeps what it has counted
async def test_row_10_a_task_costs_the_same_after_many_others() -> None:
    async with ServiceManager(log=None) as manager:
        for _ in range(300):
            await manager.options(name="again").submit(double, x=1).wait()
        gc.collect()
        before = len(gc.get_objects())
        for n in range(2000):
            await manager.options(name=f"task {n}").submit(double, x=n).wait()
        gc.collect()
        assert len(gc.get_objects()) - before < 1000  # what is looked through does not grow with the history
        assert not manager.calls


# --- rows 11 to 13, 15, 17


async def test_row_11_the_first_error_loses_nobodys_result() -> None:
    async with ServiceManager(log=None) as manager:
        outcomes = await manager.gather({"even": odd_fails, "twice": double}, {"x": 1}, on_error="collect")
        assert {name: outcome.status for name, outcome in outcomes.items()} == {"even": "failed", "twice": "succeeded"}
        async with manager.map(odd_fails, range(6), arg="x") as stream:
            assert [outcome.value async for outcome in stream] == [0, None, 2, None, 4, None]


async def test_row_12_many_queries_keep_the_order_of_their_inputs() -> None:
    @tool
    async def slower_first(x: int) -> int:
        await anyio.sleep((20 - x) / 2000)
        return x

    async with ServiceManager(log=None) as manager, manager.map(slower_first, range(20), arg="x") as outcomes:
        assert [outcome.value async for outcome in outcomes] == list(range(20))


async def test_row_13_and_48_a_limit_of_10_with_progress_and_time_left() -> None:
    peak = Peak()
    told: list[Progress] = []

    @tool
    async def counted(x: int) -> int:
        with peak:
            await anyio.sleep(0.001)
        return x

    async with (
        ServiceManager(log=None) as manager,
        manager.map(counted, range(100), arg="x", in_flight=10, on_progress=told.append) as outcomes,
    ):
        assert [outcome.value async for outcome in outcomes] == list(range(100))
    assert peak.most <= 10
    assert [one.done for one in told] == list(range(1, 101))
    assert told[-1].eta_s == 0
    assert told[49].eta_s is not None
    assert told[49].eta_s > 0


async def test_row_15_the_same_query_to_many_all_or_the_first_success() -> None:
    @tool
    async def hangs(x: int) -> int:
        await anyio.sleep_forever()
        return x

    async with ServiceManager(log=None) as manager:
        winner = await manager.race({"broken": odd_fails, "hangs": hangs, "good": square}, {"x": 3})
        assert (winner.key, winner.value) == ("good", 9)
        assert not manager.calls
    assert_clean(manager)


async def test_row_17_submit_with_a_limit_is_a_worker_pool_that_keeps_no_results() -> None:
    limit = ConcurrencyLimit(4)
    peak = Peak()

    @tool(policy=Policy(concurrency=limit))
    async def job(x: int) -> bytes:
        with peak:
            await checkpoint()
        return bytes(10_000)

    async with ServiceManager(log=None) as manager:
        ids = [manager.submit(job, x=n).id for n in range(1000)]
        await manager.drain()
        kept = [call for id in ids if (call := manager.find(id)) is not None]  # noqa: A001
        assert len(kept) == 256
    assert peak.most == 4
    assert_clean(manager, limit)


async def test_row_19_cancelling_with_a_reason_reaches_sync_code() -> None:
    started = threading.Event()

    @tool
    def polite() -> None:
        while True:
            started.set()
            check_cancelled()
            time.sleep(0.002)

    async with ServiceManager(log=None, grace=100) as manager:
        call = manager.submit(polite)
        await anyio.to_thread.run_sync(started.wait)
        call.cancel("the user has left")
        with pytest.raises(CallCancelled, match="the user has left") as caught:
            await call.result()
        assert caught.value.reason == "the user has left"
    assert_clean(manager)


@pytest.mark.parametrize("how", ["async", "sync"])
async def test_row_19_no_operation_outlives_its_caller(how: str) -> None:
    running = threading.Event()
    ended: list[str] = []

    @tool
    async def waits() -> None:
        running.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("async")

    @tool
    def polls() -> None:
        running.set()
        try:
            while True:
                check_cancelled()
                time.sleep(0.002)
        finally:
            ended.append("sync")

    async with ServiceManager(log=None, grace=100) as manager:
        async with anyio.create_task_group() as group:
            group.start_soon(manager.execute, waits if how == "async" else polls)
            await anyio.to_thread.run_sync(running.wait)
            group.cancel_scope.cancel()
        assert ended == [how]  # when the caller has ended, and not some time after it
        assert not manager.calls
    assert_clean(manager)


# --- rows 30, 31, 48, 49


async def test_row_30_single_requests_are_coalesced() -> None:
    batches: list[int] = []

    @tool
    async def doubles(xs: list[int]) -> list[int | Exception]:
        batches.append(len(xs))
        await checkpoint()
        return [ValueError(x) if x == 7 else 2 * x for x in xs]

    batcher = Batcher(doubles, max_size=20)
    outcomes: list[Outcome[int]] = []
    async with ServiceManager(batcher, log=None) as manager, manager.map(batcher.tool, range(100), arg="xs") as stream:
        async for outcome in stream:
            outcomes.append(outcome)
    assert [outcome.value for outcome in outcomes] == [None if n == 7 else 2 * n for n in range(100)]
    assert len(batches) < 50


async def test_row_31_a_lock_with_a_timeout_that_knows_its_holder_and_a_queue_with_statistics() -> None:
    lock = anyio.Lock()
    held, release = anyio.Event(), anyio.Event()

    async def holds() -> None:
        async with lock:
            held.set()
            await release.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(holds, name="the holder")
        await held.wait()
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                async with lock:
                    raise AssertionError("it is held")
        owner = lock.statistics().owner
        assert owner is not None
        assert owner.name == "the holder"
        release.set()

    send, receive = anyio.create_memory_object_stream[int](2)
    with send, receive:
        send.send_nowait(1)
        send.send_nowait(2)
        with pytest.raises(anyio.WouldBlock):
            send.send_nowait(3)
        assert send.statistics().current_buffer_used == 2
        assert await receive.receive() == 1


async def test_row_48_and_49_running_tasks_are_listed_with_name_and_progress_and_log_with_their_name() -> None:
    told = threading.Event()
    go = threading.Event()
    lines: list[Any] = []

    @tool
    def reads(files: int) -> None:
        progress(1, files, "reading")
        lines.append(call_context(None, "info", {"event": "reading"}))
        told.set()
        go.wait(10)

    async with ServiceManager(log=None) as manager:
        manager.options(name="import").submit(reads, files=4)
        await anyio.to_thread.run_sync(told.wait)
        (call,) = manager.calls.values()
        assert (call.name, call.tool_name, call.status) == ("import", "reads", "running")
        assert isinstance(call.progress, CallProgress)
        assert (call.progress.done, call.progress.total, call.progress.message) == (1, 4, "reading")
        go.set()
    assert lines[0]["call_name"] == "import"
    assert lines[0]["tool"] == "reads"


# --- row 41: records that survive a restart; there: of a status, while the work itself was gone


IMPORTS = """
import sys

@tool
async def imported(path: str) -> str:
    say("ran", path)
    if path == sys.argv[2]:
        os.kill(os.getpid(), 9)
    return path.upper()

async def main():
    pipeline = Pipeline("imports", Phase("imported", imported), item=["path"], key="path")
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"path": p} for p in "abc"], journal=sys.argv[1], in_flight=1)
    say(report.succeeded, report.reused)

run(main)
"""


@pytest.mark.parametrize("loop", chosen())
def test_row_41_what_was_cut_off_is_known_and_goes_on_after_a_restart(tmp_path: Path, loop: str) -> None:
    journal = str(tmp_path / "run.db")
    with Program(IMPORTS, journal, "b", loop=loop) as program:
        assert program.rest() == ["ran a", "ran b"]
    (orphan,) = summary(journal).runs
    assert orphan.ended is None  # nobody has to clear a run that was killed
    assert summary(journal).items == {"succeeded": 1}
    with Program(IMPORTS, journal, "none", loop=loop) as program:
        assert program.rest() == ["ran b", "ran c", "3 1"]
    assert [run.status for run in summary(journal).runs] == [None, "ended"]
    assert summary(journal).items == {"succeeded": 3}
