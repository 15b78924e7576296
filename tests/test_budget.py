"""The retry budget: the decision by a model in virtual time, the object by what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kgas_async import Retry, RetryBudget
from kgas_async._budget import BudgetCore


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
