"""`MemoryLimit`: no further call begins while the process and what it started use too much memory."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import Final

import anyio

from ._admission import Limit, Waiter
from ._limits import check_count
from ._suggest import suggests
from ._system import memory_bytes, tree_rss_bytes

__all__ = ["MemoryLimit", "MemoryStatistics"]

EVERY_S: Final = 0.1  # seconds between samples, at the least
SHARE: Final = 0.05  # of the time that samples may take
RESUME: Final = 0.95  # of the bytes, at which it goes on
OF_ALL: Final = 0.95  # of the memory that we may use: beyond, the kernel's memory killer is near
CROWD: Final = 8  # waiters that look each time; the more there are, the rarer each looks
NEWS_KEPT: Final = 16
UNBOUNDED: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """A memory limit at one moment.

    Attributes:
        max_bytes: Above these no further call begins.
        used_bytes: When it last looked.
        is_paused: Whether calls wait for memory.
        borrowed: Calls that run under it.
        waiting: Calls that wait.
        peak: The most that ever ran at once.
    """

    max_bytes: int
    used_bytes: int
    is_paused: bool
    borrowed: int
    waiting: int
    peak: int


class MemoryLimit(Limit):
    """No further call begins while this process and its children use more than ``max_bytes``; one always may run.

    Looks when calls begin and end and while some wait, at most ten times a second and for at most 5 % of the time.
    After a pause it goes on at 95 % of the bytes, with at most as many new calls per look as still run. What a call
    will take nobody knows beforehand: leave room for it, and bound how many there are, as in
    ``concurrency=[MemoryLimit(4 << 30), ConcurrencyLimit(16)]``. A call that is nested in one that was admitted is
    admitted. May be made at import and used in one event loop after another.

    Args:
        max_bytes: Resident bytes of the whole process tree; pages that processes share count for each. More than 95 %
            of what the machine or the cgroup has counts as that.

    Units: bytes.
    """

    is_reentrant = True

    @suggests
    def __init__(self, max_bytes: int) -> None:
        super().__init__(UNBOUNDED)
        self._given_bytes = check_count("MemoryLimit(max_bytes)", max_bytes)
        self._max_bytes = 0  # not looked up yet
        self._used_bytes = 0
        self._due = 0.0
        self._is_paused = False
        self.news = deque(maxlen=NEWS_KEPT)

    def __repr__(self) -> str:
        return f"MemoryLimit({self._given_bytes})"

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._given_bytes,))

    def statistics(self) -> MemoryStatistics:  # type: ignore[override]  # its own: there is no total
        """How it stands now."""
        with self._lock:
            return MemoryStatistics(
                self._max_bytes or self._given_bytes,
                self._used_bytes,
                self._is_paused,
                self._borrowed,
                self._line.size,
                self._peak,
            )

    def acquire_nowait(self) -> bool:
        """Take a token unless memory is short; whether it did. From any thread."""
        if monotonic() >= self._due:
            self._look()
        return super().acquire_nowait()

    def release(self) -> None:
        """Give a token back. From any thread, with any loop or none."""
        super().release()
        if self._line.size and monotonic() >= self._due:
            self._look()

    async def _stand(self, waiter: Waiter) -> None:
        while not waiter.event.is_set():
            with anyio.move_on_after(EVERY_S * (1 + self._line.size // CROWD)):
                await waiter.event.wait()
            if not waiter.event.is_set() and monotonic() >= self._due:
                self._look()

    def _look(self) -> None:
        began = monotonic()
        with self._lock:
            if began < self._due:
                return  # somebody else just looks
            self._due = began + EVERY_S
        used = tree_rss_bytes()
        if not self._max_bytes:
            self._max_bytes = min(self._given_bytes, int(OF_ALL * memory_bytes()))
        ended = monotonic()
        with self._lock:
            self._due = max(began + EVERY_S, ended + (ended - began) / SHARE)
            self._decide(used)
            served = self._serve()
            if not self._is_paused and not self._line.size:
                self._total = UNBOUNDED
        self._wake(served)

    def _decide(self, used: int) -> None:
        self._used_bytes = used
        if used > self._max_bytes or (self._is_paused and used > RESUME * self._max_bytes):
            self._total = 1
            self._turn(paused=True)
        elif self._total < UNBOUNDED:
            self._total = self._borrowed + max(1, self._borrowed)
            self._turn(paused=False)

    def _turn(self, *, paused: bool) -> None:
        if paused != self._is_paused:
            self._is_paused = paused
            event = "limit.paused" if paused else "limit.resumed"
            self.news.append(
                (event, {"limit": repr(self), "used_bytes": self._used_bytes, "max_bytes": self._max_bytes})
            )
