"""`Every`: a tool runs again and again, without drift, for as long as the session lasts."""

from __future__ import annotations

import pickle
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from kgas_async import (
    Every,
    KGASTool,
    MemorySink,
    Policy,
    Service,
    ServiceManager,
    check_cancelled,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore

from .loops import virtual


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def noted(seconds: float = 0.0, *, name: str = "noted") -> tuple[KGASTool, list[float]]:
    """A tool that takes that long, and when it began each time."""
    begins: list[float] = []

    @tool(name=name)
    async def notes() -> None:
        begins.append(anyio.current_time())
        await anyio.sleep(seconds)

    return notes, begins


@tool
async def check(url: str, tries: int = 1) -> str:
    return url


async def test_it_runs_at_multiples_of_its_time_and_does_not_drift() -> None:
    notes, begins = noted(0.3)
    every = Every(0.7, notes)
    async with ServiceManager(every) as manager:
        assert manager.statistics().services == ["Every(0.7, noted)"]
        await anyio.sleep(700.1)
    assert begins == [pytest.approx(0.7 * n) for n in range(1, 1001)]
    assert (every.runs, every.failed, every.skipped) == (1000, 0, 0)
    assert every.last is not None
    assert every.last.ok
    assert_clean(manager)


async def test_a_run_that_takes_longer_skips_and_counts_what_it_missed() -> None:
    notes, begins = noted(2.5)
    every = Every(1, notes)
    async with ServiceManager(every):
        await anyio.sleep(9.9)
    assert begins == [pytest.approx(1), pytest.approx(4), pytest.approx(7)]
    assert (every.runs, every.skipped) == (3, 6)


async def test_a_run_that_takes_just_as_long_skips_nothing() -> None:
    notes, begins = noted(0.1)
    every = Every(0.1, notes)
    async with ServiceManager(every):
        await anyio.sleep(100.05)
    assert len(begins) == 1000
    assert every.skipped == 0


async def test_runs_overlap_if_they_may_but_do_not_pile_up_without_end() -> None:
    notes, begins = noted(2.5)
    every = Every(1, notes, overlap=True)
    async with ServiceManager(every):
        await anyio.sleep(9.9)
    assert begins == [pytest.approx(n) for n in range(1, 10)]
    assert every.skipped == 0
    stuck, begins = noted(1e6, name="stuck")
    every = Every(1, stuck, overlap=True)
    async with ServiceManager(every, grace=1) as manager:
        await anyio.sleep(149.5)
        assert len(manager.calls) == 100
        assert (len(begins), every.skipped) == (100, 49)


async def test_failures_are_on_record_and_do_not_end_it() -> None:
    sink = MemorySink()
    tries: list[int] = []

    @tool
    async def flaky(limit: int) -> None:
        tries.append(1)
        if len(tries) % limit == 0:
            raise OSError("down")

    every = Every(1, flaky, {"limit": 2})
    async with ServiceManager(every, evidence=sink, log=None):
        await anyio.sleep(6.5)
    assert (every.runs, every.failed) == (6, 3)
    ends = [record["event"] for record in sink.records if record["event"].startswith("call.")]
    assert ends == ["call.succeeded", "call.failed"] * 3


async def test_its_policy_holds() -> None:
    notes, begins = noted(50)
    every = Every(10, notes.using(timeout=2))
    async with ServiceManager(every):
        await anyio.sleep(35)
    assert (len(begins), every.failed) == (3, 3)
    assert every.last is not None
    assert every.last.status == "timed_out"


async def test_it_stops_with_the_session_and_lets_a_run_end_within_the_grace() -> None:
    notes, begins = noted(5)
    every = Every(10, notes)
    async with ServiceManager(every) as manager:
        await anyio.sleep(12)
    assert anyio.current_time() == pytest.approx(15)
    assert (len(begins), every.runs, every.failed) == (1, 1, 0)
    notes, begins = noted(500, name="long")
    every = Every(10, notes)
    async with ServiceManager(every, grace=3) as manager:
        await anyio.sleep(12)
    assert anyio.current_time() == pytest.approx(15 + 12 + 3)
    assert (every.runs, every.failed) == (1, 0)
    assert_clean(manager)


async def test_a_manager_that_drains_begins_no_more() -> None:
    notes, begins = noted()
    every = Every(1, notes)
    async with ServiceManager(every) as manager:
        await anyio.sleep(2.5)
        await manager.drain()
        await anyio.sleep(10)
    assert (len(begins), every.runs, every.failed) == (2, 2, 0)


async def test_it_can_be_used_again_in_the_next_lifetime() -> None:
    notes, begins = noted()
    every = Every(1, notes)
    for _ in range(2):
        async with ServiceManager(every):
            await anyio.sleep(2.5)
    assert len(begins) == 4


async def test_a_sync_tool_that_looks_is_ended_with_the_session() -> None:
    begun = threading.Event()

    @tool
    def polite() -> None:
        begun.set()
        while not threading.Event().wait(0.001):
            check_cancelled()

    async with ServiceManager(Every(1, polite), grace=5) as manager:
        await anyio.sleep(1.5)
        await anyio.to_thread.run_sync(begun.wait)
        await manager.cancel()
    assert_clean(manager)


class Store(Service):
    def __init__(self) -> None:
        self.rows = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield
        assert self.rows > 0


class Prune(KGASTool):
    def __init__(self, store: Store) -> None:
        self.store = store

    async def execute_async(self) -> None:
        self.store.ensure_running()
        self.store.rows += 1


async def test_the_services_of_its_tool_start_before_it_and_stop_after_it() -> None:
    store = Store()
    async with ServiceManager(Every(1, Prune(store))) as manager:
        assert manager.statistics().services == ["Store", "Every(1, Prune)"]
        await anyio.sleep(1.5)
    assert store.rows == 1


async def test_started_by_a_call_it_is_no_part_of_that_call() -> None:
    notes, begins = noted()
    sink = MemorySink()

    @tool(policy=Policy(deadline=5))
    async def starts() -> None:
        await current().start(Every(1, notes))
        await anyio.sleep(2.5)

    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.execute(starts)
        await anyio.sleep(4)
    assert len(begins) == 6
    assert not any("parent_id" in record for record in sink.records)


def test_wrong_inputs_are_refused_at_construction() -> None:
    with pytest.raises(TypeError, match="'rul' is no input of tool 'check'; it takes url, tries; did you mean 'url'"):
        Every(1, check, {"rul": "a"})
    with pytest.raises(TypeError, match="needs 'url' too"):
        Every(1, check)
    with pytest.raises(TypeError, match="takes a tool, not"):
        Every(1, print)  # type: ignore[arg-type]
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds must be"):
            Every(wrong, check, {"url": "a"})
    with pytest.raises(TypeError, match="seconds must be a number"):
        Every("1", check, {"url": "a"})  # type: ignore[arg-type]


def test_it_pickles_by_its_constructors_arguments() -> None:
    copy = pickle.loads(pickle.dumps(Every(2, check, {"url": "a"}, overlap=True)))
    assert (copy.seconds, copy.inputs, copy.overlap, copy.tool.name) == (2, {"url": "a"}, True, "check")


@explore(seeds=10)
async def test_leaving_at_the_very_tick_leaves_nothing() -> None:
    notes, begins = noted(0.5)
    every = Every(1, notes)
    async with ServiceManager(every) as manager:
        await anyio.sleep(2)
    assert len(begins) in (1, 2)
    assert every.runs == len(begins)
    assert_clean(manager)
