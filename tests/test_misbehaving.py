"""Sources, iterators, properties, callbacks that do what they should not: a clear error, never a hang or a loss."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import MemorySink, Phase, Pipeline, PipelineError, ServiceManager, check_cancelled, tool

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@tool
async def same(x: Any) -> Any:
    await checkpoint()
    return x


@tool
async def forever(x: Any) -> None:
    await anyio.sleep_forever()


SAME = Pipeline("p", Phase("same", same), item=["x"])


async def mapped(manager: ServiceManager, items: Any, **options: Any) -> list[Any]:
    came: list[Any] = []
    async with manager.map(same, items, **options) as outcomes:
        async for outcome in outcomes:
            came.append(outcome.value)
    return came


# --- exits on the loop's own thread


def exits(error: BaseException) -> Iterator[dict[str, int]]:
    yield {"x": 1}
    raise error


async def async_exits(error: BaseException) -> AsyncIterator[dict[str, int]]:
    yield {"x": 1}
    raise error


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("source", [exits, async_exits])
async def test_an_exit_in_a_source_ends_the_session_and_comes_out_bare(kind: Any, source: Callable[..., Any]) -> None:
    error = kind(3)
    with pytest.raises(kind) as caught:
        async with ServiceManager() as manager:
            await mapped(manager, source(error))
    assert caught.value is error


async def test_an_exit_in_on_progress_ends_the_session_and_comes_out_bare() -> None:
    def leave(progress: object) -> None:
        raise SystemExit(4)

    with pytest.raises(SystemExit):
        async with ServiceManager() as manager:
            await mapped(manager, [{"x": 1}], on_progress=leave)


async def test_an_exit_in_a_lazy_result_on_the_loop_ends_the_session_and_comes_out_bare() -> None:
    @tool
    async def makes(x: int) -> Any:
        return exits(SystemExit(5))

    pipeline = Pipeline("p", Phase("makes", makes, expand="one"), Phase("same", same, bind={"x": "one"}), item=["x"])
    with pytest.raises(SystemExit):
        async with ServiceManager() as manager:
            await manager.run(pipeline, [{"x": 1}])


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_an_exit_in_a_lazy_result_in_a_thread_is_the_failure_of_its_item(kind: Any) -> None:
    @tool
    def makes(x: int) -> Any:
        return exits(kind()) if x == 1 else iter([{"x": 0}])

    pipeline = Pipeline("p", Phase("makes", makes, expand="one"), Phase("same", same, bind={"x": "one"}), item=["x"])
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": n} for n in range(3)], keep="all")
    assert [outcome.status for outcome in report.outcomes] == ["succeeded", "failed", "succeeded"]
    assert kind.__name__ in str(report.outcomes[1].error)


# --- sources that cancel by themselves


async def waits_for_a_cancelled_task(n: int = 3) -> AsyncIterator[Any]:
    for one in range(n):
        yield {"x": one}
    task = asyncio.get_running_loop().create_task(asyncio.sleep(100))
    task.cancel()
    await task
    yield {"x": -1}


async def cancels_its_own_task(n: int = 3) -> AsyncIterator[Any]:
    for one in range(n):
        yield {"x": one}
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    yield {"x": -1}


@asyncio_only
@pytest.mark.parametrize("source", [waits_for_a_cancelled_task, cancels_its_own_task])
async def test_a_source_that_cancels_by_itself_has_raised_and_is_not_taken_for_ended(
    source: Callable[..., Any],
) -> None:
    async with ServiceManager() as manager:
        came = []
        async with manager.map(same, source(), in_flight=2) as outcomes:
            with pytest.raises(PipelineError, match="raised after 3 items: CancelledError"):
                async for outcome in outcomes:
                    came.append(outcome.value)
    assert came == [0, 1, 2]


@asyncio_only
@pytest.mark.parametrize("source", [waits_for_a_cancelled_task, cancels_its_own_task])
async def test_a_lazy_result_that_cancels_by_itself_has_raised_and_has_not_ended(source: Callable[..., Any]) -> None:
    @tool
    async def makes(x: int) -> Any:
        return source(x)

    pipeline = Pipeline("p", Phase("makes", makes, expand="one"), Phase("same", same, bind={"x": "one"}), item=["x"])
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 2}], keep="all", in_flight=2)
    (outcome,) = report.outcomes
    assert (outcome.status, outcome.failed_phase) == ("failed", "makes")
    assert "ended after 2" in str(outcome.error)


# --- values that raise when they are looked at


class Cursed:
    @property
    def size(self) -> int:
        raise ZeroDivisionError("cursed")


class CursedMapping(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        raise OSError("disk gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


async def test_a_property_that_raises_fails_its_item_alone() -> None:
    @tool
    async def makes(x: int) -> Any:
        return Cursed() if x == 1 else dataclasses.make_dataclass("Fine", ["size"])(x)

    pipeline = Pipeline("p", Phase("makes", makes), Phase("same", same, bind={"x": "makes.size"}), item=["x"])
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": n} for n in range(3)], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [0, None, 2]
    assert report.outcomes[1].failed_phase == "same"
    assert isinstance(report.outcomes[1].error, PipelineError)
    assert "cursed" in str(report.outcomes[1].error)


async def test_an_item_whose_fields_cannot_be_read_fails_alone() -> None:
    async with ServiceManager() as manager:
        report = await manager.run(SAME, [{"x": 1}, CursedMapping(), {"x": 3}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [1, None, 3]
    assert "disk gone" in str(report.outcomes[1].error)


async def test_a_value_that_a_run_level_phase_cannot_read_is_that_phases_error() -> None:
    @tool
    async def makes(x: int) -> Any:
        return Cursed()

    pipeline = Pipeline(
        "p",
        Phase("makes", makes),
        Phase("sizes", same, bind={"x": "makes.size"}, collect=True),
        Phase("count", same.using(name="count"), bind={"x": "x"}, collect=True),
        item=["x"],
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 1}])
    assert list(report.errors) == ["sizes"]
    assert "cursed" in str(report.errors["sizes"])
    assert report.results == {"count": [1]}


# --- nested calls from places that outlive their call


async def test_a_lazy_result_may_call_other_tools_in_its_thread() -> None:
    @tool
    def makes(x: int) -> Iterator[int]:
        for n in range(x):
            yield same.execute(x=n * 10)

    pipeline = Pipeline("p", Phase("makes", makes, expand="one"), Phase("same", same, bind={"x": "one"}), item=["x"])
    async with ServiceManager(threads=1) as manager:
        report = await manager.run(pipeline, [{"x": 3}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == [[0, 10, 20]], report.failures


async def test_a_lazy_result_that_calls_its_own_tool_under_a_limit_of_one_is_told_and_does_not_hang() -> None:
    @tool
    def makes(x: int) -> Iterator[int]:
        yield x
        if x:
            limited.execute(x=0)

    limited = makes.using(concurrency=1)
    pipeline = Pipeline("p", Phase("makes", limited, expand="one"), Phase("same", same, bind={"x": "one"}), item=["x"])
    async with ServiceManager() as manager:
        with anyio.fail_after(10):
            report = await manager.run(pipeline, [{"x": 1}], keep="all")
    assert "calls itself" in str(report.outcomes[0].error)


# --- scopes


# What a tool leaves open must harm nobody but itself: its worker goes on to run others.


def leaks_scope(left: list[Any]) -> None:
    left.append(anyio.CancelScope())
    left[-1].__enter__()


def leaks_deadline(left: list[Any]) -> None:
    left.append(anyio.CancelScope(deadline=anyio.current_time() + 0.01))
    left[-1].__enter__()


async def leaks_group(left: list[Any]) -> None:
    left.append(anyio.create_task_group())
    await left[-1].__aenter__()
    left[-1].start_soon(anyio.sleep_forever)


async def leaks_group_in_scope(left: list[Any]) -> None:
    leaks_scope(left)
    await leaks_group(left)


LEAKS = [leaks_scope, leaks_deadline, leaks_group, leaks_group_in_scope]


def leaking(leak: Callable[[list[Any]], Any], then: Callable[[], Any]) -> Any:
    left: list[Any] = []

    @tool
    async def leaks(x: int) -> int:
        if x == 1:
            awaitable = leak(left)
            if awaitable is not None:
                await awaitable
            awaitable = then()
            if awaitable is not None:
                await awaitable
        elif x:
            await anyio.sleep(0.02)
        return x

    return leaks


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("then", [checkpoint, fail, lambda: None], ids=["waits", "fails", "ends"])
@pytest.mark.parametrize("in_flight", [1, 3])
async def test_a_scope_that_a_tool_of_a_map_leaves_open_harms_nobody(leak: Any, then: Any, in_flight: int) -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink) as manager:
        items = [{"x": n} for n in (0, 1, 2, 0, 3, 4)]
        async with manager.map(leaking(leak, then), items, in_flight=in_flight) as outcomes:
            values = [outcome.value async for outcome in outcomes]
    assert values == [0, None if then is fail else 1, 2, 0, 3, 4]
    assert [record["event"] for record in sink.records].count("scope.leaked") == 1


@pytest.mark.parametrize("leak", LEAKS)
async def test_a_scope_that_a_single_tool_leaves_open_harms_nobody(leak: Any) -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink) as manager:
        leaks = leaking(leak, checkpoint)
        assert await manager.execute(leaks, x=1) == 1
        call = manager.submit(leaks, x=1)
        assert await call.result() == 1
        assert await manager.execute(leaks.using(isolated=True), x=1) == 1
        assert await manager.execute(leaks.using(timeout=5.0), x=1) == 1
        assert await manager.execute(leaks, x=2) == 2
    (first, *_) = [record for record in sink.records if record["event"] == "scope.leaked"]
    assert first["tool"] == "leaks"
    assert [record["event"] for record in sink.records].count("scope.leaked") == 4


@pytest.mark.parametrize("leak", LEAKS)
async def test_a_scope_that_a_tool_of_a_pipeline_leaves_open_harms_nobody(leak: Any) -> None:
    pipeline = Pipeline(
        "p", Phase("first", leaking(leak, checkpoint)), Phase("then", same, bind={"x": "first"}), item=["x"]
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": n} for n in range(5)], in_flight=2, keep="all")
    assert [outcome.value for outcome in report.outcomes] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("leak", LEAKS)
async def test_a_scope_that_a_cancelled_tool_leaves_open_harms_nobody(leak: Any) -> None:
    leaks = leaking(leak, anyio.sleep_forever)
    async with ServiceManager() as manager:
        call = manager.submit(leaks, x=1)
        async with manager.map(leaks, [{"x": n} for n in (2, 1, 3)], in_flight=1) as outcomes:
            stream = aiter(outcomes)
            assert (await anext(stream)).value == 2
            await anyio.sleep(0.05)
            assert await manager.cancel() >= 1
            assert (await anext(stream)).status == "cancelled"
        await call.wait()
        assert call.status == "cancelled"
        assert await manager.execute(same, x=3) == 3


async def test_looking_for_cancellation_outside_of_calls_does_nothing() -> None:
    def source() -> Iterator[dict[str, int]]:
        check_cancelled()
        yield {"x": 1}

    async with ServiceManager() as manager:
        assert await mapped(manager, source()) == [1]


class TornMapping(CursedMapping):
    """It cannot give one of its fields."""

    def __init__(self, **fields: int) -> None:
        self.fields = fields

    def __getitem__(self, name: str) -> Any:
        if name == "torn" and name in self.fields:
            raise OSError("disk gone")
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)


async def test_a_field_that_cannot_be_read_for_a_run_level_phase_is_the_items_fault() -> None:
    @tool
    async def total(torn: list[int], x: list[int]) -> Any:
        return torn, x

    pipeline = Pipeline("p", Phase("same", same), Phase("total", total, collect=True))
    items = [{"x": 1, "torn": 10}, TornMapping(x=2, torn=20), {"x": 3, "torn": 30}]
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, items, keep="all")
    assert [outcome.status for outcome in report.outcomes] == ["succeeded", "failed", "succeeded"]
    assert "item 1 cannot be read" in str(report.outcomes[1].error)
    assert (report.results, report.missing) == ({"total": ([10, 30], [1, 3])}, {"total": 1})


async def test_so_is_one_that_it_might_do_without() -> None:
    @tool
    async def total(x: list[int], torn: list[int] | None = None) -> Any:
        return x, torn

    pipeline = Pipeline("p", Phase("same", same), Phase("total", total, collect=True), item=["x", "torn"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [TornMapping(x=2, torn=20), TornMapping(x=1)], keep="all")
    assert [outcome.status for outcome in report.outcomes] == ["failed", "succeeded"]
    assert report.results == {"total": ([1], [])}
