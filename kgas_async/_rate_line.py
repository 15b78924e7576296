"""The line of those who wait for a rate: first come, first served, from any number of event loops. And its figures."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from threading import Lock
from typing import Final

import anyio

from ._admission import Waiter

__all__ = ["RateLine", "RateStatistics"]

LOOK_S: Final = 1.0  # how often those who wait behind another loop's look whether it is still there
CROWD: Final = 8  # waiters that look each time; the more there are, the rarer each looks


@dataclass(frozen=True, slots=True)
class RateStatistics:
    """A rate limit at one moment.

    Attributes:
        rate: Tokens per ``per`` seconds.
        per: Seconds.
        burst: Tokens that may be taken at once after a pause.
        waiting: Waiters for a token.
        taken: Tokens taken so far.
        keys: Keys whose tokens are not all back; 0 for a limit without ``key``.
    """

    rate: float
    per: float
    burst: float
    waiting: int
    taken: float
    keys: int = 0


class RateLine:
    """Waiters, of whom the first watches the clock and the others wait until they are first.

    Args:
        lock: What guards it, with all else that the one who has the line decides on.
    """

    __slots__ = ("_lock", "_loops", "waiters")

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._loops: Counter[int] = Counter()  # of the waiters, by the serial of their mailbox
        self.waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self.waiters)

    def is_first(self, waiter: Waiter) -> bool:
        """Whether it is the turn of this one. Under the lock."""
        return bool(self.waiters) and self.waiters[0] is waiter

    def join(self, waiter: Waiter) -> None:
        """Step into it."""
        with self._lock:
            self.waiters.append(waiter)
            self._loops[waiter.mailbox.serial] += 1

    def leave(self, waiter: Waiter) -> None:
        """Step out of it, for whatever reason; the next becomes the first."""
        if waiter.has_left:  # its loop had ended, and it was passed over
            return
        with self._lock:
            first = self.waiters[0] is waiter
            self.waiters.remove(waiter)
            self._forget(waiter)
        if first:
            self.call_first()

    def _forget(self, waiter: Waiter) -> None:
        waiter.has_left = True
        serial = waiter.mailbox.serial
        self._loops[serial] -= 1
        if not self._loops[serial]:
            del self._loops[serial]

    def call_first(self) -> None:
        """Have whoever is first look again; those whose loop has ended are passed over."""
        while self.waiters:
            with self._lock:
                if not self.waiters:
                    return
                waiter = self.waiters[0]
            if waiter.wake():
                return
            with self._lock:  # its loop has ended
                if self.is_first(waiter):
                    self.waiters.popleft()
                    self._forget(waiter)

    async def until_first(self, waiter: Waiter) -> None:
        """Wait until it is the turn of this one, which is in the line."""
        while True:
            with self._lock:
                if self.is_first(waiter):
                    return
                is_mixed = len(self._loops) > 1
            if not is_mixed:  # who joins later is behind
                await waiter.event.wait()
                continue
            with anyio.move_on_after(LOOK_S * (1 + len(self.waiters) // CROWD)) as scope:
                await waiter.event.wait()
            if scope.cancelled_caught:
                self.call_first()  # a loop that ends tells nobody
