"""Calls with each policy that makes them resilient, cancelled at each suspension point: permits, flights and tokens
come back, and each call has one end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sniffio
from anyio import current_time, sleep
from anyio.lowlevel import checkpoint

from kgas_async import (
    Cache,
    CircuitBreaker,
    CircuitOpen,
    KGASTool,
    Policy,
    Retry,
    RetryBudget,
    ToolAdapter,
    check_cancelled,
    tool,
)
from kgas_async.testing import sweep, virtual_backends

from .sweep_world import World


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def swept(
    world: World, make: Callable[[], Awaitable[object]], check: Callable[[], object], least: int = 3
) -> None:
    def checked(point: int) -> None:
        world.check(point)
        check()

    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(make, check=checked, mode=mode, timeout_s=600) >= least


class Flaky(KGASTool):
    """Fails so many times for each input, and cleans up."""

    idempotent = True

    def __init__(self, world: World, fails: int = 1, seconds: float = 1) -> None:
        self.policy = Policy(concurrency=[world.limit], rate=world.rate, grace=2)
        self.fails = fails
        self.seconds = seconds
        self.tries: Counter[int] = Counter()

    async def execute_async(self, x: int) -> int:
        await checkpoint()
        self.tries[x] += 1
        await sleep(self.seconds)
        if self.tries[x] <= self.fails:
            raise OSError("again")
        return x

    async def cleanup_resources(self, call: Any) -> None:
        await checkpoint()


@tool
async def spare(x: int) -> int:
    await sleep(1)
    return -x


async def test_a_breaker_in_each_of_its_states(world: World) -> None:
    breakers: list[CircuitBreaker] = []

    async def use() -> None:
        breakers[:] = [CircuitBreaker(2, recovery=5)]
        flaky = Flaky(world, fails=2).using(breaker=breakers[0])
        async with world.manager() as manager:
            for _ in range(2):
                await manager.outcome(flaky, x=1)
            assert isinstance((await manager.outcome(flaky, x=1)).error, CircuitOpen)
            await sleep(5)
            calls = [manager.submit(flaky, x=1) for _ in range(3)]
            assert sorted([(await call.outcome()).status for call in calls]) == ["rejected", "rejected", "succeeded"]
            assert breakers[0].state == "closed"

    await swept(world, use, lambda: _no_probe_is_out(breakers), least=6)


def _no_probe_is_out(breakers: list[CircuitBreaker]) -> None:
    for breaker in breakers:
        assert breaker.statistics().probes == 0


async def test_a_retry_with_a_budget(world: World) -> None:
    async def use() -> None:
        budget = RetryBudget(0.5, min_per_s=1)
        flaky = Flaky(world, fails=2).using(retry=Retry(5, wait=1, budget=budget))
        async with world.manager() as manager:
            assert await manager.execute(flaky, x=1) == 1

    await swept(world, use, lambda: None, least=6)


async def test_fallbacks(world: World) -> None:
    async def use() -> None:
        alone = spare.using(name="alone", isolated=True)
        async with world.manager() as manager:
            for last in (spare, alone):
                flaky = Flaky(world, fails=9).using(fallback=[Flaky(world, 9).using(name="second"), last], deadline=60)
                assert await manager.execute(flaky, x=1) == -1

    await swept(world, use, lambda: None, least=8)


async def test_a_cache_with_calls_that_wait_for_one_flight(world: World) -> None:
    class Store:
        kept: dict[str, Any]

        async def get(self, key: str, default: Any, /) -> Any:
            await checkpoint()
            return self.kept.get(key, default)

        async def set(self, key: str, value: Any, ttl: float | None, /) -> None:
            await sleep(0.1)
            self.kept[key] = value

    states: list[Any] = []

    async def use() -> None:
        store = Store()
        store.kept = {}
        async with world.manager() as manager:
            session = manager._opened()
            states[:] = [session]
            for number, cache in enumerate((Cache(60), Cache(60, store=store), Cache(0))):
                flaky = Flaky(world, fails=0).using(name=f"flaky{number}", cache=cache)
                calls = [manager.submit(flaky, x=1) for _ in range(3)]
                assert await manager.execute(flaky, x=1) == 1
                assert [await call.result() for call in calls] == [1, 1, 1]

    def check() -> None:
        for session in states:
            assert not session.cache_waits
            assert not any(state.flights for state in session.states.values())

    await swept(world, use, check, least=8)


async def test_hedges(world: World) -> None:
    class Slow(Flaky):
        async def execute_async(self, x: int) -> int:
            self.tries[x] += 1
            await sleep(10 if self.tries[x] % 2 else 1)
            return x

    async def use() -> None:
        breaker = CircuitBreaker(1)
        async with world.manager() as manager:
            slow = Slow(world).using(hedge_after=2, breaker=breaker, timeout=30)
            began = current_time()
            assert await manager.execute(slow, x=1) == 1
            assert current_time() - began < 4
            assert breaker.state == "closed"

    await swept(world, use, lambda: None, least=6)


async def test_hedged_threads(world: World) -> None:
    def works(x: int) -> int:
        check_cancelled()
        return x

    hedged = ToolAdapter(
        works,
        on_cancel="abandon",
        idempotent=True,
        policy=Policy(hedge_after=0.05, concurrency=[world.limit], rate=world.rate),
    )

    async def use() -> None:
        async with world.manager(abandoned="join") as manager:
            assert await manager.execute(hedged, x=1) == 1

    await swept(world, use, lambda: None)


async def test_all_of_them_together(world: World) -> None:
    async def use() -> None:
        breaker = CircuitBreaker(5)
        everything = Flaky(world, fails=3, seconds=3).using(
            breaker=breaker,
            retry=Retry(2, wait=0.5, budget=RetryBudget()),
            fallback=spare,
            hedge_after=1,
            cache=60,
            timeout=10,
            deadline=60,
        )
        async with world.manager() as manager:
            call = manager.submit(everything, x=1)
            assert await manager.execute(everything, x=1) in (1, -1)
            await call.result()
            assert (await manager.outcome(everything, x=1)).ok

    await swept(world, use, lambda: None, least=8)
