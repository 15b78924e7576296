"""Numbers in bounded memory: distributions with percentiles, counters, gauges, how many run at once, thinned series.

The one door to ddsketch. Knows nothing of calls.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import perf_counter_ns
from typing import Any, Final, Generic, TypeVar

from ddsketch import LogCollapsingLowestDenseDDSketch

__all__ = [
    "Counter",
    "Distribution",
    "Durations",
    "Gauge",
    "Histogram",
    "Running",
    "Thinned",
    "in_digits",
    "in_seconds",
    "one_less",
    "one_more",
]

T = TypeVar("T")

ACCURACY: Final = 0.01  # a percentile is within 1 % of a value that was there
BINS: Final = 2048  # of a sketch, for each sign: 17 decades; beyond, the smallest values lose their accuracy
LARGEST: Final = 1e100  # of a histogram's values
STEP_NS: Final = 100  # the resolution of percentiles of durations


@dataclass(frozen=True, slots=True)
class Distribution:
    """How values are spread; all zero where there were none.

    Attributes:
        count: How many.
        mean, min, max: Exact.
        p50, p95, p99: Percentiles, within 1 % of a value that was there.
    """

    count: int = 0
    mean: float = 0.0
    min: float = 0.0
    max: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


def _plain(value: float) -> float:
    """A number as JSON and our sums take it: numpy's, decimals and fractions are made ints or floats.

    Raises:
        TypeError: It is no number.
    """
    if type(value) is float:
        return value
    if isinstance(value, (str, bytes, bytearray)):  # which float() would read
        raise TypeError(f"a metric takes numbers, not {value!r}")
    try:
        plain = float(value)
        return int(value) if hasattr(value, "__index__") else plain
    except OverflowError:
        return math.inf
    except ArithmeticError:
        return math.nan
    except (TypeError, ValueError):
        raise TypeError(f"a metric takes numbers, not {value!r}") from None


class _Spread:
    """Exact count, sum and extremes, and a sketch of the rest; ``step`` is what one unit of the sketch stands for.

    Source: DDSketch, Masson, Rim, Lee, VLDB 2019.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._sketch: Any = LogCollapsingLowestDenseDDSketch(ACCURACY, BINS)
        self._count = 0
        self._total: float = 0
        self._low: float = math.inf
        self._high: float = -math.inf

    def _note(self, count: int, total: float, low: float, high: float) -> None:
        self._count += count
        self._total += total
        self._low = min(self._low, low)
        self._high = max(self._high, high)

    def _percentile(self, share: float) -> float:
        # The nearest rank: of two values the 99th percentile is the greater one, where the sketch would take the lower.
        rank = math.ceil(share * self._count) - 1
        quantile = min((rank + 0.5) / max(self._count - 1, 1), 1.0)  # between two ranks, so that no rounding matters
        found: float = self._sketch.get_quantile_value(quantile) * self._step
        return min(max(found, self._low), self._high)

    def _distribution(self, scale: float) -> Distribution:
        if not self._count:
            return Distribution()
        mean = min(max(self._total / self._count, self._low), self._high)  # a sum of floats is not exact
        figures = (mean, self._low, self._high, *map(self._percentile, (0.5, 0.95, 0.99)))
        return Distribution(self._count, *(figure * scale for figure in figures))


