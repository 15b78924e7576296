"""A run as a picture in time: evidence as a trace that Perfetto and Chrome show.

Each call is a slice, made up of its waits (for a service, concurrency, rate, a thread, a retry), its run, and what else
there was. Calls that overlap stand in different lanes, and a lane is used again as soon as it is free, so that there
are as many lanes as calls were open at once: as many as there were workers. Evidence is read once, in order, and
written as it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from kgas_async._reading import ENDS, Begins, Evidence, duration_us, lacks_of, read, unix_us

__all__ = ["trace_events", "write_trace"]

WAITS: Final = ("service", "concurrency", "rate", "thread")  # in the order of a call
OTHER: Final = "other"  # checks, cleaning up, and waiting for the result of another call
CALLS_FROM: Final = 1000  # lanes of calls are numbered from here, those of runs from 1
MOMENTS: Final = ("breaker.", "limit.", "loop.", "service.", "pool.", "scope.", "thread.", "cache.", "evidence.")


def write_trace(evidence: Evidence, file: IO[str], *, run_id: str | None = None) -> int:
    """Write a trace in the JSON format of Chrome's tracing, which https://ui.perfetto.dev opens.

    Where the evidence is not whole, such as after a crash, ``otherData`` says what it lacks.

    Args:
        evidence: A path of JSON lines, or records such as those of a `MemorySink`.
        file: Where to, opened for text.
        run_id: Only this run's calls; unless given, those of all sessions.

    Returns:
        How many events were written.

    Raises:
        EvidenceError: It cannot be read, or lacks a segment.
    """
    records = read(evidence)
    file.write('{"displayTimeUnit":"ms","traceEvents":[')
    count = 0
    for count, event in enumerate(trace_events(records, run_id=run_id), 1):
        file.write(",\n" if count > 1 else "\n")
        file.write(json.dumps(event, separators=(",", ":")))
    lacks = lacks_of(records)
    other = ',"otherData":' + json.dumps({"lacks": "; ".join(lacks)}) if lacks else ""
    file.write(f"\n]{other}}}\n")
    return count


def trace_events(evidence: Evidence, *, run_id: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a trace, as mappings. A call's part of a batch is left out: it is in the batch's slice.

    Args:
        evidence: As of `write_trace`.
        run_id: As of `write_trace`.

    Raises:
        EvidenceError: It cannot be read.
    """
    sessions: dict[str, _Session] = {}
    for record in read(evidence):
        session = sessions.get(record["session_id"])
        if session is None:
            session = sessions[record["session_id"]] = _Session(record["session_id"], len(sessions) + 1)
            yield session.named()
        if run_id is None or record.get("run_id") == run_id:
            yield from session.events(record)
        session.last_us = max(session.last_us, unix_us(record["time"]))
    for session in sessions.values():
        yield from session.unended()


