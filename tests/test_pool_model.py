"""Pools against models: the decisions by themselves, on a clock that is told, and whole pools in virtual time."""

from __future__ import annotations

import math
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kgas_async import Pool, ServiceManager
from kgas_async._pool_core import Entry, PoolBounds, PoolCore, Waiter
from kgas_async.testing import assert_clean, virtual_backend

COSTS = {"a": 1, "b": 2, "c": 3}
FOREVER = math.inf


def _has_one_coming(waiter: Waiter) -> bool:
    return waiter.coming is not None and waiter.coming.state in ("making", "checking")


class PoolMachine(RuleBasedStateMachine):
    """Asks, gives back, fails, hangs and waits in any order; looks at what must hold after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1.0
        self.core: Any = None
        self.asked: list[Waiter] = []  # in the order of their asking, as long as they wait
        self.holding: list[Waiter] = []
        self.ordered: list[tuple[str, Entry]] = []  # under way
        self.ended: list[Waiter] = []

    @initialize(
        size=st.integers(1, 4),
        users=st.sampled_from([1, 2, None]),
        max_uses=st.sampled_from([1, 3, FOREVER]),
        max_age=st.sampled_from([5.0, FOREVER]),
        max_idle=st.sampled_from([2.0, FOREVER]),
        max_bytes=st.sampled_from([3, 5, FOREVER]),
        checks=st.booleans(),
    )
    def begin(self, **bounds: Any) -> None:
        self.core = PoolCore(PoolBounds(**bounds))

    def _take_orders(self) -> None:
        while self.core.orders:
            order, entry = self.core.orders.popleft()
            if order == "close":  # also what was to be made or checked
                self.ordered = [one for one in self.ordered if one[1] is not entry]
            assert not any(of is entry for _, of in self.ordered), "two things at once with one resource"
            self.ordered.append((order, entry))

    @rule(key=st.sampled_from("abc"), patience=st.sampled_from([1.0, 4.0, FOREVER]))
    def ask(self, key: str, patience: float) -> None:
        waiter = Waiter(key, self.now, self.now + patience, lambda: self._settled(waiter), COSTS[key])
        self.asked.append(waiter)
        self.core.ask(waiter)

    def _settled(self, waiter: Waiter) -> None:
        if waiter.entry is None:
            assert waiter.error is not None
            self.ended.append(waiter)
        else:
            before = self.asked[: self.asked.index(waiter)]
            assert not any(one.key == waiter.key for one in before), "served out of order"
            assert all(_has_one_coming(one) for one in before), "whoever waits for room would wait for ever"
            assert waiter.entry.key == waiter.key
            assert waiter.entry.state == "ready"
            assert not waiter.entry.is_broken
            self.holding.append(waiter)
        self.asked.remove(waiter)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.asked))
        self.asked.remove(waiter)
        self.core.withdraw(waiter, self.now)

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), how=st.sampled_from(["fine", "broken", "doubtful", "withdrawn"]))
    def give_back(self, data: st.DataObject, how: str) -> None:
        waiter = data.draw(st.sampled_from(self.holding))
        self.holding.remove(waiter)
        if how == "withdrawn":  # cancelled just as it was served
            self.core.withdraw(waiter, self.now)
        else:
            self.core.release(waiter.entry, self.now, broken=how == "broken", doubtful=how == "doubtful")

    @precondition(lambda self: self.ordered)
    @rule(data=st.data(), is_fine=st.booleans())
    def obey(self, data: st.DataObject, is_fine: bool) -> None:
        order, entry = data.draw(st.sampled_from(self.ordered))
        self.ordered.remove((order, entry))
        if order == "make" and is_fine:
            self.core.made(entry, object(), self.now)
        elif order == "make":
            self.core.failed(entry, OSError(), self.now)
        elif order == "check":
            self.core.checked(entry, self.now, ok=is_fine)
        else:
            self.core.gone(entry, self.now)

    @precondition(lambda self: any(entry.state == "ready" for entry in self.core.entries))
    @rule(data=st.data())
    def end_on_its_own(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([one for one in self.core.entries if one.state == "ready"]))
        self.core.gone(entry, self.now)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        while self.core.next_due() <= self.now:
            self.core.tick(self.now)
            self._take_orders()

    @invariant()
    def is_right(self) -> None:
        if self.core is None:
            return
        core, bounds = self.core, self.core.bounds
        self._take_orders()
        now = core.statistics()
        assert now.open <= bounds.size
        assert now.peak <= bounds.size
        assert sum(COSTS[entry.key] for entry in core.entries) <= bounds.max_bytes
        assert core.waiting == self.asked
        for entry in core.entries:
            held = sum(1 for waiter in self.holding if waiter.entry is entry)
            assert entry.users == held <= (bounds.users or FOREVER)
            assert entry.uses <= bounds.max_uses
            under_way = [order for order, of in self.ordered if of is entry]
            assert under_way == {"making": ["make"], "checking": ["check"], "closing": ["close"]}.get(entry.state, [])
            is_spent = entry.is_broken or entry.uses >= bounds.max_uses
            assert not (is_spent and entry.state == "ready" and not entry.users)  # it would never be closed
        if self.asked:
            self._head_is_served_as_far_as_can_be(self.asked[0])

    def _head_is_served_as_far_as_can_be(self, head: Waiter) -> None:
        core, bounds = self.core, self.core.bounds
        if _has_one_coming(head):
            return
        for entry in core.entries:
            is_full = entry.uses >= bounds.max_uses or entry.users >= (bounds.users or FOREVER)
            is_open = entry.state == "ready" and not entry.is_broken and not is_full
            assert not (entry.users and entry.key == head.key and is_open), "it could be shared"
        idle = [entry for entry in core.entries if entry.state == "ready" and not entry.users]
        assert not [entry for entry in idle if entry.key == head.key], "an idle one, and somebody waits for it"
        leaving = [entry for entry in core.entries if entry.state == "closing"]
        staying = [entry for entry in core.entries if entry not in leaving and entry not in idle]
        has_room = len(staying) < bounds.size
        has_room = has_room and sum(e.cost for e in staying) + COSTS[head.key] <= bounds.max_bytes
        assert not has_room or leaving, "room could be made, and nobody makes it"

    def teardown(self) -> None:
        """When all is given back, everything can be closed and nobody is left."""
        if self.core is None:
            return
        being_made = [entry for entry in self.core.entries if entry.state == "making"]
        self.core.close(lambda: OSError("over"))
        assert not self.asked
        for entry in being_made[::2]:  # it came just then
            self.core.made(entry, object(), self.now)
        for waiter in list(self.holding):
            self.holding.remove(waiter)
            self.core.release(waiter.entry, self.now)
        while self.ordered or self.core.orders:
            self._take_orders()
            order, entry = self.ordered.pop()
            if order == "check":
                self.core.checked(entry, self.now, ok=True)
            elif order == "make":
                self.core.made(entry, object(), self.now)
            else:
                self.core.gone(entry, self.now)
        assert not self.core.entries


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase


# --- whole pools

USERS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 8),
            "holds": st.integers(0, 4),
            "key": st.sampled_from("abc"),
            "ends": st.sampled_from(["well", "well", "by an error", "cancelled"]),
            "after": st.integers(0, 6),
        }
    ),
    min_size=1,
    max_size=25,
)


class Resource:
    def __init__(self, key: str) -> None:
        self.key = key
        self.users = 0


class Story:
    """One pool and its users, in virtual time; the last of 25 may have to wait for 140 seconds."""

    def __init__(self, users: list[dict[str, Any]], failing: set[int], options: dict[str, Any]) -> None:
        self.users = users
        self.failing = failing
        self.open: list[Resource] = []
        self.tries = 0
        self.served = 0
        self.size = options["size"]
        self.most_users = options["users"]
        self.pool: Pool[Resource] = Pool(self.make, close=self.close, timeout=200, name="pool", **options)

    async def make(self, key: str) -> Resource:
        self.tries += 1
        tries = self.tries
        await anyio.sleep(1.5)
        if tries in self.failing:
            raise OSError(f"try {tries}")
        resource = Resource(key)
        self.open.append(resource)
        assert len(self.open) <= self.size
        return resource

    async def close(self, resource: Resource) -> None:
        await anyio.sleep(0.25)
        assert resource.users == 0
        self.open.remove(resource)

    async def use(self, user: dict[str, Any]) -> None:
        await anyio.sleep(user["at"])
        with anyio.CancelScope() as scope:
            if user["ends"] == "cancelled":
                scope.deadline = anyio.current_time() + user["after"]
            try:
                async with self.pool.acquire(user["key"]) as resource:
                    assert resource in self.open
                    assert resource.key == user["key"]
                    resource.users += 1
                    self.served += 1
                    try:
                        assert resource.users <= (self.most_users or 99)
                        await anyio.sleep(user["holds"])
                        if user["ends"] == "by an error":
                            raise KeyError("the user's own")
                    finally:
                        resource.users -= 1
            except KeyError:
                assert user["ends"] == "by an error"
            except TimeoutError:  # which is an OSError too
                raise
            except OSError:
                assert self.failing

    async def run(self) -> None:
        manager = ServiceManager(self.pool, log=None)
        async with manager:
            with anyio.fail_after(1000):
                async with anyio.create_task_group() as tasks:
                    for user in self.users:
                        tasks.start_soon(self.use, user)
            await anyio.sleep(3)  # what is being made for those who left
            now = self.pool.statistics()
            assert (now.in_use, now.users, now.waiting, now.timed_out) == (0, 0, 0, 0)
            assert now.open == now.idle == len(self.open) <= self.size
            assert now.peak <= self.size
            assert now.served >= self.served
        assert not self.open
        assert_clean(manager)


@settings(deadline=None, max_examples=60)
@given(
    users=USERS,
    failing=st.sets(st.integers(1, 6), max_size=3),
    size=st.integers(1, 4),
    sharing=st.sampled_from([1, 2, None]),
    max_uses=st.sampled_from([1, 2, None]),
    seed=st.integers(0, 9),
    backend=st.sampled_from(["asyncio", "trio"]),
)
def test_random_users_of_a_pool_lose_and_overdraw_nothing(
    users: list[dict[str, Any]],
    failing: set[int],
    size: int,
    sharing: int | None,
    max_uses: int | None,
    seed: int,
    backend: str,
) -> None:
    story = Story(users, failing, {"size": size, "users": sharing, "max_uses": max_uses})
    library, options = virtual_backend(backend, seed)
    anyio.run(story.run, backend=library, backend_options=options)
