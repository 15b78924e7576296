"""Traces for Perfetto: slices add up, and those of one lane lie in each other or apart."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections import Counter, defaultdict
from typing import Any

import anyio
import pytest

from kgas_async import MemorySink, PerformanceMonitor, Phase, Pipeline, Policy, Retry, ServiceManager, current, tool
from kgas_async._reading import unix_us
from kgas_async.export.trace import trace_events, write_trace

Events = list[dict[str, Any]]


@tool(policy=Policy(concurrency=2))
async def doze(x: int) -> int:
    await anyio.sleep(0.002)
    return x


@tool
def block(doze: int) -> int:
    time.sleep(0.002)
    return doze


@tool(policy=Policy(retry=Retry(attempts=3, wait=0.002, on=OSError)))
async def flaky(block: int) -> int:
    if block % 2 and not hasattr(flaky, f"seen{block}"):
        setattr(flaky, f"seen{block}", True)
        raise OSError("again")
    return await current().execute(doze, x=block)


pipeline = Pipeline("dozing", Phase("doze", doze), Phase("block", block), Phase("flaky", flaky), item=["x"])


async def recorded(items: int = 6, threads: int = 2, **options: Any) -> list[dict[str, Any]]:
    for number in range(items):
        vars(flaky).pop(f"seen{number}", None)
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, threads=threads, **options) as manager:
        await manager.run(pipeline, [{"x": number} for number in range(items)])
    return sink.records


def slices(events: Events) -> Events:
    return [event for event in events if event["ph"] == "X"]


def calls(events: Events) -> Events:
    return [event for event in slices(events) if event["cat"] == "call"]


def parts_of(call: dict[str, Any], events: Events) -> Events:
    lane = [event for event in slices(events) if (event["pid"], event["tid"]) == (call["pid"], call["tid"])]
    return [
        event for event in lane
        if event is not call and event["ts"] >= call["ts"] and event["ts"] + event["dur"] <= call["ts"] + call["dur"]
    ]  # fmt: skip


async def test_waits_and_run_are_slices_that_add_up_to_their_call() -> None:
    records = await recorded()
    events = list(trace_events(records))
    ends = {record["call_id"]: record for record in records if "wait_us" in record}
    assert {call["args"]["call_id"] for call in calls(events)} == ends.keys()
    for call in calls(events):
        end = ends[call["args"]["call_id"]]
        parts: Counter[str] = Counter()
        for part in parts_of(call, events):
            parts[part["name"]] += part["dur"]
        wanted = {f"wait: {name}": length for name, length in end["wait_us"].items() if length}
        assert sum(parts.values()) == call["dur"]
        parts.pop("other", None)  # where the loop was busy before it could begin
        assert parts == wanted | {"run": end["run_us"]}
        assert call["ts"] + call["dur"] == unix_us(end["time"])


def at(us: int) -> str:
    return f"2026-01-01T00:00:00.{us:06d}Z"


RETRIED = {"schema": 1, "session_id": "s", "event": "call.retried", "call_id": "s-1", "tool": "t", "version": "0"}
ENDED = {**RETRIED, "event": "call.succeeded", "status": "succeeded", "run_us": 3000}


@pytest.mark.parametrize(
    ("retries", "waits", "wanted"),
    [
        ([(4500, 2000)], {"concurrency": 500, "retry": 2000}, "concurrency 500, run 1000, retry 2000, run 2000"),
        ([(3500, 1900)], {"retry": 2000}, "run 500, retry 2000, run 2500"),  # it slept longer than it was to
        ([(3500, 900), (5500, 900)], {"retry": 2000}, "run 500, retry 900, run 1100, retry 1100, run 1400"),
        ([(100, 2000)], {"retry": 2000}, "retry 2000, run 3000"),  # its begin is not known that well
        ([(7900, 2000)], {"retry": 2000}, "run 3000, retry 2000"),
        ([], {"rate": 70, "thread": 30, "retry": 2000}, "retry 2000, rate 70, thread 30, run 3000"),
        ([(3500, 2000)], {"retry": 0}, "run 500, run 2500"),
    ],
)
def test_a_retry_is_waited_for_where_its_attempt_has_failed(
    retries: list[tuple[int, int]], waits: dict[str, int], wanted: str
) -> None:
    waits = {"concurrency": 0, "rate": 0, "retry": 0, "thread": 0} | waits
    records = [
        *({**RETRIED, "seq": seq, "time": at(time), "delay_us": delay} for seq, (time, delay) in enumerate(retries)),
        {**ENDED, "seq": 9, "time": at(3000 + 3000 + sum(waits.values())), "wait_us": waits},
    ]
    whole, *parts = slices(list(trace_events(records)))
    assert ", ".join(f"{part['name'].removeprefix('wait: ')} {part['dur']}" for part in parts) == wanted
    ends = [whole["ts"], *(part["ts"] + part["dur"] for part in parts)]
    assert [part["ts"] for part in parts] == ends[:-1]  # one after the other without a gap
    assert ends[-1] == whole["ts"] + whole["dur"]


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        ({}, "run 3000, other 7000"),  # cleaned up
        ({"status": "succeeded"}, "other 7000, run 3000"),
        ({"status": "succeeded", "answered_by": "b"}, "run 3000, fallback: b 7000"),
        ({"status": "reused", "run_us": 0}, "other 10000"),
        ({"run_us": 14_000}, "run 10000"),  # two attempts at once
        ({"run_us": 14_000, "wait_us": {"rate": 500}}, "rate 500, run 9500"),
        ({"run_us": 9_500}, "run 9500"),  # as long as that: it was made a little earlier
    ],
)
def test_a_call_that_was_announced_begins_where_it_began_and_its_parts_add_up(end: dict[str, Any], wanted: str) -> None:
    records = [
        {**RETRIED, "event": "call.started", "seq": 1, "time": at(0)},
        {**ENDED, "status": "failed", "wait_us": {}, **end, "event": "call.failed", "seq": 2, "time": at(10_000)},
    ]
    whole, *parts = slices(list(trace_events(records)))
    assert ", ".join(f"{part['name'].removeprefix('wait: ')} {part['dur']}" for part in parts) == wanted
    assert whole["ts"] + whole["dur"] == unix_us(at(10_000))
    ends = [whole["ts"], *(part["ts"] + part["dur"] for part in parts)]
    assert [part["ts"] for part in parts] == ends[:-1]
    assert ends[-1] == whole["ts"] + whole["dur"]


async def test_a_call_lies_in_the_one_that_it_is_nested_in_also_as_its_fallback() -> None:
    sink = MemorySink()

    @tool
    async def other(x: int) -> int:
        for _ in range(1000):
            if any(record["event"] == "call.started" for record in sink.records):  # or it is too short to tell
                break
            await anyio.sleep(0.005)
        return x

    @tool(policy=Policy(fallback=other))
    async def fails(x: int) -> int:
        raise OSError("no")

    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.execute(fails, x=1)
    found = {event["name"]: event for event in calls(list(trace_events(sink.records)))}
    outer, inner = found["fails"], found["other"]
    assert outer["ts"] <= inner["ts"]
    assert outer["ts"] + outer["dur"] >= inner["ts"] + inner["dur"]


async def test_the_phases_of_a_run_in_a_call_have_their_names() -> None:
    @tool
    async def outer(x: int) -> int:
        return (await current().run(Pipeline("in", Phase("first", doze)), [{"x": x}])).total

    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(Pipeline("out", Phase("second", outer), item=["x"]), [{"x": 1}])
    assert {event["name"] for event in calls(list(trace_events(sink.records)))} == {"first", "second"}


async def test_what_was_open_ends_with_the_latest_record_not_the_last_one() -> None:
    records = await recorded(1)
    opened = {"event": "call.started", "call_id": "x", "tool": "t", "version": "0", "time": records[1]["time"]}
    frame = {name: records[-1][name] for name in ("schema", "session_id", "seq")}
    cut = [one for one in records if one["event"] not in ("run.ended", "session.ended")]
    events = list(trace_events([*cut, {**frame, **opened}]))
    (run,) = [event for event in slices(events) if event["cat"] == "pipeline"]
    assert all(run["ts"] + run["dur"] >= call["ts"] + call["dur"] for call in calls(events))


@pytest.mark.real_time  # virtual ones take no time, and the record tells the real one
async def test_each_wait_shows_somewhere() -> None:
    events = list(trace_events(await recorded()))
    names = {event["name"] for event in slices(events)}
    assert {"wait: concurrency", "wait: thread", "wait: retry", "run", "dozing", "doze", "block", "flaky"} <= names


async def test_slices_of_a_run_add_up_to_it() -> None:
    records = await recorded(1)
    events = list(trace_events(records))
    (run,) = [event for event in slices(events) if event["cat"] == "pipeline"]
    phases = [event for event in calls(events) if "parent_id" not in event["args"]]
    assert [event["name"] for event in phases] == ["doze", "block", "flaky"]
    begins = [event["ts"] for event in phases]
    ends = [event["ts"] + event["dur"] for event in phases]
    between = [
        after - before for before, after in zip([run["ts"], *ends], [*begins, run["ts"] + run["dur"]], strict=True)
    ]
    assert min(between) >= 0  # one after the other, all within the run
    assert sum(event["dur"] for event in phases) + sum(between) == run["dur"]


async def test_slices_of_a_lane_never_cross_and_lanes_are_as_many_as_calls_at_once() -> None:
    events = list(trace_events(await recorded(20)))
    lanes = defaultdict(list)
    for call in calls(events):
        lanes[call["tid"]].append((call["ts"], call["ts"] + call["dur"]))
    for spans in lanes.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    moments = sorted(
        (at, step) for spans in lanes.values() for begin, end in spans for at, step in ((begin, 1), (end, -1))
    )
    at_once = most = 0
    for _, step in moments:
        at_once += step
        most = max(most, at_once)
    assert len(lanes) == most
    named = {event["tid"] for event in events if event["name"] == "thread_name" and event["args"]["name"] != "run 1"}
    assert named == lanes.keys()


async def test_a_batch_is_one_slice() -> None:
    @tool
    async def up(x: list[int]) -> list[int]:
        return x

    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(Pipeline("p", Phase("up", up, batch=3), item=["x"]), [{"x": number} for number in range(3)])
    (call,) = calls(list(trace_events(sink.records)))
    assert call["args"]["batch_size"] == 3


async def test_what_was_open_when_it_ended_is_shown_up_to_there() -> None:
    records = await recorded(1)
    end = next(record for record in records if record.get("tool") == "flaky" and "wait_us" in record)
    started = {**end, "event": "call.started", "time": records[1]["time"]}
    del started["status"], started["wait_us"], started["run_us"]
    cut = [*records[:2], started, records[2]]
    events = list(trace_events(cut))
    (left,) = [event for event in calls(events) if event["args"]["status"] == "open"]
    assert left["ts"] + left["dur"] == unix_us(records[2]["time"])
    assert [event["name"] for event in slices(events) if event["cat"] == "pipeline" and event["name"] == "dozing"] == [
        "dozing"
    ]


async def test_one_run_alone_and_sessions_apart() -> None:
    first, second = await recorded(1), await recorded(2)
    events = list(trace_events([*first, *second]))
    assert {event["pid"] for event in events} == {1, 2}
    alone = list(trace_events([*first, *second], run_id=second[1]["run_id"]))
    assert {call["args"]["run_id"] for call in calls(alone)} == {second[1]["run_id"]}


async def test_retries_samples_and_stalls_are_moments() -> None:
    records = await recorded(2, monitor=PerformanceMonitor())
    sample = {"event": "resource.sampled", "cpu_us": 50, "span_us": 100, "rss_bytes": 7 << 20, "threads": 3}
    stall = {"event": "loop.stalled", "tool": "block", "stalled_us": 300, "stack": ["a"]}
    frame = {name: records[-1][name] for name in ("schema", "session_id", "seq", "time")}
    events = list(trace_events([*records, {**frame, **sample}, {**frame, **stall}]))
    assert [event["name"] for event in events if event["ph"] == "i"].count("call.retried") == 1
    assert any(event["ph"] == "i" and event["name"] == "loop.stalled" for event in events)
    assert {"cpu_percent": 50, "rss_mib": 7} in [event["args"] for event in events if event["ph"] == "C"]


async def test_the_file_is_json_of_the_events() -> None:
    records = await recorded(2)
    file = io.StringIO()
    count = write_trace(records, file)
    written = json.loads(file.getvalue())
    assert written["traceEvents"] == list(trace_events(records))
    assert len(written["traceEvents"]) == count
    empty = io.StringIO()
    assert write_trace([], empty) == 0
    assert json.loads(empty.getvalue())["traceEvents"] == []


@pytest.mark.parametrize("missing", ["wait_us", "run_us"])
async def test_a_file_without_the_end_of_a_call_makes_no_slice_of_it(missing: str) -> None:
    records = [record for record in await recorded(1) if missing not in record]
    assert calls(list(trace_events(records))) == []
