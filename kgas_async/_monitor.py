"""`PerformanceMonitor`: figures of calls, blocks, resources and stalls over one or more sessions.

Brings together the books (`_ledger`), the thread beside the loop (`_watchdog`) and the user's own numbers; a session
attaches it. What it gives is in `_figures`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from itertools import islice
from threading import Lock
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from ._advice import advise, has_one_interpreter
from ._context import current_call
from ._errors import CallAborted
from ._evidence import EvidenceLog
from ._figures import (
    ActiveCall,
    CallFigures,
    PerformanceReport,
    ProcessFigures,
    ResourceSample,
    Stall,
    StallFigures,
)
from ._ledger import NAMES_KEPT, Ledger, cpus_of
from ._limits import check_count, check_seconds, check_text
from ._mailbox import Mailbox
from ._metrics import Counter, Gauge, Histogram, Thinned, one_less, one_more
from ._records import error_fields
from ._suggest import suggests
from ._system import process_usage
from ._watchdog import Look, Watchdog

__all__ = ["Attached", "Block", "PerformanceMonitor"]

ACTIVE_SHOWN: Final = 20
STALLS_KEPT: Final = 20
SAMPLES_KEPT: Final = 512

M = TypeVar("M")


class PerformanceMonitor:
    """Measures what a manager does: ``ServiceManager(monitor=PerformanceMonitor())``, then ``monitor.report()``.

    Ended calls are added up in the evidence's thread, in bounded memory. A reserved thread notices when the event loop
    is blocked, names the tool that blocks it, and samples the process. In virtual time that thread is not there. One
    monitor may be given to several managers, or to one again and again: the figures go on.

    All methods may be called from any thread.

    Args:
        slow: Seconds of running from which a call is recorded as ``call.slow``; None: none is.
        keep_slow: How many of the slowest calls (from ``slow`` on) the report has.
        stall: Seconds that the event loop may be blocked before it is recorded as ``loop.stalled``; None: not watched.
        sample_every: Seconds between samples of the process, recorded as ``resource.sampled``; None: no samples.
    """

    @suggests
    def __init__(
        self,
        *,
        slow: float | None = None,
        keep_slow: int = 20,
        stall: float | None = 0.25,
        sample_every: float | None = 1.0,
    ) -> None:
        slow = None if slow is None else check_seconds("slow", slow)
        self._ledger = Ledger(slow, check_count("keep_slow", keep_slow))
        self._stall_s = None if stall is None else check_seconds("stall", stall, zero=False)
        self._sample_s = None if sample_every is None else check_seconds("sample_every", sample_every, zero=False)
        self._attached: list[Attached] = []
        self._metrics: dict[type[Any], dict[str, Any]] = {Counter: {}, Gauge: {}, Histogram: {}}
        self._lock = Lock()
        self._stalls: deque[_OpenStall] = deque(maxlen=STALLS_KEPT)
        self._stalls_ns = [0, 0, 0]  # how many, the longest, all together
        self._sampler = _Sampler()
        self._first_ns = 0
        self._unrecorded = 0

    def __repr__(self) -> str:
        return f"<PerformanceMonitor of {len(self._ledger.tools)} tools>"

    # --- the user's own

    def track(self, name: str) -> Block:
        """Measure a block: ``with monitor.track("parse"):`` or ``async with``; its end is in the evidence too.

        Args:
            name: Of the kind of block, and not of one item: each name has figures of its own.

        Returns:
            A context manager, sync and async.

        Raises:
            TypeError: The name is none: it goes into the evidence.
        """
        return Block(self, check_text("track(name)", name))

    def counter(self, name: str) -> Counter:
        """The counter of that name: ``monitor.counter("pages").add(12)``.

        Raises:
            TypeError: The name is no string, or empty.
            ValueError: The name is that of another kind of metric, or there are too many names.
        """
        return self._metric(Counter, name)

    def gauge(self, name: str) -> Gauge:
        """The gauge of that name: ``monitor.gauge("queue").set(5)``.

        Raises:
            TypeError: The name is no string, or empty.
            ValueError: The name is that of another kind of metric, or there are too many names.
        """
        return self._metric(Gauge, name)

    def histogram(self, name: str) -> Histogram:
        """The histogram of that name: ``monitor.histogram("bytes").record(4096)``.

        Raises:
            TypeError: The name is no string, or empty.
            ValueError: The name is that of another kind of metric, or there are too many names.
        """
        return self._metric(Histogram, name)

    def _metric(self, kind: type[M], name: str) -> M:
        metrics = self._metrics[kind]
        found: M | None = metrics.get(name)
        if found is not None:
            return found
        check_text(f"{kind.__name__.lower()}(name)", name)
        with self._lock:
            other = next((one for one, named in self._metrics.items() if one is not kind and name in named), None)
            if other is not None:
                raise ValueError(
                    f"{name!r} is a {other.__name__.lower()} already; give the {kind.__name__} another name"
                )
            if len(metrics) >= NAMES_KEPT:
                raise ValueError(
                    f"{NAMES_KEPT} names are enough: a metric is named for a kind of thing, not for an item"
                )
            made: M = metrics.setdefault(name, kind())
            return made

    # --- looking

    def report(self) -> PerformanceReport:
        """All figures as of now; calls that have ended are in it. Prints as a table; ``to_dict()`` is for JSON."""
        self._take_in()
        ledger = self._ledger
        elapsed_ns = perf_counter_ns() - self._first_ns if self._first_ns else 0
        tools = {name: stats.figures() for name, stats in list(ledger.tools.items())}
        return PerformanceReport(
            elapsed_s=elapsed_ns / 1e9,
            tools=tools,
            phases={name: stats.figures() for name, stats in list(ledger.phases.items())},
            blocks={name: stats.figures() for name, stats in list(ledger.blocks.items())},
            counters={name: one.value for name, one in list(self._metrics[Counter].items())},
            gauges={name: one.value for name, one in list(self._metrics[Gauge].items())},
            histograms={name: one.distribution() for name, one in list(self._metrics[Histogram].items())},
            slow=ledger.slowest(),
            active=self._active(),
            stalls=self._stall_figures(),
            process=self._sampler.figures(),
            unrecorded=self._unrecorded,
            advice=advise(tools, cpus_of(ledger.threads), one_interpreter=has_one_interpreter()),
        )

    def _figures_of(self, tool: str) -> CallFigures:
        """Those of one tool, for the manager's statistics."""
        self._take_in()
        return self._ledger.stats(self._ledger.tools, tool).figures()

    def _take_in(self) -> None:
        for attached in list(self._attached):
            attached.log.take_in()

    def _active(self) -> tuple[ActiveCall, ...]:
        calls = [call for one in list(self._attached) for call in islice(one.log.open_now(), ACTIVE_SHOWN)]
        calls.sort(key=lambda call: call.created_ns)
        return tuple(
            ActiveCall(call.tool_name, call.id, call.pipeline, call.phase, call.placed.item, call.status, call.duration)
            for call in calls[:ACTIVE_SHOWN]
        )

    def _stall_figures(self) -> StallFigures:
        with self._lock:
            count, longest_ns, total_ns = self._stalls_ns
            latest = tuple(stall.shown() for stall in self._stalls)
        return StallFigures(count, longest_ns / 1e9, total_ns / 1e9, latest)

    # --- for sessions

    def _note_use(self) -> None:
        self._first_ns = self._first_ns or perf_counter_ns()

    def _attach(self, log: EvidenceLog, mailbox: Mailbox) -> Attached:
        """Watch over a session, on its loop; its log hands what ends to the ledger."""
        self._note_use()
        return Attached(self, log, mailbox)


