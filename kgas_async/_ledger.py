"""The monitor's books: what ended calls and tracked blocks add up to, by name, in bounded memory.

Takes ended calls in batches, mostly in the thread of the evidence's writer; knows them only by their attributes. How
many run at once is counted where they run.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappush, heapreplace
from itertools import count
from threading import Lock
from time import thread_time_ns
from typing import Any, Final

from ._figures import CallFigures, Computing, SlowCall
from ._metrics import Durations, Running, one_less, one_more
from ._records import call_fields

__all__ = ["Ledger", "Stats", "cpus_of", "type_of"]

NAMES_KEPT: Final = 1000  # of tools, phases, blocks each; what comes later shares one name
OTHERS: Final = "(others)"
ERROR_TYPES_KEPT: Final = 32
STATUSES: Final = ("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused")
WAITS: Final = ("concurrency", "rate", "retry", "thread")


class Stats:
    """What is known under one name. From any thread."""

    def __init__(self) -> None:
        self.running = Running()  # under the ledger's lock for that, since it is counted on the loop
        self._lock = Lock()
        self._ended: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._run = Durations()
        self._wait = Durations()
        self._waits_ns = dict.fromkeys(WAITS, 0)
        self._retries = self._timeouts = self._abandoned = 0
        self._first_ns = self._last_ns = 0
        self._kinds: set[str] = set()
        self._cpu_ns = self._in_processes = 0  # of calls in processes; how many there were
        self._stalls = self._stalled_ns = 0

    def runs_as(self, kind: str) -> None:
        """Where it runs: a tool of that name does so."""
        with self._lock:
            self._kinds.add(kind)

    def add_stall(self, lasted_ns: int) -> None:
        """It has blocked the event loop."""
        with self._lock:
            self._stalls += 1
            self._stalled_ns += lasted_ns

    def add(self, batch: Batch) -> None:
        """Take ended calls."""
        with self._lock:
            self._ended.update(batch.statuses)
            self._timeouts += batch.statuses["timed_out"]
            self._run.add(batch.run_ns)
            self._wait.add(batch.wait_ns, batch.unwaited)
            for call in batch.waited:
                for kind in WAITS:
                    self._waits_ns[kind] += getattr(call, f"wait_{kind}_ns")
            self._abandoned += batch.abandoned
            self._cpu_ns += sum(batch.cpu_ns)
            self._in_processes += len(batch.cpu_ns)
            self._span(batch.first_ns, batch.last_ns)
            for name in batch.errors:
                self._count_error(name)

    def add_block(self, status: str, began_ns: int, ended_ns: int, error: str | None) -> None:
        """Take the end of a tracked block."""
        with self._lock:
            self._ended[status] += 1
            if status != "cancelled":
                self._run.add([ended_ns - began_ns])
            self._span(began_ns, ended_ns)
            if error is not None:
                self._count_error(error)

    def add_retry(self, *, timed_out: bool) -> None:
        """An attempt was followed by another."""
        with self._lock:
            self._retries += 1
            self._timeouts += timed_out

    def _span(self, first_ns: int, last_ns: int) -> None:
        self._first_ns = min(self._first_ns or first_ns, first_ns)
        self._last_ns = max(self._last_ns, last_ns)

    def _count_error(self, name: str) -> None:
        known = name in self._errors or len(self._errors) < ERROR_TYPES_KEPT
        self._errors[name if known else OTHERS] += 1

    def ended(self, *statuses: str) -> int:
        """How many calls have ended so; however, where nothing is said."""
        with self._lock:
            return sum(self._ended[status] for status in statuses or STATUSES)

    def figures(self) -> CallFigures:
        """What it adds up to."""
        with self._lock:
            ended = {status: self._ended[status] for status in STATUSES}
            tried = sum(ended[status] for status in ("succeeded", "failed", "timed_out", "rejected"))
            calls = sum(ended.values())
            span_ns = self._last_ns - self._first_ns
            kind = next(iter(self._kinds)) if len(self._kinds) == 1 else None
            return CallFigures(
                calls=calls,
                success_rate=ended["succeeded"] / tried if tried else None,
                per_s=calls * 1e9 / span_ns if span_ns else 0.0,
                run_s=self._run.distribution(),
                wait_s=self._wait.distribution(),
                waits={kind: waited / 1e9 for kind, waited in self._waits_ns.items() if waited},
                running=self.running.now,
                peak=self.running.peak,
                retries=self._retries,
                timeouts=self._timeouts,
                abandoned=self._abandoned,
                errors=dict(self._errors.most_common()),
                offload=kind,
                cpu_s=self._computing(kind),
                cpus=cpus_of(self.running) if kind == "thread" else None,
                stalls=self._stalls,
                stalled_s=self._stalled_ns / 1e9,
                **ended,
            )

    def _computing(self, kind: str | None) -> Computing | None:
        cpu_ns, runs = 0, 0
        if kind == "thread":
            cpu_ns, runs = self.running.cpu_ns, self.running.measured
        elif kind == "process":
            cpu_ns, runs = self._cpu_ns, self._in_processes
        return Computing(runs, cpu_ns / 1e9, cpu_ns / runs / 1e9) if runs else None


def cpus_of(running: Running) -> float | None:
    """CPUs that were used while any ran; None where none was measured."""
    busy_ns = running.busy_ns
    return running.cpu_ns / busy_ns if busy_ns and running.measured else None


class Batch:
    """What some ended calls have to say, looked up once for all the names that they are counted under."""

    def __init__(self, calls: Sequence[Any]) -> None:
        self.statuses = Counter([call.status for call in calls])
        others = calls
        if len(self.statuses) > 1 or "succeeded" not in self.statuses:
            others = [call for call in calls if call.status != "cancelled"]
        self.run_ns = [call.run_ns for call in others if call.begun_ns]
        self.waited = [call for call in others if call.waited]
        self.wait_ns = [call.wait_ns for call in self.waited]
        self.unwaited = len(others) - len(self.waited)
        self.abandoned = sum([call.abandoned for call in calls])
        self.cpu_ns = [call.cpu_ns for call in others if call.cpu_ns is not None]
        self.first_ns = min([call.created_ns for call in calls])
        self.last_ns = max([call.ended_ns for call in calls])
        self.errors = [type_of(call) for call in calls if call.status in ("failed", "timed_out", "rejected")]


def type_of(call: Any) -> str:
    """The type of the error of a call that did not succeed: that of the tool's own, where there is one."""
    if isinstance(call.error, str):  # it was read from evidence
        return call.error
    cause = getattr(call.error, "__cause__", None) if call.status == "failed" else None
    return type(call.error if cause is None else cause).__name__


