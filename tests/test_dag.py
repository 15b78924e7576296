"""Branches of one item side by side, joins, `when`, order of declaration; what failure and skipping do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallSkipped,
    MemorySink,
    Outcome,
    Phase,
    Pipeline,
    PipelineError,
    ServiceManager,
    tool,
)


def adds(name: str, *inputs: str, fails: int | None = None, seen: list[str] | None = None) -> Any:
    """A tool that adds its inputs and the length of its name; fails where the sum is ``fails``."""

    @tool(name=name, params=list(inputs))
    async def add(**values: int) -> int:
        if seen is not None:
            seen.append(name)
        await checkpoint()
        total = sum(values.values())
        if total == fails:
            raise ValueError(name)
        return total + 1

    return add


async def run(pipeline: Pipeline, *values: int, in_flight: int = 10, **options: Any) -> list[Outcome[Any]]:
    async with ServiceManager(log=None, **options) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in values], in_flight=in_flight, keep="all")
    return report.outcomes


# --- side by side


def meeting_of(count: int) -> tuple[Callable[..., Any], list[str]]:
    """Tools that end only once ``count`` of them have begun."""
    begun: list[str] = []
    all_there = anyio.Event()

    def made(name: str) -> Any:
        @tool(name=name)
        async def meet(x: int) -> str:
            begun.append(name)
            if len(begun) == count:
                all_there.set()
            await all_there.wait()
            return name

        return meet

    return made, begun


async def test_phases_that_need_nothing_of_each_other_run_side_by_side() -> None:
    made, _ = meeting_of(3)
    pipeline = Pipeline("p", *(Phase(name, made(name)) for name in "abc"), item=["x"])
    (outcome,) = await run(pipeline, 1, in_flight=3)
    assert outcome.value == {"a": "a", "b": "b", "c": "c"}


async def test_branches_below_an_expansion_run_side_by_side_too() -> None:
    made, _ = meeting_of(4)

    @tool
    async def split(x: int) -> list[int]:
        return [1, 2]

    phases = [Phase("split", split, expand="part"), *(Phase(n, made(n), bind={"x": "part"}) for n in "ab")]
    (outcome,) = await run(Pipeline("p", *phases, item=["x"]), 1, in_flight=4)
    assert outcome.value == {"a": ["a", "a"], "b": ["b", "b"]}


async def test_one_worker_is_enough_for_any_number_of_branches() -> None:
    phases = [Phase(name, adds(name, "x")) for name in "abcdefgh"]
    outcomes = await run(Pipeline("p", *phases, item=["x"]), 1, 2, in_flight=1)
    assert [outcome.value for outcome in outcomes] == [dict.fromkeys("abcdefgh", x + 1) for x in (1, 2)]


async def test_a_join_waits_for_all_its_branches_and_runs_once() -> None:
    seen: list[str] = []
    pipeline = Pipeline(
        "p",
        Phase("a", adds("a", "x", seen=seen)),
        Phase("b", adds("b", "a", seen=seen)),
        Phase("c", adds("c", "a", seen=seen)),
        Phase("d", adds("d", "c", seen=seen)),
        Phase("e", adds("e", "a", "b", "d", seen=seen)),
        item=["x"],
    )
    (outcome,) = await run(pipeline, 1)
    assert outcome.value == 2 + 3 + 4 + 1
    assert sorted(seen) == list("abcde")
    assert seen[-1] == "e"


async def test_order_without_data_makes_a_join_too() -> None:
    seen: list[str] = []
    pipeline = Pipeline(
        "p",
        Phase("late", adds("late", "x", seen=seen), after=["a", "b"]),
        Phase("a", adds("a", "x", seen=seen)),
        Phase("b", adds("b", "x", seen=seen)),
        item=["x"],
    )
    await run(pipeline, 1)
    assert sorted(seen[:2]) == ["a", "b"]
    assert seen[2:] == ["late"]


async def test_phases_may_be_declared_in_any_order() -> None:
    pipeline = Pipeline(
        "p",
        Phase("sum", adds("sum", "parts"), bind={"parts": "total"}),
        Phase("total", adds("total", "x", "b")),
        Phase("b", adds("b", "x")),
        item=["x"],
    )
    (outcome,) = await run(pipeline, 1)
    assert outcome.value == (1 + 2) + 1 + 1


def test_an_input_with_a_default_takes_no_later_phase_of_its_name() -> None:
    @tool
    async def repeat(text: str, n: int = 1) -> str:
        return text * n

    @tool
    async def length(text: str) -> int:
        return len(text)

    pipeline = Pipeline("p", Phase("t", repeat), Phase("n", length, bind={"text": "t"}), item=["text"])
    assert [binding.parameter for binding in pipeline.plan.phases["t"].bindings] == ["text"]


# --- failures


async def test_a_failed_branch_leaves_the_others_and_what_needs_it_is_not_run() -> None:
    seen: list[str] = []
    pipeline = Pipeline(
        "p",
        Phase("bad", adds("bad", "x", fails=1, seen=seen)),
        Phase("after_bad", adds("after_bad", "bad", seen=seen)),
        Phase("good", adds("good", "x", seen=seen)),
        Phase("both", adds("both", "bad", "good", seen=seen)),
        item=["x"],
    )
    first, second = await run(pipeline, 1, 2)
    assert (first.status, first.failed_phase, first.value) == ("failed", "bad", None)
    assert first.phases["good"].value == 2
    assert first.phases["after_bad"].status == first.phases["both"].status == "skipped"
    assert isinstance(first.phases["both"].error, CallSkipped)
    assert second.ok
    assert sorted(seen) == sorted(["bad", "good", "bad", "good", "after_bad", "both"])


@pytest.mark.parametrize("order", [("slow", "fast"), ("fast", "slow")])
async def test_of_several_failures_the_first_as_declared_is_the_items(order: tuple[str, str]) -> None:
    failed_fast = anyio.Event()

    @tool
    async def fast(x: int) -> None:
        failed_fast.set()
        raise ValueError("fast")

    @tool
    async def slow(x: int) -> None:
        await failed_fast.wait()
        raise ValueError("slow")

    tools = {"fast": fast, "slow": slow}
    (outcome,) = await run(Pipeline("p", *(Phase(name, tools[name]) for name in order), item=["x"]), 1)
    assert outcome.failed_phase == order[0]
    assert order[0] in str(outcome.error)


# --- when


def even(x: int) -> bool:
    return x % 2 == 0


async def test_when_skips_a_phase_and_what_needs_it_and_that_is_no_failure() -> None:
    sink = MemorySink()
    pipeline = Pipeline(
        "p", Phase("maybe", adds("maybe", "x"), when=even), Phase("then", adds("then", "maybe")), item=["x"]
    )
    async with ServiceManager(log=None, evidence=sink) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in range(4)], keep="all")
        assert manager.statistics().tools["maybe"].skipped == 2
    assert [outcome.status for outcome in report.outcomes] == ["succeeded", "skipped"] * 2
    assert [outcome.value for outcome in report.outcomes] == [2, None, 4, None]
    assert (report.succeeded, report.skipped, report.failed, report.ok) == (2, 2, 0, True)
    assert report.outcomes[1].phases["maybe"].status == report.outcomes[1].phases["then"].status == "skipped"
    assert isinstance(report.outcomes[1].error, CallSkipped)
    ends = [(one["item"], one["event"]) for one in sink.records if one["event"] in ("call.skipped", "call.succeeded")]
    assert sorted(ends) == sorted(
        [(i, "call.succeeded") for i in ("0", "2") for _ in range(2)] + [(i, "call.skipped") for i in ("1", "3")]
    )


async def test_an_item_of_which_one_leaf_was_skipped_succeeds_with_the_others() -> None:
    pipeline = Pipeline("p", Phase("a", adds("a", "x"), when=even), Phase("b", adds("b", "x")), item=["x"])
    outcomes = await run(pipeline, 0, 1)
    assert [outcome.value for outcome in outcomes] == [{"a": 1, "b": 1}, {"b": 2}]


async def test_a_join_of_a_skipped_and_a_failed_branch_has_failed() -> None:
    pipeline = Pipeline(
        "p",
        Phase("no", adds("no", "x"), when=lambda x: False),
        Phase("bad", adds("bad", "x", fails=1)),
        Phase("both", adds("both", "no", "bad")),
        item=["x"],
    )
    first, second = await run(pipeline, 1, 2)
    assert (first.status, first.failed_phase) == ("failed", "bad")
    assert second.status == "skipped"


async def test_skipped_elements_are_left_out_of_their_collect_and_lose_nothing() -> None:
    @tool
    async def split(x: int) -> list[int]:
        return list(range(x))

    @tool
    async def join(parts: list[Any]) -> list[Any]:
        return parts

    pipeline = Pipeline(
        "p",
        Phase("split", split, expand="part"),
        Phase("each", adds("each", "part"), when=lambda part: part % 2 == 0),
        Phase("join", join, collect="part", bind={"parts": "each"}),
        Phase("all", join.using(name="all"), collect=True, bind={"parts": "join"}),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 5}, {"x": 1}, {"x": 0}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [[1, 3, 5], [1], []]
    assert report.results == {"all": [[1, 3, 5], [1], []]}
    assert report.missing == {}


async def test_skipped_items_are_left_out_of_a_run_level_collect_and_are_not_missing() -> None:
    @tool
    async def all_of(values: list[int]) -> list[int]:
        return values

    pipeline = Pipeline(
        "p",
        Phase("maybe", adds("maybe", "x", fails=4), when=even),
        Phase("all", all_of, collect=True, bind={"values": "maybe"}),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in range(6)])
    assert report.results == {"all": [1, 3]}
    assert report.missing == {"all": 1}


async def test_an_expansion_that_is_skipped_skips_its_elements_and_their_collect() -> None:
    @tool
    async def split(x: int) -> list[int]:
        return [x]

    pipeline = Pipeline(
        "p",
        Phase("split", split, expand="part", when=even),
        Phase("each", adds("each", "part")),
        Phase("n", adds("n", "parts"), collect="part", bind={"parts": "each"}, when=lambda parts: False),
        item=["x"],
    )
    assert [outcome.status for outcome in await run(pipeline, 0, 1)] == ["skipped", "skipped"]


async def test_a_when_that_raises_fails_its_item_alone() -> None:
    pipeline = Pipeline("p", Phase("a", adds("a", "x"), when=lambda x: 1 / x), item=["x"])
    first, second = await run(pipeline, 0, 1)
    assert isinstance(first.error, PipelineError)
    assert isinstance(first.error.__cause__, ZeroDivisionError)
    assert (first.status, first.failed_phase) == ("failed", "a")
    assert second.ok


async def test_when_may_look_at_some_inputs_or_at_all() -> None:
    def all_of(**inputs: int) -> bool:
        return inputs == {"x": 1, "b": 2}

    def some(b: int, unknown: int = 3) -> bool:
        return b + unknown == 5

    for when in (all_of, some):
        pipeline = Pipeline("p", Phase("b", adds("b", "x")), Phase("a", adds("a", "x", "b"), when=when), item=["x"])
        (outcome,) = await run(pipeline, 1)
        assert outcome.value == 4


async def test_a_run_level_phase_may_be_skipped_by_when() -> None:
    @tool
    async def total(values: list[int]) -> int:
        return sum(values)

    pipeline = Pipeline(
        "p",
        Phase("a", adds("a", "x")),
        Phase("total", total, collect=True, bind={"values": "a"}, when=lambda values: len(values) > 1),
        Phase("then", adds("then", "total")),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        few = await manager.run(pipeline, [{"x": 1}])
        many = await manager.run(pipeline, [{"x": 1}, {"x": 2}])
    assert few.results == {}
    assert few.ok
    assert many.results == {"total": 5, "then": 6}


# --- once per run


async def test_run_level_phases_that_need_nothing_of_each_other_run_side_by_side() -> None:
    begun: list[str] = []
    both = anyio.Event()

    def meets(name: str) -> Any:
        @tool(name=name)
        async def meet(values: list[int]) -> int:
            begun.append(name)
            if len(begun) == 2:
                both.set()
            await both.wait()
            return sum(values)

        return meet

    pipeline = Pipeline(
        "p",
        Phase("end", adds("end", "one", "two")),
        *(Phase(name, meets(name), collect=True, bind={"values": "a"}) for name in ("one", "two")),
        Phase("a", adds("a", "x")),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 1}, {"x": 2}])
    assert report.results == {"one": 5, "two": 5, "end": 11}


async def test_what_a_run_level_collect_does_not_need_may_fail() -> None:
    @tool
    async def all_of(values: list[int]) -> list[int]:
        return values

    pipeline = Pipeline(
        "p",
        Phase("good", adds("good", "x")),
        Phase("audit", adds("audit", "x", fails=2)),
        Phase("all", all_of, collect=True, bind={"values": "good"}),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in (1, 2, 3)])
    assert (report.succeeded, report.failed) == (2, 1)
    assert report.results == {"all": [2, 3, 4]}
    assert report.missing == {}


# --- lists of outcomes


async def test_a_collect_that_takes_outcomes_sees_what_failed() -> None:
    @tool
    async def split(x: int) -> list[int]:
        return list(range(x))

    @tool
    async def judge(found: list[Outcome[Any]]) -> list[str]:
        return [one.status for one in found]

    pipeline = Pipeline(
        "p",
        Phase("split", split, expand="part"),
        Phase("each", adds("each", "part", fails=1), when=lambda part: part != 2),
        Phase("judge", judge, collect="part", bind={"found": "each"}),
        Phase("judges", judge.using(name="judges"), collect=True, bind={"found": "judge"}),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 4}, 5, {"x": 0}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [["succeeded", "failed", "skipped", "succeeded"], None, []]
    assert report.outcomes[0].ok
    assert report.results == {"judges": ["succeeded", "failed", "succeeded"]}
    assert report.missing == {}


def test_outcomes_are_taken_of_phases_alone() -> None:
    @tool
    async def judge(found: list[Outcome[int]]) -> int:
        return 0

    with pytest.raises(TypeError, match="'judge': input 'found' takes outcomes, which phases have; 'x' is none"):
        Pipeline("p", Phase("a", adds("a", "x")), Phase("judge", judge, collect=True, bind={"found": "x"}), item=["x"])
    with pytest.raises(TypeError, match=r"'a\.b' is a part of one"):
        Pipeline("p", Phase("a", adds("a", "x")), Phase("judge", judge, collect=True, bind={"found": "a.b"}))


# --- what is wrong with a declaration

WRONG: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("when that is async", lambda: Phase("a", adds("a", "x"), when=checkpoint), TypeError, "when= is a sync function"),
    ("when that is none", lambda: Phase("a", adds("a", "x"), when=3), TypeError, "when= is a sync function.*not 3"),
    (
        "when that takes what there is not",
        lambda: Pipeline("p", Phase("a", adds("a", "x"), when=lambda y: True), item=["x"]),
        TypeError,
        "when= takes 'y', which is no bound input of the phase; there are x",
    ),
    (
        "a longer circle",
        lambda: Pipeline("p", Phase("a", adds("a", "c")), Phase("b", adds("b", "a")), Phase("c", adds("c", "b"))),
        ValueError,
        "phases need each other in a circle: a -> c -> b -> a",
    ),
    ("bind that is a list", lambda: Phase("a", adds("a", "x"), bind=["x"]), TypeError, "bind= is a mapping"),
    ("bind to a phase", lambda: Phase("a", adds("a", "x"), bind={"x": 3}), TypeError, r"'x': \.\.\.\} names a source"),
]


@pytest.mark.parametrize(("make", "kind", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_declaration_is_refused(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
