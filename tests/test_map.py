"""manager.map: one tool over many inputs; every input has its outcome, and a failure costs nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallFailed,
    InvalidInputs,
    Outcome,
    PipelineError,
    Progress,
    ServiceManager,
    tool,
)
from kgas_async.testing import explore

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def at_once(x: int) -> int:
    return 2 * x


@tool
def in_thread(x: int) -> int:
    return 2 * x


@tool
async def picky(x: int) -> int:
    await checkpoint()
    if x % 10 == 3:
        raise ValueError(f"no {x}")
    return x


@tool
async def forever(x: int = 0) -> None:
    await anyio.sleep_forever()


KINDS = pytest.mark.parametrize(
    "how",
    [double, at_once, in_thread, double.using(isolated=True), double.using(timeout=5, concurrency=7, retry=2)],
    ids=["async", "at once", "thread", "isolated", "policy"],
)


async def collect(manager: ServiceManager, how: Any, inputs: Any, **options: Any) -> list[Outcome[Any]]:
    async with manager.map(how, inputs, **options) as outcomes:
        return [outcome async for outcome in outcomes]


@KINDS
@pytest.mark.parametrize("in_flight", [1, 3, 100])
async def test_outcomes_come_in_source_order(how: Any, in_flight: int) -> None:
    async with ServiceManager(threads=4) as manager:
        outcomes = await collect(manager, how, ({"x": n} for n in range(200)), in_flight=in_flight)
    assert [outcome.value for outcome in outcomes] == [2 * n for n in range(200)]
    assert [(outcome.index, outcome.key) for outcome in outcomes] == [(n, str(n)) for n in range(200)]
    assert {outcome.tool for outcome in outcomes} == {
        "double" if how is not at_once and how is not in_thread else how.name
    }


@KINDS
async def test_one_failing_item_of_a_thousand_leaves_999_results(how: Any) -> None:
    async with ServiceManager(threads=4) as manager:
        outcomes = await collect(manager, how, ({"x": n if n != 500 else "none"} for n in range(1000)))
    assert len(outcomes) == 1000
    assert [outcome.value for outcome in outcomes if outcome.ok] == [2 * n for n in range(1000) if n != 500]
    (failed,) = [outcome for outcome in outcomes if not outcome.ok]
    assert (failed.index, failed.status) == (500, "failed")
    assert isinstance(failed.error, InvalidInputs)


async def test_failures_carry_the_tools_own_exception_and_say_where() -> None:
    async with ServiceManager() as manager:
        outcomes = await collect(manager, picky, ({"x": n} for n in range(10)))
    error = outcomes[3].error
    assert isinstance(error, CallFailed)
    assert isinstance(error.__cause__, ValueError)
    assert str(error.__cause__) == "no 3"
    assert "in tool 'picky', attempt 1" in error.__cause__.__notes__
    with pytest.raises(CallFailed):
        outcomes[3].unwrap()


@explore(seeds=3)
async def test_unordered_outcomes_come_as_they_end() -> None:
    @tool
    async def takes(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async with ServiceManager() as manager, manager.map(takes, [5, 1, 3], arg="seconds", ordered=False) as outcomes:
        came = [(outcome.value, outcome.index, anyio.current_time()) async for outcome in outcomes]
    assert [(value, index) for value, index, _ in came] == [(1, 1), (3, 2), (5, 0)]
    assert [when for *_, when in came] == pytest.approx([1, 3, 5])


@explore(seeds=3)
async def test_ordered_outcomes_do_not_keep_others_from_running() -> None:
    @tool
    async def takes(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async with ServiceManager() as manager:
        came = [one.value for one in await collect(manager, takes, [10, *[1] * 7], arg="seconds", in_flight=2)]
    assert came == [10, *[1] * 7]
    assert anyio.current_time() == pytest.approx(10)  # the others ran beside the first, as far as the window reaches


async def test_bare_values_go_to_the_named_input() -> None:
    async with ServiceManager() as manager:
        assert [outcome.value for outcome in await collect(manager, double, [1, 2], arg="x")] == [2, 4]
        with pytest.raises(TypeError, match="arg='y' is no input of tool 'double'; it takes x"):
            await collect(manager, double, [1, 2], arg="y")


@pytest.mark.parametrize("wrong", [7, None, "text", ["x"], {"y": 1}, {"x": 1, "y": 2}])
async def test_an_input_that_does_not_fit_fails_alone(wrong: Any) -> None:
    async with ServiceManager() as manager:
        outcomes = await collect(manager, double, [{"x": 1}, wrong, {"x": 3}])
    assert [outcome.value for outcome in outcomes] == [2, None, 6]
    assert isinstance(outcomes[1].error, InvalidInputs)


@pytest.mark.parametrize("empty", [[], {}, iter(())])
async def test_nothing_gives_nothing(empty: Any) -> None:
    async with ServiceManager() as manager:
        assert await collect(manager, double, empty) == []


class Unmeasured:
    def __len__(self) -> int:
        raise TypeError("it has no length")

    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize("source", [range(10**30), Unmeasured()])
async def test_a_source_whose_length_python_cannot_tell_has_no_total(source: Any) -> None:
    told: list[Any] = []
    options: Any = {"in_flight": 2, "on_progress": lambda progress: told.append(progress.total)}
    async with ServiceManager() as manager, manager.map(double, source, arg="x", **options) as outcomes:
        async for outcome in outcomes:
            assert outcome.value == 2 * outcome.index
            if outcome.index == 2:
                break
    assert set(told) == {None}


async def test_an_async_source_gives_its_outcomes_in_order_and_is_closed() -> None:
    closed = []

    async def source() -> AsyncIterator[dict[str, int]]:
        try:
            for n in range(50):
                await checkpoint()
                yield {"x": n}
        finally:
            await checkpoint()
            closed.append(True)

    async with ServiceManager() as manager:
        assert [one.value for one in await collect(manager, double, source())] == [2 * n for n in range(50)]
    assert closed == [True]


@pytest.mark.parametrize("wrong", [7, None, object()])
async def test_a_source_that_is_no_iterable_is_refused(wrong: Any) -> None:
    async with ServiceManager() as manager:
        with pytest.raises(TypeError, match="iterable or an async iterable"):
            await collect(manager, double, wrong)


@pytest.mark.parametrize("options", [{"in_flight": 0}, {"in_flight": 2.0}, {"on_error": "ignore"}, {"on_error": 1.5}])
async def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    async with ServiceManager() as manager:
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            await collect(manager, double, [], **options)


# --- sources


async def test_a_source_is_pulled_only_for_free_workers_and_for_room_in_the_window() -> None:
    pulled: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        for n in range(1000):
            pulled.append(n)
            yield {"x": n}

    async with ServiceManager() as manager:
        async with manager.map(forever, source(), in_flight=7):
            await anyio.wait_all_tasks_blocked()
            assert len(pulled) == 7
        pulled.clear()
        async with manager.map(double, source(), in_flight=5) as outcomes:
            await anyio.wait_all_tasks_blocked()
            assert len(pulled) == 20  # four times in_flight ahead of what was taken
            for taken in range(1, 5):
                await anext(outcomes)
                await anyio.wait_all_tasks_blocked()
                assert len(pulled) == 20 + taken


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_endless_source_that_is_left_early_is_closed_and_was_at_most_the_window_ahead(kind: str) -> None:
    pulled, closed = [0], []

    def source() -> Iterator[dict[str, int]]:
        try:
            while True:
                pulled[0] += 1
                yield {"x": pulled[0]}
        finally:
            closed.append(True)

    async def async_source() -> AsyncIterator[dict[str, int]]:
        try:
            while True:
                await checkpoint()
                pulled[0] += 1
                yield {"x": pulled[0]}
        finally:
            closed.append(True)

    taken = 0
    async with ServiceManager() as manager:
        async with manager.map(double, source() if kind == "sync" else async_source(), in_flight=10) as outcomes:
            async for _ in outcomes:
                taken += 1
                if taken == 100:
                    break
        assert closed == [True]
        assert 100 <= pulled[0] <= 100 + 40
        assert not manager.calls


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("how", [double, in_thread, at_once], ids=["async", "thread", "at once"])
async def test_what_a_source_gave_before_it_raised_has_its_outcomes_then_the_error_comes(kind: str, how: Any) -> None:
    def source() -> Iterator[dict[str, int]]:
        for n in range(30):
            yield {"x": n}
        raise OSError("disk gone")

    async def async_source() -> AsyncIterator[dict[str, int]]:
        for one in source():
            await checkpoint()
            yield one

    values = []
    items = source() if kind == "sync" else async_source()
    async with ServiceManager(threads=3) as manager, manager.map(how, items, in_flight=4) as outcomes:
        with pytest.raises(PipelineError, match=r"raised after 30 items: OSError\('disk gone'\)") as caught:
            async for outcome in outcomes:
                values.append(outcome.value)
    assert values == [2 * n for n in range(30)]
    assert isinstance(caught.value.__cause__, OSError)


async def test_an_async_source_that_waits_at_its_yield_may_await_in_its_clean_up() -> None:
    closed = []

    async def source() -> AsyncIterator[dict[str, int]]:
        try:
            while True:
                yield {"x": 1}
        finally:
            await checkpoint()
            closed.append(True)

    async with ServiceManager() as manager:
        async with manager.map(forever, source(), in_flight=2):
            await anyio.wait_all_tasks_blocked()
        assert closed == [True]


async def test_a_source_that_raises_at_once_gives_only_the_error() -> None:
    def source() -> Iterator[dict[str, int]]:
        raise OSError("disk gone")
        yield {}

    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match="after 0 items"):
            await collect(manager, double, source())


# --- on_error


async def test_raise_cancels_the_rest_and_raises_the_first_failure_plain() -> None:
    gate = anyio.Event()
    cancelled = []

    @tool
    async def mixed(x: int) -> int:
        if x == 3:
            await gate.wait()
            raise ValueError("three")
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(x)
        return x

    async with ServiceManager() as manager:
        async with manager.map(mixed, ({"x": n} for n in range(100)), in_flight=5, on_error="raise") as outcomes:
            await anyio.wait_all_tasks_blocked()
            gate.set()
            with pytest.raises(CallFailed, match="three"):
                await anext(outcomes)
            with pytest.raises(StopAsyncIteration):
                await anext(outcomes)
        assert sorted(cancelled) == [0, 1, 2, 4]
        assert not manager.calls


async def test_a_share_of_failures_above_the_allowed_one_stops_the_map() -> None:
    async with ServiceManager() as manager:
        seen = []
        async with manager.map(picky, ({"x": n} for n in range(1000)), on_error=0.05, in_flight=1) as outcomes:
            with pytest.raises(PipelineError, match=r"\d+ of \d+ items have failed, more than on_error=0.05"):
                async for outcome in outcomes:
                    seen.append(outcome)
        assert len(seen) <= 30


async def test_a_share_below_the_allowed_one_lets_the_map_end() -> None:
    async with ServiceManager() as manager:
        outcomes = await collect(manager, picky, ({"x": n} for n in range(1000)), on_error=0.15)
    assert sum(not outcome.ok for outcome in outcomes) == 100


async def test_a_share_counts_from_twenty_finished_items_on() -> None:
    @tool
    async def breaks(x: int) -> int:
        raise ValueError(x)

    async with ServiceManager() as manager:
        outcomes = await collect(manager, breaks, [{"x": n} for n in range(19)], on_error=0.0)
        assert len(outcomes) == 19
        with pytest.raises(PipelineError, match="20 of 20"):
            await collect(manager, breaks, [{"x": n} for n in range(20)], on_error=0.0)


@pytest.mark.parametrize("on_progress", [None, lambda progress: None])
async def test_a_share_of_early_failures_counts_at_the_twentieth_item_also_where_that_succeeds(
    on_progress: Any,
) -> None:
    @tool
    async def starts_badly(x: int) -> int:
        if x < 3:
            raise ValueError(x)
        return x

    inputs = [{"x": n} for n in range(100)]
    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match=r"3 of 20 items have failed, more than on_error=0.1 .*ValueError: 2"):
            await collect(manager, starts_badly, inputs, on_error=0.1, in_flight=1, on_progress=on_progress)
        assert len(await collect(manager, starts_badly, inputs, on_error=0.15, in_flight=1)) == 100


async def test_a_source_may_be_longer_than_python_can_count() -> None:
    told: list[Progress] = []
    async with (
        ServiceManager(log=None) as manager,
        manager.map(double, range(10**30), arg="x", in_flight=2, on_progress=told.append) as outcomes,
    ):
        assert [(await anext(outcomes)).value for _ in range(3)] == [0, 2, 4]
    assert told[0].total is None
