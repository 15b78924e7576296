"""Adaptive limits: what they decide from run times and drops, and what that does to a server that collapses."""

from __future__ import annotations

import math
import pickle
from contextlib import suppress
from typing import Any

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kgas_async import AdaptiveLimit, ConcurrencyLimit
from kgas_async._adaptive import AdaptiveCore
from kgas_async.testing import assert_clean, virtual_backend, virtual_backends

from .congestion import Server, callers, goodput

asyncio_only = pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")], ids=["asyncio-virtual"])


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"min": 0, "max": 5}, r"AdaptiveLimit\(min\) must be at least 1"),
        ({"min": 5, "max": 4}, r"AdaptiveLimit\(max\) must be at least 5"),
        ({"min": 2, "max": 4, "initial": 5}, r"AdaptiveLimit\(initial\) must be at most max, 4, not 5"),
        ({"min": 2, "max": 4, "initial": 1}, r"AdaptiveLimit\(initial\) must be at least 2"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        AdaptiveLimit(**options)


@pytest.mark.parametrize("options", [{"min": 1.0, "max": 5}, {"min": 1, "max": None}, {"min": 1, "max": 5, "on": 3}])
def test_a_value_of_a_wrong_type_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"AdaptiveLimit\((min|max|on)\)"):
        AdaptiveLimit(**options)


@pytest.mark.parametrize("kind", [BaseException, KeyboardInterrupt, int])
def test_what_is_no_error_is_refused_as_a_drop(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"AdaptiveLimit\(on\) is a type of Exception"):
        AdaptiveLimit(1, 5, on=(ValueError, kind))


def test_a_limit_pickles_by_its_arguments() -> None:
    limit = AdaptiveLimit(2, 50, initial=7, on=ConnectionError)
    limit.acquire_nowait()
    copy = pickle.loads(pickle.dumps(limit))
    assert repr(copy) == repr(limit) == "AdaptiveLimit(2, 50, initial=7, on=ConnectionError)"
    assert (copy.total, copy.statistics().borrowed) == (7, 0)


# --- the decisions


class Fed:
    """A core, and calls that end one after the other at the pace of a full server."""

    def __init__(self, core: AdaptiveCore) -> None:
        self.core = core
        self.now = 0.0

    def calls(self, count: int, run_s: float, in_flight: int | None = None, *, dropped: bool = False) -> set[str]:
        whys = set()
        for _ in range(count):
            flight = int(self.core.limit) if in_flight is None else in_flight
            self.now += run_s / max(1, flight)
            whys.add(self.core.observe(self.now, run_s, flight, dropped=dropped))
        return whys - {""}


def test_run_times_that_stay_as_they_were_raise_the_limit_up_to_its_maximum() -> None:
    fed = Fed(AdaptiveCore(1, 30, 1))
    assert fed.calls(2000, 1.0) == {"room"}
    assert fed.core.limit == 30


def test_run_times_that_grow_cut_the_limit_by_as_much() -> None:
    fed = Fed(AdaptiveCore(1, 1000, 100))
    fed.calls(400, 1.0)
    before = fed.core.limit
    while not (whys := fed.calls(1, 2.0)):
        pass
    assert whys == {"run time"}
    assert fed.core.limit == pytest.approx(before / 2, rel=0.1)


def test_drops_cut_the_limit_by_half_their_share() -> None:
    fed = Fed(AdaptiveCore(1, 1000, 100))
    assert fed.calls(50, 1.0, dropped=True) == {"drops"}
    assert fed.core.limit == 50
    fed.now += 10
    for _ in range(25):
        fed.calls(1, 1.0)
        fed.calls(1, 1.0, dropped=True)
    assert fed.core.limit == pytest.approx(50 * 0.75, rel=0.05)


@pytest.mark.parametrize(("run_s", "dropped"), [(1.0, False), (9.0, False), (1.0, True)])
def test_the_limit_does_not_move_while_less_than_half_of_it_is_in_use(run_s: float, dropped: bool) -> None:
    fed = Fed(AdaptiveCore(1, 1000, 100))
    fed.calls(99, 1.0, in_flight=49)
    assert fed.calls(5000, run_s, in_flight=49, dropped=dropped) == set()
    assert fed.core.limit == 100


