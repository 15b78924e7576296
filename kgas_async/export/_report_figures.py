"""What a report shows, as plain frozen data: `Figures` and its parts.

Times are seconds since the begin of what the report is about; series are tuples with a value for each bin of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kgas_async._advice import Advice
from kgas_async._metrics import Distribution
from kgas_async._verify import EvidenceReport

__all__ = [
    "BAD",
    "Failure",
    "FailureGroup",
    "Figures",
    "Finding",
    "Moment",
    "OpenCall",
    "PathFigures",
    "PathPiece",
    "PathStep",
    "Row",
    "RunFigures",
    "Sample",
    "SessionFigures",
    "Slow",
    "StallSeen",
]

BAD = ("failed", "timed_out", "rejected")


@dataclass(frozen=True, slots=True)
class Row:
    """The calls of one phase, or of one tool outside of phases or nested in other calls.

    Attributes:
        name: Of the phase, else of the tool.
        tool: Of the tool; of several where a phase had several, the first.
        pipeline: Of a phase.
        nested: Its calls lie in other calls, so that their time is in that of those.
        within: Of nested calls: the phase that they are in.
        offload: Where the tool runs: ``async``, ``inline``, ``thread``, ``process``; None where that is not on record.
        calls: How they ended, by status: single calls and batches.
        elements: How the items' calls ended that ran in batches, by status.
        run_s: Seconds running, of calls that ran and were not cancelled; all attempts together.
        wait_s: Seconds waiting, of calls that were not cancelled.
        run_total_s: Seconds running, of all calls.
        waits_s: Seconds waiting, of all calls, by what was waited for.
        peak: How many ran at once at the most; where calls come back from threads late, no more than the limit allows.
        limit: How many may run at once, as on record: that of the policy, or of a dedicated thread; None: it is not.
        retries, hedges, fallbacks, abandoned, stalls: How many.
        stalled_s: Seconds in which it held up the event loop.
        cpu_s, cpu_runs: CPU seconds that so many of its calls took in processes; None where there were none.
        running, waiting: How many at once, in the mean, by bin.
        ended, failed: How many ended, and failed, by bin.
        lanes: Of each of the first lanes, its share of time in use by bin; none where more ran at once than are drawn.
        full_s: Seconds in which calls waited for a place and (nearly) as many ran as ever; by whole bins.
    """

    name: str
    tool: str
    pipeline: str | None
    nested: bool
    within: str | None
    offload: str | None
    calls: Mapping[str, int]
    elements: Mapping[str, int]
    run_s: Distribution
    wait_s: Distribution
    run_total_s: float
    waits_s: Mapping[str, float]
    peak: int
    limit: int | None
    retries: int
    hedges: int
    fallbacks: int
    abandoned: int
    stalls: int
    stalled_s: float
    cpu_s: float | None
    cpu_runs: int
    running: tuple[float, ...]
    waiting: tuple[float, ...]
    ended: tuple[int, ...]
    failed: tuple[int, ...]
    lanes: tuple[tuple[float, ...], ...]
    full_s: float

    @property
    def count(self) -> int:
        """Ended calls."""
        return sum(self.calls.values())

    @property
    def bad(self) -> int:
        """Calls, and items' calls in batches, that failed, timed out or were rejected."""
        return sum(self.calls.get(status, 0) + self.elements.get(status, 0) for status in BAD)

    @property
    def reused(self) -> int:
        """Calls, and items' calls in batches, whose value came from a journal, a cache or another call."""
        return self.calls.get("reused", 0) + self.elements.get("reused", 0)

    @property
    def waited_s(self) -> float:
        """Seconds waiting, of all calls."""
        return sum(self.waits_s.values())

    @property
    def open_s(self) -> float:
        """Seconds between making and end, of all calls."""
        return self.run_total_s + self.waited_s


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A run on record; times as they are there. Counts are None where it has not ended."""

    run_id: str
    pipeline: str
    session_id: str
    started: str
    ended: str | None = None
    items: int | None = None
    failed: int | None = None
    skipped: int | None = None
    cancelled: int | None = None


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """A session on record; ``ended`` and ``status`` are None where it was killed, or still goes on."""

    session_id: str
    started: str
    ended: str | None
    status: str | None
    runs: tuple[RunFigures, ...]


@dataclass(frozen=True, slots=True)
class PathPiece:
    """What a part of the critical path went to.

    Attributes:
        row: The number of the row; None of what is between calls.
        kind: ``run``, what was waited for, ``handover`` (from a call to the next of its item), ``between`` (before the
            first call of an item).
        seconds: For how long.
    """

    row: int | None
    kind: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PathStep:
    """A call on the critical path. From ``from_s`` on it held up the run; from ``run_s`` on it ran."""

    row: int
    item: str | None
    from_s: float
    run_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class PathFigures:
    """The critical path: pieces that add up to the whole time, the largest first, and its last calls."""

    pieces: tuple[PathPiece, ...] = ()
    steps: tuple[PathStep, ...] = ()
    steps_in_all: int = 0


@dataclass(frozen=True, slots=True)
class Slow:
    """One of the calls that ran longest."""

    row: int
    call_id: str
    item: str | None
    status: str
    attempt: int
    end_s: float
    run_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A call, or an item outside of any, that failed; ``row`` is None where it is in none."""

    row: int | None
    where: str
    item: str | None
    call_id: str | None
    status: str
    attempt: int
    end_s: float
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one row and one type of error; ``message`` is that of the first."""

    where: str
    status: str
    error: str
    count: int
    message: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call that had begun and has no end on record."""

    where: str
    item: str | None
    call_id: str
    attempt: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened: a retry's breaker, a limit, a service, a signal."""

    at_s: float
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class StallSeen:
    """The event loop did not tick; ``lasted_s`` is what is on record, ``is_over`` whether its end is."""

    at_s: float
    lasted_s: float
    is_over: bool
    tool: str | None
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at a moment: CPUs used since the sample before, resident bytes, threads."""

    at_s: float
    cpu: float
    rss_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Where time went, or what stands in the way, and what to do about it.

    Attributes:
        kind: What it is about: something that was waited for, ``run``, ``handover``, ``between``, ``stall``,
            ``offload``, ``failures``.
        title: What to do, or what there is to know, in a sentence.
        evidence: The figures that say so.
        share: Of the whole time, what it is about; 0 of failures.
    """

    kind: str
    title: str
    evidence: tuple[str, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All that a report shows.

    Attributes:
        source: What was read.
        scope: Whether it is about a session or one run of it.
        session: That session. ``run``: the run, or the only one of the session.
        is_complete: Whether what it is about has its end on record.
        begin, span_s: When it began, as on record; seconds from then to its last record.
        bin_s, bins: How time is cut.
        records, unreadable: How many records were read (of all sessions), and lines that are none.
        verified: What `verify_evidence` says; None of records in memory.
        rows: By phase and tool, in the order of the plan, then of appearance.
        events: How many records there are of each event.
        allowed: What the session or run may use, as far as it is on record: ``cpus``, ``threads``, ``processes``,
            ``in_flight``.
        others: Other sessions and runs in this evidence, the latest last; ``others_left_out`` how many more.
    """

    source: str
    scope: Literal["session", "run"]
    session: SessionFigures
    run: RunFigures | None
    is_complete: bool
    begin: str
    span_s: float
    bin_s: float
    bins: int
    records: int
    unreadable: int
    verified: EvidenceReport | None
    rows: tuple[Row, ...]
    events: Mapping[str, int]
    path: PathFigures
    slowest: tuple[Slow, ...]
    groups: tuple[FailureGroup, ...]
    failures: tuple[Failure, ...]
    failures_in_all: int
    open: tuple[OpenCall, ...]
    open_in_all: int
    moments: tuple[Moment, ...]
    stalls: tuple[StallSeen, ...]
    stalls_in_all: int
    stalled_s: float
    samples: tuple[Sample, ...]
    allowed: Mapping[str, int]
    advice: tuple[Advice, ...]
    advised_by_monitor: bool
    others: tuple[SessionFigures, ...] = ()
    others_left_out: int = 0
    findings: tuple[Finding, ...] = field(default=())

    @property
    def calls(self) -> dict[str, int]:
        """How all calls ended, by status, those nested in others too."""
        found: dict[str, int] = {}
        for row in self.rows:
            for status, count in row.calls.items():
                found[status] = found.get(status, 0) + count
        return found

    def to_dict(self) -> dict[str, Any]:
        """The figures of the report in plain data, for JSON; without the series that it draws."""
        drawn = ("running", "waiting", "ended", "failed", "lanes")
        plain = asdict(self)
        plain["rows"] = [{name: one for name, one in row.items() if name not in drawn} for row in plain["rows"]]
        return plain
