"""Cancelled at each suspension in turn: tokens of limits by key, by priority, adaptive and by memory come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import (
    AdaptiveLimit,
    ConcurrencyLimit,
    MemoryLimit,
    Policy,
    Priority,
    RateLimit,
    check_cancelled,
    tool,
)
from kgas_async import _memory_limit as memory
from kgas_async.testing import assert_clean, sweep, virtual_backends

from .sweep_world import World


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@tool
async def in_task(host: str) -> str:
    await checkpoint()
    await anyio.sleep(0.5)
    return host


@tool
def in_thread(host: str) -> str:
    check_cancelled()
    return host


async def swept(world: World, limits: list[Any], make: Callable[[], Awaitable[object]], least: int = 3) -> None:
    def check(point: int) -> None:
        world.check(point)
        assert_clean(*limits)

    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(make, check=check, mode=mode, timeout_s=600) >= least


LIMITS: dict[str, Callable[[], Any]] = {
    "plain": lambda: ConcurrencyLimit(1),
    "keyed": lambda: ConcurrencyLimit(2, key="host", per_key=1),
    "queue": lambda: ConcurrencyLimit(1, max_queue=50),
    "adaptive": lambda: AdaptiveLimit(1, 3),
    "memory": lambda: MemoryLimit(1),
}
each = pytest.mark.parametrize("kind", LIMITS)


@each
@pytest.mark.parametrize("how", ["async", "thread"])
async def test_calls_that_wait_for_each_others_tokens(
    world: World, kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "EVERY_S", 0.1)
    monkeypatch.setattr(memory, "tree_rss_bytes", lambda: 1 << 40)
    limit = LIMITS[kind]()
    limited = (in_task if how == "async" else in_thread).using(concurrency=limit, timeout=5)

    async def use() -> None:
        async with world.manager() as manager:
            calls = [
                manager.options(priority=priority).submit(limited, host="ab"[number % 2])
                for number, priority in enumerate((Priority.LOW, Priority.CRITICAL, Priority.NORMAL, Priority.HIGH))
            ]
            await checkpoint()
            await manager.execute(limited, host="a")
            for call in calls:
                await call.result()

    await swept(world, [limit], use, least=4)


@each
async def test_code_that_enters_a_limit(world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "tree_rss_bytes", lambda: 1 << 40)
    limit = LIMITS[kind]()
    door = limit.for_key("a") if kind == "keyed" else limit

    async def enter() -> None:
        async with door:
            await anyio.sleep(0.5)

    async def use() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(enter)
            await checkpoint()
            await enter()

    await swept(world, [limit], use)


async def test_calls_under_one_of_each(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "tree_rss_bytes", lambda: 1 << 40)
    limits = [make() for make in LIMITS.values()]
    rate = RateLimit(2, key="host")
    limited = in_task.using(
        concurrency=limits, rate=[rate, world.rate], deadline=100, timeout=5, priority=Priority.HIGH
    )

    async def use() -> None:
        async with world.manager() as manager:
            calls = [manager.submit(limited, host=host) for host in "aab"]
            await checkpoint()
            await manager.execute(limited, host="a")  # waits for a token and for the rate
            for call in calls:
                await call.result()

    assert Policy(concurrency=limits).concurrency == tuple(limits)
    await swept(world, [*limits, rate], use, least=5)


async def test_a_limit_whose_total_changes(world: World) -> None:
    limit = ConcurrencyLimit(1)
    limited = in_task.using(concurrency=limit)

    async def use() -> None:
        limit.total = 1
        async with world.manager() as manager:
            calls = [manager.submit(limited, host="a") for _ in range(6)]
            await checkpoint()
            limit.total = 3
            await anyio.sleep(0.2)
            limit.total = 2
            for call in calls:
                await call.result()

    await swept(world, [limit], use)
