"""What shared decisions need of time: a clock that goes on from loop to loop, and counts over the last seconds.

Knows mailboxes as clocks; nothing of calls.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Final

from ._mailbox import Mailbox

__all__ = ["LastSeconds", "LoopTime"]

SLICES: Final = 10


class LoopTime:
    """Seconds that go on where one event loop, with a clock of its own, follows another.

    Not locked: whoever shares it has a lock.
    """

    __slots__ = ("_clock", "_last", "_last_real", "_offset")

    def __init__(self) -> None:
        self._clock = 0  # a mailbox's serial
        self._offset = 0.0
        self._last = 0.0
        self._last_real = 0.0

    def now(self, mailbox: Mailbox) -> float:
        """The time on that mailbox's loop, as seconds of this clock."""
        at = mailbox.time() + mailbox.offset
        real = monotonic()
        if mailbox.serial != self._clock:
            if self._clock:  # what has passed between the two passed in the world outside
                self._offset = self._last + (real - self._last_real) - at
            self._clock = mailbox.serial
        self._last, self._last_real = at + self._offset, real
        return self._last


class LastSeconds:
    """Two counts over the last seconds, in ten slices: a slice is forgotten once all of it is older than that.

    So they reach back for one to 1.1 times ``seconds``, in bounded memory whatever the rate.
    """

    __slots__ = ("_seconds", "_slice", "_slices", "first", "second")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._slice = seconds / SLICES
        self._slices: deque[list[float]] = deque()  # begin, first, second
        self.first = 0
        self.second = 0

    def add(self, now: float, first: int = 0, second: int = 0) -> None:
        """Count, and forget what is too old."""
        self.forget(now)
        if not self._slices or now - self._slices[-1][0] >= self._slice:
            self._slices.append([now, 0, 0])
        newest = self._slices[-1]
        newest[1] += first
        newest[2] += second
        self.first += first
        self.second += second

    def forget(self, now: float) -> None:
        """Forget what is too old at this time."""
        slices = self._slices
        while slices and now - slices[0][0] >= self._seconds + self._slice:
            _, first, second = slices.popleft()
            self.first -= int(first)
            self.second -= int(second)

    def clear(self) -> None:
        """Forget everything."""
        self._slices.clear()
        self.first = self.second = 0
