"""Series over time in bounded memory, for a run of whatever length: as it grows, two neighbouring bins become one.

Times are integer microseconds since the begin of what is drawn. Knows nothing of calls.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Final, Generic, TypeVar

__all__ = ["BINS", "Axis", "Counts", "Lanes", "Levels", "Recent"]

N = TypeVar("N")

BINS: Final = 256  # at the most; half of them are in use at least, but in the shortest of runs
ROUNDING_US: Final = 2  # begin and end of a call are known to the microsecond


class Axis:
    """The bins that all series of one picture share.

    Attributes:
        width_us: Of a bin.
    """

    def __init__(self) -> None:
        self.width_us = 1
        self._series: list[Counts | Levels] = []

    def counts(self) -> Counts:
        """A new series of what happens at a moment."""
        made = Counts(self)
        self._series.append(made)
        return made

    def levels(self) -> Levels:
        """A new series of what lasts."""
        made = Levels(self)
        self._series.append(made)
        return made

    def reach(self, until_us: int) -> None:
        """Make room up to there."""
        while until_us >= self.width_us * BINS:
            for one in self._series:
                one.halve()
            self.width_us *= 2

    def used(self, until_us: int) -> int:
        """How many bins there are up to there."""
        return min(until_us // self.width_us + 1, BINS)


class Counts:
    """How often something happened, by bin."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._bins = [0] * BINS

    def add(self, at_us: int) -> None:
        """It happened; the axis reaches so far."""
        self._bins[at_us // self._axis.width_us] += 1

    def halve(self) -> None:
        """Two bins become one."""
        bins = self._bins
        self._bins = [*map(sum, zip(bins[::2], bins[1::2], strict=True)), *([0] * (BINS // 2))]

    def values(self, used: int) -> tuple[int, ...]:
        """How often, by bin."""
        return tuple(self._bins[:used])


class Levels:
    """How many of something there were at once, in the mean, by bin."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._part_us = [0] * BINS  # of bins that were covered in part
        self._steps = [0] * (BINS + 1)  # of bins that were covered whole: where that begins, and ends

    def add(self, begin_us: int, end_us: int) -> None:
        """There was one more in this time; the axis reaches so far."""
        width = self._axis.width_us
        first, last = begin_us // width, end_us // width
        if first == last:
            self._part_us[first] += end_us - begin_us
            return
        self._part_us[first] += (first + 1) * width - begin_us
        self._part_us[last] += end_us - last * width
        if last > first + 1:
            self._steps[first + 1] += 1
            self._steps[last] -= 1

    def _areas_us(self) -> list[int]:
        areas, whole, width = [], 0, self._axis.width_us
        for part, step in zip(self._part_us, self._steps, strict=False):
            whole += step
            areas.append(part + whole * width)
        return areas

    def halve(self) -> None:
        """Two bins become one."""
        areas = self._areas_us()
        self._part_us = [*map(sum, zip(areas[::2], areas[1::2], strict=True)), *([0] * (BINS // 2))]
        self._steps = [0] * (BINS + 1)

    def values(self, used: int, until_us: int) -> tuple[float, ...]:
        """How many at once, by bin; the last one is as long as there was time."""
        width = self._axis.width_us
        areas = self._areas_us()[:used]
        widths = [width] * (used - 1) + [max(until_us - (used - 1) * width, 1)]
        return tuple(area / one for area, one in zip(areas, widths, strict=True))


class Lanes:
    """Gives spans, which come in the order of their ends, as few lanes as will do: as many as there were at once.

    A span gets the lane that was left last before it began. Spans of calls that ran in threads may seem to lie one upon
    the other, since the loop hears late of their ends: then they get the lane that is left first.
    """

    def __init__(self) -> None:
        self.count = 0
        self._until: list[tuple[int, int]] = []  # of each lane, sorted

    def take(self, begin_us: int, end_us: int, at_most: int | None = None) -> int:
        """The number of its lane, from 0; of at most so many."""
        at = bisect_right(self._until, (begin_us + ROUNDING_US, self.count)) - 1
        if at < 0 and at_most is not None and self.count >= at_most:
            at = 0
        if at < 0:
            number = self.count
            self.count += 1
        else:
            number = self._until.pop(at)[1]
        if not self._until or self._until[-1][0] <= end_us:
            self._until.append((end_us, number))
        else:
            insort(self._until, (end_us, number))
        return number


class Recent(Generic[N]):
    """What happened lately, by time; of what is longer ago only a part is kept, the less the longer.

    Args:
        limit: Entries kept at the most, 4 or more.
    """

    __slots__ = ("_entries", "_limit", "_times")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: list[int] = []
        self._entries: list[N] = []

    def add(self, at_us: int, entry: N) -> None:
        """It happened."""
        times = self._times
        if not times or times[-1] <= at_us:
            times.append(at_us)
            self._entries.append(entry)
        else:
            place = bisect_right(times, at_us)
            times.insert(place, at_us)
            self._entries.insert(place, entry)
        if len(times) > self._limit:
            older = slice(1, self._limit // 2, 2)
            del times[older], self._entries[older]

    def until(self, at_us: int) -> N | None:
        """The last one that is known to have happened by then."""
        place = bisect_right(self._times, at_us)
        return self._entries[place - 1] if place else None