class Attached:
    """A monitor in one session.

    Args:
        monitor: The monitor.
        log: The session's evidence.
        mailbox: Of the session's loop.
    """

    def __init__(self, monitor: PerformanceMonitor, log: EvidenceLog, mailbox: Mailbox) -> None:
        self.log = log
        self._monitor = monitor
        self._mailbox = mailbox
        self._open_stall: _OpenStall | None = None
        self._watchdog: Watchdog | None = None
        monitor._attached.append(self)
        if not mailbox.is_virtual and (monitor._stall_s is not None or monitor._sample_s is not None):
            self._watchdog = Watchdog(
                mailbox, monitor._stall_s, self._stalled, self._resumed, self._turn, monitor._sample_s
            )

    async def close(self) -> None:
        """Detach, and wait until nothing watches the session any more."""
        if self._watchdog is not None:
            await self._watchdog.close().wait()
        self.log.take_in()  # its own events come before the session's end
        for advice in self._monitor.report().advice:
            self.log.emit("tool.advised", **asdict(advice))
        self._monitor._attached.remove(self)

    def _stalled(self, look: Look, so_far_ns: int) -> None:
        """In the watchdog's thread."""
        call = look.call
        tool, call_id = (None, None) if call is None else (call.tool_name, call.id)
        monitor = self._monitor
        with monitor._lock:
            beside = (one._open_stall for one in list(monitor._attached) if one._mailbox is self._mailbox)
            stall = next((one for one in beside if one is not None), None)  # seen from another session on this loop
            if stall is None:
                stall = _OpenStall(tool, call_id, look.stack)
                monitor._stalls_ns[0] += 1
                monitor._stalls.append(stall)
            self._open_stall = stall
        place = {} if call is None else {"pipeline": call.pipeline, "phase": call.phase, "item": call.placed.item}
        self.log.emit(
            "loop.stalled", tool=tool, call_id=call_id, stack=list(look.stack), stalled_us=so_far_ns // 1000, **place
        )

    def _resumed(self, lasted_ns: int) -> None:
        monitor = self._monitor
        with monitor._lock:
            stall, self._open_stall = self._open_stall, None
            assert stall is not None
            known_ns = stall.lasted_ns or 0
            stall.lasted_ns = max(lasted_ns, known_ns)
            monitor._stalls_ns[1] = max(monitor._stalls_ns[1], lasted_ns)
            monitor._stalls_ns[2] += stall.lasted_ns - known_ns
        if stall.tool is not None and not known_ns:
            monitor._ledger.stats(monitor._ledger.tools, stall.tool).add_stall(lasted_ns)
        self.log.emit("loop.resumed", tool=stall.tool, call_id=stall.call_id, stalled_us=lasted_ns // 1000)

    def _turn(self, is_last: bool) -> None:
        monitor = self._monitor
        if monitor._sample_s is not None:
            fields = monitor._sampler.sample(0 if is_last else monitor._sample_s)
            for attached in list(monitor._attached) if fields else ():
                attached.log.emit("resource.sampled", **fields)


class Block:
    """One block that is tracked, made by `PerformanceMonitor.track`; entered once."""

    __slots__ = ("_began_ns", "_monitor", "_name", "_stats")

    def __init__(self, monitor: PerformanceMonitor, name: str) -> None:
        self._monitor = monitor
        self._name = name
        self._stats = monitor._ledger.stats(monitor._ledger.blocks, name)
        self._began_ns = 0

    def __enter__(self) -> Self:
        self._monitor._note_use()
        one_more(self._monitor._ledger.running, (self._stats.running,))
        self._began_ns = perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_ns = perf_counter_ns()
        one_less(self._monitor._ledger.running, (self._stats.running,))
        status = "succeeded" if error is None else _status_of(error)
        name = None if kind is None or status == "cancelled" else kind.__name__
        self._stats.add_block(status, self._began_ns, ended_ns, name)
        self._record(status, ended_ns - self._began_ns, None if name is None else error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _record(self, status: str, run_ns: int, error: BaseException | None) -> None:
        """Into the evidence of the session that the block is in: that of its call, else the latest opened."""
        monitor = self._monitor
        call: Any = current_call.get()
        logs = [attached.log for attached in list(monitor._attached)]
        log = next((one for one in logs if call is not None and one.session == call.session_id), None)
        if log is None:
            if not logs:
                return
            call, log = None, logs[-1]
        if log.behind:  # a block cannot wait for the writer, and memory is to stay bounded
            with monitor._lock:
                monitor._unrecorded += 1
            return
        place = {} if call is None else {"tool": call.tool_name, "call_id": call.id, "item": call.placed.item}
        tracing = None if call is None else call.bound.home.tracing
        secrets = frozenset() if tracing is None else tracing.secrets(call)
        shown = None if error is None else error_fields(error, secrets)
        log.emit(f"block.{status}", block=self._name, status=status, run_us=run_ns // 1000, error=shown, **place)


def _status_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        failures = error.subgroup(lambda one: not isinstance(one, BaseExceptionGroup) and _is_failure(one))
        return "cancelled" if failures is None else "failed"
    return "failed" if _is_failure(error) else "cancelled"


def _is_failure(error: BaseException) -> bool:
    """Whether it is an error and no cancellation, of whatever loop: those are the other BaseExceptions."""
    return isinstance(error, (Exception, KeyboardInterrupt, SystemExit)) and not isinstance(error, CallAborted)


class _OpenStall:
    """A stall, and for how long it has lasted, once that is known."""

    __slots__ = ("call_id", "lasted_ns", "stack", "tool")

    def __init__(self, tool: str | None, call_id: str | None, stack: tuple[str, ...]) -> None:
        self.tool = tool
        self.call_id = call_id
        self.stack = stack
        self.lasted_ns: int | None = None

    def shown(self) -> Stall:
        lasted_s = None if self.lasted_ns is None else self.lasted_ns / 1e9
        return Stall(self.tool, self.call_id, self.stack, lasted_s)


class _Sampler:
    """CPU, memory and threads of the process over time. One for all sessions of a monitor."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._samples: Thinned[ResourceSample] = Thinned(SAMPLES_KEPT)
        self._first: tuple[int, float] | None = None  # when, and the CPU seconds then
        self._last: tuple[int, float] = (0, 0.0)
        self._rss_peak = self._threads_peak = 0

    def sample(self, every_s: float) -> dict[str, Any]:
        """Look, if the last look was that long ago: the fields for the evidence, else nothing."""
        with self._lock:
            now_ns = perf_counter_ns()
            if self._first is not None and now_ns - self._last[0] < every_s * 1e9:
                return {}
            cpu_s, rss, threads = process_usage()
            before_ns, before_cpu_s = self._last if self._first is not None else (now_ns, cpu_s)
            first_ns, _ = self._first = self._first or (now_ns, cpu_s)
            self._last = now_ns, cpu_s
            self._rss_peak, self._threads_peak = max(self._rss_peak, rss), max(self._threads_peak, threads)
            span_s, used_s = (now_ns - before_ns) / 1e9, cpu_s - before_cpu_s
            used = used_s / span_s if span_s else 0.0
            self._samples.add(ResourceSample((now_ns - first_ns) / 1e9, used, rss, threads))
            span_us, cpu_us = int(span_s * 1e6), int(used_s * 1e6)
            return {"span_us": span_us, "cpu_us": cpu_us, "rss_bytes": rss, "threads": threads}

    def figures(self) -> ProcessFigures:
        """All of it."""
        with self._lock:
            if self._first is None:
                return ProcessFigures()
            span_s = (self._last[0] - self._first[0]) / 1e9
            cpu = (self._last[1] - self._first[1]) / span_s if span_s else 0.0
            return ProcessFigures(cpu, self._rss_peak, self._threads_peak, self._samples.entries())
