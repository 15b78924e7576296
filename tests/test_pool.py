"""Pools: never more open than the size, none lost, whatever is cancelled, hangs or fails."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Self

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallFailed,
    KGASTool,
    MemorySink,
    Policy,
    Pool,
    Service,
    ServiceManager,
    ServiceNotRunning,
    ToolAdapter,
    check_cancelled,
    current,
    tool,
)
from kgas_async._mailbox import Mailbox
from kgas_async.testing import assert_clean, explore


class Connection:
    """Knows whether it is open, and how many others are."""

    def __init__(self, world: World, number: int, key: Any = None) -> None:
        self.world = world
        self.number = number
        self.key = key
        self.users = 0
        world.open += 1
        world.peak = max(world.peak, world.open)

    def use(self) -> None:
        assert self in self.world.connections

    def end(self) -> None:
        self.use()
        self.world.connections.remove(self)
        self.world.open -= 1


class World:
    """Makes connections, in each of the ways."""

    def __init__(self, make_s: float = 1.0) -> None:
        self.make_s = make_s
        self.open = self.peak = self.made = self.tries = 0
        self.connections: list[Connection] = []
        self.failures: dict[int, Exception] = {}  # by the number of the try, from 1
        self.ill: set[int] = set()  # numbers of connections
        self.threads: list[tuple[str, int, str]] = []

    def _made(self, key: Any) -> Connection:
        self.made += 1
        connection = Connection(self, self.made, key)
        self.connections.append(connection)
        return connection

    async def make(self, key: Any = None) -> Connection:
        self.tries += 1
        tries = self.tries
        await anyio.sleep(self.make_s)
        if tries in self.failures:
            raise self.failures[tries]
        return self._made(key)

    async def close(self, connection: Connection) -> None:
        await checkpoint()
        connection.end()

    async def check(self, connection: Connection) -> None:
        await checkpoint()
        connection.use()
        if connection.number in self.ill:
            raise OSError(f"connection {connection.number} is ill")

    @asynccontextmanager
    async def managed(self, key: Any = None) -> AsyncIterator[Connection]:
        async with anyio.create_task_group() as tasks:  # must be left in the task that entered it
            tasks.start_soon(anyio.sleep_forever)
            connection = await self.make(key)
            try:
                yield connection
            finally:
                connection.end()
            tasks.cancel_scope.cancel()

    def _note_thread(self, what: str) -> None:
        self.threads.append((what, threading.get_ident(), threading.current_thread().name))

    def make_sync(self, key: Any = None) -> Connection:
        self._note_thread("make")
        self.tries += 1
        if self.tries in self.failures:
            raise self.failures[self.tries]
        return self._made(key)

    def close_sync(self, connection: Connection) -> None:
        self._note_thread("close")
        connection.end()

    def check_sync(self, connection: Connection) -> None:
        self._note_thread("check")
        if connection.number in self.ill:
            raise OSError(f"connection {connection.number} is ill")

    def pool(self, size: int = 2, **options: Any) -> Pool[Connection]:
        return Pool(self.make, size, **{"close": self.close, "name": "db", **options})


def manager_of(*services: Any, **options: Any) -> tuple[ServiceManager, MemorySink]:
    sink = MemorySink()
    options.setdefault("grace", 6)
    return ServiceManager(*services, evidence=sink, log=None, **options), sink


def failures(sink: MemorySink) -> list[tuple[str, str]]:
    return [(record["what"], record["error"]["type"]) for record in sink.records if record["event"] == "pool.failed"]


class Uses(KGASTool):
    """Holds a connection for a while."""

    def __init__(self, pool: Pool[Connection], hold_s: float = 1.0, key: Any = None) -> None:
        self.pool = pool
        self.hold_s = hold_s
        self.keys = () if key is None else (key,)

    async def execute_async(self) -> int:
        async with self.pool.acquire(*self.keys) as connection:
            connection.use()
            connection.users += 1
            assert connection.users == 1 or self.pool.bounds.users != 1
            try:
                await anyio.sleep(self.hold_s)
            finally:
                connection.users -= 1
        return connection.number


# --- making and reusing


@explore(seeds=5)
async def test_resources_are_made_when_needed_and_used_again() -> None:
    world = World()
    pool = world.pool(size=2)
    manager, _ = manager_of(pool)
    async with manager:
        assert pool.statistics().open == 0
        for _ in range(3):
            assert await manager.execute(Uses(pool)) == 1
        now = pool.statistics()
        assert (now.made, now.served, now.open, now.idle, now.in_use) == (1, 3, 1, 1, 0)
    assert world.open == 0
    assert pool.statistics().open == 0
    assert_clean(manager)


@explore(seeds=10)
async def test_many_callers_share_no_more_than_its_size() -> None:
    world = World()
    pool = world.pool(size=10)
    manager, _ = manager_of(pool)
    async with manager, manager.map(Uses(pool), [{}] * 100, in_flight=50) as outcomes:
        assert all([outcome.ok async for outcome in outcomes])
        now = pool.statistics()
        assert world.peak == world.made == now.peak == 10
        assert now.served == 100
        assert now.wait_s > 0
    assert world.open == 0
    assert_clean(manager)


@explore(seeds=10)
async def test_who_waits_is_served_in_order_by_what_comes_first() -> None:
    world = World(make_s=10)
    pool = world.pool(size=2, timeout=None)
    order: list[str] = []

    async def use(name: str, hold_s: float) -> None:
        async with pool.acquire():
            order.append(name)
            await anyio.sleep(hold_s)

    manager, _ = manager_of(pool)
    async with manager, anyio.create_task_group() as tasks:
        async with pool.acquire():
            tasks.start_soon(use, "a", 1)
            await wait_all_tasks_blocked()  # has a second one made
            tasks.start_soon(use, "b", 1)
            await wait_all_tasks_blocked()
        await anyio.sleep(0.5)
        assert order == ["a"]  # by the first one, before the second is there
        await anyio.sleep(1)
        assert order == ["a", "b"]
        assert world.made == 1


@explore(seeds=5)
async def test_what_was_used_last_is_used_first() -> None:
    world = World()
    pool = world.pool(size=2)
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire() as first, pool.acquire() as second:
            pass
        await anyio.sleep(1)
        async with pool.acquire() as third:
            assert third is first
    assert second is not first


@explore(seeds=10)
@pytest.mark.parametrize("how", ["async", "managed", "class", "thread", "partial"])
async def test_each_kind_of_factory(how: str) -> None:
    world = World(make_s=0.1)

    class Client(Connection):
        def __init__(self) -> None:
            world.made += 1
            world.connections.append(self)
            super().__init__(world, world.made)
            self.entered_in: int | None = None

        async def __aenter__(self) -> Self:
            self.entered_in = anyio.get_current_task().id
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            assert self.entered_in == anyio.get_current_task().id
            self.end()

    pools: dict[str, Callable[[], Pool[Any]]] = {
        "async": lambda: Pool(world.make, close=world.close),
        "managed": lambda: Pool(world.managed),
        "class": lambda: Pool(Client),
        "thread": lambda: Pool(world.make_sync, close=world.close_sync),
        "partial": lambda: Pool(functools.partial(world.make, key="k"), close=world.close),
    }
    pool = pools[how]()
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire() as connection:
            connection.use()
        async with pool.acquire() as again:
            assert again is connection
    assert (world.made, world.open) == (1, 0)
    assert all("reserved" in name for _, _, name in world.threads)
    assert pool.name.startswith("Pool(")
    assert_clean(manager)


async def test_what_makes_a_resource_is_no_part_of_the_call_that_wanted_it() -> None:
    found: list[Any] = []

    async def make() -> str:
        call = current().submit(tool(one_slot))
        await call.wait()
        found.append((current(), call.parent))
        return "made"

    class Asks(KGASTool):
        def __init__(self, pool: Pool[str]) -> None:
            self.pool = pool

        async def execute_async(self) -> str:
            async with self.pool.acquire() as value:
                return value

    pool = Pool(make)
    manager, _ = manager_of(pool)
    async with manager:
        assert await manager.execute(Asks(pool)) == "made"
    assert found == [(manager, None)]


# --- factories that fail or hang


@explore(seeds=10)
async def test_a_factory_that_fails_gives_its_place_back_and_its_error_to_who_asked() -> None:
    world = World()
    world.failures = {1: OSError("refused"), 3: OSError("refused again")}
    pool = world.pool(size=1)
    manager, sink = manager_of(pool)
    async with manager:
        with pytest.raises(OSError, match="refused"):
            async with pool.acquire():
                pytest.fail("there is no resource")
        async with pool.acquire() as connection:
            assert connection.number == 1
        now = pool.statistics()
        assert (now.failed, now.made, now.open) == (1, 1, 1)
    assert failures(sink) == [("factory", "OSError")]
    assert_clean(manager)


@explore(seeds=10)
async def test_a_factory_that_hangs_is_bounded_and_gives_its_place_back() -> None:
    world = World(make_s=1000)
    pool = world.pool(size=1, timeout=5)
    manager, sink = manager_of(pool)
    async with manager:
        began = anyio.current_time()
        with pytest.raises(TimeoutError, match="db"):
            async with pool.acquire():
                pytest.fail("there is no resource")
        assert anyio.current_time() - began == pytest.approx(5)
        await anyio.sleep(1)
        assert pool.statistics().open == 0
        world.make_s = 1
        async with pool.acquire() as connection:
            connection.use()
        assert world.peak == 1
    assert failures(sink) == [("factory", "TimeoutError")]
    assert_clean(manager)


@explore(seeds=10)
async def test_who_waits_too_long_is_told_how_it_stands_and_leaves_the_line() -> None:
    world = World()
    pool = world.pool(size=1, timeout=3)
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire():
            with pytest.raises(TimeoutError, match=r"db: none within 3 s: 1 of 1 are in use, 0 are being made, 1 wait"):
                async with pool.acquire():
                    pytest.fail("there is no resource")
        now = pool.statistics()
        assert (now.waiting, now.timed_out, now.idle) == (0, 1, 1)
    assert_clean(manager)


async def test_a_factory_that_hangs_in_its_thread_is_left_there_and_what_it_makes_late_is_closed() -> None:
    world = World()
    let_go = threading.Event()
    closed, mailbox = anyio.Event(), Mailbox.here()

    def make() -> Connection:
        if world.made == 0:
            world.made = 1
            let_go.wait()
        return world.make_sync()

    def close(connection: Connection) -> None:
        world.close_sync(connection)
        if connection.number == 3:
            mailbox.put(closed.set)

    pool = Pool(make, 1, close=close, timeout=0.05)
    manager, sink = manager_of(pool, abandoned="join")
    async with manager:
        with pytest.raises(TimeoutError):
            async with pool.acquire():
                pytest.fail("there is no resource")
        async with pool.acquire() as connection:  # its place was given back
            assert connection.number == 2
            let_go.set()
            await closed.wait()
    assert world.open == 0
    assert [record["event"] for record in sink.records].count("thread.abandoned") == 1
    assert_clean(manager)


# --- cancellation


@explore(seeds=30)
async def test_cancelled_users_lose_no_resource_and_open_no_other() -> None:
    world = World(make_s=0.3)
    pool = world.pool(size=3, drop_on=())
    manager, _ = manager_of(pool)

    async def use(number: int) -> None:
        with anyio.move_on_after(0.1 * (number % 12)):
            await Uses(pool, 0.4).execute_async()

    async with manager:
        for _ in range(4):
            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(use, number)
            await anyio.sleep(1)
            now = pool.statistics()
            assert (now.in_use, now.waiting) == (0, 0)
            assert world.open == now.open == now.idle <= 3
        assert world.peak <= 3
    assert world.open == 0
    assert_clean(manager)


@explore(seeds=30, backends="asyncio")
async def test_native_cancellation_loses_nothing_either() -> None:
    import asyncio

    world = World(make_s=0.3)
    pool = world.pool(size=2, drop_on=())
    manager, _ = manager_of(pool)
    async with manager:
        for step in range(12):
            users = [asyncio.create_task(Uses(pool, 0.3).execute_async()) for _ in range(6)]
            await anyio.sleep(0.1 * step)
            for number, user in enumerate(users):
                if number % 2:
                    user.cancel()
            await asyncio.wait(users)
            now = pool.statistics()
            assert (now.in_use, now.waiting, world.open) == (0, 0, now.open)
        assert world.peak == 2
    assert world.open == 0
    assert_clean(manager)


@explore(seeds=10)
async def test_what_is_being_made_for_one_who_left_serves_the_next() -> None:
    world = World(make_s=5)
    pool = world.pool(size=1)
    manager, _ = manager_of(pool)
    async with manager:
        with anyio.move_on_after(1):
            async with pool.acquire():
                pytest.fail("it is not made yet")
        began = anyio.current_time()
        async with pool.acquire():
            assert anyio.current_time() - began == pytest.approx(4)
        assert world.made == 1


# --- broken ones, checks, age


@explore(seeds=5)
async def test_an_error_in_the_block_drops_it_unless_told_otherwise() -> None:
    world = World()
    every, chosen, told = world.pool(), world.pool(drop_on=ConnectionError), world.pool(drop_on=lambda error: False)
    manager, _ = manager_of(every, chosen, told)
    async with manager:
        for pool, error, dropped in (
            (every, ValueError(), 1),
            (chosen, ValueError(), 0),
            (chosen, ConnectionResetError(), 1),
            (told, ConnectionError(), 0),
        ):
            with pytest.raises(type(error)):
                async with pool.acquire():
                    raise error
            await anyio.sleep(0.1)
            assert pool.statistics().dropped == dropped
            assert pool.statistics().open == 1 - dropped
        with anyio.move_on_after(1.5):
            async with every.acquire():
                await anyio.sleep_forever()
        await anyio.sleep(0.1)
        assert every.statistics().dropped == 2  # a cancellation leaves it in an unknown state, too
    assert world.open == 0


@explore(seeds=5)
async def test_a_user_can_say_that_it_is_broken() -> None:
    world = World()
    pool = world.pool()
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire() as connection:
            pool.drop(connection)
        async with pool.acquire() as other:
            assert other is not connection
        assert pool.statistics().dropped == 1


@explore(seeds=10)
@pytest.mark.parametrize("how", ["async", "thread"])
async def test_one_that_fails_its_check_is_replaced_before_it_is_handed_out(how: str) -> None:
    world = World()
    pool = world.pool(check=world.check)
    if how == "thread":
        pool = Pool(world.make_sync, 2, close=world.close_sync, check=world.check_sync, name="db")
    manager, sink = manager_of(pool)
    async with manager:
        async with pool.acquire() as connection:
            assert connection.number == 1
        await anyio.sleep(1)
        world.ill = {1}
        async with pool.acquire() as connection:
            assert connection.number == 2
        assert pool.statistics().dropped == 1
    assert failures(sink) == [("check", "OSError")]
    assert world.open == 0
    assert_clean(manager)


@explore(seeds=5)
async def test_one_kept_after_an_error_is_checked_at_once() -> None:
    world = World()
    pool = world.pool(size=1, check=world.check, drop_on=())
    manager, _ = manager_of(pool)
    async with manager:
        with pytest.raises(ValueError, match="x"):
            async with pool.acquire() as connection:
                world.ill = {1}
                raise ValueError("x")
        async with pool.acquire() as connection:
            assert connection.number == 2


@explore(seeds=5)
async def test_a_check_that_hangs_is_bounded_by_the_timeout() -> None:
    world = World()

    async def hangs(connection: Connection) -> None:
        if connection.number == 1:
            await anyio.sleep_forever()

    pool = world.pool(size=2, check=hangs, timeout=3)
    manager, sink = manager_of(pool)
    async with manager:
        async with pool.acquire():
            pass
        await anyio.sleep(1)
        with pytest.raises(TimeoutError):
            async with pool.acquire():
                pytest.fail("it was not checked")
        async with pool.acquire() as connection:
            assert connection.number == 2
    assert failures(sink) == [("check", "TimeoutError")]


@explore(seeds=5)
async def test_age_uses_and_idleness_end_a_resource() -> None:
    for options, wait_s, numbers in (
        ({"max_age": 10}, 6, [1, 1, 2, 2]),
        ({"max_uses": 2}, 0, [1, 1, 2, 2]),
        ({"max_idle": 5}, 6, [1, 2, 3, 4]),
        ({"max_idle": 5}, 4, [1, 1, 1, 1]),
    ):
        world = World(make_s=0)
        pool = world.pool(**options)
        manager, _ = manager_of(pool)
        async with manager:
            for number in numbers:
                async with pool.acquire() as connection:
                    assert connection.number == number, options
                await anyio.sleep(wait_s)
            await anyio.sleep(20)
            assert pool.statistics().open == (1 if "max_uses" in options and numbers[-1] != 2 else world.open)
            assert pool.statistics().evicted == world.made - world.open
        assert world.open == 0


@explore(seeds=5)
async def test_idle_ones_are_closed_in_time_without_anybody_asking() -> None:
    world = World()
    pool = world.pool(max_idle=60)
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire(), pool.acquire():
            pass
        assert world.open == 2
        await anyio.sleep(59)
        assert world.open == 2
        await anyio.sleep(2)
        assert world.open == pool.statistics().open == 0


@explore(seeds=5)
async def test_one_that_ends_on_its_own_is_replaced() -> None:
    world = World()
    fuses: list[anyio.Event] = []

    @asynccontextmanager
    async def fragile() -> AsyncIterator[Connection]:
        fuse = anyio.Event()

        async def burn() -> None:
            await fuse.wait()
            raise ConnectionError("lost")

        async with anyio.create_task_group() as tasks:
            fuses.append(fuse)
            tasks.start_soon(burn)
            connection = await world.make()
            try:
                yield connection
            finally:
                connection.end()
            tasks.cancel_scope.cancel()

    pool = Pool(fragile, 1)
    manager, sink = manager_of(pool)
    async with manager:
        async with pool.acquire() as connection:
            assert connection.number == 1
        fuses[0].set()
        await anyio.sleep(1)
        assert pool.statistics().open == 0
        async with pool.acquire() as connection:
            assert connection.number == 2
            fuses[1].set()  # also while it is in use
            await anyio.sleep(1)
        async with pool.acquire() as connection:
            assert connection.number == 3
    assert [what for what, _ in failures(sink)] == ["resource", "resource"]
    assert world.peak == 1
    assert_clean(manager)


# --- shared ones, keys, memory


@explore(seeds=10)
async def test_a_shared_resource_is_made_once_and_used_by_all_at_once() -> None:
    world = World(make_s=60)
    pool = world.pool(size=3, users=None, timeout=None)
    manager, _ = manager_of(pool)
    async with manager:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(Uses(pool, 5, "small").execute_async)
            await anyio.sleep(61)
            now = pool.statistics()
            assert (now.open, now.in_use, now.users) == (1, 1, 20)
        assert world.made == 1
        assert pool.statistics().users == 0
    assert world.open == 0


@explore(seeds=10)
async def test_a_shared_one_that_cannot_be_made_fails_all_who_wait_for_it() -> None:
    world = World()
    world.failures = {1: OSError("no such model")}
    pool = world.pool(users=None)
    errors: list[BaseException] = []
    manager, _ = manager_of(pool)

    async def use() -> None:
        try:
            async with pool.acquire("x"):
                pytest.fail("there is no resource")
        except OSError as error:
            errors.append(error)

    async with manager:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(use)
        assert len({id(error) for error in errors}) == 3
        assert {str(error) for error in errors} == {"no such model"}
        assert world.tries == 1


@explore(seeds=10)
async def test_an_error_of_one_user_does_not_drop_what_others_use() -> None:
    world = World()
    pool = world.pool(users=None)
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire("x") as mine:
            with pytest.raises(ValueError, match="theirs"):
                async with pool.acquire("x") as theirs:
                    assert theirs is mine
                    raise ValueError("theirs")
            mine.use()
        assert pool.statistics().dropped == 0


@explore(seeds=10)
async def test_at_most_so_many_users_share_one() -> None:
    world = World()
    pool = world.pool(size=2, users=2)
    manager, _ = manager_of(pool)
    async with manager, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(Uses(pool, 10).execute_async)
        await anyio.sleep(5)
        now = pool.statistics()
        assert (now.open, now.users, now.waiting) == (2, 4, 1)


@explore(seeds=10)
async def test_the_longest_unused_model_makes_room_for_another() -> None:
    world = World()
    pool = world.pool(size=2, users=None)
    manager, _ = manager_of(pool)
    async with manager:
        for key in ("a", "b", "a", "c"):
            async with pool.acquire(key) as model:
                assert model.key == key
            await anyio.sleep(1)
        assert sorted(model.key for model in world.connections) == ["a", "c"]
        assert world.peak == 2
        assert pool.statistics().evicted == 1


@explore(seeds=10)
async def test_the_memory_cap_holds_and_a_model_in_use_is_waited_for() -> None:
    world = World()
    sizes = {"small": 2, "medium": 3, "large": 6, "huge": 11}
    pool = world.pool(size=100, users=None, max_bytes=10, cost=sizes.__getitem__)
    order: list[str] = []
    manager, _ = manager_of(pool)

    async def use(key: str, hold_s: float) -> None:
        async with pool.acquire(key):
            order.append(key)
            assert sum(sizes[one.key] for one in world.connections) <= 10
            await anyio.sleep(hold_s)

    async with manager:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, "large", 10)
            await anyio.sleep(2)
            tasks.start_soon(use, "medium", 1)
            await anyio.sleep(3)
            assert order == ["large", "medium"]
            assert pool.statistics().bytes == 9
            tasks.start_soon(use, "small", 1)  # the idle medium one makes room
            await anyio.sleep(3)
            assert order == ["large", "medium", "small"]
            assert sorted(one.key for one in world.connections) == ["large", "small"]
            tasks.start_soon(use, "medium", 100)
            await anyio.sleep(2)
            assert [one.key for one in world.connections] == ["large", "medium"]
        with pytest.raises(ValueError, match="takes 11 bytes, more than max_bytes=10"):
            async with pool.acquire("huge"):
                pytest.fail("it is too large")
    assert world.open == 0


# --- ending


@explore(seeds=10)
async def test_on_leaving_all_are_closed_and_who_waits_is_told() -> None:
    world = World()
    pool = world.pool(size=1)
    manager, _ = manager_of(pool)
    told: list[BaseException] = []

    async def wait() -> None:
        try:
            async with pool.acquire():
                pytest.fail("there is no resource")
        except ServiceNotRunning as error:
            told.append(error)

    async with anyio.create_task_group() as tasks:
        async with manager:
            lease = pool.acquire()
            await lease.__aenter__()
            tasks.start_soon(wait)
            await anyio.sleep(2)
        assert len(told) == 1
        await lease.__aexit__(None, None, None)  # late, and harmless
    with pytest.raises(ServiceNotRunning):
        async with pool.acquire():
            pass
    assert world.open == 0
    assert_clean(manager)


@explore(seeds=10)
@pytest.mark.parametrize("how", ["hangs", "raises"])
async def test_a_bad_close_is_bounded_and_on_record(how: str) -> None:
    world = World()

    async def close(connection: Connection) -> None:
        connection.end()
        if how == "hangs":
            await anyio.sleep_forever()
        raise OSError("cannot close")

    pool = world.pool(size=3, close=close)
    manager, sink = manager_of(pool)
    async with manager:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        began = anyio.current_time()
    assert anyio.current_time() - began <= 2.1  # a third of the grace
    assert failures(sink) == [("close", "TimeoutError" if how == "hangs" else "OSError")] * 3
    (stopped,) = [r["event"] for r in sink.records if r["event"] in ("service.stopped", "service.failed")]
    assert stopped == "service.stopped"
    assert_clean(manager)


@explore(seeds=5)
async def test_a_pool_is_entered_again() -> None:
    world = World()
    pool = world.pool()
    manager, _ = manager_of(pool)
    for lifetime in range(1, 4):
        async with manager:
            assert await manager.execute(Uses(pool)) == lifetime
    assert world.open == 0


def test_a_pool_that_is_not_started_pickles() -> None:
    import pickle

    pool = pickle.loads(pickle.dumps(Pool(nullcontext, 3, timeout=5)))
    assert (pool.bounds.size, pool.timeout) == (3, 5)


# --- health


@explore(seeds=5)
async def test_it_is_ill_where_no_resource_can_be_had() -> None:
    world = World()
    world.failures = {1: OSError("refused")}
    pool = world.pool()
    manager, _ = manager_of(pool)
    async with manager:
        report = await manager.health()
        assert report["db"].status == "ill"
        assert str(report["db"].error) == "refused"
        assert (await manager.health()).ok
        assert world.made == 1
        async with pool.acquire(), pool.acquire():
            assert (await manager.health()).ok  # all in use is no illness


# --- sync tools


class UsesInThread(ToolAdapter):
    def __init__(self, pool: Pool[Any], function: Callable[..., Any], **options: Any) -> None:
        super().__init__(functools.partial(function, pool), name="uses", **options)
        self.pool = pool


def use(pool: Pool[Connection]) -> int:
    with pool.acquire() as connection:
        connection.use()
        return connection.number


async def test_sync_tools_use_it_in_their_threads() -> None:
    world = World()
    pool = Pool(world.make_sync, 2, close=world.close_sync)
    manager, _ = manager_of(pool, threads=8)
    async with manager, manager.map(UsesInThread(pool, use), [{}] * 50, in_flight=20) as outcomes:
        assert all([outcome.ok async for outcome in outcomes])
        assert world.peak <= 2
        assert pool.statistics().served == 50
    assert world.open == 0
    assert_clean(manager)


def one_slot() -> str:
    return "ran"


async def test_a_thread_that_waits_for_a_resource_lends_its_slot() -> None:
    world = World(make_s=0)
    pool = world.pool(size=1)
    manager, _ = manager_of(pool, threads=1)

    async with manager:
        async with pool.acquire():
            waiting = manager.submit(UsesInThread(pool, use))
            while not pool.statistics().waiting:
                await checkpoint()
            assert await manager.execute(tool(one_slot)) == "ran"
        assert await waiting.result() == 1
    assert_clean(manager)


async def test_a_thread_that_waits_for_a_resource_is_told_when_its_call_is_cancelled() -> None:
    world = World(make_s=0)
    pool = world.pool(size=1)
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire():
            waiting = manager.submit(UsesInThread(pool, use))
            while not pool.statistics().waiting:
                await checkpoint()
            waiting.cancel()
            assert (await waiting.outcome()).status == "cancelled"
            assert not waiting.abandoned
            timing_out = UsesInThread(pool, use, policy=Policy(timeout=0.05))
            assert (await manager.outcome(timing_out)).status == "timed_out"
            assert pool.statistics().waiting == 0
        assert pool.statistics().idle == 1
    assert_clean(manager)


async def test_a_thread_that_is_left_with_a_resource_closes_it_when_it_is_done() -> None:
    world = World()
    begun, let_go, mailbox = anyio.Event(), threading.Event(), Mailbox.here()
    ended = threading.Event()
    used: list[Connection] = []

    def hangs(pool: Pool[Connection]) -> None:
        with pool.acquire() as connection:
            mailbox.put(begun.set)
            let_go.wait()
            connection.use()
            used.append(connection)

    def close(connection: Connection) -> None:
        world.close_sync(connection)
        ended.set()

    pool = Pool(world.make_sync, 2, close=close)
    manager, _ = manager_of(pool, grace=0.05)
    async with manager:
        manager.submit(UsesInThread(pool, hangs))
        await begun.wait()
    assert world.open == 1  # the manager was left, and did not close it under the thread
    let_go.set()
    assert ended.wait(10)
    assert len(used) == 1
    assert world.open == 0


async def test_errors_and_timeouts_reach_the_thread() -> None:
    world = World()
    world.failures = {1: OSError("refused")}
    pool = Pool(world.make_sync, 1, close=world.close_sync, timeout=0.05)
    manager, _ = manager_of(pool)
    async with manager:
        for expected in (OSError, TimeoutError):
            with pytest.raises(CallFailed) as caught:
                if expected is TimeoutError:
                    async with pool.acquire():
                        await manager.execute(UsesInThread(pool, use))
                else:
                    await manager.execute(UsesInThread(pool, use))
            assert isinstance(caught.value.__cause__, expected)
    assert_clean(manager)


async def test_a_blocking_with_on_the_loop_is_refused_with_the_mend() -> None:
    pool = World().pool()
    manager, _ = manager_of(pool)
    async with manager:
        with pytest.raises(RuntimeError, match="write 'async with"), pool.acquire():
            pass


async def test_each_resource_can_have_a_thread_of_its_own() -> None:
    world = World()
    pool = Pool(world.make_sync, 2, close=world.close_sync, check=world.check_sync, same_thread=True)
    manager, _ = manager_of(pool)
    async with manager:
        async with pool.acquire(), pool.acquire():
            pass
        await anyio.sleep(0.001)
        async with pool.acquire(), pool.acquire():
            pass
    threads = {thread for _, thread, _ in world.threads}
    assert len(threads) == 2
    for thread in threads:
        assert sorted(what for what, one, _ in world.threads if one == thread) == ["check", "close", "make"]
    assert_clean(manager)


def test_a_blocking_program_uses_it_from_its_own_thread() -> None:
    world = World()
    pool = Pool(world.make_sync, 2, close=world.close_sync)
    with ServiceManager(pool, log=None).blocking():
        assert use(pool) == 1
    with pytest.raises(ServiceNotRunning):
        use(pool)


# --- misuse


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Pool\(factory\) is a function, not 3"):
        Pool(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="give both, or neither"):
        Pool(nullcontext, max_bytes=10)
    with pytest.raises(ValueError, match=r"Pool\(size\) must be at least 1"):
        Pool(nullcontext, 0)
    with pytest.raises(ValueError, match=r"Pool\(timeout\) must be above 0"):
        Pool(nullcontext, timeout=0)
    with pytest.raises(TypeError, match="did you mean 'max_idle'"):
        Pool(nullcontext, max_ilde=3)  # type: ignore[call-overload]


async def test_a_lease_is_for_one_block() -> None:
    pool = World(make_s=0).pool()
    manager, _ = manager_of(pool)
    async with manager:
        lease = pool.acquire()
        async with lease:
            pass
        with pytest.raises(RuntimeError, match=r"call acquire\(\) for each"):
            async with lease:
                pass


async def test_it_requires_the_service_that_its_factory_belongs_to() -> None:
    class Server(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield

        async def connect(self) -> str:
            self.ensure_running()
            return "connected"

    pool = Pool(Server().connect)
    manager, _ = manager_of(pool)
    async with manager, pool.acquire() as connected:
        assert connected == "connected"
        assert manager.statistics().services == ["Server", "Pool(connect)"]


async def test_check_cancelled_works_in_a_factorys_thread() -> None:
    def make() -> None:
        while True:
            check_cancelled()

    pool = Pool(make, timeout=0.05)
    manager, _ = manager_of(pool, abandoned="join")
    async with manager:
        with pytest.raises(TimeoutError):
            async with pool.acquire():
                pass
    assert_clean(manager)
