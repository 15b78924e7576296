"""Limits on how many calls run at once. Their counts belong to no event loop.

A `ConcurrencyLimit` may be made at import, shared by tools and managers, and used in one loop after another: the count
is under a plain lock, a token is given back by whoever ends the work, a thread included, even when the loop has ended.
Only waiters know their loop. Knows nothing of tools and calls.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from threading import Lock
from types import TracebackType

import anyio
import anyio.lowlevel

from ._mailbox import Mailbox

__all__ = ["ConcurrencyLimit", "LimitStatistics", "Waiter", "check_count"]

_serials = count(1)


def check_count(what: str, value: object, least: int = 1) -> int:
    """A whole number of at least ``least``, or an error that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    return value


def check_seconds(what: str, value: object, *, zero: bool = True) -> float:
    """A finite number of seconds (or tokens), or an error that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # a whole number beyond all floats
        seconds = math.inf
    if math.isnan(seconds) or math.isinf(seconds):
        raise ValueError(f"{what} must be a finite number, not {value}; None is no limit")
    if seconds < 0 or (seconds == 0 and not zero):
        raise ValueError(f"{what} must be {'at least 0' if zero else 'above 0'}, not {value}")
    return seconds


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """A limit at one moment.

    Attributes:
        total: Tokens there are.
        borrowed: Tokens in use.
        waiting: Waiters for one.
        peak: The most that were ever in use at once.
    """

    total: int
    borrowed: int
    waiting: int
    peak: int


class Waiter:
    """Somebody in some loop who waits for a token."""

    __slots__ = ("event", "granted", "has_left", "mailbox")

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.event = mailbox.gate()
        self.granted = False
        self.has_left = False  # it was cancelled

    def wake(self) -> bool:
        """From any thread. False where its loop has ended: the token goes to the next."""
        if self.mailbox.is_running_here():
            self.event.set()  # on its loop already: no hand-over between threads
            return True
        return self.mailbox.put(self.event.set)


class ConcurrencyLimit:
    """At most ``total`` calls at once, across all tools, managers and threads that it is given to.

    Args:
        total: Tokens, at least 1.

    A token is held for exactly as long as the work that it admitted runs, also by an abandoned thread. First come,
    first served. May be made at import and used in one event loop after another.

    Attributes:
        serial: The order in which the limits of one policy are taken, by all alike.
    """

    def __init__(self, total: int) -> None:
        self._total = check_count("ConcurrencyLimit(total)", total)
        self.serial = next(_serials)
        self._borrowed = 0
        self._peak = 0
        self._lock = Lock()
        self._waiters: deque[Waiter] = deque()

    def __repr__(self) -> str:
        return f"ConcurrencyLimit({self._total})"

    def __reduce__(self) -> tuple[object, ...]:
        # By its arguments: the tokens that are out belong to this process.
        return (type(self), (self._total,))

    @property
    def total(self) -> int:
        """How many tokens there are."""
        return self._total

    def statistics(self) -> LimitStatistics:
        """How it stands now."""
        with self._lock:
            return LimitStatistics(self._total, self._borrowed, len(self._waiters), self._peak)

    def acquire_nowait(self) -> bool:
        """Take a token if one is free and nobody waits; whether it did. From any thread."""
        with self._lock:
            if self._borrowed >= self._total or self._waiters:
                return False
            self._borrowed += 1
            if self._borrowed > self._peak:
                self._peak = self._borrowed
            return True

    async def acquire(self) -> None:
        """Take a token, waiting in line for it.

        Cancellation: Leaves the line; a token that was granted at the same moment goes to the next.
        """
        if not self.acquire_nowait():
            await self.wait_for_token(Mailbox.here())

    async def wait_for_token(self, mailbox: Mailbox) -> None:
        """Take a token, waiting in line for it, on the loop of this mailbox.

        Cancellation: As of `acquire`.
        """
        waiter = Waiter(mailbox)
        with self._lock:
            if self._borrowed < self._total and not self._waiters:  # given back meanwhile
                self._borrowed += 1
                self._peak = max(self._peak, self._borrowed)
                return
            self._waiters.append(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            with self._lock:
                granted = waiter.granted
                waiter.has_left = True
                if not granted:
                    with suppress(ValueError):  # its loop had ended, and it was passed over
                        self._waiters.remove(waiter)
            if granted:
                self.release()
            raise

    def release(self) -> None:
        """Give a token back, to the first in line. From any thread, with any loop or none."""
        while True:
            with self._lock:
                if not self._waiters:
                    if self._borrowed <= 0:
                        raise RuntimeError("a token was given back that was not taken")
                    self._borrowed -= 1
                    return
                waiter = self._waiters.popleft()
                waiter.granted = True
            if waiter.wake():
                return
            with self._lock:  # its loop has ended; either it has given the token on when it was cancelled, or we do
                if waiter.has_left:
                    return
                waiter.granted = False

    async def __aenter__(self) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        await self.acquire()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()
