"""What a report is about, one session or one run in it, as it is read: hands calls and events to their books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from kgas_async._advice import Advice, advise
from kgas_async._derivation import cut
from kgas_async._figures import CallFigures, Computing
from kgas_async._metrics import Thinned
from kgas_async._reading import ENDS, unix_us
from kgas_async._verify import EvidenceReport

from ._report_figures import (
    BAD,
    Figures,
    OpenCall,
    PathFigures,
    PathPiece,
    PathStep,
    Row,
    RunFigures,
    Sample,
    SessionFigures,
)
from ._report_kept import Failures, Moments, Slowest, Stalls
from ._report_path import NOWHERE, STEPS, CriticalPath, Ended, Step
from ._report_rows import RowBook
from ._report_series import BINS, Axis

__all__ = ["Scope", "Session"]

ROWS: Final = 200
RUNS: Final = 100  # of a session that are listed
OPEN_SHOWN: Final = 50
SAMPLES: Final = 512
OTHERS: Final = "(others)"
NOTHING: Final[Mapping[str, int]] = {}
OF_SESSIONS: Final = frozenset(("session.started", "session.ended", "run.started", "run.ended"))
OF_CALLS: Final = frozenset(("call.retried", "call.hedged", "call.fell_back", "thread.abandoned"))
MOMENTS: Final = frozenset(("breaker", "limit", "service", "pool", "scope", "thread", "cache", "evidence", "journal"))
ALSO_MOMENTS: Final = frozenset(("session.signal", "phase.incomplete"))


@dataclass(slots=True)
class Session:
    """A session as far as it was read."""

    session_id: str
    started: str
    ended: str | None = None
    status: str | None = None
    runs: dict[str, RunFigures] = field(default_factory=dict)
    allowed: dict[str, int] = field(default_factory=dict)

    def take(self, record: Mapping[str, Any]) -> None:
        """What it says of the session, or of one of its runs."""
        event = record["event"]
        if event == "session.started":
            self.allowed = _numbers(record, "cpus", "threads", "processes")
        elif event == "session.ended":
            self.ended, self.status = record["time"], str(record.get("status", ""))
        elif event == "run.started":
            if len(self.runs) >= RUNS:
                del self.runs[next(iter(self.runs))]
            run_id = record["run_id"]
            self.runs[run_id] = RunFigures(run_id, record["pipeline"], self.session_id, record["time"])
        elif event == "run.ended" and record["run_id"] in self.runs:
            counts = {name: record[name] for name in ("items", "failed", "skipped")}
            counts |= _numbers(record, "cancelled")
            self.runs[record["run_id"]] = replace(self.runs[record["run_id"]], ended=record["time"], **counts)

    def figures(self) -> SessionFigures:
        """As it is shown."""
        return SessionFigures(self.session_id, self.started, self.ended, self.status, tuple(self.runs.values()))


class _Planned(NamedTuple):
    """What is known of a phase's calls before the first one."""

    row: RowBook
    depth: int | None  # of expansions; None: once per run


class _Open(NamedTuple):
    """A call that has begun and not ended."""

    where: str
    attempt: int
    since_us: int
    record: Mapping[str, Any]


