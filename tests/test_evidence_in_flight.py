"""What the evidence says of what has not ended: open calls, killed sessions, abandoned threads, sessions cut short."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallTimeout,
    MemorySink,
    Phase,
    Pipeline,
    Retry,
    ServiceManager,
    current,
    tool,
)
from kgas_async._evidence import EvidenceLog
from kgas_async.testing import assert_clean

from .test_evidence import Records, check_whole, double, ends, forever, named, only, sink  # noqa: F401  (a fixture)

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def until(condition: Callable[[], object]) -> None:
    """The evidence's thread writes within a delay of its own, in real time; so do threads end."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.002)


def started(records: Records) -> list[str]:
    return [record["tool"] for record in named(records, "call.started")]


# --- open calls


async def test_a_call_that_is_open_at_a_flush_has_its_start_on_record_once_and_before_its_end(
    sink: MemorySink,  # noqa: F811
) -> None:
    go = anyio.Event()

    @tool
    async def waits() -> None:
        await go.wait()

    async with ServiceManager(evidence=sink, log=None) as manager:
        session = manager.session_id
        call = manager.submit(waits)
        await until(lambda: started(sink.records))
        record = dict(only(named(sink.records, "call.started")))
        del record["time"], record["seq"]
        assert record == {
            "schema": 2,
            "session_id": session,
            "event": "call.started",
            "call_id": call.id,
            "tool": "waits",
            "version": waits.version,
            "attempt": 1,
        }
        later = manager.submit(forever)  # makes the writer flush again
        await until(lambda: "forever" in started(sink.records))
        go.set()
        await call.result()
        later.cancel()
    assert sorted(started(sink.records)) == ["forever", "waits"]
    order = [record["event"] for record in sink.records if record.get("call_id") == call.id]
    assert order == ["call.started", "call.succeeded"]


async def test_a_flush_that_only_an_open_call_asks_for_comes_without_any_other_record(
    sink: MemorySink,  # noqa: F811
) -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        await until(lambda: sink.records)  # the session's start is written, and the writer rests
        for count in (1, 2, 3):
            manager.submit(forever)
            await until(lambda count=count: len(started(sink.records)) == count)
        await manager.cancel()


async def test_a_nested_call_in_a_run_is_shown_where_it_belongs_while_it_is_open(sink: MemorySink) -> None:  # noqa: F811
    release = threading.Event()

    @tool
    def blocks() -> None:
        release.wait()

    @tool
    async def outer(x: int) -> None:
        await current().execute(blocks)

    pipeline = Pipeline("p", Phase("load", outer), item=["x"], key="x")
    async with ServiceManager(evidence=sink, log=None) as manager, manager.stream(pipeline, [{"x": 8}]) as outcomes:
        await until(lambda: len(started(sink.records)) == 2)
        release.set()
        assert [outcome.ok async for outcome in outcomes] == [True]
    first, second = named(sink.records, "call.started")
    assert (first["tool"], first["pipeline"], first["phase"], first["item"]) == ("outer", "p", "load", "8")
    assert first["run_id"] == only(named(sink.records, "run.started"))["run_id"]
    assert (second["tool"], second["parent_id"]) == ("blocks", first["call_id"])


async def test_calls_that_end_between_flushes_have_no_start_on_record(sink: MemorySink) -> None:  # noqa: F811
    async with ServiceManager(evidence=sink, log=None) as manager:
        await until(lambda: sink.records)
        for _ in range(50):
            await manager.execute(double, x=1)
    # A flush may fall into any one of them; but not into each.
    assert len(started(sink.records)) < 10
    assert len(ends(sink.records)) == 50


async def test_the_sessions_start_comes_before_calls_that_are_open_at_the_first_flush(
    sink: MemorySink,  # noqa: F811
) -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        manager.submit(forever)
        await until(lambda: started(sink.records))
        assert [record["event"] for record in sink.records[:2]] == ["session.started", "call.started"]
        await manager.cancel()


