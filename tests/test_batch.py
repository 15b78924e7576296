"""Phases that run many items in one call: when a batch leaves, what its items get, what is on record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    InvalidInputs,
    MemorySink,
    Outcome,
    Phase,
    Pipeline,
    ServiceManager,
    check_cancelled,
    tool,
)
from kgas_async.testing import virtual_backend


class Doubler:
    """A tool that doubles lists, and remembers their lengths."""

    def __init__(self, wrong: int = 0) -> None:
        self.sizes: list[int] = []

        @tool
        async def double(xs: list[int]) -> list[int]:
            self.sizes.append(len(xs))
            await checkpoint()
            return [2 * x for x in xs][wrong:]

        self.tool = double


@tool
async def same(x: int) -> int:
    await checkpoint()
    return x


@tool
async def add_one(x: int) -> int:
    return x + 1


async def run(pipeline: Pipeline, items: Any, **options: Any) -> list[Outcome[Any]]:
    if isinstance(items, range):
        items = [{"x": x} for x in items]
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, items, keep="all", **options)
    return report.outcomes


def doubling(double: Any, size: int, **options: Any) -> Pipeline:
    return Pipeline(
        "p",
        Phase("same", same),
        Phase("double", double, bind={"xs": "same"}, batch=size, **options),
        Phase("then", add_one, bind={"x": "double"}),
        item=["x"],
    )


SIZES = [(10, 4, 4), (10, 4, 100), (3, 100, 100), (7, 1, 1), (0, 2, 2)]


@pytest.mark.parametrize(("count", "size", "in_flight"), SIZES)
async def test_a_batch_leaves_when_it_is_full_or_nothing_can_add_to_it(count: int, size: int, in_flight: int) -> None:
    doubler = Doubler()
    outcomes = await run(doubling(doubler.tool, size), range(count), in_flight=in_flight)
    assert [outcome.value for outcome in outcomes] == [2 * x + 1 for x in range(count)]
    full, rest = divmod(count, size)
    assert sorted(doubler.sizes, reverse=True) == [size] * full + ([rest] if rest else [])


@pytest.mark.parametrize("pauses", [True, False])
async def test_a_batch_that_is_not_full_leaves_as_an_async_source_ends(*, pauses: bool) -> None:
    doubler = Doubler()

    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"x": 4}
        if pauses:
            await checkpoint()

    pipeline = Pipeline("p", Phase("double", doubler.tool, bind={"xs": "x"}, batch=2))  # no call waits: one worker
    with anyio.fail_after(5):
        (outcome,) = await run(pipeline, source())
    assert outcome.value == 8


async def test_a_batch_does_not_wait_for_what_runs_downstream_of_it() -> None:
    doubler = Doubler()
    let_go = anyio.Event()

    @tool
    async def slow(x: int) -> int:
        if x == 0:
            await let_go.wait()
        return x

    pipeline = Pipeline(
        "p",
        Phase("double", doubler.tool, bind={"xs": "x"}, batch=2),
        Phase("slow", slow, bind={"x": "double"}),
        item=["x"],
    )
    items = [{"x": x} for x in range(3)]
    async with (
        ServiceManager(log=None) as manager,
        manager.stream(pipeline, items, in_flight=3, ordered=False) as outcomes,
    ):
        stream = aiter(outcomes)
        first = {(await anext(stream)).index, (await anext(stream)).index}
        let_go.set()
        last = (await anext(stream)).index
    assert (first, last) == ({1, 2}, 0)
    assert doubler.sizes == [2, 1]


async def test_a_window_that_is_full_lets_batches_leave() -> None:
    doubler = Doubler()
    pipeline = doubling(doubler.tool, 8)
    async with ServiceManager(log=None) as manager:
        items = ({"x": x} for x in range(20))
        async with manager.stream(pipeline, items, in_flight=8, ordered_window=3) as outcomes:
            values = [outcome.value async for outcome in outcomes]
    assert values == [2 * x + 1 for x in range(20)]
    assert max(doubler.sizes) <= 3


async def test_two_batches_in_a_row_cannot_wait_for_each_other() -> None:
    first, second = Doubler(), Doubler()
    pipeline = Pipeline(
        "p",
        Phase("first", first.tool.using(name="one"), bind={"xs": "x"}, batch=4),
        Phase("second", second.tool.using(name="two"), bind={"xs": "first"}, batch=3),
        item=["x"],
    )
    for in_flight in (4, 5, 50):
        outcomes = await run(pipeline, range(11), in_flight=in_flight)
        assert [outcome.value for outcome in outcomes] == [4 * x for x in range(11)]


async def test_elements_of_different_items_share_batches() -> None:
    doubler = Doubler()

    @tool
    async def split(x: int) -> list[int]:
        return list(range(x))

    @tool
    async def total(parts: list[int]) -> int:
        return sum(parts)

    pipeline = Pipeline(
        "p",
        Phase("split", split, expand="part"),
        Phase("double", doubler.tool, bind={"xs": "part"}, batch=5),
        Phase("total", total, collect="part", bind={"parts": "double"}),
        item=["x"],
    )
    outcomes = await run(pipeline, range(6), in_flight=6)
    assert [outcome.value for outcome in outcomes] == [x * (x - 1) for x in range(6)]
    assert max(doubler.sizes) == 5
    assert sum(doubler.sizes) == 15


async def test_a_batch_may_expand_and_may_collect() -> None:
    @tool
    async def spread(xs: list[int]) -> list[list[int]]:
        return [list(range(x)) for x in xs]

    @tool
    async def totals(lists: list[list[int]]) -> list[int]:
        return [sum(one) for one in lists]

    pipeline = Pipeline(
        "p",
        Phase("spread", spread, bind={"xs": "x"}, batch=2, expand="part"),
        Phase("one", add_one, bind={"x": "part"}),
        Phase("totals", totals, bind={"lists": "one"}, collect="part", batch=2),
        item=["x"],
    )
    outcomes = await run(pipeline, range(5), in_flight=4)
    assert [outcome.value for outcome in outcomes] == [x * (x + 1) // 2 for x in range(5)]


async def test_every_input_is_a_list_of_one_length() -> None:
    @tool
    def weigh(xs: list[int], ys: Sequence[int], factor: int = 10) -> list[int]:
        return [x * y * factor for x, y in zip(xs, ys, strict=True)]

    pipeline = Pipeline("p", Phase("weigh", weigh, bind={"xs": "x", "ys": "y"}, batch=3), item=["x", "y"])
    outcomes = await run(pipeline, [{"x": x, "y": x + 1} for x in range(5)], in_flight=3)
    assert [outcome.value for outcome in outcomes] == [x * (x + 1) * 10 for x in range(5)]


async def test_a_batch_leaves_after_its_wait_though_more_could_come() -> None:
    """In virtual time: the source gives one item a second, and takes ten for its last."""

    async def main() -> tuple[list[int], list[float]]:
        doubler = Doubler()
        ended: list[float] = []

        async def source() -> AsyncIterator[dict[str, int]]:
            for x in range(4):
                yield {"x": x}
                await anyio.sleep(1 if x < 2 else 10)

        pipeline = Pipeline("p", Phase("double", doubler.tool, bind={"xs": "x"}, batch=10, batch_wait=2.5), item=["x"])
        begun = anyio.current_time()
        async with ServiceManager(log=None) as manager, manager.stream(pipeline, source(), in_flight=10) as outcomes:
            async for _ in outcomes:
                ended.append(anyio.current_time() - begun)
        return doubler.sizes, ended

    for backend in ("asyncio", "trio"):
        library, options = virtual_backend(backend)
        sizes, ended = await anyio.to_thread.run_sync(
            lambda library=library, options=options: anyio.run(main, backend=library, backend_options=options)
        )
        assert sizes == [3, 1]
        assert [round(one, 3) for one in ended] == [2.5, 2.5, 2.5, 14.5]


# --- failures


async def test_an_exception_as_an_element_fails_its_item_alone() -> None:
    @tool
    async def picky(xs: list[int]) -> list[Any]:
        return [ValueError(f"no {x}") if x % 3 == 0 else x for x in xs]

    outcomes = await run(Pipeline("p", Phase("picky", picky, bind={"xs": "x"}, batch=4), item=["x"]), range(6))
    assert [outcome.value for outcome in outcomes] == [None, 1, 2, None, 4, 5]
    error = outcomes[3].error
    assert isinstance(error, CallFailed)
    assert isinstance(error.__cause__, ValueError)
    assert outcomes[3].failed_phase == "picky"


@pytest.mark.parametrize("wrong", [1, -1])
async def test_a_result_of_another_length_fails_all_of_the_batch(wrong: int) -> None:
    doubler = Doubler(wrong)
    outcomes = await run(doubling(doubler.tool, 3), range(3))
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3
    assert "results for 3 items" in str(outcomes[0].error)
    assert outcomes[0].failed_phase == "double"


@pytest.mark.parametrize("result", [None, 3, "abc", {"a": 1, "b": 2, "c": 3}, (x for x in range(3))])
async def test_a_result_that_is_no_list_fails_all_of_the_batch(result: Any) -> None:
    @tool
    async def odd(xs: list[int]) -> Any:
        return result

    outcomes = await run(Pipeline("p", Phase("odd", odd, bind={"xs": "x"}, batch=3), item=["x"]), range(3))
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3
    assert f"returned {type(result).__name__}, not a list of 3 results" in str(outcomes[0].error)


async def test_a_batch_that_raises_fails_its_items_and_no_others() -> None:
    @tool
    async def fragile(xs: list[int]) -> list[int]:
        if 2 in xs:
            raise OSError("disk")
        return xs

    outcomes = await run(
        Pipeline("p", Phase("fragile", fragile, bind={"xs": "x"}, batch=2), item=["x"]), range(6), in_flight=2
    )
    assert [outcome.status for outcome in outcomes] == ["succeeded"] * 2 + ["failed"] * 2 + ["succeeded"] * 2
    errors = [outcome.error for outcome in outcomes[2:4]]
    assert all(isinstance(error, CallFailed) and isinstance(error.__cause__, OSError) for error in errors)
    assert len({error.call_id for error in errors if isinstance(error, CallFailed)}) == 2


async def test_an_invalid_item_fails_alone_and_the_others_go_without_it() -> None:
    doubler = Doubler()
    items = [{"x": x} for x in (1, "two", 3, None)]
    outcomes = await run(Pipeline("p", Phase("d", doubler.tool, bind={"xs": "x"}, batch=4), item=["x"]), items)
    assert [outcome.value for outcome in outcomes] == [2, None, 6, None]
    assert isinstance(outcomes[1].error, InvalidInputs)
    assert doubler.sizes == [2]


async def test_the_timeout_and_the_tokens_are_the_batchs() -> None:
    inside = peak = 0

    @tool
    def slow(xs: list[int]) -> list[int]:
        nonlocal inside, peak
        inside += 1
        peak = max(peak, inside)
        try:
            while 0 in xs:
                check_cancelled()
        finally:
            inside -= 1
        return xs

    limited = slow.using(timeout=0.05, concurrency=1)
    pipeline = Pipeline("p", Phase("slow", limited, bind={"xs": "x"}, batch=2), item=["x"])
    outcomes = await run(pipeline, range(6), in_flight=6)
    assert [outcome.status for outcome in outcomes] == ["timed_out"] * 2 + ["succeeded"] * 4
    assert isinstance(outcomes[0].error, CallTimeout)
    assert peak == 1


async def test_a_phase_before_it_that_fails_or_is_skipped_does_not_hold_up_a_batch() -> None:
    doubler = Doubler()

    @tool
    async def some(x: int) -> int:
        if x == 1:
            raise ValueError
        return x

    pipeline = Pipeline(
        "p",
        Phase("some", some, when=lambda x: x != 2),
        Phase("d", doubler.tool, bind={"xs": "some"}, batch=10, when=lambda xs: xs != 3),
        item=["x"],
    )
    outcomes = await run(pipeline, range(6))
    assert [outcome.status for outcome in outcomes] == ["succeeded", "failed", "skipped", "skipped"] + ["succeeded"] * 2
    assert doubler.sizes == [3]


# --- cancellation


async def test_an_item_that_waits_for_its_batch_can_be_cancelled_alone() -> None:
    doubler = Doubler()
    gave, go_on = anyio.Event(), anyio.Event()

    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"x": 1}
        yield {"x": 2}
        gave.set()
        await go_on.wait()

    pipeline = Pipeline("p", Phase("d", doubler.tool, bind={"xs": "x"}, batch=5), item=["x"])
    async with ServiceManager(log=None) as manager, manager.stream(pipeline, source()) as outcomes:
        stream = aiter(outcomes)
        await gave.wait()
        waiting = [call for call in manager.calls.values() if call.name == "double"]
        assert [call.status for call in waiting] == ["waiting"] * 2
        assert await manager.cancel(waiting[0].id, "not this one")
        outcome = await anext(stream)
        assert (outcome.status, str(outcome.error).endswith("not this one")) == ("cancelled", True)
        assert isinstance(outcome.error, CallCancelled)
        go_on.set()
        assert (await anext(stream)).value == 4
    assert doubler.sizes == [1]


async def test_a_batch_that_is_cancelled_cancels_its_items_and_the_run_goes_on() -> None:
    begun = anyio.Event()

    @tool
    async def hangs(xs: list[int]) -> list[int]:
        if 0 in xs:
            begun.set()
            await anyio.sleep_forever()
        return xs

    pipeline = Pipeline("p", Phase("h", hangs, bind={"xs": "x"}, batch=2), item=["x"])
    items = [{"x": x} for x in range(4)]
    async with ServiceManager(log=None) as manager, manager.stream(pipeline, items, in_flight=2) as outcomes:
        stream = aiter(outcomes)
        await begun.wait()
        (batch,) = [call for call in manager.calls.values() if call.batch_size]
        await manager.cancel(batch.id)
        assert [(await anext(stream)).status for _ in range(4)] == ["cancelled"] * 2 + ["succeeded"] * 2


async def test_what_waits_for_a_batch_ends_with_a_run_that_is_left() -> None:
    doubler = Doubler()
    gave = anyio.Event()

    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"x": 1}
        gave.set()
        await anyio.sleep_forever()

    pipeline = Pipeline("p", Phase("d", doubler.tool, bind={"xs": "x"}, batch=5, batch_wait=100.0), item=["x"])
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        async with manager.stream(pipeline, source()):
            await gave.wait()
        assert not manager.calls
    assert [one["event"] for one in sink.records if one["event"].startswith("call.")][-1:] == ["call.cancelled"]


# --- what is on record


async def test_each_item_has_its_end_with_the_batchs_id_and_the_tool_was_called_once() -> None:
    doubler = Doubler()
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        pipeline = Pipeline("p", Phase("d", doubler.tool, bind={"xs": "x"}, batch=3), item=["x"])
        await manager.run(pipeline, [{"x": x} for x in range(5)], in_flight=3)
        assert manager.statistics().tools["double"].calls == 2
    ends = [one for one in sink.records if one["event"] == "call.succeeded"]
    batches = {one["call_id"]: one["batch_size"] for one in ends if "batch_size" in one}
    items = [(one["item"], one["batch_id"]) for one in ends if "batch_id" in one]
    assert sorted(batches.values()) == [2, 3]
    assert [item for item, _ in sorted(items)] == list("01234")
    assert {batch for _, batch in items} == batches.keys()


# --- what is wrong with a declaration


def test_what_cannot_be_a_batch_is_refused() -> None:
    double = Doubler().tool
    with pytest.raises(TypeError, match="batch_wait= belongs to a batch"):
        Phase("d", double, batch_wait=1.0)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        Phase("d", double, batch=0)
    with pytest.raises(TypeError, match="batch_wait must be a number, not 'x'"):
        Phase("d", double, batch=2, batch_wait="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="so it has nothing to batch"):
        Phase("d", double, batch=2, collect=True)
    with pytest.raises(TypeError, match=r"input 'x' is a int, but 'y' gives list\[int\], a list"):
        Pipeline("p", Phase("y", same), Phase("d", add_one, bind={"x": "y"}, batch=2), item=["x"])


async def test_a_batch_that_could_never_be_full_is_refused_before_anything_runs() -> None:
    doubler = Doubler()
    async with ServiceManager(log=None) as manager:
        with pytest.raises(ValueError, match="'double': batch=5 is more than in_flight=4, so it could never be full"):
            await manager.run(doubling(doubler.tool, 5), [{"x": 1}], in_flight=4)
    assert doubler.sizes == []


async def test_the_item_is_told_what_came_of_it_in_its_phases() -> None:
    doubler = Doubler()
    (outcome,) = await run(doubling(doubler.tool, 2), range(1))
    assert isinstance(outcome.phases["double"], Outcome)
    assert outcome.phases["double"].value == 0
