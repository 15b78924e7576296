"""Series in bounded memory: what they add up to does not depend on how often their bins were joined."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgas_async.export._report_series import BINS, Axis, Lanes, Recent
from kgas_async.export._report_shapes import log_place, nice_above, ticks

spans = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)).map(sorted), min_size=1, max_size=60)


@given(spans)
def test_bins_hold_what_was_there(given_spans: list[list[int]]) -> None:
    axis = Axis()
    levels, counts = axis.levels(), axis.counts()
    for begin, end in given_spans:
        axis.reach(end)
        levels.add(begin, end)
        counts.add(end)
    until = max(end for _, end in given_spans)
    used, width = axis.used(until), axis.width_us
    assert used <= BINS
    assert until < used * width
    found, ended = levels.values(used, until), counts.values(used)
    for number in range(used):
        low, high = number * width, min((number + 1) * width, max(until, number * width + 1))
        area = sum(max(min(end, high) - max(begin, low), 0) for begin, end in given_spans)
        assert found[number] * (high - low) == pytest.approx(area)
        assert ended[number] == sum(low <= end < low + width for _, end in given_spans)


@given(spans)
def test_lanes_are_as_many_as_there_were_at_once(given_spans: list[list[int]]) -> None:
    by_end = sorted(((begin * 3, end * 3 + 3) for begin, end in given_spans), key=lambda span: span[1])
    lanes = Lanes()
    taken: dict[int, int] = {}
    for begin, end in by_end:
        number = lanes.take(begin, end)
        assert taken.get(number, 0) <= begin + 2
        taken[number] = end
    steps = sorted([(begin + 2, 1) for begin, _ in by_end] + [(end, 0) for _, end in by_end])
    now = most = 0
    for _, is_begin in steps:
        now += 1 if is_begin else -1
        most = max(most, now)
    assert lanes.count == most


def test_a_lane_that_seems_taken_is_used_where_more_cannot_be() -> None:
    lanes = Lanes()
    assert [lanes.take(0, 10, 2), lanes.take(0, 11, 2), lanes.take(1, 12, 2)] == [0, 1, 0]
    assert lanes.count == 2


@given(st.lists(st.integers(0, 50), max_size=200), st.integers(0, 50))
def test_the_latest_until_then_is_found_or_an_earlier_one(times: list[int], at: int) -> None:
    recent: Recent[tuple[int, int]] = Recent(16)
    for number, time in enumerate(times):
        recent.add(time, (time, number))
    found = recent.until(at)
    until = [(time, number) for number, time in enumerate(times) if time <= at]
    if len(times) <= 16:
        assert found == max(until, default=None)
    elif found is not None:
        assert found in until


def test_scales_have_round_numbers() -> None:
    assert [nice_above(value) for value in (0, 0.3, 1, 1.1, 2.4, 30, 51)] == [1, 0.5, 1, 2, 2.5, 50, 100]
    assert ticks(10.6) == [0, 2, 4, 6, 8, 10]
    assert ticks(0) == [0]
    assert ticks(7300) == [0, 1800, 3600, 5400, 7200]
    assert all(2 <= len(ticks(0.001 * 1.7**power)) <= 7 for power in range(40))
    assert (log_place(1, 1, 100), log_place(10, 1, 100), log_place(100, 1, 100)) == (0, 50, 100)