class Scope:
    """What a report is about: one session, or one run in it."""

    def __init__(self, session: Session, run_id: str | None) -> None:
        self.session = session
        self.run_id = run_id
        self.is_chosen = False  # the run that was asked for is in it
        self._begin: str | None = None
        self._begin_us = self._end_us = 0
        self._is_over = False
        self._events: Counter[str] = Counter()
        self._axis = Axis()
        self._rows: dict[tuple[str | None, str, bool], RowBook] = {}
        self._runs: dict[str, str | None] = {}  # that are not over: in which call they began
        self._planned: dict[tuple[str, str], _Planned] = {}
        self._open: dict[str, _Open] = {}
        self._fell_back: dict[str, int] = {}  # open calls: when their own attempts were over
        self._left: dict[str, list[Mapping[str, Any]]] = {}  # threads that were abandoned, by calls not yet placed
        self._path = CriticalPath()
        self._slowest = Slowest()
        self._failures = Failures()
        self._moments = Moments()
        self._stalls = Stalls()
        self._samples: Thinned[Sample] = Thinned(SAMPLES)
        self._advice: list[Advice] = []
        self._allowed: dict[str, int] = {}
        self._stalled_row: RowBook | None = None  # of the stall that goes on

    def take(self, record: Mapping[str, Any]) -> None:
        """Take a record of this session."""
        event = record["event"]
        if self.run_id is not None and not self._is_of_run(record, event):
            if event in OF_SESSIONS:
                self.session.take(record)
            return
        at_us = unix_us(record["time"])
        if self._begin is None:
            self._first(record, at_us)
        if at_us > self._end_us:
            self._end_us = at_us
        self._events[event] += 1
        if event in ENDS:
            self._call(record, max(at_us - self._begin_us, 0))
        elif event == "call.started":
            self._open[record["call_id"]] = _Open(_name(record), record.get("attempt", 0), at_us, record)
        else:
            self._other(event, record, max(at_us - self._begin_us, 0))

    def _first(self, record: Mapping[str, Any], at_us: int) -> None:
        """What it is about begins here, if this is no call that was put on record before what came before it."""
        is_own = self.run_id is None or record.get("run_id") == self.run_id
        if is_own and record["event"] != "call.started":
            self._begin, self._begin_us = record["time"], at_us

    def _is_of_run(self, record: Mapping[str, Any], event: str) -> bool:
        """Whether it belongs to the run that was asked for, or to the session while that goes on."""
        if record.get("run_id") == self.run_id:
            self.is_chosen = True
            self._is_over = self._is_over or event == "run.ended"
            return True
        return self.is_chosen and not self._is_over and "run_id" not in record and not event.startswith("call.")

    # --- calls

    def _call(self, record: Mapping[str, Any], end_us: int) -> None:
        call_id, status = record["call_id"], record["status"]
        opened = self._open.pop(call_id, None)
        # In fallbacks, or waiting for another call's result, it neither runs nor waits by itself.
        alone_until_us = self._fell_back.pop(call_id, end_us) if self._fell_back else end_us
        if status == "reused" and opened is not None:
            alone_until_us = opened.since_us - self._begin_us
        axis = self._axis
        if end_us >= axis.width_us * BINS:
            axis.reach(end_us)
        row, root, of_many = self._place(record)
        if self._left:
            for left in self._left.pop(call_id, ()):
                row.counted[left["event"]] += 1
        if status in BAD:
            self._failures.add(row.number, row.where, record, end_us)
        if "batch_id" in record:
            row.add_element(status, end_us)
            return
        run_us, waits = record["run_us"], record["wait_us"]
        waited_us = sum(waits.values())
        if not waited_us:
            waits = NOTHING
        if run_us + waited_us > end_us:  # it began before what is on record
            run_us, waits, waited_us = min(run_us, end_us), NOTHING, 0
        row.add(record, end_us, run_us, waits, waited_us)
        if run_us >= self._slowest.from_us:
            self._slowest.add(row.number, record, end_us, run_us, waited_us)
        if not row.nested:
            run_us = min(run_us + max(end_us - alone_until_us, 0), end_us - waited_us)
            self._path.add(Ended(row.number, record.get("item"), root, end_us, run_us, waits, row.in_thread, of_many))

    def _place(self, record: Mapping[str, Any]) -> tuple[RowBook, str | None, bool]:
        """The row of a call, the key of the source item that it belongs to, and whether it is of several."""
        parent, run_id = record.get("parent_id"), record.get("run_id")
        phase: Any = record.get("phase")
        if run_id is not None:
            outer = self._runs.get(run_id)
            if parent == outer:  # a phase's own call
                planned = self._planned.get((run_id, phase)) or self._unplanned(run_id, phase, record)
                item = record.get("item")
                root = cut(item, planned.depth) if planned.depth and item is not None else item
                return planned.row, None if planned.depth is None else root, item is None
        if parent is None:
            return self._row(None, record["tool"], record["tool"], nested=False), None, False
        # Nested calls stand apart by the phase that they are in.
        within = None if phase is None else f"{record.get('pipeline')}/{phase}"
        return self._row(within, record["tool"], record["tool"], nested=True), None, False

    def _row(self, place: str | None, name: str, tool: str, *, nested: bool, is_phase: bool = False) -> RowBook:
        """The row by that name, in a pipeline, or in a phase if it is of nested calls of a tool."""
        row = self._rows.get((place, name, nested))
        if row is None:
            if len(self._rows) >= ROWS:
                place, name, tool, is_phase = None, OTHERS, OTHERS, False
                row = self._rows.get((place, name, nested))
            if row is None:
                row = RowBook(len(self._rows), name, tool, place if is_phase else None, nested, self._axis)
                row.within = None if is_phase else place
                row.slots = self.session.allowed.get("threads")
                self._rows[place, name, nested] = row
        return row

    def _unplanned(self, run_id: str, phase: str, record: Mapping[str, Any]) -> _Planned:
        """A phase of a run whose begin is not on record, or is without its plan."""
        nested = record.get("parent_id") is not None and self.run_id != run_id
        row = self._row(record.get("pipeline"), phase, record["tool"], nested=nested, is_phase=True)
        planned = self._planned[run_id, phase] = _Planned(row, 0)
        return planned

    # --- events

    def _other(self, event: str, record: Mapping[str, Any], at_us: int) -> None:
        if event in OF_SESSIONS:
            self.session.take(record)
        if event == "run.started":
            self._run_started(record)
        elif event == "run.ended":
            self._runs.pop(record["run_id"], None)
            for key in [key for key in self._planned if key[0] == record["run_id"]]:
                del self._planned[key]
        elif event == "resource.sampled":
            cpu = record["cpu_us"] / max(record["span_us"], 1)
            threads = _numbers(record, "threads").get("threads", 0)
            self._samples.add(Sample(at_us / 1e6, cpu, record["rss_bytes"], threads))
        elif event == "item.failed":
            self._failures.add(None, f"{record['pipeline']}, outside of calls", record, at_us)
        elif event in ("loop.stalled", "loop.resumed"):
            self._stall(event, record, at_us)
        elif event == "tool.advised":
            given = [str(record.get(name, "")) for name in ("tool", "offload", "instead", "why")]
            self._advice.append(Advice(*given))
        elif event == "thread.abandoned" and "call_id" in record and "run_id" not in record:
            self._left.setdefault(record["call_id"], []).append(record)  # where it belongs, its call's end says
        elif event in OF_CALLS and isinstance(record.get("tool"), str):
            self._place(record)[0].counted[event] += 1
            if event == "call.fell_back":
                self._fell_back.setdefault(record["call_id"], at_us)
        if event.partition(".")[0] in MOMENTS or event in ALSO_MOMENTS:
            self._moments.add(record, at_us)

    def _run_started(self, record: Mapping[str, Any]) -> None:
        run_id, parent = record["run_id"], record.get("parent_id")
        self._runs[run_id] = None if run_id == self.run_id and parent is None else parent
        self._allowed = _numbers(record, "in_flight") if parent is None or run_id == self.run_id else self._allowed
        plan = record.get("plan")
        for one in plan if isinstance(plan, list) else ():
            try:
                phase, level = str(one["phase"]), str(one["level"])
                nested = parent is not None and run_id != self.run_id
                row = self._row(record["pipeline"], phase, str(one["tool"]), nested=nested, is_phase=True)
            except (LookupError, TypeError):
                continue  # a plan that was damaged: its phases are found by their calls
            row.offload = one.get("offload") if isinstance(one.get("offload"), str) else None
            row.in_thread = row.in_thread or row.offload in ("thread", "process")
            row.limit = _numbers(one, "concurrency").get("concurrency")
            row.slots = self.session.allowed.get("processes" if row.offload == "process" else "threads")
            self._planned[run_id, phase] = _Planned(row, None if level == "run" else level.count("/"))

    def _stall(self, event: str, record: Mapping[str, Any], at_us: int) -> None:
        tool = record.get("tool")
        if event == "loop.stalled":
            self._stalls.begin(record, at_us)
            place = (record.get("pipeline"), record.get("phase"))
            rows = [row for row in self._rows.values() if row.tool == tool]
            exact = [row for row in rows if (row.pipeline, row.name) == place]
            self._stalled_row = next(iter(exact or rows), None)
            if self._stalled_row is not None:
                self._stalled_row.stalls += 1
            return
        lasted_us = self._stalls.end(record)
        if self._stalled_row is not None:
            self._stalled_row.stalled_us += lasted_us
            self._stalled_row = None

    def _place_left(self) -> None:
        """Abandoned threads of calls whose ends are not on record."""
        for call_id, left in self._left.items():
            record = self._open[call_id].record if call_id in self._open else left[0]
            if isinstance(record.get("tool"), str):
                self._place(record)[0].counted["thread.abandoned"] += len(left)
        self._left.clear()

    # --- the result

    def figures(self, count: int, source: str, unreadable: int, verified: EvidenceReport | None) -> Figures:
        """What it adds up to."""
        span_us = 0 if self._begin is None else max(self._end_us - self._begin_us, 0)
        self._axis.reach(span_us)
        session = self.session.figures()
        runs = [run for run in session.runs if self.run_id in (None, run.run_id)]
        run = runs[0] if len(runs) == 1 else None
        self._place_left()
        rows = tuple(book.row(span_us) for book in self._rows.values())
        groups, failures = self._failures.found()
        stalls = self._stalls.found()
        open_calls = sorted(self._open.items(), key=lambda one: one[1].since_us)
        advice = tuple(self._advice) or _advice_of(rows)
        ended = session.ended if self.run_id is None else None if run is None else run.ended
        return Figures(
            source=source,
            scope="session" if self.run_id is None else "run",
            session=session,
            run=run,
            is_complete=ended is not None and all(one.ended is not None for one in runs),
            begin=self._begin or session.started,
            span_s=span_us / 1e6,
            bin_s=self._axis.width_us / 1e6,
            bins=self._axis.used(span_us),
            records=count,
            unreadable=unreadable,
            verified=verified,
            rows=rows,
            events=dict(self._events),
            path=self._path_figures(span_us),
            slowest=self._slowest.found(),
            groups=groups,
            failures=failures,
            failures_in_all=self._failures.count,
            open=tuple(
                OpenCall(
                    one.where, one.record.get("item"), call_id, one.attempt, max(self._end_us - one.since_us, 0) / 1e6
                )
                for call_id, one in open_calls[:OPEN_SHOWN]
            ),
            open_in_all=len(open_calls),
            moments=self._moments.found(),
            stalls=stalls,
            stalls_in_all=self._stalls.count,
            stalled_s=self._stalls.total_us / 1e6,
            samples=self._samples.entries(),
            allowed=self.session.allowed | self._allowed,
            advice=advice,
            advised_by_monitor=bool(self._advice),
        )

    def _path_figures(self, span_us: int) -> PathFigures:
        sums, step = self._path.ended(span_us)
        pieces = [
            PathPiece(None if row == NOWHERE else row, kind, length / 1e6)
            for (row, kind), length in sorted(sums.items(), key=lambda one: -one[1])
            if length
        ]
        steps = [
            PathStep(one.row, one.item, one.from_us / 1e6, one.run_us / 1e6, one.end_us / 1e6) for one in _back(step)
        ]
        return PathFigures(tuple(pieces), tuple(reversed(steps)), 0 if step is None else step.number)


