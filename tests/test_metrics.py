"""Numbers in bounded memory: percentiles within their bounds, counters, gauges, thinned series."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from threading import Lock
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async._metrics import (
    ACCURACY,
    BINS,
    Counter,
    Distribution,
    Durations,
    Gauge,
    Histogram,
    Running,
    Thinned,
    in_digits,
    in_seconds,
    one_less,
    one_more,
)

# Within what one sketch holds exactly: 17 decades.
SENSIBLE = st.one_of(
    st.just(0.0),
    st.floats(1e-6, 1e9),
    st.floats(-1e9, -1e-6),
    st.integers(-(10**9), 10**9),
    st.sampled_from([1.0, 2.0]),
)
ANY = st.floats(-1e100, 1e100)


def bins_of(histogram: Histogram | Durations) -> int:
    return len(histogram._sketch._store.bins) + len(histogram._sketch._negative_store.bins)


@given(st.lists(SENSIBLE, min_size=1, max_size=300))
def test_a_percentile_is_within_one_percent_of_the_value_at_its_rank(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    found = histogram.distribution()
    ordered = sorted(values)
    for share, shown in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        true = ordered[math.ceil(share * len(values)) - 1]
        assert abs(shown - true) <= ACCURACY * abs(true) * 1.0001
    assert (found.count, found.min, found.max) == (len(values), ordered[0], ordered[-1])
    assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-6)


@given(st.lists(ANY, min_size=1, max_size=300))
def test_whatever_is_recorded_the_figures_are_in_order_and_finite(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    found = histogram.distribution()
    assert found.min <= found.p50 <= found.p95 <= found.p99 <= found.max
    assert found.min <= found.mean <= found.max
    assert all(math.isfinite(figure) for figure in (found.mean, found.p50, found.p99))


@settings(max_examples=20)
@given(st.lists(st.floats(-100, 100), min_size=50, max_size=200))
def test_memory_is_bounded_however_far_values_lie_apart(exponents: list[float]) -> None:
    histogram = Histogram()
    for exponent in exponents:
        histogram.record(10.0**exponent)
        histogram.record(-(10.0**exponent))
    assert bins_of(histogram) <= 2 * BINS


@given(st.lists(st.integers(0, 10**13), max_size=200), st.integers(0, 50))
def test_durations_are_those_given_in_seconds(values: list[int], zeros: int) -> None:
    durations = Durations()
    durations.add(values, zeros)
    found = durations.distribution()
    ordered = [0] * zeros + sorted(values)
    if not ordered:
        assert found == Distribution()
        return
    assert found.count == len(ordered)
    assert found.min == pytest.approx(ordered[0] / 1e9)
    assert found.max == pytest.approx(ordered[-1] / 1e9)
    assert found.mean == pytest.approx(sum(ordered) / len(ordered) / 1e9)
    true = ordered[math.ceil(0.95 * len(ordered)) - 1]
    assert abs(found.p95 * 1e9 - true) <= ACCURACY * true + 101


def test_many_durations_take_no_more_memory_than_few() -> None:
    durations = Durations()
    durations.add(list(range(0, 10_000_000, 1000)))
    before = bins_of(durations)
    for _ in range(20):
        durations.add(list(range(0, 10_000_000, 1000)))
    assert bins_of(durations) == before <= 2 * BINS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e101, sys.float_info.max])
def test_a_histogram_refuses_what_is_no_sensible_number(value: float) -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="finite"):
        histogram.record(value)
    assert histogram.distribution() == Distribution()


def test_a_counter_only_goes_up() -> None:
    counter = Counter()
    counter.add()
    counter.add(2.5)
    for amount in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="only goes up"):
            counter.add(amount)
    assert counter.value == 3.5


def test_a_gauge_goes_both_ways() -> None:
    gauge = Gauge()
    gauge.set(5)
    gauge.add(-7)
    for change in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            gauge.set(change)
        with pytest.raises(ValueError, match="finite"):
            gauge.add(change)
    assert gauge.value == -2


def test_running_knows_its_peak() -> None:
    running = Running()
    lock = Lock()
    for step in (1, 1, -1, 1, 1, -1, -1, -1):
        (one_more if step > 0 else one_less)(lock, [running])
    assert (running.now, running.peak) == (0, 3)


@given(st.integers(0, 3000), st.integers(2, 20))
def test_a_thinned_series_spans_the_whole_in_even_steps(length: int, limit: int) -> None:
    series: Thinned[int] = Thinned(limit)
    for number in range(length):
        series.add(number)
    kept = series.entries()
    assert len(kept) <= limit
    assert len(kept) >= min(length, limit // 2)
    assert len({later - earlier for earlier, later in pairwise(kept)}) <= 1
    if length:
        assert kept[0] == 0
        assert length - kept[-1] <= max(1, 2 * length // limit + 1)


class Foreign:
    """A number of somebody else's, as numpy has them."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)


