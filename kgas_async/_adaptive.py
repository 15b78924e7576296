"""`AdaptiveLimit`: how many calls at once is found out from how long they run, and from those that are dropped.

The decisions are `AdaptiveCore`'s: pure, in the time that it is given. Fed with run time, never with the wait for a
token.

Source: the gradient of run times and the square-root headroom are those of Netflix's concurrency-limits (``Gradient``,
``Gradient2``) and Envoy's adaptive concurrency filter; the decrease by the share of dropped calls, which is AIMD's, is
that of DCTCP (Alizadeh et al., SIGCOMM 2010, also RFC 8257).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, TypeAlias

from ._admission import Limit, LimitStatistics
from ._limits import check_count, named
from ._matching import refuse_async
from ._suggest import suggests

__all__ = ["AdaptiveCore", "AdaptiveLimit", "AdaptiveStatistics"]

FEWEST: Final = 8  # calls that a decision rests on
LEARNED: Final = 400  # calls that the base rests on, at the most
ROUNDS: Final = 10  # times the limit: the most calls that a decision waits for
PRECISION: Final = 0.05  # of a mean run time, relative
TOLERANCE: Final = math.log(1.2)  # how far run times may be above the base before the limit is cut
WITHOUT_EFFECT: Final = 0.5  # of what a cut took off, by which run times fall if they were long because of the limit
NEWS_KEPT: Final = 16
NEWSWORTHY: Final = 0.2  # a move, relative to what was told last

Drops: TypeAlias = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]


class AdaptiveCore:
    """Decides on a limit, once per window: as many calls as make their mean run time sure enough.

    After a move it looks away for one mean run time, so that the next decision rests on what the move has brought. At
    the end of a window, if at least half of the limit was in use:

    - calls were dropped: times 1 minus half their share;
    - the (geometric) mean run time is longer than the base by more than what the square root of the limit waits for,
      1.2 times at the least (twice for a limit of 4): times base over mean, plus half of that root;
    - else half of the square root of the limit is added, a quarter more each time in a row, up to a quarter of the
      limit.

    The base is the lowest mean seen, drawn towards the present where the limit was not in use. If two cuts in a row did
    not shorten the run times, or the limit is at its minimum, it was not the number of calls that made them long: the
    base is what they are now.

    Args:
        least: The limit is never below.
        most: Nor above.
        initial: What it begins with.

    Attributes:
        limit: As of now, a float.
        dropped: Calls that were dropped so far.
    """

    def __init__(self, least: int, most: int, initial: int) -> None:
        self.least, self.most = least, most
        self.limit = float(initial)
        self.dropped = 0
        self._base: float | None = None  # a logarithm, as all run times here
        self._base_error = 0.0
        self._learned = 0  # calls that it rests on
        self._raises = 0  # in a row
        self._cuts: list[tuple[float, float]] = []  # limits and mean run times that led to the latest ones in a row
        self.begin(-math.inf)

    @property
    def base_s(self) -> float | None:
        """The run time of a call that has the server to itself, as far as is known."""
        return None if self._base is None else math.exp(self._base)

    def begin(self, at: float) -> None:
        """A window begins at this time; to be called when the time is another clock's."""
        self._began = at
        self._count = self._drops = self._peak = 0
        self._sum = self._squares = 0.0  # of logarithms: run times differ by factors
        self._look_at = max(FEWEST, self.limit / 2)

    def observe(self, now: float, run_s: float, in_flight: int, *, dropped: bool = False) -> str:
        """A call has ended after running for so long, with so many in flight, itself included.

        Returns:
            Why the limit has moved: ``drops``, ``run time`` or ``room``; empty if it has not.
        """
        self.dropped += dropped
        if now < self._began:
            return ""
        self._peak = max(self._peak, in_flight)
        if dropped:
            self._drops += 1
        else:
            seconds = math.log(max(run_s, 1e-9))
            self._count += 1
            self._sum += seconds
            self._squares += seconds * seconds
        seen = self._count + self._drops
        if seen < self._look_at:
            return ""
        self._look_at = seen * 1.2
        mean, error = self._mean()
        if seen < ROUNDS * self.limit and not self._is_sure(mean, error):
            return ""
        before = int(self.limit)
        why = self._decide(mean, error)
        has_moved = int(self.limit) != before
        self.begin(now + (math.exp(mean) if self._count else run_s) if has_moved else now)
        return why if has_moved else ""

    def _mean(self) -> tuple[float, float]:
        """Of the logarithms of run times: their mean and its standard error."""
        if not self._count:
            return 0.0, 0.0
        mean = self._sum / self._count
        return mean, math.sqrt(max(0.0, self._squares / self._count - mean * mean) / self._count)

    def _is_sure(self, mean: float, error: float) -> bool:
        """Whether what is known is enough: for a cut, which is large, more is asked than for a raise."""
        if self._drops * 4 >= self._count or self._base is None:
            return True
        above = mean - self._base - self._tolerance()
        return above > 2 * self._doubt(error) or above < -error or error < PRECISION

    def _tolerance(self) -> float:
        """How far run times may be above the base: as far as by the square root of the limit, waiting their turn."""
        root = math.sqrt(self.limit)
        return max(TOLERANCE, math.log(root / (root - 1)) if root > 1.1 else math.inf)

    def _doubt(self, error: float) -> float:
        """The standard error of how far a mean is above the base."""
        return math.hypot(error, self._base_error)

    def _decide(self, mean: float, error: float) -> str:
        is_loaded = self._peak * 2 >= self.limit
        above = 0.0
        if self._count:
            above = self._learn(mean, error, is_loaded=is_loaded)
        if not is_loaded or (0 < above - self._tolerance() <= 2 * self._doubt(error) and not self._drops):
            return ""
        by_time = 1.0
        if above > self._tolerance():
            by_time = max(0.5, min(0.95, math.exp(-above) + 0.5 / math.sqrt(self.limit)))
            self._cuts.append((math.log(self.limit), mean))
        else:
            self._cuts.clear()
        by_drops = 1 - self._drops / (self._count + self._drops) / 2
        factor = min(by_time, by_drops)
        if factor < 1:
            self._raises = 0
            self.limit = max(self.least, self.limit * factor)
            return "run time" if by_time < by_drops else "drops"
        step = math.sqrt(self.limit) / 2 * 1.25 ** min(self._raises, 50)
        self._raises += 1
        self.limit = min(self.most, self.limit + max(0.5, min(step, self.limit / 4)))
        return "room"

    def _learn(self, mean: float, error: float, *, is_loaded: bool) -> float:
        """Learn about the base; how far this mean is above it."""
        base = self._base
        doubt = self._doubt(error)
        above = 0.0 if base is None else mean - base
        is_alone = self.limit <= self.least or not is_loaded  # then it cannot be the number of calls
        if base is None or above < -3 * doubt or (is_alone and above > 2 * doubt) or self._is_without_effect(mean):
            self._base, self._base_error, self._learned = mean, error, self._count
            self._cuts.clear()
            return 0.0
        if is_alone or (self._base_error > PRECISION and above < self._tolerance() + 2 * doubt):
            share = self._count / (self._count + self._learned)
            self._base = base + share * above
            self._base_error *= math.sqrt(1 - share)
            self._learned = min(self._learned + self._count, LEARNED)
        return mean - self._base  # type: ignore[operator]

    def _is_without_effect(self, mean: float) -> bool:
        """Whether the two latest cuts were: by what they took off the limit, run times would have fallen too."""
        points = [*self._cuts[-2:], (math.log(self.limit), mean)]
        return len(points) == 3 and all(
            before[1] - after[1] < WITHOUT_EFFECT * (before[0] - after[0]) for before, after in pairwise(points)
        )


