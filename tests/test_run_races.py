"""Runs that are told to stop, or one of whose calls is, at an awkward moment."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from kgas_async import CallFailed, Phase, Pipeline, PipelineError, ServiceManager, tool


@tool
async def same(x: int) -> int:
    return x


@tool
async def doubled(one: int) -> int:
    await anyio.sleep(0.01)
    return 2 * one


@tool
async def total(xs: list[int]) -> int:
    return sum(xs)


async def cancel_the_first_call(manager: ServiceManager) -> None:
    await anyio.sleep(0.05)
    next(iter(manager.calls.values())).cancel("this one alone")


# --- a call that ends well although it was cancelled


async def test_the_cancellation_of_a_call_that_ends_well_all_the_same_does_not_hit_the_items_next_call() -> None:
    @tool
    async def stubborn(x: int) -> int:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(5)
        return x

    pipeline = Pipeline("p", Phase("one", stubborn), Phase("two", doubled))
    async with ServiceManager() as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_the_first_call, manager)
        report = await manager.run(pipeline, [{"x": 3}], keep="all")
    (outcome,) = report.outcomes
    assert (outcome.status, outcome.value) == ("succeeded", 6)


async def test_nor_does_one_that_comes_just_after_the_call_had_what_it_waited_for() -> None:
    ready = anyio.Event()

    @tool
    async def waits(x: int) -> int:
        await ready.wait()
        return x

    async def too_late() -> None:
        await anyio.sleep(0.05)
        ready.set()
        next(iter(manager.calls.values())).cancel("too late")

    pipeline = Pipeline("p", Phase("one", waits), Phase("two", doubled))
    async with ServiceManager() as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(too_late)
        report = await manager.run(pipeline, [{"x": 3}, {"x": 4}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [6, 8]


async def test_nor_does_it_lose_the_elements_of_what_the_call_has_given() -> None:
    @tool
    async def stubborn(x: int) -> AsyncIterator[int]:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(5)

        async def elements() -> AsyncIterator[int]:
            for n in range(x):
                await anyio.sleep(0.001)
                yield n

        return elements()

    @tool
    async def gathered(element: list[int]) -> list[int]:
        return element

    pipeline = Pipeline("p", Phase("one", stubborn, expand="element"), Phase("all", gathered, collect="element"))
    async with ServiceManager() as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_the_first_call, manager)
        report = await manager.run(pipeline, [{"x": 3}], keep="all")
    assert report.outcomes[0].value == [0, 1, 2]


# --- told to stop between run-level phases


@pytest.mark.parametrize("how", ["drained", "cancelled"])
async def test_no_run_level_phase_starts_once_the_run_was_told_to_stop_during_another(how: str) -> None:
    story: list[str] = []

    @tool
    async def first(a: list[int]) -> int:
        story.append("first")
        await anyio.sleep(0.05)
        return len(a)

    @tool
    async def second(a: list[int]) -> int:
        story.append("second")
        return len(a)

    pipeline = Pipeline(
        "p", Phase("a", same), Phase("b", first, collect=True), Phase("c", second, collect=True, after="b")
    )

    async def stop() -> None:
        await anyio.sleep(0.02)
        await (manager.drain() if how == "drained" else manager.cancel(reason="enough"))
        story.append(how)

    async with ServiceManager() as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        report = await manager.run(pipeline, [{"x": 1}])
    assert story == ["first", how]
    assert report.results == ({"b": 1} if how == "drained" else {})
    assert report.not_begun == ["c"]
    assert not report.drained  # the source was at its end


@pytest.mark.parametrize("how", ["share", "raise", "cancelled"])
async def test_run_level_phases_that_a_run_broke_off_before_are_named_however_it_did(how: str) -> None:
    @tool
    async def odd(x: int) -> int:
        if how == "cancelled":
            scope.cancel()
            await anyio.sleep_forever()
        raise ValueError(f"{x} is odd")

    pipeline = Pipeline("p", Phase("a", odd), Phase("b", total, collect=True, bind={"xs": "a"}))
    on_error: Any = {"share": 0.1, "raise": "raise", "cancelled": "collect"}[how]
    async with ServiceManager() as manager:
        with anyio.CancelScope() as scope, suppress(CallFailed, PipelineError):
            await manager.run(pipeline, ({"x": x} for x in range(100)), on_error=on_error)
        report = manager._last_report
    assert report is not None
    assert report.not_begun == ["b"]
    assert "phase 'b' was not begun" in str(report)


# --- drained while an async source gives its next item


async def drained_as_the_source_gives(start: Any) -> list[Any]:
    gates = [anyio.Event(), anyio.Event(), anyio.Event()]

    async def source() -> AsyncIterator[dict[str, int]]:
        for number, gate in enumerate(gates):
            await gate.wait()
            yield {"one": number}

    outcomes: list[Any] = []
    async with ServiceManager() as manager, anyio.create_task_group() as tasks:

        async def drain() -> None:
            gates[0].set()
            await anyio.sleep(0.05)
            gates[1].set()
            await manager.drain()

        tasks.start_soon(drain)
        async with start(manager, source()) as stream:
            outcomes.extend([outcome async for outcome in stream])
    return outcomes


async def test_an_item_that_a_source_gives_just_as_a_map_is_drained_ends_like_any_other() -> None:
    outcomes = await drained_as_the_source_gives(lambda manager, source: manager.map(doubled, source))
    assert [(one.index, one.value, one.status) for one in outcomes] == [
        (n, 2 * n, "succeeded") for n in range(len(outcomes))
    ]
    assert len(outcomes) in (1, 2)  # whether it came before or after the drain is the loop's to say


async def test_an_item_that_a_source_gives_just_as_a_run_is_drained_ends_like_any_other() -> None:
    pipeline = Pipeline("p", Phase("two", doubled))
    outcomes = await drained_as_the_source_gives(lambda manager, source: manager.stream(pipeline, source))
    assert [(one.index, one.value, one.status) for one in outcomes] == [
        (n, 2 * n, "succeeded") for n in range(len(outcomes))
    ]
    assert len(outcomes) in (1, 2)


# --- drained while there is one worker, one place, one item of the window


async def stubborn_source() -> AsyncIterator[dict[str, int]]:
    """Told to stop, it gives one more."""
    yield {"x": 0}
    yield {"x": 1}
    with suppress(anyio.get_cancelled_exc_class()):
        await anyio.sleep(10)
    yield {"x": 2}


@tool
async def listed(xs: list[int]) -> list[int]:
    return xs


@tool
async def read(one: AsyncIterable[int]) -> list[int]:
    return [value async for value in one]


@tool
async def slow(x: int) -> int:
    await anyio.sleep(0.01)
    return x


STUBBORN: dict[str, Callable[[ServiceManager], Any]] = {
    "a map with idle workers": lambda manager: manager.map(slow, stubborn_source()),
    "a run with idle workers": lambda manager: manager.stream(Pipeline("p", Phase("one", slow)), stubborn_source()),
    "a batch and one place": lambda manager: manager.stream(
        Pipeline("p", Phase("batch", listed, bind={"xs": "x"}, batch=1)), stubborn_source(), in_flight=1
    ),
    "a live reader and a window of one": lambda manager: manager.stream(
        Pipeline("p", Phase("one", same), Phase("read", read, collect=True)), stubborn_source(), ordered_window=1
    ),
}


@pytest.mark.parametrize("what", STUBBORN)
async def test_what_a_source_gives_as_it_is_told_to_stop_is_lost_by_nobody(what: str) -> None:
    async with ServiceManager() as manager, anyio.create_task_group() as tasks:

        async def drain() -> None:
            await anyio.sleep(0.05)
            await manager.drain()

        tasks.start_soon(drain)
        async with STUBBORN[what](manager) as outcomes:
            assert [(one.index, one.value) async for one in outcomes] == [(0, 0), (1, 1), (2, 2)]