async def test_a_call_is_complete_at_the_moment_from_which_it_may_be_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, str | None, str | None]] = set()

    def arm(self: EvidenceLog) -> None:  # the writer's thread, as if it came at once
        seen.update((call.name, call.item, call.parent and call.parent.name) for call in self._open_calls.values())

    @tool
    async def outer(x: int) -> int:
        return await current().execute(double, x=x)

    monkeypatch.setattr(EvidenceLog, "arm", arm)
    async with ServiceManager(evidence=MemorySink(), log=None) as manager:
        await manager.run(Pipeline("p", Phase("one", outer), item=["x"], key="x"), [{"x": 7}])
    assert seen == {("outer", "7", None), ("double", None, "outer")}


KILLED = """
import sys, time, anyio
from kgas_async import *

@tool
async def quick(x: int) -> int:
    return x

@tool
def in_thread(x: int) -> None:
    time.sleep(60)

@tool
async def nesting() -> None:
    await current().execute(in_thread, x=1)

@tool
async def forever(x: int) -> None:
    await anyio.sleep_forever()

pipeline = Pipeline("papers", Phase("first", quick), Phase("second", forever), item=["x"], key="x")

async def main():
    async with ServiceManager(evidence=sys.argv[1], log=None) as manager:
        await manager.execute(quick, x=1)
        manager.submit(nesting)
        await manager.run(pipeline, ({"x": x} for x in range(100)), in_flight=3)

anyio.run(main, backend=sys.argv[2], backend_options={"use_uvloop": True} if sys.argv[3] else {})
"""