class ForeignInteger(Foreign):
    def __index__(self) -> int:
        return int(self.value)

    __int__ = __index__


@pytest.mark.parametrize(
    ("number", "plain"),
    [(Decimal("1.5"), 1.5), (Fraction(1, 2), 0.5), (Foreign(2.5), 2.5), (ForeignInteger(3), 3), (True, 1)],
)
def test_numbers_of_any_kind_become_plain_ones(number: Any, plain: float) -> None:
    counter, gauge, histogram = Counter(), Gauge(), Histogram()
    for add in (counter.add, gauge.add):
        add(0.5)
        add(number)
    assert (counter.value, gauge.value) == (0.5 + plain, 0.5 + plain)
    gauge.set(number)
    assert (type(gauge.value), gauge.value) == (type(plain), plain)
    histogram.record(0.25)
    histogram.record(number)
    spread = histogram.distribution()
    assert (spread.count, spread.max) == (2, plain)
    json.dumps([counter.value, gauge.value, asdict(spread)])


@pytest.mark.parametrize("wrong", ["1", b"1", None, [1], 1j])
def test_what_is_no_number_is_refused_and_counts_nothing(wrong: Any) -> None:
    counter, gauge, histogram = Counter(), Gauge(), Histogram()
    for use in (counter.add, gauge.set, gauge.add, histogram.record):
        with pytest.raises(TypeError, match="a metric takes numbers, not"):
            use(wrong)
    assert (counter.value, gauge.value, histogram.distribution().count) == (0, 0, 0)


@pytest.mark.parametrize("wrong", [10**400, Decimal("NaN"), Decimal("Infinity"), math.inf])
def test_what_is_not_finite_is_refused_and_counts_nothing(wrong: Any) -> None:
    counter, gauge, histogram = Counter(), Gauge(), Histogram()
    for use in (counter.add, gauge.set, gauge.add, histogram.record):
        with pytest.raises(ValueError, match="finite"):
            use(wrong)
    assert (counter.value, gauge.value, histogram.distribution().count) == (0, 0, 0)


# --- in words

SIZES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0"), (1e-9, "0.001 us"), (2.5e-8, "0.025 us"), (0.000_999_4, "999 us"), (0.000_999_6, "1 ms"),
        (0.001, "1 ms"), (0.012_34, "12.3 ms"), (0.999_4, "999 ms"), (0.999_6, "1 s"), (1.0, "1 s"), (999.4, "999 s"),
        (999.5, "1000 s"), (1e6, "1000000 s"),
    ],
)  # fmt: skip
def test_times_have_a_unit_that_fits(seconds: float, said: str) -> None:
    assert in_seconds(seconds) == said


@given(st.one_of(st.floats(1e-9, 1e6), st.floats(-9, 6).map(lambda power: 10.0**power)))
def test_times_have_no_exponent_and_are_right_in_three_digits(seconds: float) -> None:
    number, unit = in_seconds(seconds).split()
    assert "e" not in number
    assert unit == "s" or 0 < float(number) < 1000
    assert unit == "us" or float(number) >= 1
    assert float(number) * SIZES[unit] == pytest.approx(seconds, rel=0.0051)


@given(st.floats(1e-12, 1e15), st.integers(1, 6))
def test_numbers_have_no_exponent_and_are_right_in_so_many_digits(number: float, digits: int) -> None:
    said = in_digits(number, digits)
    assert "e" not in said
    assert float(said.replace(",", "")) == pytest.approx(number, rel=0.51 * 10.0 ** (1 - digits))
