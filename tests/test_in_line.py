"""Calls of a run that wait for tokens without a worker each; in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio import get_running_tasks
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallCancelled,
    CallFailed,
    ConcurrencyLimit,
    KGASTool,
    Outcome,
    Phase,
    Pipeline,
    PipelineError,
    Policy,
    Priority,
    RunReport,
    ServiceManager,
    current,
    tool,
)

from .loops import virtual


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class World:
    """A tool that takes a second under a limit, and what was seen of it."""

    def __init__(self, *limits: ConcurrencyLimit, **policy: Any) -> None:
        self.began: list[int] = []
        self.pulled = self.inside = self.worst = 0

        @tool(policy=Policy(concurrency=list(limits), **policy))
        async def slow(x: int) -> int:
            self.began.append(x)
            self.inside += 1
            self.worst = max(self.worst, self.inside)
            try:
                await anyio.sleep(1)
            finally:
                self.inside -= 1
            return x

        self.slow = slow
        self.pipeline = Pipeline("p", Phase("slow", slow), item=["x"])

    def items(self, count: int) -> Iterator[dict[str, int]]:
        for x in range(count):
            self.pulled += 1
            yield {"x": x}


def is_free(*limits: ConcurrencyLimit) -> bool:
    return all((limit.borrowed, limit.statistics().waiting) == (0, 0) for limit in limits)


async def waiting_calls(manager: ServiceManager, count: int) -> None:
    with anyio.fail_after(5):
        while sum(call.status == "waiting" for call in manager.calls.values()) != count:
            await checkpoint()


async def test_a_hundred_calls_that_wait_need_no_hundred_tasks() -> None:
    limit = ConcurrencyLimit(2)
    world = World(limit)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        before = len(get_running_tasks())
        tasks.start_soon(manager.run, world.pipeline, world.items(100))
        await waiting_calls(manager, 98)
        assert len(get_running_tasks()) - before < 8
    assert sorted(world.began) == list(range(100))
    assert world.worst == 2
    assert is_free(limit)


async def test_no_more_items_are_pulled_than_may_be_in_flight() -> None:
    world = World(ConcurrencyLimit(3))
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: manager.run(world.pipeline, world.items(50), in_flight=10))
        await waiting_calls(manager, 7)
        assert world.pulled == 10
        await anyio.sleep(1.5)
        assert world.pulled == 13


async def test_nor_more_elements_of_a_lazy_expansion() -> None:
    made = 0
    limit = ConcurrencyLimit(2)

    @tool
    async def pages(n: int) -> Any:
        def lazily() -> Iterator[int]:
            nonlocal made
            for page in range(n):
                made += 1
                yield page

        return lazily()

    @tool(policy=Policy(concurrency=limit))
    async def read(page: int) -> int:
        await anyio.sleep(1)
        return page

    pipeline = Pipeline("p", Phase("pages", pages, expand="page"), Phase("read", read), item=["n"])
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: manager.run(pipeline, [{"n": 100}], in_flight=6))
        await waiting_calls(manager, 4)
        assert made <= 6 + 8  # elements are pulled a few at a time, where they are made
        await anyio.sleep(1.5)
        assert made <= 8 + 8
    assert made == 100
    assert is_free(limit)


async def test_the_wait_is_in_the_figures_apart_from_the_run() -> None:
    @tool(policy=Policy(concurrency=1))
    async def busy(x: int) -> int:
        await anyio.sleep(1)  # until all the others stand in line
        time.sleep(0.02)  # noqa: ASYNC251  (figures are real seconds)
        return x

    pipeline = Pipeline("p", Phase("busy", busy), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in range(3)], keep="all")
    for before, outcome in enumerate(report.outcomes):
        assert before * 0.02 <= outcome.wait_s
        assert outcome.run_s >= 0.02
    assert report.outcomes[0].wait_s == 0


async def test_one_of_them_can_be_cancelled_alone() -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)
    reports: list[RunReport] = []
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def run() -> None:
            reports.append(await manager.run(world.pipeline, world.items(4), keep="all"))

        tasks.start_soon(run)
        await waiting_calls(manager, 3)
        victim = [call for call in manager.calls.values() if call.status == "waiting"][1]
        assert await manager.cancel(victim.id, "not wanted")
        assert limit.statistics().waiting == 2
        with pytest.raises(CallCancelled, match="not wanted"):
            await victim.result()
    (report,) = reports
    assert [one.status for one in report.outcomes] == ["succeeded", "succeeded", "cancelled", "succeeded"]
    assert world.began == [0, 1, 3]
    assert is_free(limit)


async def test_one_that_has_its_token_and_was_not_begun_gives_it_to_the_next() -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)
    outcomes: list[Outcome[Any]] = []
    async with ServiceManager(log=None) as manager:
        await limit.acquire()

        async def run() -> None:
            outcomes.extend((await manager.run(world.pipeline, world.items(3), keep="all")).outcomes)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await waiting_calls(manager, 3)
            first = next(iter(manager.calls.values()))
            limit.release()  # it is let in, and nobody has had time to begin it
            assert limit.borrowed == 1
            first.cancel()
            assert first.status == "cancelled"
            assert limit.borrowed == 1  # the next one's
    assert [one.status for one in outcomes] == ["cancelled", "succeeded", "succeeded"]
    assert world.began == [1, 2]
    assert is_free(limit)


async def test_of_two_limits_the_first_token_is_given_back_where_the_second_never_came() -> None:
    outer, inner = ConcurrencyLimit(2), ConcurrencyLimit(1)
    world = World(outer, inner)
    async with ServiceManager(log=None) as manager:
        await inner.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.run, world.pipeline, world.items(5))
            await waiting_calls(manager, 5)
            assert (outer.borrowed, outer.statistics().waiting, inner.statistics().waiting) == (2, 3, 2)
            for call in list(manager.calls.values())[:2]:
                call.cancel()
            assert (outer.borrowed, outer.statistics().waiting, inner.statistics().waiting) == (2, 1, 2)
            inner.release()
    assert sorted(world.began) == [2, 3, 4]
    assert world.worst == 1
    assert is_free(outer, inner)


async def test_who_is_more_urgent_goes_first() -> None:
    limit = ConcurrencyLimit(1)
    low, high = World(limit), World(limit, priority=Priority.HIGH)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        await limit.acquire()
        urgent = Pipeline("q", Phase("slow", high.slow.using(name="urgent")), item=["x"])
        tasks.start_soon(lambda: manager.run(low.pipeline, low.items(2)))
        await waiting_calls(manager, 2)
        tasks.start_soon(lambda: manager.run(urgent, high.items(2)))
        await waiting_calls(manager, 4)
        limit.release()
        await anyio.sleep(1.5)
        assert (high.began, low.began) == ([0, 1], [])
    assert (high.began, low.began) == ([0, 1], [0, 1])


async def test_what_a_tool_gives_back_in_its_middle_is_somebodys_while_it_goes_on() -> None:
    gate = ConcurrencyLimit(1)
    seen: list[tuple[int, float]] = []

    @tool
    async def halves(x: int) -> int:
        async with gate:
            await anyio.sleep(1)
        await anyio.sleep(10)
        return x

    @tool(policy=Policy(concurrency=gate))
    async def quick(halves: int) -> int:
        seen.append((halves, round(anyio.current_time() - start)))
        return halves

    pipeline = Pipeline("p", Phase("halves", halves), Phase("quick", quick), item=["x"])
    other = World(gate)
    async with ServiceManager(log=None) as manager:
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: manager.run(pipeline, [{"x": 1}]))
            await anyio.sleep(0.5)
            await manager.run(other.pipeline, other.items(1), in_flight=1)
            assert round(anyio.current_time() - start) == 2  # one second for the half, one of its own
    assert seen == [(1, 11)]


@pytest.mark.parametrize("in_flight", [1, 2, 3])
async def test_a_token_that_somebody_else_gives_back_is_taken_up(in_flight: int) -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        await limit.acquire()
        tasks.start_soon(lambda: manager.run(world.pipeline, world.items(5), in_flight=in_flight))
        await waiting_calls(manager, in_flight)
        assert world.began == []
        limit.release()
    assert world.began == [0, 1, 2, 3, 4]
    assert is_free(limit)


async def test_threads_give_their_tokens_to_calls_in_line() -> None:
    limit = ConcurrencyLimit(2)
    world = World(limit)

    @tool(policy=Policy(concurrency=limit))
    def legacy(slow: int) -> int:
        return -slow

    pipeline = Pipeline("p", Phase("slow", world.slow), Phase("legacy", legacy), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, world.items(20), keep="all")
    assert [one.value for one in report.outcomes] == [-x for x in range(20)]
    assert is_free(limit)


async def test_a_run_that_is_cancelled_leaves_no_token_and_nobody_in_line() -> None:
    limit = ConcurrencyLimit(2)
    world = World(limit)
    async with ServiceManager(log=None) as manager:
        with anyio.move_on_after(1.5) as scope:
            await manager.run(world.pipeline, world.items(100), in_flight=20)
        assert scope.cancelled_caught
        assert is_free(limit)
        assert not manager.calls
        statistics = manager.statistics().tools["slow"]
        assert (statistics.succeeded, statistics.succeeded + statistics.cancelled) == (2, world.pulled)


async def test_a_manager_that_is_cancelled_ends_them_too() -> None:
    limit = ConcurrencyLimit(2)
    world = World(limit)
    failed: list[PipelineError] = []
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def run() -> None:
            try:
                await manager.run(world.pipeline, world.items(100), in_flight=20)
            except PipelineError as error:
                failed.append(error)

        tasks.start_soon(run)
        await waiting_calls(manager, 18)
        await manager.cancel(reason="enough")
        assert is_free(limit)
        assert not manager.calls
    assert "enough" in str(failed[0])


async def test_the_first_failure_that_ends_a_run_ends_them_too() -> None:
    limit = ConcurrencyLimit(1)

    @tool(policy=Policy(concurrency=limit))
    async def fails(x: int) -> int:
        await anyio.sleep(1)
        raise ValueError("no")

    pipeline = Pipeline("p", Phase("fails", fails), item=["x"])
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match="no"):
            await manager.run(pipeline, [{"x": x} for x in range(10)], on_error="raise")
        assert is_free(limit)
        assert not manager.calls


async def test_an_exit_in_one_tool_ends_the_session_with_all_of_them() -> None:
    limit = ConcurrencyLimit(1)

    @tool(policy=Policy(concurrency=limit))
    async def leaves(x: int) -> int:
        await anyio.sleep(1)
        raise SystemExit(3)

    pipeline = Pipeline("p", Phase("leaves", leaves), item=["x"])
    with pytest.raises(SystemExit):
        async with ServiceManager(log=None) as manager:
            await manager.run(pipeline, [{"x": x} for x in range(10)])
    assert is_free(limit)


async def test_items_in_batches_and_items_in_line_get_on() -> None:
    limit = ConcurrencyLimit(2)
    world = World(limit)

    @tool
    async def together(slow: list[int]) -> list[int]:
        return [-x for x in slow]

    pipeline = Pipeline("p", Phase("slow", world.slow), Phase("together", together, batch=4), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, world.items(21), in_flight=8, keep="all")
    assert [one.value for one in report.outcomes] == [-x for x in range(21)]
    assert world.worst == 2
    assert is_free(limit)


async def test_a_run_that_ends_early_keeps_no_token_for_calls_that_it_will_not_begin() -> None:
    limit = ConcurrencyLimit(2)
    done_at: list[float] = []

    @tool(policy=Policy(concurrency=limit))
    async def uneven(x: int) -> int:
        if x == 0:
            await anyio.sleep(1)
            raise ValueError("no")
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10)
        return x

    other = World(limit)

    async def wants_a_token_too(manager: ServiceManager) -> None:
        await anyio.sleep(0.5)
        await manager.run(other.pipeline, other.items(1))
        done_at.append(anyio.current_time() - start)

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        start = anyio.current_time()
        with pytest.raises(CallFailed, match="no"):
            tasks.start_soon(wants_a_token_too, manager)
            pipeline = Pipeline("p", Phase("uneven", uneven), item=["x"])
            await manager.run(pipeline, [{"x": x} for x in range(5)], on_error="raise")
    assert is_free(limit)
    assert round(done_at[0]) == 2


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_a_token_never_waits_for_a_worker_that_does_something_else(in_flight: int) -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)
    began: dict[str, float] = {}

    @tool
    async def long(x: int) -> int:
        began[f"long {x}"] = round(anyio.current_time() - start)
        await anyio.sleep(10)
        return x

    pipeline = Pipeline("p", Phase("slow", world.slow), Phase("long", long), item=["x"])
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        start = anyio.current_time()
        await limit.acquire()
        tasks.start_soon(lambda: manager.run(pipeline, [{"x": x} for x in range(3)], in_flight=in_flight))
        await anyio.sleep(1)
        limit.release()
        for _ in range(300):
            await anyio.sleep(0.11)
            assert limit.borrowed == world.inside, f"an idle token after {anyio.current_time() - start:.1f} s"
    assert len(began) == 3
    assert is_free(limit)


async def test_items_in_line_leave_a_worker_each_that_no_batch_takes_from_them() -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)

    @tool(policy=Policy(concurrency=limit))
    async def inner(x: int) -> int:
        return x

    def batched(name: str) -> KGASTool:
        async def each(x: list[int]) -> list[int]:
            return [await current().execute(inner, x=one) for one in x]

        return tool(each, name=name)

    waits = {"batch": 2, "batch_wait": 0.1}
    batches = [Phase(name, batched(name), **waits) for name in ("b1", "b2")]
    pipeline = Pipeline("p", Phase("slow", world.slow), *batches, item=["x"])
    reports: list[RunReport] = []
    async with ServiceManager(log=None) as manager:
        await limit.acquire()

        async def run() -> None:
            reports.append(await manager.run(pipeline, world.items(4), in_flight=2, keep="all"))

        with anyio.fail_after(100):  # the batches waited for a token that a call had which nobody could begin
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await anyio.sleep(5)
                limit.release()
    assert [one.status for one in reports[0].outcomes] == ["succeeded"] * 4
    assert is_free(limit)


async def test_a_call_that_is_cancelled_in_line_with_its_manager_knows_why() -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)
    async with ServiceManager(log=None) as manager:
        await limit.acquire()
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                with pytest.raises(PipelineError, match="enough"):
                    await manager.run(world.pipeline, world.items(3), in_flight=3)

            tasks.start_soon(run)
            await waiting_calls(manager, 3)
            calls = list(manager.calls.values())
            await manager.cancel(reason="enough")
            for call in calls:
                with pytest.raises(CallCancelled, match="enough"):
                    call.unwrap()
                assert call.reason == "enough"
        limit.release()


who: ContextVar[str] = ContextVar("who")


async def seldom(count: int) -> AsyncIterator[dict[str, int]]:
    for x in range(count):
        yield {"x": x}
        await anyio.sleep(10)


async def test_a_call_has_the_context_of_its_run_whoever_gives_it_its_token() -> None:
    limit = ConcurrencyLimit(1)
    seen: list[str] = []

    @tool(policy=Policy(concurrency=limit))
    async def look(x: int) -> int:
        seen.append(who.get())
        return x

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        await limit.acquire()

        async def run() -> None:
            who.set("the run")
            await manager.run(Pipeline("p", Phase("look", look), item=["x"]), seldom(2))

        tasks.start_soon(run)
        await waiting_calls(manager, 1)  # and the only worker waits for the source
        who.set("somebody else")
        limit.release()
    assert seen == ["the run", "the run"]


def test_a_callback_of_the_loop_may_give_a_token_back() -> None:
    limit = ConcurrencyLimit(1)

    async def main() -> list[str]:
        began = asyncio.Event()

        @tool(policy=Policy(concurrency=limit))
        async def slow(x: int) -> int:
            began.set()
            return x

        async def source() -> AsyncIterator[dict[str, int]]:
            yield {"x": 0}
            asyncio.get_running_loop().call_soon(limit.release)
            await began.wait()  # and the only worker with it

        async with ServiceManager(log=None) as manager:
            await limit.acquire()
            with anyio.fail_after(20):
                pipeline = Pipeline("p", Phase("slow", slow), item=["x"])
                report = await manager.run(pipeline, source(), in_flight=2, keep="all")
            return [one.status for one in report.outcomes]

    assert asyncio.run(main()) == ["succeeded"]
    assert is_free(limit)


async def test_a_token_does_not_wait_until_what_a_tool_has_left_open_has_ended() -> None:
    limit = ConcurrencyLimit(1)
    began: dict[int, float] = {}

    @tool(policy=Policy(concurrency=limit))
    async def leaves_open(x: int) -> int:
        began[x] = round(anyio.current_time() - start)
        await anyio.sleep(1)
        if x == 0:
            tasks = await anyio.create_task_group().__aenter__()
            tasks.start_soon(stubborn)
        return x

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)

    pipeline = Pipeline("p", Phase("leaves_open", leaves_open), item=["x"])
    async with ServiceManager(log=None) as manager:
        start = anyio.current_time()
        await manager.run(pipeline, [{"x": x} for x in range(2)], in_flight=2)
    assert began == {0: 0, 1: 1}


async def test_a_run_inside_a_block_that_has_all_tokens_is_refused_them() -> None:
    limit = ConcurrencyLimit(1)
    world = World(limit)

    @tool
    async def runs_more(x: int) -> list[str]:
        async with limit:
            report = await current().run(world.pipeline, world.items(x), keep="all")
        return [one.status for one in report.outcomes]

    async with ServiceManager(log=None) as manager:
        async with limit:
            with anyio.fail_after(100):
                report = await manager.run(world.pipeline, world.items(2), keep="all")
                async with manager.map(world.slow, [0, 1], arg="x") as mapped:
                    outcomes = [one async for one in mapped]
        with anyio.fail_after(100):
            inside = await manager.execute(runs_more, x=2)
        after = await manager.run(world.pipeline, world.items(2), keep="all")
    assert [one.status for one in [*report.outcomes, *outcomes]] == ["rejected"] * 4
    assert "wait for each other" in str(report.outcomes[0].error)
    assert inside == ["rejected"] * 2
    assert [one.status for one in after.outcomes] == ["succeeded"] * 2
    assert is_free(limit)


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_call_that_succeeds_though_all_is_cancelled_keeps_its_item_whole(isolated: bool) -> None:
    @tool(policy=Policy(isolated=isolated))
    async def stubborn(x: int) -> int:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
        return x

    pipeline = Pipeline("p", Phase("stubborn", stubborn), item=["x"])
    outcomes: list[Outcome[Any]] = []
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await anyio.sleep(0.5)
            await manager.cancel(reason="enough")

        tasks.start_soon(cancel)
        async with manager.stream(pipeline, [{"x": 7}]) as stream:
            with suppress(PipelineError):
                async for outcome in stream:
                    outcomes.append(outcome)
    assert [(one.status, one.value) for one in outcomes] == [("succeeded", 7)]
