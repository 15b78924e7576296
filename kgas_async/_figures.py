"""What a `PerformanceMonitor` found, as plain frozen data that prints as tables: `PerformanceReport` and its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ._advice import Advice
from ._metrics import Distribution, in_digits, in_seconds

__all__ = [
    "ActiveCall",
    "CallFigures",
    "Computing",
    "PerformanceReport",
    "ProcessFigures",
    "ResourceSample",
    "SlowCall",
    "Stall",
    "StallFigures",
]


@dataclass(frozen=True, slots=True)
class Computing:
    """What runs took of CPU.

    Attributes:
        runs: How many were measured.
        total, mean: CPU seconds.
    """

    runs: int
    total: float
    mean: float


@dataclass(frozen=True, slots=True)
class CallFigures:
    """The ended calls of one tool or one phase, or the ends of one tracked block.

    Attributes:
        calls: Ended calls.
        succeeded, failed, timed_out, cancelled, rejected, skipped, reused: How they ended.
        success_rate: Share of ``succeeded`` in those that succeeded, failed, timed out or were rejected; None where
            there are none.
        per_s: Ended calls per second, from the making of the first to the end of the last.
        run_s: Seconds spent running, of calls that ran and were not cancelled; all attempts together.
        wait_s: Seconds spent waiting for limits, threads and retries, of calls that were not cancelled.
        waits: Those seconds in sum, by what was waited for.
        running: How many run now, abandoned threads among them.
        peak: How many ran at once at the most.
        retries: Attempts that were followed by another, of calls that have not ended too.
        timeouts: Attempts that timed out, and calls that did not end within their deadline.
        abandoned: Calls that have left a thread behind.
        errors: How many calls failed, timed out or were rejected, by the type of the error.
        offload: Where it runs: ``async``, ``inline``, ``thread``, ``process``; None of a block, and where tools of one
            name differ in it.
        cpu_s: What its runs in threads or processes took of CPU; None where it runs elsewhere, or none has ended.
        cpus: CPUs that its runs in threads used while there were any; None where it runs elsewhere.
        stalls: How often it blocked the event loop for longer than the monitor's ``stall``.
        stalled_s: For how many seconds in sum.
    """

    calls: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    rejected: int = 0
    skipped: int = 0
    reused: int = 0
    success_rate: float | None = None
    per_s: float = 0.0
    run_s: Distribution = field(default_factory=Distribution)
    wait_s: Distribution = field(default_factory=Distribution)
    waits: dict[str, float] = field(default_factory=dict)
    running: int = 0
    peak: int = 0
    retries: int = 0
    timeouts: int = 0
    abandoned: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    offload: str | None = None
    cpu_s: Computing | None = None
    cpus: float | None = None
    stalls: int = 0
    stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SlowCall:
    """One of the slowest calls.

    Attributes:
        tool, call_id, pipeline, phase, item, status: As in the evidence.
        run_s, wait_s: Seconds spent running and waiting.
    """

    tool: str
    call_id: str
    pipeline: str | None
    phase: str | None
    item: str | None
    status: str
    run_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class ActiveCall:
    """A call that has not ended.

    Attributes:
        tool, call_id, pipeline, phase, item, status: As in the evidence; the status is ``waiting`` or ``running``.
        age_s: Seconds since it was made.
    """

    tool: str
    call_id: str
    pipeline: str | None
    phase: str | None
    item: str | None
    status: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Stall:
    """A time in which the event loop did not tick.

    Attributes:
        tool, call_id: The call that ran on the loop, where it could be told.
        stack: Where, as ``file:line function``, the innermost last; empty where the stall was over at the first look.
        stalled_s: For how long; None if it goes on.
    """

    tool: str | None
    call_id: str | None
    stack: tuple[str, ...]
    stalled_s: float | None


@dataclass(frozen=True, slots=True)
class StallFigures:
    """The event loop's stalls.

    Attributes:
        count: How many there were.
        longest_s, total_s: Seconds, of those that have ended.
        latest: The latest ones.
    """

    count: int = 0
    longest_s: float = 0.0
    total_s: float = 0.0
    latest: tuple[Stall, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """The process at one moment.

    Attributes:
        at_s: Seconds since the first sample.
        cpu: CPUs used since the sample before, 1.0 being one that was never idle.
        rss_bytes: Resident memory.
        threads: Threads of the process.
    """

    at_s: float
    cpu: float
    rss_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """The process over time.

    Attributes:
        cpu: CPUs used, over the whole time.
        rss_peak_bytes, threads_peak: The most that was seen in a sample.
        samples: The samples; of a long time every second, fourth, ... one.
    """

    cpu: float = 0.0
    rss_peak_bytes: int = 0
    threads_peak: int = 0
    samples: tuple[ResourceSample, ...] = ()


@dataclass(frozen=True, slots=True)
class PerformanceReport:
    """What a monitor has seen so far; ``str()`` of it is a table.

    Attributes:
        elapsed_s: Seconds since the monitor was first used.
        tools: By name of the tool.
        phases: By ``pipeline/phase``.
        blocks: By the name given to ``track``.
        counters, gauges, histograms: By the name given to the monitor's methods.
        slow: The slowest calls, the slowest first.
        active: The oldest of the calls that have not ended.
        stalls: Of the event loop.
        process: CPU, memory and threads over time.
        unrecorded: Ends of tracked blocks that are counted here and not in the evidence, whose writer lagged.
        advice: Tools that belong elsewhere, by what was measured. Nothing is moved.
    """

    elapsed_s: float
    tools: dict[str, CallFigures]
    phases: dict[str, CallFigures]
    blocks: dict[str, CallFigures]
    counters: dict[str, float]
    gauges: dict[str, float]
    histograms: dict[str, Distribution]
    slow: tuple[SlowCall, ...]
    active: tuple[ActiveCall, ...]
    stalls: StallFigures
    process: ProcessFigures
    unrecorded: int = 0
    advice: tuple[Advice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, for JSON."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def __str__(self) -> str:
        lines = [f"performance over {in_seconds(self.elapsed_s)}"]
        for title, figures in (("tools", self.tools), ("phases", self.phases), ("blocks", self.blocks)):
            if figures:
                lines += ["", *_table([title, *_COLUMNS], [[name, *_row(one)] for name, one in figures.items()])]
        lines += _numbers(self)
        if self.slow:
            lines += ["", "slowest calls", *(f"  {in_seconds(call.run_s):>8} {_place(call)}" for call in self.slow)]
        if self.active:
            lines += ["", "oldest open calls", *(f"  {in_seconds(one.age_s):>8} {_place(one)}" for one in self.active)]
        lines += _stalls(self.stalls)
        if self.advice:
            lines += ["", "advice", *(f"  {one}" for one in self.advice)]
        if self.process.samples:
            process = self.process
            lines += [
                "",
                f"process: {process.cpu:.2f} CPUs, at most {process.rss_peak_bytes / 2**20:.0f} MiB and "
                f"{process.threads_peak} threads",
            ]
        return "\n".join(lines)


_COLUMNS = ["calls", "ok", "failed", "retries", "/s", "p50", "p95", "p99", "max", "wait p95", "peak"]


def _row(one: CallFigures) -> list[str]:
    rate = "-" if one.success_rate is None else f"{100 * one.success_rate:.1f}%"
    run = (one.run_s.p50, one.run_s.p95, one.run_s.p99, one.run_s.max)
    failed = one.failed + one.timed_out + one.rejected
    counts = [str(one.calls), rate, str(failed), str(one.retries), in_digits(one.per_s)]
    return [*counts, *map(in_seconds, run), in_seconds(one.wait_s.p95), str(one.peak)]


def _numbers(report: PerformanceReport) -> list[str]:
    lines = []
    plain: Mapping[str, Mapping[str, float]] = {"counters": report.counters, "gauges": report.gauges}
    for title, values in plain.items():
        if values:
            lines += ["", *_table([title, ""], [[name, f"{value:.12g}"] for name, value in values.items()])]
    if report.histograms:
        rows = [
            [name, str(one.count), *(in_digits(figure, 4) for figure in (one.mean, one.p50, one.p95, one.p99, one.max))]
            for name, one in report.histograms.items()
        ]
        lines += ["", *_table(["histograms", "count", "mean", "p50", "p95", "p99", "max"], rows)]
    return lines


def _stalls(stalls: StallFigures) -> list[str]:
    if not stalls.count:
        return []
    lines = ["", f"the event loop stalled {stalls.count} times, the longest {in_seconds(stalls.longest_s)}"]
    for stall in stalls.latest:
        lasted = "still" if stall.stalled_s is None else in_seconds(stall.stalled_s)
        where = f" at {stall.stack[-1]}" if stall.stack else ""
        lines.append(f"  {lasted:>8} {stall.tool or 'no tool'}{where}")
    return lines


def _place(call: SlowCall | ActiveCall) -> str:
    phase = "" if call.phase is None else f", phase {call.pipeline}/{call.phase}"
    item = "" if call.item is None else f", item {call.item}"
    return f"{call.tool} {call.call_id} {call.status}{phase}{item}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(widths[at]) for at, cell in enumerate(row[1:], 1))]).rstrip()
        for row in cells
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
