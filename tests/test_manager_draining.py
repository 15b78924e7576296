"""A manager that drains or closes while calls, maps and runs are in flight."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kgas_async import (
    CallCancelled,
    KGASTool,
    ManagerClosed,
    MemorySink,
    Phase,
    Pipeline,
    PipelineError,
    Progress,
    Service,
    ServiceManager,
    current,
    tool,
)
from kgas_async.testing import explore

from .test_manager import double, forever, polite


@tool
async def total(xs: list[int]) -> int:
    return sum(xs)


# --- closing while others use it


async def test_a_call_of_a_foreign_task_is_cancelled_when_the_manager_closes() -> None:
    async with anyio.create_task_group() as group:
        manager = ServiceManager(grace=0)
        ended = anyio.Event()

        async def foreign() -> None:
            with pytest.raises(CallCancelled, match=r"closing|grace") as caught:
                await manager.execute(forever)
            assert caught.value.tool == "forever"
            ended.set()
            await anyio.sleep_forever()  # it was not cancelled itself

        async with manager:
            group.start_soon(foreign)
            await anyio.wait_all_tasks_blocked()
        await ended.wait()
        group.cancel_scope.cancel()


async def test_a_map_of_a_foreign_task_ends_with_what_was_in_flight_when_the_manager_is_left() -> None:
    seen: list[Any] = []
    manager = ServiceManager(grace=0)

    async def foreign() -> None:
        async with manager.map(forever, ({} for _ in range(1000)), in_flight=3) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.status)
        seen.append("end")

    async with anyio.create_task_group() as group, manager:
        group.start_soon(foreign)
        await anyio.wait_all_tasks_blocked()
    assert seen == ["cancelled"] * 3 + ["end"]


async def test_a_map_of_a_foreign_task_is_told_when_the_manager_ends_by_an_error() -> None:
    seen: list[Any] = []
    manager = ServiceManager()

    async def foreign() -> None:
        async with manager.map(forever, ({} for _ in range(1000)), in_flight=3) as outcomes:
            with pytest.raises(PipelineError, match="cancelled after 3 items, before the end of the source: "):
                async for outcome in outcomes:
                    seen.append(outcome.status)
        seen.append("told")

    async with anyio.create_task_group() as group:
        with pytest.raises(KeyError):
            async with manager:
                group.start_soon(foreign)
                await anyio.wait_all_tasks_blocked()
                raise KeyError
    assert seen == ["cancelled"] * 3 + ["told"]


async def test_a_run_of_a_foreign_task_is_told_when_the_manager_ends_by_an_error() -> None:
    told = []
    manager = ServiceManager()

    async def foreign() -> None:
        with pytest.raises(PipelineError, match="before the end of the source") as caught:
            await manager.run(Pipeline("p", Phase("wait", forever)), ({} for _ in range(1000)), in_flight=3)
        told.append(caught.value.report.cancelled)

    async with anyio.create_task_group() as group:
        with pytest.raises(KeyError):
            async with manager:
                group.start_soon(foreign)
                await anyio.wait_all_tasks_blocked()
                raise KeyError
    assert told == [3]


@dataclass
class Claiming:
    """A source that says that it has so many items, and has four."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, int]]:
        return ({"x": n} for n in range(4))


@pytest.mark.parametrize("size", [1, 2, 9])
async def test_a_source_of_another_length_than_it_says_is_run_to_its_end(size: int) -> None:
    seen: list[Progress] = []
    async with ServiceManager(log=None) as manager:
        report = await manager.run(Pipeline("p", Phase("doubled", double)), Claiming(size), on_progress=seen.append)
    assert (report.total, report.succeeded, report.drained) == (4, 4, False)
    assert all(one.total == (size if one.done <= size else None) for one in seen)
    assert [one.done for one in seen][-1] == 4


@pytest.mark.parametrize("size", [1, 9])
async def test_a_source_of_another_length_than_it_says_is_drained_before_its_end(size: int) -> None:
    gate, two = anyio.Event(), []

    @tool
    async def gated(x: int) -> int:
        two.append(x)
        await gate.wait()
        return x

    reports = []
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:

        async def run() -> None:
            reports.append(await manager.run(Pipeline("p", Phase("gated", gated)), Claiming(size), in_flight=2))

        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(manager.drain)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert (len(two), reports[0].total, reports[0].drained) == (2, 2, True)


async def test_a_run_of_a_foreign_task_says_that_it_was_drained() -> None:
    reports = []
    manager = ServiceManager()

    async def foreign() -> None:
        reports.append(await manager.run(pipeline, ({"x": n} for n in itertools.count()), in_flight=2))

    gate = anyio.Event()

    @tool
    async def gated(x: int) -> int:
        await gate.wait()
        return x

    pipeline = Pipeline("p", Phase("gated", gated), Phase("all", total, bind={"xs": "gated"}, collect=True))
    async with anyio.create_task_group() as group, manager:
        group.start_soon(foreign)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(manager.drain)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    (report,) = reports
    assert report.drained
    assert (report.total, report.succeeded) == (2, 2)
    assert report.results == {}  # run-level phases do not start
    assert report.not_begun == ["all"]
    assert str(report).endswith(": 2 succeeded; phase 'all' was not begun")


