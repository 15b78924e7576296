"""Where the code of a lazy result runs: as a part of its call, wherever its elements are pulled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from kgas_async import Phase, Pipeline, ServiceManager, call_context, current, tool


@tool
async def tenfold(x: int) -> int:
    return 10 * x


@tool
async def gathered(element: list[Any]) -> list[Any]:
    return element


def place() -> tuple[str, str, str]:
    current()  # raises outside of a call
    fields = call_context(None, "info", {})
    return (fields["tool"], fields["phase"], fields["item"])


def lazily() -> Iterator[Any]:
    try:
        yield place()
        yield place()
    finally:
        assert place()


@tool(name="made")
async def asynchronously(x: int) -> AsyncIterator[Any]:
    async def elements() -> AsyncIterator[Any]:
        try:
            yield place()
            assert await current().execute(tenfold, x=x) == 10 * x
            yield place()
        finally:
            assert place()

    return elements()


@tool(name="made")
async def on_the_loop(x: int) -> Iterator[Any]:
    return lazily()


@tool(name="made")
def in_a_thread(x: int) -> Iterator[Any]:
    return lazily()


@pytest.mark.parametrize("made", [asynchronously, on_the_loop, in_a_thread], ids=["async", "loop", "thread"])
async def test_the_code_of_a_lazy_result_knows_its_call(made: Any) -> None:
    pipeline = Pipeline("p", Phase("made", made, expand="element"), Phase("all", gathered, collect="element"), key="x")
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 7}], keep="all")
    assert report.outcomes[0].unwrap() == [("made", "made", "7")] * 2
