"""Retries that are all that bounds a call: the first attempt takes the short path, the others do as on the long."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from kgas_async import CallFailed, MemorySink, Phase, Pipeline, Policy, Retry, RetryBudget, ServiceManager, tool

from .loops import virtual

AT_ONCE = Retry(3, wait=0)
SHORT_AND_LONG = pytest.mark.parametrize(
    "policy", [{"retry": AT_ONCE}, {"retry": AT_ONCE, "timeout": 60.0}], ids=["short", "long"]
)


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


seen: ContextVar[str] = ContextVar("seen", default="nothing")


@tool
async def fails_at_once() -> None:
    raise ValueError("at once")


@tool
async def fails_later() -> None:
    await anyio.sleep(0.01)
    raise ValueError("later")


@tool
def fails_in_thread() -> None:
    raise ValueError("in a thread")


@SHORT_AND_LONG
@pytest.mark.parametrize("failing", [fails_at_once, fails_later, fails_in_thread], ids=lambda one: one.name)
async def test_the_error_of_an_attempt_is_not_the_context_of_the_next(failing: Any, policy: dict[str, Any]) -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(failing.using(**policy))
    assert caught.value.attempts == 3
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__cause__.__context__ is None


@SHORT_AND_LONG
@pytest.mark.parametrize("waits", [False, True])
async def test_what_an_attempt_sets_is_not_there_in_the_next(policy: dict[str, Any], waits: bool) -> None:
    found: list[str] = []

    @tool(policy=Policy(**policy))
    async def leaves_a_mark() -> str:
        found.append(seen.get())
        seen.set("a mark")
        if waits:
            await anyio.sleep(0.01)
        if len(found) < 3:
            raise ValueError
        return seen.get()

    async with ServiceManager(log=None) as manager:
        seen.set("the caller's")
        assert await manager.execute(leaves_a_mark) == "a mark"
    assert found == ["the caller's"] * 3
    assert seen.get() == "the caller's"


async def test_items_of_a_map_that_fail_at_first_have_their_values_in_order_and_their_attempts_on_record() -> None:
    failed: set[int] = set()
    sink = MemorySink()

    @tool(policy=Policy(retry=AT_ONCE))
    async def every_third_fails_first(x: int) -> int:
        if x % 3 == 0 and x not in failed:
            failed.add(x)
            raise ValueError(x)
        return x

    async with ServiceManager(log=None, evidence=sink) as manager:
        async with manager.map(every_third_fails_first, range(10), arg="x") as outcomes:
            ended = [outcome async for outcome in outcomes]
        assert manager.statistics().tools["every_third_fails_first"].retried == 4
    assert [outcome.value for outcome in ended] == list(range(10))
    assert [outcome.attempts for outcome in ended] == [2 if x % 3 == 0 else 1 for x in range(10)]
    assert [record["event"] for record in sink.records].count("call.retried") == 4


@SHORT_AND_LONG
async def test_who_waits_in_line_begins_while_a_failed_attempt_waits_to_be_made_again(policy: dict[str, Any]) -> None:
    began: dict[int, float] = {}

    @tool(policy=Policy(**policy | {"retry": Retry(2, wait=10.0), "concurrency": 1}))
    async def fails_once(x: int) -> int:
        is_first = x not in began
        began.setdefault(x, anyio.current_time())
        await anyio.sleep(1)
        if is_first and x == 0:
            raise ValueError
        return x

    async with ServiceManager(log=None) as manager:
        items = ({"x": x} for x in range(3))
        report = await manager.run(Pipeline("line", Phase("once", fails_once), item=["x"]), items)
    assert report.succeeded == 3
    assert [began[x] - began[0] for x in range(3)] == pytest.approx([0, 1, 2])


@SHORT_AND_LONG
async def test_a_budget_counts_each_call_once(policy: dict[str, Any]) -> None:
    budget = RetryBudget(1.0)
    failing = fails_at_once.using(**policy | {"retry": Retry(3, wait=0, budget=budget)})
    async with ServiceManager(log=None) as manager:
        for _ in range(4):
            assert not (await manager.outcome(failing)).ok
    counts = budget.statistics()
    assert (counts.calls, counts.retries) == (4, 8)


@SHORT_AND_LONG
async def test_the_time_that_a_call_ran_is_that_of_all_its_attempts(policy: dict[str, Any]) -> None:
    @tool(policy=Policy(**policy))
    async def slow() -> None:
        time.sleep(0.02)  # noqa: ASYNC251  (the loop's time may be virtual)
        raise ValueError

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(slow)
    assert outcome.run_s >= 3 * 0.02