@explore(seeds=5)
async def test_new_calls_are_refused_once_the_manager_closes() -> None:
    manager = ServiceManager()
    answers: list[str] = []

    async def foreign() -> None:
        for _ in range(100):
            try:
                await manager.execute(double, x=1)
            except ManagerClosed:
                answers.append("closed")
                return

    async with anyio.create_task_group() as group, manager:
        group.start_soon(foreign)
        group.start_soon(foreign)
        await anyio.lowlevel.checkpoint()
    assert answers == ["closed", "closed"]


# --- submit, drain


async def test_what_was_submitted_is_drained_on_leaving() -> None:
    gate = anyio.Event()

    @tool
    async def waits() -> str:
        await gate.wait()
        return "done"

    async with ServiceManager() as manager:
        call = manager.submit(waits)
        await anyio.wait_all_tasks_blocked()
        assert call.status == "running"
        gate.set()
    assert call.status == "succeeded"
    assert call.unwrap() == "done"


@explore(seeds=3)
async def test_drain_waits_for_the_grace_and_then_cancels() -> None:
    @tool
    async def takes(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async with ServiceManager(grace=10) as manager:
        quick, slow = manager.submit(takes, seconds=9), manager.submit(takes, seconds=11)
        await manager.drain()
        assert anyio.current_time() == pytest.approx(10, abs=0.1)
        assert (quick.status, slow.status) == ("succeeded", "cancelled")
        assert "grace" in slow.reason
        with pytest.raises(ManagerClosed, match="draining"):
            await manager.execute(takes, seconds=1)


async def test_draining_refuses_new_roots_and_admits_nested_calls() -> None:
    gate = anyio.Event()
    results = []

    @tool
    async def outer() -> int:
        await gate.wait()
        manager = current()
        inner = manager.submit(double, x=10)
        async with manager.map(double, [{"x": 1}, {"x": 2}]) as outcomes:
            mapped = [outcome.unwrap() async for outcome in outcomes]
        return await manager.execute(double, x=1) + await inner.result() + sum(mapped)

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        call = manager.submit(outer)
        await anyio.wait_all_tasks_blocked()

        async def drain() -> None:
            await manager.drain()
            results.append(await call.result())

        group.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        for refused in (manager.execute(double, x=1), manager.run(Pipeline("p", Phase("double", double)), [])):
            with pytest.raises(ManagerClosed, match="draining"):
                await refused
        with pytest.raises(ManagerClosed, match="draining"):
            manager.submit(double, x=1)
        gate.set()
    assert results == [2 + 20 + 2 + 4]


async def test_draining_lets_a_map_inside_a_call_in_flight_go_on_to_its_end() -> None:
    gate = anyio.Event()

    @tool
    async def gated(x: int) -> int:
        await gate.wait()
        return x

    @tool
    async def outer() -> int:
        async with current().map(gated, ({"x": n} for n in range(50)), in_flight=2) as outcomes:
            return sum([outcome.unwrap() async for outcome in outcomes])

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        call = manager.submit(outer)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(manager.drain)
        await anyio.wait_all_tasks_blocked()
        gate.set()
        assert await call.result() == sum(range(50))  # half a sum would be a wrong success


async def test_draining_lets_a_run_inside_a_call_in_flight_end_with_its_run_level_phases() -> None:
    gate = anyio.Event()

    @tool
    async def gated(x: int) -> int:
        await gate.wait()
        return x

    pipeline = Pipeline("inner", Phase("gated", gated), Phase("total", total, bind={"xs": "gated"}, collect=True))

    @tool
    async def outer() -> int:
        report = await current().run(pipeline, ({"x": n} for n in range(10)), in_flight=2)
        return report.results["total"]  # type: ignore[no-any-return]

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        call = manager.submit(outer)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(manager.drain)
        await anyio.wait_all_tasks_blocked()
        gate.set()
        assert await call.result() == 45


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_draining_ends_the_iteration_over_an_async_source_that_is_waited_for(in_flight: int) -> None:
    pulling, closed = anyio.Event(), []

    async def source() -> AsyncIterator[dict[str, int]]:
        try:
            yield {"x": 1}
            pulling.set()
            await anyio.sleep_forever()
        finally:
            closed.append(True)

    seen = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def drain() -> None:
            await pulling.wait()
            await anyio.wait_all_tasks_blocked()
            await manager.drain()

        group.start_soon(drain)
        async with manager.map(double, source(), in_flight=in_flight) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.value)
    assert seen == [2]
    assert closed == [True]


