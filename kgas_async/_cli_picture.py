"""A `Picture` as lines of text, at most as wide as is given: the live view, its summary, `kgas-async status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ._cli_text import printable
from ._errors import counted
from ._metrics import in_digits, in_seconds
from ._picture import FailureSeen, InFlight, ItemsSeen, LimitSeen, PhaseSeen, Picture

__all__ = ["SteadyConsole", "flight_text", "items_text", "lines_of"]

FAILURES_SHOWN: Final = 3
PHASES_SHOWN: Final = 20
SHARE_SHOWN: Final = 0.05  # of the time of a phase's calls, from which a wait is told of
_STATES: Final = {"running": "green", "draining": "yellow", "ended": "green", "killed": "red"}


class SteadyConsole(Console):
    """One that leaves the cursor alone: who kills the process would have none."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def lines_of(picture: Picture, width: int) -> list[Text]:
    """The lines, each cut to this many columns."""
    lines = [*_head(picture, width), *_phases(picture, width), *_rest(picture)]
    # Most was made printable where its width was asked; what else evidence holds loses its colours here.
    lines = [line if line.plain.isprintable() else Text(printable(line.plain)) for line in lines]
    for line in lines:
        line.truncate(max(width, 1), overflow="ellipsis")
    return lines


def items_text(items: ItemsSeen, elapsed_s: float) -> str:
    """``50 of 200 items, 5 failed, 10/s, 5 s, 15 s left``."""
    about = "" if items.is_exact else "about "
    of = counted(items.done, "item") if items.total is None else f"{items.done} of {counted(items.total, 'item')}"
    failed = f", {items.failed} failed" if items.failed else ""
    failed += f", {items.cancelled} cancelled" if items.cancelled else ""
    rate = f", {_number(items.rate)}/s" if items.rate else ""
    left = f", {_span(items.eta_s)} left" if items.eta_s else ""
    return f"{about}{of}{failed}{rate}, {_span(elapsed_s)}{left}"


def flight_text(calls: Sequence[InFlight], when: str = "") -> str:
    """``3 calls in flight: deaf 2 (oldest 4.1 s), nap 1 (0.2 s)``."""
    if not calls:
        return "nothing in flight"
    each = [
        f"{printable(one.tool)} {one.count} ({'oldest ' if one.count > 1 else ''}{_span(one.oldest_s)})"
        for one in calls
    ]
    return f"{counted(sum(one.count for one in calls), 'call')} in flight{when}: {', '.join(each)}"


# --- the head


def _head(picture: Picture, width: int) -> Iterator[Text]:
    name = printable(picture.pipeline or f"session {picture.session_id or ''}".strip())
    state: str = "was killed" if picture.state == "killed" else picture.state
    if picture.signal is not None and picture.state != "killed":
        state += f" after {picture.signal}"
    items = picture.items if picture.state == "running" else replace(picture.items, eta_s=None)
    text = items_text(items, picture.elapsed_s)
    if picture.pipeline is None:
        text = f"{counted(picture.calls, 'call')}, {_span(picture.elapsed_s)}"
    line = Text.assemble((name, "bold"), " ", (state, _STATES[picture.state]))
    if line.cell_len + len(text) + 3 <= width:
        yield Text.assemble(line, ": ", text)
    else:
        yield line
        yield Text(text)
    total = picture.items.total
    if total and width >= 20:
        yield _bar(picture.items, total, min(width - 1, 78))


def _bar(items: ItemsSeen, total: int, width: int) -> Text:
    done = int(min(max(items.done / total, 0.0), 1.0) * width)
    failed = min(done, max(int(items.failed / total * width), 1 if items.failed else 0))
    cancelled = min(done - failed, max(int(items.cancelled / total * width), 1 if items.cancelled else 0))
    return Text.assemble(
        ("━" * (done - failed - cancelled), "green"), ("━" * cancelled, "yellow"), ("━" * failed, "red"),
        ("─" * (width - done), "dim"),
    )  # fmt: skip


# --- the phases


class _Column(NamedTuple):
    title: str
    rank: int  # the higher, the sooner it is left out
    cell: Callable[[PhaseSeen], str]


_COLUMNS: Final = (
    _Column("done", 0, lambda one: f"{one.done}/{one.total}" if one.total is not None else str(one.done)),
    _Column("failed", 1, lambda one: str(one.failed) if one.failed else ""),
    _Column("cancelled", 5, lambda one: str(one.cancelled) if one.cancelled else ""),
    _Column("in flight", 2, lambda one: str(one.in_flight) if one.in_flight else ""),
    _Column("running", 7, lambda one: str(one.running) if one.running else ""),
    _Column("/s", 4, lambda one: _number(one.rate) if one.rate and one.level != "run" else ""),
    _Column("p95", 3, lambda one: in_seconds(one.p95_s) if one.p95_s else ""),
    _Column("retries", 8, lambda one: str(one.retries) if one.retries else ""),
    _Column("left", 6, lambda one: _span(one.eta_s) if one.eta_s else ""),
)
_STYLES: Final = {"failed": "red", "cancelled": "yellow"}
_NAME_MOST: Final = 24
_WAITS_LEAST: Final = 16  # columns for what is waited for
_GAP: Final = "  "


