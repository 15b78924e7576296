"""Reports: the figures are those of the records, and the page has them, says what is missing, and loads nothing."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kgas_async import (
    EvidenceError,
    MemorySink,
    PerformanceMonitor,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    current,
    tool,
    verify_evidence,
)
from kgas_async._chain import head_path
from kgas_async._reading import EvidenceFile
from kgas_async.export.report import Figures, render_report, report_figures, write_report

from . import plain_report as plain

Records = list[dict[str, Any]]


@tool(policy=Policy(concurrency=2))
async def fetch(x: int) -> int:
    await anyio.sleep(0.002)
    if x % 5 == 4:
        raise ValueError(f"no <b>{x}</b> & more")
    return x


@tool
def cut(fetch: int) -> list[int]:
    time.sleep(0.001)
    return list(range(3))


_weighed = itertools.count(1)


@tool(policy=Policy(retry=Retry(attempts=20, wait=0.002, on=OSError), rate=500))
async def weigh(part: int) -> int:
    if next(_weighed) % 4 == 0:
        raise OSError("again")
    return await current().execute(add, a=part)


@tool
async def add(a: int) -> int:
    await anyio.sleep(0.001)
    return a + 1


@tool
async def store(total: list[list[int]]) -> list[int]:
    return [sum(one) for one in total]


@tool
def total(weights: list[int]) -> list[int]:
    return weights


@tool
async def finish(stored: list[int]) -> int:
    return sum(stored)


pipeline = Pipeline(
    "scales",
    Phase("fetch", fetch),
    Phase("cut", cut, expand="part"),
    Phase("weigh", weigh),
    Phase("total", total, bind={"weights": "weigh"}, collect="part"),
    Phase("store", store, batch=3),
    Phase("finish", finish, bind={"stored": "store"}, collect=True),
    item=["x"],
    key="x",
)


async def run(evidence: Any, items: int = 12, **options: Any) -> None:
    async with ServiceManager(evidence=evidence, log=None, threads=2, **options) as manager:
        await manager.run(pipeline, [{"x": number} for number in range(items)], in_flight=4)


@pytest.fixture
async def log(tmp_path: Path, anyio_backend: object) -> Path:
    path = tmp_path / "run.jsonl"
    await run(path)
    return path


def row(figures: Figures, name: str) -> Any:
    (found,) = [one for one in figures.rows if (one.name if one.within is None else label(one)) == name]
    return found


def label(one: Any) -> str:
    return one.name if one.within is None else f"{one.name} in {one.within.partition('/')[2]}"


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


# --- the figures


async def test_counts_times_and_percentiles_of_each_row_are_those_of_the_records(log: Path) -> None:
    records = list(EvidenceFile(log))
    figures = report_figures(log)
    wanted = plain.rows(records)
    assert {label(one) for one in figures.rows} == wanted.keys()
    for name, calls in wanted.items():
        found = row(figures, name)
        assert found.calls == Counter(call["status"] for call in calls), name
        assert found.run_total_s == pytest.approx(sum(call["run_us"] for call in calls) / 1e6)
        waits: Counter[str] = Counter()
        for call in calls:
            waits.update(call["wait_us"])
        assert found.waits_s == pytest.approx({kind: us / 1e6 for kind, us in waits.items() if us})
        ran = [call["run_us"] / 1e6 for call in calls if call["attempt"] and call["status"] != "cancelled"]
        assert found.run_s.count == len(ran)
        assert (found.run_s.min, found.run_s.max) == pytest.approx((min(ran), max(ran)))
        assert found.run_s.mean == pytest.approx(sum(ran) / len(ran))
        for share, percentile in ((0.5, found.run_s.p50), (0.95, found.run_s.p95), (0.99, found.run_s.p99)):
            assert percentile == pytest.approx(plain.nearest_rank(ran, share), rel=0.011, abs=2e-7)
        assert found.retries == sum(one["event"] == "call.retried" and plain.place(one) == name for one in records)


async def test_series_add_up_to_the_rows(log: Path) -> None:
    figures = report_figures(log)
    assert (figures.bins - 1) * figures.bin_s <= figures.span_s < figures.bins * figures.bin_s
    widths = [figures.bin_s] * (figures.bins - 1) + [figures.span_s - (figures.bins - 1) * figures.bin_s]
    for one in figures.rows:
        assert len(one.running) == len(one.waiting) == len(one.ended) == figures.bins
        assert sum(map(float.__mul__, one.running, widths)) == pytest.approx(one.run_total_s, abs=2e-6)
        assert sum(map(float.__mul__, one.waiting, widths)) == pytest.approx(one.waited_s, abs=2e-6)
        assert sum(one.ended) == one.count
        assert sum(one.failed) == one.bad
        for lane in one.lanes:
            assert all(used <= 1.01 for used in lane) or one.offload == "thread"


async def test_how_many_ran_at_once_is_told_by_lanes(log: Path) -> None:
    records = list(EvidenceFile(log))
    figures = report_figures(log)
    for name, calls in plain.rows(records).items():
        found = row(figures, name)
        most = plain.most_at_once(calls)
        if "thread" not in found.waits_s:
            assert most <= found.peak <= max(most + 1, found.limit or 1), name
    assert row(figures, "fetch").peak == row(figures, "fetch").limit == 2
    assert row(figures, "cut").peak <= 2  # threads=2, whatever the loop heard late
    assert figures.allowed == {"cpus": figures.allowed["cpus"], "threads": 2, "processes": 2, "in_flight": 4} | {
        "processes": figures.allowed["processes"]
    }


async def test_the_critical_path_is_that_of_a_plain_walk_and_adds_up_to_the_whole_time(log: Path) -> None:
    records = list(EvidenceFile(log))
    figures = report_figures(log)
    wanted = plain.critical_path(records, depths={"weigh": 1}, threaded={"cut", "total"})
    found = Counter({
        ("" if one.row is None else label(figures.rows[one.row]), one.kind): round(one.seconds * 1e6)
        for one in figures.path.pieces
    })  # fmt: skip
    assert found == wanted
    assert sum(found.values()) == round(figures.span_s * 1e6)
    steps = figures.path.steps
    assert steps[-1].end_s == max(step.end_s for step in steps)
    assert all(one.end_s <= other.from_s + 1e-9 for one, other in itertools.pairwise(steps))


async def test_failures_and_slowest_calls_are_those_of_the_records(log: Path) -> None:
    records = list(EvidenceFile(log))
    figures = report_figures(log)
    bad = [record for record in plain.ends(records) if record["status"] in plain.BAD]
    assert figures.failures_in_all == len(bad) == 2
    (group,) = figures.groups
    assert (group.where, group.status, group.error, group.count) == ("scales/fetch", "failed", "ValueError", 2)
    assert sorted(group.items) == ["4", "9"]
    ran = sorted((call["run_us"] for call in plain.ends(records) if "batch_id" not in call), reverse=True)
    assert [round(one.run_s * 1e6) for one in figures.slowest] == ran[:20]
    (whole,) = [record for record in records if record["event"] == "run.ended"]
    assert figures.run is not None
    assert (figures.run.items, figures.run.failed, figures.run.skipped) == (12, whole["failed"], whole["skipped"])


async def test_what_was_run_in_batches_is_counted_apart(log: Path) -> None:
    found = row(report_figures(log), "store")
    assert sum(found.elements.values()) == 10
    assert 4 <= found.count < 10


async def test_records_in_memory_give_the_same_but_for_the_chain(log: Path) -> None:
    of_file, of_list = report_figures(log), report_figures(list(EvidenceFile(log)))
    assert of_list.verified is None
    assert of_list.rows == of_file.rows
    assert of_list.path == of_file.path
    assert "no chain to check" in text_of(render_report(of_list))


async def test_figures_are_plain_data(log: Path) -> None:
    figures = report_figures(log)
    data = json.loads(json.dumps(figures.to_dict()))
    assert data["rows"][0]["calls"] == figures.rows[0].calls
    assert data["verified"]["records"] == figures.records == len(list(EvidenceFile(log)))


# --- which session, which run


async def test_the_latest_session_is_shown_unless_a_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    await run(path, items=3)
    await run(path, items=6)
    latest = report_figures(path)
    assert latest.run is not None
    assert latest.run.items == 6
    (other,) = latest.others
    earlier = report_figures(path, run_id=other.runs[0].run_id)
    assert earlier.scope == "run"
    assert earlier.run is not None
    assert earlier.run.items == 3
    assert row(earlier, "fetch").count == 3
    assert earlier.begin == earlier.run.started
    assert sum(one.seconds for one in earlier.path.pieces) == pytest.approx(earlier.span_s)
    assert earlier.is_complete
    with pytest.raises(EvidenceError, match=r"no run 'x' is on record in .*; there are"):
        report_figures(path, run_id="x")


async def test_calls_without_a_run_have_rows_by_tool() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager, manager.map(fetch, range(5), arg="x") as outcomes:
        assert sum([outcome.ok async for outcome in outcomes]) == 4
    figures = report_figures(sink.records)
    assert [(one.name, one.calls) for one in figures.rows] == [("fetch", {"succeeded": 4, "failed": 1})]
    assert figures.is_complete
    assert "5 calls, 1 failed" in text_of(render_report(figures))


# --- what is missing is said


async def test_a_killed_run_is_half_a_run_and_shows_what_was_in_flight(log: Path) -> None:
    records = list(EvidenceFile(log))
    (started,) = [record for record in records if record["event"] == "run.started"]
    cut_at = len(records) // 2
    opened = {**records[cut_at], "event": "call.started", "call_id": "s-open", "tool": "fetch", "phase": "fetch"}
    opened = {name: one for name, one in opened.items() if name not in ("status", "parent_id", "batch_id")}
    figures = report_figures([*records[:cut_at], opened])
    assert not figures.is_complete
    begun = [record["call_id"] for record in records[:cut_at] if record["event"] == "call.started"]
    in_flight = {*begun, "s-open"} - {record["call_id"] for record in plain.ends(records[:cut_at])}
    assert {one.call_id for one in figures.open} == in_flight
    assert figures.run is not None
    assert (figures.run.run_id, figures.run.items) == (started["run_id"], None)
    said = text_of(render_report(figures))
    assert "✗ Half a run" in said
    assert f"there were {len(in_flight)} call" in said
    assert "✓ Complete" not in said
    assert "s-open" in said


def change(path: Path, before: bytes, after: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(before, after, 1))


async def test_evidence_that_was_changed_is_no_good_evidence(log: Path) -> None:
    change(log, b'"run_us":', b'"run_us":1')
    figures = report_figures(log)
    assert figures.verified is not None
    assert figures.verified.problem == "edited"
    said = text_of(render_report(figures))
    assert "✗ Evidence not intact edited: run.jsonl, line" in said
    assert "✓ Evidence intact" not in said


async def test_a_log_without_its_head_may_lack_its_end(log: Path) -> None:
    head_path(log).unlink()
    assert "! Evidence intact, and open at its end" in text_of(render_report(report_figures(log)))


async def test_a_session_that_was_cancelled_has_ended_early(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with anyio.move_on_after(0.02):
        await run(path, items=500)
    figures = report_figures(path)
    assert figures.session.status == "cancelled"
    assert verify_evidence(path).ok
    assert "! Ended early" in text_of(render_report(figures)) or not figures.is_complete


# --- the page


def test_a_page_without_calls_is_a_page() -> None:
    record = {
        "event": "session.started",
        "schema": 2,
        "seq": 1,
        "session_id": "s",
        "time": "2026-01-01T00:00:00.000000Z",
    }
    page = render_report(report_figures([record]))
    assert "Half a session" in page
    assert "Nothing stands out" in page


async def test_text_of_others_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"

    @tool(name=f"tool{evil}")
    async def fails(x: int) -> None:
        raise ValueError(evil)

    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(Pipeline(f"p{evil}", Phase("a", fails), item=["x"], key="x"), [{"x": 1}, {"x": evil}])
    page = render_report(report_figures(sink.records))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 4


async def test_the_page_loads_nothing(log: Path, tmp_path: Path) -> None:
    await_page = tmp_path / "report.html"
    write_report(log, await_page)
    page = await_page.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?(?!#|data:,)[^"'\s>]+""", page) == []
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<iframe|<object|<embed", page)
    assert "default-src 'none'" in page


