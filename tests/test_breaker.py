"""The circuit breaker's decision: by table, and by a model of it in virtual time."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kgas_async import (
    CallAborted,
    CallRejected,
    CallTimeout,
    CircuitBreaker,
    CircuitOpen,
    InvalidInputs,
)
from kgas_async._breaker_core import BreakerCore, Permit

TENTH = 1.1  # a window reaches back for up to so many of its seconds


def fail(core: BreakerCore, now: float, times: int = 1) -> None:
    for _ in range(times):
        permit = core.take(now)
        assert permit is not None
        core.settle(permit, now, ok=False, how="OSError")


def succeed(core: BreakerCore, now: float, times: int = 1) -> None:
    for _ in range(times):
        permit = core.take(now)
        assert permit is not None
        core.settle(permit, now, ok=True)


# --- closed


def test_so_many_failures_in_a_row_open_it() -> None:
    core = BreakerCore(3)
    fail(core, 0, 2)
    succeed(core, 0)
    fail(core, 0, 2)
    assert core.state == "closed"
    fail(core, 0)
    assert core.state == "open"
    assert core.why == "3 failures in a row; the last: OSError"


def test_failures_among_the_last_calls_open_it() -> None:
    core = BreakerCore(3, calls=5)
    for _ in range(10):  # never three among five
        fail(core, 0, 2)
        succeed(core, 0, 3)
    fail(core, 0)
    succeed(core, 0)
    fail(core, 0)
    assert core.state == "closed"
    fail(core, 0)
    assert (core.state, core.why) == ("open", "3 failures among the last 5; the last: OSError")


def test_failures_within_seconds_open_it() -> None:
    core = BreakerCore(3, window=10)
    for now in range(0, 100, 6):  # never three within ten seconds
        fail(core, now)
        succeed(core, now)
    assert core.state == "closed"
    fail(core, 98, 1)
    assert (core.state, core.why) == ("open", "3 failures within 10 s; the last: OSError")


@pytest.mark.parametrize("options", [{"calls": 10}, {"window": 10.0}])
def test_a_share_of_failures_opens_it_once_there_are_enough_results(options: Any) -> None:
    core = BreakerCore(0.5, least=8, **options)
    fail(core, 0, 5)
    succeed(core, 0, 2)
    assert core.state == "closed"
    succeed(core, 0)  # the eighth result: five of eight
    assert core.state == "open"
    assert core.why.startswith("5 of 8 calls failed")

    core = BreakerCore(0.5, least=8, **options)
    for _ in range(30):
        succeed(core, 0, 3)
        fail(core, 0, 2)
    assert core.state == "closed"


def test_results_of_calls_that_have_none_do_not_count() -> None:
    core = BreakerCore(2)
    fail(core, 0)
    permit = core.take(0)
    assert permit is not None
    core.settle(permit, 0, ok=None)
    assert (core.failures, core.state) == (1, "closed")
    fail(core, 0)
    assert core.state == "open"


# --- open and half-open


def test_an_open_one_lets_nobody_through_until_its_recovery() -> None:
    core = BreakerCore(1, recovery=30)
    fail(core, 100)
    for now in (100, 110, 129.9):
        assert core.refuses(now)
        assert core.take(now) is None
        assert core.retry_after(now) == pytest.approx(130 - now)
    assert not core.refuses(130)
    assert core.state == "open"
    assert core.take(130) is not None
    assert (core.state, core.why) == ("half_open", "30 s have passed")
    assert core.retry_after(130) is None


@pytest.mark.parametrize("probes", [1, 3])
def test_exactly_so_many_probes_go_through_and_their_success_closes_it(probes: int) -> None:
    core = BreakerCore(1, recovery=30, probes=probes)
    fail(core, 0)
    taken = [permit for _ in range(100) if (permit := core.take(30)) is not None]
    assert len(taken) == probes
    assert core.refuses(30)
    for permit in taken:
        assert core.state == "half_open"
        core.settle(permit, 31, ok=True)
        assert core.take(31) is None or core.state == "closed"
    assert core.state == "closed"
    assert core.why == ("a probe succeeded" if probes == 1 else "3 probes succeeded")


def test_a_probe_that_fails_opens_it_again_from_then_on() -> None:
    core = BreakerCore(1, recovery=30, probes=2)
    fail(core, 0)
    first, second = core.take(30), core.take(30)
    assert first is not None
    assert second is not None
    core.settle(first, 35, ok=False, how="OSError")
    assert (core.state, core.why) == ("open", "a probe failed: OSError")
    core.settle(second, 36, ok=True)  # of the state before
    assert core.state == "open"
    assert core.retry_after(36) == 29


def test_a_probe_without_a_result_gives_its_place_to_another() -> None:
    core = BreakerCore(1, recovery=30)
    fail(core, 0)
    probe = core.take(30)
    assert probe is not None
    assert core.take(30) is None
    core.settle(probe, 31, ok=None)
    assert core.take(31) is not None


def test_what_was_admitted_in_an_older_state_does_not_count_in_a_newer_one() -> None:
    core = BreakerCore(1, recovery=30)
    old = core.take(0)
    assert old is not None
    fail(core, 0)
    probe = core.take(30)
    assert probe is not None
    core.settle(old, 30, ok=False)
    assert core.state == "half_open"
    core.settle(old, 30, ok=True)
    assert core.state == "half_open"
    core.settle(probe, 31, ok=True)
    assert core.state == "closed"
    core.settle(old, 31, ok=False)
    assert (core.state, core.failures) == ("closed", 0)


def test_probes_that_never_end_do_not_shut_everybody_out_for_good() -> None:
    core = BreakerCore(1, recovery=30)
    fail(core, 0)
    hung = core.take(30)
    assert hung is not None
    assert core.take(59) is None
    assert core.refuses(59)
    assert not core.refuses(60)
    second = core.take(60)
    assert second is not None
    assert core.take(60) is None
    core.settle(hung, 61, ok=True)  # late, and right
    assert core.state == "closed"


def test_a_probe_has_all_of_its_time_whenever_it_was_let_in() -> None:
    core = BreakerCore(1, recovery=30, probes=2)
    fail(core, 0)
    first, second = core.take(30), core.take(55)
    assert first is not None
    assert second is not None
    core.settle(first, 56, ok=True)
    assert core.refuses(61)
    assert core.take(61) is None  # the second has been under way for six seconds
    assert core.take(85) is not None


# --- the model


class Model(RuleBasedStateMachine):
    """Any order of calls, results and time passing, beside a list of all that has happened."""

    @initialize(
        failures=st.integers(1, 4),
        share=st.sampled_from([None, 0.25, 0.5, 1.0]),
        probes=st.integers(1, 3),
        window=st.sampled_from([None, 5.0, 20.0]),
        calls=st.sampled_from([None, 4, 6]),
        least=st.integers(1, 4),
    )
    def make(self, failures: int, share: Any, probes: int, window: Any, calls: Any, least: int) -> None:
        if window is not None:
            calls = share = None  # shares of slices of time are not to be told exactly; the table has them
        if calls is None:
            share = None
        self.limit = failures if share is None else share
        self.probes, self.window, self.calls, self.least = probes, window, calls, least
        self.core = BreakerCore(self.limit, 10.0, probes, window, calls, least)
        self.now = 0.0
        self.out: list[tuple[Permit, int]] = []  # permits that have no result, and the number of their state
        self.number = 0  # of the state
        self.state = "closed"
        self.results: list[tuple[float, bool]] = []  # since it was closed
        self.since = 0.0
        self.passed = 0
        self.probing = 0  # given since it is half-open or since they were given up, less those that had no result

    def move(self, state: str) -> None:
        self.state = state
        self.number += 1
        self.results.clear()
        self.since = self.now
        self.passed = self.probing = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 9.5, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def call(self) -> None:
        over = self.now - self.since >= 10.0
        expected = self.state == "closed" or over or (self.state == "half_open" and self.probing < self.probes)
        assert self.core.refuses(self.now) is not expected
        permit = self.core.take(self.now)
        assert (permit is not None) is expected
        if permit is None:
            return
        if self.state == "open":
            self.move("half_open")
        elif self.state == "half_open" and self.probing >= self.probes:
            self.probing = self.passed  # those before are given up
        if self.state == "half_open":
            self.probing += 1
            self.since = self.now
        self.out.append((permit, self.number))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), ok=st.sampled_from([True, False, False, None]))
    def result(self, data: Any, ok: bool | None) -> None:
        permit, number = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        was_probing = permit in self.core.probing
        self.core.settle(permit, self.now, ok=ok, how="OSError")
        if number != self.number or self.state == "open":
            return
        if self.state == "half_open":
            if ok is None:
                self.probing -= was_probing
            elif ok:
                self.passed += 1
                if not was_probing:
                    self.probing += 1  # it counts though its place was given to another
                if self.passed >= self.probes:
                    self.move("closed")
            else:
                self.move("open")
        elif ok is not None:
            self.results.append((self.now, ok))
            if self.window is not None:
                certain = self.failed_within(self.window)
                possible = self.failed_within(self.window * TENTH)
                if not ok and self.core.state == "open":
                    assert possible >= self.limit
                    self.move("open")
                else:
                    assert ok or certain < self.limit
            elif self.is_too_many(ok=ok):
                self.move("open")

    def failed_within(self, seconds: float) -> int:
        return sum(not ok for at, ok in self.results if self.now - at < seconds + 1e-9)

    def is_too_many(self, *, ok: bool) -> bool:
        flags = [one for _, one in self.results]
        if self.calls is None:
            run = flags[-int(self.limit) :]
            return len(run) >= self.limit and not any(run)
        last = flags[-self.calls :]
        failed = last.count(False)
        if isinstance(self.limit, int):
            return not ok and failed >= self.limit
        return len(last) >= self.least and failed >= self.limit * len(last)

    @invariant()
    def same_state(self) -> None:
        if hasattr(self, "core"):
            assert self.core.state == self.state
            if self.state == "half_open":
                assert len(self.core.probing) <= self.probes


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


# --- the object


def test_which_errors_count() -> None:
    breaker = CircuitBreaker(on=(ConnectionError, TimeoutError))
    assert breaker.counts(ConnectionResetError()) is True
    assert breaker.counts(CallTimeout("")) is True
    assert breaker.counts(ValueError("no such document")) is False  # an answer
    for nothing in (InvalidInputs(""), CallRejected(""), CircuitOpen(""), CallAborted()):
        assert breaker.counts(nothing) is None
    assert CircuitBreaker(on=OSError).counts(CallTimeout("")) is False


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: CircuitBreaker(0), ValueError, "at least 1"),
        (lambda: CircuitBreaker(True), TypeError, "a share of results"),
        (lambda: CircuitBreaker("5"), TypeError, "a share of results"),  # type: ignore[arg-type]
        (lambda: CircuitBreaker(1.5, window=10), ValueError, "at most 1, not 1.5"),
        (lambda: CircuitBreaker(0.0, window=10), ValueError, "above 0"),
        (lambda: CircuitBreaker(float("nan"), window=10), ValueError, "above 0"),
        (lambda: CircuitBreaker(0.5), ValueError, "window=60.0"),
        (lambda: CircuitBreaker(5, window=10, calls=10), TypeError, "not both"),
        (lambda: CircuitBreaker(5, calls=4), ValueError, "can never be"),
        (lambda: CircuitBreaker(5, calls=0), ValueError, "at least 1"),
        (lambda: CircuitBreaker(5, window=0), ValueError, "above 0"),
        (lambda: CircuitBreaker(5, recovery=-1), ValueError, "recovery\\) must be above 0"),
        (lambda: CircuitBreaker(5, recovery=0), ValueError, "recovery\\) must be above 0"),
        (lambda: CircuitBreaker(5, recovery=None), TypeError, "must be a number"),  # type: ignore[arg-type]
        (lambda: CircuitBreaker(5, probes=0), ValueError, "at least 1"),
        (lambda: CircuitBreaker(5, slow=0), ValueError, "above 0"),
        (lambda: CircuitBreaker(5, least=3), TypeError, "belongs to a share"),
        (lambda: CircuitBreaker(0.5, calls=4, least=5), ValueError, "never 5 results"),
        (lambda: CircuitBreaker(5, on=BaseException), TypeError, "no failure of a tool"),  # type: ignore[arg-type]
        (lambda: CircuitBreaker(5, name=""), TypeError, "non-empty"),
        (lambda: CircuitBreaker(5, recover=3), TypeError, "did you mean 'recovery'"),  # type: ignore[call-arg]
    ],
)
def test_what_makes_no_sense_is_refused_with_the_mend(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_it_prints_and_pickles_by_its_arguments() -> None:
    breaker = CircuitBreaker(0.5, calls=20, slow=2.0, name="graph")
    assert repr(breaker) == "CircuitBreaker(0.5, recovery=30.0, probes=1, slow=2.0, calls=20, name='graph')"
    again = pickle.loads(pickle.dumps(breaker))
    assert repr(again) == repr(breaker)
    assert again.statistics() == breaker.statistics()