class _Session:
    """One session's part of a trace: a process, as a trace has it."""

    def __init__(self, session: str, pid: int) -> None:
        self.session = session
        self.pid = pid
        self.last_us = 0
        self._runs: dict[str, Mapping[str, Any]] = {}  # that have not ended
        self._open: dict[str, Mapping[str, Any]] = {}  # calls that have not ended, of those that were announced
        self._retries: dict[str, list[tuple[int, int]]] = {}  # of calls that have not ended: when, and the delay
        self._begins = Begins()
        self._lanes = {"run": _Lanes(1), "worker": _Lanes(CALLS_FROM)}

    def named(self) -> dict[str, Any]:
        """What it is called."""
        return self._meta("process_name", 0, f"session {self.session}")

    def events(self, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of one record."""
        event: str = record["event"]
        if event in ENDS:
            self._open.pop(record["call_id"], None)
            began = self._begins.of(record)
            if "batch_id" not in record:
                yield from self._call(record, began)
        elif event == "call.started":
            self._open[record["call_id"]] = record
            self._begins.announced(record)
        elif event == "run.started":
            self._runs[record["run_id"]] = record
        elif event == "run.ended" and (started := self._runs.pop(record["run_id"], None)) is not None:
            yield from self._run(started, unix_us(record["time"]), record)
        elif event == "resource.sampled":
            yield self._sample(record)
        elif event in ("call.retried", "call.hedged", "call.fell_back", "call.slow") or event.startswith(MOMENTS):
            if event == "call.retried":
                self._retries.setdefault(record["call_id"], []).append((unix_us(record["time"]), record["delay_us"]))
            yield self._event("i", event, 0, unix_us(record["time"]), args=_args(record), s="p")

    def unended(self) -> Iterator[dict[str, Any]]:
        """What was open when the evidence ended: up to its last record."""
        for started in self._open.values():
            if "batch_id" not in started:
                begin = min(unix_us(started["time"]), self.last_us)
                yield from self._slice(
                    "worker", self._name(started), begin, self.last_us, _args(started) | {"status": "open"}
                )
        for started in self._runs.values():
            yield from self._run(started, self.last_us, {})

    def _call(self, end: Mapping[str, Any], at: int) -> Iterator[dict[str, Any]]:
        ended = unix_us(end["time"])
        yield from self._slice("worker", self._name(end), at, ended, _args(end))
        lane = self._lanes["worker"].latest
        for name, length in _fitted(end, at, ended, self._retries.pop(end["call_id"], [])):
            yield self._event("X", name, lane, at, dur=length, cat=name.partition(":")[0])
            at += length

    def _run(self, started: Mapping[str, Any], until: int, end: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        args = {name: end[name] for name in ("items", "failed", "cancelled", "skipped") if name in end}
        begin = unix_us(started["time"])
        yield from self._slice("run", started["pipeline"], begin, until, {"run_id": started["run_id"], **args})

    def _slice(self, kind: str, name: str, begin: int, end: int, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
        lanes = self._lanes[kind]
        lane = lanes.take(begin, end)
        if lanes.is_new:
            yield self._meta("thread_name", lane, f"{kind} {len(lanes)}")
            yield self._meta("thread_sort_index", lane, lane)
        yield self._event(
            "X", name, lane, begin, dur=end - begin, cat="call" if kind == "worker" else "pipeline", args=args
        )

    def _name(self, call: Mapping[str, Any]) -> str:
        """Of a phase's call the phase, unless it is nested in that: then its tool."""
        run = self._runs.get(call.get("run_id", ""), {})
        name: str = call["phase" if "phase" in call and call.get("parent_id") == run.get("parent_id") else "tool"]
        return name

    def _sample(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return self._event(
            "C", "process", 0, unix_us(record["time"]),
            args={
                "cpu_percent": 100 * record["cpu_us"] // max(record["span_us"], 1),
                "rss_mib": record["rss_bytes"] >> 20,
            },
        )  # fmt: skip

    def _event(self, kind: str, name: str, lane: int, at: int, **more: Any) -> dict[str, Any]:
        return {"ph": kind, "name": name, "pid": self.pid, "tid": lane, "ts": at, **more}

    def _meta(self, what: str, lane: int, value: str | int) -> dict[str, Any]:
        args = {"sort_index": value} if isinstance(value, int) else {"name": value}
        return {"ph": "M", "name": what, "pid": self.pid, "tid": lane, "args": args}


class _Lanes:
    """Gives slices, which come in the order of their ends, as few lanes as will do."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._until: list[int] = []
        self.latest = first
        self.is_new = False

    def __len__(self) -> int:
        return len(self._until)

    def take(self, begin: int, end: int) -> int:
        """A lane that is free from ``begin`` on: of several the one that was in use last."""
        free = [number for number, until in enumerate(self._until) if until <= begin]
        self.is_new = not free
        if self.is_new:
            number = len(self._until)
            self._until.append(end)
        else:
            number = max(free, key=self._until.__getitem__)
            self._until[number] = end
        self.latest = self._first + number
        return self.latest


def _fitted(
    end: Mapping[str, Any], begin: int, ended: int, retries: list[tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    """What a call did, in order: names and lengths, which add up to the time between its begin and its end."""
    left = ended - begin
    other = left - duration_us(end)
    is_first = other > 0 and end["status"] in ("succeeded", "reused") and "answered_by" not in end
    if is_first:
        yield OTHER, other
        left -= other
    for name, length in _parts(end, begin + max(other, 0) * is_first, retries):
        fitting = min(length, left)  # of two attempts that ran at once, as long as there was
        if fitting:
            yield name, fitting
        left -= fitting
    if left:
        yield OTHER if "answered_by" not in end else f"fallback: {end['answered_by']}", left


def _parts(end: Mapping[str, Any], begin: int, retries: list[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """What a call did, in order: names and lengths, which add up to it.

    Its record has sums only: where it waited for what stands first, then its run, cut where an attempt has failed.
    """
    waits = end["wait_us"]
    rest = [(f"wait: {what}", waits.get(what, 0)) for what in WAITS] + [("run", end["run_us"])]
    left = waits.get("retry", 0)
    at = begin
    for number, (failed_at, delay) in enumerate(retries, 1):
        while rest and at < failed_at:
            name, length = rest.pop(0)
            part = min(length, failed_at - at)
            if part < length:
                rest.insert(0, (name, length - part))
            if part:
                yield name, part
            at += part
        slept = left if number == len(retries) else min(delay, left)
        if slept:
            yield "wait: retry", slept
        left -= slept
        at += slept
    if left:
        rest.insert(0, ("wait: retry", left))  # the records of its retries are missing
    yield from ((name, length) for name, length in rest if length)


def _args(record: Mapping[str, Any]) -> dict[str, Any]:
    frame = ("schema", "session_id", "seq", "event", "time", "wait_us", "previous_sha256")
    left_out = (*frame, "inputs", "output")  # values, where they are on record: they are not to go elsewhere
    return {name: value for name, value in record.items() if name not in left_out}
