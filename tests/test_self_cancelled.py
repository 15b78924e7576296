"""Functions of services, pools and tools that cancel themselves: that is their failure, and ends no session unsaid.

asyncio: whoever awaits a task that was cancelled raises a cancellation that nobody has asked for. trio: a group of a
cancellation and an error, of which a scope takes only the former.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from kgas_async import Cache, CallFailed, KGASTool, MemorySink, Pool, Service, ServiceCrashed, ServiceManager
from kgas_async.testing import assert_clean

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
Way = Callable[[], Awaitable[None]]


async def awaits_a_cancelled_task() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(100))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def cancels_its_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


ways = pytest.mark.parametrize("way", [awaits_a_cancelled_task, cancels_its_own_task])


class Asked(Service):
    """Ill at every second check."""

    health_every: float | None = 0.01

    def __init__(self, way: Way) -> None:
        self.way = way
        self.asked = 0
        self.often = anyio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def health(self) -> None:
        self.asked += 1
        if self.asked == 7:
            self.often.set()
        if self.asked % 2:
            await self.way()


@ways
@asyncio_only
async def test_a_health_check_says_that_it_is_ill_and_is_asked_again(way: Way) -> None:
    service, sink = Asked(way), MemorySink()
    manager = ServiceManager(service, evidence=sink, log=None)
    left_well = False
    async with manager:
        with anyio.fail_after(10):
            await service.often.wait()
        left_well = True
    assert left_well  # not cut off in the middle, with nothing raised
    assert_clean(manager)
    said = [record for record in sink.records if record["event"] == "service.health"]
    assert [record["status"] for record in said[:4]] == ["ill", "healthy", "ill", "healthy"]
    assert "cancelled by nobody but itself" in said[0]["error"]["message"]


async def test_a_health_check_whose_tasks_fail_as_its_time_is_up_is_ill_and_no_more() -> None:
    class Slow(Asked):
        health_every = None
        health_timeout = 0.02

        async def health(self) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                try:
                    await anyio.sleep_forever()
                finally:
                    raise LookupError("in its own clean-up")

    service = Slow(awaits_a_cancelled_task)
    async with ServiceManager(service, log=None) as manager:
        for _ in range(2):
            health = await manager.health()
            assert health["Slow"].status == "ill"
            assert isinstance(health["Slow"].error, ExceptionGroup)


@ways
@asyncio_only
async def test_a_factory_and_a_check_of_a_pool_fail_who_asked_and_not_the_pool(way: Way) -> None:
    made: list[int] = []
    checked: list[object] = []

    async def make() -> int:
        made.append(1)
        if len(made) == 1:
            await way()
        return len(made)

    async def check(resource: object) -> None:
        checked.append(resource)
        if len(checked) == 1:
            await way()

    sink = MemorySink()
    pool = Pool(make, 1, check=check, name="pool")
    manager = ServiceManager(pool, evidence=sink, log=None)
    got: list[int] = []
    async with manager:
        with anyio.fail_after(10):
            with pytest.raises(RuntimeError, match="cancelled by nobody but itself"):
                async with pool.acquire():
                    pass
            for _ in range(3):
                async with pool.acquire() as resource:
                    got.append(resource)
                await anyio.sleep(0.001)
    assert got == [2, 3, 3]
    assert [record["what"] for record in sink.records if record["event"] == "pool.failed"] == ["factory", "check"]
    assert_clean(manager)


class Careless(KGASTool):
    def __init__(self, way: Way) -> None:
        self.way = way

    async def execute_async(self, seconds: float = 0.0) -> None:
        await anyio.sleep(seconds)
        raise LookupError("its own")

    async def cleanup_resources(self, call: Any) -> None:
        await self.way()


@ways
@asyncio_only
async def test_a_clean_up_notes_it_on_the_calls_own_error(way: Way) -> None:
    tool = Careless(way)
    manager = ServiceManager(log=None)
    left_well = False
    async with manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(tool)
        assert any("was cancelled by nobody but itself" in note for note in caught.value.__notes__)
        outcome = await manager.submit(tool).outcome()
        assert (outcome.status, type(outcome.error)) == ("failed", CallFailed)
        call = manager.submit(tool, seconds=100)
        await anyio.sleep(0.01)
        call.cancel()
        assert (await call.outcome()).status == "cancelled"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.execute(tool, seconds=100), 0.01)
        with anyio.move_on_after(0.01) as scope:
            await manager.execute(tool, seconds=100)
        assert scope.cancelled_caught
        await anyio.sleep(0.01)
        left_well = True
    assert left_well
    assert_clean(manager)


@ways
@asyncio_only
async def test_a_stop_is_on_record_as_failed_where_the_session_is_cancelled_too(way: Way) -> None:
    class Stops(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield
            await way()

    class Crashes(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.crash)
                yield

        async def crash(self) -> None:
            await anyio.sleep(0.01)
            raise OSError("gone")

    sink = MemorySink()
    manager = ServiceManager(Stops(), Crashes(), evidence=sink, log=None)
    with pytest.raises(ServiceCrashed, match="gone"):
        async with manager:
            await anyio.sleep_forever()
    (failed,) = [record for record in sink.records if record["event"] == "service.failed"]
    assert (failed["service"], failed["error"]["message"]) == ("Stops", "service 'Stops' cancelled its own task")
    assert_clean(manager)


class Store:
    """Of a cache; keeps nothing."""

    def __init__(self, way: Way) -> None:
        self.way = way

    async def get(self, key: str, default: Any, /) -> Any:
        await self.way()

    async def set(self, key: str, value: Any, ttl: float | None, /) -> None:
        await self.way()


class Cached(KGASTool):
    async def execute_async(self, x: int) -> int:
        return x


@asyncio_only
async def test_a_store_costs_the_call_nothing() -> None:
    sink = MemorySink()
    tool = Cached().using(cache=Cache(60, store=Store(awaits_a_cancelled_task)))
    async with ServiceManager(evidence=sink, log=None) as manager:
        assert await manager.execute(tool, x=1) == 1
        assert (await manager.submit(tool, x=2).outcome()).value == 2
    said = [record["operation"] for record in sink.records if record["event"] == "cache.failed"]
    assert said == ["get", "set", "get", "set"]
