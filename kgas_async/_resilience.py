"""Whether, and after how long, a failed attempt is tried again: a pure decision, which takes the time as an argument.

Knows errors and seconds; nothing of tasks, clocks and calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ._budget import RetryBudget
from ._errors import CallAborted, InvalidInputs
from ._limits import check_count, check_seconds, named
from ._matching import ErrorMatch, checked_match, matches, refuse_async
from ._suggest import suggests

__all__ = ["Retry", "exponential", "linear"]


class exponential:  # noqa: N801  (reads as the function that it stands for; a class, so that it pickles and prints)
    """Waits that grow: ``first * factor ** (n - 1)`` before retry n, at most ``cap``, with full jitter.

    Args:
        first: Seconds before the first retry.
        factor: By what each next one is longer.
        cap: The longest wait in seconds.
        jitter: The share of each wait that is drawn at random: 1.0 draws from all of it, 0.0 from none.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
    """

    @suggests
    def __init__(self, first: float = 0.1, factor: float = 2.0, cap: float = 30.0, jitter: float = 1.0) -> None:
        self.first = check_seconds("exponential(first)", first)
        self.factor = check_seconds("exponential(factor)", factor, zero=False)
        self.cap = check_seconds("exponential(cap)", cap)
        self.jitter = _checked_jitter("exponential(jitter)", jitter)

    def __repr__(self) -> str:
        return f"exponential({self.first:g}, {self.factor:g}, cap={self.cap:g}, jitter={self.jitter:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, exponential) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.first, self.factor, self.cap, self.jitter))

    def __call__(self, attempt: int, draw: Callable[[], float]) -> float:
        try:
            full = min(self.cap, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            full = self.cap
        return full * (1 - self.jitter * draw())


class linear:  # noqa: N801
    """Waits that grow by the same step: ``first + step * (n - 1)`` before retry n, at most ``cap``, with full jitter.

    Args:
        first: Seconds before the first retry.
        step: Seconds by which each next one is longer; ``first`` unless given. 0 makes a fixed wait with jitter.
        cap: The longest wait in seconds.
        jitter: The share of each wait that is drawn at random: 1.0 draws from all of it, 0.0 from none.
    """

    @suggests
    def __init__(self, first: float = 0.1, step: float | None = None, cap: float = 30.0, jitter: float = 1.0) -> None:
        self.first = check_seconds("linear(first)", first)
        self.step = self.first if step is None else check_seconds("linear(step)", step)
        self.cap = check_seconds("linear(cap)", cap)
        self.jitter = _checked_jitter("linear(jitter)", jitter)

    def __repr__(self) -> str:
        return f"linear({self.first:g}, {self.step:g}, cap={self.cap:g}, jitter={self.jitter:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, linear) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.first, self.step, self.cap, self.jitter))

    def __call__(self, attempt: int, draw: Callable[[], float]) -> float:
        return min(self.cap, self.first + self.step * (attempt - 1)) * (1 - self.jitter * draw())


def _checked_jitter(what: str, jitter: float) -> float:
    checked = check_seconds(what, jitter)
    if checked > 1:
        raise ValueError(f"{what} is a share of the wait, from 0 to 1, not {jitter}")
    return checked


class Retry:
    """When a failed attempt is tried again.

    Args:
        attempts: How many attempts at the most, the first included.
        on: Which errors are worth another attempt: a type, a tuple of types, or a function of the error. It is asked
            about the tool's own exception, and about `CallTimeout` for a timeout. ``OSError`` does not mean timeouts,
            though Python's ``TimeoutError`` is one: name `CallTimeout` or ``TimeoutError`` too. Cancellation and
            `InvalidInputs` are never retried.
        wait: Seconds between attempts: a number, `exponential(...)` (the default), `linear(...)`, or a function of the
            number of the failed attempt (from 1).
        after: A function that takes the delay from the error (a Retry-After header), or None to leave it to
            ``wait``. When it gives one, the call's rate limits pause for as long, also after the last attempt.
        while_running: Whether to try again while an abandoned attempt still runs in its thread. Off, since two
            copies of a tool at once surprise most tools.
        budget: A `RetryBudget`, shared by all whose retries together are to be bounded.
    """

    @suggests
    def __init__(
        self,
        attempts: int = 3,
        on: ErrorMatch = Exception,
        wait: float | exponential | linear | Callable[[int], float] | None = None,
        *,
        after: Callable[[BaseException], float | None] | None = None,
        while_running: bool = False,
        budget: RetryBudget | None = None,
    ) -> None:
        self.attempts = check_count("Retry(attempts)", attempts)
        if isinstance(wait, (int, float)) or not (wait is None or callable(wait)):
            wait = check_seconds("Retry(wait)", wait)
        if after is not None and not callable(after):
            raise TypeError(f"Retry(after) is a function of the error, not {after!r}")
        refuse_async("Retry(after)", after)
        refuse_async("Retry(wait)", wait)
        if not isinstance(while_running, bool):
            raise TypeError(f"Retry(while_running) is True or False, not {while_running!r}")
        if budget is not None and not isinstance(budget, RetryBudget):
            raise TypeError(f"Retry(budget) is a RetryBudget(...), which others may share, not {budget!r}")
        self.on = checked_match("Retry(on)", on)
        self.wait: Any = exponential() if wait is None else wait
        self.after = after
        self.while_running = while_running
        self.budget = budget

    def __repr__(self) -> str:
        budget = "" if self.budget is None else f", budget={self.budget!r}"
        return f"Retry({self.attempts}, on={named(self.on)}, wait={self.wait!r}{budget})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retry) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.attempts, self.while_running))

    def wants(self, error: BaseException) -> bool:
        """Whether this error is worth another attempt."""
        if isinstance(error, (InvalidInputs, CallAborted)):
            return False
        return matches(self.on, error)

    def delay(
        self,
        attempt: int,
        error: BaseException,
        *,
        left: float | None = None,
        draw: Callable[[], float] = random.random,
    ) -> tuple[float | None, float | None]:
        """The decision.

        Args:
            attempt: The number of the attempt that failed, from 1.
            error: How.
            left: Seconds until the call's deadline, None if there is none.
            draw: A source of random numbers in [0, 1).

        Returns:
            Seconds to sleep before the next attempt, or None for no further one (attempts used up, the error is not
            wanted, or the sleep could not end before the deadline); and the delay that ``after`` gave, if it did: the
            server's wish, which holds for other callers too, whatever becomes of this one.
        """
        if not self.wants(error):
            return None, None
        seconds = told = self._told(error)
        if attempt >= self.attempts:
            return None, told
        if seconds is None:
            if isinstance(self.wait, (exponential, linear)):
                seconds = self.wait(attempt, draw)
            else:
                seconds = self.wait(attempt) if callable(self.wait) else self.wait
        seconds = check_seconds("the delay of a Retry", seconds)
        if left is not None and seconds >= left:
            return None, told
        return seconds, told

    def _told(self, error: BaseException) -> float | None:
        seconds = None if self.after is None else self.after(error)
        return None if seconds is None else check_seconds("what Retry(after) gives", seconds)
