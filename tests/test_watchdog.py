"""A blocked event loop is noticed, with the tool and the stack; an idle one and a busy thread are no stall."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import MemorySink, PerformanceMonitor, Phase, Pipeline, ServiceManager, ToolAdapter, tool
from kgas_async._watchdog import FRAMES_KEPT, look_at
from kgas_async.testing import assert_clean, sweep, virtual_backend

from .test_call_context import Lines, lines  # noqa: F401  (a fixture)

pytestmark = pytest.mark.real_time

BLOCK_S = 0.5


def block() -> None:
    time.sleep(BLOCK_S)


@tool
async def blocking(x: int = 0) -> int:
    await checkpoint()
    block()
    return x


@tool
async def blocking_at_once(x: int = 0) -> int:
    block()
    return x


@tool
async def harmless(x: int = 0) -> int:
    await checkpoint()
    return x


@tool
async def with_child() -> None:
    async def child() -> None:
        await checkpoint()
        block()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)


@tool
async def calling() -> None:
    async with ServiceManager(log=None) as inner:
        await inner.execute(harmless)
    block()


class Clocked(MemorySink):
    """Notes when each record came."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[float] = []

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        super().write(records)
        self.came += [time.perf_counter()] * len(records)


def of(sink: MemorySink, event: str) -> list[dict[str, Any]]:
    return [record for record in sink.records if record["event"] == event]


def stalled_in(sink: MemorySink, function: str) -> list[dict[str, Any]]:
    """The stalls in a function; a machine with much else to do may add some anywhere."""
    return [
        record for record in of(sink, "loop.stalled") if any(line.endswith(f" {function}") for line in record["stack"])
    ]


async def test_a_blocking_sleep_in_an_async_tool_is_reported_within_a_second(lines: Lines) -> None:  # noqa: F811
    sink = Clocked()
    monitor = PerformanceMonitor()
    async with ServiceManager(monitor=monitor, evidence=sink) as manager:
        began = time.perf_counter()
        await manager.execute(blocking)
    (stalled,) = stalled_in(sink, "block")
    assert sink.came[sink.records.index(stalled)] - began < 1.0
    assert stalled["tool"] == "blocking"
    assert stalled["call_id"] == next(record["call_id"] for record in of(sink, "call.succeeded"))
    *_, caller, innermost = stalled["stack"]
    assert innermost.startswith(f"{__file__}:")
    assert innermost.endswith(" block")
    assert caller.endswith(" blocking")
    assert len(stalled["stack"]) == 2  # the tool's own code, and nothing of the loop's or ours
    assert stalled["stalled_us"] >= 250_000
    resumed = next(record for record in of(sink, "loop.resumed") if record.get("call_id") == stalled["call_id"])
    assert resumed["tool"] == "blocking"
    assert resumed["stalled_us"] >= stalled["stalled_us"]
    said = next(line for line in lines if line["event"] == "loop.stalled" and "tool" in line)
    assert (said["level"], said["tool"]) == ("warning", "blocking")
    assert said["stack"] == "\n".join(stalled["stack"])
    stalls = monitor.report().stalls
    (shown,) = [stall for stall in stalls.latest if stall.tool == "blocking"]
    assert shown.stack == tuple(stalled["stack"])
    assert shown.stalled_s == stalls.longest_s <= stalls.total_s
    assert f"blocking at {shown.stack[-1]}" in str(monitor.report())


WAYS = {
    "in its first step": blocking_at_once,
    "after it waited": blocking,
    "bounded, in its first step": blocking_at_once.using(timeout=30),
    "bounded, after it waited": blocking.using(timeout=30, concurrency=1),
    "alone": blocking.using(isolated=True),
    "after a call of another manager": calling,
    "inline": ToolAdapter(block, name="inline", offload="inline"),
}


@pytest.mark.parametrize("which", WAYS.values(), ids=WAYS.keys())
async def test_the_call_is_found_whatever_the_way_it_runs(which: Any) -> None:
    sink = MemorySink()
    async with ServiceManager(monitor=PerformanceMonitor(), evidence=sink, log=None) as manager:
        call = manager.submit(which)
        await call.wait()
    (stalled,) = stalled_in(sink, "block")
    assert (stalled["tool"], stalled["call_id"]) == (which.name, call.id)


async def test_the_call_is_found_where_a_task_of_its_own_blocks(anyio_backend: Any) -> None:
    sink = MemorySink()
    async with ServiceManager(monitor=PerformanceMonitor(), evidence=sink, log=None) as manager:
        await manager.execute(with_child)
    (stalled,) = stalled_in(sink, "block")
    if isinstance(anyio_backend, str):  # uvloop does not show what it runs
        assert stalled["tool"] == "with_child"


async def test_an_item_of_a_pipeline_is_named() -> None:
    sink = MemorySink()
    pipeline = Pipeline("p", Phase("slow", blocking), item=["x"], key="x")
    async with ServiceManager(monitor=PerformanceMonitor(), evidence=sink, log=None) as manager:
        await manager.run(pipeline, [{"x": 7}])
    (stalled,) = stalled_in(sink, "block")
    assert (stalled["pipeline"], stalled["phase"], stalled["item"]) == ("p", "slow", "7")


