"""A limit turns a tool away while it runs: the call was admitted and ran, so that it failed and was not rejected."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from kgas_async import (
    CallFailed,
    CallRejected,
    CircuitOpen,
    ConcurrencyLimit,
    KGASTool,
    MemorySink,
    PerformanceMonitor,
    Policy,
    RateLimit,
    Retry,
    ServiceManager,
    current,
    tool,
)

from . import process_tools

small = RateLimit(1, burst=1)
full = ConcurrencyLimit(1, max_queue=0)


@tool(idempotent=True)
async def takes_too_much(x: int) -> int:
    await small.acquire(5)
    raise AssertionError("there are never five")


@tool(idempotent=True)
async def within(x: int) -> int:
    async with full:
        raise AssertionError("nobody may wait")


@tool(idempotent=True, on_cancel="abandon")
def turned_away(x: int) -> None:
    raise CallRejected("no room in here", retry_after=3.0)


@tool(offload="inline", idempotent=True)
def turned_away_inline(x: int) -> None:
    raise CallRejected("no room in here")


@tool(idempotent=True)
async def open_already(x: int) -> None:
    manager = current()
    manager.options(name="one").submit(forever)
    await manager.options(name="one").execute(forever)


@tool
async def forever() -> None:
    await anyio.sleep_forever()


TOOLS: dict[str, KGASTool] = {
    "a rate": takes_too_much,
    "a limit": within,
    "in a thread": turned_away,
    "inline": turned_away_inline,
    "in a process": process_tools.turned_away,
    "a name": open_already,
}
PATHS: dict[str, dict[str, Any]] = {
    "the short path": {},
    "the short path, with tokens": {"concurrency": 2, "rate": 1000.0},
    "the full path": {"timeout": 60.0, "concurrency": 2},
    "a breaker": {"breaker": 2},
    "hedged": {"hedge_after": 60.0},
}
CASES = [(where, path) for where in TOOLS for path in PATHS if (where, path) != ("inline", "hedged")]  # there is none


@pytest.mark.parametrize(("where", "path"), CASES)
async def test_a_tool_that_is_turned_away_while_it_runs_has_failed(where: str, path: str) -> None:
    one = TOOLS[where].using(**PATHS[path])
    sink = MemorySink()
    monitor = PerformanceMonitor(stall=None, sample_every=None)
    assert full.acquire_nowait()
    try:
        async with ServiceManager(evidence=sink, log=None, monitor=monitor, processes=1) as manager:
            outcome = await manager.outcome(one, x=1)
            with pytest.raises(CallFailed) as caught:
                await manager.execute(one, x=1)
            await manager.cancel()
            statistics = manager.statistics().tools[one.name]
    finally:
        full.release()
    assert outcome.status == "failed"
    assert isinstance(outcome.error, CallFailed)
    for error in (outcome.error, caught.value):
        assert isinstance(error.__cause__, CallRejected)
        assert error.__cause__.call_id != error.call_id
    assert (statistics.failed, statistics.rejected) == (2, 0)
    ends = [one["event"] for one in sink.records if one["event"] in ("call.failed", "call.rejected")]
    assert ends == ["call.failed", "call.failed"]
    assert monitor.report().tools[one.name].errors == {"CallRejected": 2}


async def test_it_is_tried_again_where_the_policy_says_so() -> None:
    runs = 0

    @tool(policy=Policy(retry=Retry(3, on=CallRejected, wait=0)))
    async def later() -> int:
        nonlocal runs
        runs += 1
        if runs < 3:
            await small.acquire(5)
        return runs

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(later) == 3


async def test_a_call_that_is_refused_itself_is_rejected_as_before_after_attempts_that_ran_too() -> None:
    @tool(policy=Policy(breaker=1, retry=Retry(3, on=OSError, wait=0)))
    async def breaks() -> None:
        raise OSError("broken")

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(breaks)
        assert (outcome.status, outcome.attempts) == ("rejected", 2)
        assert isinstance(outcome.error, CircuitOpen)
        assert isinstance(outcome.error.__cause__, OSError)
