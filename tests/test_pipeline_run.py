"""Pipelines in motion: order, independence of items and phases, failures, sources, run-level phases, reports."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from kgas_async import CallFailed, Phase, Pipeline, PipelineError, Policy, Retry, RunReport, ServiceManager, tool
from kgas_async.testing import explore


@tool
async def half(x: int) -> float:
    await checkpoint()
    if x % 10 == 3:
        raise ValueError(f"no {x}")
    return x / 2


@tool
async def plus(half: float, x: int) -> float:
    await checkpoint()
    return half + x


@tool
def minus(half: float, x: int) -> float:
    return half - x


@tool
async def same(x: Any) -> Any:
    await checkpoint()
    return x


@tool
async def total(values: list[float]) -> float:
    return sum(values)


@tool
async def forever(x: Any = None) -> None:
    await anyio.sleep_forever()


def numbers(count: int) -> Iterator[dict[str, int]]:
    return ({"x": n} for n in range(count))


def kept(report: RunReport) -> list[Any]:
    return [outcome.value for outcome in report.outcomes]


# --- order and independence


@pytest.mark.parametrize("in_flight", [1, 4, 100])
async def test_outcomes_come_in_source_order_with_the_value_of_the_only_leaf(in_flight: int) -> None:
    pipeline = Pipeline("p", Phase("half", half), Phase("plus", plus))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, numbers(200), in_flight=in_flight, keep="all")
    assert [outcome.index for outcome in report.outcomes] == list(range(200))
    assert kept(report) == [None if n % 10 == 3 else 1.5 * n for n in range(200)]
    assert (report.total, report.succeeded, report.failed) == (200, 180, 20)


async def test_several_leaves_give_a_dict_by_leaf() -> None:
    pipeline = Pipeline("p", Phase("half", half), Phase("plus", plus), Phase("minus", minus))
    async with ServiceManager(threads=2) as manager:
        report = await manager.run(pipeline, numbers(3), keep="all")
    assert kept(report) == [{"plus": 1.5 * n, "minus": -0.5 * n} for n in range(3)]
    assert report.outcomes[2].phases["half"].value == 1.0


async def test_a_failure_skips_what_needs_it_and_nothing_else() -> None:
    ran: list[str] = []

    @tool
    async def notes(x: int) -> int:
        ran.append(f"other {x}")
        return x

    pipeline = Pipeline("p", Phase("half", half), Phase("plus", plus), Phase("other", notes))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, numbers(4), keep="all", in_flight=1)
    outcome = report.outcomes[3]
    assert (outcome.status, outcome.failed_phase, outcome.value) == ("failed", "half", None)
    assert isinstance(outcome.error, CallFailed)
    assert {name: one.status for name, one in outcome.phases.items()} == {
        "half": "failed",
        "plus": "skipped",
        "other": "succeeded",
    }
    assert ran == [f"other {n}" for n in range(4)]


async def test_an_errors_notes_name_phase_and_item() -> None:
    pipeline = Pipeline("p", Phase("half", half), key="x")
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 13}])
    (failure,) = report.failures
    assert failure.key == "13"
    assert failure.error is not None
    assert failure.error.__cause__ is not None
    assert failure.error.__cause__.__notes__ == ["in tool 'half', phase 'half', item '13', attempt 1"]


async def test_after_orders_phases_without_data() -> None:
    story: list[str] = []

    @tool
    async def slow(x: int) -> None:
        for _ in range(5):
            await checkpoint()
        story.append("slow")

    @tool
    async def quick(x: int) -> None:
        story.append("quick")

    async with ServiceManager() as manager:
        await manager.run(Pipeline("p", Phase("slow", slow), Phase("quick", quick, after="slow")), numbers(1))
        assert story == ["slow", "quick"]


async def test_after_a_failed_phase_nothing_runs() -> None:
    ran = []

    @tool
    async def later(x: int) -> None:
        ran.append(x)

    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half), Phase("later", later, after="half")), numbers(5))
    assert sorted(ran) == [0, 1, 2, 4]
    assert report.failed == 1


@explore(seeds=3)
async def test_items_do_not_wait_for_each_other() -> None:
    @tool
    async def takes(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    pipeline = Pipeline("p", Phase("a", takes), Phase("b", takes, bind={"seconds": "a"}))
    came = []
    items = [{"seconds": 5}, {"seconds": 1}]
    async with ServiceManager() as manager, manager.stream(pipeline, items, ordered=False) as outcomes:
        async for outcome in outcomes:
            came.append((outcome.value, anyio.current_time()))
    assert came == [(1, pytest.approx(2)), (5, pytest.approx(10))]


async def test_a_phase_may_have_a_policy_of_its_own() -> None:
    tries: list[int] = []

    @tool
    async def moody(x: int) -> int:
        tries.append(x)
        if len(tries) < 3:
            raise OSError
        return x

    async with ServiceManager() as manager:
        pipeline = Pipeline("p", Phase("a", moody, policy=Policy(retry=Retry(5, wait=0))))
        report = await manager.run(pipeline, numbers(1), keep="all")
    assert report.outcomes[0].attempts == 3


# --- items


class Model(BaseModel):
    x: int
    name: str = "m"


@dataclasses.dataclass
class Row:
    x: int


@pytest.mark.parametrize("item", [{"x": 4}, Model(x=4), Row(4)], ids=["mapping", "model", "dataclass"])
@pytest.mark.parametrize("declared", [None, ["x"]])
async def test_items_are_mappings_models_or_dataclasses(item: Any, declared: Any) -> None:
    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half), item=declared, key="x"), [item], keep="all")
    assert kept(report) == [2.0]
    assert report.outcomes[0].key == "4"


@pytest.mark.parametrize("wrong", [7, "text", None, Row, ["x", 1]])
async def test_an_item_that_is_none_of_them_fails_alone(wrong: Any) -> None:
    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half)), [{"x": 2}, wrong, {"x": 4}], keep="all")
    assert kept(report) == [1.0, None, 2.0]
    assert isinstance(report.outcomes[1].error, PipelineError)
    assert "an item is a mapping" in str(report.outcomes[1].error)


async def test_a_first_item_without_an_assumed_field_stops_the_run_before_any_tool() -> None:
    ran = []

    @tool
    async def runs(y: int) -> None:
        ran.append(y)

    pipeline = Pipeline("p", Phase("early", runs), Phase("half", half))
    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match=r"'p': the first item has no field 'x'.*it has y.*declare\s+item="):
            await manager.run(pipeline, [{"y": 1}, {"y": 1, "x": 2}])
    assert ran == []


async def test_a_later_item_without_a_field_fails_alone() -> None:
    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half)), [{"x": 2}, {}, {"x": 4}], keep="all")
    assert kept(report) == [1.0, None, 2.0]
    assert "the item '1' has no field 'x'" in str(report.outcomes[1].error)


async def test_an_optional_input_takes_the_field_where_there_is_one() -> None:
    @tool
    async def greet(name: str, greeting: str = "hello") -> str:
        return f"{greeting} {name}"

    items = [{"name": "a"}, {"name": "b", "greeting": "hi"}]
    async with ServiceManager() as manager:
        for declared in (None, ["name", "greeting"]):
            report = await manager.run(Pipeline("p", Phase("greet", greet), item=declared), items, keep="all")
            assert kept(report) == ["hello a", "hi b"]


async def test_a_bind_with_dots_follows_attributes_and_keys() -> None:
    @tool
    async def made(x: int) -> Any:
        return {"row": Row(x), "deep": {"er": Model(x=x)}}

    binds = {"x": "made.row.x"}
    pipeline = Pipeline(
        "p",
        Phase("made", made),
        Phase("one", same, bind=binds),
        Phase("two", same.using(name="two"), bind={"x": "made.deep.er.name"}),
        Phase("bad", same.using(name="bad"), bind={"x": "made.deep.nothing"}),
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 5}], keep="all")
    (outcome,) = report.outcomes
    assert (outcome.phases["one"].value, outcome.phases["two"].value) == (5, "m")
    assert outcome.failed_phase == "bad"
    assert "dict has no 'nothing' (of 'deep.nothing')" in str(outcome.error)


# --- keys


async def test_a_key_is_a_field_or_a_function_and_by_default_the_index() -> None:
    async with ServiceManager() as manager:
        for key, expected in ((None, ["0", "1"]), ("x", ["7", "8"]), (lambda item: f"k{item['x']}", ["k7", "k8"])):
            pipeline = Pipeline("p", Phase("half", half), key=key)
            report = await manager.run(pipeline, [{"x": 7}, {"x": 8}], keep="all")
            assert [outcome.key for outcome in report.outcomes] == expected


async def test_two_items_in_flight_with_one_key_are_an_error_of_the_second() -> None:
    gate = anyio.Event()

    @tool
    async def gated(x: int) -> int:
        await gate.wait()
        return x

    pipeline = Pipeline("p", Phase("gated", gated), key="x")
    reports = []

    async def run(manager: ServiceManager) -> None:
        reports.append(await manager.run(pipeline, [{"x": 1}, {"x": 1}, {"x": 2}], keep="all", in_flight=3))

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(run, manager)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert [outcome.status for outcome in reports[0].outcomes] == ["succeeded", "failed", "succeeded"]
    assert "item 1 has the key '1' of another item in flight" in str(reports[0].outcomes[1].error)


async def test_a_key_may_come_again_when_its_item_has_ended() -> None:
    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half), key="x"), [{"x": 1}] * 3, in_flight=1)
    assert report.succeeded == 3  # memory is O(in flight)


async def test_a_first_item_without_the_key_ends_the_run_before_any_tool() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match="the first item has no field 'name', which is to be its key; it has x"):
            await manager.run(Pipeline("p", Phase("half", half), key="name"), [{"x": 1}])
        assert manager.statistics().tools["half"].calls == 0


@pytest.mark.parametrize("key", ["name", lambda item: item["name"], lambda item: item.get("name")])
async def test_an_item_without_a_key_fails_alone(key: Any) -> None:
    async with ServiceManager() as manager:
        items = [{"x": 1, "name": "one"}, {"x": 1}]
        report = await manager.run(Pipeline("p", Phase("half", half), key=key), items, keep="all")
    assert report.succeeded == 1
    outcome = report.outcomes[1]
    assert isinstance(outcome.error, PipelineError)
    assert "key" in str(outcome.error)


# --- sources


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_a_source_gave_before_it_raised_is_on_the_report_of_the_error(kind: str) -> None:
    def source() -> Iterator[dict[str, int]]:
        yield from numbers(20)
        raise OSError("disk gone")

    async def async_source() -> AsyncIterator[dict[str, int]]:
        for one in source():
            yield one

    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match="raised after 20 items") as caught:
            await manager.run(Pipeline("p", Phase("half", half)), source() if kind == "sync" else async_source())
    report = caught.value.report
    assert (report.total, report.succeeded, report.failed) == (20, 18, 2)
    assert isinstance(caught.value.__cause__, OSError)


async def test_an_endless_source_left_early_was_at_most_the_window_ahead() -> None:
    pulled = itertools.count()
    last = 0

    def source() -> Iterator[dict[str, int]]:
        nonlocal last
        for last in pulled:
            yield {"x": last}

    pipeline = Pipeline("p", Phase("same", same), Phase("again", same.using(name="again"), after="same"))
    async with ServiceManager() as manager:
        async with manager.stream(pipeline, source(), in_flight=5, ordered_window=12) as outcomes:
            seen = [(await anext(outcomes)).index for _ in range(50)]
        assert seen == list(range(50))
        assert last < 50 + 12
        assert not manager.calls


async def test_a_run_with_nothing_is_empty_and_well() -> None:
    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half)), [])
    assert report.ok
    assert (report.total, report.failures, report.results) == (0, [], {})
    report.raise_for_failures()