class Ledger:
    """All the books of one monitor.

    Args:
        slow_s: Seconds from which a call is slow and is recorded as such; None: no call is, but the slowest are kept.
        keep_slow: How many of the slowest are kept.
    """

    def __init__(self, slow_s: float | None, keep_slow: int) -> None:
        self.tools: dict[str, Stats] = {}
        self.phases: dict[str, Stats] = {}
        self.blocks: dict[str, Stats] = {}
        self.threads = Running()  # of all tools that run in threads
        self._names = Lock()
        self.running = Lock()  # for counting what runs; held for no longer than that, since the loop takes it
        self._slow_ns = None if slow_s is None else int(slow_s * 1e9)
        self._keep_slow = keep_slow
        self._slowest: list[tuple[int, int, SlowCall]] = []
        self._slowest_lock = Lock()
        self._serial = count()

    def __repr__(self) -> str:
        return "<the monitor's ledger>"

    def stats(self, books: dict[str, Stats], name: str) -> Stats:
        """The books of one name."""
        found = books.get(name)
        if found is None:
            with self._names:
                if len(books) >= NAMES_KEPT:
                    name = OTHERS
                found = books.setdefault(name, Stats())
        return found

    def places(self, tool: str, pipeline: str | None, phase: str | None) -> list[Stats]:
        """Where calls of a tool are counted: by the tool, and by the phase if they have one."""
        found = [self.stats(self.tools, tool)]
        if phase is not None:
            found.append(self.stats(self.phases, f"{pipeline}/{phase}"))
        return found

    def counted(
        self, function: Callable[..., Any], kind: str, tool: str, pipeline: str | None, phase: str | None
    ) -> Callable[..., Any]:
        """A tool's function that is counted while it runs: on the loop, or in a thread, which may have a process.

        What it computes is measured in threads: a process tells it, and on the loop it is not to be had for little.
        """
        places = self.places(tool, pipeline, phase)
        for stats in places:
            stats.runs_as(kind)
        running = [stats.running for stats in places]
        lock = self.running

        async def on_loop(**inputs: Any) -> Any:
            one_more(lock, running)
            try:
                return await function(**inputs)
            finally:
                one_less(lock, running)

        def in_thread(**inputs: Any) -> Any:
            one_more(lock, running)
            began_ns = thread_time_ns()
            try:
                return function(**inputs)
            finally:
                one_less(lock, running, thread_time_ns() - began_ns)

        def plainly(**inputs: Any) -> Any:
            one_more(lock, running)
            try:
                return function(**inputs)
            finally:
                one_less(lock, running)

        if kind == "thread":
            running.append(self.threads)
        return functools.wraps(function)({"async": on_loop, "thread": in_thread}.get(kind, plainly))

    # --- ended calls

    def take(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        """Take ended calls and events; gives the events ``call.slow``. See `Receiver`."""
        by_place: dict[Any, list[Any]] = {}
        for entry in entries:
            if entry.__class__ is not dict:
                try:
                    by_place[entry.bound].append(entry)
                except KeyError:
                    by_place[entry.bound] = [entry]
            elif entry["event"] == "call.retried":
                timed_out = entry.get("error", {}).get("type") == "CallTimeout"
                for stats in self.places(entry["tool"], entry.get("pipeline"), entry.get("phase")):
                    stats.add_retry(timed_out=timed_out)
        slow: list[dict[str, Any]] = []
        for bound, calls in by_place.items():
            batch = Batch(calls)
            for stats in self.places(bound.name, bound.pipeline, bound.phase):
                stats.add(batch)
            if batch.run_ns and max(batch.run_ns) >= self._slow_from():
                slow += self._note_slow(calls)
        return slow

    def _slow_from(self) -> int:
        """Nanoseconds from which a call is worth a look."""
        if self._slow_ns is not None:
            return self._slow_ns
        return self._slowest[0][0] if len(self._slowest) >= self._keep_slow else 0

    def _note_slow(self, calls: Sequence[Any]) -> list[dict[str, Any]]:
        slow = []
        with self._slowest_lock:
            for call in calls:
                if call.run_ns < self._slow_from() or not call.begun_ns:
                    continue
                self._keep(call)
                if self._slow_ns is not None:
                    fields = call_fields(call, "call.slow", None)
                    fields.update(status=call.status, run_us=call.run_ns // 1000, at_ns=call.ended_ns)
                    slow.append(fields)
        return slow

    def _keep(self, call: Any) -> None:
        kept = self._slowest
        if len(kept) >= self._keep_slow and call.run_ns <= kept[0][0]:
            return
        placed = call.placed
        known = SlowCall(
            call.bound.name,
            call.id,
            placed.bound.pipeline,
            placed.bound.phase,
            placed.item,
            call.status,
            call.run_ns / 1e9,
            call.wait_ns / 1e9,
        )
        place = heappush if len(kept) < self._keep_slow else heapreplace
        place(kept, (call.run_ns, next(self._serial), known))

    def slowest(self) -> tuple[SlowCall, ...]:
        """The slowest calls, the slowest first."""
        with self._slowest_lock:
            return tuple(known for _, _, known in sorted(self._slowest, reverse=True))
