"""The books of a report: what the calls of one phase, or of one tool outside of phases, add up to in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from kgas_async._metrics import Durations

from ._report_figures import BAD, Row
from ._report_series import Axis, Lanes, Levels

__all__ = ["RowBook"]

AT_ONCE: Final = 4096  # durations that go into a sketch together
LANES_DRAWN: Final = 16
FULL: Final = 0.9  # of the most that ever ran at once


class RowBook:
    """One row's book.

    Args:
        number: Of the row.
        name, tool, pipeline, nested: As of `Row`.
        axis: The bins of time.
    """

    def __init__(self, number: int, name: str, tool: str, pipeline: str | None, nested: bool, axis: Axis) -> None:
        self.number = number
        self.name = name
        self.tool = tool
        self.pipeline = pipeline
        self.nested = nested
        self.within: str | None = None
        self.offload: str | None = None
        self.limit: int | None = None
        self.slots: int | None = None  # threads or processes of the session
        self.in_thread = False
        self.calls: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()  # retries and the like, by event
        self.stalls = self.stalled_us = 0
        self.cpu_us = self.in_processes = 0
        self.run_us = 0
        self.waits_us: dict[str, int] = {}
        self._run = Durations()
        self._wait = Durations()
        self._run_ns: list[int] = []
        self._wait_ns: list[int] = []
        self._unwaited = 0
        self._axis = axis
        self._running = axis.levels()
        self._waiting = axis.levels()
        self._ended = axis.counts()
        self._failed = axis.counts()
        self._lanes = Lanes()
        self._drawn: list[Levels] = []

    @property
    def where(self) -> str:
        """What it is called where rows of several pipelines stand together."""
        if self.pipeline is not None:
            return f"{self.pipeline}/{self.name}"
        return self.name if self.within is None else f"{self.name} in {self.within}"

    def add_element(self, status: str, end_us: int) -> None:
        """A call of an item has ended that was run in a batch: its time is in the batch's."""
        self.elements[status] += 1
        if status in BAD:
            self._failed.add(end_us)

    def add(
        self, record: Mapping[str, Any], end_us: int, run_us: int, waits: Mapping[str, int], waited_us: int
    ) -> None:
        """A call has ended; the axis reaches so far."""
        status = record["status"]
        self.calls[status] += 1
        self._ended.add(end_us)
        if status in BAD:
            self._failed.add(end_us)
        if status != "cancelled":
            if record["attempt"]:
                self._run_ns.append(run_us * 1000)
                if len(self._run_ns) >= AT_ONCE:
                    self._empty()
            if waited_us:
                self._wait_ns.append(waited_us * 1000)
            else:
                self._unwaited += 1
        begin_us = end_us - run_us
        if waited_us:
            known = self.waits_us
            for kind, length in waits.items():
                if length:
                    known[kind] = known.get(kind, 0) + length
            self.in_thread = self.in_thread or waits.get("thread", 0) > 0
            self._waiting.add(begin_us - waited_us, begin_us)
        if run_us:
            self.run_us += run_us
            self._running.add(begin_us, end_us)
            lane = self._lanes.take(begin_us, end_us, self.at_most)
            if lane < LANES_DRAWN:
                if lane == len(self._drawn):
                    self._drawn.append(self._axis.levels())
                self._drawn[lane].add(begin_us, end_us)
        cpu_us = record.get("cpu_us")
        if isinstance(cpu_us, int):
            self.cpu_us += cpu_us
            self.in_processes += 1

    @property
    def at_most(self) -> int | None:
        """How many can run at once, as far as that is known."""
        slots = self.slots if self.in_thread else None
        return self.limit if slots is None else slots if self.limit is None else min(self.limit, slots)

    def _empty(self) -> None:
        self._run.add(self._run_ns)
        self._wait.add(self._wait_ns, self._unwaited)
        self._run_ns, self._wait_ns, self._unwaited = [], [], 0

    def row(self, span_us: int) -> Row:
        """What it adds up to."""
        self._empty()
        used = self._axis.used(span_us)
        running = self._running.values(used, span_us)
        waiting = self._waiting.values(used, span_us)
        peak = self._lanes.count if self.at_most is None else min(self._lanes.count, self.at_most)
        full = sum(1 for ran, waited in zip(running, waiting, strict=True) if waited > 0.01 and ran >= FULL * peak)
        return Row(
            name=self.name,
            tool=self.tool,
            pipeline=self.pipeline,
            nested=self.nested,
            within=self.within,
            offload=self.offload,
            calls=dict(self.calls),
            elements=dict(self.elements),
            run_s=self._run.distribution(),
            wait_s=self._wait.distribution(),
            run_total_s=self.run_us / 1e6,
            waits_s={kind: length / 1e6 for kind, length in sorted(self.waits_us.items(), key=lambda one: -one[1])},
            peak=peak,
            limit=self.limit,
            retries=self.counted["call.retried"],
            hedges=self.counted["call.hedged"],
            fallbacks=self.counted["call.fell_back"],
            abandoned=self.counted["thread.abandoned"],
            stalls=self.stalls,
            stalled_s=self.stalled_us / 1e6,
            cpu_s=self.cpu_us / 1e6 if self.in_processes else None,
            cpu_runs=self.in_processes,
            running=running,
            waiting=waiting,
            ended=self._ended.values(used),
            failed=self._failed.values(used),
            lanes=tuple(one.values(used, span_us) for one in self._drawn) if peak <= LANES_DRAWN else (),
            full_s=full * self._axis.width_us / 1e6,
        )
