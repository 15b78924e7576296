"""What the evidence says of calls: one end each, with the right fields, and what was in flight when it was written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallRejected,
    CallTimeout,
    ConcurrencyLimit,
    MemorySink,
    Phase,
    Pipeline,
    RateLimit,
    Retry,
    ServiceManager,
    ToolAdapter,
    _evidence,
    current,
    tool,
)

Records = list[dict[str, Any]]
real_time = pytest.mark.real_time


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def double_in_thread(x: int) -> int:
    return 2 * x


@tool
async def forever() -> None:
    await anyio.sleep_forever()


@tool
async def broken(x: int = 0) -> None:
    raise LookupError(f"no {x}")


@tool
def broken_in_thread(x: int = 0) -> None:
    raise LookupError(f"no {x}")


def named(records: Records, *events: str) -> Records:
    return [record for record in records if record["event"] in events]


def ends(records: Records) -> Records:
    return [record for record in records if record["event"].startswith("call.") and "status" in record]


def only(records: Records) -> dict[str, Any]:
    assert len(records) == 1, records
    return records[0]


def check_whole(records: Records) -> None:
    """What holds for the evidence of every session that was left."""
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert {record["schema"] for record in records} == {2}
    session = only(named(records, "session.started"))["session_id"]
    assert {record["session_id"] for record in records} == {session}
    assert records[0]["event"] == "session.started"
    ended = only(named(records, "session.ended"))
    ids = Counter(record["call_id"] for record in ends(records))
    assert set(ids.values()) <= {1}
    assert set(ids) == {f"{session}-{number + 1}" for number in range(ended["calls"])}
    started: set[str] = set()
    over: set[str] = set()
    for record in records:
        assert record["time"].endswith("Z")
        assert datetime.fromisoformat(record["time"]).tzinfo == UTC
        for name in ("run_us", "delay_us"):
            assert type(record.get(name, 0)) is int
            assert record.get(name, 0) >= 0
        for wait in record.get("wait_us", {}).values():
            assert type(wait) is int
            assert wait >= 0
        if record["event"] == "call.started":
            assert record["call_id"] not in started | over
            started.add(record["call_id"])
        elif "status" in record and record["event"].startswith("call."):
            assert record["event"] == "call." + record["status"]
            assert set(record["wait_us"]) == {"concurrency", "rate", "retry", "thread"}
            over.add(record["call_id"])


@pytest.fixture
def sink() -> Iterator[MemorySink]:
    kept = MemorySink()
    yield kept
    check_whole(kept.records)


# --- one end for each call


async def test_a_success_has_its_fields_and_no_others(sink: MemorySink) -> None:
    before = datetime.now(UTC)
    async with ServiceManager(evidence=sink, log=None) as manager:
        session = manager.session_id
        assert await manager.execute(double.using(name="twice"), x=2) == 4
    after = datetime.now(UTC)
    record = dict(only(ends(sink.records)))
    assert record.pop("run_us") < 5_000_000
    assert before.timestamp() - 0.01 <= datetime.fromisoformat(record.pop("time")).timestamp() <= after.timestamp() + 1
    assert record == {
        "schema": 2,
        "session_id": session,
        "seq": 2,
        "event": "call.succeeded",
        "status": "succeeded",
        "call_id": f"{session}-1",
        "tool": "twice",
        "version": double.version,
        "attempt": 1,
        "wait_us": {"concurrency": 0, "rate": 0, "retry": 0, "thread": 0},
    }


@pytest.mark.parametrize("which", [broken, broken_in_thread, broken.using(timeout=30), broken_in_thread.using(retry=1)])
async def test_a_failure_carries_type_and_message_of_the_tools_own_exception(sink: MemorySink, which: Any) -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.outcome(which, x=7)
    record = only(ends(sink.records))
    assert (record["status"], record["error"]) == ("failed", {"type": "LookupError", "message": "no 7"})
    assert record["attempt"] == 1


async def test_an_error_returned_as_a_value_is_recorded_as_it_was_returned(sink: MemorySink) -> None:
    legacy = ToolAdapter(lambda text: {"error": text}, name="legacy", params=["text"], error_when=lambda r: r["error"])
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.outcome(legacy, text="out of paper")
    assert "out of paper" in only(ends(sink.records))["error"]["message"]


async def test_invalid_inputs_are_recorded_by_type_and_place_without_the_value(sink: MemorySink) -> None:
    async def nest(x: Any) -> int:
        return int(await current().execute(double, x=x))

    async with ServiceManager(evidence=sink, log=None) as manager:
        for way in (double, tool(nest, name="nest"), tool(nest, name="again")):
            outcome = await manager.outcome(way, x="hunter2")
            assert "hunter2" in str(outcome.error)
    direct, *nested = ends(sink.records)
    assert direct["error"] == {"type": "InvalidInputs", "errors": [{"field": "x", "type": "int_parsing"}]}
    assert direct["attempt"] == direct["run_us"] == 0
    assert [record["error"]["errors"] for record in nested] == [[{"field": "x", "type": "int_parsing"}]] * 4
    assert "hunter2" not in repr(sink.records)


async def test_an_error_is_written_at_once(sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_evidence, "DELAY_S", 600.0)
    async with ServiceManager(evidence=sink, log=None) as manager:
        for which, event in ((broken, "call.failed"), (broken.using(retry=Retry(2, wait=0)), "call.retried")):
            await manager.execute(double, x=1)
            await manager.outcome(which, x=1)
            while not named(sink.records, event):  # noqa: ASYNC110  (the writer's thread)
                await anyio.sleep(0.001)


@real_time
async def test_a_timeout_is_recorded_with_what_was_spent(sink: MemorySink) -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(forever.using(timeout=0.02))
    record = only(ends(sink.records))
    assert (record["event"], record["error"]["type"]) == ("call.timed_out", "CallTimeout")
    assert 15_000 <= record["run_us"] < 5_000_000  # uvloop counts its timers in whole milliseconds


async def test_a_cancelled_call_has_its_reason_and_the_same_record_whether_or_not_somebody_asks(
    sink: MemorySink,
) -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        for ask in (True, False):
            call = manager.submit(forever)
            await anyio.wait_all_tasks_blocked()
            call.cancel("nobody wants it")
            await (call.outcome() if ask else call.wait())
    asked, unasked = (
        {name: value for name, value in record.items() if name not in ("seq", "call_id", "time", "run_us")}
        for record in ends(sink.records)
    )
    assert asked == unasked
    assert (asked["status"], asked["reason"]) == ("cancelled", "nobody wants it")
    assert "error" not in asked


async def test_a_call_that_never_began_is_recorded_as_cancelled_at_attempt_0(sink: MemorySink) -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        call = manager.submit(double, x=1)
        call.cancel()
        await call.wait()
    record = only(ends(sink.records))
    assert (record["status"], record["attempt"], record["run_us"]) == ("cancelled", 0, 0)


async def test_a_rejected_call_is_recorded_as_rejected(sink: MemorySink) -> None:
    shared = ConcurrencyLimit(1)
    inner = double.using(concurrency=shared)

    @tool
    async def outer() -> int:
        return await current().execute(inner, x=1)

    async with ServiceManager(evidence=sink, log=None) as manager:
        outcome = await manager.outcome(outer.using(concurrency=shared))
        assert isinstance(outcome.error.__cause__ if outcome.error else None, CallRejected)
    first, second = ends(sink.records)
    assert (first["tool"], first["status"]) == ("double", "rejected")
    assert (second["tool"], second["status"]) == ("outer", "failed")
    assert second["error"]["type"] == "CallRejected"


async def test_a_skipped_collect_is_recorded_with_the_error_that_it_is_skipped_for(sink: MemorySink) -> None:
    @tool
    async def split(x: int) -> list[int]:
        return list(range(x))

    @tool
    async def picky(part: int) -> int:
        if part == 1:
            raise LookupError("one")
        return part

    @tool
    async def total(parts: list[int]) -> int:
        return sum(parts)

    pipeline = Pipeline(
        "p", Phase("part", split, expand="part_"), Phase("each", picky, bind={"part": "part_"}),
        Phase("sum", total, collect="part_", bind={"parts": "each"}), item=["x"], key="x",
    )  # fmt: skip
    async with ServiceManager(evidence=sink, log=None) as manager:
        report = await manager.run(pipeline, [{"x": 1}, {"x": 3}])
    assert (report.succeeded, report.failed) == (1, 1)
    record = only(named(sink.records, "call.skipped"))
    assert (record["phase"], record["item"], record["status"]) == ("sum", "3", "skipped")
    assert record["error"] == {"type": "CallFailed", "message": "tool 'picky' failed: LookupError: one"}
    assert [(one["item"], one["status"]) for one in ends(sink.records) if one["phase"] == "each"] == [
        ("1/0", "succeeded"), ("3/0", "succeeded"), ("3/1", "failed"), ("3/2", "succeeded"),
    ]  # fmt: skip


async def test_each_attempt_that_is_followed_by_another_is_recorded_and_the_end_says_how_many(
    sink: MemorySink,
) -> None:
    class Odd(Exception):
        errors = ("not", "ours")

    tries = iter([Odd("first"), KeyError("second"), None])

    @tool
    async def flaky() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "there"

    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.execute(flaky.using(retry=Retry(5, wait=0.01)))
    retried = named(sink.records, "call.retried")
    assert [(one["attempt"], one["error"], one["delay_us"]) for one in retried] == [
        (1, {"type": "Odd", "message": "first"}, 10_000),
        (2, {"type": "KeyError", "message": "'second'"}, 10_000),
    ]
    end = only(ends(sink.records))
    assert (end["status"], end["attempt"], end["call_id"]) == ("succeeded", 3, retried[0]["call_id"])
    assert end["wait_us"]["retry"] > 0


async def test_calls_of_one_tool_by_many_tasks_at_once_have_one_end_each(sink: MemorySink) -> None:
    mixed = [double, double_in_thread, broken, broken_in_thread, double.using(timeout=5, concurrency=3)]
    async with ServiceManager(evidence=sink, log=None, threads=4) as manager, anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(lambda one=mixed[number % 5], x=number: manager.outcome(one, x=x))
    assert Counter(record["status"] for record in ends(sink.records)) == {"succeeded": 120, "failed": 80}


# --- wait and run apart


@real_time
async def test_the_wait_for_each_thing_is_apart_from_the_run(sink: MemorySink) -> None:
    @tool
    def sleepy(x: int) -> None:
        time.sleep(0.05)

    @tool
    async def napping(x: int) -> None:
        await anyio.sleep(0.05)

    cases = {
        "concurrency": napping.using(name="concurrency", concurrency=1),
        "rate": double.using(name="rate", rate=RateLimit(20, burst=1)),
        "thread": sleepy.using(name="thread"),
        "retry": broken.using(name="retry", retry=Retry(2, wait=0.05)),
    }
    async with ServiceManager(evidence=sink, log=None, threads=1) as manager:
        for case in cases.values():
            async with manager.map(case, range(2), arg="x", in_flight=2) as outcomes:
                async for _ in outcomes:
                    pass
    for name in cases:
        first, second = (one for one in ends(sink.records) if one["tool"] == name)
        waited = {wait for wait, spent in second["wait_us"].items() if spent >= 40_000}
        assert waited == {name}, second
        if name != "retry":
            assert not [wait for wait in first["wait_us"].values() if wait >= 40_000], first
        if name in ("concurrency", "thread"):
            assert second["run_us"] >= 40_000
        else:
            assert second["run_us"] < 40_000


# --- where a call belongs


async def test_nested_calls_name_the_call_that_made_them(sink: MemorySink) -> None:
    @tool
    def by_the_sync_door() -> int:
        return double.execute(x=3)

    @tool
    async def every_way() -> None:
        manager = current()
        await manager.execute(double, x=1)
        await manager.submit(double, x=2).result()
        await manager.execute(by_the_sync_door)
        async with manager.map(double_in_thread, [4], arg="x") as outcomes:
            async for _ in outcomes:
                pass
        await manager.run(Pipeline("p", Phase("again", double), item=["x"]), [{"x": 5}])

    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.execute(every_way)
        await manager.execute(double, x=0)
    records = ends(sink.records)
    root = only([one for one in records if one["tool"] == "every_way"])["call_id"]
    door = only([one for one in records if one["tool"] == "by_the_sync_door"])["call_id"]
    parents = [(one["tool"], one.get("parent_id")) for one in records]
    assert Counter(parents) == {
        ("double", root): 3,
        ("double", door): 1,
        ("by_the_sync_door", root): 1,
        ("double_in_thread", root): 1,
        ("every_way", None): 1,
        ("double", None): 1,
    }


async def test_nested_calls_belong_to_the_phase_and_the_item_of_the_call_that_made_them(sink: MemorySink) -> None:
    @tool
    async def fails(x: int) -> None:
        raise ValueError(x)

    @tool
    def in_a_thread(x: int) -> int:
        return double.execute(x=x)

    @tool
    async def outer(x: int) -> int:
        manager = current()
        await manager.execute(in_a_thread, x=x)
        await manager.outcome(fails, x=x)
        async with manager.map(double, [x], arg="x") as outcomes:
            assert [one.key async for one in outcomes] == ["0"]  # the item of the map is another matter
        await manager.run(Pipeline("inner", Phase("again", double), item=["x"], key="x"), [{"x": 5}])
        return x

    pipeline = Pipeline("p", Phase("outer", outer), item=["x"], key="x")
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.run(pipeline, [{"x": 7}])
        await manager.execute(outer, x=7)
    records = ends(sink.records)
    places = Counter((one["tool"], one.get("pipeline"), one.get("phase"), one.get("item")) for one in records)
    nested = {("double", "p", "outer", "7"): 2, ("in_a_thread", "p", "outer", "7"): 1, ("fails", "p", "outer", "7"): 1}
    alone = {("double", None, None, None): 2, ("in_a_thread", None, None, None): 1, ("fails", None, None, None): 1}
    outers = {("outer", "p", "outer", "7"): 1, ("outer", None, None, None): 1}
    assert places == {**nested, **alone, **outers, ("double", "inner", "again", "5"): 2}
    assert len({one["run_id"] for one in records if one.get("pipeline") == "p"}) == 1


async def test_the_calls_of_a_run_name_run_pipeline_phase_and_item(sink: MemorySink) -> None:
    @tool
    async def rank(values: list[int]) -> int:
        return len(values)

    pipeline = Pipeline(
        "numbers", Phase("twice", double), Phase("count", rank, collect=True, bind={"values": "twice"}),
        item=["x"], key="x",
    )  # fmt: skip
    async with ServiceManager(evidence=sink, log=None) as manager:
        first = await manager.run(pipeline, [{"x": 7}, {"x": 8}])
        second = await manager.run(pipeline, [{"x": 9}])
        await manager.execute(double, x=1)
    assert first.run_id != second.run_id
    fields = ("run_id", "pipeline", "phase", "item")
    assert [tuple(record.get(name) for name in fields) for record in ends(sink.records)] == [
        (first.run_id, "numbers", "twice", "7"),
        (first.run_id, "numbers", "twice", "8"),
        (first.run_id, "numbers", "count", None),
        (second.run_id, "numbers", "twice", "9"),
        (second.run_id, "numbers", "count", None),
        (None, None, None, None),
    ]
    started, ended = named(sink.records, "run.started"), named(sink.records, "run.ended")
    assert [one["run_id"] for one in started] == [one["run_id"] for one in ended] == [first.run_id, second.run_id]
    assert [(one["items"], one["failed"], one["skipped"]) for one in ended] == [(2, 0, 0), (1, 0, 0)]