@dataclass(frozen=True, slots=True)
class AdaptiveStatistics(LimitStatistics):
    """An adaptive limit at one moment.

    Attributes:
        base_s: The run time in seconds of a call that has the server to itself, as far as is known; else None.
        dropped: Calls that were dropped so far.
    """

    base_s: float | None = None
    dropped: int = 0


class AdaptiveLimit(Limit):
    """As many calls at once as what they use can bear, found out while they run; from ``min`` to ``max``.

    Calls that run longer than when they had the server to themselves, and calls that it drops, cut the limit; calls
    that run as fast as ever raise it, as long as at least half of it is in use. It is fed with how long calls run,
    without their waits: by `Policy`, or by ``async with limit:`` around code of your own. May be made at import and
    used in one event loop after another.

    Args:
        min: The limit is never below, at least 1.
        max: Nor above.
        initial: What it begins with; ``min`` unless given. Begin low where nothing is known: it learns there how long
            a call runs that has the server to itself.
        on: Errors by which the server says that it is overloaded: a type, a tuple of types, or a function of the error.
            A ``TimeoutError``, so a `CallTimeout` too, always is one. Other errors and cancelled calls say nothing.

    Source: Netflix's concurrency-limits and Envoy's adaptive concurrency filter (the gradient of run times), DCTCP
        (RFC 8257, the decrease by the share of dropped calls).
    """

    @suggests
    def __init__(self, min: int, max: int, *, initial: int | None = None, on: Drops = ()) -> None:  # noqa: A002
        least = check_count("AdaptiveLimit(min)", min)
        most = check_count("AdaptiveLimit(max)", max, least)
        first = least if initial is None else check_count("AdaptiveLimit(initial)", initial, least)
        if first > most:
            raise ValueError(f"AdaptiveLimit(initial) must be at most max, {most}, not {first}")
        is_function = callable(on) and not isinstance(on, type)
        types = on if isinstance(on, tuple) else (on,)
        if not is_function and not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in types):
            raise TypeError(
                f"AdaptiveLimit(on) is a type of Exception, a tuple of them, or a function of the error, not {on!r}"
            )
        refuse_async("AdaptiveLimit(on)", on)
        super().__init__(first)
        self._arguments: dict[str, Any] = {"initial": initial, "on": on}
        self._on: Any = on
        self._core = AdaptiveCore(least, most, first)
        self._clock: Callable[[], float] | None = None
        self._told = first
        self.news = deque(maxlen=NEWS_KEPT)

    def __repr__(self) -> str:
        given = {name: value for name, value in self._arguments.items() if value not in (None, ())}
        names = [f"{name}={named(value)}" for name, value in given.items()]
        return f"AdaptiveLimit({', '.join([str(self._core.least), str(self._core.most), *names])})"

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(type(self), **self._arguments), (self._core.least, self._core.most))

    def statistics(self) -> AdaptiveStatistics:
        """How it stands now."""
        with self._lock:
            core = self._core
            counts = (self._total, self._borrowed, self._line.size, self._peak, 0)
            return AdaptiveStatistics(*counts, core.base_s, core.dropped)

    def is_drop(self, error: BaseException) -> bool:
        """Whether this error says that the server is overloaded."""
        if isinstance(error, TimeoutError):
            return True
        return isinstance(error, self._on) if isinstance(self._on, (type, tuple)) else bool(self._on(error))

    def note_run(
        self, run_s: float, clock: Callable[[], float], in_flight: int, error: BaseException | None = None
    ) -> None:
        """A call has ended. From any thread.

        Args:
            run_s: How long it ran.
            clock: What gives the time now; that of its loop.
            in_flight: Tokens that were out when it began, its own included.
            error: What it ended by.
        """
        is_drop = error is not None and isinstance(error, Exception) and self.is_drop(error)
        if error is not None and not is_drop:
            return
        now = clock()
        with self._lock:
            if clock != self._clock:
                self._clock = clock
                self._core.begin(now)
            why = self._core.observe(now, run_s, in_flight, dropped=is_drop)
            if not why:
                return
            self._total = int(self._core.limit)
            self._tell(why)
            served = self._serve()
        self._wake(served)

    def _tell(self, why: str) -> None:
        total, is_bound = self._total, self._total in (self._core.least, self._core.most)
        if total != self._told and (is_bound or abs(total - self._told) >= NEWSWORTHY * self._told):
            self.news.append(("limit.changed", {"limit": repr(self), "was": self._told, "total": total, "why": why}))
            self._told = total

    def _left(self, began: float, clock: Callable[[], float], error: BaseException | None) -> None:
        self.note_run(clock() - began, clock, self._borrowed, error)
