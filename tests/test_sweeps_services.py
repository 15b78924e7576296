"""Restarts, health checks and pools, cancelled at each suspension point in turn, from outside and from inside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import Policy, Pool, RestartPolicy, Retry, Service, ServiceCrashed, ToolAdapter
from kgas_async._context import running_manager
from kgas_async._hosted import Hosted
from kgas_async._pool_motion import NO_KEY, _Kept
from kgas_async.testing import check_service, sweep

from .loops import virtual
from .sweep_world import World
from .test_supervision import Asks, Shaky
from .test_sweeps import swept


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def swept_inside(world: World, make: Callable[[], Awaitable[object]], least: int) -> None:
    """What runs in tasks of the session's own, which nobody cancels but by their scopes."""
    assert await sweep(make, check=world.check, timeout_s=600) >= least


class Counted(Shaky):
    """Is counted while it runs, and awaits in its stop; its checks await too, or run in a thread."""

    def __init__(self, world: World, name: str, *needed: Service, **options: Any) -> None:
        super().__init__(name, *needed, **options)
        self.world = world
        self.health_every = 0.5

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running():
            self.world.services += 1
            try:
                yield
            finally:
                self.world.services -= 1
                with anyio.CancelScope(shield=True):
                    await checkpoint()

    async def health(self) -> None:
        await checkpoint()
        self.ensure_running()


class CountedInThread(Counted):
    def health(self) -> None:  # type: ignore[override]
        self.ensure_running()


async def test_restarts_and_the_calls_that_wait_for_them(world: World) -> None:
    async def use() -> None:
        db = Counted(world, "db", restart=RestartPolicy(wait=1.0))
        cache = Counted(world, "cache", db)
        asks = Asks(cache, 1, Policy(retry=Retry(3, on=ServiceCrashed, wait=0.1), concurrency=[world.limit]))
        async with world.manager(cache) as manager:
            call = manager.submit(asks)
            await checkpoint()
            await checkpoint()
            db.crash()
            await manager.execute(asks)
            await call.wait()
            db.crash()
            await anyio.sleep(0.5)
            assert await manager.execute(asks) == 3
            await manager.start(cache)

    await swept(world, use, least=8)


async def test_a_service_that_is_given_up(world: World) -> None:
    async def use() -> None:
        db = Counted(world, "db", restart=RestartPolicy(1, wait=0.5))
        cache = Counted(world, "cache", db)
        async with world.manager(cache, on_crash="continue") as manager:
            for _ in range(2):
                db.crash()
                await anyio.sleep(1)
            assert manager.statistics().services == []
            assert not (await manager.outcome(Asks(cache))).ok
            await manager.start(cache)
            await manager.execute(Asks(cache))

    await swept(world, use, least=6)


async def test_health(world: World) -> None:
    async def use() -> None:
        services = [Counted(world, "db"), CountedInThread(world, "legacy")]
        async with world.manager(*services) as manager:
            assert (await manager.health()).ok
            await anyio.sleep(2)
            assert (await manager.health()).ok

    await swept(world, use, least=4)


@pytest.mark.parametrize("ends", ["crashes", "is told to end", "cannot start", "is ill"])
async def test_the_lives_of_a_service_from_inside(world: World, ends: str) -> None:
    async def use() -> None:
        service = Counted(world, "db", restart=RestartPolicy(2, wait=0.5, ill_after=1))
        user = Counted(world, "cache", service)
        async with world.manager(on_crash="continue") as manager:
            session = manager._opened()
            hosting = session.hosting
            hosted, by = Hosted(service), Hosted(user)
            hosting._register.all += [hosted, by]

            async def play() -> None:
                with anyio.CancelScope(shield=True):  # the body is what is cancelled, and waits for this
                    await anyio.sleep(0.2)
                    if ends == "crashes":
                        service.crash()
                    elif ends == "is ill" and hosted.life is not None:
                        hosted.life.ill = OSError("ill")
                        hosted.life.end.set()
                    await anyio.sleep(2)
                    await hosting._stop([hosted, by])

            if ends == "cannot start":
                service.fails_to_start = [1, 3]
            session.spawn(hosting._supervision.host, by)
            session.spawn(play)
            await hosting._supervision.host(hosted)
            assert not service._is_running
            assert service._held_by is None

    await swept_inside(world, use, least=4)


# --- checking a service


class Plain(Service):
    """Is counted while it runs; starts in two steps, stops in one, and is made again from its arguments."""

    def __init__(self, world: World, needed: Service | None = None) -> None:
        self.world = world
        self.needed = needed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await checkpoint()
        self.world.services += 1
        try:
            await anyio.sleep(0.1)
            yield
        finally:
            self.world.services -= 1
            with anyio.CancelScope(shield=True):
                await checkpoint()

    async def health(self) -> None:
        await checkpoint()

    async def use(self) -> None:
        self.ensure_running()
        await checkpoint()