def in_flight(file: Path) -> list[tuple[Any, ...]]:
    """Tool, phase and item of the calls that have a start and no end, in whole lines."""
    text = file.read_text() if file.exists() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    over = {record["call_id"] for record in ends(records)}
    open_ones = [record for record in named(records, "call.started") if record["call_id"] not in over]
    return sorted((record["tool"], record.get("phase"), record.get("item")) for record in open_ones)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_killed_session_shows_what_was_in_flight(tmp_path: Path, loop: str) -> None:
    file = tmp_path / "evidence.jsonl"
    backend = [{"uvloop": "asyncio"}.get(loop, loop), "1" if loop == "uvloop" else ""]
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(file), *backend])
    try:
        until_s = time.monotonic() + 30
        while len(in_flight(file)) != 5 or ("forever", "second", "2") not in in_flight(file):
            assert child.poll() is None
            assert time.monotonic() < until_s, f"this is what is shown: {in_flight(file)}"
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert in_flight(file) == [
        ("forever", "second", "0"),
        ("forever", "second", "1"),
        ("forever", "second", "2"),
        ("in_thread", None, None),
        ("nesting", None, None),
    ]
    numbers = [json.loads(line)["seq"] for line in file.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


# --- abandoned threads


class Held:
    """A sync tool that looks at nothing until it is let go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.tool = tool(self.hold, name="held", on_cancel="abandon").using(timeout=0.02)

    def hold(self) -> str:
        self.release.wait()
        return "too late"


async def test_an_abandoned_threads_real_end_is_on_record_while_the_session_is_open(
    sink: MemorySink,  # noqa: F811
) -> None:
    held = Held()
    async with ServiceManager(evidence=sink, log=None) as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(held.tool)
        held.release.set()
        await until(lambda: named(sink.records, "thread.ended"))
    end = only(ends(sink.records))
    assert (end["status"], end["abandoned"]) == ("timed_out", True)
    thread = only(named(sink.records, "thread.ended"))
    assert (thread["call_id"], thread["tool"], thread["attempt"]) == (end["call_id"], "held", 1)
    assert thread["status"] == "succeeded"
    assert thread["run_us"] >= end["run_us"]
    assert "abandoned" not in only(named(sink.records, "session.ended"))


async def test_joining_abandoned_threads_puts_every_end_on_record(sink: MemorySink) -> None:  # noqa: F811
    held = Held()
    async with ServiceManager(evidence=sink, log=None, abandoned="join") as manager:
        for _ in range(5):
            await manager.outcome(held.tool)
        threading.Timer(0.05, held.release.set).start()
    assert len(named(sink.records, "thread.ended")) == 5
    assert "abandoned" not in only(named(sink.records, "session.ended"))
    assert sink.records[-1]["event"] == "session.ended"


async def test_threads_that_outlive_the_session_are_named_at_its_end(sink: MemorySink) -> None:  # noqa: F811
    held = Held()
    try:
        async with ServiceManager(evidence=sink, log=None) as manager:
            for _ in range(2):
                await manager.outcome(held.tool)
        session = only(named(sink.records, "session.ended"))
        assert session["abandoned"] == [record["call_id"] for record in ends(sink.records)]
        assert len(session["abandoned"]) == 2
        assert_clean(manager, abandoned=2)
    finally:
        held.release.set()
    await until(lambda: not manager._last_session.left)  # type: ignore[union-attr]
    assert_clean(manager)  # the late ends went nowhere, and nothing waits to be written
    assert not named(sink.records, "thread.ended")


# --- sessions cut short


async def test_the_evidence_is_whole_when_the_body_raises(sink: MemorySink) -> None:  # noqa: F811
    with pytest.raises(LookupError):
        async with ServiceManager(evidence=sink, log=None) as manager:
            manager.submit(forever)
            await checkpoint()
            raise LookupError
    assert only(ends(sink.records))["status"] == "cancelled"
    assert only(named(sink.records, "session.ended"))["status"] == "failed"


async def test_the_evidence_is_whole_when_the_session_is_cancelled(sink: MemorySink) -> None:  # noqa: F811
    with anyio.CancelScope() as scope:
        async with ServiceManager(evidence=sink, log=None) as manager:
            manager.submit(forever)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await manager.execute(forever)
    assert [record["status"] for record in ends(sink.records)] == ["cancelled", "cancelled"]
    assert only(named(sink.records, "session.ended"))["status"] == "cancelled"


@asyncio_only
async def test_the_evidence_is_whole_when_the_session_is_cancelled_natively_again_and_again() -> None:
    kept = MemorySink()

    async def body() -> None:
        async with ServiceManager(evidence=kept, log=None) as manager:
            await manager.execute(forever)

    task = asyncio.ensure_future(body())
    await anyio.wait_all_tasks_blocked()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    check_whole(kept.records)
    assert only(ends(kept.records))["status"] == "cancelled"


async def test_what_happens_in_a_cancelled_scope_is_on_record(sink: MemorySink) -> None:  # noqa: F811
    @tool
    async def sleepless() -> None:
        raise LookupError

    async with ServiceManager(evidence=sink, log=None) as manager:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await manager.execute(sleepless.using(retry=Retry(3, wait=1.0)))
        assert scope.cancelled_caught
        await manager.execute(double, x=1)
    assert only(named(sink.records, "call.retried"))["attempt"] == 1
    assert [record["status"] for record in ends(sink.records)] == ["cancelled", "succeeded"]


async def test_a_manager_that_is_entered_again_begins_a_new_session_in_the_same_evidence() -> None:
    kept = MemorySink()
    manager = ServiceManager(evidence=kept, log=None)
    lengths = []
    for _ in range(2):
        async with manager:
            await manager.execute(double, x=1)
        lengths.append(len(kept.records))
    first, second = kept.records[: lengths[0]], kept.records[lengths[0] :]
    check_whole(first)
    check_whole(second)
    assert first[0]["session_id"] != second[0]["session_id"]


# --- the writer's thread


def writers() -> int:
    return sum(thread.name == "kgas-evidence" for thread in threading.enumerate())


@pytest.mark.unwatched
async def test_the_writers_thread_lives_as_long_as_the_session_and_only_where_there_is_evidence() -> None:
    before = writers()
    async with ServiceManager(log=None) as manager:
        await manager.execute(double, x=1)
        assert writers() == before
    async with ServiceManager(evidence=MemorySink(), log=None) as manager:
        await manager.execute(double, x=1)
        assert writers() == before + 1
    await until(lambda: writers() == before)


async def test_records_come_in_the_order_of_what_happened_and_from_one_thread() -> None:
    threads: set[int] = set()
    seen: list[Any] = []

    class Watching:
        def write(self, records: Any) -> None:
            threads.add(threading.get_ident())
            seen.extend(dict(record) for record in records)

        def close(self) -> None:
            threads.add(threading.get_ident())
            seen.append("closed")

    async with ServiceManager(evidence=Watching(), log=None) as manager:
        for number in range(2000):
            await manager.execute(double, x=number)
    assert seen.pop() == "closed"
    check_whole(seen)
    numbers = [int(record["call_id"].rpartition("-")[2]) for record in ends(seen)]
    assert numbers == list(range(1, 2001))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
