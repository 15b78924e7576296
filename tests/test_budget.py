"""The retry budget: the decision by a model in virtual time, the object by what it refuses and what calls do."""

from __future__ import annotations

import pickle
from typing import Any

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kgas_async import CallFailed, CallTimeout, Policy, Retry, RetryBudget, ServiceManager, tool
from kgas_async._budget import BudgetCore
from kgas_async.testing import explore, virtual_backends


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_retries_are_a_share_of_the_calls() -> None:
    core = BudgetCore(0.2, 0.0, 10.0)
    assert not core.take_retry(0)
    for _ in range(10):
        core.count_call(0)
    assert [core.take_retry(0) for _ in range(4)] == [True, True, False, False]
    assert (core.calls, core.retries, core.refused) == (10, 2, 3)


def test_some_retries_per_second_are_there_in_any_case() -> None:
    core = BudgetCore(0.0, 0.5, 10.0)
    assert [core.take_retry(0) for _ in range(6)] == [True] * 5 + [False]
    assert not core.take_retry(9.9)
    assert core.take_retry(11.0)


def test_calls_and_retries_of_long_ago_are_forgotten() -> None:
    core = BudgetCore(1.0, 0.0, 10.0)
    core.count_call(0)
    assert not core.take_retry(11.0)
    core.count_call(11.0)
    assert core.take_retry(20.0)
    assert not core.take_retry(20.0)


class Model(RuleBasedStateMachine):
    """In each window there are at most as many retries as the calls of the window and the reserve allow."""

    @initialize(
        ratio=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
        min_per_s=st.sampled_from([0.1, 0.3, 1.0]),
        window=st.sampled_from([1.0, 10.0]),
    )
    def make(self, ratio: float, min_per_s: float, window: float) -> None:
        self.ratio, self.reserve, self.window = ratio, min_per_s * window, window
        self.core = BudgetCore(ratio, min_per_s, window)
        self.now = 0.0
        self.calls: list[float] = []
        self.retries: list[float] = []

    def within(self, times: list[float], seconds: float) -> int:
        return sum(self.now - at < seconds - 1e-9 for at in times)

    @rule(seconds=st.floats(0.0, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 20))
    def calls_begin(self, count: int) -> None:
        for _ in range(count):
            self.core.count_call(self.now)
            self.calls.append(self.now)

    @rule(count=st.integers(1, 5))
    def retry(self, count: int) -> None:
        for _ in range(count):
            # A slice is forgotten as a whole: what is counted reaches back for one to 1.1 windows.
            long = self.window * 1.1 + 1e-6
            most = self.ratio * self.within(self.calls, long) + self.reserve + 1e-6
            least = self.ratio * self.within(self.calls, self.window) + self.reserve
            retries = self.within(self.retries, self.window)
            if self.core.take_retry(self.now):
                assert retries + 1 <= most
                self.retries.append(self.now)
            else:
                assert self.within(self.retries, long) + 1 > least - 1e-6


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: RetryBudget(1.1), ValueError, "from 0 to 1, not 1.1"),
        (lambda: RetryBudget(-0.1), ValueError, "at least 0"),
        (lambda: RetryBudget("a"), TypeError, "must be a number"),  # type: ignore[arg-type]
        (lambda: RetryBudget(0.1, window=0), ValueError, "above 0"),
        (lambda: RetryBudget(0.0, min_per_s=0.0), ValueError, "no retry could ever"),
        (lambda: RetryBudget(min_per_sec=1), TypeError, "did you mean 'min_per_s'"),  # type: ignore[call-arg]
        (lambda: Retry(3, budget=0.2), TypeError, "RetryBudget"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused_with_the_mend(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_it_prints_and_pickles_by_its_arguments() -> None:
    budget = RetryBudget(0.1, min_per_s=2)
    assert repr(budget) == "RetryBudget(0.1, min_per_s=2, window=10)"
    assert repr(pickle.loads(pickle.dumps(budget))) == repr(budget)
    assert "budget=RetryBudget(0.1" in repr(Retry(3, budget=budget))


# --- calls


@tool
async def down(x: int) -> None:
    await anyio.sleep(0.01)
    raise OSError("down")


def test_a_hundred_calls_of_a_server_that_is_down_are_retried_as_the_budget_says() -> None:
    async def main() -> None:
        budget = RetryBudget(0.1, min_per_s=0.5, window=10)  # of 100 calls 10, and 5 anyway
        other = down.using(name="other", retry=Retry(3, wait=0.1, budget=budget))
        tried = down.using(retry=Retry(5, wait=0.1, budget=budget))
        async with ServiceManager() as manager:
            async with (
                manager.map(tried, range(60), arg="x", in_flight=60) as one,
                manager.map(other, range(40), arg="x", in_flight=40) as two,
            ):
                outcomes = [outcome async for outcome in one] + [outcome async for outcome in two]
            attempts = sum(outcome.attempts for outcome in outcomes)
            statistics = budget.statistics()
            assert (statistics.calls, statistics.retries) == (100, attempts - 100)
            assert 5 <= statistics.retries <= 15
            assert statistics.refused >= 85  # each call asks until it is refused, or has used its own attempts

    explore(main, seeds=4)


async def test_a_refused_retry_leaves_the_last_error_with_a_note() -> None:
    async with ServiceManager() as manager:
        budget = RetryBudget(1.0, min_per_s=0)
        outcome = await manager.outcome(down.using(retry=Retry(5, wait=0.1, budget=budget)), x=1)
        assert (outcome.attempts, outcome.status) == (2, "failed")
        assert isinstance(outcome.error, CallFailed)
        assert any("retries of its RetryBudget(1, min_per_s=0" in note for note in outcome.error.__cause__.__notes__)  # type: ignore[union-attr]


async def test_what_is_not_retried_anyway_takes_nothing() -> None:
    budget = RetryBudget(0.0, min_per_s=0.1)
    async with ServiceManager() as manager:
        await manager.outcome(down.using(retry=Retry(5, on=ValueError, budget=budget)), x=1)
        await manager.outcome(down.using(retry=Retry(5, wait=9, budget=budget), deadline=5), x=1)
        assert budget.statistics().retries == 0
        outcome = await manager.outcome(down.using(retry=Retry(5, wait=1, budget=budget)), x=1)
        assert (outcome.attempts, budget.statistics().retries) == (2, 1)


def test_it_goes_from_loop_to_loop_with_its_time() -> None:
    budget = RetryBudget(0.0, min_per_s=0.001, window=1000)
    tried = down.using(retry=Retry(2, wait=0, budget=budget))

    async def main(attempts: int) -> None:
        async with ServiceManager() as manager:
            assert (await manager.outcome(tried, x=1)).attempts == attempts

    anyio.run(main, 2, backend="asyncio")
    anyio.run(main, 1, backend="trio")


async def test_on_oserror_a_timeout_is_not_tried_again() -> None:
    calls = []

    @tool(policy=Policy(timeout=1))
    async def hangs() -> None:
        calls.append(1)
        await anyio.sleep(10)

    async with ServiceManager() as manager:
        assert isinstance((await manager.outcome(hangs.using(retry=Retry(3, on=OSError, wait=0)))).error, CallTimeout)
        assert len(calls) == 1
        await manager.outcome(hangs.using(retry=Retry(3, on=(OSError, CallTimeout), wait=0)))
        assert len(calls) == 4
