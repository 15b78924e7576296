"""All limits under random callers, in virtual time, on both loops, under seeds: what a model says holds at each moment.

The model of a concurrency limit looks through everything each time; `test_priority` holds its line to an exact one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import AdaptiveLimit, ConcurrencyLimit, KeyTokens, RateLimit
from kgas_async.testing import assert_clean, virtual_backend

from .loops import SEED

pytestmark = pytest.mark.anyio  # so that they are among those that KGAS_TEST_SEED runs
BOTH = pytest.mark.parametrize("name", ["asyncio", "trio"])


def run_virtually(name: str, seed: int, function: Any, *args: Any) -> Any:
    backend, options = virtual_backend(name, seed + 1000 * (SEED or 0))
    return anyio.run(function, *args, backend=backend, backend_options=options)


@dataclass(frozen=True)
class Caller:
    """Comes at a time, wants a token, holds it for a while, and may lose patience or be cancelled while it holds."""

    at: float
    holds: float
    patience: float
    priority: int
    key: str


callers = st.lists(
    st.builds(
        Caller,
        at=st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.5]),
        holds=st.sampled_from([0.0, 1.0, 1.0, 2.0, 5.0]),
        patience=st.sampled_from([0.0, 1.0, 4.0, 1e6, 1e6]),
        priority=st.sampled_from([0, 3, 3, 9]),
        key=st.sampled_from("aab"),
    ),
    min_size=1,
    max_size=25,
)
resizes = st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.5, 4.0]), st.integers(1, 4)), max_size=3)


@dataclass
class World:
    """Who holds and who waits, as the callers themselves say."""

    limit: Any
    per_key: int
    holding: Counter[str] = field(default_factory=Counter)
    waiting: dict[int, Caller] = field(default_factory=dict)
    served: list[int] = field(default_factory=list)
    allowed: int = 0  # tokens that may be out: a total that was lowered lets running ones end

    def check(self) -> None:
        now = self.limit.statistics()
        # A token that was handed over is out, also before its caller has woken up.
        assert self.holding.total() <= now.borrowed <= max(self.allowed, now.total)
        self.allowed = max(now.total, min(self.allowed, now.borrowed))
        assert all(count <= self.per_key for count in self.holding.values())

    def check_settled(self) -> None:
        """Nobody moves: who still waits has a reason."""
        self.check()
        now = self.limit.statistics()
        assert (now.borrowed, now.waiting) == (self.holding.total(), len(self.waiting))
        if now.borrowed < now.total:
            assert all(self.holding[one.key] >= self.per_key for one in self.waiting.values())


def door(limit: ConcurrencyLimit, key: str) -> ConcurrencyLimit | KeyTokens:
    return limit if limit.key is None else limit.for_key(key)


async def use(limit: ConcurrencyLimit, per_key: int, crowd: list[Caller], resizes: list[tuple[float, int]]) -> World:
    world = World(limit, per_key, allowed=limit.total)
    begin = anyio.current_time()

    async def call(number: int, caller: Caller) -> None:
        await anyio.sleep_until(begin + caller.at)
        token = door(limit, caller.key)
        world.waiting[number] = caller
        try:
            with anyio.move_on_after(caller.patience) as scope:
                await token.acquire(caller.priority)
        finally:
            del world.waiting[number]
        if scope.cancelled_caught:
            return
        world.holding[caller.key] += 1
        world.served.append(number)
        world.check()
        try:
            with anyio.move_on_after(caller.patience):
                await anyio.sleep(caller.holds)
        finally:
            world.holding[caller.key] -= 1
            token.release()

    async def resize() -> None:
        for at, total in sorted(resizes):
            await anyio.sleep_until(begin + at)
            world.allowed = max(world.allowed, total)
            limit.total = total

    async def look() -> None:
        for half in range(30):
            await anyio.sleep_until(begin + half / 2 + 0.25)
            world.check_settled()

    with anyio.fail_after(1000):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(resize)
            tasks.start_soon(look)
            for number, caller in enumerate(crowd):
                tasks.start_soon(call, number, caller)
    assert_clean(limit)
    assert limit.statistics().keys == 0
    return world


@BOTH
@settings(max_examples=80, deadline=None)
@given(total=st.integers(1, 4), crowd=callers, resizes=resizes, seed=st.integers(0, 1000))
def test_a_concurrency_limit_with_priorities(
    name: str, total: int, crowd: list[Caller], resizes: list[tuple[float, int]], seed: int
) -> None:
    world = run_virtually(name, seed, use, ConcurrencyLimit(total), 1000, crowd, resizes)
    patient = {number for number, caller in enumerate(crowd) if caller.patience == 1e6}
    assert patient <= set(world.served)  # nobody who waits is forgotten


@BOTH
@settings(max_examples=80, deadline=None)
@given(total=st.integers(1, 4), per_key=st.integers(1, 3), crowd=callers, resizes=resizes, seed=st.integers(0, 1000))
def test_a_limit_with_keys(
    name: str, total: int, per_key: int, crowd: list[Caller], resizes: list[tuple[float, int]], seed: int
) -> None:
    limit = ConcurrencyLimit(total, key="key", per_key=per_key)
    world = run_virtually(name, seed, use, limit, per_key, crowd, resizes)
    patient = {number for number, caller in enumerate(crowd) if caller.patience == 1e6}
    assert patient <= set(world.served)


@BOTH
@settings(max_examples=60, deadline=None)
@given(crowd=callers, seed=st.integers(0, 1000))
def test_who_waits_at_one_moment_is_served_by_priority_and_in_order(name: str, crowd: list[Caller], seed: int) -> None:
    # Few enough that ageing does not come in.
    chosen = crowd[:8]

    async def serve() -> list[int]:
        limit = ConcurrencyLimit(1)
        served: list[int] = []

        async def call(number: int) -> None:
            await limit.acquire(chosen[number].priority)
            served.append(number)
            limit.release()

        async with anyio.create_task_group() as tasks, limit:
            for number in range(len(chosen)):
                tasks.start_soon(call, number)
                await anyio.wait_all_tasks_blocked()
        return served

    served = run_virtually(name, seed, serve)
    assert served == sorted(range(len(chosen)), key=lambda number: (-chosen[number].priority, number))


# --- rates with keys


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.5, 20),
    burst=st.integers(1, 5),
    arrivals=st.lists(st.tuples(st.floats(0, 2), st.sampled_from("abc")), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
)
def test_a_rate_with_keys_is_one_token_bucket_for_each(
    name: str, rate: float, burst: int, arrivals: list[tuple[float, str]], seed: int
) -> None:
    limit = RateLimit(rate, burst=burst, key="host")
    starts: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    comes = list(zip(itertools.accumulate(gap for gap, _ in arrivals), (key for _, key in arrivals), strict=True))

    async def caller(at: float, key: str) -> None:
        await anyio.sleep_until(at)
        await limit.of({"host": key}).acquire()
        starts[key].append(anyio.current_time())

    async def main() -> None:
        zero = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for at, key in comes:
                tasks.start_soon(caller, zero + at, key)
        assert limit.statistics().taken == len(arrivals)
        assert limit.statistics().waiting == 0
        await anyio.sleep(burst / rate + 1)  # all are full again
        for _ in range(10):
            limit.of({"host": "d"})
        assert limit.statistics().keys == 0
        for at in starts.values():
            at[:] = [one - zero for one in at]

    run_virtually(name, seed, main)
    for key in "abc":
        level, now = float(burst), 0.0  # the model
        expected = []
        for arrival in (at for at, of in comes if of == key):
            at = max(arrival, now)
            level = min(burst, level + (at - now) * rate)
            if level < 1:
                at += (1 - level) / rate
                level = 1.0
            level -= 1
            now = at
            expected.append(at)
        assert starts[key] == pytest.approx(expected, abs=1e-6)


# --- adaptive limits


@BOTH
@settings(max_examples=25, deadline=None)
@given(
    least=st.integers(1, 3),
    more=st.integers(0, 20),
    slowdown=st.lists(st.sampled_from([1.0, 1.0, 2.0, 8.0]), min_size=1, max_size=4),
    share_dropped=st.sampled_from([0.0, 0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_an_adaptive_limit_is_within_its_bounds_and_never_exceeded(
    name: str, least: int, more: int, slowdown: list[float], share_dropped: float, seed: int
) -> None:
    limit = AdaptiveLimit(least, least + more)
    totals = set()

    async def main() -> None:
        inside = number = 0

        async def work() -> None:
            nonlocal inside, number
            for factor in slowdown:
                for _ in range(10):
                    try:
                        async with limit:
                            number += 1
                            mine = number
                            inside += 1
                            totals.add(limit.total)
                            assert inside <= limit.statistics().borrowed <= max(totals)
                            try:
                                await anyio.sleep(factor)
                            finally:
                                inside -= 1
                            if mine % 10 < 10 * share_dropped:
                                raise TimeoutError
                    except TimeoutError:
                        pass

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(work)

    run_virtually(name, seed, main)
    assert totals <= set(range(least, least + more + 1))
    assert_clean(limit)
