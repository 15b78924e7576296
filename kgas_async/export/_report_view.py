"""A report's figures as its page wants them: words, round numbers, shapes. Knows nothing of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from kgas_async._metrics import in_digits

from . import _report_shapes as shapes
from ._report_figures import Figures, Row
from ._report_path import BETWEEN, HANDOVER, PIECES
from ._report_words import counted, lasting

__all__ = ["KINDS", "view"]

# What time goes to, in the order in which it is drawn, and how it is called.
KINDS: Final = {
    "run": "running",
    "concurrency": "waiting for a place",
    "rate": "waiting for the rate",
    "thread": "waiting for a thread or process",
    "retry": "waiting to retry",
    "service": "waiting for a service",
    HANDOVER: "from one call to the next",
    BETWEEN: "before items began",
}
TIMELINE_ROWS: Final = 24
AREA: Final = 40  # the height of the area of a row whose lanes are too many
SLICES: Final = 48  # of a picture that say what is in them
PATH_PIECES: Final = 12
GRAPH: Final = 100  # the height of the box of a curve


def view(figures: Figures) -> dict[str, Any]:
    """What the template takes."""
    drawn = sorted(range(len(figures.rows)), key=lambda one: -figures.rows[one].open_s)[:TIMELINE_ROWS]
    return {
        "figures": figures,
        "name": _name(figures),
        "begin": _begin(figures.begin),
        "verdicts": _verdicts(figures),
        "tiles": _tiles(figures),
        "kinds": KINDS,
        "path": _path(figures),
        "split": [_split(row) for row in figures.rows if row.count],
        "axis": _axis(figures),
        "timeline": [_timeline(figures, figures.rows[one]) for one in sorted(drawn) if figures.rows[one].count],
        "not_drawn": max(len(figures.rows) - TIMELINE_ROWS, 0),
        "marks": _marks(figures),
        "throughput": _throughput(figures),
        "latency": _latency(figures),
        "resources": _resources(figures),
        "advice": {advice.tool: advice for advice in figures.advice},
        "steps": [_step(figures, number) for number in range(len(figures.path.steps))],
    }


def label(row: Row) -> str:
    """What a row is called."""
    return row.name if row.within is None else f"{row.name} in {row.within.rpartition('/')[2]}"


def _name(figures: Figures) -> str:
    if figures.run is not None:
        return figures.run.pipeline
    names = dict.fromkeys(run.pipeline for run in figures.session.runs)
    return ", ".join(list(names)[:3]) + (" and others" if len(names) > 3 else "") if names else "a session"


def _begin(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- what it is worth


def _verdicts(figures: Figures) -> list[tuple[str, str, str]]:
    """How good (``good``, ``warning``, ``bad``), in short, and in a sentence: of the run, then of its evidence."""
    return [_outcome(figures), _evidence(figures)]


def _outcome(figures: Figures) -> tuple[str, str, str]:
    what = "run" if figures.run is not None else "session"
    if not figures.is_complete:
        open_calls = f"{counted(figures.open_in_all, 'call')} in flight"
        return (
            "bad",
            f"Half a {what}",
            f"Its end is not on record: it was killed, or it still goes on. At the last record, "
            f"{lasting(figures.span_s)} after its begin, there were {open_calls}. What came after is not known; the "
            f"figures below are of what is.",
        )
    runs = [figures.run] if figures.run is not None else list(figures.session.runs)
    items, failed = sum(run.items or 0 for run in runs), sum(run.failed or 0 for run in runs)
    skipped = sum(run.skipped or 0 for run in runs)
    cancelled = sum(run.cancelled or 0 for run in runs)
    counts = f"{items:,} items, {failed:,} failed" + (f", {skipped:,} skipped" if skipped else "")
    counts += f", {cancelled:,} cancelled" if cancelled else ""
    reused = _reused(figures)
    counts += f", {counted(reused, 'call')} reused" if reused else ""
    if not runs:
        counts = f"{sum(figures.calls.values()):,} calls, {figures.failures_in_all:,} failed"
    if figures.session.status in ("cancelled", "failed"):
        return "warning", "Ended early", f"The session was {figures.session.status} before it was done: {counts}."
    if failed or (not runs and figures.failures_in_all):
        return "warning", "Complete, with failures", f"The {what} came to its end: {counts}."
    if cancelled:
        return "warning", "Complete, but for what was cancelled", f"The {what} came to its end: {counts}."
    return "good", "Complete", f"The {what} came to its end: {counts}."


def _reused(figures: Figures) -> int:
    return sum(row.reused for row in figures.rows)


def _evidence(figures: Figures) -> tuple[str, str, str]:
    verified = figures.verified
    unread = f" {counted(figures.unreadable, 'line')} could not be read." if figures.unreadable else ""
    if verified is None:
        return "warning", "Not verified", "The records come from memory, where there is no chain to check."
    if verified.problem is not None:
        return "bad", "Evidence not intact", f"{verified}. Do not rest anything on the figures below.{unread}"
    if verified.state == "sealed":
        return (
            "good",
            "Evidence intact",
            f"{counted(verified.records, 'record')}, each chained to the one before.{unread}",
        )
    why = "its head file is missing" if verified.state == "unsealed" else "no session has closed it"
    return (
        "warning",
        "Evidence intact, and open at its end",
        f"{counted(verified.records, 'record')} are as they were written, but {why}, so that some may be missing at "
        f"the end.{unread}",
    )


def _tiles(figures: Figures) -> list[tuple[str, str, str]]:
    """What it is, the figure, and what else there is to say of it."""
    calls = figures.calls
    done = sum(calls.values())
    outer = [row for row in figures.rows if not row.nested]
    ran, waited = sum(row.run_total_s for row in outer), sum(row.waited_s for row in outer)
    items = None if figures.run is None else figures.run.items
    tiles = [("Duration", lasting(figures.span_s), "" if figures.is_complete else "up to the last record")]
    if items is not None and figures.run is not None:
        failed = f"{figures.run.failed:,} failed, {figures.run.skipped:,} skipped"
        failed += f", {figures.run.cancelled:,} cancelled" if figures.run.cancelled else ""
        per_s = items / figures.span_s if figures.span_s else 0.0
        tiles.append(("Items", f"{items:,}", f"{failed}, {in_digits(per_s, 4)} a second"))
    bad = sum(calls.get(status, 0) for status in ("failed", "timed_out", "rejected"))
    per_s = done / figures.span_s if figures.span_s else 0.0
    tiles.append(("Calls", f"{done:,}", f"{bad:,} failed, {in_digits(per_s, 4)} a second"))
    reused = _reused(figures)
    if reused:
        phases = sum(1 for row in figures.rows if row.reused and row.pipeline is not None)
        where = f"of {counted(phases, 'phase')}" if phases else "of tools"
        tiles.append(("Reused", f"{reused:,}", f"calls {where}, whose values were there: nothing ran"))
    retries = sum(row.retries for row in figures.rows)
    tiles.append(("Retries", f"{retries:,}", f"{sum(row.abandoned for row in figures.rows):,} threads abandoned"))
    share = waited / (ran + waited) if ran + waited else 0.0
    tiles.append(("Waiting", f"{share:.0%}", f"{lasting(waited)} waiting, {lasting(ran)} running, in sum"))
    if figures.samples:
        of = f" of {figures.allowed['cpus']}" if "cpus" in figures.allowed else ""
        used = figures.samples[1:] or figures.samples
        cpu = sum(one.cpu for one in used) / len(used)
        rss = max(one.rss_bytes for one in figures.samples)
        tiles.append(("CPU", f"{cpu:.2f}", f"CPUs in the mean{of}; {rss >> 20:,} MiB at the most"))
    return tiles


# --- where the time went


def _path(figures: Figures) -> dict[str, Any]:
    span = figures.span_s or 1.0
    pieces = [
        {
            "kind": one.kind,
            "row": None if one.row is None else label(figures.rows[one.row]),
            "share": one.seconds / span,
            "time": lasting(one.seconds),
        }
        for one in figures.path.pieces
    ]
    by_kind = {kind: sum(one.seconds for one in figures.path.pieces if one.kind == kind) for kind in KINDS}
    bar = [(kind, length / span, lasting(length)) for kind, length in by_kind.items() if length]
    return {"bar": bar, "pieces": pieces[:PATH_PIECES], "more": pieces[PATH_PIECES:]}


def _split(row: Row) -> dict[str, Any]:
    lengths = {"run": row.run_total_s, **row.waits_s}
    parts = [
        (kind, length / row.open_s if row.open_s else 0.0, lasting(length))
        for kind in PIECES
        if (length := lengths.get(kind, 0.0))
    ]
    return {"row": row, "label": label(row), "parts": sorted(parts, key=lambda one: list(KINDS).index(one[0]))}


def _step(figures: Figures, number: int) -> dict[str, Any]:
    step = figures.path.steps[number]
    return {
        "label": label(figures.rows[step.row]),
        "item": step.item,
        "at": lasting(step.from_s),
        "waited": lasting(max(step.run_s - step.from_s, 0.0)),
        "ran": lasting(step.end_s - step.run_s),
    }


# --- pictures over time


def _axis(figures: Figures) -> dict[str, Any]:
    span = figures.bins * figures.bin_s
    found = shapes.ticks(figures.span_s)
    return {
        "ticks": [(round(100 * at / span, 2), _clock(at, found[-1])) for at in found if at <= span],
        "grid": "".join(f"M{at / figures.bin_s:.2f} 0V1000" for at in found[1:]),
        "bins": figures.bins,
        "bin": lasting(figures.bin_s),
    }


def _clock(at_s: float, last_s: float) -> str:
    if last_s < 120:
        return f"{at_s:g} s" if at_s == 0 or last_s >= 1 else lasting(at_s)
    hours, minutes, seconds = int(at_s // 3600), int(at_s % 3600 // 60), int(at_s % 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if last_s >= 3600 else f"{minutes}:{seconds:02}"


def _slices(figures: Figures, what: Iterable[tuple[str, Sequence[float], bool]]) -> list[tuple[int, int, str]]:
    """Parts of a picture and what is in them: where from, how wide, and words."""
    series = list(what)
    wide = max(-(-figures.bins // SLICES), 1)
    found = []
    for at in range(0, figures.bins, wide):
        until = min(at + wide, figures.bins)
        words = []
        for name, values, is_count in series:
            total = sum(values[at:until])
            words.append(f"{total:,} {name}" if is_count else f"{in_digits(total / (until - at))} {name}")
        end_s = min(until * figures.bin_s, figures.span_s)
        found.append((at, until - at, f"{lasting(at * figures.bin_s)} to {lasting(end_s)}: {', '.join(words)}"))
    return found


def _timeline(figures: Figures, row: Row) -> dict[str, Any]:
    most_running, most_waiting = max(row.running, default=0.0), max(row.waiting, default=0.0)
    height = len(row.lanes) * shapes.LANE if row.lanes else AREA
    return {
        "row": row,
        "label": label(row),
        "height": height,
        "lanes": shapes.lanes(row.lanes),
        "area": "" if row.lanes else shapes.area(row.running, most_running, AREA),
        "waiting": shapes.area(row.waiting, most_waiting, 14) if most_waiting >= 0.01 else "",
        "most_waiting": f"{math.ceil(most_waiting):,}",
        "failed": shapes.bars([min(one, 1) for one in row.failed], 1, 4),
        "slices": _slices(
            figures, [("running", row.running, False), ("waiting", row.waiting, False), ("ended", row.ended, True)]
        ),
    }


def _marks(figures: Figures) -> dict[str, Any]:
    """Stalls of the loop and moments, as places on the axis."""
    span = figures.bins * figures.bin_s or 1.0
    return {
        "stalls": [
            (round(100 * one.at_s / span, 2), max(round(100 * one.lasted_s / span, 2), 0.15), lasting(one.lasted_s))
            for one in figures.stalls
        ],
        "moments": [(round(100 * one.at_s / span, 2), f"{one.event}: {one.text}") for one in figures.moments],
    }


def _throughput(figures: Figures) -> dict[str, Any]:
    outer = [row for row in figures.rows if not row.nested]
    ended = [sum(values) for values in zip(*(row.ended for row in outer), strict=True)]
    failed = [sum(values) for values in zip(*(row.failed for row in outer), strict=True)]
    last_s = max(figures.span_s - (figures.bins - 1) * figures.bin_s, figures.bin_s / 4)
    widths = [figures.bin_s] * (figures.bins - 1) + [last_s]
    per_s = [count / width for count, width in zip(ended, widths, strict=False)]
    top = shapes.nice_above(max(per_s, default=0.0))
    return {
        "area": shapes.area(per_s, top, GRAPH),
        "failed": shapes.bars([count / figures.bin_s for count in failed], top, GRAPH),
        "top": in_digits(top, 4),
        "any_failed": any(failed),
        "slices": _slices(figures, [("calls ended", ended, True), ("failed", failed, True)]),
    }


def _latency(figures: Figures) -> dict[str, Any]:
    known = [row.run_s for row in figures.rows if row.run_s.count]
    low = min((max(one.p50 / 2, 1e-7) for one in known), default=1e-6)
    high = max((one.max for one in known), default=1.0)
    rows = []
    for row in figures.rows:
        run = row.run_s
        tried = sum(row.calls.get(status, 0) for status in ("succeeded", "failed", "timed_out", "rejected"))
        places = [shapes.log_place(one, low, high) for one in (run.p50, run.p95, run.p99, run.max)]
        rows.append({
            "row": row,
            "label": label(row),
            "rate": None if not tried else row.calls.get("succeeded", 0) / tried,
            "places": places if run.count else None,
        })  # fmt: skip
    return {"rows": rows, "low": lasting(low), "high": lasting(high)}


def _resources(figures: Figures) -> list[dict[str, Any]]:
    samples = figures.samples
    if len(samples) < 2:
        return []
    cpus = figures.allowed.get("cpus")
    curves = (
        ("CPUs used", [one.cpu for one in samples], "{:g}", cpus),
        ("Memory", [one.rss_bytes / 2**20 for one in samples], "{:,.0f} MiB", None),
        ("Threads", [float(one.threads) for one in samples], "{:.0f}", None),
    )
    found = []
    for name, values, worded, limit in curves:
        top = shapes.nice_above(max([*values, limit or 0]))
        points = [(one.at_s / figures.bin_s, value) for one, value in zip(samples, values, strict=True)]
        points = points[1:] if name == "CPUs used" else points  # the first sample has nothing to compare with
        found.append({
            "name": name,
            "line": shapes.line(points, top, GRAPH),
            "top": worded.format(top),
            "most": worded.format(max(values)) if name != "CPUs used" else f"{max(values[1:]):.2f}",
            "limit": None if limit is None else GRAPH - GRAPH * limit / top,
            "limit_text": "" if limit is None else f"{limit} available",
        })  # fmt: skip
    return found
