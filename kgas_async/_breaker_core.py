"""When calls of something that keeps failing are refused, and when it is tried again: a pure decision, on one clock.

Knows results and seconds; nothing of errors, calls and loops.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

from ._window import LastSeconds

__all__ = ["BreakerCore", "Permit", "State"]

State: TypeAlias = Literal["closed", "open", "half_open"]


class Permit:
    """Leave for one attempt. Its result counts only as long as the breaker is in the state that gave it."""

    __slots__ = ("generation",)

    def __init__(self, generation: int) -> None:
        self.generation = generation


class BreakerCore:
    """The decision, on one clock.

    Args:
        failures: A whole number: so many failures in a row, or in the window. A share: failures per result in the
            window.
        recovery: Seconds until an open one lets probes through.
        probes: How many at once; as many successes close it.
        window: Seconds that count.
        calls: Or how many last results.
        least: Results in the window before a share says anything.
    """

    def __init__(
        self,
        failures: float = 5,
        recovery: float = 30.0,
        probes: int = 1,
        window: float | None = None,
        calls: int | None = None,
        least: int = 1,
    ) -> None:
        self._limit = failures
        self._is_share = isinstance(failures, float)
        self._recovery = recovery
        self._probes = probes
        self._window = window
        self._least = least
        self._last: deque[bool] | None = None if calls is None else deque(maxlen=calls)
        self._seconds = None if window is None else LastSeconds(window)
        self.is_consecutive = calls is None and window is None
        self.state: State = "closed"
        self.why = ""
        self.failures = 0  # in a row, or among the last
        self.opened = 0
        self.permit = Permit(0)  # of all calls while it is closed
        self.probing: set[Permit] = set()
        self._passed = 0
        self._since = 0.0  # when it was opened, or let its latest probe through

    def refuses(self, now: float) -> bool:
        """Whether a call would be refused at this time."""
        if self.state == "closed":
            return False
        if now - self._since >= self._recovery:
            return False
        return self.state == "open" or not self._has_room()

    def _has_room(self) -> bool:
        return len(self.probing) + self._passed < self._probes

    def retry_after(self, now: float) -> float | None:
        """Seconds after which an open one will let probes through; None where nobody knows."""
        return max(0.0, self._since + self._recovery - now) if self.state == "open" else None

    def take(self, now: float) -> Permit | None:
        """Leave for one attempt, or None."""
        if self.state == "closed":
            return self.permit
        if self.state == "open":
            if now - self._since < self._recovery:
                return None
            self._passed = 0
            self._move("half_open", now, f"{self._recovery:g} s have passed")
        elif not self._has_room():
            if now - self._since < self._recovery:
                return None
            # Probes that have had no result for so long may have been lost with their loop, or hang: others are let
            # in, or nobody ever would be. Theirs count all the same when they come.
            self.probing.clear()
            if not self._has_room():
                return None
        probe = Permit(self.permit.generation)
        self.probing.add(probe)
        self._since = now
        return probe

    def settle(self, permit: Permit, now: float, *, ok: bool | None, how: str = "") -> None:
        """The result of an attempt.

        Args:
            permit: What let it in.
            now: The time.
            ok: Whether it succeeded; None where it has no result: it was cancelled, or never ran.
            how: It failed, for people.
        """
        if permit.generation != self.permit.generation or self.state == "open":
            return
        if self.state == "half_open":
            self.probing.discard(permit)
            if ok is None:
                return
            if not ok:
                self._open(now, f"a probe failed: {how}")
                return
            self._passed += 1
            if self._passed >= self._probes:
                count = f"{self._probes} probes" if self._probes > 1 else "a probe"
                self._move("closed", now, f"{count} succeeded")
        elif ok is not None:
            self._count(now, ok=ok)
            why = self._too_many(failed=not ok)
            if why is not None:
                self._open(now, f"{why}; the last: {how}" if how else why)

    def _count(self, now: float, *, ok: bool) -> None:
        if self._seconds is not None:
            self._seconds.add(now, 1, not ok)
            self.failures = self._seconds.second
        elif self._last is not None:
            if len(self._last) == self._last.maxlen:
                self.failures -= not self._last[0]
            self._last.append(ok)
            self.failures += not ok
        else:
            self.failures = 0 if ok else self.failures + 1

    @property
    def results(self) -> int:
        """Results that count now."""
        if self._seconds is not None:
            return self._seconds.first
        return self.failures if self._last is None else len(self._last)

    def _too_many(self, *, failed: bool) -> str | None:
        """Why it is to open, if it is."""
        where = "in a row"
        if self._seconds is not None:
            where = f"within {self._window:g} s"
        elif self._last is not None and self._last.maxlen is not None:
            where = f"among the last {self._last.maxlen}"
        if not self._is_share:
            return f"{self.failures} failures {where}" if failed and self.failures >= self._limit else None
        results = self.results
        if results < self._least or self.failures < self._limit * results - 1e-9:
            return None
        return f"{self.failures} of {results} calls failed {where}"

    def _open(self, now: float, why: str) -> None:
        self.opened += 1
        self._move("open", now, why)

    def _move(self, state: State, now: float, why: str) -> None:
        self.permit = Permit(self.permit.generation + 1)  # what the last one has admitted does not count any more
        self.state = state
        self.why = why
        self._since = now
        self.probing.clear()
        self.failures = 0
        if self._seconds is not None:
            self._seconds.clear()
        if self._last is not None:
            self._last.clear()