async def test_the_page_says_the_figures(log: Path, tmp_path: Path) -> None:
    figures = write_report(log, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name, calls in plain.rows(EvidenceFile(log)).items():
        found = re.search(rf'<tr data-row="{re.escape(name)}">(.*?)</tr>', page, re.DOTALL)
        assert found, name
        assert f'<td class="n">{len(calls):,}' in found[1]
    said = text_of(page)
    assert f"{figures.records:,} records, each chained to the one before" in said
    assert "12 items" in said
    assert "no <b>4</b> & more" in said


async def test_what_was_reused_is_said_of_the_whole_and_of_each_phase(tmp_path: Path) -> None:
    evidence, journal, out = tmp_path / "run.jsonl", tmp_path / "run.db", tmp_path / "report.html"
    twice = Pipeline(
        "twice", Phase("first", add, bind={"a": "x"}), Phase("second", add, bind={"a": "first"}), item=["x"], key="x"
    )
    for items in (6, 12):
        async with ServiceManager(evidence=evidence, log=None) as manager:
            await manager.run(twice, [{"x": number} for number in range(items)], journal=journal)
    figures = write_report(evidence, out)
    assert [one.calls for one in figures.rows] == [{"reused": 6, "succeeded": 6}] * 2
    assert [one.reused for one in figures.rows] == [6, 6]
    page = out.read_text(encoding="utf-8")
    said = text_of(page)
    assert "12 items, 0 failed, 12 calls reused" in said
    assert "Reused 12 calls of 2 phases, whose values were there" in said
    assert page.count("<small>6 reused</small>") == 2
    first = write_report(evidence, out, run_id=figures.others[0].runs[0].run_id)
    assert [one.reused for one in first.rows] == [0, 0]
    page = out.read_text(encoding="utf-8")
    assert "calls reused" not in text_of(page)
    assert "6 reused" not in page


@pytest.mark.parametrize("is_killed", [False, True])
async def test_abandoned_threads_are_in_the_rows_of_their_calls(is_killed: bool) -> None:
    def frame(event: str, **fields: Any) -> dict[str, Any]:
        return {
            "schema": 2,
            "session_id": "s",
            "seq": 1,
            "event": event,
            "time": "2026-01-02T03:04:05.100000Z",
            **fields,
        }

    def of_call(event: str, number: int, **fields: Any) -> dict[str, Any]:
        placed = {"run_id": "s-run1", "pipeline": "p", "phase": "load", "item": str(number), "version": "0"}
        return frame(event, call_id=f"s-{number}", tool="hang", attempt=1, **placed, **fields)

    waits = {"concurrency": 0, "rate": 0, "retry": 0, "thread": 0}
    end = {"status": "timed_out", "run_us": 50, "wait_us": waits, "abandoned": True, "error": {"type": "CallTimeout"}}
    left = [frame("thread.abandoned", call_id=f"s-{number}", tool="hang", attempt=1) for number in (1, 2, 2, 3, 4)]
    plan = [{"phase": "load", "level": "item", "tool": "hang", "offload": "thread", "needs": [], "inputs": []}]
    records = [
        frame("session.started", cpus=1, threads=5, processes=1),
        frame("run.started", run_id="s-run1", pipeline="p", plan=plan),
        of_call("call.started", 1),
        *left,
        frame("thread.abandoned", service="store"),
        *([] if is_killed else [of_call("call.timed_out", 1, **end)]),
        of_call("call.timed_out", 2, **end),
        of_call("call.timed_out", 3, parent_id="s-9", **end),
    ]
    rows = {(row.name, row.pipeline, row.within): row.abandoned for row in report_figures(records).rows}
    assert rows == {("load", "p", None): 3, ("hang", None, "p/load"): 1, ("hang", None, None): 1}


async def test_the_monitors_advice_and_samples_are_in_the_report(tmp_path: Path) -> None:
    monitor = PerformanceMonitor(sample_every=0.01)
    path = tmp_path / "run.jsonl"

    @tool(offload="inline")
    def holds(x: int) -> None:
        time.sleep(0.011)

    manager = ServiceManager(evidence=path, monitor=monitor, log=None)
    async with manager, manager.map(holds, range(25), arg="x") as outcomes:
        assert all([outcome.ok async for outcome in outcomes])
    figures = report_figures(path)
    assert [(one.tool, one.offload, one.instead) for one in figures.advice] == [("holds", "inline", "thread")]
    assert figures.advised_by_monitor
    assert figures.advice == monitor.report().advice
    wanted = [record for record in EvidenceFile(path) if record["event"] == "resource.sampled"]
    assert [one.rss_bytes for one in figures.samples] == [record["rss_bytes"] for record in wanted]
    assert any(one.kind == "offload" for one in figures.findings)


# --- what to do


def ended(number: int, at_us: int, run_us: int, **waits: int) -> dict[str, Any]:
    return {
        "event": "call.succeeded", "schema": 2, "seq": number, "session_id": "s", "call_id": f"s-{number}",
        "time": f"2026-01-01T00:00:{at_us // 1_000_000:02}.{at_us % 1_000_000:06}Z", "tool": "t", "version": "0",
        "attempt": 1, "status": "succeeded", "run_us": run_us,
        "wait_us": {"concurrency": 0, "rate": 0, "retry": 0, "thread": 0} | waits,
    }  # fmt: skip


def session(calls: Records) -> Iterator[dict[str, Any]]:
    frame = {"schema": 2, "session_id": "s"}
    yield {
        **frame,
        "event": "session.started",
        "seq": 0,
        "time": "2026-01-01T00:00:00.000000Z",
        "cpus": 4,
        "threads": 8,
    }
    yield from calls
    yield {**frame, "event": "session.ended", "seq": 9999, "time": calls[-1]["time"], "status": "succeeded"}


SECOND = 1_000_000


def queued(kind: str) -> Records:
    """Eight calls that run one after the other, and wait for that."""
    return [ended(number, number * SECOND, SECOND, **{kind: (number - 1) * SECOND}) for number in range(1, 9)]


@pytest.mark.parametrize(
    ("calls", "kind", "says"),
    [
        (queued("concurrency"), "concurrency", "at most 1 ran"),
        (queued("thread"), "thread", "there are 8 threads"),
        ([ended(n, n * SECOND, SECOND // 10, rate=SECOND * 9 // 10) for n in range(1, 9)], "rate", "1 calls a second"),
        ([ended(n, n * SECOND, SECOND // 2, retry=SECOND // 2) for n in range(1, 9)], "retry", "tried again"),
        ([ended(n, n * SECOND, SECOND) for n in range(1, 9)], "run", "no limit holds it up"),
        ([ended(n, n * SECOND, SECOND // 100) for n in range(1, 9)], "between", "before first calls"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_holds_a_run_up_is_found_with_its_evidence(calls: Records, kind: str, says: str) -> None:
    figures = report_figures(list(session(calls)))
    first = figures.findings[0]
    assert first.kind == kind
    assert first.share >= 0.5
    assert any(says in words for words in first.evidence), first.evidence
    assert first.title in text_of(render_report(figures))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"

    async def monitored() -> None:
        await run(path, items=5, monitor=PerformanceMonitor(stall=0.001, sample_every=0.01))

    anyio.run(monitored)
    return [json.loads(line) for line in path.read_text().splitlines()]


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**15), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5), st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.none()),
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_records_that_were_damaged_make_a_page_or_an_error_that_says_so(
    whole: Records, tmp_path: Path, data: st.DataObject
) -> None:
    records = list(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(records) - 1))
        name = data.draw(st.sampled_from(sorted(records[at])))
        records[at] = {**records[at], name: data.draw(ODD)}
        if data.draw(st.booleans()):
            del records[data.draw(st.integers(0, len(records) - 1))]
    path = tmp_path / "damaged.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        figures = report_figures(path)
    except EvidenceError:  # of another schema
        return
    assert "Evidence not intact" in render_report(figures)
    assert json.dumps(figures.to_dict())


@pytest.mark.real_time
async def test_the_time_of_a_fallback_is_its_phases_and_not_that_of_the_source() -> None:
    @tool
    async def careful(x: int) -> int:
        await anyio.sleep(0.2)
        return x

    @tool(policy=Policy(fallback=[careful]))
    async def quick(x: int) -> int:
        raise ConnectionError(f"no {x}")

    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(Pipeline("p", Phase("quick", quick), item=["x"]), [{"x": 1}, {"x": 2}])
    figures = report_figures(sink.records)
    pieces = figures.path.pieces
    assert sum(one.seconds for one in pieces) == pytest.approx(figures.span_s)
    largest = pieces[0]
    assert (largest.row, largest.kind) == (0, "run")
    assert largest.seconds >= 0.199
    assert "most of it in its calls of careful" in figures.findings[0].title


async def test_of_a_run_without_items_nothing_is_found() -> None:
    @tool
    async def same(x: int) -> int:
        return x

    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(Pipeline("p", Phase("same", same), item=["x"]), [])
    assert report_figures(sink.records).findings == ()


def test_more_threads_are_not_asked_for_by_a_tool_that_computes() -> None:
    records = [
        frame(1, "session.started", threads=2, cpus=4, processes=4),
        *(call(number + 2, number, thread_us=60_000, run_us=40_000) for number in range(30)),
        frame(40, "tool.advised", tool="burn", offload="thread", instead="process", why="computed for 20 ms a call"),
        frame(41, "session.ended", status="succeeded"),
    ]
    offload, thread, *_ = report_figures(records).findings
    assert offload.title == "Move burn: offload='process', it is 'thread' now"
    assert thread.title.startswith("Calls wait for worker threads, and more of them would not help")


def frame(seq: int, event: str, at_us: int | None = None, **fields: Any) -> dict[str, Any]:
    at_us = seq * 100_000 if at_us is None else at_us
    time = f"2026-01-02T03:04:{at_us // 1_000_000:02}.{at_us % 1_000_000:06}Z"
    return {"schema": 2, "session_id": "s", "seq": seq, "event": event, "time": time, **fields}


def call(seq: int, number: int, *, thread_us: int, run_us: int) -> dict[str, Any]:
    waits = {"concurrency": 0, "rate": 0, "retry": 0, "thread": thread_us}
    return frame(
        seq, "call.succeeded", tool="burn", version="0", call_id=f"s-{number}", attempt=1, status="succeeded",
        run_us=run_us, wait_us=waits,
    )  # fmt: skip