async def test_code_that_is_no_tools_is_reported_with_its_stack_alone() -> None:
    sink = MemorySink()
    async with ServiceManager(monitor=PerformanceMonitor(), evidence=sink, log=None) as manager:
        await manager.execute(harmless)
        await checkpoint()
        block()
    (stalled,) = stalled_in(sink, "block")
    assert "tool" not in stalled


async def test_each_stall_is_recorded_once() -> None:
    sink = MemorySink()
    monitor = PerformanceMonitor()
    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        for _ in range(2):
            await manager.execute(blocking)
            await anyio.sleep(0.1)  # one pass between them need not be enough for an answer
    assert [record["tool"] for record in stalled_in(sink, "block")] == ["blocking"] * 2
    assert len(of(sink, "loop.resumed")) == len(of(sink, "loop.stalled")) == monitor.report().stalls.count


async def test_a_stall_that_goes_on_is_on_record_while_it_does() -> None:
    sink = MemorySink()
    monitor = PerformanceMonitor()
    seen: list[Any] = []

    @tool
    async def looking() -> None:
        until = time.perf_counter() + 10
        while not stalled_in(sink, "looking") and time.perf_counter() < until:
            time.sleep(0.01)  # noqa: ASYNC251  (that is what it is about)
        seen.extend(monitor.report().stalls.latest)

    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        await manager.execute(looking)
    assert ("looking", None) in [(stall.tool, stall.stalled_s) for stall in seen]


async def test_an_idle_loop_is_no_stall() -> None:
    monitor = PerformanceMonitor(stall=0.5)
    async with ServiceManager(monitor=monitor, log=None):
        await anyio.sleep(1.2)
    assert monitor.report().stalls.count == 0


async def test_a_busy_thread_is_no_stall() -> None:
    monitor = PerformanceMonitor(stall=0.3)
    async with ServiceManager(monitor=monitor, log=None) as manager:
        await manager.execute(tool(block))
    assert monitor.report().stalls.count == 0


async def test_it_can_be_left_out() -> None:
    monitor = PerformanceMonitor(stall=None, sample_every=None)
    async with ServiceManager(monitor=monitor, log=None) as manager:
        assert not watchdogs()
        await manager.execute(blocking)
    assert monitor.report().stalls.count == 0
    assert monitor.report().tools["blocking"].calls == 1


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_in_virtual_time_there_is_none(name: str) -> None:
    monitor = PerformanceMonitor(stall=0.05, sample_every=0.01)
    sink = MemorySink()

    async def main() -> None:
        async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
            assert not watchdogs()
            await anyio.sleep(3600)
            await manager.execute(blocking)

    backend, options = virtual_backend(name)
    anyio.run(main, backend=backend, backend_options=options)
    assert monitor.report().stalls.count == 0
    assert not of(sink, "resource.sampled")


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kgas-watchdog"]


async def test_its_thread_ends_with_the_session_wherever_that_is_cancelled() -> None:
    manager = ServiceManager(monitor=PerformanceMonitor(), log=None)

    async def use() -> None:
        async with manager:
            await manager.execute(harmless)

    def check(_: Any) -> None:
        assert_clean(manager)
        for thread in watchdogs():
            thread.join(2)
        assert not watchdogs()

    assert await sweep(use, check=check) > 0


def test_a_thread_that_is_gone_is_doing_nothing() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert look_at(thread.ident).stack == ()


def test_a_deep_stack_is_shown_from_its_inner_end() -> None:
    release, inside = threading.Event(), threading.Event()

    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        else:
            inside.set()
            release.wait()

    thread = threading.Thread(target=deep, args=(100,))
    thread.start()
    assert inside.wait(5)
    assert thread.ident is not None
    look = look_at(thread.ident)
    release.set()
    thread.join()
    assert look.call is None
    assert len(look.stack) == FRAMES_KEPT
    assert any(line.endswith("deep") for line in look.stack)


def test_the_limit_of_a_stall_is_above_nothing() -> None:
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="stall"):
            PerformanceMonitor(stall=wrong)


async def test_a_call_with_a_name_of_its_own_is_reported_with_its_tool() -> None:
    sink = MemorySink()
    async with ServiceManager(monitor=PerformanceMonitor(stall=0.1), evidence=sink, log=None) as manager:
        await manager.options(name="nightly").execute(blocking)
    (stalled,) = [record for record in sink.records if record["event"] == "loop.stalled"]
    assert stalled["tool"] == "blocking"
    assert stalled["stack"][-1].endswith(" block")


async def test_a_stall_that_two_sessions_on_one_loop_see_is_one() -> None:
    monitor = PerformanceMonitor(stall=0.1)
    sinks = MemorySink(), MemorySink()
    async with (
        ServiceManager(monitor=monitor, evidence=sinks[0], log=None),
        ServiceManager(monitor=monitor, evidence=sinks[1], log=None) as manager,
    ):
        await manager.execute(blocking)
        for sink in sinks:  # each has it in its own evidence
            while "loop.resumed" not in [record["event"] for record in sink.records]:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    stalls = monitor.report().stalls
    assert stalls.count == 1
    assert stalls.total_s == stalls.longest_s
    assert [stall.tool for stall in stalls.latest] == ["blocking"]
