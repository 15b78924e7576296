"""Inputs with a default, in phases that run once per run: left alone where nothing has their name."""

from __future__ import annotations

from typing import Any

import pytest

from kgas_async import Phase, Pipeline, ServiceManager, tool


@tool
async def same(x: int) -> int:
    return x


@tool
async def best(values: list[int], top: int = 2) -> list[int]:
    return sorted(values)[-top:]


@tool
async def shown(best: list[int], separator: Any = "/") -> str:
    return str(separator).join(map(str, best))


@pytest.mark.parametrize("item", [None, ["x"]])
async def test_a_run_level_phase_keeps_its_defaults(item: Any) -> None:
    pipeline = Pipeline(
        "p",
        Phase("values", same),
        Phase("best", best, collect=True),
        Phase("shown", shown),
        Phase("again", shown.using(name="again"), bind={"best": "best"}, after="shown"),
        item=item,
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 3}, {"x": 1}, {"x": 2}])
    assert report.errors == {}
    assert report.results == {"best": [2, 3], "shown": "2/3", "again": "2/3"}


async def test_nothing_is_made_of_a_field_that_no_item_has() -> None:
    @tool
    async def noted(values: list[int], note: Any = "none") -> Any:
        return note

    pipeline = Pipeline("p", Phase("values", same), Phase("noted", noted, collect=True))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 3}])
    assert report.results == {"noted": "none"}


async def test_it_takes_a_field_that_is_bound_or_declared() -> None:
    @tool
    async def noted(note: Any = "none") -> Any:
        return note

    bound = Pipeline("p", Phase("values", same), Phase("noted", noted, bind={"note": "x"}, collect=True))
    declared = Pipeline("p", Phase("values", same), Phase("noted", noted, collect=True), item=["x", "note"])
    async with ServiceManager() as manager:
        assert (await manager.run(bound, [{"x": 3}, {"x": 4}])).results == {"noted": [3, 4]}
        assert (await manager.run(declared, [{"x": 3, "note": "a"}])).results == {"noted": ["a"]}
