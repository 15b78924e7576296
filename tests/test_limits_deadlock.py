"""Limits that code enters itself, by `async with`: what would wait for itself, or for each other, is told at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from kgas_async import (
    AdaptiveLimit,
    CallRejected,
    ConcurrencyLimit,
    MemoryLimit,
    Policy,
    ServiceManager,
    current,
    tool,
)
from kgas_async.testing import assert_clean


def keyed() -> ConcurrencyLimit:
    return ConcurrencyLimit(3, key=lambda inputs: "k", per_key=2)


def adaptive() -> AdaptiveLimit:
    return AdaptiveLimit(2, 5)


def plain() -> ConcurrencyLimit:
    return ConcurrencyLimit(2)


kinds = pytest.mark.parametrize("make", [plain, keyed, adaptive])


@tool(idempotent=True)
async def nothing() -> None: ...


def reason(outcome: Any) -> str:
    """The last cause of an error, which is what was refused."""
    error = outcome.error
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join([str(error), *getattr(error, "__notes__", ())])


@kinds
async def test_a_nested_call_that_wants_a_limit_of_its_chain_is_refused_whatever_the_kind(make: Any) -> None:
    limit = make()

    @tool(policy=Policy(concurrency=limit))
    async def outer() -> None:
        await current().execute(nothing.using(name="inner", concurrency=limit))

    async with ServiceManager(log=None) as manager:
        refused = await manager.outcome(outer)
    assert "'inner' wants a token of" in reason(refused)
    assert "'outer' holds" in reason(refused)
    assert_clean(manager, limit)


@kinds
async def test_code_that_enters_what_its_own_call_holds_is_refused(make: Any) -> None:
    limit = make()

    @tool(policy=Policy(concurrency=limit))
    async def greedy() -> None:
        async with limit:
            pass

    async with ServiceManager(log=None) as manager:
        refused = await manager.outcome(greedy)
    assert refused.status == "failed"
    assert f"tool 'greedy' enters {limit!r}, a token of which tool 'greedy' holds by its policy" in reason(refused)
    assert_clean(manager, limit)


@kinds
async def test_a_nested_call_that_wants_what_the_code_around_it_has_entered_is_refused(make: Any) -> None:
    limit = make()

    @tool
    async def outer() -> None:
        async with limit:
            await current().execute(nothing.using(name="inner", concurrency=limit))

    async with ServiceManager(log=None) as manager:
        refused = await manager.outcome(outer)
    assert isinstance(refused.error.__cause__, CallRejected)  # type: ignore[union-attr]
    assert "'inner' wants a token of" in reason(refused)
    assert_clean(manager, limit)


async def test_a_call_that_code_outside_of_all_calls_waits_for_within_the_limit_is_refused() -> None:
    limit = ConcurrencyLimit(1)
    inner = nothing.using(name="inner", concurrency=limit)
    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            async with limit:
                refused = await manager.outcome(inner)
                with pytest.raises(CallRejected):
                    await manager.execute(inner)
                with pytest.raises(CallRejected):
                    await manager.gather({"inner": inner}, {})
        assert refused.status == "rejected"
        assert "the code that waits for this call has entered by 'async with'" in str(refused.error)
        assert (await manager.outcome(inner)).ok
    assert_clean(manager, limit)


@tool
def through_a_thread(inner: Any) -> None:
    inner.execute()


@tool
async def failing() -> None:
    raise ValueError("no")


ways = pytest.mark.parametrize(
    "way",
    [
        lambda inner: current().execute(inner.using(isolated=True)),
        lambda inner: current().gather({"inner": inner}, {}),
        lambda inner: current().race({"inner": inner}, {}),
        lambda inner: current().execute(through_a_thread, inner=inner),
        lambda inner: current().execute(inner.using(hedge_after=5.0)),
        lambda inner: current().execute(failing.using(fallback=inner)),
    ],
    ids=["isolated", "gather", "race", "thread", "hedge", "fallback"],
)


@ways
async def test_it_is_refused_whatever_task_it_runs_in(way: Any) -> None:
    limit = ConcurrencyLimit(1)

    @tool
    async def outer() -> None:
        async with limit:
            await way(nothing.using(name="inner", concurrency=limit))

    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            refused = await manager.outcome(outer)
        assert "'inner' wants a token of" in reason(refused)
        assert "which tool 'outer' holds while it waits" in reason(refused)
    assert_clean(manager, limit)


async def mapped(manager: ServiceManager, tool: Any) -> Any:
    async with manager.map(tool, [{}]) as outcomes:
        return await anext(outcomes)


nested_ways = pytest.mark.parametrize(
    "way",
    [
        lambda manager, outer: manager.outcome(outer),
        lambda manager, outer: manager.outcome(outer.using(isolated=True)),
        lambda manager, outer: manager.outcome(outer.using(hedge_after=5.0)),
        mapped,
        lambda manager, outer: manager.outcome(through_a_thread, inner=outer),
    ],
    ids=["task", "isolated", "hedge", "map", "thread"],
)


@nested_ways
@pytest.mark.parametrize("enters", [False, True])
async def test_what_is_nested_in_a_call_that_such_code_waits_for_is_refused_too(way: Any, enters: bool) -> None:
    limit = ConcurrencyLimit(1)
    inner = nothing.using(name="inner", concurrency=limit)

    @tool(idempotent=True)
    async def outer() -> None:
        if enters:
            async with limit:
                pass
        await current().execute(inner)

    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            async with limit:
                refused = await way(manager, outer)
        assert f"tool {'outer' if enters else 'inner'!r} {'enters' if enters else 'wants a token of'}" in reason(
            refused
        )
        assert (await way(manager, outer)).ok
    assert_clean(manager, limit)


async def test_of_a_keyed_limit_it_is_the_key_that_counts() -> None:
    limit = ConcurrencyLimit(10, key="key", per_key=1)

    @tool(policy=Policy(concurrency=limit))
    async def keyed_tool(key: str) -> None: ...

    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            async with limit.for_key("a"):
                assert (await manager.outcome(keyed_tool, key="b")).ok
                refused = await manager.outcome(keyed_tool, key="a")
        assert "the code that waits for this call has entered by 'async with'" in str(refused.error)
        assert (await manager.outcome(keyed_tool, key="a")).ok
    assert_clean(manager, limit)


async def test_what_a_nested_call_submits_may_wait_for_it() -> None:
    limit = ConcurrencyLimit(1)

    @tool
    async def outer() -> Any:
        return current().submit(nothing.using(name="inner", concurrency=limit))

    async with ServiceManager(log=None) as manager:
        async with limit:
            call = await manager.execute(outer)
        assert (await call.outcome()).ok
    assert_clean(manager, limit)


@kinds
async def test_a_task_that_enters_a_limit_twice_is_told(make: Any) -> None:
    limit = make()
    async with limit:
        with pytest.raises(RuntimeError, match="the same task has entered already"):
            async with limit:
                pass
    async with limit:
        pass
    assert_clean(limit)


@kinds
async def test_a_limit_that_another_task_leaves_is_left(make: Any) -> None:
    limit = make()
    stack = AsyncExitStack()
    await stack.enter_async_context(limit)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stack.aclose)
    async with limit:  # nobody says that it were entered already
        assert limit.statistics().borrowed == 1
    assert_clean(limit)


async def test_tasks_of_a_tool_may_each_enter_a_limit_also_those_that_were_started_within_it() -> None:
    limit = ConcurrencyLimit(2)
    entered = 0

    async def enter() -> None:
        nonlocal entered
        async with limit:
            entered += 1

    @tool
    async def fans_out() -> None:
        async with anyio.create_task_group() as tasks, limit:
            for _ in range(5):
                tasks.start_soon(enter)
            await anyio.wait_all_tasks_blocked()

    async with ServiceManager(log=None) as manager:
        await manager.execute(fans_out)
    assert entered == 5
    assert_clean(manager, limit)


async def test_a_call_that_is_submitted_from_within_a_limit_may_wait_for_it() -> None:
    limit = ConcurrencyLimit(1)

    @tool
    async def submits() -> None:
        async with limit:
            call = current().submit(nothing.using(name="later", concurrency=limit))
            await anyio.wait_all_tasks_blocked()
        await call.result()

    async with ServiceManager(log=None) as manager:
        await manager.execute(submits)
    assert_clean(manager, limit)


@pytest.mark.parametrize("second", [plain, keyed, adaptive])
async def test_limits_that_are_entered_against_an_order_that_was_seen_are_refused(second: Any) -> None:
    one, other = plain(), second()

    @tool
    async def forth() -> None:
        async with one, other:
            pass

    @tool(policy=Policy(concurrency=other))
    async def back() -> None:
        async with one:
            pass

    @tool(policy=Policy(concurrency=other))
    async def nesting() -> None:
        await current().execute(nothing.using(name="nested", concurrency=one))

    async with ServiceManager(log=None) as manager:
        await manager.execute(forth)
        await manager.execute(forth)
        refused = await manager.outcome(back)
        nested = await manager.outcome(nesting)
    assert "'back' enters" in reason(refused)
    assert "'forth' and 'forth' have taken them in the other order" in reason(refused)
    assert "in the other order" in reason(nested)
    assert_clean(manager, one, other)


in_worker = ConcurrencyLimit(1)


def enters_in_a_loop_of_its_own() -> int:
    async def enter() -> int:
        async with in_worker:
            return in_worker.statistics().borrowed

    return anyio.run(enter)


async def test_a_tool_in_a_worker_process_may_enter_a_limit_of_that_process() -> None:
    async with ServiceManager(log=None) as manager:
        outside = tool(enters_in_a_loop_of_its_own, offload="process", policy=Policy(concurrency=in_worker))
        assert await manager.execute(outside) == 1
    assert_clean(manager, in_worker)


async def test_a_nested_call_under_a_memory_limit_that_its_chain_holds_is_admitted() -> None:
    limit = MemoryLimit(1)  # always exceeded: one call may run

    @tool(policy=Policy(concurrency=limit))
    async def inner() -> int:
        return limit.statistics().borrowed

    @tool(policy=Policy(concurrency=limit))
    async def outer() -> int:
        async with limit:
            return await current().execute(inner)

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(outer) == 3
    assert_clean(manager, limit)
