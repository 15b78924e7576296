"""Evidence as it is read again: records of files or of a list, as often as one wants, and the runs in them.

Knows the form of records, and not what is made of them. Whether they are as they were written, `evidence verify` says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeAlias

from ._chain import fields_of, head_path
from ._errors import EvidenceError, counted
from ._mistaken import instead_of_evidence
from ._records import SCHEMA
from ._segments import gap_after, head_of, own_number, segments_of
from ._suggest import nearest

__all__ = [
    "ENDS",
    "EPOCH",
    "Begins",
    "Evidence",
    "EvidenceFile",
    "Read",
    "RunOnRecord",
    "choose_run",
    "duration_us",
    "lacks_of",
    "read",
    "record_of_line",
    "runs_of",
    "unix_us",
]

Evidence: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
ENDS: Final = frozenset(
    f"call.{status}" for status in ("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused")
)

_Get: TypeAlias = Callable[[Mapping[str, Any]], tuple[Any, ...]]


def _has(texts: str, numbers: str) -> tuple[_Get, _Get]:
    """What takes these texts and numbers out of a record, two or more of each."""
    return itemgetter(*texts.split()), itemgetter(*numbers.split())


# What a record has by its event, texts and numbers, so that nobody stumbles over one that was damaged.
_EVERY: Final = _has("event session_id", "schema seq")
_CALL: Final = _has("session_id call_id tool version", "schema seq")
_END: Final = _has("session_id call_id tool version status", "seq run_us attempt")
_RUN: Final = _has("session_id run_id pipeline", "schema seq")
_FIELDS: Final = {
    **dict.fromkeys(ENDS, _END),
    **dict.fromkeys(("call.started", "call.hedged", "call.fell_back"), _CALL),
    "call.retried": _has("session_id call_id tool version", "seq delay_us"),
    "run.started": _RUN,
    "run.ended": _has("session_id run_id pipeline", "seq items failed skipped"),
    "item.failed": _has("session_id run_id pipeline item", "schema seq"),
    "resource.sampled": _has("event session_id", "seq cpu_us span_us rss_bytes"),
}
_TEXT: Final = {str}
_NUMBER: Final = {int}
_AT_TIMES: Final = ("run_id", "pipeline", "phase", "item", "parent_id", "batch_id", "reused_from")
_NO_ERROR: Final[dict[str, Any]] = {}
CLOSE_US: Final = 1000  # so far apart may be when a call was made, and when it began
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class EvidenceFile:
    """The records of a JSON lines file and of the segments beside it (``run.jsonl.2``, ...), read anew each time.

    Where a segment is missing, reading is an error: what is left would pass for the whole.

    Attributes:
        lacks: What the latest reading had to do without, as sentences: lines that are no records, an end that may be
            missing.
        unreadable: How many of its lines were no records.
        records: How many were, once it was read to its end.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lacks: list[str] = []
        self.unreadable = self.records = 0

    def __repr__(self) -> str:
        return f"EvidenceFile({str(self.path)!r})"

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self.lacks = []
        self.unreadable = self.records = 0
        path = self.path
        try:
            self._check_parts()
            for path in segments_of(self.path):
                yield from self._segment(path)
            self._end(path)
        except (OSError, ValueError) as error:  # a ValueError is of a path that no file can have
            why = error.strerror if isinstance(error, OSError) else error
            raise EvidenceError(f"evidence cannot be read from {str(path)!r}: {why}; give a file of it") from error

    def check_records(self) -> None:
        """Once it was read: that it is evidence at all.

        Raises:
            EvidenceError: It is another file, or an empty one.
        """
        if not self.records:
            raise EvidenceError(f"{str(self.path)!r} has no record of evidence; give the file that --evidence named")

    def _check_kind(self) -> None:
        if (instead := instead_of_evidence(self.path)) is not None:
            raise EvidenceError(f"{str(self.path)!r} is no evidence: {instead}")

    def _check_parts(self) -> None:
        """That it is a log, and the whole of one, before anything is made of a part."""
        self._check_kind()
        head, _ = head_of(self.path)
        if own_number(self.path, head) is not None:
            log = str(self.path.with_suffix(""))
            raise EvidenceError(f"{str(self.path)!r} is one segment of a log, and no more; give that, {log!r}")
        gap = gap_after(self.path, sum(1 for _ in segments_of(self.path)))
        if gap is not None:
            raise EvidenceError(
                f"the evidence in {str(self.path)!r} is not whole: {gap}; restore that file, since what is left does "
                f"not tell all that happened"
            )

    def _segment(self, path: Path) -> Iterator[Mapping[str, Any]]:
        lines = torn = 0
        head, _ = head_of(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                record = record_of_line(line)
                if record is None:
                    torn += bool(line.strip())
                elif record["schema"] != SCHEMA:
                    raise EvidenceError(
                        f"{str(path)!r}, line {number}: evidence of schema {record['schema']!r}, and this reads schema "
                        f"{SCHEMA}; read it by the version that wrote it"
                    )
                else:
                    lines += 1
                    yield record
        self.records += lines
        if torn:
            self.unreadable += torn
            self.lacks.append(f"{counted(torn, 'line')} of {path.name} could not be read; a crash may have torn one")
        if head is not None and lines + torn < head.records:
            missing = counted(head.records - lines - torn, "record")
            self.lacks.append(f"{missing} of {path.name} are missing, as its head says")

    def _end(self, path: Path) -> None:
        """What the head of the last segment says of the end, asked when that has been read."""
        head, wrong = head_of(path)
        if head is None:
            why = wrong or f"{head_path(path).name} is missing"
            self.lacks.append(f"{why}, so that records may be missing at the end")
        elif head.state == "open":
            self.lacks.append("a session still writes to it, or was killed: records may be missing at the end")


Read: TypeAlias = EvidenceFile | list[Mapping[str, Any]]


def lacks_of(records: Read) -> list[str]:
    """What the latest reading had to do without; of a list nobody can tell."""
    return list(records.lacks) if isinstance(records, EvidenceFile) else []


def read(evidence: Evidence) -> Read:
    """Evidence that can be gone through several times: a path, a list of records; another iterable is made a list.

    Raises:
        TypeError: It is none of them.
    """
    if isinstance(evidence, (EvidenceFile, list)):
        return evidence
    if isinstance(evidence, (str, os.PathLike)):
        return EvidenceFile(evidence)
    if isinstance(evidence, Iterable) and not isinstance(evidence, (Mapping, bytes)):
        return list(evidence)
    raise TypeError(f"evidence is a path or records, such as MemorySink().records, not {evidence!r}")


def record_of_line(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None where it is none, or lacks what its kind has: a torn or a changed one."""
    found = fields_of(line)
    try:
        if found is None or not isinstance(found["event"], str) or "schema" not in found:
            return None
        if found["schema"] != SCHEMA:  # said by who asks
            return found
        unix_us(found["time"])
        event = found["event"]
        texts, numbers = _FIELDS.get(event, _EVERY)
        counted = numbers(found)
        if set(map(type, texts(found))) != _TEXT or set(map(type, counted)) != _NUMBER or min(counted) < 0:
            return None
        for name in _AT_TIMES:
            if name in found and type(found[name]) is not str:
                return None
        if type(found.get("error", _NO_ERROR)) is not dict:
            return None
        is_end = event in ENDS
        if is_end:
            waits = found["wait_us"].values()
            if waits and (set(map(type, waits)) != _NUMBER or min(waits) < 0):
                return None
        is_call = is_end or event == "call.started"
        return None if is_call and "run_id" in found and "phase" not in found else found
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None


_second = ("", 0)


def unix_us(time: str) -> int:
    """A record's time as microseconds since 1970.

    Raises:
        ValueError, TypeError: It is no time.
    """
    global _second
    if len(time) != 27 or time[19] != "." or time[26] != "Z" or not time[20:26].isdecimal():  # none of ours
        since = datetime.fromisoformat(time) - EPOCH
        return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
    second = _second  # read once: several threads may read evidence
    if second[0] != time[:19]:
        since = datetime.fromisoformat(time) - EPOCH
        second = _second = (time[:19], (since.days * 86400 + since.seconds) * 1_000_000)  # once a second
    return second[1] + int(time[20:26])


def duration_us(end: Mapping[str, Any]) -> int:
    """Of an ended call: what it waited and ran, as its record says."""
    waited: int = sum(end["wait_us"].values())
    return waited + int(end["run_us"])


class Begins:
    """When calls began, in microseconds since 1970, told from their records as they come. Keeps those that are open.

    The end of a call tells how long it waited and ran. That is not all of it where it had a fallback, waited for the
    result of another call, or was cleaned up after; and more than that, where two attempts ran at once. Of those that
    took their time it is on record when they began, and no call began after one that is nested in it.
    """

    def __init__(self) -> None:
        self._announced: dict[str, int] = {}
        self._inside: dict[str, int] = {}  # the begin of the first that is nested in it

    def announced(self, started: Mapping[str, Any]) -> None:
        """It is open."""
        self._announced[started["call_id"]] = unix_us(started["time"])

    def of(self, end: Mapping[str, Any]) -> int:
        """It has ended. Once for each."""
        ended = unix_us(end["time"])
        told = ended - duration_us(end)
        known = min(self._announced.pop(end["call_id"], told), ended)
        began = min(told if abs(told - known) < CLOSE_US else known, self._inside.pop(end["call_id"], ended))
        outer = end.get("parent_id")
        if outer is not None:
            self._inside[outer] = min(self._inside.get(outer, began), began)
        return began


@dataclass(slots=True)
class RunOnRecord:
    """A run as its evidence tells of it.

    Attributes:
        plan: Its phases, as `Plan.on_record` gives them; None where an older version has written the record.
        parent_id: The call that it was started in.
        ended: The record of its end, if there is one.
    """

    run_id: str
    pipeline: str
    session_id: str
    started: str
    plan: list[dict[str, Any]] | None
    parent_id: str | None = None
    ended: Mapping[str, Any] | None = field(default=None, repr=False)


def run_of(record: Mapping[str, Any]) -> RunOnRecord:
    """The run that a ``run.started`` tells of."""
    return RunOnRecord(
        record["run_id"], record["pipeline"], record["session_id"], record["time"], record.get("plan"),
        record.get("parent_id"),
    )  # fmt: skip


def runs_of(records: Iterable[Mapping[str, Any]]) -> dict[str, RunOnRecord]:
    """The runs on record by id, in the order of their start."""
    runs: dict[str, RunOnRecord] = {}
    for record in records:
        if record["event"] == "run.started":
            runs[record["run_id"]] = run_of(record)
        elif record["event"] == "run.ended" and record["run_id"] in runs:
            runs[record["run_id"]].ended = record
    return runs


def choose_run(runs: Mapping[str, RunOnRecord], run_id: str | None) -> RunOnRecord:
    """The run of that id, or the latest; not one that a call has started, if there are others.

    Raises:
        EvidenceError: There is no such run, or it is on record without its plan.
    """
    if not runs:
        raise EvidenceError("there is no run on record: lineage is of the items of pipelines, so of manager.run(...)")
    if run_id is None:
        run_id = ([name for name, run in runs.items() if run.parent_id is None] or list(runs))[-1]
    elif run_id not in runs:
        raise EvidenceError(f"no run {run_id!r} is on record; there are {', '.join(runs)}{nearest(run_id, runs)}")
    run = runs[run_id]
    if run.plan is None:
        raise EvidenceError(
            f"run {run_id!r} of pipeline {run.pipeline!r} is on record without its plan, as older versions wrote it, "
            f"so that nobody can tell what came from what; run it again"
        )
    return run
