"""Pipelines cancelled at each moment: elements under limits, groups that break, drains, batches below batches."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import Phase, Pipeline, Policy, tool
from kgas_async.testing import sweep, virtual_backends

from .sweep_world import World, async_source, source


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


STEP = 0.05  # seconds of virtual time: half of what the shortest wait of these tools takes


async def swept(world: World, run: Callable[[], Awaitable[object]]) -> None:
    """Cancelled where its own task waits, and at each moment, whatever else waits then."""
    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(run, check=world.check, mode=mode, timeout_s=600) >= 3
    moment = 0
    was_cut = True
    while was_cut:
        with anyio.move_on_after(moment * STEP) as scope:
            await run()
        world.check(moment)
        was_cut = scope.cancelled_caught
        moment += 1
    assert moment > 5


async def test_elements_of_async_generators_under_a_limit(world: World) -> None:
    @tool(policy=Policy(concurrency=[world.limit]))
    async def parts(x: int) -> AsyncIterator[int]:
        try:
            for part in range(3):
                await anyio.sleep(0.1)
                yield part
        finally:
            await checkpoint()

    @tool(policy=Policy(concurrency=[world.limit]))
    async def touched(part: int) -> int:
        await anyio.sleep(0.1)
        return part

    pipeline = Pipeline("p", Phase("parts", parts, expand="part"), Phase("touched", touched))

    async def run() -> None:
        async with world.manager() as manager:
            await manager.run(pipeline, async_source(world, 4), in_flight=3)

    await swept(world, run)


async def test_batches_below_batches_and_a_live_reader(world: World) -> None:
    @tool
    async def apart(xs: list[int]) -> list[list[int]]:
        await anyio.sleep(0.2)
        return [[x, x + 1] for x in xs]

    @tool(policy=Policy(concurrency=[world.limit]))
    async def doubled(es: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        return [2 * e for e in es]

    @tool
    async def total(doubled: list[int]) -> int:
        return sum(doubled)

    @tool
    async def read(total: AsyncIterable[int]) -> int:
        return sum([one async for one in total])

    pipeline = Pipeline(
        "p",
        Phase("apart", apart, bind={"xs": "x"}, batch=2, expand="e"),
        Phase("doubled", doubled, bind={"es": "e"}, batch=3, batch_wait=0.05),
        Phase("total", total, collect="e"),
        Phase("read", read, collect=True),
    )

    async def run() -> None:
        async with world.manager() as manager:
            await manager.run(pipeline, source(world, 5), in_flight=4)

    await swept(world, run)


async def test_groups_that_break_as_they_are_cancelled(world: World) -> None:
    async def breaks() -> None:
        try:
            await anyio.sleep(0.2)
        except anyio.get_cancelled_exc_class():
            raise ValueError("clean-up") from None

    @tool(policy=Policy(concurrency=[world.limit], timeout=5))
    async def bounded(x: int) -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(breaks)
            await anyio.sleep(0.1)
        return x

    @tool
    async def plain(x: int) -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(breaks)
            await anyio.sleep(0.1)
        return x

    pipeline = Pipeline("p", Phase("bounded", bounded), Phase("plain", plain))

    async def run() -> None:
        async with world.manager() as manager:
            await manager.run(pipeline, source(world, 3), in_flight=2)

    await swept(world, run)


async def test_a_drain_while_elements_are_pulled(world: World) -> None:
    @tool
    async def parts(x: int) -> AsyncIterator[int]:
        for part in range(3):
            await anyio.sleep(1)
            yield part

    @tool
    async def touched(part: int) -> int:
        await anyio.sleep(0.1)
        return part

    pipeline = Pipeline("p", Phase("parts", parts, expand="part"), Phase("touched", touched))

    async def run() -> None:
        async with world.manager() as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(manager.run, pipeline, source(world, 3))
            await anyio.sleep(0.5)
            await manager.drain()

    await swept(world, run)