@pytest.mark.parametrize("sweeps", [False, True], ids=["lives", "lives-and-is-cancelled"])
async def test_checking_a_service(world: World, sweeps: bool) -> None:
    """The check itself is cancelled, wherever it is: what it has started is stopped."""
    checked: list[int] = []

    async def use() -> None:
        service = Plain(world, Plain(world))
        async with world.manager():  # so that what runs besides is known
            await check_service(service, use=lambda one: one.use(), pickles=False, sweeps=sweeps)
        checked.append(1)

    await swept(world, use, least=10)
    assert checked  # the last time nobody cancels it


# --- pools


class Resources:
    """Made and closed with suspensions; counted as the world's services."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def make(self) -> object:
        await checkpoint()
        self.world.services += 1
        return object()

    async def close(self, resource: object) -> None:
        self.world.services -= 1
        await checkpoint()

    async def check(self, resource: object) -> None:
        await checkpoint()

    def make_sync(self) -> object:
        self.world.services += 1
        return object()

    def close_sync(self, resource: object) -> None:
        self.world.services -= 1

    @asynccontextmanager
    async def managed(self) -> AsyncIterator[object]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            resource = await self.make()
            try:
                yield resource
            finally:
                self.world.services -= 1
            tasks.cancel_scope.cancel()


def pools(world: World) -> list[Pool[object]]:
    of = Resources(world)
    return [
        Pool(of.make, 1, close=of.close, check=of.check, drop_on=OSError),
        Pool(of.managed, 1, max_uses=2),
        Pool(of.make_sync, 1, close=of.close_sync, same_thread=True),
    ]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["async", "managed", "thread"])
async def test_acquiring(world: World, kind: int) -> None:
    async def use() -> None:
        pool = pools(world)[kind]

        async def other() -> None:
            async with pool.acquire():
                await anyio.sleep(1)

        async with world.manager(pool):
            await pool.health()  # makes the first one
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                tasks.start_soon(other)
                await checkpoint()
                for _ in range(3):
                    async with pool.acquire():
                        await checkpoint()
                    await anyio.sleep(0.5)
            await checkpoint()
            now = pool.statistics()
            assert (now.in_use, now.waiting) == (0, 0)
            assert now.peak == 1

    await swept(world, use, least=6)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["async", "managed", "thread"])
async def test_asking_a_pool_for_its_health(world: World, kind: int) -> None:
    async def use() -> None:
        pool = pools(world)[kind]
        async with world.manager(pool) as manager:
            await pool.health()  # makes the first one, since there is none
            with pytest.raises(OSError, match="broken"):
                async with pool.acquire():
                    raise OSError("broken")
            await anyio.sleep(0.1)  # until it is closed
            assert (await manager.health()).ok  # makes another
            assert (pool.statistics().in_use, pool.statistics().waiting) == (0, 0)
            async with pool.acquire(), anyio.create_task_group() as tasks:
                tasks.start_soon(pool.health)  # there is one, though not to be had now

    await swept(world, use, least=4)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["async", "managed", "thread"])
async def test_the_lifetime_of_a_pool_from_inside(world: World, kind: int) -> None:
    async def use() -> None:
        pool = pools(world)[kind]
        async with world.manager() as manager:
            running_manager.set(manager)
            try:
                async with pool.running():
                    pool._is_running = True
                    async with pool.acquire():
                        await checkpoint()
                    await anyio.sleep(1)
                    async with pool.acquire():
                        await checkpoint()
            finally:
                pool._is_running = False
                running_manager.set(None)

    await swept(world, use, least=4)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["async", "managed", "thread"])
async def test_the_life_of_a_resource_from_inside(world: World, kind: int) -> None:
    async def use() -> None:
        pool = pools(world)[kind]
        async with world.manager(pool) as manager:
            motion = pool._motion
            assert motion is not None
            session = manager._opened()

            first = motion.make_waiter(NO_KEY, lambda: None)
            second = motion.make_waiter(NO_KEY, lambda: None)

            async def play() -> None:
                await anyio.sleep(1)
                motion.withdraw(first)  # given back
                await anyio.sleep(1)
                motion.put_in_line(second)  # checked, where there is a check
                await anyio.sleep(1)
                for entry in list(motion.core.entries):
                    motion.core.drop(entry)
                motion.withdraw(second)

            motion.core.ask(first)
            order, entry = motion.core.orders.popleft()
            assert order == "make"
            entry.kept = _Kept()
            session.spawn(play)
            await motion._keep(entry, entry.kept)

    await swept_inside(world, use, least=3)


async def test_a_pool_used_in_threads(world: World) -> None:
    async def use() -> None:
        of = Resources(world)
        pool = Pool(of.make_sync, 1, close=of.close_sync)

        def uses() -> None:
            with pool.acquire():
                pass

        class Uses(ToolAdapter):
            def __init__(self) -> None:
                super().__init__(uses)
                self.pool = pool

        async with world.manager(pool) as manager:
            calls = [manager.submit(Uses()) for _ in range(3)]
            async with pool.acquire():
                await checkpoint()
            for call in calls:
                await call.result()

    await swept(world, use, least=3)
