"""How many retries may follow how many calls: a decision that is shared, so that retries cannot multiply a failure.

Knows counts and seconds; nothing of calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from ._limits import check_seconds
from ._mailbox import Mailbox
from ._suggest import suggests
from ._window import LastSeconds, LoopTime

__all__ = ["BudgetCore", "RetryBudget", "RetryBudgetStatistics"]


@dataclass(frozen=True, slots=True)
class RetryBudgetStatistics:
    """A retry budget at one moment.

    Attributes:
        calls: Calls that it has counted.
        retries: Retries that it has allowed.
        refused: Retries that it has refused.
    """

    calls: int
    retries: int
    refused: int


class BudgetCore:
    """The decision: in each window at most ``ratio`` retries per call, and ``min_per_s`` a second anyway."""

    __slots__ = ("_counts", "_ratio", "_reserve", "calls", "refused", "retries")

    def __init__(self, ratio: float, min_per_s: float, window: float) -> None:
        self._ratio = ratio
        self._reserve = min_per_s * window
        self._counts = LastSeconds(window)  # calls, retries
        self.calls = 0
        self.retries = 0
        self.refused = 0

    def count_call(self, now: float) -> None:
        """A call has begun."""
        self.calls += 1
        self._counts.add(now, 1, 0)

    def take_retry(self, now: float) -> bool:
        """Take one retry from the budget; whether there was one."""
        self._counts.forget(now)
        # A sum of products of decimals: 0.1 * 30 is to be worth three retries.
        if self._counts.second + 1 > self._ratio * self._counts.first + self._reserve + 1e-9:
            self.refused += 1
            return False
        self.retries += 1
        self._counts.add(now, 0, 1)
        return True


class RetryBudget:
    """How many retries there may be, over all calls that share it: ``Retry(budget=...)``, ``hedge_after``.

    A retry helps while few calls fail. Once a server is down or overloaded, three attempts per call are three times the
    load on it. With a budget of 0.2, retries add a fifth at the most: when it is used up, calls end with their error
    at once. Shared wherever the object is passed, by tools, managers and threads; may be made at import and used in one
    event loop after another.

    Args:
        ratio: Retries per call, from 0 to 1, counted over ``window``.
        min_per_s: Retries per second that are there in any case, so that few calls can be retried too; what of them is
            not used is there for the rest of ``window``.
        window: Seconds over which calls and retries are counted, to a tenth.

    Raises:
        ValueError: A ratio above 1: more retries than calls are no bound.

    Source: Finagle's ``RetryBudget`` (ttl, minRetriesPerSec, percentCanRetry); retry throttling of gRPC (gRFC A6) and
    the retry budgets of Envoy follow the same idea.
    """

    @suggests
    def __init__(self, ratio: float = 0.2, min_per_s: float = 10.0, window: float = 10.0) -> None:
        self._ratio = check_seconds("RetryBudget(ratio)", ratio)
        if self._ratio > 1:
            raise ValueError(f"RetryBudget(ratio) is retries per call, from 0 to 1, not {ratio}: more is no bound")
        self._min_per_s = check_seconds("RetryBudget(min_per_s)", min_per_s)
        self._window = check_seconds("RetryBudget(window)", window, zero=False)
        if not self._ratio and self._min_per_s * self._window < 1:
            raise ValueError("RetryBudget: no retry could ever be made; leave the retry out instead")
        self._core = BudgetCore(self._ratio, self._min_per_s, self._window)
        self._time = LoopTime()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"RetryBudget({self._ratio:g}, min_per_s={self._min_per_s:g}, window={self._window:g})"

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._ratio, self._min_per_s, self._window))  # the counts belong to this process

    def statistics(self) -> RetryBudgetStatistics:
        """How it stands now."""
        core = self._core
        with self._lock:
            return RetryBudgetStatistics(core.calls, core.retries, core.refused)

    def count_call(self, mailbox: Mailbox) -> None:
        """A call that may be retried has begun on that mailbox's loop."""
        with self._lock:
            self._core.count_call(self._time.now(mailbox))

    def take_retry(self, mailbox: Mailbox) -> bool:
        """Take one retry; whether there was one."""
        with self._lock:
            return self._core.take_retry(self._time.now(mailbox))
