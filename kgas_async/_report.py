"""What a run or a manager says of itself: `Progress`, `RunReport`, `ManagerStatistics`, `ToolStatistics`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from ._errors import PipelineError, counted, text_of
from ._figures import CallFigures
from ._outcome import Outcome, place_of

__all__ = ["ManagerStatistics", "Pace", "Progress", "RunReport", "ToolStatistics"]

FAILURES_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a map or a run is.

    Attributes:
        done: Items that have their outcome.
        failed: Those of them that failed, timed out or were rejected.
        total: How many there are, None where the source does not say, or has given more than it said.
        elapsed_s: Seconds since the start.
        rate: Items per second, over the last half of the time; None where nothing can be said yet.
        eta_s: Seconds that what is left will take at that rate; None where the total is not known, or the rate.
        cancelled: Those of them that were cancelled, which is no failure.
    """

    done: int
    failed: int
    total: int | None
    elapsed_s: float
    rate: float | None = None
    eta_s: float | None = None
    cancelled: int = 0


class Pace:
    """How fast items get done: their number over the last half of the time since the start.

    So neither a slow start nor items that cost nothing (found in a journal, say) tell for long of what is to come,
    while a pause or a burst counts by its share. Keeps some fifty marks, however many items there are.

    Args:
        total: How many items there are, None where nobody knows.
        clock: Gives seconds.
    """

    __slots__ = ("_began", "_clock", "_marks", "_total")

    def __init__(self, total: int | None, clock: Callable[[], float] = perf_counter) -> None:
        self._total = total
        self._clock = clock
        self._began = clock()
        self._marks = deque([(self._began, 0)])  # when so many were done; the first is not after the half

    def progress(self, done: int, failed: int, cancelled: int = 0) -> Progress:
        """So many are done now."""
        now = self._clock()
        elapsed = now - self._began
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= self._began + elapsed / 2:
            marks.popleft()
        at, before = marks[0]
        rate = (done - before) / (now - at) if now > at and done > before else None
        if now - marks[-1][0] > elapsed / 64:
            marks.append((now, done))
        total, eta = self._total, None
        if total is not None and done > total:
            total = None  # its source does not know
        if total is not None:
            left = total - done
            eta = 0.0 if not left else None if rate is None else left / rate
        return Progress(done, failed, total, elapsed, rate, eta, cancelled)


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """The calls of one tool name in one manager.

    Attributes:
        calls: Ended calls.
        succeeded, failed, timed_out, cancelled, rejected, skipped, reused: How they ended.
        retried: Attempts that were followed by another.
        threads_used: Sync attempts handed to worker threads.
        run_s: Seconds spent running, all attempts together.
        figures: Percentiles, waits, peak concurrency and more, if the manager has a `PerformanceMonitor`; over all that
            the monitor has seen of tools of that name.
    """

    calls: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    rejected: int
    skipped: int
    retried: int
    threads_used: int
    run_s: float
    figures: CallFigures | None = None
    reused: int = 0

    @property
    def success_rate(self) -> float | None:
        """Share of ``succeeded`` in those that succeeded, failed, timed out or were rejected; None without any."""
        tried = self.succeeded + self.failed + self.timed_out + self.rejected
        return self.succeeded / tried if tried else None

    @property
    def mean_s(self) -> float:
        """Mean seconds spent running of calls that were not rejected, skipped or reused; 0 if there are none."""
        ran = self.calls - self.rejected - self.skipped - self.reused
        return self.run_s / ran if ran else 0.0


@dataclass(frozen=True, slots=True)
class ManagerStatistics:
    """A manager at one moment.

    Attributes:
        tools: By name.
        calls_open: Calls that have not ended.
        threads: Worker threads that exist.
        threads_abandoned: Abandoned ones that still run.
        threads_queued: Sync calls that wait for a thread or a process.
        services: Names of the services that run.
        processes: Worker processes that exist.
    """

    tools: dict[str, ToolStatistics]
    calls_open: int
    threads: int
    threads_abandoned: int
    threads_queued: int
    services: list[str]
    processes: int = 0


@dataclass(slots=True)
class RunReport:
    """What came of a run.

    Attributes:
        pipeline: Its name.
        run_id: As in the evidence.
        total, succeeded, failed, timed_out, cancelled, rejected, skipped: Source items, by how they ended.
        results: What the run-level phases returned, by phase.
        errors: The errors of run-level phases that failed, by phase.
        missing: How many items a run-level collect lacks, by phase.
        failures: The outcomes of the first 1,000 items that did not succeed.
        more_failures: How many more there were.
        outcomes: All outcomes in source order, with ``keep="all"``, else empty.
        elapsed_s: Seconds.
        drained: Whether the run was told to stop before the source's end.
        not_begun: Run-level phases that it did not come to, since it was told to stop, broke off or gave up.
        reused: How many of the succeeded were in the journal as a whole, so that nothing of them ran.
    """

    pipeline: str
    run_id: str
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    rejected: int = 0
    skipped: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    failures: list[Outcome[Any]] = field(default_factory=list)
    more_failures: int = 0
    outcomes: list[Outcome[Any]] = field(default_factory=list)
    elapsed_s: float = 0.0
    drained: bool = False
    reused: int = 0
    not_begun: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no item and no run-level phase failed; what was not begun, since it was told to stop, did not."""
        return self.succeeded + self.skipped == self.total and not self.errors

    def add(self, outcome: Outcome[Any], *, keep_all: bool) -> None:
        """Count an item's outcome."""
        self.total += 1
        setattr(self, outcome.status, getattr(self, outcome.status) + 1)
        if keep_all:
            outcome.phases  # noqa: B018  (told now: else it keeps all of the item's calls)
            self.outcomes.append(outcome)
        if outcome.status not in ("succeeded", "skipped"):
            if len(self.failures) < FAILURES_KEPT:
                self.failures.append(outcome)
            else:
                self.more_failures += 1

    def raise_for_failures(self) -> None:
        """
        Raises:
            PipelineError: An item or a run-level phase failed; the first error is the cause.
        """
        if self.ok:
            return
        found: list[tuple[str, BaseException | None]] = [(place_of(one), one.error) for one in self.failures]
        found += [(f"phase {name!r}", error) for name, error in self.errors.items()]
        place, first = next((one for one in found if one[1] is not None), ("", None))
        said = "" if first is None else f"; the first error: {place}: {text_of(first)}"
        error = PipelineError(f"{self}{said}", report=self)
        error.__cause__ = first
        raise error

    def counts(self) -> str:
        """How the items ended, as in ``"3 succeeded, 1 failed"``."""
        states = ("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped")
        return ", ".join(
            f"{getattr(self, name)} {name}" for name in states if getattr(self, name) or name == "succeeded"
        )

    def __str__(self) -> str:
        text = f"{self.pipeline}: {counted(self.total, 'item')} in {self.elapsed_s:.1f} s: {self.counts()}"
        if self.reused:
            text += f" ({self.reused} from the journal)"
        for phase, error in self.errors.items():
            text += f"; phase {phase!r} failed: {error}"
        for phase, count in self.missing.items():
            ran = phase in self.results or phase in self.errors
            text += f"; phase {phase!r} {'went on without' if ran else 'was skipped, since it lacks'} {count}"
        for phase in self.not_begun:
            text += f"; phase {phase!r} was not begun"
        return text
