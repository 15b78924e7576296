"""Where the time of a run went, and what to do about it: figures in, sentences with their evidence out.

Pure. All thresholds are here. Each finding says which figures it rests on, and what speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from kgas_async._metrics import in_digits

from ._report_figures import Figures, Finding, Row
from ._report_path import BETWEEN, HANDOVER
from ._report_words import counted, lasting

__all__ = ["findings"]

WORTH_A_WORD: Final = 0.05  # of the whole time
MUCH: Final = 0.2  # of the time that the calls of a row were open, or of the whole time
MOSTLY: Final = 0.5
BUSY: Final = 0.8  # of the CPUs that there are
ONE_INTERPRETER: Final = (0.7, 1.15)  # CPUs used: threads that share an interpreter use one
SHOWN: Final = 8


def findings(figures: Figures) -> tuple[Finding, ...]:
    """What there is to say, that which matters most first."""
    if not figures.span_s:
        return ()
    found = [
        finding
        for look in (_advice, _stalls, _concurrency, _threads, _rates, _retries, _services, _runs, _between, _failed)
        for finding in look(figures)
    ]
    return tuple(sorted(found, key=lambda one: -one.share)[:SHOWN])


def _on_path(figures: Figures, row: int | None, *kinds: str) -> float:
    """The share of the critical path that these pieces are."""
    length = sum(one.seconds for one in figures.path.pieces if one.row == row and one.kind in kinds)
    return min(length / figures.span_s, 1.0)


def _of_path(share: float) -> str:
    return f"{share:.0%} of the critical path"


def _outer(figures: Figures) -> Iterator[tuple[int, Row]]:
    return ((number, row) for number, row in enumerate(figures.rows) if not row.nested and row.count)


def _cpu(figures: Figures) -> float | None:
    """CPUs used, in the mean of all samples but the first."""
    samples = figures.samples[1:]
    return sum(one.cpu for one in samples) / len(samples) if samples else None


def _against(figures: Figures, *, threads: bool) -> tuple[str, ...]:
    """What says that more at once will not help, or that nobody can tell."""
    cpu, cpus = _cpu(figures), figures.allowed.get("cpus")
    if cpu is None:
        return ("whether the CPU has room for more is not on record: run with monitor=PerformanceMonitor()",)
    used = f"the process used {cpu:.2f}" + (f" of {cpus} CPUs" if cpus else " CPUs")
    if cpus and cpu >= BUSY * cpus:
        return (f"against it: {used}, so that more at once will not be faster: give it more CPUs, or compute less",)
    if threads and ONE_INTERPRETER[0] <= cpu <= ONE_INTERPRETER[1]:
        return (f"against it: {used}, and threads share one interpreter: offload='process' for what computes",)
    return (f"{used}: there is room, unless other programs take it",)


def _computing(figures: Figures, rows: Sequence[Row]) -> tuple[str, ...]:
    """What the monitor says against more threads: that these tools compute, on the one interpreter that there is."""
    advised = {one.tool for one in figures.advice if (one.offload, one.instead) == ("thread", "process")}
    names = list(dict.fromkeys(row.tool for row in rows if row.tool in advised))
    if not names or len(names) < len({row.tool for row in rows}):
        return ()
    return (f"against it: {_listed(names)} computes, and threads share one interpreter: offload='process'",)


def _waits(figures: Figures, kind: str) -> Iterator[tuple[int, Row, float]]:
    """Rows whose calls waited for that, for a good part of the time that they were open."""
    for number, row in _outer(figures):
        waited_s = row.waits_s.get(kind, 0.0)
        if row.open_s and waited_s >= MUCH * row.open_s and waited_s >= WORTH_A_WORD * figures.span_s:
            yield number, row, waited_s


def _waited(row: Row, waited_s: float, what: str) -> str:
    return (
        f"calls of {row.name} waited {lasting(waited_s)} in sum for {what}, "
        f"{waited_s / row.open_s:.0%} of the time that they were open"
    )


def _concurrency(figures: Figures) -> Iterator[Finding]:
    for number, row, waited_s in _waits(figures, "concurrency"):
        share = _on_path(figures, number, "run", "concurrency", "retry")
        if share < WORTH_A_WORD or (row.limit is not None and row.peak < row.limit):
            continue  # in the latter case those that have a place wait for something else, such as a thread
        evidence = [_waited(row, waited_s, "a place"), f"at most {row.peak} ran at once"]
        if row.full_s:
            evidence.append(f"its places were taken for {lasting(row.full_s)} while calls waited")
        evidence.append(f"its runs and waits are {_of_path(share)}")
        evidence += _against(figures, threads=row.offload == "thread" or "thread" in row.waits_s)
        limit = f"concurrency={row.limit}" if row.limit else f"{row.peak} at once"
        yield Finding(
            "concurrency", f"Raise the concurrency of {row.name}: {limit} holds it up", tuple(evidence), share
        )


def _threads(figures: Figures) -> Iterator[Finding]:
    waiting = list(_waits(figures, "thread"))
    if not waiting:
        return
    total_s = sum(waited_s for _, _, waited_s in waiting)
    share = sum(_on_path(figures, number, "run", "thread", "retry") for number, _, _ in waiting)
    names = _listed([row.name for _, row, _ in sorted(waiting, key=lambda one: -one[2])])
    threaded = [row for row in figures.rows if row.offload in ("thread", "process") or "thread" in row.waits_s]
    mean = sum(row.run_total_s for row in threaded) / figures.span_s
    slots = figures.allowed.get("threads")
    evidence = [
        f"calls of {names} waited {lasting(total_s)} in sum for a worker thread or process",
        f"{mean:.1f} ran at once in the mean" + (f", and there are {slots} threads" if slots else ""),
        f"their runs and waits for threads are {_of_path(share)}",
        *(_computing(figures, [row for _, row, _ in waiting]) or _against(figures, threads=True)),
    ]
    if share >= WORTH_A_WORD:
        now = f"there are {slots}" if slots else "now there are too few"
        title = f"Calls wait for worker threads: raise ServiceManager(threads=...), {now}"
        if evidence[-1].startswith("against it"):
            title = "Calls wait for worker threads, and more of them would not help: see what speaks against it"
        yield Finding("thread", title, tuple(evidence), min(share, 1.0))


def _rates(figures: Figures) -> Iterator[Finding]:
    for number, row, waited_s in _waits(figures, "rate"):
        share = _on_path(figures, number, "rate", "run")
        per_s = row.count / figures.span_s
        evidence = (
            _waited(row, waited_s, "its rate"),
            f"{in_digits(per_s)} calls a second, over the whole time",
            f"its waits for the rate and runs are {_of_path(share)}",
        )
        title = f"The rate limit of {row.name} is what governs: raise it, if who is called allows more"
        if share >= WORTH_A_WORD:
            yield Finding("rate", title, evidence, share)


def _retries(figures: Figures) -> Iterator[Finding]:
    for number, row in _outer(figures):
        slept_s = row.waits_s.get("retry", 0.0)
        share = _on_path(figures, number, "retry")
        if share >= WORTH_A_WORD or (row.open_s and slept_s >= MUCH * row.open_s):
            errors = _listed([f"{one.error} ({one.count})" for one in figures.groups if one.where.endswith(row.name)])
            evidence = [
                f"{counted(row.retries, 'attempt')} of {counted(row.count, 'call')} were tried again",
                _waited(row, slept_s, "their next attempt"),
                f"these waits are {_of_path(share)}",
            ]
            if errors:
                evidence.append(f"in the end there failed: {errors}")
            title = f"Retries of {row.name} cost time: see why its attempts fail, or wait less between them"
            yield Finding("retry", title, tuple(evidence), share)


def _services(figures: Figures) -> Iterator[Finding]:
    for number, row, waited_s in _waits(figures, "service"):
        share = _on_path(figures, number, "service")
        evidence = (
            _waited(row, waited_s, "a service to be up again"),
            f"{counted(figures.events.get('service.restarting', 0), 'restart')} are on record",
            f"these waits are {_of_path(share)}",
        )
        yield Finding("service", f"A service that {row.name} uses went down: see the events below", evidence, share)


def _runs(figures: Figures) -> Iterator[Finding]:
    for number, row in _outer(figures):
        share = _on_path(figures, number, "run")
        if share < MUCH or (row.waited_s and row.waited_s >= MUCH * row.open_s):
            continue  # what its calls wait for is said elsewhere
        evidence = [f"its runs are {_of_path(share)}"]
        inner = max(_inner(figures, row), key=lambda one: one.open_s, default=None)
        in_flight = figures.allowed.get("in_flight")
        if inner is not None and inner.open_s >= MOSTLY * row.run_total_s:
            title = f"{row.name} is where the time goes, most of it in its calls of {inner.name}"
            evidence.append(
                f"{lasting(inner.open_s)} of the {lasting(row.run_total_s)} that it ran in sum are {inner.name}: "
                f"{lasting(inner.run_total_s)} running, "
                + (", ".join(f"{lasting(length)} waiting for {_words(kind)}" for kind, length in inner.waits_s.items()))
            )
        elif row.count == 1:
            title = f"{row.name} is one call of {lasting(row.run_total_s)} that all waits for: make it faster"
        else:
            now = f" is {in_flight} now" if in_flight else ""
            title = f"{row.name} is where the time goes: make it faster, or have more at once (in_flight{now})"
            evidence.append(
                f"its calls waited for {lasting(row.waited_s)} of {lasting(row.open_s)}: no limit holds it up"
            )
            evidence.append(f"{row.run_total_s / figures.span_s:.1f} ran at once in the mean")
            evidence += _against(figures, threads=row.offload == "thread" or "thread" in row.waits_s)
        yield Finding("run", title, tuple(evidence), share)


def _inner(figures: Figures, row: Row) -> Iterator[Row]:
    """The calls in its calls."""
    return (one for one in figures.rows if one.nested and one.within == f"{row.pipeline}/{row.name}")


def _words(kind: str) -> str:
    return {"concurrency": "a place", "thread": "a thread", "rate": "its rate", "retry": "a retry"}.get(
        kind, "a service"
    )


def _between(figures: Figures) -> Iterator[Finding]:
    share = _on_path(figures, None, BETWEEN)
    if share >= MUCH and any(_outer(figures)):
        evidence = (
            f"{lasting(share * figures.span_s)}, {_of_path(share)}, passed before first calls of items",
            "that is the source of the items, the start of services, or nothing to do",
        )
        yield Finding("between", "Time passed before items began: look at their source", evidence, share)
    share = _on_path(figures, None, HANDOVER)
    if share >= MUCH:
        cpu = _cpu(figures)
        used = () if cpu is None else (f"the process used {cpu:.2f} CPUs",)
        evidence = (
            f"{lasting(share * figures.span_s)}, {_of_path(share)}, passed between calls of one item",
            "nothing but the event loop lies there: it was kept busy, or kept waiting by threads that compute",
            *used,
        )
        title = "The event loop is slow to go on: let what computes run in processes, and less of it on the loop"
        yield Finding("handover", title, evidence, share)


def _stalls(figures: Figures) -> Iterator[Finding]:
    if not figures.stalls_in_all:
        return
    on_loop = [row for row in figures.rows if row.stalls and row.offload not in ("thread", "process")]
    evidence = [
        f"it stood still {counted(figures.stalls_in_all, 'time')}, {lasting(figures.stalled_s)} in sum",
        *(f"in {row.tool}: {counted(row.stalls, 'time')}, {lasting(row.stalled_s)}" for row in on_loop[:5]),
    ]
    title = f"The event loop was blocked by {_listed([row.tool for row in on_loop])}: what blocks belongs into a thread"
    if 2 * sum(row.stalls for row in on_loop) < figures.stalls_in_all:
        title = "The event loop stood still, mostly in no tool: threads that compute held it up, or other programs"
    yield Finding("stall", title, tuple(evidence), min(figures.stalled_s / figures.span_s, 1.0))


def _failed(figures: Figures) -> Iterator[Finding]:
    if figures.failures_in_all:
        evidence = tuple(
            f"{one.where}: {one.count} {one.status}" + (f" by {one.error}" if one.error else "")
            for one in figures.groups[:4]
        )
        title = f"{counted(figures.failures_in_all, 'failure')}: see below which, and why"
        yield Finding("failures", title, evidence, 0.0)  # what they cost in time is in the other findings


def _advice(figures: Figures) -> Iterator[Finding]:
    for advice in figures.advice:
        rows = [number for number, row in enumerate(figures.rows) if row.tool == advice.tool]
        share = sum(_on_path(figures, number, "run", "thread") for number in rows)
        source = "measured by the monitor" if figures.advised_by_monitor else "told from the records"
        title = f"Move {advice.tool}: offload={advice.instead!r}, it is {advice.offload!r} now"
        yield Finding("offload", title, (advice.why, source), min(share, 1.0))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
