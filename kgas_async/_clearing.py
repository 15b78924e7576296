"""How fast a line of waiters clears, seen from the grants so far: for those that turn callers away at the door."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Clearing"]

ENOUGH: Final = 8  # grants in a row before anything is said
REMEMBERED: Final = 64  # grants


class Clearing:
    """The grants since the line was last empty: while nobody waits, their rate says nothing about the limit.

    Whoever calls holds a lock. Times are those of the loops of the waiters.
    """

    __slots__ = ("_clock", "_times")

    def __init__(self) -> None:
        self._clock: Callable[[], float] | None = None
        self._times: deque[float] = deque(maxlen=REMEMBERED)  # the first: when the line began, while it is remembered

    def begin(self, clock: Callable[[], float]) -> None:
        """Somebody waits, and nobody did before."""
        self._clock = clock
        self._times.clear()
        self._times.append(clock())

    def note_grant(self, clock: Callable[[], float]) -> None:
        """One of those who wait gets a token."""
        if clock != self._clock:  # another loop's, whose times have nothing in common with those here
            self.begin(clock)
        else:
            self._times.append(clock())

    def seconds_for(self, grants: int) -> float | None:
        """How long so many grants take at the rate seen; None where too little was seen."""
        times = self._times
        if len(times) <= ENOUGH:
            return None
        return max(0, grants) * (times[-1] - times[0]) / (len(times) - 1)
