"""Rate limits, in virtual time: never more than was asked in any window, never less than there could be."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import CallRejected, CallTimeout, Policy, RateLimit, Retry, RetryBudget, ServiceManager, tool
from kgas_async._mailbox import Mailbox
from kgas_async._rate import acquire_rates, acquire_rates_nowait
from kgas_async.testing import assert_clean, virtual_backend

from .loops import virtual

BOTH = pytest.mark.parametrize("name", ["asyncio", "trio"])
real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
asyncio_only = pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")], ids=["asyncio-virtual"])


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


Start = tuple[float, float]  # when, and how many tokens


async def starts_of(limits: Sequence[RateLimit], arrivals: Sequence[Start]) -> list[Start]:
    """When callers that arrive at these times, wanting so many tokens, get them; in the order in which they do."""
    starts: list[Start] = []

    async def caller(at: float, tokens: float) -> None:
        await anyio.sleep_until(zero + at)
        await acquire_rates([(limit, tokens) for limit in limits])
        starts.append((anyio.current_time() - zero, tokens))

    zero = anyio.current_time()
    async with anyio.create_task_group() as group:
        for at, tokens in arrivals:
            group.start_soon(caller, at, tokens)
    return starts


def run_virtually(name: str, function: Callable[..., Any], *args: Any) -> Any:
    backend, options = virtual_backend(name)
    return anyio.run(function, *args, backend=backend, backend_options=options)


def assert_no_window_exceeds(rate: float, burst: float, starts: Sequence[Start]) -> None:
    """At most ``rate * T + burst`` in every window; the fullest ones begin and end with a start."""
    times = [at for at, _ in starts]
    sums = [0.0, *itertools.accumulate(tokens for _, tokens in starts)]
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            taken = sums[last + 1] - sums[first]
            allowed = rate * (times[last] - times[first]) + burst
            assert taken <= allowed + 1e-6, f"{taken} tokens from {times[first]} to {times[last]}, allowed: {allowed}"


def token_bucket(rate: float, burst: float, arrivals: Sequence[Start]) -> list[float]:
    """The earliest times at which a token bucket serves them first come first served: the model."""
    level, now = burst, 0.0
    starts = []
    for arrival, tokens in arrivals:
        at = max(arrival, now)
        level = min(burst, level + (at - now) * rate)
        if level < tokens:
            at += (tokens - level) / rate
            level = tokens
        level -= tokens
        now = at
        starts.append(at)
    return starts


# --- what is refused


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_rate_that_is_no_number_above_zero_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"RateLimit\(rate\) must be"):
        RateLimit(rate)


@pytest.mark.parametrize("per", [0, -1, math.nan, math.inf])
def test_a_period_that_is_no_number_above_zero_is_refused(per: float) -> None:
    with pytest.raises(ValueError, match=r"RateLimit\(per\) must be"):
        RateLimit(1, per=per)


@pytest.mark.parametrize("burst", [0, 0.5, -1, math.nan, math.inf])
def test_a_burst_below_one_is_refused(burst: float) -> None:
    with pytest.raises(ValueError, match=r"RateLimit\(burst\) must be"):
        RateLimit(1, burst=burst)


@pytest.mark.parametrize("options", [{"rate": "fast"}, {"rate": True}, {"rate": 1, "cost": 3}])
def test_a_value_of_a_wrong_type_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"RateLimit\((rate|cost)\) must be"):
        RateLimit(**options)


def test_the_same_limit_twice_in_one_policy_is_refused() -> None:
    limit = RateLimit(1)
    with pytest.raises(ValueError, match="twice"):
        Policy(rate=[limit, limit])


@pytest.mark.parametrize("tokens", [3, math.nan, -1])
async def test_taking_what_the_limit_can_never_give_is_refused(tokens: float) -> None:
    limit = RateLimit(1, burst=2)
    with pytest.raises((CallRejected, ValueError)):
        await limit.acquire(tokens)
    assert limit.statistics().taken == 0


# --- windows


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(1, 20),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 3)), min_size=1, max_size=40),
)
def test_in_every_window_at_most_rate_times_length_plus_burst(
    name: str, rate: float, burst: float, gaps: list[float]
) -> None:
    arrivals = [(at, 1.0) for at in itertools.accumulate(gaps)]
    starts = run_virtually(name, starts_of, [RateLimit(rate, burst=burst)], arrivals)
    assert_no_window_exceeds(rate, burst, starts)
    assert [at for at, _ in starts] == pytest.approx(token_bucket(rate, burst, arrivals), abs=1e-6)


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.1, 100),
    callers=st.lists(st.tuples(st.floats(0.001, 3), st.floats(0, 5)), min_size=1, max_size=30),
)
def test_with_costs_each_is_served_as_early_as_a_token_bucket_would(
    name: str, rate: float, callers: list[Start]
) -> None:
    arrivals = list(zip(itertools.accumulate(gap for gap, _ in callers), (cost for _, cost in callers), strict=True))
    starts = run_virtually(name, starts_of, [RateLimit(rate, burst=5)], arrivals)
    assert_no_window_exceeds(rate, 5, starts)
    assert [at for at, _ in starts] == pytest.approx(token_bucket(rate, 5, arrivals), abs=1e-6)


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.floats(0.2, 20), st.floats(0.5, 60), st.floats(1, 10)), min_size=2, max_size=3),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=30),
)
def test_of_stacked_limits_each_one_holds_in_every_window(
    name: str, kinds: list[tuple[float, float, float]], gaps: list[float]
) -> None:
    limits = [RateLimit(rate, per, burst) for rate, per, burst in kinds]
    starts = run_virtually(name, starts_of, limits, [(at, 1.0) for at in itertools.accumulate(gaps)])
    assert len(starts) == len(gaps)
    for rate, per, burst in kinds:
        assert_no_window_exceeds(rate / per, burst, starts)


@pytest.mark.parametrize("burst", [1, 10])
async def test_fifty_waiting_callers_get_at_least_99_percent_of_the_rate(burst: int) -> None:
    limit = RateLimit(20, burst=burst)
    starts: list[float] = []

    async def caller() -> None:
        while anyio.current_time() < end:
            await limit.acquire()
            starts.append(anyio.current_time())

    begin = anyio.current_time()
    end = begin + 100
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(caller)
    within = [at for at in starts if at < end]
    assert 0.99 * 20 * 100 <= len(within) - burst <= 20 * 100


async def test_calls_that_wait_for_stacked_limits_get_at_least_99_percent_of_the_slower() -> None:
    minute = RateLimit(60, per=60, burst=30)

    @tool(policy=Policy(rate=[RateLimit(5), minute]))
    async def limited() -> float:
        return anyio.current_time()

    async with (
        ServiceManager(log=None) as manager,
        manager.map(limited, ({} for _ in range(230)), in_flight=50, ordered=False) as outcomes,
    ):
        starts = [outcome.unwrap() async for outcome in outcomes]
    assert_no_window_exceeds(5, 1, [(at, 1) for at in sorted(starts)])
    assert_no_window_exceeds(1, 30, [(at, 1) for at in sorted(starts)])
    assert max(starts) - min(starts) <= (230 - 30) / 0.99


@pytest.mark.parametrize("swapped", [False, True])
async def test_who_needs_several_limits_is_not_starved_by_those_who_need_one(swapped: bool) -> None:
    one, other = RateLimit(1), RateLimit(1)
    if swapped:
        one, other = other, one
    zero = anyio.current_time()
    starts: dict[Any, list[float]] = {one: [], other: [], "both": []}

    async def needs_one(limit: RateLimit) -> None:
        while anyio.current_time() - zero < 200:
            await limit.acquire()
            starts[limit].append(anyio.current_time() - zero)

    async def needs_both() -> None:
        for _ in range(3):
            await acquire_rates([(one, 1), (other, 1)])
            starts["both"].append(anyio.current_time() - zero)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(needs_one, one)
            await anyio.sleep(0.25)  # their tokens are there at different times
            group.start_soon(needs_one, other)
        for _ in range(2):
            group.start_soon(needs_both)
    assert max(starts["both"]) < 200
    for limit in (one, other):
        taken = sorted(starts[limit] + starts["both"])
        assert all(later - earlier > 1 - 1e-6 for earlier, later in itertools.pairwise(taken))
        assert len([at for at in taken if at < 200]) > 150  # the others go on meanwhile
    assert_clean(one, other)


async def test_the_limit_governs_when_work_starts_and_not_how_long_it_takes() -> None:
    @tool(policy=Policy(rate=10, concurrency=5))
    async def slow() -> float:
        began = anyio.current_time()
        await anyio.sleep(0.3)
        return began

    async with ServiceManager(log=None) as manager, manager.map(slow, ({} for _ in range(40))) as outcomes:
        starts = [outcome.unwrap() async for outcome in outcomes]
    # Traps 21: a sleep inside a semaphore gives n times the rate.
    assert_no_window_exceeds(10, 1, [(at, 1) for at in sorted(starts)])
    assert max(starts) - min(starts) == pytest.approx(3.9)


async def test_each_attempt_takes_a_token() -> None:
    attempts: list[float] = []

    @tool(policy=Policy(rate=2, retry=Retry(4, wait=0)))
    async def failing() -> None:
        attempts.append(anyio.current_time())
        raise ValueError("again")

    async with ServiceManager(log=None) as manager:
        await manager.outcome(failing)
    assert [later - attempts[0] for later in attempts] == pytest.approx([0, 0.5, 1, 1.5])


# --- cost


async def test_a_call_costs_what_the_function_of_its_inputs_says() -> None:
    limit = RateLimit(10, burst=5, cost=lambda inputs: len(inputs["text"]))
    starts: list[float] = []

    @tool(policy=Policy(rate=limit))
    async def embed(text: str) -> None:
        starts.append(anyio.current_time())

    async with ServiceManager(log=None) as manager:
        for text in ("12345", "123", "", "1"):
            await manager.execute(embed, text=text)
    assert [at - starts[0] for at in starts] == pytest.approx([0, 0.3, 0.3, 0.4])
    assert limit.statistics().taken == 9


async def test_the_cost_function_is_given_inputs_that_were_left_out_too() -> None:
    limit = RateLimit(1, burst=10, cost=lambda inputs: inputs["tokens"])

    @tool(policy=Policy(rate=limit))
    async def ask(question: str, tokens: int = 4) -> str:
        return question

    async with ServiceManager() as manager:
        assert await manager.execute(ask, question="why") == "why"
    assert limit.statistics().taken == 4


async def test_a_call_that_costs_more_than_the_burst_is_rejected_with_the_mend() -> None:
    @tool(policy=Policy(rate=RateLimit(10, burst=5, cost=lambda inputs: inputs["size"])))
    async def embed(size: int) -> None: ...

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallRejected, match="raise burst"):
            await manager.execute(embed, size=6)
        await manager.execute(embed, size=5)


@pytest.mark.parametrize(
    "cost", [lambda inputs: math.nan, lambda inputs: -1, lambda inputs: "much", lambda inputs: inputs["no such"]]
)
async def test_a_cost_function_that_fails_is_the_failure_of_the_call(cost: Any) -> None:
    limit = RateLimit(10, cost=cost)

    @tool(policy=Policy(rate=limit, concurrency=1))
    async def limited() -> None: ...

    async with ServiceManager(log=None) as manager:
        for _ in range(2):  # the second: the token of its concurrency limit came back
            outcome = await manager.outcome(limited)
            assert outcome.status == "failed"
    assert limit.statistics().taken == 0


# --- cancellation


async def test_a_cancelled_waiter_takes_nothing_and_leaves_the_line() -> None:
    limit = RateLimit(1)
    await limit.acquire()
    with anyio.move_on_after(0.5) as scope:
        await limit.acquire()
    assert scope.cancelled_caught
    before = anyio.current_time()
    await limit.acquire()
    assert anyio.current_time() - before == pytest.approx(0.5)
    assert limit.statistics().taken == 2
    assert_clean(limit)


@pytest.mark.parametrize("back", [3, 10])
async def test_tokens_that_are_given_back_are_there_at_once_for_who_waits(back: int) -> None:
    limit = RateLimit(1, burst=10)
    await limit.acquire(10)
    starts: list[float] = []
    zero = anyio.current_time()

    async def caller() -> None:
        await limit.acquire(10)
        starts.append(anyio.current_time() - zero)

    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await anyio.sleep(2)
        limit.refund(back)
    assert starts == pytest.approx([max(2, 10 - back)])
    assert_clean(limit)


@asyncio_only
async def test_a_waiter_cancelled_natively_takes_nothing_and_lets_the_next_one_go() -> None:
    limit = RateLimit(1)
    await limit.acquire()
    doomed, after = asyncio.create_task(limit.acquire()), asyncio.create_task(limit.acquire())
    await anyio.sleep(0.5)
    doomed.cancel()
    before = anyio.current_time()
    await after
    assert anyio.current_time() - before == pytest.approx(0.5)
    assert limit.statistics().taken == 2
    assert_clean(limit)


async def test_a_sync_call_cancelled_before_a_thread_took_it_up_gives_its_token_back() -> None:
    limit = RateLimit(1, burst=10)
    ran: list[int] = []
    let_go = threading.Event()

    @tool
    def occupy() -> None:
        let_go.wait(60)

    @tool(policy=Policy(rate=limit))
    def limited() -> None:
        ran.append(1)

    async with ServiceManager(log=None, threads=1) as manager:
        first = manager.submit(occupy)
        await anyio.wait_all_tasks_blocked()
        waiting = manager.submit(limited)
        await anyio.wait_all_tasks_blocked()
        assert limit.statistics().taken == 1
        waiting.cancel()
        await waiting.wait()
        assert limit.statistics().taken == 0
        let_go.set()
        await first.wait()
    assert ran == []


async def test_a_sync_call_whose_deadline_passes_before_a_thread_took_it_up_gives_its_token_back() -> None:
    limit = RateLimit(1, burst=10)
    let_go = threading.Event()

    @tool
    def occupy() -> None:
        let_go.wait(60)  # longer than a busy thread holds the virtual clock

    @tool(policy=Policy(rate=limit, deadline=5))
    def limited() -> None: ...

    async with ServiceManager(log=None, threads=1) as manager:
        first = manager.submit(occupy)
        await anyio.wait_all_tasks_blocked()
        waiting = manager.submit(limited)
        await anyio.wait_all_tasks_blocked()
        assert (await waiting.outcome()).status == "timed_out"
        assert limit.statistics().taken == 0
        let_go.set()
        await first.wait()


async def test_a_deadline_ends_the_wait_for_a_token() -> None:
    limit = RateLimit(1, per=60)

    @tool(policy=Policy(rate=limit, deadline=10))
    async def limited() -> None: ...

    async with ServiceManager(log=None) as manager:
        await manager.execute(limited)
        before = anyio.current_time()
        with pytest.raises(CallTimeout, match="deadline of 10 s"):
            await manager.execute(limited)
        assert anyio.current_time() - before == pytest.approx(10)
    assert_clean(limit)


# --- a server that says when


class Busy(Exception):
    retry_after = 30.0


async def test_a_delay_told_by_the_server_pauses_all_calls_under_the_rate_limit() -> None:
    limit = RateLimit(10, burst=5)
    starts: list[tuple[str, float]] = []

    @tool(policy=Policy(rate=limit, retry=Retry(2, after=lambda error: getattr(error, "retry_after", None))))
    async def asks(who: str, busy: bool = False) -> None:
        starts.append((who, anyio.current_time() - zero))
        if busy and len(starts) == 1:
            raise Busy

    zero = anyio.current_time()
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as group:
        group.start_soon(lambda: manager.execute(asks, who="first", busy=True))
        await anyio.sleep(1)
        for _ in range(3):
            group.start_soon(lambda: manager.execute(asks, who="other"))
    assert starts[0] == ("first", 0)
    assert min(at for _, at in starts[1:]) == pytest.approx(30)
    # After the pause it starts slowly again, and not with a burst onto a server that has just complained.
    assert sorted(at for _, at in starts[1:]) == pytest.approx([30, 30.1, 30.2, 30.3])


@pytest.mark.parametrize(
    "policy",
    [
        {"retry": Retry(1, after=lambda error: 30.0)},
        {"retry": Retry(5, after=lambda error: 30.0), "deadline": 20.0},
        {"retry": Retry(5, after=lambda error: 30.0, budget=RetryBudget(0.1, min_per_s=0))},
    ],
    ids=["the last attempt", "no time left", "no budget"],
)
async def test_it_does_so_where_the_call_itself_is_not_tried_again(policy: dict[str, Any]) -> None:
    limit = RateLimit(10, burst=5)

    @tool(policy=Policy(rate=limit, **policy))
    async def asks() -> None:
        raise Busy

    zero = anyio.current_time()
    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(asks)
        assert (outcome.status, outcome.attempts) == ("failed", 1)
        await limit.acquire()
    assert anyio.current_time() - zero == pytest.approx(30)


@pytest.mark.parametrize("tokens", [0.1, 1, 5])
async def test_nothing_is_given_during_a_pause_whatever_it_costs(tokens: float) -> None:
    limit = RateLimit(1, burst=5)
    limit.pause(10)
    before = anyio.current_time()
    await limit.acquire(tokens)
    assert anyio.current_time() - before >= 10 - 1e-6


async def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    limit = RateLimit(1)
    limit.pause(10)
    limit.pause(1)
    before = anyio.current_time()
    await limit.acquire()
    assert anyio.current_time() - before == pytest.approx(10)


@BOTH
@settings(max_examples=200, deadline=None)
@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(1, 5),
    steps=st.lists(
        st.tuples(st.one_of(st.just(0.0), st.floats(0, 1)), st.sampled_from(["one", "one", "pause", "refund"])),
        min_size=1,
        max_size=40,
    ),
)
def test_one_token_that_is_plain_to_see_is_taken_as_any_other(
    name: str, rate: float, burst: float, steps: list[tuple[float, str]]
) -> None:
    """The short way gives a token where the long one does, and leaves the same behind; it may leave it to the long."""
    short, long = RateLimit(rate, burst=burst), RateLimit(rate, burst=burst)

    async def compare() -> None:
        mailbox = Mailbox.here()
        for gap, what in steps:
            await anyio.sleep(gap)
            if what == "pause":
                short.pause(2.0)
                long.pause(2.0)
            elif what == "refund" and long.statistics().taken:
                short.refund()
                long.refund()
            else:
                is_plain = short.take_one_nowait(mailbox)
                is_there = acquire_rates_nowait([(long, 1.0)], mailbox)
                assert is_there or not is_plain
                assert is_plain or acquire_rates_nowait([(short, 1.0)], mailbox) == is_there
            assert (short._due, short._taken) == (long._due, long._taken)

    run_virtually(name, compare)


# --- loops and time


@pytest.mark.parametrize("names", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "asyncio")])
def test_what_was_taken_in_one_loop_counts_in_the_next(names: tuple[str, str]) -> None:
    limit = RateLimit(1, per=60, burst=2)

    async def take(count: int) -> float:
        before = anyio.current_time()
        for _ in range(count):
            await limit.acquire()
        return anyio.current_time() - before

    assert run_virtually(names[0], take, 2) == 0
    # The clocks of two loops have nothing in common; the real time between them does count.
    assert 58 < run_virtually(names[1], take, 1) <= 60
    assert_clean(limit)


def a_waiter_of_an_ended_loop(limit: RateLimit) -> object:
    """Who waits for a token when its loop ends, and is kept alive by the test."""

    async def first() -> asyncio.Task[None]:
        waiting = asyncio.create_task(limit.acquire())
        await asyncio.sleep(0.01)
        return waiting

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # which would say that a pending task was destroyed
    waiting = loop.run_until_complete(first())
    assert not waiting.done()
    loop.close()
    return waiting


@real_time
def test_who_waited_in_a_loop_that_has_ended_holds_up_nobody(anyio_backend: str) -> None:
    limit = RateLimit(10)

    async def main() -> None:
        await limit.acquire()
        with anyio.fail_after(30):
            await limit.acquire()

    anyio.run(limit.acquire, backend=anyio_backend)
    kept = a_waiter_of_an_ended_loop(limit)
    anyio.run(main, backend=anyio_backend)
    assert limit.statistics().waiting == 0
    del kept


def test_who_waited_in_a_loop_that_has_ended_may_be_collected_while_the_limit_is_in_use() -> None:
    limit = RateLimit(10)
    anyio.run(limit.acquire)
    a_waiter_of_an_ended_loop(limit)
    limit._line.call_first()  # passed over: nothing refers to it any more
    with limit._lock:  # whatever this thread does, a collection may come in between
        gc.collect()
    assert limit.statistics().waiting == 0


def test_a_pause_of_one_loop_holds_in_the_next() -> None:
    limit = RateLimit(10, burst=5)

    async def pause() -> None:
        limit.pause(60)

    async def take() -> float:
        before = anyio.current_time()
        await limit.acquire(0.5)
        return anyio.current_time() - before

    run_virtually("asyncio", pause)
    assert 58 < run_virtually("trio", take) <= 60.1


def test_a_limit_pickles_without_what_was_taken() -> None:
    limit = RateLimit(3, per=2, burst=4)
    copy = pickle.loads(pickle.dumps(limit))
    assert repr(copy) == repr(limit) == "RateLimit(3, per=2, burst=4)"
    assert copy.statistics().taken == 0


@real_time
@pytest.mark.slow
async def test_in_real_time_the_rate_is_kept_within_2_percent_over_10_seconds_after_the_burst() -> None:
    rate, burst, seconds = 100, 20, 10
    starts: list[float] = []

    @tool(policy=Policy(rate=RateLimit(rate, burst=burst)))
    async def limited() -> None:
        starts.append(time.perf_counter())

    async with (
        ServiceManager(log=None) as manager,
        manager.map(limited, itertools.repeat({}), in_flight=50) as outcomes,
    ):
        async for _ in outcomes:
            if starts[-1] - starts[0] > seconds + 0.5:
                break
    after_the_burst = starts[burst - 1]
    within = sum(1 for at in starts[burst:] if at - after_the_burst <= seconds)
    print(f"asked {rate}/s, got {within / seconds:.2f}/s after a burst of {burst}")
    assert within == pytest.approx(rate * seconds, rel=0.02)