def _phases(picture: Picture, width: int) -> Iterator[Text]:
    phases = picture.phases[:PHASES_SHOWN]
    if picture.state != "running":
        phases = tuple(replace(one, eta_s=None) for one in phases)
    if not phases:
        return
    rows = [[column.cell(one) for column in _COLUMNS] for one in phases]
    sizes = [
        max(len(column.title), *(len(row[at]) for row in rows)) if any(row[at] for row in rows) else 0
        for at, column in enumerate(_COLUMNS)
    ]
    name = min(max(cell_len(one.name) for one in phases), _NAME_MOST, max(width // 3, 6))
    waits = [_waits(one) for one in phases]
    wanted = _WAITS_LEAST if any(waits) and width >= 60 else 0
    shown = [at for at, size in enumerate(sizes) if size]
    while shown and name + sum(sizes[at] + len(_GAP) for at in shown) + wanted + len(_GAP) > width:
        shown.remove(max(shown, key=lambda at: _COLUMNS[at].rank))
    titles = [_COLUMNS[at].title.rjust(sizes[at]) for at in shown]
    yield Text(_GAP.join(["phase".ljust(name), *titles, *(["waits for"] if wanted else [])]).rstrip(), style="dim")
    for one, row, waited in zip(phases, rows, waits, strict=True):
        line = Text(set_cell_size(printable(one.name), name))
        for at in shown:
            line.append(_GAP)
            line.append(row[at].rjust(sizes[at]), style=_STYLES.get(_COLUMNS[at].title, ""))
        if wanted and waited:
            line.append(_GAP + waited, style="yellow")
        yield line
    if len(picture.phases) > len(phases):
        yield Text(f"... and {counted(len(picture.phases) - len(phases), 'more phase')}")


def _waits(phase: PhaseSeen) -> str:
    """What its calls waited for, as shares of their whole time, the greatest first."""
    whole = phase.run_s + sum(phase.waits.values())
    shares = sorted(((waited / whole, what) for what, waited in phase.waits.items() if whole), reverse=True)
    return ", ".join(f"{what} {share:.0%}" for share, what in shares if share >= SHARE_SHOWN)


# --- what else there is


def _rest(picture: Picture) -> Iterator[Text]:
    if picture.in_flight and picture.state in ("draining", "killed"):
        when = " when it was killed" if picture.state == "killed" else ""
        yield Text(flight_text(picture.in_flight, when), style="yellow")
    limits = [_limit(one) for one in picture.limits if one.waiting is None or one.waiting or one.note]
    if picture.queued:
        limits.append(f"{picture.queued} wait for a thread or process")
    if limits:
        yield Text("limits: " + " · ".join(limits))
    for breaker in picture.breakers:
        style = "red" if breaker.state == "open" else ""
        since = _span(breaker.since_s)
        yield Text(f"breaker {printable(breaker.name)}: {breaker.state} for {since}, {printable(breaker.why)}", style)
    counts = [f"retries {picture.retries}"] if picture.retries else []
    stalls = picture.stalls
    if stalls.count:
        now = ", stalled now" if stalls.is_stalled else ""
        whose = f", {printable(stalls.latest)}" if stalls.latest else ""
        counts.append(f"loop stalls {stalls.count} (longest {_span(stalls.longest_s)}{whose}{now})")
    if picture.abandoned:
        left = ", ".join(f"{printable(one.whose)} {_span(one.age_s)}" for one in picture.abandoned[:3])
        counts.append(f"abandoned threads {len(picture.abandoned)} ({left})")
    if counts:
        yield Text(" · ".join(counts), style="yellow")
    for service, state in picture.services:
        yield Text(f"service {printable(service)}: {state}", style="yellow")
    for failure in picture.failures[:FAILURES_SHOWN]:
        yield _failure(failure)
    if len(picture.failures) > FAILURES_SHOWN:
        yield Text(f"... and {counted(len(picture.failures) - FAILURES_SHOWN, 'more kind')} of failures", style="red")
    if picture.process is not None and picture.state != "ended":
        one = picture.process
        text = f"process: {one.cpu:.2f} CPUs, {one.rss_bytes / 2**20:.0f} MiB, {counted(one.threads, 'thread')}"
        yield Text(text, style="dim")


def _limit(limit: LimitSeen) -> str:
    name = printable(limit.name)
    if limit.kind == "rate":
        used = f"{in_digits(limit.total, 6)}/s"
    elif limit.kind == "memory":
        used = f"{(limit.used or 0) / 2**20:.0f}/{limit.total / 2**20:.0f} MiB"
    else:
        used = f"{'' if limit.used is None else f'{limit.used:g}/'}{limit.total:g}"
    waiting = f", {limit.waiting} wait" if limit.waiting else ""
    return f"{name} {used}{waiting}{f' ({limit.note})' if limit.note else ''}"


def _failure(failure: FailureSeen) -> Text:
    item = "" if failure.item is None else f"item {printable(failure.item)}, "
    line = Text.assemble((f"{printable(failure.where)}: {failure.type} x{failure.count}", "red"))
    return line.append(f" ({item}{_span(failure.ago_s)} ago): {printable(failure.message)}")


# --- words


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 120 else f"{minutes // 60}:{minutes % 60:02} h"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return in_digits(value, 2) if value < 9.95 else f"{value:.0f}"
