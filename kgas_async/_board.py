"""`Board`: how a session stands, folded from what goes into its evidence; at work and, from a file, afterwards.

A monitor's books (`_ledger`) that also follow events. Calls and records alike are taken in batches; nothing here is
asked of the session itself, and nothing grows with the number of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from threading import RLock
from typing import Any, Final, NamedTuple

from ._board_run import RunSeen
from ._figures import CallFigures
from ._ledger import Ledger, Stats, type_of
from ._picture import (
    BreakerSeen,
    FailureSeen,
    InFlight,
    ItemsSeen,
    LeftThread,
    LimitSeen,
    PhaseSeen,
    Picture,
    ProcessSeen,
    StallsSeen,
    State,
)
from ._records import call_fields
from ._report import Progress

__all__ = ["Board", "OpenCall", "Present"]

KINDS_KEPT: Final = 50  # of failures, of limits, of breakers, of services
PLACES_KEPT: Final = 1000
FAILED: Final = ("failed", "timed_out", "rejected")
_NS: Final = 1e9


class OpenCall(NamedTuple):
    """A call that has not ended."""

    tool: str
    pipeline: str | None
    phase: str | None
    since_ns: int


class Present(NamedTuple):
    """What is known only while a session is at work; what there is of it is shown in the place of what is on record."""

    open_calls: Sequence[OpenCall]
    progress: Progress | None
    limits: Sequence[LimitSeen]
    queued: int


class Board(Ledger):
    """See the module. Events are mappings of fields, with ``event`` and ``at_ns``; times are of one clock."""

    def __init__(self) -> None:
        super().__init__(None, 1)
        self._board = RLock()
        self.changed: dict[str, Mapping[str, Any]] = {}  # by phase: what gave a journal's values has changed since
        self.bounds: dict[Any, None] = {}  # what calls have run as: their limits are looked at
        self.session_id: str | None = None
        self.now_ns = self.began_ns = 0
        self.ended = False
        self._signal: str | None = None
        self._run: RunSeen | None = None
        self._open: dict[str, OpenCall] = {}
        self._batches: dict[str, int] = {}  # calls that ran others together, by phase
        self._retries = 0
        self._breakers: dict[str, tuple[str, str, int]] = {}
        self._limits: dict[str, LimitSeen] = {}
        self._stalls = StallsSeen()
        self._left: dict[str, tuple[str, str | None, int]] = {}
        self._failures: dict[tuple[str, str], tuple[int, str, str | None, int]] = {}
        self._services: dict[str, str] = {}
        self._process: ProcessSeen | None = None

    # --- taking

    def take(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        """Take ended calls and events. See `Receiver`."""
        with self._board:
            own: list[dict[str, Any]] = []  # where another run begins, what comes before it is counted before it
            begin = 0
            for number, entry in enumerate(entries):
                if entry.__class__ is dict and entry["event"] == "run.started":
                    own += self._take(entries[begin:number]) + self._take([entry])
                    begin = number + 1
            return own + self._take(entries[begin:])

    def _take(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        own = super().take(entries)
        calls = []
        for entry in entries:
            if entry.__class__ is dict:
                self.note(entry)
            else:
                calls.append(entry)
        if calls:
            self._look_at(calls)
        return own

    def _look_at(self, calls: Sequence[Any]) -> None:
        self.now_ns = max(self.now_ns, calls[-1].ended_ns)
        if len(self.bounds) > PLACES_KEPT:
            self.bounds.clear()  # of a session with very many runs; those at work come again
        self.bounds.update(dict.fromkeys({call.bound for call in calls}))
        if self._open:
            for call in calls:
                self._open.pop(call.id, None)
        for call in calls:
            if call.batch_size:
                place = f"{call.bound.pipeline}/{call.bound.phase}"
                self._batches[place] = self._batches.get(place, 0) + 1
        self._look_at_failures([call for call in calls if call.status in FAILED])
        if self._run is not None:
            self._run.keep_pace(self)

    def _look_at_failures(self, calls: Sequence[Any]) -> None:
        latest: dict[tuple[Any, str], tuple[int, Any]] = {}  # only of the latest of a kind it is asked what it says
        for call in calls:
            kind = call.bound, type_of(call)
            latest[kind] = latest.get(kind, (0, None))[0] + 1, call
        for count, call in latest.values():
            placed = call.placed
            self._failed(call.bound.name, placed.bound.phase, placed.item, _error_of(call), call.ended_ns, count)

    def note(self, fields: Mapping[str, Any]) -> None:
        """Take an event; one that was damaged in its file, and lacks what it should have, tells nothing."""
        at_ns = fields["at_ns"]
        self.now_ns = max(self.now_ns, at_ns)
        handler = _HANDLERS.get(fields["event"].partition(".")[0])
        if handler is not None:
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                handler(self, fields, at_ns)

    def _failed(
        self, tool: str, phase: str | None, item: str | None, error: Mapping[str, Any], at_ns: int, more: int = 1
    ) -> None:  # fmt: skip
        where = tool if phase is None or phase == tool else f"{phase} ({tool})"
        kind = (where, str(error.get("type", "error")))
        count = self._failures.pop(kind, (0,))[0] + more - 1
        if len(self._failures) >= KINDS_KEPT:
            del self._failures[next(iter(self._failures))]
        self._failures[kind] = count + 1, _message(error), item, at_ns

    def _session(self, fields: Mapping[str, Any], at_ns: int) -> None:
        event = fields["event"]
        if event == "session.started":
            self.began_ns = at_ns
            self.session_id = fields.get("session_id", self.session_id)
        elif event == "session.signal":
            self._signal = str(fields["signal"])
        else:
            self.ended = True

    def _run_event(self, fields: Mapping[str, Any], at_ns: int) -> None:
        if fields["event"] == "run.started":
            if self._run is None or self._run.ended is not None or fields.get("parent_id") is None:
                if self._run is not None:  # what is counted by phase is of this run, also where it is the second one
                    for one in fields.get("plan") or ():
                        place = f"{fields['pipeline']}/{one['phase']}"
                        self.phases.pop(place, None)
                        self._batches.pop(place, None)
                self._run = RunSeen(fields, at_ns, self._clock)
        elif self._run is not None and self._run.run_id == fields["run_id"]:
            self._run.ended = fields
            self._run.ended_ns = at_ns

    def _clock(self) -> float:
        return self.now_ns / _NS

    def _item(self, fields: Mapping[str, Any], at_ns: int) -> None:
        if self._run is not None:
            self._run.note_fault(fields)
        self._failed("item", fields.get("phase"), fields.get("item"), fields.get("error") or {}, at_ns)

    def _call(self, fields: Mapping[str, Any], at_ns: int) -> None:
        if fields["event"] == "call.retried":
            self._retries += 1
        elif fields["event"] == "call.started":
            self._open[fields["call_id"]] = OpenCall(
                fields["tool"], fields.get("pipeline"), fields.get("phase"), at_ns
            )  # fmt: skip

    def _breaker(self, fields: Mapping[str, Any], at_ns: int) -> None:
        name = str(fields["breaker"])
        if len(self._breakers) < KINDS_KEPT or name in self._breakers:
            state = fields["event"].partition(".")[2].replace("opened", "open")
            self._breakers[name] = state, str(fields.get("why", "")), at_ns

    def _limit(self, fields: Mapping[str, Any], at_ns: int) -> None:
        name = str(fields.get("tool") or fields["limit"])
        if len(self._limits) >= KINDS_KEPT and name not in self._limits:
            return
        if fields["event"] == "limit.changed":
            self._limits[name] = LimitSeen(
                name, "concurrency", None, _number(fields["total"]), None, str(fields.get("why", ""))
            )
        else:
            note = "paused" if fields["event"] == "limit.paused" else ""
            used, total = _number(fields["used_bytes"]), _number(fields["max_bytes"])
            self._limits[name] = LimitSeen(name, "memory", used, total, None, note)

    def _loop(self, fields: Mapping[str, Any], at_ns: int) -> None:
        seen = self._stalls
        longest_s = max(seen.longest_s, _number(fields["stalled_us"]) / 1e6)
        if fields["event"] == "loop.stalled":
            tool = None if fields.get("tool") is None else str(fields["tool"])
            self._stalls = StallsSeen(seen.count + 1, longest_s, tool, True)
        else:
            self._stalls = StallsSeen(seen.count, longest_s, seen.latest, False)

    def _thread(self, fields: Mapping[str, Any], at_ns: int) -> None:
        whose = str(fields.get("call_id") or fields.get("service") or "?")
        if fields["event"] == "thread.abandoned":
            tool = fields.get("tool") or f"service {fields.get('service')}"
            self._left[whose] = str(tool), fields.get("call_id"), at_ns
        else:
            self._left.pop(whose, None)

    def _service(self, fields: Mapping[str, Any], at_ns: int) -> None:
        name, state = str(fields["service"]), fields["event"].partition(".")[2]
        if state == "health":
            state = str(fields["status"])
        if state in ("failed", "crashed"):
            self._failed(f"service {name}", None, None, fields.get("error") or fields, at_ns)
        self._services.pop(name, None)
        if state not in ("started", "stopped", "healthy") and len(self._services) < KINDS_KEPT:
            self._services[name] = state

    def _evidence(self, fields: Mapping[str, Any], at_ns: int) -> None:
        if fields["event"] == "evidence.failed":
            self._failed("evidence", None, None, fields.get("error") or {}, at_ns)

    def _journal(self, fields: Mapping[str, Any], at_ns: int) -> None:
        if fields["event"] == "journal.code_changed" and len(self.changed) < PLACES_KEPT:
            self.changed[str(fields["phase"])] = fields

    def _resource(self, fields: Mapping[str, Any], at_ns: int) -> None:
        span_us = fields["span_us"]
        cpu = fields["cpu_us"] / span_us if span_us else 0.0
        self._process = ProcessSeen(cpu, fields["rss_bytes"], int(_number(fields.get("threads", 0))))

    # --- showing

    def picture(self, now_ns: int, *, present: Present | None = None, killed: bool = False) -> Picture:
        """How it stands at this time.

        Args:
            present: What a session at work says of itself.
            killed: Whether nobody works on it any more, though it has not ended.
        """
        with self._board:
            return self._picture(now_ns, present, killed)

    def _picture(self, now_ns: int, present: Present | None, killed: bool) -> Picture:
        ended = self.ended
        run = self._run
        if not (ended or killed):
            self.now_ns = max(self.now_ns, now_ns)
        open_calls = list(self._open.values()) if present is None else present.open_calls
        state: State = "ended" if ended else "killed" if killed else "draining" if self._signal else "running"
        began_ns, until_ns = (
            (self.began_ns, self.now_ns) if run is None else (run.began_ns, run.ended_ns or self.now_ns)
        )
        items = ItemsSeen() if run is None else run.items(self, None if present is None else present.progress)
        tools = [stats.figures() for stats in self.tools.values()]
        return Picture(
            state=state,
            session_id=self.session_id,
            run_id=None if run is None else run.run_id,
            pipeline=None if run is None else run.pipeline,
            elapsed_s=max(until_ns - began_ns, 0) / _NS,
            items=items,
            phases=tuple(self._phases(run, open_calls, present is not None)),
            in_flight=_by_tool(open_calls, self.now_ns),
            signal=self._signal,
            limits=tuple(self._limits.values()) if present is None else tuple(present.limits),
            breakers=tuple(
                BreakerSeen(name, state, why, (self.now_ns - at_ns) / _NS)
                for name, (state, why, at_ns) in self._breakers.items()
            ),
            queued=None if present is None else present.queued,
            retries=self._retries,
            stalls=self._stalls,
            abandoned=tuple(
                LeftThread(tool, call_id, (self.now_ns - at_ns) / _NS) for tool, call_id, at_ns in self._left.values()
            ),
            failures=tuple(
                FailureSeen(where, kind, count, message, item, (self.now_ns - at_ns) / _NS)
                for (where, kind), (count, message, item, at_ns) in reversed(self._failures.items())
            ),
            services=tuple(self._services.items()),
            process=self._process,
            calls=sum(one.calls for one in tools),
        )

    def ended_in(self, place: str) -> int:
        """Calls of a phase that have ended, without those that only ran others together."""
        stats = self.phases.get(place)
        return 0 if stats is None else stats.ended() - self._batches.get(place, 0)

    def _phases(self, run: RunSeen | None, open_calls: Sequence[OpenCall], is_live: bool) -> Iterable[PhaseSeen]:
        in_flight: dict[tuple[str | None, str | None], int] = {}
        for call in open_calls:
            place = call.pipeline, call.phase
            in_flight[place] = in_flight.get(place, 0) + 1
        placed: set[str] = set()
        for name, tool, level in () if run is None else run.phases:
            assert run is not None
            placed.add(tool)
            figures = _figures(self.phases.get(f"{run.pipeline}/{name}"))
            done = self.ended_in(f"{run.pipeline}/{name}")
            at_work = in_flight.get((run.pipeline, name), 0)
            yield _seen(name, tool, level, figures, done, at_work, is_live, run.pace_of(self, name, done, level))
        for tool, stats in list(self.tools.items()):
            if tool not in placed:
                figures = stats.figures()
                at_work = sum(call.tool == tool for call in open_calls)
                yield _seen(tool, tool, None, figures, figures.calls, at_work, is_live, None)


_HANDLERS: Final[dict[str, Callable[[Board, Mapping[str, Any], int], None]]] = {
    "session": Board._session, "run": Board._run_event, "item": Board._item, "call": Board._call,
    "breaker": Board._breaker, "limit": Board._limit, "loop": Board._loop, "thread": Board._thread,
    "service": Board._service, "evidence": Board._evidence, "resource": Board._resource, "journal": Board._journal,
}  # fmt: skip


def _seen(
    name: str, tool: str, level: str | None, figures: CallFigures, done: int, at_work: int, is_live: bool,
    pace: Progress | None,
) -> PhaseSeen:  # fmt: skip
    lost = figures.failed + figures.timed_out + figures.rejected
    return PhaseSeen(
        name, tool, level, done, lost, figures.cancelled, figures.skipped, figures.reused,
        total=None if pace is None else pace.total,
        in_flight=at_work,
        running=figures.running if is_live else None,
        rate=figures.per_s or None if pace is None else pace.rate,
        eta_s=None if pace is None else pace.eta_s,
        p50_s=figures.run_s.p50, p95_s=figures.run_s.p95,
        waits=figures.waits,
        run_s=figures.run_s.mean * figures.run_s.count,
        retries=figures.retries,
    )  # fmt: skip


def _figures(stats: Stats | None) -> CallFigures:
    return CallFigures() if stats is None else stats.figures()


def _by_tool(calls: Sequence[OpenCall], now_ns: int) -> tuple[InFlight, ...]:
    found: dict[str, tuple[int, int]] = {}
    for call in calls:
        count, oldest = found.get(call.tool, (0, call.since_ns))
        found[call.tool] = count + 1, min(oldest, call.since_ns)
    seen = [InFlight(tool, count, max(now_ns - oldest, 0) / _NS) for tool, (count, oldest) in found.items()]
    return tuple(sorted(seen, key=lambda one: -one.oldest_s))


def _error_of(call: Any) -> Mapping[str, Any]:
    """As on record: a call of a session, or one that was read again, which has it."""
    found: Mapping[str, Any] | None = getattr(call, "error_fields", None)
    return call_fields(call, "", call.error).get("error", {}) if found is None else found


def _number(value: Any) -> float:
    """What is shown as one.

    Raises:
        TypeError: It is none: its record was damaged.
    """
    if isinstance(value, (int, float)) and isfinite(value):
        return value
    raise TypeError(f"no number: {value!r}")


def _message(error: Mapping[str, Any]) -> str:
    if "message" in error:
        return str(error["message"])
    wrong = [f"{one.get('field')}: {one.get('type')}" for one in error.get("errors", ())]
    return ", ".join(wrong) or str(error.get("reason", ""))
