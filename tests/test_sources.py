"""Async sources that hold more than items: what cannot work is an error, and no hang."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from kgas_async import Phase, Pipeline, PipelineError, ServiceManager, tool
from kgas_async.testing import assert_clean


@tool
async def slow(x: int) -> int:
    await anyio.sleep(0.01)
    return x


async def in_a_task_group(closed: list[str]) -> AsyncIterator[dict[str, int]]:
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 10)
            for n in range(5):
                await anyio.sleep(0.001)
                yield {"x": n}
    finally:
        closed.append("closed")


async def in_a_scope(closed: list[str]) -> AsyncIterator[dict[str, int]]:
    try:
        with anyio.move_on_after(10):
            for n in range(5):
                await anyio.sleep(0.001)
                yield {"x": n}
    finally:
        closed.append("closed")


async def waiting_in_scopes(closed: list[str]) -> AsyncIterator[dict[str, int]]:
    for n in range(5):
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 0.001)
        yield {"x": n}


@pytest.mark.parametrize("source", [in_a_task_group, in_a_scope])
@pytest.mark.parametrize("in_flight", [1, 10])
async def test_a_source_that_yields_inside_a_scope_is_an_error_that_says_so(
    source: Callable[[list[str]], Any], in_flight: int
) -> None:
    closed: list[str] = []
    manager = ServiceManager()
    async with manager:
        with pytest.raises(PipelineError, match=r"raised after 0 items.*yields inside a task group or a cancel scope"):
            async with manager.map(slow, source(closed), in_flight=in_flight) as outcomes:
                assert [outcome async for outcome in outcomes] == []
        assert closed == ["closed"]
        with pytest.raises(PipelineError, match="yields inside a task group or a cancel scope"):
            await manager.run(Pipeline("p", Phase("slow", slow)), source(closed), in_flight=in_flight)
        assert await manager.execute(slow, x=1) == 1
    assert_clean(manager)


async def test_a_source_may_use_scopes_between_its_items() -> None:
    async with ServiceManager() as manager, manager.map(slow, waiting_in_scopes([])) as outcomes:
        assert [outcome.value async for outcome in outcomes] == list(range(5))
