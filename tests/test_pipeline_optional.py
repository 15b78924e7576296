"""Item fields that run-level phases take: needed of each item, unless there is a default."""

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


async def test_an_item_that_lacks_what_only_a_run_level_phase_takes_fails_alone_before_any_tool() -> None:
    ran: list[int] = []

    @tool
    async def noted(x: int) -> int:
        ran.append(x)
        return x

    @tool
    async def paired(values: list[int], title: list[str]) -> dict[str, int]:
        return dict(zip(title, values, strict=True))

    pipeline = Pipeline(
        "p", Phase("values", noted), Phase("paired", paired, collect=True), item=["x", "title"], key="x"
    )
    items = [{"x": 1, "title": "one"}, {"x": 2}, {"x": 3, "title": "three"}]
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, items)
    assert report.errors == {}
    assert (report.results, report.missing) == ({"paired": {"one": 1, "three": 3}}, {"paired": 1})
    assert [(one.key, str(one.error)) for one in report.failures] == [
        ("2", "pipeline 'p': the item '2' has no field 'title'")
    ]
    assert ran == [1, 3]
