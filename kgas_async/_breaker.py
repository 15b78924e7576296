"""`CircuitBreaker`: what policies share to refuse calls of something that keeps failing.

Knows errors and clocks, and the decision (`_breaker_core`); nothing of tasks and calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from ._breaker_core import BreakerCore, Permit, State
from ._errors import CallAborted, CallRejected, InvalidInputs
from ._limits import check_count, check_seconds, named
from ._mailbox import Mailbox
from ._matching import ErrorMatch, checked_match, matches
from ._suggest import suggests
from ._window import LoopTime

__all__ = ["BreakerMove", "BreakerStatistics", "CircuitBreaker"]


@dataclass(frozen=True, slots=True)
class BreakerStatistics:
    """A circuit breaker at one moment.

    Attributes:
        state: ``closed``, ``open`` or ``half_open``; an open one becomes half-open with the first call after its
            recovery.
        failures: Failures in a row, or in the window.
        calls: Results in the window; those in a row where there is none.
        probes: Probes under way.
        opened: How often it has opened.
        rejected: Calls that it has refused.
    """

    state: State
    failures: int
    calls: int
    probes: int
    opened: int
    rejected: int


@dataclass(frozen=True, slots=True)
class BreakerMove:
    """A change of state.

    Attributes:
        state: The new one.
        why: What made it change.
    """

    state: State
    why: str


class CircuitBreaker:
    """Refuses calls at once while what they call keeps failing, and tries it again after a while.

    Closed, it lets all calls through and counts their failures. When they are too many it opens: calls end as
    ``rejected`` with `CircuitOpen`, without waiting for anything. After ``recovery`` seconds it is half-open: it lets
    exactly ``probes`` calls through. If they all succeed it closes; if one fails it opens again. What was admitted in
    an earlier state does not count in a later one.

    What counts is each attempt. A failure is an error that ``on`` names, a timeout or deadline that passed while the
    tool ran, and a call slower than ``slow``; any other error is an answer, and so a success. Cancellation,
    `CallRejected` and `InvalidInputs` do not count, and a probe that ends so gives its place to another. A probe that
    has no result after another ``recovery`` seconds gives it up too: give such tools a timeout.

    Shared wherever the object is passed, by tools, managers and threads; ``Policy(breaker=5)`` makes one for each tool
    name and manager. May be made at import and used in one event loop after another.

    Args:
        failures: A whole number: it opens after so many failures in a row, or, with ``window`` or ``calls``, among
            those. Or a share above 0 and at most 1, such as 0.5: it opens when so many of the results fail.
        recovery: Seconds until probes are let through, above 0.
        probes: How many.
        window: Seconds: only results of the last so many seconds count (to a tenth).
        slow: Seconds: a call that ran longer counts as a failure, though its value is its caller's.
        calls: Only the last so many results count. Not together with ``window``.
        least: How many results a share needs before it says anything; at most ``calls``.
        on: Which errors are failures: a type, a tuple of types, or a function of the error, as for `Retry`.
        name: What evidence calls it, else the name of the tool whose call changed its state.

    Raises:
        TypeError: Options that contradict each other, with the mend.
        ValueError: A share above 1 or without a window; more failures than ``calls``.

    Units: seconds.

    Source: M. Nygard, "Release It!" (2007); the windows, slow calls and probes are those of resilience4j's
    ``CircuitBreaker``.
    """

    @suggests
    def __init__(
        self,
        failures: float = 5,
        recovery: float = 30.0,
        probes: int = 1,
        window: float | None = None,
        slow: float | None = None,
        *,
        calls: int | None = None,
        least: int | None = None,
        on: ErrorMatch = Exception,
        name: str | None = None,
    ) -> None:
        self._arguments = (failures, recovery, probes, window, slow)
        self._options = {"calls": calls, "least": least, "on": on, "name": name}
        if window is not None and calls is not None:
            raise TypeError("CircuitBreaker takes either window= (seconds) or calls= (a number of results), not both")
        seconds = None if window is None else check_seconds("CircuitBreaker(window)", window, zero=False)
        last = None if calls is None else check_count("CircuitBreaker(calls)", calls)
        limit = _checked_failures(failures, has_window=window is not None or calls is not None)
        if last is not None and isinstance(limit, int) and limit > last:
            raise ValueError(f"CircuitBreaker: {limit} failures among the last {last} calls can never be; raise calls=")
        self.slow = None if slow is None else check_seconds("CircuitBreaker(slow)", slow, zero=False)
        self._on = checked_match("CircuitBreaker(on)", on)
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(f"CircuitBreaker(name) is a non-empty string, not {name!r}")
        self.name = name
        self._core = BreakerCore(
            limit,
            check_seconds("CircuitBreaker(recovery)", recovery, zero=False),  # or probes would be given up at once
            check_count("CircuitBreaker(probes)", probes),
            seconds,
            last,
            _checked_least(least, last, is_share=isinstance(limit, float)),
        )
        self._rejected = 0
        self._time = LoopTime()
        self._lock = Lock()

    def __repr__(self) -> str:
        failures, recovery, probes, window, slow = self._arguments
        given = {"window": window, "slow": slow, **self._options}
        if given["on"] is Exception:
            del given["on"]
        shown = "".join(f", {name}={named(value)}" for name, value in given.items() if value is not None)
        return f"CircuitBreaker({failures!r}, recovery={recovery!r}, probes={probes!r}{shown})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_remade, (type(self), self._arguments, self._options))  # the counts belong to this process

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``."""
        return self._core.state

    def statistics(self) -> BreakerStatistics:
        """How it stands now."""
        core = self._core
        with self._lock:
            return BreakerStatistics(
                core.state, core.failures, core.results, len(core.probing), core.opened, self._rejected
            )

    def counts(self, error: BaseException) -> bool | None:
        """Whether an error is a failure (True), an answer (False), or says nothing (None)."""
        if isinstance(error, (InvalidInputs, CallRejected, CallAborted)):
            return None
        return matches(self._on, error)

    def refuses(self, mailbox: Mailbox) -> bool:
        """Whether a call would be refused now."""
        core = self._core
        if core.state == "closed":
            return False
        with self._lock:
            return core.refuses(self._time.now(mailbox))

    def take(self, mailbox: Mailbox) -> tuple[Permit | None, BreakerMove | None]:
        """Leave for one attempt, or None; and the change of state that this made."""
        core = self._core
        permit = core.permit  # before the state: if that changes in between, this permit counts no more
        if core.state == "closed":
            return permit, None
        with self._lock:
            before = core.state
            return core.take(self._time.now(mailbox)), self._moved(before)

    def reject(self, mailbox: Mailbox) -> float | None:
        """Count a refused call; seconds after which it may be let through, None where nobody knows."""
        with self._lock:
            self._rejected += 1
            return self._core.retry_after(self._time.now(mailbox))

    def settle(self, permit: Permit, mailbox: Mailbox, *, ok: bool | None, how: str = "") -> BreakerMove | None:
        """The result of an attempt; and the change of state that it made."""
        core = self._core
        if core.state == "closed" and (ok is None or (ok and core.is_consecutive and not core.failures)):
            return None  # nothing changes
        with self._lock:
            before = core.state
            core.settle(permit, self._time.now(mailbox), ok=ok, how=how)
            return self._moved(before)

    def _moved(self, before: State) -> BreakerMove | None:
        core = self._core
        return None if core.state == before else BreakerMove(core.state, core.why)


