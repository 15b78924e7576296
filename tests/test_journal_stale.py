"""What was recorded before something that it comes after ran again is not used any more, however that run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kgas_async import KGASTool, Outcome, Phase, Pipeline, RunReport, ServiceManager, ToolAdapter, tool

written: list[str] = []
tables: list[list[str]] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def _nothing_is_written() -> None:
    written.clear()
    tables.clear()
    broken.clear()


class Write(KGASTool):
    """Puts something into the world that is no result."""

    async def execute_async(self, *, text: str) -> None:
        written.append(text)


@tool
async def count() -> int:
    if "count" in broken:
        raise ConnectionError("the server is down")
    return len(written)


@tool
async def names() -> list[str]:
    if "names" in broken:
        raise ConnectionError("the server is down")
    return list(written)


@tool
async def look(name: str) -> str:
    return name


def versioned(version: str) -> Write:
    made = Write()
    made.version = version
    return made


async def run(pipeline: Pipeline, path: Path, *texts: str, **options: Any) -> RunReport:
    async with ServiceManager(log=None) as manager:
        source = [{"text": text} for text in texts]
        return await manager.run(pipeline, source, journal=path / "run.db", keep="all", **options)


def per_item(version: str) -> Pipeline:
    return Pipeline(
        "items", Phase("write", versioned(version)), Phase("count", count, after="write"),
        Phase("again", count.using(name="again"), after="count"), item=["text"], key="text",
    )  # fmt: skip


async def test_what_failed_after_something_that_ran_anew_is_not_taken_from_before(tmp_path: Path) -> None:
    first = await run(per_item("1"), tmp_path, "a")
    assert first.outcomes[0].value == {"write": None, "count": 1, "again": 1}
    broken.add("count")
    assert (await run(per_item("2"), tmp_path, "a")).failed == 1
    broken.clear()
    third = await run(per_item("2"), tmp_path, "a")
    assert {name: one.status for name, one in third.outcomes[0].phases.items()} == {
        "write": "reused", "count": "succeeded", "again": "succeeded",
    }  # fmt: skip
    assert third.outcomes[0].value == {"write": None, "count": 2, "again": 2}
    assert (await run(per_item("2"), tmp_path, "a")).reused == 1


PER_RUN = Pipeline(
    "run", Phase("write", versioned("1")), Phase("count", count, after="write", collect=True), item=["text"], key="text"
)


async def test_what_runs_once_per_run_is_not_of_a_run_before_new_items(tmp_path: Path) -> None:
    assert (await run(PER_RUN, tmp_path, "a")).results == {"count": 1}
    broken.add("count")
    assert "count" in (await run(PER_RUN, tmp_path, "a", "b")).errors
    broken.clear()
    assert (await run(PER_RUN, tmp_path, "a", "b")).results == {"count": 2}
    assert (await run(PER_RUN, tmp_path, "a", "b")).results == {"count": 2}


async def test_what_runs_once_per_run_is_not_of_a_run_with_other_items(tmp_path: Path) -> None:
    async def counted(*texts: str, **options: Any) -> Any:
        report = await run(PER_RUN, tmp_path, *texts, **options)
        return report.results["count"], report.reused

    assert await counted("a", "b") == (2, 0)
    written.remove("b")
    assert await counted("a") == (1, 1)
    written.append("b")
    assert await counted("a", "b") == (2, 2)
    written.append("by somebody else")
    assert await counted("b", "a") == (2, 2)  # they are the same: what is recorded is good
    assert await counted("b", "a", "new", retry="failed") == (2, 2)


async def test_what_comes_after_that_is_not_either(tmp_path: Path) -> None:
    one = Pipeline(
        "run", Phase("write", versioned("1")), Phase("count", count, after="write", collect=True),
        Phase("names", names, after="count"), item=["text"], key="text",
    )  # fmt: skip
    assert (await run(one, tmp_path, "a", "b")).results == {"count": 2, "names": ["a", "b"]}
    written.remove("b")
    assert (await run(one, tmp_path, "a")).results == {"count": 1, "names": ["a"]}


def expanding(version: str) -> Pipeline:
    return Pipeline(
        "expanding", Phase("write", versioned(version)), Phase("names", names, after="write", expand="name"),
        Phase("look", look), item=["text"], key="text",
    )  # fmt: skip


async def test_an_expansion_is_not_of_a_run_before(tmp_path: Path) -> None:
    assert (await run(expanding("1"), tmp_path, "a")).outcomes[0].unwrap()["look"] == ["a"]
    broken.add("names")
    assert (await run(expanding("2"), tmp_path, "a")).failed == 1
    broken.clear()
    assert (await run(expanding("2"), tmp_path, "a")).outcomes[0].unwrap()["look"] == ["a", "a"]


@tool
def letters(text: str) -> list[str]:
    return list(text)


async def test_only_the_elements_whose_own_ran_anew_forget(tmp_path: Path) -> None:
    def pipeline() -> Pipeline:
        return Pipeline(
            "elements", Phase("letters", letters, expand="letter"),
            Phase("write", versioned("1"), bind={"text": "letter"}), Phase("count", count, after="write"),
            item=["text"], key=lambda item: "only",
        )  # fmt: skip

    async def phases(text: str) -> Any:
        return (await run(pipeline(), tmp_path, text)).outcomes[0].phases["count"]

    assert [one.status for one in await phases("ab")] == ["succeeded", "succeeded"]
    broken.add("count")
    assert [one.status for one in await phases("ac")] == ["reused", "failed"]
    broken.clear()
    assert [one.status for one in await phases("ac")] == ["reused", "succeeded"]


async def test_a_collect_that_takes_nothing_is_not_of_other_elements(tmp_path: Path) -> None:
    one = Pipeline(
        "collected", Phase("letters", letters, expand="letter"),
        Phase("write", versioned("1"), bind={"text": "letter"}), Phase("count", count, after="write", collect="letter"),
        item=["text"], key=lambda item: "only",
    )  # fmt: skip

    async def counted(text: str) -> Any:
        outcome = (await run(one, tmp_path, text)).outcomes[0]
        return outcome.value["count"], [one.status for one in outcome.phases["write"]], outcome.phases["count"].status

    assert await counted("abc") == (3, ["succeeded"] * 3, "succeeded")
    written.remove("c")
    assert await counted("ab") == (2, ["reused"] * 2, "succeeded")
    assert await counted("ab") == (2, ["reused"] * 2, "reused")
    broken.add("count")
    written.append("c")
    assert (await run(one, tmp_path, "abc")).failed == 1
    broken.clear()
    assert await counted("abc") == (3, ["reused"] * 3, "succeeded")


@tool
async def same(text: str) -> str:
    return "same"


async def test_what_only_comes_after_is_not_of_before_anything_above_it_ran(tmp_path: Path) -> None:
    def pipeline(version: str) -> Pipeline:
        return Pipeline(
            "above", Phase("same", ToolAdapter(same, name="same", version=version)),
            Phase("write", versioned("1"), bind={"text": "same"}), Phase("count", count, after="write"),
            item=["text"], key="text",
        )  # fmt: skip

    def statuses(report: RunReport) -> Any:
        return {name: one.status for name, one in report.outcomes[0].phases.items()}

    await run(pipeline("1"), tmp_path, "a")
    anew = {"same": "succeeded", "write": "reused", "count": "succeeded"}
    assert statuses(await run(pipeline("2"), tmp_path, "a")) == anew
    assert set(statuses(await run(pipeline("2"), tmp_path, "a")).values()) == {"reused"}


@tool
async def pieces(text: str) -> Any:
    return list(text)


async def test_how_many_elements_there_were_is_no_value_once_nothing_expands(tmp_path: Path) -> None:
    async def value(**options: Any) -> Any:
        one = Pipeline("turned", Phase("pieces", pieces, **options), item=["text"], key="text")
        return (await run(one, tmp_path, "abc")).outcomes[0].value

    assert await value(expand="piece") == ["a", "b", "c"]
    assert await value() == ["a", "b", "c"]
    assert await value(expand="piece") == ["a", "b", "c"]


@tool
async def fails(text: str) -> str:
    raise ConnectionError("the server is down")


@tool
async def who(ends: list[Outcome[str]]) -> list[str]:
    return [f"{one.index} {one.key}" for one in ends]


async def test_outcomes_of_other_items_are_other_inputs(tmp_path: Path) -> None:
    one = Pipeline(
        "who", Phase("fails", fails), Phase("who", who, bind={"ends": "fails"}, collect=True), item=["text"], key="text"
    )
    assert (await run(one, tmp_path, "a", "b")).results == {"who": ["0 a", "1 b"]}
    assert (await run(one, tmp_path, "a", retry="none")).results == {"who": ["0 a"]}
    assert (await run(one, tmp_path, "b", retry="none")).results == {"who": ["0 b"]}
    assert (await run(one, tmp_path, "b", "a", retry="none")).results == {"who": ["0 b", "1 a"]}
    assert (await run(one, tmp_path, "a", "b", retry="none")).results == {"who": ["0 a", "1 b"]}
