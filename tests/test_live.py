"""Run-level phases that read a live stream of what the items give, while the run goes on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import ConcurrencyLimit, Outcome, Phase, Pipeline, Policy, Retry, ServiceManager, tool
from kgas_async._run import RunCrew


@tool
async def double(x: int) -> int:
    for _ in range(x % 3):
        await checkpoint()
    if x == 13:
        raise ValueError(x)
    return 2 * x


def live(phase_tool: Any, **options: Any) -> Pipeline:
    options = {"bind": {"values": "double"}, "collect": True} | options
    return Pipeline("p", Phase("double", double), Phase("live", phase_tool, **options), item=["x"])


def items(count: int) -> Any:
    return ({"x": x} for x in range(count))


async def test_nobody_is_hired_for_a_reader_that_goes_on_when_all_items_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = 0
    end_open = RunCrew.end_open

    def counted(crew: RunCrew) -> None:
        nonlocal finished
        finished += 1
        end_open(crew)

    monkeypatch.setattr(RunCrew, "end_open", counted)  # what the last worker does

    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        total = 0
        async for value in values:
            total += value
            for _ in range(20):
                await checkpoint()
        return total

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), items(10))
    assert report.results == {"live": 90}
    assert finished == 1


async def test_a_live_collect_reads_in_source_order_while_the_run_goes_on() -> None:
    seen: list[int] = []
    three = anyio.Event()

    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        async for value in values:
            seen.append(value)
            if len(seen) == 3:
                three.set()
        return len(seen)

    async def source() -> AsyncIterator[dict[str, int]]:
        for x in range(6):
            if x == 3:
                await three.wait()  # the stream is live, or this would never end
            yield {"x": x}

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), source())
    assert seen == [0, 2, 4, 6, 8, 10]
    assert report.results == {"live": 6}


async def test_a_live_collect_without_items_runs_too() -> None:
    @tool
    async def reads(values: AsyncIterator[int]) -> list[int]:
        return [value async for value in values]

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), [])
    assert report.results == {"live": []}


async def test_what_failed_is_left_out_and_counted() -> None:
    @tool
    async def reads(values: AsyncIterable[int]) -> list[int]:
        return [value async for value in values]

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), [{"x": 1}, {"x": 13}, 7, {"x": 2}])
    assert report.results == {"live": [2, 4]}
    assert report.missing == {"live": 2}


async def test_a_live_stream_of_outcomes_has_what_failed_too() -> None:
    @tool
    async def reads(values: AsyncIterable[Outcome[int]]) -> list[str]:
        return [one.status async for one in values]

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), [{"x": 1}, {"x": 13}, 7])
    assert report.results == {"live": ["succeeded", "failed", "failed"]}
    assert report.missing == {}


async def test_a_slow_reader_holds_the_source_up() -> None:
    go_on = anyio.Event()
    pulled = 0

    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        count = 0
        async for _ in values:
            if not count:
                await go_on.wait()
            count += 1
        return count

    def source() -> Any:
        nonlocal pulled
        for x in range(100):
            pulled += 1
            yield {"x": x % 10}

    async with (
        ServiceManager(log=None) as manager,
        manager.stream(live(reads), source(), in_flight=3, ordered_window=8) as outcomes,
    ):
        stream = aiter(outcomes)
        for _ in range(8):
            await anext(stream)
        for _ in range(50):
            await checkpoint()
        assert pulled <= 1 + 8
        go_on.set()
        assert len([outcome async for outcome in outcomes]) == 92
    assert pulled == 100


@pytest.mark.parametrize("how", ["ends", "raises", "closes"])
async def test_a_reader_that_stops_early_holds_nobody_up(how: str) -> None:
    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        async for value in values:
            if how == "raises":
                raise OSError("enough")
            return value
        return -1

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), items(50), in_flight=2)
    assert report.total == 50
    if how == "raises":
        assert "enough" in str(report.errors["live"])
    else:
        assert report.results == {"live": 0}


async def test_a_run_that_is_left_cancels_its_live_reader() -> None:
    ended: list[str] = []

    @tool
    async def reads(values: AsyncIterable[int]) -> None:
        try:
            async for _ in values:
                pass
            ended.append("whole")
        except BaseException:
            ended.append("cancelled")
            raise

    async with ServiceManager(log=None) as manager:
        async with manager.stream(live(reads), ({"x": x} for x in itertools.count())) as outcomes:
            await anext(aiter(outcomes))
            await checkpoint()
        assert ended == ["cancelled"]
        assert not manager.calls


async def test_a_drained_run_lets_its_live_reader_end_with_what_there_was() -> None:
    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        return len([value async for value in values])

    pulled = 0

    async with ServiceManager(log=None) as manager:

        def source() -> Any:
            nonlocal pulled
            for x in itertools.count():
                pulled += 1
                if x == 20:
                    manager._opened().begin_drain()
                yield {"x": x % 10}

        report = await manager.run(live(reads), source(), in_flight=4)
    assert report.drained
    assert report.results == {"live": pulled}


async def test_phases_after_a_live_one_have_its_result() -> None:
    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        return sum([value async for value in values])

    @tool
    async def then(live: int, values: list[int]) -> tuple[int, int]:
        return live, len(values)

    pipeline = Pipeline(
        "p",
        Phase("double", double),
        Phase("live", reads, bind={"values": "double"}, collect=True),
        Phase("then", then, bind={"values": "double"}, collect=True),
        item=["x"],
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, items(5))
    assert report.results["then"] == (20, 5)


async def test_a_live_reader_waits_for_its_batch_of_one_worker() -> None:
    """One worker is enough: the reader is none of those."""

    @tool
    async def reads(values: AsyncIterable[int]) -> int:
        return len([value async for value in values])

    async with ServiceManager(log=None) as manager:
        report = await manager.run(live(reads), items(10), in_flight=1)
    assert report.results == {"live": 10}


# --- what is wrong with a declaration


@tool
async def reads_two(values: AsyncIterable[int], others: list[int]) -> None: ...


@tool
async def reads_one(values: AsyncIterable[int]) -> None: ...


@tool
async def count(values: list[int]) -> int:
    return len(values)


@tool
def reads_sync(values: AsyncIterable[int]) -> None: ...


@tool
async def reads_text(values: AsyncIterable[list[str]]) -> None: ...


def test_what_cannot_be_live_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'live': input 'values' is a live stream.*cannot wait for 'others' too"):
        live(reads_two, bind={"values": "double", "others": "double"})
    with pytest.raises(TypeError, match="which only an async tool can read"):
        live(reads_sync)
    with pytest.raises(ValueError, match="missing='skip' cannot be"):
        live(reads_one, missing="skip")
    with pytest.raises(TypeError, match="cannot be retried: its live stream 'values' is read only once"):
        live(reads_one.using(retry=Retry(2, on=OSError)))
    with pytest.raises(TypeError, match="cannot be retried"):
        live(reads_one, policy=Policy(retry=Retry(2, on=OSError)))
    with pytest.raises(TypeError, match=r"'values' is a .*AsyncIterable\[list\[str\]\], but 'double' gives int$"):
        live(reads_text)

    @tool
    async def split(x: int) -> list[int]:
        return [x]

    with pytest.raises(TypeError, match="'values' is a stream, but only collect=True can be live; take a list"):
        Pipeline(
            "p",
            Phase("split", split, expand="part"),
            Phase("each", double, bind={"x": "part"}),
            Phase("live", reads_one, bind={"values": "each"}, collect="part"),
            item=["x"],
        )
    with pytest.raises(TypeError, match="cannot wait for 'end' too"):
        Pipeline(
            "p",
            Phase("double", double),
            Phase("live", reads_one, bind={"values": "double"}, collect=True, after="end"),
            Phase("end", count, bind={"values": "double"}, collect=True),
            item=["x"],
        )


@pytest.mark.parametrize("readers", [1, 2])
async def test_a_reader_that_would_hold_the_last_token_of_what_it_reads_is_told(readers: int) -> None:
    shared = ConcurrencyLimit(readers)

    @tool
    async def first(values: AsyncIterable[int]) -> int:
        return len([value async for value in values])

    phases = [
        Phase(f"read_{n}", first.using(concurrency=shared), bind={"values": "double"}, collect=True)
        for n in range(readers)
    ]
    limited = Pipeline("p", Phase("double", double.using(concurrency=shared)), *phases, item=["x"])
    with pytest.raises(ValueError, match=r"phase 'read_0' reads live.*ConcurrencyLimit.*phase 'double' would wait"):
        async with ServiceManager(log=None) as manager:
            await manager.run(limited, items(3))
    too_many = Pipeline("p", Phase("double", double), *phases, Phase("more", first.using(concurrency=shared),
        bind={"values": "double"}, collect=True), item=["x"])  # fmt: skip
    with pytest.raises(ValueError, match=r"phase 'read_0' reads live.*would wait"):
        async with ServiceManager(log=None) as manager:
            await manager.run(too_many, items(3))
    enough = Pipeline("p", Phase("double", double), *phases, item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(enough, items(3))
    assert report.results == {f"read_{n}": 3 for n in range(readers)}
