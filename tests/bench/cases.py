"""What is measured: items through `map` and through three phases, and sync calls, beside the plain ways."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import aiometer
import anyio
import anyio.to_thread

from kgas_async import Phase, Pipeline, ServiceManager, tool

from .measure import Case

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
IN_FLIGHT = 100


async def plain(x: int) -> int:
    return x


@tool
async def nothing(x: int) -> int:
    return x


@tool
async def first(x: int) -> int:
    return x


@tool
async def second(first: int) -> int:
    return first


@tool
async def third(second: int) -> int:
    return second


def plain_sync(x: int) -> int:
    return x


@tool
def nothing_sync(x: int) -> int:
    return x


LINE = Pipeline("line", Phase("first", first), Phase("second", second), Phase("third", third), item=["x"])


async def timed(work: Callable[[], Awaitable[list[int]]], items: int) -> float:
    """Seconds per item, checked: all results are there, in order."""
    began = perf_counter()
    values = await work()
    seconds = perf_counter() - began
    assert values == list(range(items)), "a benchmark that loses results measures nothing"
    return seconds / items


async def task_group(items: int) -> list[int]:
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def one(x: int) -> int:
        async with limit:
            return await plain(x)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(x)) for x in range(items)]
    return [task.result() for task in running]


async def anyio_group(items: int) -> list[int]:
    limit = anyio.CapacityLimiter(IN_FLIGHT)
    values = [0] * items

    async def one(x: int) -> None:
        async with limit:
            values[x] = await plain(x)

    async with anyio.create_task_group() as tasks:
        for x in range(items):
            tasks.start_soon(one, x)
    return values


async def aiometer_run(items: int) -> list[int]:
    return await aiometer.run_all([partial(plain, x) for x in range(items)], max_at_once=IN_FLIGHT)


async def ours_map(items: int, evidence: str | None) -> float:
    async with ServiceManager(log=None, evidence=evidence) as manager:

        async def work() -> list[int]:
            async with manager.map(nothing, range(items), arg="x", in_flight=IN_FLIGHT) as outcomes:
                return [outcome.unwrap() async for outcome in outcomes]

        return await timed(work, items)


async def ours_line(items: int, evidence: str | None) -> float:
    async with ServiceManager(log=None, evidence=evidence) as manager:

        async def work() -> list[int]:
            async with manager.stream(LINE, ({"x": x} for x in range(items)), in_flight=IN_FLIGHT) as outcomes:
                return [outcome.unwrap() async for outcome in outcomes]

        return await timed(work, items)


async def to_thread(calls: int, in_flight: int) -> list[int]:
    limiter = anyio.CapacityLimiter(6)
    values = [0] * calls
    source = iter(range(calls))

    async def worker() -> None:
        for x in source:
            values[x] = await anyio.to_thread.run_sync(plain_sync, x, limiter=limiter)

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(worker)
    return values


async def ours_threads(calls: int, in_flight: int) -> float:
    async with ServiceManager(log=None, threads=6) as manager:

        async def work() -> list[int]:
            async with manager.map(nothing_sync, range(calls), arg="x", in_flight=in_flight) as outcomes:
                return [outcome.unwrap() async for outcome in outcomes]

        return await timed(work, calls)


def on(loop: str, function: Callable[..., Awaitable[float]], *args: Any) -> float:
    return anyio.run(function, *args, **LOOPS[loop])


def with_evidence(loop: str, function: Callable[..., Awaitable[float]], items: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        seconds = on(loop, function, items, str(path))
        assert path.read_bytes().count(b"call.succeeded") >= items
        return seconds


def item_cases(items: int) -> list[Case]:
    """An item that does nothing."""
    cases = [
        Case("asyncio TaskGroup + Semaphore (asyncio)", lambda: on("asyncio", timed, partial(task_group, items), items))
    ]
    for loop in LOOPS:
        bounded = loop != "uvloop"
        cases += [
            Case(f"map, evidence off ({loop})", partial(on, loop, ours_map, items, None), 0.7 if bounded else None),
            Case(f"map, evidence on ({loop})", partial(with_evidence, loop, ours_map, items), 1.0 if bounded else None),
            Case(f"3 phases, evidence off ({loop})", partial(on, loop, ours_line, items, None)),
            Case(f"3 phases, evidence on ({loop})", partial(with_evidence, loop, ours_line, items)),
        ]
    for loop in ("asyncio", "trio"):
        cases += [
            Case(
                f"AnyIO task group + CapacityLimiter ({loop})",
                partial(on, loop, timed, partial(anyio_group, items), items),
            ),
            Case(f"aiometer ({loop})", partial(on, loop, timed, partial(aiometer_run, items), items)),
        ]
    return cases


def thread_cases(loop: str, calls: int, in_flight: int) -> list[Case]:
    """A sync call that does nothing."""
    return [
        Case(f"anyio.to_thread ({loop})", partial(on, loop, timed, partial(to_thread, calls, in_flight), calls)),
        Case(
            f"map of a sync tool ({loop})",
            partial(on, loop, ours_threads, calls, in_flight),
            0.4 if in_flight >= 100 else None,
        ),
    ]
