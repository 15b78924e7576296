"""Shapes of a report's pictures, as the path data of SVG: numbers in, digits out, no text of anybody's.

Each is drawn in a box as wide as there are bins, and stretched to the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

__all__ = ["LANE", "area", "bars", "lanes", "line", "log_place", "nice_above", "ticks"]

LANE = 6  # the height of a lane, with the gap to the next
_LEVELS = 3  # shades of a lane: how much of its time it was in use
_SEEN = 0.02  # of a bin
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)


def _digits(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def area(values: Sequence[float], top: float, height: float) -> str:
    """Steps, filled down to the bottom."""
    if not values or top <= 0:
        return ""
    parts = [f"M0 {_digits(height)}"]
    for value, group in groupby(values):
        parts.append(f"V{_digits(height - height * min(value / top, 1.0))}h{len(list(group))}")
    return "".join(parts) + f"V{_digits(height)}z"


def line(points: Sequence[tuple[float, float]], top: float, height: float) -> str:
    """A line through points, whose first number is their place."""
    if not points or top <= 0:
        return ""
    placed = [f"{_digits(x)} {_digits(height - height * min(y / top, 1.0))}" for x, y in points]
    return "M" + "L".join(placed)


def bars(values: Sequence[float], top: float, height: float) -> str:
    """A bar for each value that is not 0, at least as high as can be seen."""
    if top <= 0:
        return ""
    found = []
    for place, value in enumerate(values):
        if value:
            high = max(height * min(value / top, 1.0), 1.5)
            found.append(f"M{place} {_digits(height)}v-{_digits(high)}h1v{_digits(high)}z")
    return "".join(found)


def lanes(drawn: Sequence[Sequence[float]]) -> list[str]:
    """For each shade, from the lightest, the parts of lanes that have it."""
    shades: list[list[str]] = [[] for _ in range(_LEVELS)]
    for number, lane in enumerate(drawn):
        x, y = 0, number * LANE
        for shade, group in groupby(lane, lambda used: min(math.ceil(used * _LEVELS), _LEVELS) if used > _SEEN else 0):
            length = len(list(group))
            if shade:
                shades[shade - 1].append(f"M{x} {y}h{length}v{LANE - 1}h-{length}z")
            x += length
    return ["".join(shade) for shade in shades]


def nice_above(value: float) -> float:
    """A round number that is no smaller."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next((unit * step for step in (1.0, 2.0, 2.5, 5.0) if unit * step >= value * 0.999), unit * 10)


def ticks(span_s: float, most: int = 6) -> list[float]:
    """Round times from 0 up to the end, no more than so many."""
    if span_s <= 0:
        return [0.0]
    if span_s < most - 1:
        step = nice_above(span_s / (most - 1))
    else:
        step = next((one for one in _STEPS_S if span_s / one < most), nice_above(span_s / 86400 / (most - 1)) * 86400)
    return [number * step for number in range(int(span_s / step + 1e-9) + 1)]


def log_place(value: float, low: float, high: float) -> float:
    """Where a value stands between these, from 0 to 100, on a logarithmic scale."""
    if value <= low or high <= low:
        return 0.0
    return round(100 * min(math.log(value / low) / math.log(high / low), 1.0), 1)
