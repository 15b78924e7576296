"""Exploring orders: many distinct ones, each replayable, and a failure that says how."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from kgas_async._bare import run_bare
from kgas_async.testing import explore

BOTH = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Bank:
    """An account with a lost update in it, which some orders show."""

    def __init__(self) -> None:
        self.balance = 0

    async def deposit(self) -> None:
        before = self.balance
        await anyio.lowlevel.checkpoint()
        self.balance = before + 1


async def race_of_two_with_pauses() -> None:
    bank = Bank()

    async def late() -> None:
        await anyio.lowlevel.checkpoint()
        await bank.deposit()

    async with anyio.create_task_group() as group:
        group.start_soon(bank.deposit)
        group.start_soon(late)
    assert bank.balance == 2


def orders(backend: str, seeds: int | list[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []

    async def one() -> None:
        taken: list[int] = []
        lock = anyio.Lock()

        async def work(number: int) -> None:
            for _ in range(3):
                await anyio.sleep(1)
                async with lock:
                    await anyio.lowlevel.checkpoint()
                    taken.append(number)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(work, number)
        found.append(tuple(taken))

    explore(one, seeds=seeds, backends=backend)
    return found


@BOTH
def test_thirty_seeds_are_many_orders_and_each_can_be_replayed(backend: str) -> None:
    seen = orders(backend, 30)
    assert len(set(seen)) >= 29
    assert [orders(backend, [seed])[0] for seed in range(30)] == seen
    assert orders(backend, [17, 3]) == [seen[17], seen[3]]


@BOTH
def test_a_race_is_found_and_its_note_says_how_to_replay_it(backend: str) -> None:
    with pytest.raises(AssertionError) as caught:
        explore(race_of_two_with_pauses, seeds=50, backends=[backend])
    (note,) = caught.value.__notes__
    seed = int(note.partition("seed ")[2].partition(";")[0])
    assert note == (
        f"explore: backend {backend!r}, seed {seed};"
        f" replay with explore(race_of_two_with_pauses, seeds=[{seed}], backends=[{backend!r}])"
    )
    for _ in range(3):
        with pytest.raises(AssertionError):
            explore(race_of_two_with_pauses, seeds=[seed], backends=[backend])


def test_runs_every_seed_on_every_backend_in_virtual_time() -> None:
    ran: list[tuple[str, float]] = []

    async def test() -> None:
        await anyio.sleep(3000)
        ran.append((type(anyio.Event()).__module__, anyio.current_time()))

    started = time.perf_counter()
    explore(test, seeds=20)
    assert len(ran) == 40
    assert len({where for where, _ in ran}) == 2
    assert {round(at) for _, at in ran} == {3000}
    assert time.perf_counter() - started < 2


ran_by_decorator: list[str] = []


@explore(seeds=[4, 5], backends=["trio"])
async def test_decorator_makes_a_sync_test_of_an_async_one() -> None:
    """Two runs."""
    await anyio.sleep(1)
    ran_by_decorator.append("run")


@explore(seeds=2)
async def test_decorated_test_takes_fixtures(tmp_path: Path) -> None:
    await anyio.sleep(1)
    assert tmp_path.is_dir()  # noqa: ASYNC240  (nothing else runs)


def test_decorated_test_keeps_its_name_and_runs_its_seeds() -> None:
    explored = test_decorator_makes_a_sync_test_of_an_async_one
    assert explored.__name__ == "test_decorator_makes_a_sync_test_of_an_async_one"
    assert explored.__doc__ == "Two runs."
    ran_by_decorator.clear()
    explored()
    assert ran_by_decorator == ["run", "run"]


@BOTH
def test_a_deadlock_is_reported_at_once_with_where_each_task_waits(backend: str) -> None:
    waits_at = []

    async def deadlock() -> None:
        first, second = anyio.Lock(), anyio.Lock()

        async def take(one: anyio.Lock, other: anyio.Lock) -> None:
            async with one:
                await anyio.sleep(1)
                waits_at.append(sys._getframe().f_lineno + 1)
                async with other:
                    pass

        async with anyio.create_task_group() as group:
            group.start_soon(take, first, second, name="left")
            group.start_soon(take, second, first, name="right")

    started = time.perf_counter()
    with pytest.raises(TimeoutError, match="not ended after 3600 virtual seconds") as caught:
        explore(deadlock, seeds=1, backends=backend)
    assert time.perf_counter() - started < 2
    for name in ("left", "right"):
        (where,) = [line for line in str(caught.value).splitlines() if f"{name}: " in line]
        assert f"{__file__}:{waits_at[0]} in take, awaiting " in where


def test_the_time_limit_is_the_callers() -> None:
    async def slow() -> None:
        await anyio.sleep(2)

    explore(slow, seeds=1, timeout_s=3)
    with pytest.raises(TimeoutError, match="not ended after 1 virtual seconds"):
        explore(slow, seeds=1, timeout_s=1)


def test_threads_of_ours_work_in_it() -> None:
    async def call() -> None:
        with anyio.fail_after(0.001):
            await run_bare(lambda: time.sleep(0.01))

    explore(call, seeds=3)


def test_what_the_test_raises_comes_as_it_is() -> None:
    error = KeyboardInterrupt()

    async def interrupted() -> None:
        raise error

    with pytest.raises(KeyboardInterrupt) as caught:
        explore(interrupted, seeds=1, backends="trio")
    assert caught.value is error


@pytest.mark.parametrize("options", [{"seeds": 0}, {"seeds": []}, {"backends": []}])
def test_nothing_to_run_is_refused(options: dict[str, list[str]]) -> None:
    async def test() -> None: ...

    with pytest.raises(ValueError, match="at least one seed and one backend"):
        explore(test, **options)  # type: ignore[call-overload]
