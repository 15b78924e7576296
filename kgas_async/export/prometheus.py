"""Figures in the text format that Prometheus reads: those of a manager, or of a `PerformanceMonitor`.

Nothing is served and nothing written here: give the text to your web framework, or to the text file collector.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from kgas_async._figures import CallFigures, PerformanceReport
from kgas_async._metrics import Distribution
from kgas_async._report import ManagerStatistics

__all__ = ["CONTENT_TYPE", "prometheus_text"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STATUSES: Final = ("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused")


def prometheus_text(figures: ManagerStatistics | PerformanceReport) -> str:
    """Figures as text. Serve it as `CONTENT_TYPE`.

    Args:
        figures: ``manager.statistics()`` or ``monitor.report()``.

    Returns:
        Metrics whose names begin with ``kgas_``; tools, phases and names of the user's own are labels.

    Raises:
        TypeError: It is neither.
    """
    text = _Text()
    if isinstance(figures, ManagerStatistics):
        _of_manager(text, figures)
    elif isinstance(figures, PerformanceReport):
        _of_report(text, figures)
    else:
        raise TypeError(f"prometheus_text takes manager.statistics() or monitor.report(), not {type(figures).__name__}")
    return text.rendered()


def _of_manager(text: _Text, figures: ManagerStatistics) -> None:
    for name, one in figures.tools.items():
        _calls(text, "calls", {"tool": name}, {status: getattr(one, status) for status in STATUSES})
        text.add("retries_total", "counter", "Attempts that were followed by another.", {"tool": name}, one.retried)
        if one.figures is None:
            text.add("run_seconds_sum", "summary", "Seconds spent running.", {"tool": name}, one.run_s)
            text.add(
                "run_seconds_count", "summary", "", {"tool": name}, one.calls - one.rejected - one.skipped - one.reused
            )
        else:
            _details(text, "", {"tool": name}, one.figures)
    text.add("calls_open", "gauge", "Calls that have not ended.", {}, figures.calls_open)
    text.add("threads", "gauge", "Worker threads.", {}, figures.threads)
    text.add("threads_abandoned", "gauge", "Abandoned threads that still run.", {}, figures.threads_abandoned)
    text.add("threads_queued", "gauge", "Sync calls that wait for a thread or process.", {}, figures.threads_queued)
    text.add("processes", "gauge", "Worker processes.", {}, figures.processes)
    text.add("services", "gauge", "Services that run.", {}, len(figures.services))


def _of_report(text: _Text, figures: PerformanceReport) -> None:
    kinds = (("", "tool", figures.tools), ("phase_", "phase", figures.phases), ("block_", "block", figures.blocks))
    for prefix, label, named in kinds:
        for name, one in named.items():
            _calls(text, f"{prefix}calls", {label: name}, {status: getattr(one, status) for status in STATUSES})
            retried = "Attempts that were followed by another."
            text.add(f"{prefix}retries_total", "counter", retried, {label: name}, one.retries)
            _details(text, prefix, {label: name}, one)
    for name, value in figures.counters.items():
        text.add("counter_total", "counter", "The program's own counters.", {"name": name}, value)
    for name, value in figures.gauges.items():
        text.add("gauge", "gauge", "The program's own gauges.", {"name": name}, value)
    for name, spread in figures.histograms.items():
        text.spread("histogram", "The program's own histograms.", {"name": name}, spread)
    text.add("loop_stalls_total", "counter", "How often the event loop was blocked.", {}, figures.stalls.count)
    text.add("loop_stalled_seconds_total", "counter", "For how long.", {}, figures.stalls.total_s)
    text.add("process_cpus", "gauge", "CPUs used, over the whole time.", {}, figures.process.cpu)
    text.add("process_rss_peak_bytes", "gauge", "The most memory resident.", {}, figures.process.rss_peak_bytes)
    text.add("process_threads_peak", "gauge", "The most threads.", {}, figures.process.threads_peak)


def _calls(text: _Text, name: str, labels: Mapping[str, str], counts: Mapping[str, int]) -> None:
    for status, count in counts.items():
        text.add(f"{name}_total", "counter", "Ended calls, by how they ended.", {**labels, "status": status}, count)


def _details(text: _Text, prefix: str, labels: Mapping[str, str], figures: CallFigures) -> None:
    text.spread(f"{prefix}run_seconds", "Seconds spent running.", labels, figures.run_s)
    text.spread(f"{prefix}wait_seconds", "Seconds spent waiting.", labels, figures.wait_s)
    for what, seconds in figures.waits.items():
        waited = "Seconds spent waiting, by what for."
        text.add(f"{prefix}waited_seconds_total", "counter", waited, {**labels, "for": what}, seconds)
    text.add(f"{prefix}running", "gauge", "How many run now.", labels, figures.running)
    text.add(f"{prefix}running_peak", "gauge", "How many ran at once at the most.", labels, figures.peak)
    text.add(f"{prefix}abandoned_total", "counter", "Calls that left a thread behind.", labels, figures.abandoned)
    for error, count in figures.errors.items():
        text.add(f"{prefix}errors_total", "counter", "Failures, by type.", {**labels, "type": error}, count)


class _Text:
    """Collects samples by metric: all of a metric stand together, below what it is."""

    def __init__(self) -> None:
        self._metrics: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, about: str, labels: Mapping[str, str], value: float) -> None:
        """A sample."""
        family = name if kind != "summary" else name.removesuffix("_sum").removesuffix("_count")
        lines = self._metrics.setdefault(family, [])
        if not lines:
            lines += [f"# HELP kgas_{family} {about}", f"# TYPE kgas_{family} {kind}"]
        lines.append(f"kgas_{name}{_labels(labels)} {_number(value)}")

    def spread(self, name: str, about: str, labels: Mapping[str, str], spread: Distribution) -> None:
        """A summary."""
        for quantile, value in (("0.5", spread.p50), ("0.95", spread.p95), ("0.99", spread.p99)):
            shown = value if spread.count else math.nan
            self.add(name, "summary", about, {**labels, "quantile": quantile}, shown)
        self.add(f"{name}_sum", "summary", about, labels, spread.mean * spread.count)
        self.add(f"{name}_count", "summary", about, labels, spread.count)

    def rendered(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for lines in self._metrics.values() for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(_label_pairs(labels.items())) + "}"


def _label_pairs(labels: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, value in labels:
        valid = value.encode("utf-8", "backslashreplace").decode()  # its backslashes are to be escaped, too
        escaped = valid.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        yield f'{name}="{escaped}"'


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else str(value)
