"""Checks evidence files: the chain from the first record to what the head says is the last. Reads, changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from ._chain import GENESIS, Head, fields_of, hash_of, head_path, is_recovery, record_of, segment_path
from ._errors import EvidenceError, counted
from ._mistaken import instead_of_evidence
from ._records import SCHEMA
from ._segments import gap_after, goes_on, head_of, own_number

__all__ = ["EvidenceReport", "Segment", "verify_evidence"]

Problem = Literal["edited", "lost", "reordered", "duplicated", "added", "torn", "truncated", "head", "schema", "format"]
State = Literal["sealed", "continued", "open", "unsealed"]


@dataclass(frozen=True)
class EvidenceReport:
    """What `verify_evidence` has found.

    Attributes:
        ok: It is intact, and was closed by a session that has ended: nothing was changed, nothing is missing. Never of
            one segment alone, since the others were not looked at.
        state: ``"sealed"``: closed so; ``"open"``: a session still writes, or was killed; ``"unsealed"``: the head file
            is missing; ``"continued"``: of a segment alone, the log goes on in the next one. If it is not sealed,
            records may be missing at the end.
        records, sessions, segments: How many there are, up to the first bad record.
        recovered: Pieces that a crash had torn, kept in the file and noted there by the session after.
        last_sha256: The hash of the last good record. Kept in another place, it proves all the records.
        problem: Why the first bad record is bad, or None: ``"edited"``, ``"lost"``, ``"reordered"``, ``"duplicated"``,
            ``"added"``, ``"torn"`` (broken off), ``"truncated"`` (missing at the end), ``"head"``, ``"schema"``,
            ``"format"`` (no evidence).
        file, line: Where it is.
        reason: A sentence about it.
        segment: The number of the segment, where the path was that of one alone; else None.
    """

    state: State
    records: int
    sessions: int
    segments: int
    recovered: int
    last_sha256: str
    problem: Problem | None = None
    file: str | None = None
    line: int | None = None
    reason: str | None = None
    segment: int | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and self.state == "sealed" and self.segment is None

    def __str__(self) -> str:
        what = f"{counted(self.records, 'record')} of {counted(self.sessions, 'session')}"
        if self.problem is not None:
            return f"{self.problem}: {self.file}, line {self.line}: {self.reason}; {what} before it are intact"
        torn = f", {counted(self.recovered, 'torn piece')} kept after a crash" if self.recovered else ""
        end = {
            "sealed": "sealed",
            "open": "not sealed: a session still writes or was killed, records may be missing at the end",
            "unsealed": "not sealed: the head file is missing, records may be missing at the end",
            "continued": "the log goes on in another segment, which was not looked at",
        }[self.state]
        if self.segment is not None:
            alone = f"segment {self.segment} alone is"
            end += ", and nothing before this segment was looked at; check the log by the name of its first one"
            return f"{alone} intact, {end}: {what}{torn}; last record {self.last_sha256}"
        return f"intact and {end}: {what}{torn}; last record {self.last_sha256}"


def verify_evidence(path: str | os.PathLike[str]) -> EvidenceReport:
    """Check the evidence that a `JsonlSink` has written, with all its segments.

    Args:
        path: The log; or one closed segment of it under its own name, of which alone is said whether it is whole.

    Returns:
        What was found; the first bad record, if there is one.

    Raises:
        EvidenceError: It cannot be read, or is something else: a journal, a head.
    """
    path = Path(path)
    if (instead := instead_of_evidence(path)) is not None:
        raise EvidenceError(f"{str(path)!r} is no evidence: {instead}")
    try:
        return _verified(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise EvidenceError(f"{str(path)!r} cannot be read: {why}; give the path of evidence") from error


def _verified(path: Path) -> EvidenceReport:
    previous = GENESIS
    records = sessions = recovered = number = 0
    unfinished = 0  # the segment before, if its head is open
    more, alone = True, None
    head: Head | None = None
    found: Found | None = None
    one = path
    while more and found is None:
        number += 1
        one = segment_path(path, number)
        # In this order: a session may begin a next segment meanwhile, and then this one is whole.
        more = goes_on(path, number)
        head, wrong = head_of(one)
        alone = own_number(path, head) if number == 1 else None
        if alone is not None and head is not None:
            previous, more = head.previous, False
        segment = Segment(one, previous, head)
        segment.scan()
        found = segment.problem
        if found is None and wrong is not None:
            found = Found("head", 1, wrong)
        if found is None and head is not None and alone is None:
            more = more or (head.state == "continued" and goes_on(path, number))
            found = _misplaced(path, head, number, previous, is_last=not more)
        if found is None and unfinished and (more or head is None or head.state != "open"):
            one, found = segment_path(path, unfinished), _unfinished(path, unfinished)
        if found is None and not more and alone is None and (gap := gap_after(path, number)) is not None:
            found = Found("lost", segment.lines, gap)
        unfinished = number if head is not None and head.state == "open" else 0
        records += segment.records
        sessions += segment.sessions
        recovered += segment.recovered
        previous = segment.last
    report = EvidenceReport(
        "unsealed" if head is None else head.state, records, sessions, number, recovered, previous, segment=alone
    )
    if found is None:
        return report
    return replace(report, problem=found.kind, file=one.name, line=found.line, reason=found.reason)


def _misplaced(path: Path, head: Head, number: int, previous: str, *, is_last: bool) -> Found | None:
    """What is wrong with a whole segment at this place in the log."""
    if (head.segment, head.previous) != (number, previous):
        return Found("head", 1, f"{head_path(segment_path(path, number)).name} is of another segment")
    if is_last and head.state == "continued":
        return Found(
            "truncated", head.records, f"it goes on in {segment_path(path, number + 1).name}, which is missing"
        )
    return None if is_last or head.state != "sealed" else _unfinished(path, number)


def _unfinished(path: Path, number: int) -> Found | None:
    """What is wrong with the head of a segment that others follow; a session may have put it right meanwhile.

    One that was killed when it had begun the next one leaves two open heads, and nothing else does.
    """
    head, _ = head_of(segment_path(path, number))
    if head is None or head.state == "continued":
        return None
    name, following = head_path(segment_path(path, number)).name, segment_path(path, number + 1).name
    return Found("head", 1, f"{name} says that it is {head.state}, and not that the log goes on in {following}")


@dataclass(frozen=True)
class Found:
    """Something that is wrong, in a line."""

    kind: Problem
    line: int
    reason: str


class Segment:
    """One file of a log, read from its begin.

    Args:
        path: The file.
        previous: The hash before its first record; None: whatever that says.
        head: What its head says, if there is one.

    Attributes:
        records, sessions, recovered, lines, last: What was counted up to the first problem.
        tail: What comes after the last record: torn by a crash, where the head is open.
        unended: Whether the last record has no newline behind it.
        problem: The first, or None.
    """

    def __init__(self, path: Path, previous: str | None, head: Head | None) -> None:
        self.path = path
        self.previous = previous
        self.head = head
        self.records = self.sessions = self.recovered = self.lines = self.size = 0
        self.last = previous or GENESIS
        self.tail = b""
        self.unended = False
        self.problem: Found | None = None
        self._before = (0, 0, self.last)  # records, sessions, last before the latest record

    def scan(self) -> None:
        """Read it, up to the first problem."""
        try:
            self._follow()
            self._compare()
        except _Stop as stop:
            self.problem = stop.found

    def _follow(self) -> None:
        earlier = latest = None  # the two records before
        last = self.previous
        piece: list[bytes] = []
        awaited = self.head.records if self.head is not None else 0
        for number, line in self._numbered():
            body = line[:-1] if line.endswith(b"\n") else line
            record = record_of(body)
            if record is None:
                if not self.records and not piece:
                    self._check_form(body)
                piece.append(line)
                continue
            if not self.records and record.get("schema", SCHEMA) != SCHEMA:
                self._stop("schema", number, f"it is evidence of schema {record['schema']}, and this is {SCHEMA}")
            if last is None:
                last = record["previous_sha256"]
            if piece or record.get("torn_bytes"):
                if not is_recovery(record, b"".join(piece)):
                    self._torn_inside(number, piece)
                self.recovered += 1
            if record["previous_sha256"] != last:
                self._diagnose(number, body, record, earlier, latest)
            earlier, latest = latest, record
            self._before = self.records, self.sessions, self.last
            last = self.last = hash_of(body)
            self.records += 1
            self.sessions += record.get("event") == "session.started"
            self.size += len(line) + sum(map(len, piece))
            self.lines = number
            self.unended = body is line
            piece = []
            if self.records == awaited and self.head is not None and self.head.last != last:
                self._blame_latest("edited", "its hash is not that in the head")
        self.tail = b"".join(piece)

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            yield from enumerate(file, 1)

    def _check_form(self, body: bytes) -> None:
        """The first line is no record of ours: evidence of another schema, something else, or torn."""
        fields = fields_of(body)
        if fields is not None and "session_id" in fields and "schema" in fields:
            self._stop("schema", 1, f"it is evidence of schema {fields['schema']!r}, and this is {SCHEMA}")
        if self.head is None:
            self._stop("format", 1, "it is no record of evidence")

    def _compare(self) -> None:
        """With what the head says of the end."""
        head, next_line = self.head, self.lines + 1
        if self.unended:
            self._stop("torn", self.lines, "its newline is missing")
        if self.tail and not self.tail.endswith(b"\n"):
            self._stop("torn", next_line, "it is broken off")
        if head is None:
            if self.tail:
                self._stop("edited", next_line, "it is no record")
            return
        if self.tail and self.records < head.records:
            self._stop("edited", next_line, "it is no record")
        if self.records < head.records:
            missing = counted(head.records - self.records, "record")
            self._stop("truncated", next_line, f"{missing} are missing at the end")
        if head.state == "open":
            if self.tail:
                self._stop("torn", next_line, "it is no record")
            return
        if self.records > head.records or self.tail:
            self.records, self.last = head.records, head.last
            self._stop("added", head.records + 1, f"the head knows of {counted(head.records, 'record')}")
        if (self.size, self.last) != (head.size, head.last):
            self._blame_latest("edited", "its end is not that in the head")

    def _torn_inside(self, number: int, piece: list[bytes]) -> NoReturn:
        if piece:
            self._stop("edited", number - len(piece), "it is no record")
        self._stop("lost", number, "the torn piece before it, which it tells of, is missing")

    def _diagnose(self, number: int, body: bytes, record: dict[str, Any], earlier: Any, latest: Any) -> NoReturn:
        """The line does not follow the one before; say why."""
        own, wanted = hash_of(body), record["previous_sha256"]
        following: dict[str, Any] | None = None
        lines = 0
        where: int | None = None
        for other_number, line in self._numbered():
            other = line.removesuffix(b"\n")
            other_hash = hash_of(other)
            if other_number < number and other_hash == own:
                self._stop("duplicated", number, f"it is line {other_number} again")
            if other_number == number + 1:
                following = record_of(other)
            if other_hash == wanted:
                where = other_number
            lines += other.endswith(b"}")  # a torn piece hardly does
        if where is not None and where > number:
            self._stop("reordered", number, f"it belongs behind line {where}")
        if following is not None:
            intact = following["previous_sha256"] == own
        else:
            intact = self.head is None or self.head.last == own or self.head.state == "open"
        if not intact:
            self._stop("edited", number, "its hash is not the one that the next record has")
        if where is not None or (wanted == GENESIS and self.records):
            self._blame_latest("added", f"line {number} follows line {where or 'of a log of its own'}")
        if self._is_loss(lines, record, earlier, latest):
            self._stop("lost", number, "records are missing before it")
        self._blame_latest("edited", "its hash is not the one that the next record has")

    def _is_loss(self, lines: int, record: dict[str, Any], earlier: Any, latest: Any) -> bool:
        """Whether records are missing before this one; else the one before it was edited."""
        if latest is None:
            return True
        if self.head is not None and self.head.state != "open":
            return lines < self.head.records
        if record.get("session_id") != latest.get("session_id"):
            return bool(latest.get("event") != "session.ended")
        is_one_step = earlier is not None and _step(earlier, record) == 2  # then only the number between is wrong
        return not is_one_step and _step(latest, record) > 1

    def _blame_latest(self, kind: Problem, reason: str) -> NoReturn:
        """The bad record is the last that was read, as what comes after it has shown."""
        self.records, self.sessions, self.last = self._before
        self._stop(kind, max(self.lines, 1), reason)

    def _stop(self, kind: Problem, line: int, reason: str) -> NoReturn:
        raise _Stop(Found(kind, line, reason))


def _step(one: dict[str, Any], other: dict[str, Any]) -> int:
    first, second = one.get("seq"), other.get("seq")
    return second - first if isinstance(first, int) and isinstance(second, int) else 1


class _Stop(Exception):
    """The first problem was found."""

    def __init__(self, found: Found) -> None:
        super().__init__(found.reason)
        self.found = found
