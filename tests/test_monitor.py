"""`PerformanceMonitor`: what a report says is what happened; its memory is bounded; without one nothing is counted."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallFigures,
    CallTimeout,
    ConcurrencyLimit,
    Distribution,
    MemorySink,
    PerformanceMonitor,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    tool,
)
from kgas_async._ledger import ERROR_TYPES_KEPT, NAMES_KEPT, OTHERS
from kgas_async.testing import assert_clean, sweep


@tool
async def echo(x: int) -> int:
    await checkpoint()
    return x


@tool
async def odd_fails(x: int) -> int:
    if x % 2:
        raise OSError(f"{x} is odd")
    return x


@tool
async def forever(x: int = 0) -> None:
    await anyio.sleep_forever()


def quiet(**options: Any) -> PerformanceMonitor:
    """A monitor without a thread of its own."""
    return PerformanceMonitor(stall=None, sample_every=None, **options)


# --- calls


async def test_a_report_counts_ends_by_status() -> None:
    monitor = quiet()
    async with ServiceManager(monitor=monitor, log=None, threads=2) as manager:
        async with manager.map(odd_fails, range(10), arg="x") as outcomes:
            assert [outcome.ok async for outcome in outcomes] == [True, False] * 5
        await manager.outcome(odd_fails, x="no number")
        call = manager.submit(odd_fails.using(name="odd_fails", timeout=None), x=2)
        call.cancel()
        await call.wait()
        await manager.outcome(forever.using(timeout=0.01))
        figures = monitor.report().tools
    odd = figures["odd_fails"]
    assert (odd.calls, odd.succeeded, odd.failed, odd.cancelled) == (12, 5, 6, 1)
    assert odd.success_rate == 5 / 11
    assert odd.errors == {"OSError": 5, "InvalidInputs": 1}
    assert odd.run_s.count == 10  # neither the one that did not fit nor the cancelled one has run
    late = figures["forever"]
    assert (late.calls, late.timed_out, late.timeouts, late.success_rate) == (1, 1, 1, 0.0)
    assert late.errors == {"CallTimeout": 1}
    assert late.run_s.count == 1
    assert odd.per_s > 0


async def test_a_report_has_each_call_that_has_ended_also_if_nothing_was_written_yet() -> None:
    monitor, sink = quiet(), MemorySink()
    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        for number in range(1, 300):
            await manager.execute(echo, x=number)
            assert monitor.report().tools["echo"].succeeded == number
    assert monitor.report().tools["echo"].calls == 299
    assert sum(record["event"] == "call.succeeded" for record in sink.records) == 299


async def test_many_calls_are_counted_once_each_by_the_writers_thread() -> None:
    monitor = quiet()
    taken = 0
    async with (
        ServiceManager(monitor=monitor, log=None) as manager,
        manager.map(echo, range(20_000), arg="x") as outcomes,
    ):
        async for _ in outcomes:
            taken += 1
            if taken % 4000 == 0:
                assert monitor.report().tools["echo"].calls >= taken
    figures = monitor.report().tools["echo"]
    assert figures.calls == figures.succeeded == figures.run_s.count == figures.wait_s.count == 20_000
    assert 0 < figures.run_s.min <= figures.run_s.p50 <= figures.run_s.p99 <= figures.run_s.max


async def test_phases_are_told_apart_and_their_tool_is_their_sum() -> None:
    monitor = quiet()
    pipeline = Pipeline("p", Phase("one", echo), Phase("two", echo, bind={"x": "one"}), item=["x"])
    async with ServiceManager(monitor=monitor, log=None) as manager:
        await manager.run(pipeline, [{"x": x} for x in range(5)])
        await manager.execute(echo, x=1)
    report = monitor.report()
    assert {name: one.calls for name, one in report.phases.items()} == {"p/one": 5, "p/two": 5}
    assert report.tools["echo"].calls == 11


@pytest.mark.real_time  # what a call takes is measured in the world's time
async def test_waiting_and_running_are_told_apart() -> None:
    limit = ConcurrencyLimit(1)

    @tool(policy=Policy(concurrency=limit))
    async def slow(x: int) -> int:
        while x == 0 and limit.statistics().waiting < 2:
            await checkpoint()
        await anyio.sleep(0.02)
        return x

    monitor = quiet()
    async with (
        ServiceManager(monitor=monitor, log=None) as manager,
        manager.map(slow, range(3), arg="x") as outcomes,
    ):
        assert [outcome.unwrap() async for outcome in outcomes] == [0, 1, 2]
    figures = monitor.report().tools["slow"]
    assert figures.run_s.min >= 0.015
    assert figures.wait_s.min == 0  # the first one found the limit free
    assert figures.wait_s.max >= 0.03
    assert set(figures.waits) == {"concurrency"}
    assert figures.waits["concurrency"] == pytest.approx(figures.wait_s.mean * 3)


async def test_retries_and_timed_out_attempts_are_counted_before_the_call_has_ended() -> None:
    monitor = quiet()

    @tool(policy=Policy(timeout=0.01, retry=Retry(3, on=CallTimeout, wait=0)))
    async def late() -> CallFigures | None:
        if manager.calls[next(iter(manager.calls))].attempt < 3:
            await anyio.sleep_forever()
        return monitor.report().tools["late"]

    async with ServiceManager(monitor=monitor, log=None) as manager:
        inside = await manager.execute(late)
    assert inside is not None
    assert (inside.calls, inside.retries, inside.timeouts, inside.running) == (0, 2, 2, 1)
    figures = monitor.report().tools["late"]
    assert (figures.succeeded, figures.retries, figures.timeouts, figures.running) == (1, 2, 2, 0)


async def test_concurrency_is_that_of_running_code_and_not_of_waiting_calls() -> None:
    @tool(policy=Policy(concurrency=3))
    async def limited(x: int) -> int:
        await anyio.sleep(0.001)
        return monitor.report().tools["limited"].running

    meeting = threading.Barrier(4)

    @tool
    def threaded(x: int) -> None:
        meeting.wait(10)

    monitor = quiet()
    async with ServiceManager(monitor=monitor, log=None, threads=4) as manager:
        async with manager.map(limited, range(20), arg="x") as outcomes:
            assert max([outcome.unwrap() async for outcome in outcomes]) == 3
        async with manager.map(threaded, range(12), arg="x") as outcomes:
            assert all([outcome.ok async for outcome in outcomes])
    report = monitor.report()
    assert (report.tools["limited"].peak, report.tools["limited"].running) == (3, 0)
    assert (report.tools["threaded"].peak, report.tools["threaded"].running) == (4, 0)


async def test_an_abandoned_thread_runs_until_it_ends() -> None:
    release = threading.Event()

    @tool(on_cancel="abandon", policy=Policy(timeout=0.02))
    def stuck() -> None:
        release.wait(10)

    monitor = quiet()
    async with ServiceManager(monitor=monitor, log=None) as manager:
        await manager.outcome(stuck)
        figures = monitor.report().tools["stuck"]
        assert (figures.abandoned, figures.running, figures.timed_out) == (1, 1, 1)
        release.set()
        while monitor.report().tools["stuck"].running:  # noqa: ASYNC110
            await anyio.sleep(0.001)


async def test_wherever_a_call_is_cancelled_nothing_is_left_running() -> None:
    monitor = quiet()
    manager = ServiceManager(monitor=monitor, log=None)
    bounded = echo.using(timeout=30, concurrency=1)

    async def use() -> None:
        async with manager:
            with monitor.track("both"):
                await manager.execute(echo, x=1)
                await manager.execute(bounded, x=2)

    def check(_: Any) -> None:
        assert_clean(manager)
        report = monitor.report()
        figures = report.tools["echo"]
        assert (figures.running, report.blocks["both"].running) == (0, 0)
        assert figures.calls == figures.succeeded + figures.cancelled

    assert await sweep(use, check=check) > 2
    report = monitor.report()
    assert (report.blocks["both"].failed, report.tools["echo"].failed) == (0, 0)
    assert report.blocks["both"].cancelled > 0


async def test_the_oldest_open_calls_are_shown() -> None:
    monitor = quiet()
    async with ServiceManager(monitor=monitor, log=None, grace=0) as manager:
        calls = [manager.submit(forever, x=x) for x in range(25)]
        await anyio.wait_all_tasks_blocked()
        report = monitor.report()
        assert [one.call_id for one in report.active] == [call.id for call in calls[:20]]
        assert report.active[0].tool == "forever"
        assert report.active[0].status == "running"
        assert report.tools["forever"].running == 25
        await manager.cancel()
    assert monitor.report().active == ()


# --- slow calls


async def naps(monitor: PerformanceMonitor, *sleeps: float) -> MemorySink:
    @tool
    async def nap(seconds: float) -> None:
        await anyio.sleep(seconds)

    sink = MemorySink()
    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        for seconds in sleeps:
            await manager.execute(nap, seconds=seconds)
    return sink


@pytest.mark.real_time  # what a call takes is measured in the world's time
async def test_calls_over_the_threshold_are_recorded_and_the_slowest_are_kept() -> None:
    monitor = quiet(slow=0.03, keep_slow=2)
    sink = await naps(monitor, 0.04, 0, 0.08, 0, 0.12)
    events = [record for record in sink.records if record["event"] == "call.slow"]
    assert len(events) >= 3  # a nap of nothing may take its time on a busy machine
    slow = monitor.report().slow
    assert len(slow) == 2
    assert slow[0].run_s >= slow[1].run_s >= 0.06
    by_id = {record["call_id"]: record for record in events}
    assert by_id[slow[0].call_id]["run_us"] == int(slow[0].run_s * 1e6 + 1e-6)
    assert by_id[slow[0].call_id]["status"] == "succeeded"
    assert sink.records[-1]["event"] == "session.ended"


@pytest.mark.real_time  # what a call takes is measured in the world's time
async def test_without_a_threshold_the_slowest_are_kept_and_none_is_recorded() -> None:
    monitor = quiet(keep_slow=3)
    sink = await naps(monitor, 0, 0, 0.05, 0, 0, 0.08, 0)
    assert not [record for record in sink.records if record["event"] == "call.slow"]
    slow = monitor.report().slow
    assert len(slow) == 3
    assert slow[0].run_s >= slow[1].run_s >= 0.04


# --- blocks


async def test_a_block_counts_how_it_ended() -> None:
    monitor = quiet()
    for fails in (False, True, False):
        try:
            with monitor.track("sync"):
                if fails:
                    raise LookupError
        except LookupError:
            pass
    async with monitor.track("async"):
        await checkpoint()
    with anyio.CancelScope() as scope:
        async with monitor.track("async"):
            scope.cancel()
            await checkpoint()
    with pytest.raises(ExceptionGroup), monitor.track("grouped"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise LookupError
    blocks = monitor.report().blocks
    assert (blocks["sync"].succeeded, blocks["sync"].failed, blocks["sync"].errors) == (2, 1, {"LookupError": 1})
    assert (blocks["async"].succeeded, blocks["async"].cancelled, blocks["async"].success_rate) == (1, 1, 1.0)
    assert (blocks["grouped"].failed, blocks["grouped"].errors) == (1, {"ExceptionGroup": 1})
    assert {name: one.peak for name, one in blocks.items()} == {"sync": 1, "async": 1, "grouped": 1}


async def test_a_blocks_end_is_in_the_evidence_of_the_call_that_it_is_in() -> None:
    monitor, sink = quiet(), MemorySink()

    @tool
    def parse(x: int) -> int:
        with monitor.track("parse"):
            return 1 // x

    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        with monitor.track("around"):
            call = manager.submit(parse, x=1)
            await call.wait()
        await manager.outcome(parse, x=0)
    with monitor.track("after"):
        pass
    first, around, failed = [record for record in sink.records if record["event"].startswith("block.")]
    assert (first["event"], first["block"], first["tool"], first["call_id"]) == (
        "block.succeeded", "parse", "parse", call.id,
    )  # fmt: skip
    assert (around["block"], around.get("call_id"), around["run_us"] >= first["run_us"]) == ("around", None, True)
    assert failed["event"] == "block.failed"
    assert failed["error"] == {"type": "ZeroDivisionError", "message": "integer division or modulo by zero"}
    assert monitor.report().blocks["after"].calls == 1


async def test_blocks_that_outrun_the_writer_are_counted_and_not_recorded() -> None:
    release = threading.Event()

    class Slow(MemorySink):
        def write(self, records: Any) -> None:
            release.wait(10)
            super().write(records)

    monitor, sink = quiet(), Slow()
    async with ServiceManager(monitor=monitor, evidence=sink, log=None):
        for _ in range(20_000):
            with monitor.track("tight"):
                pass
        release.set()
    report = monitor.report()
    recorded = sum(record["event"] == "block.succeeded" for record in sink.records)
    assert report.blocks["tight"].calls == recorded + report.unrecorded == 20_000
    assert report.unrecorded > 0


# --- the user's own numbers


def test_a_metric_is_the_same_wherever_it_is_asked_for() -> None:
    monitor = quiet()
    monitor.counter("pages").add(2)
    monitor.counter("pages").add()
    monitor.gauge("queue").set(7)
    monitor.histogram("bytes").record(4096)
    report = monitor.report()
    assert report.counters == {"pages": 3}
    assert report.gauges == {"queue": 7}
    assert report.histograms == {"bytes": Distribution(1, 4096, 4096, 4096, 4096, 4096, 4096)}
    with pytest.raises(ValueError, match="'pages' is a counter already"):
        monitor.gauge("pages")


def test_names_are_bounded() -> None:
    monitor = quiet()
    for number in range(NAMES_KEPT + 10):
        with monitor.track(f"block {number}"):
            pass
    blocks = monitor.report().blocks
    assert len(blocks) == NAMES_KEPT + 1
    assert blocks[OTHERS].calls == 10
    for number in range(NAMES_KEPT):
        monitor.counter(f"counter {number}")
    with pytest.raises(ValueError, match="not for an item"):
        monitor.counter("one more")
    monitor.counter("counter 5").add()


def test_types_of_errors_are_bounded() -> None:
    monitor = quiet()
    for number in range(ERROR_TYPES_KEPT + 5):
        with pytest.raises(Exception, match="x"), monitor.track("b"):
            raise type(f"Error{number}", (Exception,), {})("x")
    errors = monitor.report().blocks["b"].errors
    assert len(errors) == ERROR_TYPES_KEPT + 1
    assert errors[OTHERS] == 5


# --- the process


@pytest.mark.real_time
async def test_the_process_is_sampled_at_the_interval_and_at_both_ends() -> None:
    monitor, sink = PerformanceMonitor(stall=None, sample_every=0.05), MemorySink()
    async with ServiceManager(monitor=monitor, evidence=sink, log=None):
        await anyio.sleep(0.3)
    records = [record for record in sink.records if record["event"] == "resource.sampled"]
    process = monitor.report().process
    assert 3 <= len(records) == len(process.samples) <= 9
    assert all(
        type(record[name]) is int for record in records for name in ("cpu_us", "span_us", "rss_bytes", "threads")
    )
    assert process.rss_peak_bytes == max(record["rss_bytes"] for record in records) > 1_000_000
    assert process.threads_peak >= 2
    assert process.samples[0].at_s == 0
    assert process.cpu >= 0
    long, short = PerformanceMonitor(sample_every=60), MemorySink()
    async with ServiceManager(monitor=long, evidence=short, log=None):
        await anyio.sleep(0.05)
    assert len([record for record in short.records if record["event"] == "resource.sampled"]) == 2
    assert short.records[-1]["event"] == "session.ended"


# --- sessions


async def test_figures_go_on_from_session_to_session_and_add_up_over_managers() -> None:
    monitor = quiet()
    first, second = ServiceManager(monitor=monitor, log=None), ServiceManager(monitor=monitor, log=None)
    for _ in range(2):
        async with first, second:
            await first.execute(echo, x=1)
            await second.execute(echo, x=1)
    assert monitor.report().tools["echo"].calls == 4
    assert_clean(first, second)


async def test_figures_are_in_the_managers_statistics() -> None:
    async with ServiceManager(monitor=quiet(), log=None) as manager:
        await manager.execute(echo, x=1)
        await manager.outcome(odd_fails, x=1)
        tools = manager.statistics().tools
    assert (tools["echo"].success_rate, tools["odd_fails"].success_rate) == (1.0, 0.0)
    figures = tools["echo"].figures
    assert figures is not None
    assert (figures.calls, figures.peak) == (1, 1)
    assert figures.run_s.max == pytest.approx(tools["echo"].mean_s)


@pytest.mark.unwatched
async def test_without_a_monitor_a_tool_runs_as_it_is() -> None:
    async with ServiceManager(log=None) as manager:
        await manager.execute(echo, x=1)
        session = manager._session
        assert session is not None
        assert session.log is None
        assert session.bind(echo).function is echo._execution().function
        tools = manager.statistics().tools
    assert tools["echo"].figures is None
    assert tools["echo"].mean_s > 0


async def test_any_thread_may_ask() -> None:
    monitor = quiet()
    counts: list[int] = []

    @tool
    def asking() -> None:
        counts.append(monitor.report().tools["echo"].calls)

    async with ServiceManager(monitor=monitor, log=None) as manager:
        await manager.execute(echo, x=1)
        await manager.execute(asking)
    assert counts == [1]


def test_it_works_from_scripts() -> None:
    monitor = quiet()
    with ServiceManager(monitor=monitor, log=None).blocking() as manager:
        assert manager.execute(echo, x=1) == 1
        assert monitor.report().tools["echo"].calls == 1


# --- how it is shown


async def test_a_report_prints_and_goes_into_json() -> None:
    monitor = quiet(slow=0.0)
    empty = monitor.report()
    assert str(empty) == "performance over 0"
    assert json.loads(json.dumps(empty.to_dict()))["tools"] == {}
    async with ServiceManager(monitor=monitor, log=None) as manager:
        await manager.execute(echo, x=1)
        with monitor.track("block"):
            time.sleep(0.001)  # noqa: ASYNC251
        monitor.counter("pages").add()
        monitor.histogram("sizes").record(3)
        open_call = manager.submit(forever)
        report = monitor.report()
        open_call.cancel()
    text = str(report)
    for part in ("echo", "block", "pages", "sizes", "slowest calls", "oldest open calls", "100.0%"):
        assert part in text
    back = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert back["tools"]["echo"]["run_s"]["max"] == report.tools["echo"].run_s.max
    assert back["slow"][0]["tool"] == "echo"
    with pytest.raises(AttributeError):
        report.elapsed_s = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "what"),
    [({"slow": -1}, "slow"), ({"keep_slow": 0}, "keep_slow"), ({"sample_every": 0}, "sample_every")],
)
def test_wrong_options_are_refused(options: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        PerformanceMonitor(**options)


def test_a_manager_takes_no_other_monitor() -> None:
    with pytest.raises(TypeError, match="PerformanceMonitor"):
        ServiceManager(monitor=True)  # type: ignore[arg-type]


async def test_a_call_with_a_name_of_its_own_is_still_one_of_its_tool() -> None:
    monitor = quiet()
    sink = MemorySink()

    @tool
    async def tracks() -> None:
        with monitor.track("block"):
            pass

    async with ServiceManager(monitor=monitor, evidence=sink, log=None, grace=0) as manager:
        manager.options(name="nightly").submit(forever, x=1)
        await anyio.wait_all_tasks_blocked()
        assert [one.tool for one in monitor.report().active] == ["forever"]
        await manager.options(name="tracked").execute(tracks)
    (block,) = [record for record in sink.records if record["event"] == "block.succeeded"]
    assert block["tool"] == "tracks"
