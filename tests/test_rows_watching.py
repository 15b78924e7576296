"""Backpressure, order and watching: the rows 27, 33, 43 to 47 and 50 of rows.md, and what was wrong there."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallTimeout,
    MemorySink,
    PerformanceMonitor,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    tool,
)
from kgas_async.export.lineage import lineage


def unwatched(**options: Any) -> PerformanceMonitor:
    """Without a thread beside the loop."""
    return PerformanceMonitor(stall=None, sample_every=None, **options)


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def forever(x: int = 0) -> None:
    await anyio.sleep_forever()


# --- row 27: backpressure in batches and streams; there: one task for each item, without bound


async def test_row_27_a_source_is_pulled_as_far_as_there_is_room_and_no_task_is_made_per_item() -> None:
    pulled = 0
    most_tasks = most_calls = 0

    def source() -> Iterator[dict[str, int]]:
        nonlocal pulled
        for pulled in range(100_000):
            yield {"x": pulled}

    @tool
    async def looks(x: int) -> int:
        nonlocal most_tasks, most_calls
        await checkpoint()
        most_tasks = max(most_tasks, len(anyio.get_running_tasks()))
        most_calls = max(most_calls, len(manager.calls))
        return x

    before = len(anyio.get_running_tasks())
    async with ServiceManager(log=None) as manager:
        async with manager.map(looks, source(), in_flight=5) as outcomes:
            for expected in range(100):
                assert (await anext(outcomes)).value == expected
            await anyio.wait_all_tasks_blocked()  # nobody takes any more
            assert pulled <= 100 + 4 * 5
        pipeline = Pipeline("p", Phase("looks", looks), Phase("double", double, bind={"x": "looks"}), item=["x"])
        async with manager.stream(pipeline, source(), in_flight=5, ordered_window=10) as stream:
            for expected in range(100):
                assert (await anext(stream)).value == 2 * expected
            await anyio.wait_all_tasks_blocked()
            assert pulled <= 100 + 10
    assert most_calls <= 5
    assert most_tasks <= before + 5 + 2


# --- row 33: phases in parallel or in sequence; there: a sequential phase ran before the parallel ones had ended


async def test_row_33_a_phase_in_sequence_begins_when_the_parallel_ones_have_ended() -> None:
    story: list[str] = []
    both = anyio.Event()

    def telling(name: str) -> Any:
        @tool(name=name)
        async def phase(x: int) -> int:
            story.append(f"{name} begins")
            if len(story) == 2:
                both.set()
            with anyio.fail_after(10):
                await both.wait()  # each needs the other to be running
            for _ in range(1 if name == "quick" else 20):
                await checkpoint()
            story.append(f"{name} ends")
            return x

        return phase

    @tool
    async def last(x: int) -> int:
        story.append("last")
        return x

    phases = [
        Phase("slow", telling("slow")),
        Phase("quick", telling("quick")),
        Phase("last", last, after=["slow", "quick"]),
    ]
    async with ServiceManager(log=None) as manager:
        report = await manager.run(Pipeline("p", *phases, item=["x"]), [{"x": 1}])
    assert report.ok
    assert set(story[:2]) == {"slow begins", "quick begins"}
    assert story[2:] == ["quick ends", "slow ends", "last"]


# --- row 43: operation tracking


async def test_row_43_an_operation_is_tracked_with_time_success_and_error_in_the_log_and_in_figures(
    tmp_path: Path,
) -> None:
    monitor = unwatched()

    @tool
    def parse(text: str) -> int:
        with monitor.track("split"):
            parts = text.split()
        if not parts:
            raise ValueError("no text")
        return len(parts)

    path = tmp_path / "run.jsonl"
    async with ServiceManager(monitor=monitor, evidence=path, log=None) as manager, monitor.track("all"):
        assert await manager.execute(parse, text="a b") == 2
        assert not (await manager.outcome(parse, text="")).ok
    records = [json.loads(line) for line in path.read_text().splitlines()]
    ends = [one for one in records if one["event"] in ("call.succeeded", "call.failed")]
    assert [(one["tool"], one["status"]) for one in ends] == [("parse", "succeeded"), ("parse", "failed")]
    assert ends[1]["error"] == {"type": "ValueError", "message": "no text"}
    assert all(one["run_us"] >= 0 and one["time"].endswith("Z") for one in ends)
    blocks = [(one["block"], one.get("call_id")) for one in records if one["event"] == "block.succeeded"]
    assert blocks == [("split", ends[0]["call_id"]), ("split", ends[1]["call_id"]), ("all", None)]
    report = monitor.report()
    assert (report.tools["parse"].succeeded, report.tools["parse"].errors) == (1, {"ValueError": 1})
    assert report.blocks["split"].run_s.count == 2


# --- row 44: statistics; there: they grew without bound


@pytest.mark.real_time  # what a call takes is measured in the world's time
async def test_row_44_statistics_have_counts_rates_percentiles_peak_timeouts_and_retries() -> None:
    monitor = unwatched()
    tries: list[int] = []

    @tool(policy=Policy(concurrency=3, retry=Retry(2, on=(CallTimeout, OSError), wait=0)))
    async def mixed(x: int) -> int:
        tries.append(x)
        await anyio.sleep_forever() if x == 0 else await anyio.sleep(0.001)
        if x == 1 and tries.count(1) == 1:
            raise OSError("once")
        if x == 2:
            raise ValueError("always")
        return x

    async with ServiceManager(monitor=monitor, log=None) as manager:
        async with manager.map(mixed, range(1, 20), arg="x") as outcomes:
            statuses = [outcome.status async for outcome in outcomes]
        late = await manager.outcome(mixed.using(timeout=0.05), x=0)
        counts = manager.statistics().tools["mixed"]
    assert statuses == ["succeeded", "failed"] + ["succeeded"] * 17
    assert (late.status, late.attempts) == ("timed_out", 2)
    assert (counts.calls, counts.succeeded, counts.failed, counts.timed_out, counts.retried) == (20, 18, 1, 1, 2)
    assert counts.success_rate == 18 / 20
    figures = counts.figures
    assert figures is not None
    assert (figures.peak, figures.timeouts, figures.retries) == (3, 2, 2)
    spread = figures.run_s
    assert spread.count == 20
    assert 0 < spread.min <= spread.p50 <= spread.p95 <= spread.p99 <= spread.max
    assert spread.min <= spread.mean <= spread.max
    assert spread.max >= 0.09  # two attempts of 50 ms


async def test_row_44_and_10_statistics_take_no_more_memory_after_many_calls() -> None:
    monitor = unwatched()

    async def many(number: int) -> int:
        async with ServiceManager(monitor=monitor, log=None) as manager:
            async with manager.map(double, ({"x": n} for n in range(number))) as outcomes:
                async for outcome in outcomes:
                    assert outcome.ok
            assert manager.statistics().tools["double"].calls == number
        gc.collect()
        return len(gc.get_objects())

    before = await many(500)
    assert await many(10_000) - before < 1000
    assert monitor.report().tools["double"].calls == 10_500


# --- row 45: slow operations, errors, active ones, metrics of one's own; there: the type of a metric was only a label


@pytest.mark.real_time
async def test_row_45_slow_active_and_failed_operations_are_in_the_report() -> None:
    monitor = unwatched(slow=0.02)
    sink = MemorySink()

    @tool
    async def nap(seconds: float) -> None:
        await anyio.sleep(seconds)
        if seconds == 0:
            raise KeyError("none")

    async with ServiceManager(monitor=monitor, evidence=sink, log=None, grace=0) as manager:
        slow = manager.submit(nap, seconds=0.03)
        quick = [manager.submit(nap, seconds=seconds) for seconds in (0.0, 0.001)]
        for call in (slow, *quick):
            await call.wait()
        open_call = manager.submit(forever)
        await anyio.wait_all_tasks_blocked()
        report = monitor.report()
        assert [one.call_id for one in report.slow] == [slow.id]
        assert [(one.tool, one.call_id, one.status) for one in report.active] == [("forever", open_call.id, "running")]
        assert report.tools["nap"].errors == {"KeyError": 1}
        assert "slowest calls" in str(report)
        json.dumps(report.to_dict(), allow_nan=False)
    assert [one["call_id"] for one in sink.records if one["event"] == "call.slow"] == [slow.id]


async def test_row_45_a_counter_counts_a_gauge_goes_both_ways_and_a_histogram_spreads() -> None:
    monitor = unwatched()

    @tool
    def measured(n: int) -> None:
        monitor.counter("pages").add(n)
        monitor.gauge("open").add(1 if n % 2 else -1)
        monitor.histogram("size").record(n)

    async with (
        ServiceManager(monitor=monitor, log=None, threads=4) as manager,
        manager.map(measured, range(1, 101), arg="n") as outcomes,
    ):
        assert all([outcome.ok async for outcome in outcomes])
    report = monitor.report()
    assert report.counters == {"pages": 5050}
    assert report.gauges == {"open": 0}
    size = report.histograms["size"]
    assert (size.count, size.mean, size.min, size.max) == (100, 50.5, 1, 100)
    assert size.p50 == pytest.approx(50, rel=0.01)
    assert size.p99 == pytest.approx(99, rel=0.01)
    with pytest.raises(ValueError, match="only goes up"):
        monitor.counter("pages").add(-1)
    with pytest.raises(ValueError, match="is a counter already"):
        monitor.gauge("pages")


# --- row 46: CPU, memory and threads over time


@pytest.mark.real_time
async def test_row_46_cpu_memory_and_threads_are_sampled_over_time() -> None:
    monitor = PerformanceMonitor(sample_every=0.02, stall=None)
    sink = MemorySink()
    release = threading.Event()

    @tool
    def works() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        release.wait(10)

    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        call = manager.submit(works)
        with anyio.fail_after(20):
            while len(monitor.report().process.samples) < 5 or monitor.report().process.cpu == 0:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        release.set()
        await call.wait()
    process = monitor.report().process
    at = [sample.at_s for sample in process.samples]
    assert at == sorted(at)
    assert at[0] == 0
    assert process.cpu > 0
    assert all(sample.rss_bytes > 1_000_000 for sample in process.samples)
    assert process.rss_peak_bytes >= max(sample.rss_bytes for sample in process.samples)
    assert process.threads_peak >= 3  # this one, the watching one, the tool's
    samples = [one for one in sink.records if one["event"] == "resource.sampled"]
    assert len(samples) >= len(process.samples)
    assert {"cpu_us", "rss_bytes", "threads", "span_us"} <= samples[0].keys()


# --- row 50: an event loop that is blocked; there: 20 blocking sleeps in async code, and nobody noticed


@pytest.mark.real_time
async def test_row_50_each_of_20_blocking_sleeps_in_async_tools_is_found_with_its_tool_and_stack() -> None:
    monitor = PerformanceMonitor(stall=0.03, sample_every=None)
    sink = MemorySink()

    def sleeper(number: int) -> Any:
        @tool(name=f"careless_{number}")
        async def careless() -> None:
            time.sleep(0.1)  # noqa: ASYNC251
            await checkpoint()

        return careless

    def found() -> dict[str, str]:
        stalls = [one for one in sink.records if one["event"] == "loop.stalled" and "tool" in one]
        return {one["tool"]: one["stack"][-1] for one in stalls}

    tools = {f"careless_{number}": sleeper(number) for number in range(20)}
    async with ServiceManager(monitor=monitor, evidence=sink, log=None) as manager:
        with anyio.fail_after(30):
            while missed := tools.keys() - found():  # mostly none: but a busy machine may not let the watcher run
                for name in missed:
                    await manager.execute(tools[name])
                    await anyio.sleep(0.02)  # the loop ticks again
                await anyio.sleep(0.1)  # what is recorded is written
    assert all(place.endswith(".careless") and "test_rows_watching.py:" in place for place in found().values())
    assert monitor.report().stalls.count >= 20


# --- row 47: provenance; there: each operation kept all that it came from, so that storage grew with the square


async def test_row_47_lineage_of_outputs_and_impact_of_inputs_in_storage_that_is_linear_in_the_calls() -> None:
    @tool
    async def add(values: list[int]) -> int:
        return sum(values)

    phases = [Phase(f"sum{number}", add, collect=True, bind={"values": "double"}) for number in range(4)]
    pipeline = Pipeline("sums", Phase("double", double), *phases, item=["x"])

    async def recorded(items: int) -> list[dict[str, Any]]:
        sink = MemorySink()
        async with ServiceManager(evidence=sink, log=None) as manager:
            await manager.run(pipeline, [{"x": number} for number in range(items)])
        return sink.records

    few, many = await recorded(50), await recorded(200)
    assert [len(json.dumps(records)) / (len(records) + 4) < 400 for records in (few, many)] == [True, True]
    assert len(many) - len(few) == 150
    for phase in phases:  # each came from all of them
        assert len(lineage(many, phase=phase.name).items) == 200
    reached = lineage(many, item="7", direction="downstream")
    assert sorted(call.phase for call in reached.calls) == ["double", "sum0", "sum1", "sum2", "sum3"]