def _remade(
    cls: Callable[..., CircuitBreaker], arguments: tuple[object, ...], options: dict[str, object]
) -> CircuitBreaker:
    return cls(*arguments, **options)


def _checked_failures(failures: object, *, has_window: bool) -> float:
    """A whole number, or a share."""
    if isinstance(failures, bool) or not isinstance(failures, (int, float)):
        raise TypeError(
            f"CircuitBreaker(failures) is a number of failures, or a share of results such as 0.5, not {failures!r}"
        )
    if isinstance(failures, int):
        return check_count("CircuitBreaker(failures)", failures)
    if not 0 < failures <= 1:
        raise ValueError(
            f"CircuitBreaker(failures) as a share is above 0 and at most 1, not {failures}; a number of failures is a "
            f"whole number"
        )
    if not has_window:
        raise ValueError(
            f"CircuitBreaker(failures={failures}) is a share: say of what, window=60.0 (seconds) or calls=100"
        )
    return failures


def _checked_least(least: object, calls: int | None, *, is_share: bool) -> int:
    if least is None:
        return 10 if calls is None else min(10, calls)
    if not is_share:
        raise TypeError("CircuitBreaker(least) belongs to a share of failures, as in failures=0.5")
    checked = check_count("CircuitBreaker(least)", least)
    if calls is not None and checked > calls:
        raise ValueError(f"CircuitBreaker: there are never {checked} results among the last {calls}; lower least=")
    return checked