def _back(step: Step | None) -> Iterator[Step]:
    for _ in range(STEPS):
        if step is None:
            return
        yield step
        step = step.before


def _numbers(record: Mapping[str, Any], *names: str) -> dict[str, int]:
    """Those of these fields that are there, and are numbers above 0."""
    return {name: record[name] for name in names if isinstance(record.get(name), int) and record[name] > 0}


def _name(call: Mapping[str, Any]) -> str:
    phase = call.get("phase")
    return call["tool"] if phase is None or "parent_id" in call else f"{call.get('pipeline')}/{phase}"


def _advice_of(rows: tuple[Row, ...]) -> tuple[Advice, ...]:
    """What the records alone say. Of threads they do not have what was computed, so nothing is said of those."""
    by_tool: dict[str, list[Row]] = {}
    for row in rows:
        by_tool.setdefault(row.tool, []).append(row)
    tools = {}
    for tool, (row, *more) in by_tool.items():
        if not more and row.offload is not None:
            cpu = None if row.cpu_s is None else Computing(row.cpu_runs, row.cpu_s, row.cpu_s / row.cpu_runs)
            tools[tool] = CallFigures(
                run_s=row.run_s, offload=row.offload, cpu_s=cpu, stalls=row.stalls, stalled_s=row.stalled_s
            )
    return advise(tools, None)
