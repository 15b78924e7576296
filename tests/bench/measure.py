"""Interleaved rounds, medians and intervals: times are only ever compared with times of the same round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One way to do a thing.

    Attributes:
        name: For the table.
        run: Does it once and gives seconds per item.
        goal: What the ratio to the baseline should not exceed, if there is one.
    """

    name: str
    run: Callable[[], float]
    goal: float | None = None


@dataclass(frozen=True)
class Interval:
    """A median, and between what it lies with 95 % certainty."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Interval:
        """Of one value per round: two of them, by their ranks, which asks nothing of how they are distributed.

        Source: the sign test turned round (W. R. Thompson, 1936). Of fewer than 6 values, the least and the greatest.
        """
        ordered = sorted(values)
        rank, below = 0, 1  # how many of 2 ** n outcomes have at most ``rank`` values under the median
        while 2 * below / 2 ** len(ordered) <= 0.05:
            rank += 1
            below += math.comb(len(ordered), rank)
        cut = max(rank - 1, 0)
        return Interval(ordered[cut], statistics.median(ordered), ordered[-1 - cut])

    def shown(self) -> str:
        return f"{self.low:6.2f} to {self.high:5.2f}"


@dataclass(frozen=True)
class Row:
    """One case's figures.

    Attributes:
        name: Of the case.
        micros: Median microseconds per item.
        ratio: Median of its ratios to the baseline, round by round.
        low, high: The quartiles of those ratios.
        goal: As of the case.
    """

    name: str
    micros: float
    ratio: float
    low: float
    high: float
    goal: float | None


def compare(cases: Sequence[Case], rounds: int) -> list[Row]:
    """Run all cases in turn, ``rounds`` times after one that does not count; the first case is the baseline."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        order = cases if number % 2 else list(reversed(cases))
        for case in order:
            seconds = case.run()
            if number:
                times[case.name].append(seconds)
    base = times[cases[0].name]
    rows = []
    for case in cases:
        ratios = [one / other for one, other in zip(times[case.name], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(Row(case.name, statistics.median(times[case.name]) * 1e6, middle, low, high, case.goal))
    return rows


def table(title: str, rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [title, f"  {'':44} {'us/item':>9} {'ratio':>7} {'quartiles':>15} {'goal':>6}"]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:.2f}" + ("" if row.ratio <= row.goal else " MISSED")
        lines.append(f"  {row.name:44} {row.micros:9.2f} {row.ratio:6.2f}x {row.low:6.2f} to {row.high:5.2f} {goal:>6}")
    return "\n".join(lines)