async def test_a_session_has_exactly_one_end_per_call_in_its_evidence() -> None:
    sink = MemorySink()
    with anyio.CancelScope() as scope:
        async with ServiceManager(evidence=sink, log=None) as manager:
            manager.submit(forever)
            manager.submit(polite)
            await manager.execute(double, x=1)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    ends = [record["call_id"] for record in sink.records if record.get("status") and "call_id" in record]
    assert len(ends) == len(set(ends)) == 3
    assert sink.records[-1]["event"] == "session.ended"


# --- maps and runs between two calls


@tool
async def slow_parts(x: int) -> AsyncIterator[int]:
    async def parts() -> AsyncIterator[int]:
        for part in range(3):
            await anyio.sleep(1)  # meanwhile no call of the item is open
            yield part

    return parts()


PARTS = Pipeline(
    "parts",
    Phase("parts", slow_parts, expand="part"),
    Phase("doubled", double, bind={"x": "part"}),
    Phase("total", total, bind={"xs": "doubled"}, collect="part"),
    item=["x"],
)


@explore(seeds=3)
@pytest.mark.parametrize("how", ["drained", "left"])
async def test_an_item_between_its_calls_has_the_grace_to_end(how: str) -> None:
    seen: list[Any] = []
    manager = ServiceManager(grace=10, log=None)

    async def consumes() -> None:
        async with manager.stream(PARTS, [{"x": 1}, {"x": 2}], in_flight=1) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.value)

    async with anyio.create_task_group() as group, manager:
        group.start_soon(consumes)
        await anyio.sleep(1.5)
        assert not manager.calls
        if how == "drained":
            await manager.drain()
            await anyio.sleep(0.1)
            assert seen == [6]
    assert seen == [6]  # and the second item was not begun


@explore(seeds=3)
async def test_a_call_that_a_map_has_made_can_drain_and_does_not_wait_for_that_map() -> None:
    @tool
    async def drains(x: int) -> float:
        began = anyio.current_time()
        await current().drain()
        return anyio.current_time() - began

    async with ServiceManager(grace=10, log=None) as manager, manager.map(drains, [1], arg="x") as outcomes:
        assert [outcome.value async for outcome in outcomes] == [0]


@explore(seeds=3)
async def test_cancelling_all_waits_for_maps_whose_source_gives_nothing() -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"x": 1}
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            closed.append("source")

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:

        async def consumes() -> None:
            with pytest.raises(PipelineError, match="enough"):
                async with manager.map(double, source()) as outcomes:
                    async for outcome in outcomes:
                        assert outcome.value == 2

        group.start_soon(consumes)
        await anyio.sleep(0.5)
        assert not manager.calls
        assert await manager.cancel(reason="enough") is True
        assert closed == ["source"]
        assert await manager.cancel() is False


# --- runs that are between two calls


def lazily_expanded(pause: float, story: list[Any]) -> Pipeline:
    @tool
    async def parts(x: int) -> AsyncIterator[int]:
        for part in range(3):
            await anyio.sleep(pause)  # here no call is open
            yield part

    @tool
    async def told(part: int) -> None:
        story.append(part)

    return Pipeline("p", Phase("parts", parts, expand="part"), Phase("told", told))


@pytest.mark.parametrize("grace", [10, 2])
def test_draining_waits_for_a_run_that_is_between_two_calls_and_then_cancels_it(grace: float) -> None:
    async def main() -> None:
        story: list[Any] = []
        began = anyio.current_time()

        async with ServiceManager(log=None, grace=grace) as manager, anyio.create_task_group() as group:

            async def drain() -> None:
                await anyio.sleep(0.5)
                await manager.drain()
                story.append("drained")

            group.start_soon(drain)
            report = await manager.run(lazily_expanded(1, story), [{"x": 1}], keep="all")
        assert not report.drained  # the source was at its end
        if grace == 10:
            assert (story, report.succeeded) == ([0, 1, 2, "drained"], 1)
        else:
            assert (story, report.cancelled) == ([0, 1, "drained"], 1)
            assert anyio.current_time() - began == pytest.approx(2.5)
            assert "the elements of 'part' were cancelled after 2" in str(report.failures[0].error)

    explore(main, seeds=2)


async def test_a_run_whose_services_start_as_the_manager_drains_is_refused() -> None:
    starting, may_start = anyio.Event(), anyio.Event()

    class Slow(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            starting.set()
            await may_start.wait()
            yield

    class Using(KGASTool):
        name, description = "using", "uses a service"

        def __init__(self, service: Slow) -> None:
            self.service = service

        async def execute_async(self, *, x: int) -> int:
            return x

    pulled: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        pulled.append(1)
        yield {"x": 1}

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:

        async def run() -> None:
            with pytest.raises(ManagerClosed, match="draining"):
                await manager.run(Pipeline("p", Phase("using", Using(Slow()))), source())

        group.start_soon(run)
        await starting.wait()
        await manager.drain()
        may_start.set()
    assert not pulled
