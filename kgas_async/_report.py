"""What a run or a manager says of itself: `Progress`, `RunReport`, `ManagerStatistics`, `ToolStatistics`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ._errors import PipelineError, counted, text_of
from ._outcome import Outcome

__all__ = ["ManagerStatistics", "Progress", "RunReport", "ToolStatistics"]

FAILURES_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a map or a run is.

    Attributes:
        done: Items that have their outcome.
        failed: Those of them that did not succeed.
        total: How many there are, None where the source does not say.
        elapsed_s: Seconds since the start.
    """

    done: int
    failed: int
    total: int | None
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """The calls of one tool name in one manager.

    Attributes:
        calls: Ended calls.
        succeeded, failed, timed_out, cancelled, rejected, skipped: How they ended.
        retried: Attempts that were followed by another.
        threads_used: Sync attempts handed to worker threads.
        run_s: Seconds spent running, all attempts together.
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


@dataclass(frozen=True, slots=True)
class ManagerStatistics:
    """A manager at one moment.

    Attributes:
        tools: By name.
        calls_open: Calls that have not ended.
        threads: Worker threads that exist.
        threads_abandoned: Abandoned ones that still run.
        threads_queued: Sync calls that wait for a thread.
        services: Names of the services that run.
    """

    tools: dict[str, ToolStatistics]
    calls_open: int
    threads: int
    threads_abandoned: int
    threads_queued: int
    services: list[str]


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

    @property
    def ok(self) -> bool:
        """Whether no item and no run-level phase failed."""
        return self.succeeded + self.skipped == self.total and not self.errors

    def add(self, outcome: Outcome[Any], *, keep_all: bool) -> None:
        """Count an item's outcome."""
        self.total += 1
        setattr(self, outcome.status, getattr(self, outcome.status) + 1)
        if keep_all:
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
        found: list[tuple[str, BaseException | None]] = []
        for outcome in self.failures:
            phase = "" if outcome.failed_phase is None else f" in phase {outcome.failed_phase!r}"
            found.append((f"item {outcome.key!r}{phase}", outcome.error))
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
        for phase, error in self.errors.items():
            text += f"; phase {phase!r} failed: {error}"
        for phase, count in self.missing.items():
            ran = phase in self.results or phase in self.errors
            text += f"; phase {phase!r} {'went on without' if ran else 'was skipped, since it lacks'} {count}"
        return text
