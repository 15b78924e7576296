"""Pipelines that wait and compute: the physical limit, the ways of others, and ours; a diamond beside a line."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any

import aiometer
import anyio
from pydantic_graph import GraphBuilder, StepContext

from kgas_async import Phase, Pipeline, Policy, ServiceManager, tool

from .measure import Case

ITEMS = 1_000
AT_ONCE = 50  # in each phase that waits
IN_FLIGHT = 200
WAIT_S = 0.005
COMPUTE_S = 50e-6

# The phase that waits longest fills its slots for so long, and the last item goes through the others once.
LIMIT_S = ITEMS / AT_ONCE * WAIT_S + WAIT_S


def computed(x: int) -> int:
    until = perf_counter() + COMPUTE_S
    while perf_counter() < until:
        pass
    return x


async def waited(x: int) -> int:
    await anyio.sleep(WAIT_S)
    return x


@tool(policy=Policy(concurrency=AT_ONCE))
async def fetched(x: int) -> int:
    return await waited(x)


@tool
async def parsed(fetched: int) -> int:
    return computed(fetched)


@tool(policy=Policy(concurrency=AT_ONCE))
async def stored(parsed: int) -> int:
    return await waited(parsed)


THREE = Pipeline("three", Phase("fetched", fetched), Phase("parsed", parsed), Phase("stored", stored), item=["x"])


async def ours() -> list[int]:
    async with ServiceManager(log=None) as manager:
        items = ({"x": x} for x in range(ITEMS))
        report = await manager.run(THREE, items, in_flight=IN_FLIGHT, keep="all")
    return [outcome.value for outcome in report.outcomes]


async def workers() -> list[int]:
    """As one would write it by hand for just this: workers per phase and a queue, nothing else."""
    values: list[int] = []
    queue: deque[int] = deque()
    idle: list[anyio.Event] = []
    source = iter(range(ITEMS))
    is_over = False

    async def first() -> None:
        for x in source:
            queue.append(computed(await waited(x)))
            if idle:
                idle.pop().set()

    async def last() -> None:
        while queue or not is_over:
            if queue:
                values.append(await waited(queue.popleft()))
            else:
                idle.append(event := anyio.Event())
                await event.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(last)
        async with anyio.create_task_group() as firsts:
            for _ in range(AT_ONCE):
                firsts.start_soon(first)
        is_over = True
        for event in idle:
            event.set()
    return sorted(values)


async def barrier() -> list[int]:
    """Each phase over all items before the next begins."""
    values = list(range(ITEMS))

    async def phase(one: Callable[[int], Awaitable[int]]) -> None:
        limit = anyio.CapacityLimiter(AT_ONCE)

        async def run(place: int) -> None:
            async with limit:
                values[place] = await one(values[place])

        async with anyio.create_task_group() as tasks:
            for place in range(ITEMS):
                tasks.start_soon(run, place)

    await phase(waited)
    values = [computed(x) for x in values]
    await phase(waited)
    return values


async def aiometer_barrier() -> list[int]:
    values = await aiometer.run_all([partial(waited, x) for x in range(ITEMS)], max_at_once=AT_ONCE)
    values = [computed(x) for x in values]
    return await aiometer.run_all([partial(waited, x) for x in values], max_at_once=AT_ONCE)


async def graph_per_item() -> list[int]:
    """pydantic-graph: a run of the graph for each item, and limiters in its steps."""
    builder = GraphBuilder(input_type=int, output_type=int)
    limits = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(IN_FLIGHT)

    @builder.step
    async def fetch(context: StepContext[Any, Any, int]) -> int:
        async with limits[0]:
            return await waited(context.inputs)

    @builder.step
    async def parse(context: StepContext[Any, Any, int]) -> int:
        return computed(context.inputs)

    @builder.step
    async def store(context: StepContext[Any, Any, int]) -> int:
        async with limits[1]:
            return await waited(context.inputs)

    builder.add(
        builder.edge_from(builder.start_node).to(fetch),
        builder.edge_from(fetch).to(parse),
        builder.edge_from(parse).to(store),
        builder.edge_from(store).to(builder.end_node),
    )
    graph = builder.build()
    values = [0] * ITEMS

    async def run(x: int) -> None:
        async with limits[2]:
            values[x] = await graph.run(inputs=x)

    async with anyio.create_task_group() as tasks:
        for x in range(ITEMS):
            tasks.start_soon(run, x)
    return values


async def timed(work: Callable[[], Awaitable[list[int]]]) -> float:
    began = perf_counter()
    values = await work()
    seconds = perf_counter() - began
    assert values == list(range(ITEMS)), "a benchmark that loses results measures nothing"
    return seconds


def waiting_cases(loops: dict[str, dict[str, Any]]) -> list[Case]:
    """A run of 1,000 items through three phases: seconds of the whole run, over the computed limit."""
    cases = [Case("the computed limit", lambda: LIMIT_S)]
    ways = {
        "ours": (ours, 1.25),
        "workers and a queue by hand": (workers, None),
        "a barrier per phase": (barrier, None),
        "aiometer, a barrier per phase": (aiometer_barrier, None),
        "pydantic-graph, a run per item": (graph_per_item, None),
    }
    for loop, where in loops.items():
        for name, (work, goal) in ways.items():
            bounded = goal if loop != "uvloop" else None
            cases.append(Case(f"{name} ({loop})", partial(anyio.run, timed, work, **where), bounded))
    return cases


@tool
async def a(x: int) -> int:
    return x


@tool
async def b(a: int) -> int:
    return a


@tool
async def c(a: int) -> int:
    return a


@tool
async def d(b: int, c: int) -> int:
    return b


@tool
async def c_after_b(b: int) -> int:
    return b


LINE = Pipeline("line", Phase("a", a), Phase("b", b), Phase("c", c_after_b), Phase("d", d), item=["x"])
DIAMOND = Pipeline("diamond", Phase("a", a), Phase("b", b), Phase("c", c), Phase("d", d), item=["x"])


async def through(pipeline: Pipeline, items: int) -> float:
    async with ServiceManager(log=None) as manager:
        began = perf_counter()
        report = await manager.run(pipeline, ({"x": x} for x in range(items)))
        seconds = perf_counter() - began
    assert report.succeeded == items
    return seconds / items


def diamond_cases(loop: str, where: dict[str, Any], items: int) -> list[Case]:
    """An item that does nothing: four phases in a line, and with two branches."""
    return [
        Case(f"a line of four phases ({loop})", partial(anyio.run, through, LINE, items, **where)),
        Case(f"a diamond of four phases ({loop})", partial(anyio.run, through, DIAMOND, items, **where), 2.5),
    ]
