"""Failed elements and several collects: what one of them makes of a failure is not the other's affair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import MemorySink, Phase, Pipeline, ServiceManager, tool


@tool
async def three(x: int) -> list[int]:
    return [0, 1, 2]


@tool
async def no_one(element: int) -> int:
    if element == 1:
        raise ValueError("no 1")
    return element


@pytest.mark.parametrize("order", [("strict", "lenient"), ("lenient", "strict")])
async def test_a_collect_that_goes_on_runs_also_where_another_of_the_same_elements_is_skipped(
    order: tuple[str, str],
) -> None:
    ran: dict[str, list[int]] = {}

    def collecting(name: str) -> Phase:
        @tool(name=name)
        async def noted(values: list[int]) -> None:
            ran[name] = values

        return Phase(name, noted, bind={"values": "no_one"}, collect="element", missing=missing[name])

    missing = {"strict": "skip", "lenient": "ignore"}
    phases = [collecting(name) for name in order]
    pipeline = Pipeline("p", Phase("three", three, expand="element"), Phase("no_one", no_one), *phases)
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 1}], keep="all")
    (outcome,) = report.outcomes
    assert (outcome.status, outcome.failed_phase) == ("failed", "no_one")
    assert {name: outcome.phases[name].status for name in order} == {"strict": "skipped", "lenient": "succeeded"}
    assert [outcome.phases[name].index for name in order] == [0, 0]
    assert ran == {"lenient": [0, 2]}


@pytest.mark.parametrize("fails", [{"side"}, {"taken", "side"}])
async def test_an_excused_failure_does_not_excuse_another_of_the_same_nested_expansion(fails: set[str]) -> None:
    @tool
    async def taken(inner: int) -> int:
        if inner == 0 and "taken" in fails:
            raise ValueError("taken")
        return inner

    @tool
    async def side(inner: int) -> int:
        if inner == 1 and "side" in fails:
            raise ValueError("side")
        return inner

    @tool
    async def added(values: list[int]) -> int:
        return sum(values)

    pipeline = Pipeline(
        "p",
        Phase("outers", three, expand="outer"),
        Phase("inners", three.using(name="inners"), bind={"x": "outer"}, expand="inner"),
        Phase("taken", taken),
        Phase("side", side),  # which no collect takes, so none goes on without it
        Phase("per_outer", added, bind={"values": "taken"}, collect="inner"),
        Phase("all", added, bind={"values": "per_outer"}, collect="outer", missing="ignore"),
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 1}])
    assert report.failed == 1


async def test_a_generator_that_raises_as_it_is_closed_does_not_keep_others_open_nor_the_run_off_the_record() -> None:
    begun: list[int] = []
    closed: list[int] = []

    @tool
    async def torn(x: int) -> Iterator[int]:
        begun.append(x)
        while len(begun) < 2:  # else one worker would be busy with elements before the other takes its item
            await checkpoint()

        def elements() -> Iterator[int]:
            try:
                while True:
                    yield x
            finally:
                closed.append(x)
                if x != 1:
                    raise OSError(x)

        made = elements()
        next(made)  # else both workers could be busy with elements of the other, and this would have nothing to close
        return made

    @tool
    async def forever(element: Any) -> None:
        await anyio.sleep_forever()

    sink = MemorySink()
    pipeline = Pipeline("p", Phase("torn", torn, expand="element"), Phase("forever", forever))
    async with ServiceManager(evidence=sink) as manager:
        with pytest.raises(OSError, match="2"):
            async with manager.stream(pipeline, [{"x": 1}, {"x": 2}], in_flight=2):
                await anyio.wait_all_tasks_blocked()
    assert sorted(closed) == [1, 2]
    assert [record["event"] for record in sink.records if record["event"].startswith("run.")] == [
        "run.started",
        "run.ended",
    ]