class Durations(_Spread):
    """Durations: nanoseconds in, seconds out. Its owner sees to it that one thread at a time is in it."""

    def __init__(self) -> None:
        super().__init__(STEP_NS)

    def add(self, values: Sequence[int], zeros: int = 0) -> None:
        """Take durations, and so many more that were nothing."""
        if zeros:
            self._note(zeros, 0, 0, 0)
            self._sketch.add(0, zeros)
        if values:
            self._note(len(values), sum(values), min(values), max(values))
            # Equal ones go into the sketch together: short calls, of which there are many, are mostly equal.
            for steps, count in collections.Counter([value // STEP_NS for value in values]).items():
                self._sketch.add(steps, count)

    def distribution(self) -> Distribution:
        """In seconds."""
        return self._distribution(1e-9)


class Histogram(_Spread):
    """How values of the user's own are spread. From any thread."""

    def __init__(self) -> None:
        super().__init__(1)
        self._lock = Lock()

    def record(self, value: float) -> None:
        """Take a value.

        Raises:
            TypeError: It is no number.
            ValueError: It is no finite number, or none of a sensible size (up to 1e100).
        """
        value = _plain(value)
        if not abs(value) <= LARGEST:
            raise ValueError(f"a histogram takes finite numbers up to {LARGEST:g}, not {value!r}")
        with self._lock:
            self._note(1, value, value, value)
            self._sketch.add(value)

    def distribution(self) -> Distribution:
        """What was recorded so far."""
        with self._lock:
            return self._distribution(1)


class Counter:
    """Counts up. From any thread."""

    def __init__(self) -> None:
        self._value: float = 0
        self._lock = Lock()

    def add(self, amount: float = 1) -> None:
        """Count ``amount`` more.

        Raises:
            TypeError: It is no number.
            ValueError: It is negative or not finite; a `Gauge` goes up and down.
        """
        amount = _plain(amount)
        if not 0 <= amount < math.inf:
            raise ValueError(f"a counter only goes up, by finite amounts, not by {amount!r}; a gauge goes both ways")
        with self._lock:
            self._value += amount

    @property
    def value(self) -> float:
        """What was counted."""
        return self._value


class Gauge:
    """A number that goes up and down. From any thread."""

    def __init__(self) -> None:
        self._value: float = 0
        self._lock = Lock()

    def set(self, value: float) -> None:
        """It is ``value`` now.

        Raises:
            TypeError: It is no number.
            ValueError: It is not finite.
        """
        value = _plain(value)
        if not math.isfinite(value):
            raise ValueError(f"a gauge takes finite numbers, not {value!r}")
        self._value = value

    def add(self, change: float) -> None:
        """It has changed by ``change``.

        Raises:
            TypeError: It is no number.
            ValueError: It is not finite.
        """
        change = _plain(change)
        with self._lock:
            self.set(self._value + change)

    @property
    def value(self) -> float:
        """What it is now."""
        return self._value


class Running:
    """How many run at once, now and at the most, and what they took. Its owner counts, under a lock: see `one_more`.

    Attributes:
        now, peak: How many run now, and at the most.
        measured: Those that have ended and whose CPU time was taken.
        cpu_ns: Of those.
    """

    __slots__ = ("_busy_ns", "_since_ns", "cpu_ns", "measured", "now", "peak")

    def __init__(self) -> None:
        self.now = self.peak = self.measured = self.cpu_ns = 0
        self._busy_ns = self._since_ns = 0

    @property
    def busy_ns(self) -> int:
        """How long any of them ran, until now. From any thread."""
        busy, since = self._busy_ns, self._since_ns  # in this order: what ends in between is not counted twice
        return busy + (perf_counter_ns() - since if since else 0)


def one_more(lock: Lock, running: Iterable[Running]) -> None:
    """One more runs, in each of these."""
    with lock:
        for one in running:
            if not one.now:
                one._since_ns = perf_counter_ns()
            one.now = now = one.now + 1
            if now > one.peak:
                one.peak = now


def one_less(lock: Lock, running: Iterable[Running], cpu_ns: int | None = None) -> None:
    """One less; what it took of CPU, if that was measured."""
    with lock:
        for one in running:
            one.now -= 1
            if not one.now:
                since, one._since_ns = one._since_ns, 0
                one._busy_ns += perf_counter_ns() - since
            if cpu_ns is not None:
                one.measured += 1
                one.cpu_ns += cpu_ns


class Thinned(Generic[T]):
    """A series that keeps its whole length in bounded memory: when it is full, every second entry goes.

    Args:
        limit: Entries kept at the most, 2 or more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[T] = []
        self._every = 1
        self._seen = 0

    def add(self, entry: T) -> None:
        """Take an entry; from some length on only every second one is kept, then every fourth."""
        if self._seen % self._every == 0:
            if len(self._kept) == self._limit:
                del self._kept[1::2]
                self._every *= 2
            if self._seen % self._every == 0:
                self._kept.append(entry)
        self._seen += 1

    def entries(self) -> tuple[T, ...]:
        """What is kept, in order; the first one always is."""
        return tuple(self._kept)


def in_digits(number: float, digits: int = 3) -> str:
    """With so many digits, rounded, and never with an exponent: ``0.00123``, ``12.3``, ``12,345``."""
    text = f"{number:.{digits}g}"
    if "e+" in text:
        return f"{number:,.0f}"
    return text if "e-" not in text else f"{number:.{digits - 1 - int(text.partition('e')[2])}f}"


def in_seconds(seconds: float) -> str:
    """With three digits and a unit that fits the rounded figure: 999.6 us are 1 ms."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        text = f"{seconds / size:.3g}"
        if "e+" not in text:
            return f"{in_digits(seconds / size)} {unit}" if seconds else "0"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"
