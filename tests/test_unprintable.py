"""Values and errors whose own repr and str raise: they are refused or failed like others, and nothing hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from kgas_async import (
    CallFailed,
    InvalidInputs,
    KGASTool,
    MemorySink,
    Phase,
    Pipeline,
    PipelineError,
    Service,
    ServiceManager,
    ServiceStartFailed,
    tool,
)
from kgas_async._errors import shown, text_of
from kgas_async.testing import assert_clean


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr for you")


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr for you")

    __str__ = __repr__


SHOWN = r"\(a UnprintableError whose __repr__ raised RuntimeError\)"


@tool
async def double(x: int) -> int:
    return 2 * x


def test_what_cannot_be_printed_is_said_to_be_so() -> None:
    assert shown(3) == "3"
    assert shown(Unprintable()) == "(a Unprintable whose __repr__ raised RuntimeError)"
    assert text_of(UnprintableError()) == "(its __str__ raised RuntimeError)"


async def test_an_input_of_one_item_is_that_items_failure_alone() -> None:
    sink = MemorySink()
    manager = ServiceManager(log=None, evidence=sink)
    async with manager:
        async with manager.map(double, [{"x": 1}, {"x": Unprintable()}, {"x": 3}]) as outcomes:
            assert [outcome.status async for outcome in outcomes] == ["succeeded", "failed", "succeeded"]
        outcome = await manager.outcome(double, x=Unprintable())  # type: ignore[arg-type]
        assert isinstance(outcome.error, InvalidInputs)
    assert [one["status"] for one in sink.records if "tool" in one and "status" in one].count("failed") == 2
    assert_clean(manager)


async def test_an_error_of_a_tool_and_of_its_clean_up_is_the_failure_of_its_call() -> None:
    class Breaks(KGASTool):
        async def execute_async(self) -> None:
            raise UnprintableError

        async def cleanup_resources(self, call: Any) -> None:
            raise UnprintableError

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match=r"UnprintableError: \(its __str__ raised RuntimeError\)") as caught:
            await manager.execute(Breaks())
        assert manager.statistics().calls_open == 0
    assert caught.value.__notes__ == [
        "cleanup_resources of tool 'Breaks' failed too: (a UnprintableError whose __repr__ raised RuntimeError)"
    ]


async def test_an_error_of_a_source_comes_after_what_it_gave() -> None:
    def source() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise UnprintableError

    values = []
    async with ServiceManager(log=None) as manager, manager.map(double, source()) as outcomes:
        with pytest.raises(PipelineError, match=f"raised after 1 item: {SHOWN}"):
            async for outcome in outcomes:
                values.append(outcome.value)
    assert values == [2]


async def test_an_error_of_a_part_of_a_value_is_its_items() -> None:
    class Result:
        @property
        def part(self) -> int:
            raise UnprintableError

    @tool
    async def gives(x: int) -> Result:
        return Result()

    pipeline = Pipeline("p", Phase("given", gives), Phase("double", double, bind={"x": "given.part"}), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 1}], keep="all")
    (outcome,) = report.outcomes
    assert outcome.status == "failed"
    assert "'part' of Result (of 'part') cannot be read: (a UnprintableError" in str(outcome.error)
    assert "PipelineError" in repr(outcome)


async def test_an_error_of_a_lazy_result_is_its_items() -> None:
    @tool
    def elements(x: int) -> Iterator[int]:
        yield x
        raise UnprintableError

    @tool
    async def doubled(element: int) -> int:
        return 2 * element

    pipeline = Pipeline("p", Phase("elements", elements, expand="element"), Phase("doubled", doubled), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 1}], keep="all")
    (outcome,) = report.outcomes
    assert "'elements' raised UnprintableError: (its __str__ raised RuntimeError)" in str(outcome.error)


@pytest.mark.parametrize("log", [None, "events"])
async def test_a_service_that_does_not_start_with_it_is_told_and_nothing_hangs(log: Any) -> None:
    class Refuses(Service):
        @asynccontextmanager
        async def running(self) -> Any:
            raise UnprintableError
            yield

    with anyio.fail_after(10), pytest.raises(ServiceStartFailed, match=f"'Refuses' did not start: {SHOWN}"):
        async with ServiceManager(Refuses(), log=log):
            pass
