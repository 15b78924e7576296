"""Expansions: one result becomes elements, pulled lazily where they are made; nested ones; and their collects."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallFailed,
    CallSkipped,
    Outcome,
    Phase,
    Pipeline,
    PipelineError,
    RunReport,
    ServiceManager,
    tool,
)


@tool
async def upto(n: int) -> list[int]:
    await checkpoint()
    return list(range(n))


@tool
async def tenfold(element: int) -> int:
    await checkpoint()
    if element == 3:
        raise ValueError("no 3")
    return element * 10


@tool
async def added(values: list[int]) -> int:
    await checkpoint()
    return sum(values)


@tool
async def plus(element: int, n: int) -> int:
    return element + n


@tool
async def forever(element: Any = None) -> None:
    await anyio.sleep_forever()


UPTO = Phase("upto", upto, expand="element")
TENFOLD = Phase("tenfold", tenfold)


def adds(**options: Any) -> Phase:
    return Phase("added", added, bind={"values": "tenfold"}, collect="element", **options)


async def run(pipeline: Pipeline, *sizes: int, **options: Any) -> list[Outcome[Any]]:
    async with ServiceManager(threads=4) as manager:
        report: RunReport = await manager.run(pipeline, ({"n": size} for size in sizes), keep="all", **options)
    return report.outcomes


# --- values


@pytest.mark.parametrize("in_flight", [1, 2, 100])
async def test_a_collect_gives_each_parent_its_elements_results_in_order(in_flight: int) -> None:
    seen: dict[str, list[int]] = {}

    @tool
    async def notes(n: int, tenfold: list[int], element: list[int]) -> int:
        seen[str(n)] = [*element, *tenfold]
        return n

    @tool
    async def jumbled(element: int) -> int:
        for _ in range(element * 7 % 5):
            await checkpoint()
        return element * 10

    pipeline = Pipeline("p", UPTO, Phase("tenfold", jumbled), Phase("notes", notes, collect="element"), item=["n"])
    outcomes = await run(pipeline, *range(8), in_flight=in_flight)
    assert [outcome.value for outcome in outcomes] == list(range(8))
    assert seen == {str(n): [*range(n), *(10 * m for m in range(n))] for n in range(8)}


async def test_a_leaf_below_an_expansion_gives_a_list_in_order() -> None:
    outcomes = await run(Pipeline("p", UPTO, Phase("plus", plus)), 4, 0, 2)
    assert [outcome.value for outcome in outcomes] == [[4, 5, 6, 7], [], [2, 3]]
    assert [one.value for one in outcomes[0].phases["plus"]] == [4, 5, 6, 7]
    assert [one.key for one in outcomes[0].phases["plus"]] == ["0/0", "0/1", "0/2", "0/3"]


async def test_an_expansion_that_nobody_takes_gives_its_elements() -> None:
    outcomes = await run(Pipeline("p", UPTO), 3)
    assert outcomes[0].value == [0, 1, 2]


async def test_an_expansion_into_nothing_is_collected_all_the_same() -> None:
    outcomes = await run(Pipeline("p", UPTO, TENFOLD, adds()), 0, 2)
    assert [outcome.value for outcome in outcomes] == [0, 10]


async def test_elements_may_use_what_their_item_has_and_what_earlier_phases_gave() -> None:
    @tool
    async def base(n: int) -> int:
        return 100 * n

    @tool
    async def joined(element: int, base: int, n: int) -> tuple[int, int, int]:
        return element, base, n

    (outcome,) = await run(Pipeline("p", Phase("base", base), UPTO, Phase("joined", joined), item=["n"]), 2)
    assert outcome.value == [(0, 200, 2), (1, 200, 2)]


async def test_an_expansion_waits_for_what_its_elements_need_of_their_item() -> None:
    @tool
    async def base(n: int) -> int:
        return 100 * n

    @tool
    async def joined(element: int, base: int) -> tuple[int, int]:
        return element, base

    (outcome,) = await run(Pipeline("p", UPTO, Phase("base", base), Phase("joined", joined), item=["n"]), 2)
    assert outcome.value == [(0, 200), (1, 200)]


async def test_nested_expansions_are_collected_from_the_inside_out() -> None:
    inner = Phase("inner", upto.using(name="inner"), bind={"n": "element"}, expand="leaf")
    pipeline = Pipeline(
        "p",
        UPTO,
        inner,
        Phase("tens", tenfold, bind={"element": "leaf"}),
        Phase("sums", added, bind={"values": "tens"}, collect="leaf"),
        Phase("total", added.using(name="total"), bind={"values": "sums"}, collect="element"),
    )
    outcomes = await run(pipeline, *range(5))
    expected = [sum(10 * leaf for element in range(n) for leaf in range(element)) for n in range(4)]
    assert [outcome.value for outcome in outcomes[:4]] == expected
    assert [[one.key for one in outcome.phases["tens"]] for outcome in outcomes[2:4]] == [
        ["2/1/0"],
        ["3/1/0", "3/2/0", "3/2/1"],
    ]


async def test_two_expansions_side_by_side_keep_apart() -> None:
    other = Phase("other", upto.using(name="other"), expand="more")
    pipeline = Pipeline(
        "p",
        UPTO,
        other,
        Phase("plus", plus),
        Phase("plus_more", plus.using(name="plus_more"), bind={"element": "more"}),
        Phase("one", added, bind={"values": "plus"}, collect="element"),
        Phase("two", added.using(name="two"), bind={"values": "plus_more"}, collect="more"),
        item=["n"],
    )
    outcomes = await run(pipeline, 3)
    assert outcomes[0].value == {"one": 12, "two": 12}


async def test_a_run_level_phase_takes_what_was_collected_per_item() -> None:
    pipeline = Pipeline(
        "p", UPTO, TENFOLD, adds(), Phase("all", added.using(name="all"), bind={"values": "added"}, collect=True)
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, ({"n": n} for n in range(4)))
    assert report.results == {"all": 0 + 0 + 10 + 30}


# --- failures


async def test_half_a_document_is_no_document() -> None:
    (outcome,) = await run(Pipeline("p", UPTO, TENFOLD, adds()), 6)
    assert (outcome.status, outcome.failed_phase) == ("failed", "tenfold")
    assert isinstance(outcome.error, CallFailed)
    assert [one.status for one in outcome.phases["tenfold"]] == ["succeeded"] * 3 + ["failed"] + ["succeeded"] * 2
    skipped = outcome.phases["added"]
    assert skipped.status == "skipped"
    assert isinstance(skipped.error, CallSkipped)
    assert "1 of 6 elements of 'element' failed" in str(skipped.error)


async def test_a_collect_may_go_on_without_failed_elements() -> None:
    (outcome,) = await run(Pipeline("p", UPTO, TENFOLD, adds(missing="ignore")), 6)
    assert (outcome.status, outcome.value) == ("succeeded", 0 + 10 + 20 + 40 + 50)


async def test_what_a_collect_goes_on_without_does_not_excuse_other_phases() -> None:
    picky = tenfold.using(name="picky")
    pipeline = Pipeline("p", UPTO, Phase("plus", plus), Phase("picky", picky),
                        Phase("sum", added, bind={"values": "plus"}, collect="element", missing="ignore"))  # fmt: skip
    (outcome,) = await run(pipeline, 6)
    assert (outcome.status, outcome.failed_phase) == ("failed", "picky")


async def test_an_element_that_fails_uncollected_fails_its_item() -> None:
    (outcome,) = await run(Pipeline("p", UPTO, TENFOLD), 6)
    assert (outcome.status, outcome.failed_phase) == ("failed", "tenfold")


async def test_several_failed_elements_come_as_a_group() -> None:
    @tool
    async def breaks(element: int) -> int:
        raise ValueError(element)

    (outcome,) = await run(Pipeline("p", UPTO, Phase("breaks", breaks)), 3)
    assert isinstance(outcome.error, ExceptionGroup)
    assert len(outcome.error.exceptions) == 3


async def test_an_element_of_a_nested_expansion_that_fails_uncollected_fails_its_item() -> None:
    inner = Phase("inner", upto.using(name="inner"), bind={"n": "element"}, expand="leaf")
    pipeline = Pipeline("p", UPTO, inner, Phase("tens", tenfold, bind={"element": "leaf"}))
    outcomes = await run(pipeline, 4, 5)
    assert [(outcome.status, outcome.failed_phase) for outcome in outcomes] == [
        ("succeeded", None),
        ("failed", "tens"),
    ]


async def test_what_needs_a_failed_expansion_does_not_run() -> None:
    ran = []

    @tool
    async def breaks(n: int) -> list[int]:
        raise OSError("no elements")

    @tool
    async def collects(n: int, tenfold: list[int] | None = None) -> None:
        ran.append(tenfold)

    pipeline = Pipeline("p", Phase("upto", breaks, expand="element"), TENFOLD, Phase("c", collects, collect="element"))
    (outcome,) = await run(pipeline, 4)
    assert (outcome.status, outcome.failed_phase) == ("failed", "upto")
    assert ran == []
    assert outcome.phases["c"].status == "skipped"


async def test_elements_do_not_run_what_comes_after_a_failed_phase_of_their_item() -> None:
    ran = []

    @tool
    async def breaks(n: int) -> int:
        raise OSError("first")

    @tool
    async def later(element: int) -> None:
        ran.append(element)

    pipeline = Pipeline("p", Phase("breaks", breaks), UPTO, Phase("later", later, after="breaks"))
    (outcome,) = await run(pipeline, 3)
    assert ran == []
    assert [one.status for one in outcome.phases["later"]] == ["skipped"] * 3
    assert outcome.failed_phase == "breaks"


@pytest.mark.parametrize("result", ["text", b"bytes", {"a": 1}, 7, None])
async def test_what_is_no_sequence_of_elements_fails_its_item_with_the_reason(result: Any) -> None:
    @tool
    async def gives(n: int) -> Any:
        return result

    (outcome,) = await run(Pipeline("p", Phase("gives", gives, expand="element"), Phase("plus", plus)), 1)
    assert outcome.failed_phase == "gives"
    assert isinstance(outcome.error, PipelineError)
    assert "phase 'gives' expands its result, which must be an iterable" in str(outcome.error)


async def test_one_cancelled_element_is_gone_alone_and_its_parent_goes_on() -> None:
    gate = anyio.Event()

    @tool
    async def gated(element: int) -> int:
        await gate.wait()
        return element

    outcomes: list[Outcome[Any]] = []

    async def iterate(manager: ServiceManager, missing: Any) -> None:
        collect = Phase("added", added, bind={"values": "gated"}, collect="element", missing=missing)
        report = await manager.run(Pipeline("p", UPTO, Phase("gated", gated), collect), [{"n": 3}], keep="all")
        outcomes.extend(report.outcomes)

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(iterate, manager, "ignore")
        group.start_soon(iterate, manager, "skip")
        await anyio.wait_all_tasks_blocked()
        for call in list(manager.calls.values()):
            if call.index == 1:
                await manager.cancel(call.id)
        gate.set()
    by_status = {outcome.status: outcome for outcome in outcomes}
    assert by_status["succeeded"].value == 0 + 2
    assert by_status["cancelled"].failed_phase == "gated"


async def test_the_last_running_element_cancelled_alone_lets_the_collect_go_on() -> None:
    @tool
    async def stuck(element: int) -> int:
        if element == 2:
            await anyio.sleep_forever()
        return element

    outcomes: list[Outcome[Any]] = []

    async def iterate(manager: ServiceManager) -> None:
        collect = Phase("added", added, bind={"values": "stuck"}, collect="element", missing="ignore")
        report = await manager.run(Pipeline("p", UPTO, Phase("stuck", stuck), collect), [{"n": 3}], keep="all")
        outcomes.extend(report.outcomes)

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(iterate, manager)
        await anyio.wait_all_tasks_blocked()
        (last,) = manager.calls
        await manager.cancel(last)
    assert [(outcome.status, outcome.value) for outcome in outcomes] == [("succeeded", 1)]


async def test_cancelling_everything_gives_each_open_item_its_outcome() -> None:
    statuses: list[tuple[int, str]] = []

    async def iterate(manager: ServiceManager) -> None:
        pipeline = Pipeline("p", UPTO, Phase("f", forever), Phase("c", plus, bind={"element": "n"}, after="f"))
        async with manager.stream(pipeline, ({"n": n} for n in range(1, 100)), in_flight=5) as outcomes:
            with pytest.raises(PipelineError, match="before the end of the source"):
                async for outcome in outcomes:
                    statuses.append((outcome.index, outcome.status))

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(iterate, manager)
        await anyio.wait_all_tasks_blocked()
        opened = {call.item.partition("/")[0] for call in manager.calls.values() if call.item}
        await manager.cancel()
    assert statuses == [(int(index), "cancelled") for index in sorted(opened)]
