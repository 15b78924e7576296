"""Cancelled at each suspension point in turn: tokens, tasks, threads and files come back, each call has one end."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import (
    Batcher,
    CallState,
    CallTimeout,
    Every,
    KGASTool,
    Phase,
    Pipeline,
    Policy,
    RateLimit,
    Retry,
    Service,
    ServiceStartFailed,
    ToolAdapter,
    check_cancelled,
    current,
    progress,
    tool,
)
from kgas_async.testing import sweep

from .loops import virtual
from .sweep_world import World, async_source, source


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def swept(world: World, make: Callable[[], Awaitable[object]], least: int = 3) -> None:
    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(make, check=world.check, mode=mode, timeout_s=600) >= least


class Thorough(KGASTool):
    """Uses everything that a call can wait for."""

    def __init__(self, world: World) -> None:
        self.policy = Policy(
            timeout=5, deadline=60, retry=Retry(3, wait=0.5), concurrency=[world.limit], rate=world.rate, grace=2
        )
        self.tries: Counter[int] = Counter()

    async def validate_inputs(self, **inputs: Any) -> dict[str, Any]:
        await checkpoint()
        return await super().validate_inputs(**inputs)

    async def execute_async(self, x: int) -> int:
        await checkpoint()
        self.tries[x] += 1
        if self.tries[x] % 3:
            raise OSError("again")
        await anyio.sleep(1)
        return x

    async def cleanup_resources(self, call: Any) -> None:
        await checkpoint()
        await anyio.sleep(0.1)


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def forever(x: int = 0) -> None:
    await anyio.sleep_forever()


@tool
def in_thread(x: int) -> int:
    check_cancelled()
    return 2 * x


class Store(Service):
    """Awaits in its start and its stop, and holds a task."""

    def __init__(self, world: World, *needed: Service, bad: bool = False) -> None:
        self.world = world
        self.needed = needed[0] if needed else None
        self.bad = bad

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await checkpoint()
        if self.bad:
            raise OSError("bad")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            self.world.services += 1
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await checkpoint()
                self.world.services -= 1
            group.cancel_scope.cancel()


# --- calls


async def test_an_async_call_with_every_policy(world: World) -> None:
    async def use() -> None:
        async with world.manager() as manager:
            await manager.execute(Thorough(world), x=1)

    await swept(world, use, least=8)


@pytest.mark.parametrize("how", ["async", "thread"])
async def test_a_call_that_waits_for_a_token_for_the_rate_and_for_a_thread(world: World, how: str) -> None:
    policy = Policy(concurrency=[world.limit], rate=[world.rate, RateLimit(0.5)])

    @tool(policy=policy)
    async def holds(x: int) -> None:
        await anyio.sleep(1)

    waits = (double if how == "async" else in_thread).using(concurrency=policy.concurrency, rate=policy.rate)

    async def use() -> None:
        async with world.manager() as manager:
            held = [manager.submit(holds, x=n) for n in range(2)]
            await checkpoint()
            await manager.execute(waits, x=1)
            await manager.execute(waits, x=2)
            for call in held:
                await call.wait()

    await swept(world, use, least=6)


async def test_calls_that_wait_for_each_others_tokens(world: World) -> None:
    async def use() -> None:
        thorough = Thorough(world)
        async with world.manager() as manager:
            calls = [manager.submit(thorough, x=n) for n in range(5)]
            for call in calls:
                await call.result()

    await swept(world, use)


@pytest.mark.parametrize("on_cancel", ["wait", "abandon"])
async def test_a_call_in_a_thread(world: World, on_cancel: Any) -> None:
    policy = Policy(timeout=5, retry=Retry(2, wait=0.1), concurrency=[world.limit], rate=world.rate)
    adapted = ToolAdapter(in_thread._plain, on_cancel=on_cancel, policy=policy)

    async def use() -> None:
        async with world.manager(abandoned="join") as manager:
            for n in range(3):
                await manager.execute(adapted, x=n)

    await swept(world, use)


@pytest.mark.parametrize("instances", ["serial", "per_thread", "dedicated"])
async def test_calls_of_an_object_that_is_not_shared(world: World, instances: Any) -> None:
    class Legacy:
        def execute(self, x: int) -> int:
            return x

    adapted = ToolAdapter(factory=Legacy, instances=instances)

    async def use() -> None:
        async with world.manager() as manager:
            calls = [manager.submit(adapted, x=n) for n in range(3)]
            for call in calls:
                await call.result()

    await swept(world, use)


async def test_nested_and_isolated_calls(world: World) -> None:
    @tool
    async def outer(x: int) -> int:
        inner = current().submit(double, x=x)
        return await current().execute(double.using(isolated=True), x=x) + await inner.result()

    @tool
    def outer_in_thread(x: int) -> int:
        return double.execute(x=x) + in_thread.execute(x=x)

    async def use() -> None:
        async with world.manager() as manager:
            await manager.execute(outer, x=1)
            await manager.execute(outer.using(name="alone", isolated=True), x=1)
            await manager.execute(outer_in_thread, x=1)

    await swept(world, use)


async def test_gather_and_race(world: World) -> None:
    tools = {"a": double.using(concurrency=world.limit), "b": in_thread, "c": double.using(isolated=True)}

    async def use() -> None:
        async with world.manager() as manager:
            assert await manager.gather(tools, {"x": 1}) == {"a": 2, "b": 2, "c": 2}
            assert (await manager.race({**tools, "d": forever}, {"x": 1})).value == 2
            with pytest.raises(CallTimeout):
                await manager.gather({"e": forever, "f": forever.using(timeout=1)})

    await swept(world, use, least=4)


async def test_named_calls_that_replace_each_other(world: World) -> None:
    async def use() -> None:
        async with world.manager() as manager:
            named = manager.options(name="one", replace=True)
            named.submit(forever)
            await checkpoint()
            named.submit(double, x=1)
            assert await named.execute(in_thread, x=1) == 2
            assert (await named.outcome(double.using(concurrency=world.limit), x=1)).value == 2
            assert not manager.calls

    await swept(world, use, least=4)


async def test_reading_the_events_of_a_call(world: World) -> None:
    @tool
    async def tells() -> None:
        progress(1)
        await anyio.sleep(1)
        progress(2)

    async def use() -> None:
        async with world.manager() as manager:
            call = manager.submit(tells)
            events = [event async for event in call.events()]
            assert isinstance(events[-1], CallState)
            assert events[-1].status == "succeeded"

    await swept(world, use)


# --- many


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("how", [double, in_thread, double.using(isolated=True)], ids=["async", "thread", "isolated"])
async def test_a_map(world: World, how: Any, ordered: bool) -> None:
    async def use() -> None:
        async with world.manager() as manager:
            async with manager.map(how, async_source(world, 6), in_flight=2, ordered=ordered) as outcomes:
                async for outcome in outcomes:
                    assert outcome.ok
            async with manager.map(how, source(world, 10**9), in_flight=2, ordered=ordered) as outcomes:
                await anext(outcomes)

    await swept(world, use, least=5)


def chunks(text: int) -> Iterator[int]:
    yield from range(text % 4)


@tool
async def merged(parts: list[int]) -> int:
    await checkpoint()
    return sum(parts)


def papers(world: World, *, lazy: bool) -> Pipeline:
    @tool(name="split", policy=Policy(concurrency=[world.limit]))
    async def split(text: int) -> list[int]:
        await checkpoint()
        return list(chunks(text))

    splits = tool(chunks) if lazy else split
    return Pipeline(
        "papers",
        Phase("text", double),
        Phase("chunks", splits, expand="chunk"),
        Phase("parts", in_thread, bind={"x": "chunk"}),
        Phase("merged", merged, collect="chunk"),
        Phase("all", merged.using(name="all"), bind={"parts": "merged"}, collect=True),
        item=["x"],
    )


@pytest.mark.parametrize("lazy", [False, True])
async def test_a_run_and_a_stream_left_early(world: World, lazy: bool) -> None:
    async def use() -> None:
        async with world.manager() as manager:
            pipeline = papers(world, lazy=lazy)
            report = await manager.run(pipeline, async_source(world, 4), in_flight=2)
            assert report.ok
            async with manager.stream(pipeline, source(world, 10**9), in_flight=2) as outcomes:
                await anext(outcomes)

    await swept(world, use, least=5)


async def test_a_service_that_runs_a_tool_again_and_again(world: World) -> None:
    async def use() -> None:
        every = [Every(1, double, {"x": 1}), Every(2, in_thread, {"x": 1}), Every(1, forever, overlap=True)]
        async with world.manager(*every) as manager:
            await anyio.sleep(2.5)
            await manager.execute(double, x=1)

    await swept(world, use)


@pytest.mark.parametrize("how", ["async", "thread"])
async def test_calls_that_are_coalesced(world: World, how: str) -> None:
    @tool
    async def doubles(xs: list[int]) -> list[int]:
        await checkpoint()
        return [2 * x for x in xs]

    @tool
    def doubles_in_thread(xs: list[int]) -> list[int]:
        return [2 * x for x in xs]

    async def use() -> None:
        lists = (doubles if how == "async" else doubles_in_thread).using(concurrency=world.limit)
        batcher = Batcher(lists, max_size=2, max_queue=2, in_flight=1)
        async with world.manager(batcher) as manager:
            assert await batcher(xs=1) == 2
            calls = [manager.submit(batcher.tool, xs=n) for n in range(5)]
            assert [await call.result() for call in calls] == [0, 2, 4, 6, 8]

    await swept(world, use, least=4)


# --- the manager


async def test_draining_and_cancelling(world: World) -> None:
    async def use() -> None:
        async with world.manager() as manager:
            manager.submit(double, x=1)
            call = manager.submit(forever)
            await manager.cancel(call.id)
            manager.submit(forever)
            await manager.cancel()
            manager.submit(forever)
            await manager.drain()

    await swept(world, use, least=5)


async def test_start_and_stop_of_services(world: World) -> None:
    async def use() -> None:
        base = Store(world)
        async with world.manager(Store(world, base), Store(world, base)) as manager:
            await manager.start(Store(world, Store(world)))

    await swept(world, use)


async def test_a_start_of_services_that_fails(world: World) -> None:
    async def use() -> None:
        base = Store(world)
        with pytest.raises(ServiceStartFailed):
            async with world.manager(Store(world, base), Store(world, base, bad=True)):
                pass
        async with world.manager() as manager:
            with pytest.raises(ServiceStartFailed):
                await manager.start(Store(world, base, bad=True))
            await manager.start(base)

    await swept(world, use)


async def test_leaving_with_an_error_while_everything_runs(world: World) -> None:
    async def use() -> None:
        with pytest.raises(KeyError):
            async with world.manager(Store(world)) as manager:
                manager.submit(forever)
                manager.submit(Thorough(world), x=1)
                async with manager.map(forever, async_source(world, 9), in_flight=2):
                    await anyio.sleep(0.1)
                    raise KeyError

    await swept(world, use)
