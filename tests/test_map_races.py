"""Many at once: random cancellations of single calls, chains of maps, maps inside maps, slow consumers of streams."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    ConcurrencyLimit,
    MemorySink,
    Outcome,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    check_cancelled,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore

from .test_map import collect, double


async def cancel_at_random(manager: ServiceManager, asked: set[int], most: int, chance: random.Random) -> None:
    while len(asked) < most:
        await anyio.sleep(chance.random() * 0.002)
        calls = [call for call in manager.calls.values() if call.index not in asked]
        if calls:
            call = chance.choice(calls)
            asked.add(call.index)
            call.cancel("race")


def judge(outcomes: list[Outcome[Any]], asked: set[int], count: int) -> int:
    """Each item has its own outcome, and nobody was cancelled who was not asked; how many were."""
    assert [outcome.index for outcome in outcomes] == list(range(count))
    cancelled = {outcome.index for outcome in outcomes if outcome.status == "cancelled"}
    assert cancelled <= asked
    for outcome in outcomes:
        assert outcome.value == (outcome.index if outcome.ok else None)
        assert outcome.ok or outcome.index in asked
    return len(cancelled)


@pytest.mark.real_time
@pytest.mark.parametrize("isolated", [False, True])
async def test_random_cancels_of_calls_in_threads_never_hit_another(isolated: bool) -> None:
    chance = random.Random(7)
    limit = ConcurrencyLimit(3)

    @tool(policy=Policy(concurrency=limit, isolated=isolated, grace=5))
    def sleeps(x: int) -> int:
        for _ in range(x % 4):
            time.sleep(0.0005)
            check_cancelled()
        return x

    asked: set[int] = set()
    sink = MemorySink()
    manager = ServiceManager(threads=4, evidence=sink, log=None)
    async with manager, anyio.create_task_group() as group:
        group.start_soon(cancel_at_random, manager, asked, 200, chance)
        outcomes = await collect(manager, sleeps, ({"x": n} for n in range(600)), in_flight=6)
        group.cancel_scope.cancel()
    assert judge(outcomes, asked, 600) > 20
    assert_clean(manager, limit)
    ends = [record["call_id"] for record in sink.records if "wait_us" in record]
    assert len(ends) == len(set(ends)) == 600


@explore(seeds=10)
async def test_random_cancels_among_limits_retries_and_timeouts_lose_no_token() -> None:
    chance = random.Random(3)
    limit = ConcurrencyLimit(2)
    tries: dict[int, int] = {}

    @tool(policy=Policy(concurrency=limit, rate=5_000, retry=Retry(3, wait=0.001), timeout=0.5))
    async def moody(x: int) -> int:
        await anyio.sleep(0.001 * (x % 3))
        tries[x] = tries.get(x, 0) + 1
        if x % 5 == 0 and tries[x] < 3:
            raise OSError(x)
        return x

    asked: set[int] = set()
    manager = ServiceManager(log=None)
    async with manager, anyio.create_task_group() as group:
        group.start_soon(cancel_at_random, manager, asked, 60, chance)
        outcomes = await collect(manager, moody, ({"x": n} for n in range(200)), in_flight=8)
        group.cancel_scope.cancel()
    assert judge(outcomes, asked, 200) > 5
    assert limit.statistics().peak == 2
    assert_clean(manager, limit)


async def test_the_outcomes_of_one_map_are_the_source_of_another() -> None:
    items = ({"x": n} for n in range(100))
    async with ServiceManager() as manager, manager.map(double, items, in_flight=3) as first:
        second = await collect(manager, double, ({"x": one.value} async for one in first), in_flight=4)
    assert [outcome.value for outcome in second] == [4 * n for n in range(100)]


async def test_a_map_in_each_item_of_a_map_ends_even_with_one_thread() -> None:
    @tool
    def innermost(x: int) -> int:
        return double.execute(x=x)

    @tool
    async def inner(x: int) -> int:
        outcomes = await collect(current(), innermost, ({"x": n} for n in range(x)), in_flight=2)
        return sum(outcome.unwrap() for outcome in outcomes)

    async with ServiceManager(threads=1) as manager:
        outcomes = await collect(manager, inner, ({"x": n} for n in range(8)), in_flight=4)
    assert [outcome.value for outcome in outcomes] == [n * (n - 1) for n in range(8)]


def test_with_a_slow_consumer_a_stream_with_expansions_is_never_more_than_the_window_ahead() -> None:
    @tool
    async def parts(x: int) -> list[int]:
        return list(range(x % 4))

    @tool
    async def joined(doubled: list[int]) -> int:
        return sum(doubled)

    pipeline = Pipeline(
        "p",
        Phase("parts", parts, expand="part"),
        Phase("doubled", double, bind={"x": "part"}),
        Phase("joined", joined, collect="part"),
        item=["x"],
    )

    async def slow_consumer() -> None:
        pulled = taken = worst = 0

        def source() -> Iterator[dict[str, int]]:
            nonlocal pulled, worst
            while True:
                pulled += 1
                worst = max(worst, pulled - taken)
                yield {"x": pulled}

        manager = ServiceManager()
        async with manager, manager.stream(pipeline, source(), in_flight=5, ordered_window=15) as outcomes:
            async for outcome in outcomes:
                assert outcome.ok
                taken += 1
                await anyio.sleep(0.001)
                if anyio.current_time() > 1:
                    break
        assert taken > 900
        assert worst <= 15

    explore(slow_consumer, seeds=2)


@explore(seeds=10)
async def test_several_maps_runs_and_calls_at_once_keep_apart() -> None:
    limit = ConcurrencyLimit(4)
    shared = double.using(concurrency=[limit])
    pipeline = Pipeline(
        "p", Phase("doubled", shared), Phase("again", shared.using(name="again"), bind={"x": "doubled"})
    )
    results: dict[str, list[Any]] = {}
    manager = ServiceManager(log=None)

    async def mapping(name: str, count: int) -> None:
        outcomes = await collect(manager, shared, ({"x": n} for n in range(count)), in_flight=3)
        results[name] = [outcome.value for outcome in outcomes]

    async def running(name: str, count: int) -> None:
        report = await manager.run(pipeline, ({"x": n} for n in range(count)), in_flight=3, keep="all")
        results[name] = [outcome.value for outcome in report.outcomes]

    async def calling(name: str, count: int) -> None:
        results[name] = [await manager.execute(shared, x=n) for n in range(count)]

    async with manager, anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(mapping, f"map {number}", 20)
            group.start_soon(running, f"run {number}", 20)
            group.start_soon(calling, f"call {number}", 20)
            await checkpoint()
    assert len(results) == 9
    for name, values in results.items():
        factor = 4 if name.startswith("run") else 2
        assert values == [factor * n for n in range(20)], name
    assert limit.statistics().peak == 4
    assert_clean(manager, limit)


async def test_a_thousand_calls_submitted_at_once_all_end_on_leaving() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    @tool
    def notes(x: int) -> None:
        with lock:
            seen.append(x)

    async with ServiceManager(threads=4, log=None) as manager:
        calls = [manager.submit(notes, x=n) for n in range(1_000)]
    assert {call.status for call in calls} == {"succeeded"}
    assert sorted(seen) == list(range(1_000))
