"""Tools in worker processes: what runs there, what travels, what is on record."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import structlog

from kgas_async import (
    Batcher,
    CallFailed,
    CallProgress,
    CallTimeout,
    MemorySink,
    Phase,
    Pipeline,
    Retry,
    ServiceManager,
    ToolAdapter,
    tool,
)
from kgas_async.testing import assert_clean, faults

from . import process_tools as tools
from .process_tools import until

pytestmark = pytest.mark.real_time


def local_function(x: int) -> int:
    return x


# --- where it runs


async def test_a_function_runs_in_a_worker_process_that_is_kept() -> None:
    manager = ServiceManager(log=None, processes=1)
    async with manager:
        first, second = await manager.execute(tools.pid), await manager.execute(tools.pid)
        assert first == second != os.getpid()
        assert await manager.execute(tools.double, "21") == 42  # validated here
        assert manager.statistics().processes == 1
        assert manager.statistics().threads == 0
        assert manager.statistics().tools["pid"].threads_used == 0
    assert not psutil.pid_exists(first)
    assert_clean(manager)


async def test_as_many_processes_as_are_allowed_work_at_once_and_no_more() -> None:
    async with ServiceManager(log=None, processes=2) as manager:
        async with manager.map(tools.nap, [{"seconds": 0.05}] * 6) as outcomes:
            pids = [outcome.unwrap() async for outcome in outcomes]
        assert len(set(pids)) == 2
        assert len(psutil.Process().children()) == 3  # two and their guard
    assert psutil.Process().children() == []


def test_the_default_is_as_many_as_there_are_cpus_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgas_async._manager.cpus", lambda: 7)
    assert ServiceManager()._options["processes"] == 7
    assert ServiceManager(processes=3)._options["processes"] == 3
    with pytest.raises((TypeError, ValueError), match="processes"):
        ServiceManager(processes=0)


async def test_a_session_without_process_tools_starts_none() -> None:
    @tool
    def here() -> int:
        return os.getpid()

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(here) == os.getpid()
        assert psutil.Process().children() == []


async def test_a_worker_has_a_session_of_its_own_and_no_terminal() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        assert await manager.execute(tools.ignores_interrupts) == (True, True, "/dev/null")


async def test_a_factory_builds_once_in_each_worker_for_each_tool() -> None:
    async with ServiceManager(log=None, processes=2) as manager:
        async with manager.map(tools.counter, range(20), arg="x") as outcomes:
            seen = [outcome.unwrap() async for outcome in outcomes]
        assert [one["x"] for one in seen] == list(range(20))
        for worker in {one["pid"] for one in seen}:
            own = [one for one in seen if one["pid"] == worker]
            assert {one["built"] for one in own} == {1}
            assert sorted(one["calls"] for one in own) == list(range(1, len(own) + 1))
        again = await manager.execute(tools.counter.using(name="again"), x=1)
        assert again["built"] == 1  # a copy shares the instances
        other = ToolAdapter(factory=tools.Counter, params=["x"], offload="process", name="other")
        async with manager.map(other, range(4), arg="x") as outcomes:
            assert {outcome.unwrap()["built"] async for outcome in outcomes} == {2}


async def test_a_request_object_a_mapped_result_and_a_returned_error() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        value, _, by = (await manager.execute(tools.service, text="ab", times="3")).split()
        assert value == "ababab"
        assert int(by) != os.getpid()  # what maps the result runs there too
        with pytest.raises(CallFailed, match="returned an error: no text") as failed:
            await manager.execute(tools.service, text="")
        assert failed.value.result == {"status": "error", "value": ""}


async def test_a_tool_made_of_a_global_function_and_one_by_a_partial() -> None:
    ten = ToolAdapter(functools.partial(tools.plain, x=10), offload="process", name="ten")
    name_of = ToolAdapter(os.path.basename, params=["p"], offload="process")
    wrapped = ToolAdapter(ToolAdapter(tools.plain), offload="process", name="wrapped")
    async with ServiceManager(log=None, processes=1) as manager:
        assert await manager.execute(tools.made, x=1) == 1
        assert await manager.execute(ten) == 10
        assert await manager.execute(wrapped, x=5) == 5
        assert await manager.execute(name_of, p="a/b") == "b"


def test_the_sync_door_and_pickling() -> None:
    assert tools.double.execute(x=4) == 8
    assert tools.double(5) == 10
    copied = pickle.loads(pickle.dumps(tools.double.using(timeout=3.0)))
    assert (copied.offload, copied.on_cancel) == ("process", "kill")
    with ServiceManager(log=None, processes=1).blocking() as manager:
        assert manager.execute(copied, x=6) == 12


@tool
def outer(x: int) -> int:
    return int(tools.double.execute(x=x))


async def test_a_nested_call_from_a_thread() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, processes=1) as manager:
        assert await manager.execute(outer, x=2) == 4
    inner = next(record for record in sink.records if record["event"] == "call.succeeded")
    assert inner["tool"] == "double"
    assert "parent_id" in inner


async def test_awaiting_the_raw_function_needs_no_manager() -> None:
    assert await tools.double.execute_async(4) == 8
    assert await tools.pid.execute_async() == os.getpid()


async def test_phases_in_processes_with_an_expansion_that_is_listed_there() -> None:
    pipeline = Pipeline(
        "p",
        Phase("numbers", tools.numbers, expand="number"),
        Phase("doubled", tools.double, bind={"x": "number"}),
        Phase("sum", total, collect="number", bind={"parts": "doubled"}),
        item=["count"],
    )
    async with ServiceManager(log=None, processes=2) as manager:
        report = await manager.run(pipeline, [{"count": count} for count in range(5)], keep="all")
        assert [outcome.unwrap() for outcome in report.outcomes or ()] == [0, 0, 2, 6, 12]
        assert await manager.execute(tools.numbers, count=3) == [0, 1, 2]


@tool
def total(parts: list[int]) -> int:
    return sum(parts)


@tool(offload="process")
def all_doubled(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


async def test_batches_of_a_pipeline_and_of_a_batcher() -> None:
    pipeline = Pipeline("p", Phase("doubled", all_doubled, batch=3, bind={"xs": "x"}), item=["x"])
    batcher = Batcher(all_doubled, max_size=4, max_wait=0.01)
    async with ServiceManager(batcher, log=None, processes=1) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in range(7)], keep="all")
        assert [outcome.value for outcome in report.outcomes or ()] == [2 * x for x in range(7)]
        async with manager.map(batcher.tool, range(6), arg="xs") as outcomes:
            assert [outcome.value async for outcome in outcomes] == [2 * x for x in range(6)]


async def test_faults_strike_before_the_process() -> None:
    flaky = faults(tools.double, at=1, error=ConnectionError("injected")).using(retry=Retry(2, on=ConnectionError))
    async with ServiceManager(log=None, processes=1) as manager:
        outcome = await manager.outcome(flaky, x=3)
        assert (outcome.value, outcome.attempts) == (6, 2)


# --- what cannot travel


LOCK = threading.Lock()
local = lambda x: x  # noqa: E731


def nested() -> Callable[[int], int]:
    def inner(x: int) -> int:
        return x

    return inner


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: tool(nested(), offload="process"), "the function nested.<locals>.inner cannot travel.*top level"),
        (lambda: tool(local, offload="process", name="local"), "<lambda> cannot travel"),
        (lambda: ToolAdapter(tools.Counter(), params=["x"], offload="process"), r"ToolAdapter\(factory=Counter"),
        (lambda: ToolAdapter(tools.Service().run, offload="process"), "does not travel"),
        (lambda: ToolAdapter(ToolAdapter(tools.Service(), method="run"), offload="process"), "does not travel"),
        (lambda: ToolAdapter(factory=lambda: 3, params=["x"], name="f", offload="process"), "the factory.*cannot"),
        (lambda: tool(tools.plain, offload="process", returns=lambda raw: raw), "returns=.*cannot travel"),
        (lambda: tool(tools.plain, offload="process", error_when=lambda raw: None), "error_when=.*cannot travel"),
        (lambda: ToolAdapter(factory=tools.Counter, params=["x"], offload="process", instances="dedicated"), "leave"),
        (lambda: ToolAdapter(factory=tools.Counter, params=["x"], offload="process", instances="per_thread"), "leave"),
        (lambda: tool(tools.plain, offload="process", on_cancel="abandon"), "use 'kill' or 'wait'"),
        (lambda: tool(tools.plain, on_cancel="kill"), "for offload='thread'; use 'wait' or 'abandon'"),
        (lambda: tool(tools.plain, offload="procses"), "did you mean 'process'"),
        (lambda: tool(tools.plain, max_memory=3), "needs offload='process'"),
        (lambda: tool(tools.plain, offload="process", max_memory=-1), "a positive number of bytes"),
        (lambda: tool(tools.plain, offload="process", max_memory="1G"), "a positive number of bytes"),
    ],
)
def test_what_cannot_travel_is_refused_at_construction_with_the_mend(make: Any, mend: str) -> None:
    with pytest.raises(TypeError, match=mend):
        make()


def hidden(x: int) -> int:
    return x


in_process_hidden = tool(hidden, offload="process", name="hidden")
hidden = NotImplemented  # type: ignore[assignment]


@pytest.mark.parametrize(
    "make",
    [
        lambda: in_process_hidden,
        lambda: ToolAdapter(functools.partial(tools.plain, threading.Lock()), params=[], offload="process", name="p"),
    ],
)
async def test_what_is_found_to_not_travel_is_refused_before_anything_runs(make: Any) -> None:
    refused = make()
    async with ServiceManager(log=None) as manager:
        with pytest.raises(TypeError, match=f"tool {refused.name!r} cannot travel.*top level of a module"):
            await manager.execute(refused, **({"x": 1} if refused.name == "hidden" else {}))
        assert manager.statistics().calls_open == 0
        assert psutil.Process().children() == []


async def test_an_input_that_cannot_travel_fails_its_call_by_name() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        with pytest.raises(CallFailed, match=r"input 'thing' \(lock\) cannot travel.*plain data") as failed:
            await manager.execute(tools.takes, thing=threading.Lock())
        assert isinstance(failed.value.__cause__, TypeError)
        with pytest.raises(CallFailed, match="could not be loaded there: RuntimeError: not here"):
            await manager.execute(tools.takes, thing=tools.Unloadable())
        assert await manager.execute(tools.takes, thing={1, 2}) == "set"  # the worker goes on
        assert manager.statistics().processes == 1


async def test_a_result_that_cannot_travel_fails_its_call() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        with pytest.raises(CallFailed, match=r"returned a lock, which cannot travel.*returns="):
            await manager.execute(tools.returns_a_lock)
        with pytest.raises(CallFailed, match="could not be loaded here: RuntimeError: not here"):
            await manager.execute(tools.returns_unloadable)
        assert await manager.execute(tools.double, x=1) == 2


async def test_a_factory_that_raises_is_the_calls_failure_and_is_tried_again() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        for _ in range(2):
            with pytest.raises(CallFailed, match="no model here") as failed:
                await manager.execute(tools.stubborn, x=1)
            assert isinstance(failed.value.__cause__, OSError)


async def test_a_factory_that_hangs_is_told_by_the_timeout() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        with pytest.raises(CallTimeout, match="its factory had not ended"):
            await manager.execute(tools.slow_to_build, x=1)


# --- errors


async def test_an_exception_comes_with_type_message_notes_and_traceback() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        causes = {}
        for kind in ("plain", "odd", "chained", "group"):
            outcome = await manager.outcome(tools.fails, kind=kind)
            assert outcome.error is not None
            causes[kind] = outcome.error.__cause__
    plain = causes["plain"]
    assert type(plain) is LookupError
    assert plain.args == ("no such thing",)
    assert plain.__notes__[0] == "the tool's own note"
    assert "in fails\n" in plain.__notes__[1]
    assert "raise error" in plain.__notes__[1]
    assert "_worker.py" not in plain.__notes__[1]
    odd = causes["odd"]
    assert type(odd) is ConnectionError  # so that a retry by kind still finds it
    assert str(odd) == "OddError: here:80"
    assert any("stands in for" in note for note in odd.__notes__)
    assert any("KeyError: 'first'" in note for note in causes["chained"].__notes__)  # type: ignore[union-attr]
    group = causes["group"]
    assert isinstance(group, ExceptionGroup)
    assert [type(one) for one in group.exceptions] == [ValueError, TypeError]


async def test_exits_raised_in_a_tool_are_its_calls_failure() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        before = await manager.execute(tools.pid)
        for failing, cause in ((tools.sys_exits, SystemExit), (tools.interrupts, KeyboardInterrupt)):
            outcome = await manager.outcome(failing)
            assert isinstance(outcome.error, CallFailed)
            assert type(outcome.error.__cause__) is cause
        assert await manager.execute(tools.pid) == before


# --- the context


async def test_structlog_fields_and_the_calls_own_are_in_the_tools_lines() -> None:
    structlog.contextvars.bind_contextvars(request="r-1", lock=LOCK)
    try:
        async with ServiceManager(log=None, processes=1) as manager:
            for _ in range(2):  # what the tool binds is gone in the next call
                line = await manager.options(name="mine").execute(tools.log_line, text="hello")
                session = manager.session_id
                assert "left" not in line
    finally:
        structlog.contextvars.clear_contextvars()
    assert line["event"] == "hello"
    assert line["request"] == "r-1"
    assert "lock" in line["lock"]  # what cannot travel does so as text
    assert line["tool"] == "log_line"
    assert line["session"] == session
    assert line["call"].startswith(f"{session}-")
    assert (line["attempt"], line["call_name"]) == (1, "mine")


async def test_progress_arrives_at_the_call() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        call = manager.submit(tools.tells, n=5)
        told = [event async for event in call.events() if isinstance(event, CallProgress)]
        assert await call.result() == 5
        assert told[-1].done == 5
        assert (told[-1].total, told[-1].message) == (5, "working")
        assert call.progress is told[-1]


async def test_there_is_no_manager_in_a_worker_process() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        assert "current() was called in a worker process" in await manager.execute(tools.where)
        with pytest.raises(CallFailed, match="call the plain function or object there"):
            await manager.execute(tools.through_the_door, x=1)


# --- evidence


async def test_cpu_time_and_peak_memory_are_on_record_of_calls_with_a_process() -> None:
    sink = MemorySink()

    @tool
    def in_thread() -> None: ...

    big = tools.repeat.using(name="big")
    async with ServiceManager(evidence=sink, log=None, processes=1) as manager:
        await manager.execute(tools.burn, seconds=0.2)
        await manager.execute(tools.double, x=1)
        await manager.execute(big, data=b"x" * 2**20, times=100)
        await manager.execute(tools.double, x=2)
        await manager.execute(in_thread)
        await manager.outcome(tools.spin.using(timeout=0.3))
    ends = [record for record in sink.records if "wait_us" in record]
    burn, double, large, after, thread, spun = ends
    assert 200_000 <= burn["cpu_us"] < 2_000_000
    assert double["cpu_us"] < 100_000
    assert large["rss_peak_bytes"] > double["rss_peak_bytes"] + 80 * 2**20
    assert after["rss_peak_bytes"] < large["rss_peak_bytes"] - 50 * 2**20  # of the call, not of the process so far
    assert "cpu_us" not in thread
    assert "rss_peak_bytes" not in thread
    assert spun["status"] == "timed_out"
    assert spun["cpu_us"] > 10_000  # of a call whose process was killed, too
    assert spun["rss_peak_bytes"] > 2**20


async def test_a_first_call_waits_for_its_worker_and_its_timeout_does_not() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, processes=1) as manager:
        first = await manager.outcome(tools.double.using(timeout=0.05), x=1)  # starting an interpreter takes longer
        assert first.value == 2
    record = next(record for record in sink.records if record["event"] == "call.succeeded")
    assert record["wait_us"]["thread"] > 50_000
    assert record["run_us"] < 50_000


async def test_the_wait_for_a_worker_is_bounded_by_the_deadline() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        await manager.execute(tools.double, x=1)
        holds = manager.submit(tools.nap, seconds=1.0)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(CallTimeout, match="deadline"):
            await manager.execute(tools.double.using(deadline=0.1), x=1)
        assert holds.cancel()
        assert manager.statistics().tools["double"].timed_out == 1


# --- memory


async def test_a_call_that_allocates_more_than_it_may_fails_alone() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        assert await manager.execute(tools.allocate, mib=50) == 50 * 2**20
        with pytest.raises(CallFailed) as failed:
            await manager.execute(tools.allocate, mib=1000)
        assert isinstance(failed.value.__cause__, MemoryError)
        assert any("max_memory" in note for note in failed.value.__cause__.__notes__)
        assert await manager.execute(tools.allocate, mib=100) == 100 * 2**20
        assert await manager.execute(tools.length, data=bytes(300 * 2**20)) == 300 * 2**20  # no bound of its own


# --- large values


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 5_000_000])
async def test_bytes_of_any_size_go_and_come_whole(size: int) -> None:
    data = os.urandom(max(size, 1))[:size]
    async with ServiceManager(log=None, processes=1) as manager:
        assert await manager.execute(tools.repeat, data=data, times=1) == data
        assert await manager.execute(tools.length, data=[data, bytearray(data), data]) == 3


async def test_a_worker_that_died_idle_is_replaced_unseen() -> None:
    async with ServiceManager(log=None, processes=1) as manager:
        first = await manager.execute(tools.pid)
        process = psutil.Process(first)
        process.kill()
        await until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        second = await manager.execute(tools.pid)
        assert second != first


async def test_a_policy_holds_for_processes_as_for_threads(tmp_path: Path) -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, processes=2) as manager:
        await manager.execute(tools.double, x=1)
        one = tools.nap.using(concurrency=1)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(functools.partial(manager.execute, one, seconds=0.05))
    waits = sorted(r["wait_us"]["concurrency"] for r in sink.records if r.get("tool") == "nap" and "wait_us" in r)
    assert waits[0] < 50_000 <= waits[1] < waits[2]


def test_a_policy_with_a_retry_by_kind() -> None:
    retried = tools.fails.using(retry=Retry(3, on=ConnectionError, wait=0))
    with ServiceManager(log=None, processes=1).blocking() as manager:
        assert manager.outcome(retried, kind="odd").attempts == 3
        assert manager.outcome(retried, kind="plain").attempts == 1
