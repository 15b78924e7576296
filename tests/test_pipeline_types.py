"""What annotations say about a pipeline when it is made, beyond one value for one input."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar, TypedDict

import pytest

from kgas_async import Phase, Pipeline, ServiceManager, tool


class Row(TypedDict):
    name: str


def expanding(returns: Any) -> Pipeline:
    async def source(path: Any) -> Any: ...

    source.__annotations__ = {"return": returns}
    return Pipeline("p", Phase("a", tool(source), expand="element"))


@pytest.mark.parametrize("returns", [str, bytes, int, float, bool, None, dict, dict[str, int], Row])
def test_what_can_never_be_taken_apart_is_refused(returns: Any) -> None:
    with pytest.raises(TypeError, match=r"phase 'a': expands its result, which must be an iterable .* 'source' gives"):
        expanding(returns)


@pytest.mark.parametrize(
    "returns", [list, list[int], set[str], tuple[int, str], Iterator[int], AsyncIterator[int], Any, object, str | list]
)
def test_what_may_be_taken_apart_is_accepted(returns: Any) -> None:
    expanding(returns)


def test_nothing_fits_where_it_is_one_of_the_allowed() -> None:
    @tool
    async def nothing(path: Any) -> None: ...

    @tool
    async def maybe(x: int | None) -> int:
        return 0 if x is None else x

    Pipeline("p", Phase("a", nothing), Phase("b", maybe, bind={"x": "a"}))


async def test_the_class_of_an_item_may_have_annotations_that_only_its_function_knows() -> None:
    class Meta:
        pass

    @dataclasses.dataclass
    class Paper:
        path: str
        meta: Meta
        shelf: ClassVar[int] = 3

    @tool
    async def kind(meta: Any) -> str:
        return type(meta).__name__

    pipeline = Pipeline("p", Phase("kind", kind), item=Paper, key="path")
    assert list(pipeline.fields or ()) == ["path", "meta"]
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [Paper("a", Meta())], keep="all")
    assert report.outcomes[0].value == "Meta"
