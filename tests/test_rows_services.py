"""The capabilities of rows.md about services and pools (28, 32 to 34, 42), each with what used to be wrong there."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from kgas_async import (
    KGASTool,
    MemorySink,
    Phase,
    Pipeline,
    Pool,
    RestartPolicy,
    Service,
    ServiceManager,
    ServiceStartFailed,
    ToolAdapter,
    tool,
)
from kgas_async.testing import assert_clean, explore


class Connections:
    """Counts how many are open."""

    def __init__(self) -> None:
        self.open = self.peak = self.made = 0
        self.lock = threading.Lock()

    def connect(self) -> Connection:
        with self.lock:
            self.made += 1
            self.open += 1
            self.peak = max(self.peak, self.open)
        return Connection(self)


class Connection:
    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    def query(self) -> int:
        return 1

    def close(self) -> None:
        with self.connections.lock:
            self.connections.open -= 1


class Queries(KGASTool):
    def __init__(self, pool: Pool[Connection]) -> None:
        self.pool = pool

    async def execute_async(self, n: int) -> int:
        async with self.pool.acquire() as connection:
            await anyio.sleep(0.001)
            return n * connection.query()


class QueriesInThread(ToolAdapter):
    def __init__(self, pool: Pool[Connection]) -> None:
        def query(n: int) -> int:
            with pool.acquire() as connection:
                return n * connection.query()

        super().__init__(query)
        self.pool = pool


@pytest.mark.parametrize("how", [Queries, QueriesInThread])
async def test_row_28_a_pool_of_ten_opens_ten_and_its_first_query_gets_an_answer(how: type) -> None:
    connections = Connections()
    pool = Pool(connections.connect, 10, close=Connection.close)
    queries = how(pool)
    async with ServiceManager(pool, log=None) as manager:
        assert await manager.execute(queries, n=7) == 7
        async with manager.map(queries, range(100), arg="n", in_flight=100) as outcomes:
            assert [outcome.value async for outcome in outcomes] == list(range(100))
        assert connections.peak <= 10
        assert connections.made == pool.statistics().made <= 10
        assert pool.statistics().served == 101
    assert connections.open == 0


class Part(Service):
    def __init__(self, name: str, story: list[str], *needed: Service, bad_stop: bool = False) -> None:
        self.name = name
        self.story = story
        self.needed = needed
        self.bad_stop = bad_stop
        self.failing_starts = 0
        self.crash = anyio.Event()

    @property
    def requires(self) -> tuple[Service, ...]:
        return self.needed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.crash = anyio.Event()
        if self.failing_starts:
            self.failing_starts -= 1
            raise OSError(f"{self.name} is not there yet")
        self.story.append(f"+{self.name}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._crash)
            yield
            tasks.cancel_scope.cancel()
        self.story.append(f"-{self.name}")
        if self.bad_stop:
            raise OSError("does not stop well")

    async def _crash(self) -> None:
        await self.crash.wait()
        raise ConnectionError(f"{self.name} is gone")


async def test_row_32_a_failed_start_leaves_nothing_running_and_a_failing_stop_skips_no_other() -> None:
    story: list[str] = []
    one = Part("one", story)
    bad = Part("bad", story, one)
    bad.failing_starts = 1
    with pytest.raises(ServiceStartFailed, match="bad is not there yet"):
        async with ServiceManager(bad, log=None):
            pytest.fail("the body must not run")
    assert story == ["+one", "-one"]
    story.clear()
    async with ServiceManager(Part("a", story), Part("b", story, bad_stop=True), Part("c", story), log=None):
        pass
    assert story[3:] == ["-c", "-b", "-a"]


@explore(seeds=5)
async def test_row_32_a_start_up_is_tried_again() -> None:
    service = Part("slow to come up", [])
    service.restart = RestartPolicy(3, wait=1.0)
    service.failing_starts = 3
    manager = ServiceManager(service, log=None)
    async with manager:
        assert manager.statistics().services == ["slow to come up"]
        assert (await manager.health()).services[0].restarts == 3
    assert_clean(manager)


@explore(seeds=5)
async def test_row_33_a_phase_that_comes_after_others_begins_when_they_have_ended() -> None:
    story: list[str] = []

    @tool
    async def slow(x: int) -> int:
        await anyio.sleep(10)
        story.append("slow")
        return x

    @tool
    async def quick(x: int) -> int:
        story.append("quick")
        return x

    @tool
    async def last(x: int) -> int:
        story.append("last")
        return x

    pipeline = Pipeline(
        "p", Phase("slow", slow), Phase("quick", quick), Phase("last", last, after=["slow", "quick"]), item=["x"]
    )
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 1}])
    assert report.ok
    assert story == ["quick", "slow", "last"]


@explore(seeds=5)
async def test_row_34_a_service_is_asked_how_it_is_and_started_again() -> None:
    service = Part("db", [])
    service.restart = RestartPolicy(wait=1.0)
    sink = MemorySink()
    manager = ServiceManager(service, evidence=sink, log=None)
    async with manager:
        service.crash.set()
        await anyio.sleep(0.5)
        down = (await manager.health())["db"]
        assert (down.status, str(down.error)) == ("restarting", "db is gone")
        await anyio.sleep(1)
        up = (await manager.health())["db"]
        assert (up.status, up.error, up.restarts) == ("healthy", None, 1)
    states = [r["event"] for r in sink.records if r["event"].startswith("service.")]
    assert states == [
        *("service.starting", "service.started", "service.crashed", "service.restarting"),
        *("service.starting", "service.started", "service.stopped"),
    ]


@explore(seeds=5)
async def test_row_42_models_are_loaded_once_shared_and_unloaded_when_idle_or_in_the_way() -> None:
    loaded: list[str] = []

    async def load(name: str) -> str:
        await anyio.sleep(30)
        loaded.append(name)
        return name.upper()

    models = Pool(load, 3, users=None, timeout=None, max_idle=1800, max_bytes=8_000, cost=lambda name: len(name) * 1000)

    async def use(name: str) -> None:
        async with models.acquire(name) as model:
            assert model == name.upper()
            await anyio.sleep(60)

    async with ServiceManager(models, log=None):
        async with anyio.create_task_group() as tasks:
            for name in ("en", "de", "en", "en", "de"):
                tasks.start_soon(use, name)
            await anyio.sleep(40)
            now = models.statistics()
            assert (now.open, now.users, now.bytes) == (2, 5, 4_000)
        assert sorted(loaded) == ["de", "en"]
        await use("large")  # 5,000 of 8,000: one of the idle ones has to go
        assert models.statistics().evicted == 1
        await anyio.sleep(2_000)
        assert models.statistics().open == 0
