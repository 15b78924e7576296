"""What a pipeline refuses or sees besides names and types: tools, functions that nobody awaits, annotations, paths."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import pytest

from kgas_async import Outcome, Phase, Pipeline, PipelineError, ServiceManager, tool
from kgas_async._inputs import follow


@tool
async def load(path: Path) -> str:
    return ""


@tool
async def anything(x: Any, y: Any = None) -> Any:
    return x


@dataclasses.dataclass
class Classed:
    path: Path


# --- tools, seen from the pipeline


async def test_two_tools_of_one_name_are_refused_where_they_are_declared() -> None:
    @tool(name="load")
    async def other(path: Path) -> str:
        return ""

    with pytest.raises(ValueError, match=r"phase 'b': its tool and another one, of phase 'a', are both named 'load'"):
        Pipeline("p", Phase("a", load), Phase("b", other), item=["path"])
    Pipeline("p", Phase("a", load), Phase("b", load.using(timeout=1)), Phase("c", other.using(name="other")))


class Unmade:
    """Its schema cannot be made, in a way of its own."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        raise RuntimeError("not today")


def test_a_tool_whose_schema_cannot_be_made_is_refused_with_phase_and_tool() -> None:
    @tool
    async def takes(unmade: Unmade) -> None: ...

    with pytest.raises(TypeError, match=r"pipeline 'p', phase 'a': no schema .* of tool 'takes'.*not today"):
        Pipeline("p", Phase("a", takes))

    @tool
    async def fields(x: typing.ClassVar[int]) -> None: ...

    with pytest.raises(TypeError, match=r"pipeline 'p', phase 'a': tool 'fields', parameter 'x': no schema"):
        Pipeline("p", Phase("a", fields))


# --- async functions where plain ones are wanted


class AsyncWhen:
    async def __call__(self, x: int) -> bool:
        return False


async def says_no(x: int) -> bool:
    return False


@pytest.mark.parametrize("when", [says_no, AsyncWhen()])
def test_a_when_that_nobody_would_await_is_refused(when: Any) -> None:
    with pytest.raises(TypeError, match="'a': when= is a sync function"):
        Phase("a", anything, when=when)


@pytest.mark.parametrize("key", [says_no, AsyncWhen()])
def test_a_key_that_nobody_would_await_is_refused(key: Any) -> None:
    with pytest.raises(TypeError, match="key= is a plain function: nobody would await"):
        Pipeline("p", Phase("a", anything), key=key)


async def test_one_that_is_async_in_disguise_fails_the_item() -> None:
    disguised = Phase("a", anything, when=lambda x: says_no(x + 0))
    async with ServiceManager(log=None) as manager:
        report = await manager.run(Pipeline("p", disguised), [{"x": 1}])
        assert "so it is async: when= is a plain function" in str(report.failures[0].error)
        report = await manager.run(Pipeline("p", Phase("a", anything), key=lambda item: says_no(1)), [{"x": 1}])
        assert "so it is async: key= is a plain function" in str(report.failures[0].error)
        with pytest.raises(TypeError, match="so it is async"):
            await manager.run(Pipeline("p", Phase("a", anything)), [{"x": 1}], on_progress=lambda _: says_no(1))


# --- names


@pytest.mark.parametrize("source", ["", ".", "a.", ".a", "a..b"])
def test_a_source_with_an_empty_part_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"phase 'b': bind=.* one of them is empty"):
        Phase("b", anything, bind={"x": source})


async def test_an_input_with_a_default_takes_no_element_that_is_declared_later() -> None:
    @tool
    async def whole(path: str, chunk: str = "none") -> str:
        return path + chunk

    @tool
    async def chunks(whole: str, chunk: str = "own") -> list[str]:
        return [whole, chunk]

    @tool
    async def each(chunk: str = "none") -> str:
        return chunk

    phases = [Phase("whole", whole), Phase("chunks", chunks, expand="chunk"), Phase("each", each)]
    async with ServiceManager(log=None) as manager:
        report = await manager.run(Pipeline("p", *phases), [{"path": "a-"}], keep="all")
    assert report.outcomes[0].value == ["a-none", "own"]


def test_a_value_below_a_dot_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(PipelineError, match=r"dict has no 'txt' \(of 'txt'\); did you mean 'text'"):
        follow({"text": 1, 3: 4}, ("txt",))
    with pytest.raises(PipelineError, match=r"Classed has no 'paht' \(of 'paht.x'\); did you mean 'path'"):
        follow(Classed(Path("a")), ("paht", "x"))


def test_two_expansions_that_wait_for_each_other_are_refused_and_told_how() -> None:
    phases = [
        Phase("rows", anything, expand="row", bind={"x": "path"}),
        Phase("cells", anything, expand="cell", bind={"x": "path"}),
        Phase("of_rows", anything, bind={"x": "row"}, after="cells"),
        Phase("of_cells", anything, bind={"x": "cell"}, after="of_rows"),
    ]
    with pytest.raises(ValueError, match=r"in a circle: (rows -> cells -> rows|cells -> rows -> cells); a phase that"):
        Pipeline("p", *phases)
    Pipeline("p", *phases[:3])


def test_an_expansion_that_needs_its_own_collect_by_others_is_told_of_that() -> None:
    phases = [
        Phase("rows", anything, expand="row", bind={"x": "path"}),
        Phase("sum", anything, bind={"x": "row"}, collect="row"),
        Phase("mean", anything, bind={"x": "sum"}),
        Phase("share", anything, bind={"x": "row", "y": "mean"}),
        Phase("cells", anything, expand="cell", bind={"x": "mean"}),
    ]
    with pytest.raises(ValueError, match=r"phase 'rows': what runs per 'row' needs .*collects 'row' itself"):
        Pipeline("p", *phases)


# --- collects whose inputs are annotated further


@pytest.mark.parametrize(
    "kind",
    [
        list[Outcome[int]],
        list[Outcome[int]] | None,
        Annotated[list[Outcome[int]], "said"],
        Annotated[list[Outcome[int]] | None, "said"],
        tuple[Outcome[int], ...],
    ],
)
@pytest.mark.parametrize("batch", [None, 2])
async def test_outcomes_are_seen_whatever_else_an_annotation_says(kind: Any, batch: int | None) -> None:
    @tool
    async def parts(x: int) -> list[int]:
        return list(range(x))

    @tool
    async def odd(part: int) -> int:
        if part % 2:
            raise ValueError(part)
        return part

    async def judge(found: Any) -> Any:
        rows = [found] if batch is None else found
        judged = [[one.status for one in row] for row in rows]
        return judged[0] if batch is None else judged

    judge.__annotations__["found"] = kind if batch is None else list[kind]
    pipeline = Pipeline(
        "p",
        Phase("parts", parts, expand="part"),
        Phase("odd", odd),
        Phase("judge", tool(judge), bind={"found": "odd"}, collect="part", batch=batch),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 2}, {"x": 0}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [["succeeded", "failed"], []]
