"""Adaptive limits: what they decide from run times and drops, and what that does to a server that collapses."""

from __future__ import annotations

import itertools
import math
import pickle
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kgas_async import AdaptiveLimit, ConcurrencyLimit, MemorySink, Policy, ServiceManager, tool
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
    assert fed.core.limit == pytest.approx(before / 2 + math.sqrt(before) / 2, rel=0.1)


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


# --- calls


async def test_a_call_feeds_the_limit_with_its_run_time_and_not_with_its_waits() -> None:
    limit = AdaptiveLimit(4, 4)
    waits = ConcurrencyLimit(1)

    @tool(policy=Policy(concurrency=[limit, waits], rate=0.1))
    async def work() -> None:
        await anyio.sleep(2)

    async with ServiceManager(log=None) as manager:
        calls = [manager.submit(work) for _ in range(10)]  # each waits for ten seconds more than the one before
        for call in calls:
            await call.result()
    assert limit.statistics().base_s == pytest.approx(2.0)


@pytest.mark.parametrize("offload", ["thread", "inline"])
async def test_sync_tools_feed_it_too(offload: Any) -> None:
    limit = AdaptiveLimit(1, 50)

    @tool(offload=offload, policy=Policy(concurrency=limit))
    def work() -> int:
        return 1

    async with (
        ServiceManager(log=None) as manager,
        manager.map(work, itertools.repeat({}, 500), in_flight=60) as outcomes,
    ):
        assert [outcome.unwrap() async for outcome in outcomes] == [1] * 500
    assert limit.statistics().base_s is not None
    assert limit.statistics().peak <= 50
    assert_clean(manager, limit)


class Overloaded(Exception):
    """The server says that it has too much to do."""


@pytest.mark.parametrize(
    ("on", "error", "is_drop"),
    [
        ((), None, True),  # a timeout of the call's own
        ((), TimeoutError(), True),
        ((), Overloaded(), False),
        (Overloaded, Overloaded(), True),
        ((OSError, Overloaded), Overloaded(), True),
        (lambda error: "503" in str(error), ValueError("503"), True),
        (lambda error: "503" in str(error), ValueError("404"), False),
    ],
)
async def test_timeouts_and_the_errors_that_are_named_are_drops_and_no_others(
    on: Any, error: Any, is_drop: bool
) -> None:
    limit = AdaptiveLimit(1, 100, initial=20, on=on)

    @tool(policy=Policy(concurrency=limit, timeout=1.0))
    async def work() -> None:
        await anyio.sleep(10 if error is None else 0.5)
        raise error

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(manager.outcome, work)
    now = limit.statistics()
    assert now.dropped == (20 if is_drop else 0)
    assert (now.total < 20) == is_drop
    assert now.base_s is None  # none of them says how long a call runs
    assert_clean(manager, limit)


async def test_a_returned_error_is_judged_as_one_that_was_raised() -> None:
    limit = AdaptiveLimit(1, 100, initial=20, on=Overloaded)

    @tool(error_when=lambda raw: Overloaded() if raw == 503 else None, policy=Policy(concurrency=limit))
    def answer() -> int:
        return 503

    async with ServiceManager(log=None) as manager:
        for _ in range(3):
            await manager.outcome(answer)
    assert limit.statistics().dropped == 3


async def test_a_function_of_errors_that_raises_fails_its_own_call() -> None:
    limit = AdaptiveLimit(1, 5, on=lambda error: error.no_such_thing)

    @tool(policy=Policy(concurrency=limit))
    async def failing() -> None:
        raise ValueError("no")

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(failing)
    assert outcome.status == "failed"
    assert isinstance(outcome.error.__cause__, AttributeError)  # type: ignore[union-attr]
    assert isinstance(outcome.error.__cause__.__context__, ValueError)  # type: ignore[union-attr]
    assert_clean(manager, limit)


async def test_a_function_of_errors_that_raises_keeps_no_token() -> None:
    limit = AdaptiveLimit(1, 5, on=lambda error: error.no_such_thing)
    with pytest.raises(AttributeError):
        async with limit:
            raise ValueError("no")
    assert_clean(limit)
    async with limit:
        pass


async def test_a_cancelled_call_and_one_that_its_deadline_cut_off_say_nothing() -> None:
    limit = AdaptiveLimit(1, 5, initial=5)

    @tool(policy=Policy(concurrency=limit))
    async def work() -> None:
        await anyio.sleep(10)

    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(work.using(deadline=1))).status == "timed_out"
        call = manager.submit(work)
        await anyio.wait_all_tasks_blocked()
        call.cancel()
        await call.wait()
        with anyio.move_on_after(0.5):
            async with limit:
                await anyio.sleep(10)
    now = limit.statistics()
    assert (now.dropped, now.base_s, now.total) == (0, None, 5)
    assert_clean(manager, limit)


async def test_its_moves_are_in_the_evidence_and_are_few() -> None:
    limit = AdaptiveLimit(1, 64)
    sink = MemorySink()

    @tool(policy=Policy(concurrency=limit))
    async def work() -> None:
        await anyio.sleep(1)

    async with (
        ServiceManager(log=None, evidence=sink) as manager,
        manager.map(work, itertools.repeat({}, 2000), in_flight=100) as outcomes,
    ):
        assert [outcome.status async for outcome in outcomes] == ["succeeded"] * 2000
    moves = [record for record in sink.records if record["event"] == "limit.changed"]
    assert [moves[0]["was"], moves[-1]["total"]] == [1, 64]
    assert all(after["was"] == before["total"] for before, after in itertools.pairwise(moves))
    assert all(move["why"] == "room" and move["tool"] == "work" for move in moves)
    assert len(moves) < 30


# --- a server that collapses

TIMEOUT_S = 6.0
CAPACITIES = [40, 20, 40]  # it halves and recovers


async def goodput_under(limit: Any, server: Server, capacities: list[int], how: str = "by hand") -> list[float]:
    @tool(policy=Policy(concurrency=limit, timeout=TIMEOUT_S))
    async def request() -> None:
        await server.request()

    async def call() -> None:
        async with limit:
            with anyio.move_on_after(TIMEOUT_S) as scope:
                await server.request()
            if scope.cancelled_caught:
                raise TimeoutError

    async def patiently() -> None:
        with suppress(TimeoutError):
            await call()

    async with ServiceManager(log=None) as manager, server.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(callers, 150, partial(manager.outcome, request) if how == "calls" else patiently)
        await anyio.sleep(60)  # what it needs to find out from nothing
        found = await goodput(server, capacities, round_trips=60, settle=30)
        tasks.cancel_scope.cancel()
    return found


@pytest.mark.parametrize(("how", "spread"), [("calls", 0.0), ("by hand", 0.3)])
async def test_goodput_is_at_least_0_8_of_the_best_thirty_round_trips_after_the_capacity_halves_and_recovers(
    how: str, spread: float
) -> None:
    limit = AdaptiveLimit(1, 200)
    found = await goodput_under(limit, Server(CAPACITIES[0], spread), CAPACITIES, how)
    assert min(found) >= 0.8
    assert_clean(limit)


@pytest.mark.slow
@asyncio_only
async def test_the_best_fixed_limit_does_not_do_that() -> None:
    best = 0.0
    for total in (20, 24, 27, 30, 34, 40):
        found = await goodput_under(ConcurrencyLimit(total), Server(CAPACITIES[0]), CAPACITIES)
        best = max(best, min(found))
    assert 0.5 < best < 0.8