def test_a_server_that_has_become_slow_for_good_is_not_cut_down_to_the_minimum() -> None:
    fed = Fed(AdaptiveCore(1, 100, 100))
    fed.calls(500, 1.0)
    lowest = 100.0
    for _ in range(5000):
        fed.calls(1, 3.0)  # whatever the limit is
        lowest = min(lowest, fed.core.limit)
    assert lowest >= 20
    assert fed.core.limit == 100
    assert fed.core.base_s == pytest.approx(3.0)


def test_at_the_minimum_the_run_time_is_what_it_is() -> None:
    fed = Fed(AdaptiveCore(4, 100, 4))
    fed.calls(100, 1.0, in_flight=4)
    fed.core.limit = 4.0
    fed.calls(100, 5.0, in_flight=4)
    assert fed.core.base_s == pytest.approx(5.0)


def test_another_clock_begins_another_window() -> None:
    limit = AdaptiveLimit(1, 100, initial=10)
    for clock in (lambda: 1e9, lambda: 5.0):
        for _ in range(100):
            limit.note_run(1.0, clock, 10)
    assert limit.total > 12  # calls of both clocks counted


class Core(RuleBasedStateMachine):
    """Whatever it is told: within its bounds, by bounded steps, and only while at least half of the limit is in use."""

    LEAST, MOST = 2, 60

    def __init__(self) -> None:
        super().__init__()
        self.core = AdaptiveCore(self.LEAST, self.MOST, 5)
        self.now = 100.0

    @rule(
        count=st.integers(1, 80),
        run_s=st.one_of(st.just(1.0), st.floats(0, 1e4)),
        share=st.floats(0, 1.5),
        dropped=st.booleans(),
        gap=st.one_of(st.just(0.0), st.floats(0, 100)),
    )
    def calls_end(self, count: int, run_s: float, share: float, dropped: bool, gap: float) -> None:
        for _ in range(count):
            before, peak = self.core.limit, self.core._peak
            in_flight = int(share * before)
            self.now += gap
            why = self.core.observe(self.now, run_s, in_flight, dropped=dropped)
            after = self.core.limit
            assert bool(why) == (int(before) != int(after))
            assert self.LEAST <= after <= self.MOST
            if after != before:
                assert max(in_flight, peak) * 2 >= before
                assert before / 4 <= after <= before * 1.25 + 0.5
                assert (why or "room") in {"room", "run time", "drops"}

    @rule(at=st.floats(-1e6, 1e6))
    def another_clock(self, at: float) -> None:
        self.now = at
        self.core.begin(at)

    @invariant()
    def numbers_are_numbers(self) -> None:
        assert math.isfinite(self.core.limit)
        assert self.core.base_s is None or self.core.base_s > 0


TestAdaptiveCore = Core.TestCase
TestAdaptiveCore.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# --- a server that collapses

TIMEOUT_S = 6.0
CAPACITIES = [40, 20, 40]  # it halves and recovers


async def goodput_under(limit: Any, server: Server, capacities: list[int]) -> list[float]:
    async def call() -> None:
        async with limit:
            with anyio.move_on_after(TIMEOUT_S) as scope:
                await server.request()
            if scope.cancelled_caught:
                raise TimeoutError

    async def patiently() -> None:
        with suppress(TimeoutError):
            await call()

    async with server.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(callers, 150, patiently)
        await anyio.sleep(60)  # what it needs to find out from nothing
        found = await goodput(server, capacities, round_trips=60, settle=30)
        tasks.cancel_scope.cancel()
    return found


@pytest.mark.parametrize("spread", [0.0, 0.3])
async def test_goodput_is_at_least_0_8_of_the_best_thirty_round_trips_after_the_capacity_halves_and_recovers(
    spread: float,
) -> None:
    limit = AdaptiveLimit(1, 200)
    found = await goodput_under(limit, Server(CAPACITIES[0], spread), CAPACITIES)
    assert min(found) >= 0.8
    assert_clean(limit)


@asyncio_only
async def test_the_best_fixed_limit_does_not_do_that() -> None:
    best = 0.0
    for total in (16, 20, 24, 26, 28, 30, 32, 36, 40, 60):
        found = await goodput_under(ConcurrencyLimit(total), Server(CAPACITIES[0]), CAPACITIES)
        best = max(best, min(found))
    assert 0.5 < best < 0.8
